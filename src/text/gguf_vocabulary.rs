//! The tokenizer that a GGUF file describes, built from its vocabulary: byte-level BPE (`gpt2`) with the splitting that
//! `tokenizer.ggml.pre` names, and SentencePiece BPE with byte fallback (`llama`). Anything else is refused by name.

use std::collections::HashMap;

use tokenizers::{
    AddedToken, NormalizerWrapper, PreTokenizerWrapper, SplitDelimiterBehavior, Tokenizer,
    models::bpe::{BPE, Vocab},
    normalizers::{self, Prepend, Replace},
    pre_tokenizers::{
        byte_level::ByteLevel,
        digits::Digits,
        sequence::Sequence,
        split::{Split, SplitPattern},
    },
};

use super::{
    gguf::Field,
    pieces::{PieceKind, Pieces, Spelling, byte_of_name},
};
use crate::terms::{Digest, Hasher};

/// How `tokenizer.ggml.token_type` numbers them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TokenType {
    Normal,
    Unknown,
    Control,
    UserDefined,
    Unused,
    Byte,
}

impl TokenType {
    fn from_number(number: i64) -> Option<Self> {
        Some(match number {
            1 => Self::Normal,
            2 => Self::Unknown,
            3 => Self::Control,
            4 => Self::UserDefined,
            5 => Self::Unused,
            6 => Self::Byte,
            _ => return None,
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    ByteLevel(Splitting),
    SentencePiece,
}

/// How text is cut before merging, by the families that `tokenizer.ggml.pre` names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Splitting {
    /// llama.cpp's own rule for files that name none.
    Unnamed,
    Gpt2,
    SmolLm,
    Llama3,
    Qwen2,
    Tekken,
}

impl Splitting {
    fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "default" => Self::Unnamed,
            "gpt-2" | "phi-2" | "olmo" => Self::Gpt2,
            "smollm" | "starcoder" | "refact" | "codeshell" => Self::SmolLm,
            "llama-bpe" | "llama3" | "llama-v3" | "falcon3" | "pixtral" => Self::Llama3,
            "qwen2" => Self::Qwen2,
            "tekken" => Self::Tekken,
            _ => return None,
        })
    }

    /// Whether a word that is a token as a whole skips the merges.
    const fn takes_whole_words(self) -> bool {
        match self {
            Self::Llama3 | Self::Tekken => true,
            Self::Unnamed | Self::Gpt2 | Self::SmolLm | Self::Qwen2 => false,
        }
    }

    /// Whether a file that does not say so wants a beginning-of-sequence token.
    const fn begins_with_bos(self) -> bool {
        self.takes_whole_words()
    }

    fn pre_tokenizer(self) -> Result<PreTokenizerWrapper, tokenizers::Error> {
        const CONTRACTIONS: &str = "(?i:'s|'t|'re|'ve|'m|'ll|'d)";
        const REST: &str = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
        let split = |pattern: String| {
            Split::new(SplitPattern::Regex(pattern), SplitDelimiterBehavior::Isolated, false)
                .map(PreTokenizerWrapper::Split)
        };
        let bytes_only = PreTokenizerWrapper::ByteLevel(ByteLevel::new(false, false, false));
        let gpt2 = PreTokenizerWrapper::ByteLevel(ByteLevel::new(false, false, true));
        Ok(PreTokenizerWrapper::Sequence(Sequence::new(match self {
            Self::Gpt2 => vec![gpt2],
            Self::SmolLm => vec![PreTokenizerWrapper::Digits(Digits::new(true)), gpt2],
            Self::Unnamed => vec![
                split(r"[\p{P}\$\+<=>\^~\|]+".into())?,
                split(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)".into())?,
                split(r"\p{N}+".into())?,
                split("[0-9][0-9][0-9]".into())?,
                bytes_only,
            ],
            Self::Llama3 => {
                vec![
                    split(format!(r"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{REST}"))?,
                    bytes_only,
                ]
            }
            Self::Qwen2 => {
                vec![split(format!(r"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{REST}"))?, bytes_only]
            }
            Self::Tekken => {
                let upper = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}";
                let lower = r"\p{Ll}\p{Lm}\p{Lo}\p{M}";
                let begin = r"[^\r\n\p{L}\p{N}]?";
                let pattern = format!(
                    r"{begin}[{upper}]*[{lower}]+|{begin}[{upper}]+[{lower}]*|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
                );
                vec![split(pattern)?, bytes_only]
            }
        })))
    }
}

/// Why a GGUF file's tokenizer cannot be used; the caller knows the file.
#[derive(Debug)]
pub(super) enum Refused {
    Unsupported(String),
    Reason(String),
}

