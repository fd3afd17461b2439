//! The tokenizer of a Hugging Face folder.

use std::{
    fs::File,
    io::{ErrorKind, Read},
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
};

use serde::Deserialize;
use serde_json::Value;
use tokenizers::{Encoding, PostProcessor, Token, Tokenizer};

use super::{
    TextError,
    parts::{MAX_VOCABULARY, Parts},
    pieces::{PieceKind, Pieces, Spelling},
    template::MAX_TEMPLATE_BYTES,
};
use crate::terms::Hasher;

const MAX_TOKENIZER_BYTES: u64 = 256 << 20;
const MAX_CONFIG_BYTES: u64 = 16 << 20;

/// What `tokenizer_config.json` says that matters here.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct TokenizerConfig {
    bos_token: Option<TokenName>,
    eos_token: Option<TokenName>,
    unk_token: Option<TokenName>,
    pad_token: Option<TokenName>,
    add_bos_token: Option<bool>,
    add_eos_token: Option<bool>,
    chat_template: Option<TemplateField>,
}

/// A token's text, bare or as a serialized `AddedToken`.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum TokenName {
    Text(String),
    Added { content: String },
}

impl TokenName {
    fn into_text(self) -> String {
        match self {
            Self::Text(text) | Self::Added { content: text } => text,
        }
    }
}

/// One template, or several by name, of which `default` is for conversations without tools.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum TemplateField {
    One(String),
    Named(Vec<NamedTemplate>),
}

#[derive(Debug, Deserialize)]
struct NamedTemplate {
    name: String,
    template: String,
}

/// What of `tokenizer.json` the tokenizer itself does not tell.
#[derive(Deserialize)]
struct TokenizerFile {
    #[serde(default)]
    decoder: Value,
    model: ModelField,
}

#[derive(Deserialize)]
struct ModelField {
    #[serde(rename = "type", default)]
    kind: Option<String>,
    #[serde(default)]
    dropout: Option<f64>,
}

