//! Words to tokens and back: tokenizer, chat template, detokenizer, stop strings. What users write never becomes a
//! special token.

mod byte_level;
mod chat;
mod detokenize;
mod encoder;
#[cfg(test)]
mod families;
mod folder;
mod gguf;
mod gguf_vocabulary;
mod json;
mod parts;
mod pieces;
mod stop;
mod template;

use std::{path::PathBuf, sync::Arc};

use chat::SpecialTexts;
use encoder::{Encoder, Specials};
use parts::Parts;
use pieces::{PieceKind, Pieces};
use template::Templates;

use crate::terms::{Digest, TemplateSource};

pub use detokenize::Detokenizer;
pub use stop::{StopOutcome, StopStrings};

/// Where tokenizer and chat template come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TextSource {
    /// A Hugging Face folder: `tokenizer.json`, `tokenizer_config.json`, `chat_template.jinja`, `generation_config.json`.
    Folder(PathBuf),
    /// A GGUF file's metadata; a `tokenizer.json` beside it is preferred.
    Gguf(PathBuf),
}

/// Why text could not become tokens, or a tokenizer could not be read.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    #[error("{path}: {reason}")]
    Load { path: PathBuf, reason: String },
    #[error("the tokenizer '{0}' is not supported")]
    UnsupportedTokenizer(String),
    /// The conversation does not suit the template: the template's own words, or what it stumbled over.
    #[error("the chat template refuses this conversation: {0}")]
    Template(String),
    #[error("this model has no chat template; use /v1/completions, or give a template")]
    NoTemplate,
    #[error("the rendered prompt is longer than {limit} bytes")]
    TooLong { limit: usize },
    #[error("token {token} is not in the vocabulary of {vocab}")]
    UnknownToken { token: u32, vocab: usize },
    #[error("the tokenizer failed: {0}")]
    Tokenizer(String),
}

/// How a conversation is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChatOptions {
    /// End with the beginning of the assistant's turn.
    pub add_generation_prompt: bool,
    /// Leave the final message open, for the model to go on with it.
    pub continue_final_message: bool,
}

/// A conversation as the model reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RenderedPrompt {
    pub text: String,
    pub tokens: Vec<u32>,
}

/// One token, alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenPiece {
    /// Its text; U+FFFD for parts of characters.
    pub text: String,
    /// Its bytes, exactly.
    pub bytes: Vec<u8>,
}

/// A model's tokenizer and chat template. Nothing in it changes; it is shared by all requests.
pub struct Text {
    encoder: Encoder,
    pieces: Pieces,
    digest: Digest,
    bos: Option<u32>,
    ends: Vec<u32>,
    before: Vec<u32>,
    after: Vec<u32>,
    token_names: Vec<(&'static str, String)>,
    template: Option<TemplateSource>,
    templates: Templates,
    special_texts: SpecialTexts,
}

/// Special tokens that end a turn or a document in the families that are served, where a vocabulary has them.
const KNOWN_ENDS: [&str; 8] =
    ["<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|endoftext|>", "<|end|>", "<end_of_turn>", "</s>"];

impl Text {
    /// Reads tokenizer and chat template. `template` replaces the model's own.
    ///
    /// Errors: files that are missing or malformed, tokenizers of an unknown kind, a template that does not compile.
    pub fn load(source: &TextSource, template: Option<String>) -> Result<Self, TextError> {
        let (TextSource::Folder(path) | TextSource::Gguf(path)) = source;
        let fault = |reason: String| TextError::Load { path: path.clone(), reason };
        let parts = Parts::read(source)?;
        if let Some(&id) =
            parts.ends.iter().chain(&parts.before).chain(&parts.after).find(|&&id| id as usize >= parts.pieces.len())
        {
            return Err(fault(format!("it names token {id}, beyond its {} tokens", parts.pieces.len())));
        }
        let mut special_texts = Vec::new();
        let mut ends = parts.ends;
        for id in 0..parts.pieces.len() as u32 {
            if parts.pieces.kind(id) == PieceKind::Special {
                let text = String::from_utf8_lossy(parts.pieces.bytes(id)).into_owned();
                if KNOWN_ENDS.contains(&text.as_str()) {
                    ends.push(id);
                }
                special_texts.push(text);
            }
        }
        ends.sort_unstable();
        ends.dedup();
        let templates = Templates::default();
        let template = template.or(parts.template).map(TemplateSource::new);
        if let Some(template) = &template {
            templates.check(template).map_err(|error| match error {
                TextError::Template(reason) => fault(format!("chat template: {reason}; another can be given")),
                other => other,
            })?;
        }
        Ok(Self {
            encoder: Encoder::new(parts.tokenizer).map_err(|error| fault(error.to_string()))?,
            special_texts: SpecialTexts::new(special_texts).map_err(|error| fault(error.to_string()))?,
            pieces: parts.pieces,
            digest: parts.digest,
            bos: parts.bos,
            ends,
            before: parts.before,
            after: parts.after,
            token_names: parts.names,
            template,
            templates,
        })
    }

    /// Over everything of the tokenizer that decides ids; the template has its own digest.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// One more than the largest id. A model's table may be larger.
    pub fn vocab_size(&self) -> usize {
        self.pieces.len()
    }

    /// The template for conversations, unless an adapter brings its own.
    pub fn template(&self) -> Option<&TemplateSource> {
        self.template.as_ref()
    }

    /// Checks that a template (an adapter's) compiles.
    pub fn check_template(&self, template: &TemplateSource) -> Result<(), TextError> {
        self.templates.check(template)
    }

    /// Tokens that end an answer: those that the model's files name, and the usual ones where the vocabulary has them. Ascending.
    pub fn eos_tokens(&self) -> &[u32] {
        &self.ends
    }

    pub fn bos_token(&self) -> Option<u32> {
        self.bos
    }

    /// The tokens of a text; special tokens written in it are text. `add_special` puts around it what the model
    /// expects around a text (a beginning-of-sequence token, for many).
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>, TextError> {
        let tokens = self.tokens_of(text, Specials::AsText)?;
        Ok(if add_special { [self.before.as_slice(), &tokens, &self.after].concat() } else { tokens })
    }

    /// The text of the tokens; what is not UTF-8 becomes U+FFFD.
    pub fn decode(&self, tokens: &[u32], skip_special: bool) -> Result<String, TextError> {
        let vocab = self.vocab_size();
        if let Some(&token) = tokens.iter().find(|&&token| token as usize >= vocab) {
            return Err(TextError::UnknownToken { token, vocab });
        }
        Ok(detokenize::decode(&self.pieces, tokens, skip_special))
    }

    /// The token alone; empty for ids that no token has.
    pub fn token_piece(&self, id: u32) -> TokenPiece {
        let bytes = self.pieces.bytes(id).to_vec();
        TokenPiece { text: String::from_utf8_lossy(&bytes).into_owned(), bytes }
    }

    pub fn is_special(&self, id: u32) -> bool {
        self.pieces.kind(id) == PieceKind::Special
    }

    /// For an answer to `prompt`, of which the last tokens are enough: they tell whether the answer begins a text, where
    /// SentencePiece's first space is none.
    pub fn detokenizer(self: &Arc<Self>, skip_special: bool, prompt: &[u32]) -> Detokenizer {
        Detokenizer::new(Arc::clone(self), skip_special, prompt)
    }

    fn tokens_of(&self, text: &str, specials: Specials<'_>) -> Result<Vec<u32>, TextError> {
        self.encoder.encode(text, specials).map_err(|error| TextError::Tokenizer(error.to_string()))
    }
}