impl From<tokenizers::Error> for Refused {
    fn from(error: tokenizers::Error) -> Self {
        Self::Reason(error.to_string())
    }
}

/// A GGUF file's tokenizer entries, checked against each other.
pub(super) struct GgufVocabulary {
    kind: Kind,
    tokens: Vec<String>,
    types: Vec<TokenType>,
    scores: Vec<f32>,
    merges: Vec<String>,
    pub(super) bos: Option<u32>,
    pub(super) eos: Option<u32>,
    /// Further ends of a turn that the file names.
    pub(super) ends: Vec<u32>,
    pub(super) unknown: Option<u32>,
    pub(super) padding: Option<u32>,
    pub(super) add_bos: bool,
    pub(super) add_eos: bool,
    add_space_prefix: bool,
    pub(super) template: Option<String>,
}

impl GgufVocabulary {
    /// Takes the entries out of `fields`.
    pub(super) fn from_fields(mut fields: HashMap<String, Field>) -> Result<Self, Refused> {
        let template = match fields.remove("tokenizer.chat_template") {
            Some(Field::Text(text)) => Some(text),
            Some(_) => return Err(Refused::Reason("tokenizer.chat_template is no text".into())),
            None => None,
        };
        let mut entry = |name: &str| fields.remove(&format!("tokenizer.ggml.{name}"));
        let text = |field: Option<Field>, name: &str| match field {
            None => Ok(None),
            Some(Field::Text(text)) => Ok(Some(text)),
            Some(_) => Err(Refused::Reason(format!("tokenizer.ggml.{name} is no text"))),
        };
        let Some(model) = text(entry("model"), "model")? else {
            return Err(Refused::Reason("it has no tokenizer (no tokenizer.ggml.model)".into()));
        };
        let pre = text(entry("pre"), "pre")?;
        let kind = match model.as_str() {
            "gpt2" => {
                let name = pre.as_deref().unwrap_or("default");
                Kind::ByteLevel(
                    Splitting::from_name(name)
                        .ok_or_else(|| Refused::Unsupported(format!("{model} with pre '{name}'")))?,
                )
            }
            "llama" => Kind::SentencePiece,
            _ => return Err(Refused::Unsupported(model)),
        };
        let tokens = match entry("tokens") {
            Some(Field::Texts(tokens)) if !tokens.is_empty() => tokens,
            _ => return Err(Refused::Reason("tokenizer.ggml.tokens is no list of texts".into())),
        };
        let types = match entry("token_type") {
            None => vec![TokenType::Normal; tokens.len()],
            Some(Field::Signeds(numbers)) if numbers.len() == tokens.len() => numbers
                .iter()
                .map(|&n| {
                    TokenType::from_number(n).ok_or_else(|| Refused::Reason(format!("token type {n} does not exist")))
                })
                .collect::<Result<_, _>>()?,
            Some(_) => return Err(Refused::Reason("tokenizer.ggml.token_type does not fit the tokens".into())),
        };
        let scores = match entry("scores") {
            None => Vec::new(),
            Some(Field::Floats(scores)) if scores.len() == tokens.len() && !scores.iter().any(|s| s.is_nan()) => scores,
            Some(_) => return Err(Refused::Reason("tokenizer.ggml.scores does not fit the tokens".into())),
        };
        let merges = match entry("merges") {
            None => Vec::new(),
            Some(Field::Texts(merges)) => merges,
            Some(_) => return Err(Refused::Reason("tokenizer.ggml.merges is no list of texts".into())),
        };
        let vocab = tokens.len();
        let id_of = |field: Option<Field>, name: &str| match field {
            None => Ok(None),
            Some(Field::Unsigned(id)) if id < vocab as u64 => Ok(Some(id as u32)),
            Some(Field::Signed(id)) if (0..vocab as i64).contains(&id) => Ok(Some(id as u32)),
            // Written by converters for "none".
            Some(Field::Signed(-1)) => Ok(None),
            Some(Field::Unsigned(id)) if id == u64::from(u32::MAX) => Ok(None),
            Some(other) => Err(Refused::Reason(format!("tokenizer.ggml.{name} is {other:?}, beyond {vocab} tokens"))),
        };
        let flag = |field: Option<Field>, name: &str, default| match field {
            None => Ok(default),
            Some(Field::Bool(flag)) => Ok(flag),
            Some(_) => Err(Refused::Reason(format!("tokenizer.ggml.{name} is no boolean"))),
        };
        let (bos_by_default, space_by_default) = match kind {
            Kind::SentencePiece => (true, true),
            Kind::ByteLevel(splitting) => (splitting.begins_with_bos(), false),
        };
        let ends = ["eot_token_id", "eom_token_id"]
            .into_iter()
            .map(|name| id_of(entry(name), name))
            .filter_map(Result::transpose)
            .collect::<Result<_, _>>()?;
        Ok(Self {
            ends,
            bos: id_of(entry("bos_token_id"), "bos_token_id")?
                .or((kind == Kind::SentencePiece && vocab > 1).then_some(1)),
            eos: id_of(entry("eos_token_id"), "eos_token_id")?
                .or((kind == Kind::SentencePiece && vocab > 2).then_some(2)),
            unknown: id_of(entry("unknown_token_id"), "unknown_token_id")?
                .or((kind == Kind::SentencePiece).then_some(0)),
            padding: id_of(entry("padding_token_id"), "padding_token_id")?,
            add_bos: flag(entry("add_bos_token"), "add_bos_token", bos_by_default)?,
            add_eos: flag(entry("add_eos_token"), "add_eos_token", false)?,
            add_space_prefix: flag(entry("add_space_prefix"), "add_space_prefix", space_by_default)?,
            kind,
            tokens,
            types,
            scores,
            merges,
            template,
        })
    }