/// `eos_token_id` of `generation_config.json`.
#[derive(Default, Deserialize)]
#[serde(default)]
struct GenerationConfig {
    eos_token_id: Option<TokenIds>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum TokenIds {
    One(u32),
    Many(Vec<u32>),
}

/// Reads `tokenizer.json` with what stands beside it; `None` when there is none.
pub(super) fn read(folder: &Path) -> Result<Option<Parts>, TextError> {
    let path = folder.join("tokenizer.json");
    let Some(bytes) = read_capped(&path, MAX_TOKENIZER_BYTES)? else { return Ok(None) };
    let fault = |reason: String| TextError::Load { path: path.clone(), reason };
    let file: TokenizerFile = serde_json::from_slice(&bytes).map_err(|error| fault(error.to_string()))?;
    if file.model.dropout.is_some_and(|dropout| dropout != 0.0) {
        return Err(fault("model.dropout makes its tokens random".into()));
    }
    let spelling = spelling_of(&file.decoder).map_err(|decoder| {
        let model = file.model.kind.as_deref().unwrap_or("unnamed");
        TextError::UnsupportedTokenizer(format!("{model} with decoder {decoder}"))
    })?;
    // The library indexes without checks in places; a malformed file must be refused, not end the program.
    let parsed = catch_unwind(AssertUnwindSafe(|| Tokenizer::from_bytes(&bytes)));
    let mut tokenizer =
        parsed.map_err(|_| fault("it is malformed".into()))?.map_err(|error| fault(error.to_string()))?;
    tokenizer.with_padding(None);
    tokenizer.with_truncation(None).map_err(|error| fault(error.to_string()))?;
    let config: TokenizerConfig = read_json(&folder.join("tokenizer_config.json"))?.unwrap_or_default();
    let generation: GenerationConfig = read_json(&folder.join("generation_config.json"))?.unwrap_or_default();

    let mut names = Vec::new();
    for (name, token) in [
        ("bos_token", config.bos_token),
        ("eos_token", config.eos_token),
        ("unk_token", config.unk_token),
        ("pad_token", config.pad_token),
    ] {
        if let Some(token) = token {
            names.push((name, token.into_text()));
        }
    }
    let id_of = |wanted: &str| {
        names.iter().find(|(name, _)| *name == wanted).and_then(|(_, token)| tokenizer.token_to_id(token))
    };
    let (bos, eos) = (id_of("bos_token"), id_of("eos_token"));
    let (mut before, mut after) = surroundings(&tokenizer).map_err(fault)?;
    // As transformers does: what the configuration says replaces what the file's post-processor adds.
    if config.add_bos_token.is_some() || config.add_eos_token.is_some() {
        before = bos.filter(|_| config.add_bos_token == Some(true)).into_iter().collect();
        after = eos.filter(|_| config.add_eos_token == Some(true)).into_iter().collect();
    }
    let digest = Hasher::new()
        .part("tokenizer.json", &bytes)
        .part("settled", format!("bos {bos:?} eos {eos:?} around {before:?} {after:?}").as_bytes())
        .finish();
    let ends = eos.into_iter().chain(match generation.eos_token_id {
        None => Vec::new(),
        Some(TokenIds::One(id)) => vec![id],
        Some(TokenIds::Many(ids)) => ids,
    });
    Ok(Some(Parts {
        pieces: pieces_of(&tokenizer, spelling).map_err(fault)?,
        bos,
        ends: ends.collect(),
        before,
        after,
        names,
        digest,
        template: template_of(folder, config.chat_template)?,
        tokenizer,
    }))
}

/// `chat_template.jinja` before `tokenizer_config.json`.
fn template_of(folder: &Path, field: Option<TemplateField>) -> Result<Option<String>, TextError> {
    let path = folder.join("chat_template.jinja");
    if let Some(bytes) = read_capped(&path, MAX_TEMPLATE_BYTES as u64)? {
        let text = String::from_utf8(bytes).map_err(|_| TextError::Load { path, reason: "it is not UTF-8".into() })?;
        return Ok(Some(text));
    }
    Ok(match field {
        None => None,
        Some(TemplateField::One(text)) => Some(text),
        Some(TemplateField::Named(templates)) => {
            templates.into_iter().find(|template| template.name == "default").map(|template| template.template)
        }
    })
}

/// The ids that the post-processor puts before and after a text.
fn surroundings(tokenizer: &Tokenizer) -> Result<(Vec<u32>, Vec<u32>), String> {
    let Some(post_processor) = tokenizer.get_post_processor() else { return Ok(Default::default()) };
    let stand_in = u32::MAX;
    let text = Encoding::from_tokens(vec![Token::new(stand_in, String::new(), (0, 0))], 0);
    let around = post_processor.process(text, None, true).map_err(|error| error.to_string())?;
    let mut halves = around.get_ids().split(|&id| id == stand_in);
    match (halves.next(), halves.next(), halves.next()) {
        (Some(before), Some(after), None) => Ok((before.to_vec(), after.to_vec())),
        _ => Err("its post-processor does not keep the text once".into()),
    }
}

/// How names become bytes, by the decoder's components. The error names what is not known.
fn spelling_of(decoder: &Value) -> Result<(Spelling, bool), String> {
    let kind = |component: &Value| component["type"].as_str().unwrap_or("none").to_owned();
    let steps = match decoder["decoders"].as_array() {
        Some(steps) if kind(decoder) == "Sequence" => steps.as_slice(),
        _ => std::slice::from_ref(decoder),
    };
    let (mut byte_level, mut replaces, mut byte_fallback, mut drops_first_space) = (false, false, false, false);
    for step in steps {
        match kind(step).as_str() {
            "ByteLevel" => byte_level = true,
            "Replace" if step["pattern"]["String"] == "▁" && step["content"] == " " => replaces = true,
            "ByteFallback" => byte_fallback = true,
            "Fuse" => {}
            "Strip" if step["content"] == " " && step["start"].as_u64() <= Some(1) && step["stop"] == 0 => {
                drops_first_space |= step["start"] == 1;
            }
            "Metaspace" if step["replacement"] == "▁" => {
                replaces = true;
                drops_first_space |= step["prepend_scheme"] != "never" && step["add_prefix_space"] != false;
            }
            other => return Err(other.to_owned()),
        }
    }
    match (byte_level, replaces) {
        (true, false) if !byte_fallback => Ok((Spelling::ByteLevel, drops_first_space)),
        (false, true) => Ok((Spelling::SentencePiece { byte_fallback }, drops_first_space)),
        (true | false, _) => Err(steps.iter().map(kind).collect::<Vec<_>>().join(", ")),
    }
}

fn pieces_of(tokenizer: &Tokenizer, (spelling, drops_first_space): (Spelling, bool)) -> Result<Pieces, String> {
    let vocabulary = tokenizer.get_vocab(true);
    let len = vocabulary.values().max().map_or(0, |&id| id as usize + 1);
    if len > MAX_VOCABULARY {
        return Err(format!("it has token {}, the limit is {MAX_VOCABULARY}", len - 1));
    }
    let mut names: Vec<Option<&str>> = vec![None; len];
    for (name, &id) in &vocabulary {
        names[id as usize] = Some(name);
    }
    let added = tokenizer.get_added_tokens_decoder();
    let mut pieces = Pieces::new(drops_first_space);
    for (id, name) in (0..).zip(names) {
        match (added.get(&id), name) {
            (Some(token), _) => {
                let kind = if token.special { PieceKind::Special } else { PieceKind::Plain };
                match spelling {
                    Spelling::ByteLevel => pieces.push(token.content.as_bytes(), kind),
                    Spelling::SentencePiece { .. } => pieces.push(&spelling.bytes_of(&token.content), kind),
                }
            }
            (None, Some(name)) => pieces.push(&spelling.bytes_of(name), PieceKind::Plain),
            (None, None) => pieces.push(&[], PieceKind::Absent),
        }
    }
    Ok(pieces)
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Option<T>, TextError> {
    let Some(bytes) = read_capped(path, MAX_CONFIG_BYTES)? else { return Ok(None) };
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|error| TextError::Load { path: path.to_owned(), reason: error.to_string() })
}

/// The whole file, `None` when there is none.
fn read_capped(path: &Path, limit: u64) -> Result<Option<Vec<u8>>, TextError> {
    let fault = |reason: String| TextError::Load { path: path.to_owned(), reason };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(fault(error.to_string())),
    };
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes).map_err(|error| fault(error.to_string()))?;
    if bytes.len() as u64 > limit {
        return Err(fault(format!("it is larger than {limit} bytes")));
    }
    Ok(Some(bytes))
}
