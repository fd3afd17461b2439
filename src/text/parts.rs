//! What a text is put together from, whichever files it came from.

use std::{
    fs::File,
    io::BufReader,
    path::{Path, PathBuf},
};

use tokenizers::Tokenizer;

use super::{
    TextError, TextSource, folder,
    gguf::read_tokenizer_fields,
    gguf_vocabulary::{GgufVocabulary, Refused},
    pieces::Pieces,
};
use crate::terms::Digest;

/// Largest number of token ids.
pub(super) const MAX_VOCABULARY: usize = 1 << 22;

pub(super) struct Parts {
    pub(super) tokenizer: Tokenizer,
    pub(super) pieces: Pieces,
    pub(super) digest: Digest,
    pub(super) bos: Option<u32>,
    /// Tokens that end a turn, as the files name them.
    pub(super) ends: Vec<u32>,
    /// Ids that go before and after a text that is encoded with special tokens.
    pub(super) before: Vec<u32>,
    pub(super) after: Vec<u32>,
    /// Special tokens by the names that templates know: `bos_token`, `eos_token`, `unk_token`, `pad_token`.
    pub(super) names: Vec<(&'static str, String)>,
    pub(super) template: Option<String>,
}

impl Parts {
    pub(super) fn read(source: &TextSource) -> Result<Self, TextError> {
        match source {
            TextSource::Folder(folder) => folder::read(folder)?
                .ok_or_else(|| TextError::Load { path: folder.clone(), reason: "it holds no tokenizer.json".into() }),
            TextSource::Gguf(file) => {
                let vocabulary = read_vocabulary(file);
                let beside = match file.parent() {
                    // The parent of a bare file name is "", which is the current folder.
                    Some(folder) if folder.as_os_str().is_empty() => folder::read(Path::new("."))?,
                    Some(folder) => folder::read(folder)?,
                    None => None,
                };
                match (beside, vocabulary) {
                    (None, vocabulary) => {
                        vocabulary?.map_err(|refused| error_of(refused, file)).and_then(|v| from_gguf(&v, file))
                    }
                    (Some(beside), Ok(Ok(vocabulary))) => beside_gguf(beside, vocabulary, file),
                    // The file's own tokenizer is of an unknown kind; the one beside it serves.
                    (Some(beside), Ok(Err(_))) => Ok(beside),
                    (Some(_), Err(error)) => Err(error),
                }
            }
        }
    }
}

fn read_vocabulary(file: &Path) -> Result<Result<GgufVocabulary, Refused>, TextError> {
    let fault = |reason: String| TextError::Load { path: file.to_owned(), reason };
    let opened = File::open(file).map_err(|error| fault(error.to_string()))?;
    let fields = read_tokenizer_fields(&mut BufReader::with_capacity(1 << 16, opened))
        .map_err(|error| fault(error.to_string()))?;
    Ok(GgufVocabulary::from_fields(fields))
}

fn error_of(refused: Refused, file: &Path) -> TextError {
    match refused {
        Refused::Unsupported(name) => TextError::UnsupportedTokenizer(name),
        Refused::Reason(reason) => TextError::Load { path: file.to_owned(), reason },
    }
}

fn from_gguf(vocabulary: &GgufVocabulary, file: &Path) -> Result<Parts, TextError> {
    let named = [
        ("bos_token", vocabulary.bos),
        ("eos_token", vocabulary.eos),
        ("unk_token", vocabulary.unknown),
        ("pad_token", vocabulary.padding),
    ];
    Ok(Parts {
        tokenizer: vocabulary.tokenizer().map_err(|refused| error_of(refused, file))?,
        pieces: vocabulary.pieces(),
        digest: vocabulary.digest(),
        bos: vocabulary.bos,
        ends: vocabulary.eos.into_iter().chain(vocabulary.ends.iter().copied()).collect(),
        before: vocabulary.bos.filter(|_| vocabulary.add_bos).into_iter().collect(),
        after: vocabulary.eos.filter(|_| vocabulary.add_eos).into_iter().collect(),
        names: named.iter().filter_map(|(name, id)| Some((*name, vocabulary.token((*id)?)?.to_owned()))).collect(),
        template: vocabulary.template.clone(),
    })
}

/// The `tokenizer.json` beside a GGUF file, if it is the same vocabulary; what it leaves open, the file says.
fn beside_gguf(mut beside: Parts, vocabulary: GgufVocabulary, file: &Path) -> Result<Parts, TextError> {
    for (id, name) in vocabulary.plain_tokens() {
        let other = beside.tokenizer.id_to_token(id);
        if other.as_deref() != Some(name) {
            let path: PathBuf = file.with_file_name("tokenizer.json");
            let other = other.map_or_else(|| "nothing".to_owned(), |other| format!("{other:?}"));
            let reason =
                format!("it is another model's: token {id} is {other} here and {name:?} in {}", file.display());
            return Err(TextError::Load { path, reason });
        }
    }
    beside.template = beside.template.or(vocabulary.template);
    beside.bos = beside.bos.or(vocabulary.bos);
    beside.ends.extend(vocabulary.eos.into_iter().chain(vocabulary.ends));
    Ok(beside)
}