    /// Over everything that decides ids: vocabulary, types, scores, merges, splitting and flags.
    pub(super) fn digest(&self) -> Digest {
        let settled = format!(
            "{:?} bos {:?} {} eos {:?} {} space {} types {:?}",
            self.kind, self.bos, self.add_bos, self.eos, self.add_eos, self.add_space_prefix, self.types
        );
        let scores: Vec<u8> = self.scores.iter().flat_map(|score| score.to_le_bytes()).collect();
        let list = |texts: &[String]| {
            let mut bytes = Vec::new();
            for text in texts {
                bytes.extend((text.len() as u64).to_le_bytes());
                bytes.extend(text.as_bytes());
            }
            bytes
        };
        Hasher::new()
            .part("settled", settled.as_bytes())
            .part("tokens", &list(&self.tokens))
            .part("merges", &list(&self.merges))
            .part("scores", &scores)
            .finish()
    }

    pub(super) fn token(&self, id: u32) -> Option<&str> {
        self.tokens.get(id as usize).map(String::as_str)
    }

    /// Names of the plain tokens, for a comparison with another vocabulary.
    pub(super) fn plain_tokens(&self) -> impl Iterator<Item = (u32, &str)> {
        (0..)
            .zip(&self.tokens)
            .zip(&self.types)
            .filter(|(_, kind)| **kind == TokenType::Normal)
            .map(|((id, name), _)| (id, name.as_str()))
    }

    pub(super) fn pieces(&self) -> Pieces {
        let spelling = match self.kind {
            Kind::ByteLevel(_) => Spelling::ByteLevel,
            Kind::SentencePiece => Spelling::SentencePiece { byte_fallback: true },
        };
        let mut pieces = Pieces::new(self.drops_first_space());
        for (name, kind) in self.tokens.iter().zip(&self.types) {
            match kind {
                TokenType::Normal | TokenType::Unused | TokenType::Byte => {
                    pieces.push(&spelling.bytes_of(name), PieceKind::Plain);
                }
                TokenType::UserDefined => pieces.push(name.as_bytes(), PieceKind::Plain),
                TokenType::Control | TokenType::Unknown => pieces.push(name.as_bytes(), PieceKind::Special),
            }
        }
        pieces
    }

    fn drops_first_space(&self) -> bool {
        self.kind == Kind::SentencePiece && self.add_space_prefix
    }

    /// Normalizer, splitting, merges and added tokens.
    pub(super) fn tokenizer(&self) -> Result<Tokenizer, Refused> {
        let mut tokenizer = match self.kind {
            Kind::ByteLevel(splitting) => self.byte_level(splitting)?,
            Kind::SentencePiece => self.sentence_piece()?,
        };
        let added = self.tokens.iter().zip(&self.types).filter_map(|(name, kind)| match kind {
            TokenType::Control | TokenType::Unknown => Some(AddedToken::from(name.as_str(), true)),
            TokenType::UserDefined => Some(AddedToken::from(name.as_str(), false).normalized(false)),
            TokenType::Normal | TokenType::Unused | TokenType::Byte => None,
        });
        let added: Vec<AddedToken> = added.filter(|token| !token.content.is_empty()).collect();
        tokenizer.add_tokens(added)?;
        Ok(tokenizer)
    }

