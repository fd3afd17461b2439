//! Words to tokens and back: tokenizer, chat template, detokenizer, stop strings.

use std::path::PathBuf;

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