    /// Ids by name, each name's first.
    fn vocabulary(&self) -> HashMap<String, u32> {
        let mut vocabulary = HashMap::with_capacity(self.tokens.len());
        for (id, name) in (0..).zip(&self.tokens) {
            vocabulary.entry(name.clone()).or_insert(id);
        }
        vocabulary
    }

    fn byte_level(&self, splitting: Splitting) -> Result<Tokenizer, Refused> {
        let vocabulary = self.vocabulary();
        let merges = self
            .merges
            .iter()
            .map(|merge| {
                // A token's name may begin with the separator, as llama.cpp reads it too.
                let at = merge.bytes().skip(1).position(|b| b == b' ').map(|at| at + 1);
                at.and_then(|at| Some((merge.get(..at)?, merge.get(at + 1..)?)))
                    .filter(|(left, right)| {
                        [*left, *right, &format!("{left}{right}")].iter().all(|name| vocabulary.contains_key(*name))
                    })
                    .map(|(left, right)| (left.to_owned(), right.to_owned()))
                    .ok_or_else(|| Refused::Reason(format!("the merge {merge:?} is not of tokens")))
            })
            .collect::<Result<Vec<_>, _>>()?;
        let bpe = BPE::builder()
            .vocab_and_merges(vocabulary.into_iter().collect::<Vocab>(), merges)
            .ignore_merges(splitting.takes_whole_words())
            .build()?;
        let mut tokenizer = Tokenizer::new(bpe);
        tokenizer.with_pre_tokenizer(Some(splitting.pre_tokenizer()?));
        if splitting == Splitting::Qwen2 {
            tokenizer.with_normalizer(Some(NormalizerWrapper::NFC(normalizers::NFC)))?;
        }
        Ok(tokenizer)
    }

    /// SentencePiece joins the pair whose joined piece has the best score; as merges, every way to cut a piece into two
    /// pieces, best score first.
    fn sentence_piece(&self) -> Result<Tokenizer, Refused> {
        if self.scores.is_empty() {
            return Err(Refused::Reason("tokenizer.ggml.scores is missing".into()));
        }
        let of_type = |wanted: TokenType| {
            (0..).zip(&self.tokens).zip(&self.types).filter(move |(_, kind)| **kind == wanted).map(|(token, _)| token)
        };
        let normal: HashMap<&str, u32> = of_type(TokenType::Normal).map(|(id, name)| (name.as_str(), id)).collect();
        let mut ranked: Vec<(f32, u32, &str, &str)> = Vec::new();
        for (&piece, &id) in &normal {
            for (at, _) in piece.char_indices().skip(1) {
                let (left, right) = piece.split_at(at);
                if normal.contains_key(left) && normal.contains_key(right) {
                    ranked.push((self.scores[id as usize], id, left, right));
                }
            }
        }
        ranked.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)).then(b.2.len().cmp(&a.2.len())));
        let merges = ranked.into_iter().map(|(.., left, right)| (left.to_owned(), right.to_owned())).collect();
        let mut vocabulary: Vocab = normal.iter().map(|(name, id)| ((*name).to_owned(), *id)).collect();
        let bytes = of_type(TokenType::Byte).filter(|(_, name)| byte_of_name(name).is_some());
        vocabulary.extend(bytes.map(|(id, name)| (name.clone(), id)));
        let mut builder = BPE::builder().fuse_unk(true).byte_fallback(true);
        if let Some((id, name)) = self.unknown.and_then(|id| Some((id, self.token(id)?))) {
            vocabulary.insert(name.to_owned(), id);
            builder = builder.unk_token(name.to_owned());
        }
        let splits_at_spaces = !normal.keys().any(|piece| piece.trim_start_matches('▁').contains('▁'));
        let mut tokenizer = Tokenizer::new(builder.vocab_and_merges(vocabulary, merges).build()?);
        let mut steps = Vec::new();
        if self.add_space_prefix {
            steps.push(NormalizerWrapper::Prepend(Prepend::new("▁".into())));
        }
        steps.push(NormalizerWrapper::Replace(Replace::new(" ", "▁")?));
        tokenizer.with_normalizer(Some(NormalizerWrapper::Sequence(normalizers::Sequence::new(steps))))?;
        if splits_at_spaces {
            // No piece spans the place where a word ends and spaces begin, so cutting there changes no id, and a
            // long text is not one word.
            let words = SplitPattern::Regex("▁+[^▁]*|[^▁]+".into());
            let split = Split::new(words, SplitDelimiterBehavior::Isolated, false)?;
            tokenizer.with_pre_tokenizer(Some(PreTokenizerWrapper::Split(split)));
        }
        Ok(tokenizer)
    }
}
