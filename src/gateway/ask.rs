//! What is asked of the gateway and what comes back.

use std::time::Duration;

use serde_json::{Map, Value};

use crate::journal::{CompletionKind, JournalError};
use crate::{
    adapters::{AdapterError, Residency},
    engine::{EngineFault, KvSalt, SubmitError},
    terms::{FinishReason, Message, Origin, RecordPolicy, SamplingLayer, TokenScore, Usage},
    text::TextError,
};

/// One request, its syntax already checked.
#[derive(Clone, Debug)]
pub struct Ask {
    /// `chatcmpl-…` or `cmpl-…`, made by the server.
    pub id: String,
    pub request_id: String,
    pub kind: CompletionKind,
    /// `model` as given: the base's name, an adapter's, `base:adapter`, or `adapter@<version prefix>`.
    pub model: String,
    /// One for a chat; one or more for completions. Choice `prompt * n + i` is the i-th of a prompt.
    pub prompts: Vec<Prompt>,
    pub sampling: SamplingLayer,
    /// Choices for each prompt.
    pub n: u32,
    /// `None`: as much as the settings allow. 0 only with `echo`.
    pub max_tokens: Option<usize>,
    pub min_tokens: usize,
    pub stop: Vec<String>,
    pub include_stop: bool,
    pub stop_token_ids: Vec<u32>,
    pub ignore_eos: bool,
    pub skip_special_tokens: bool,
    pub logit_bias: Vec<(u32, f32)>,
    /// Alternatives with each token; `None` when no log-probabilities are wanted.
    pub top_logprobs: Option<u8>,
    /// Completions only: the answer begins with the prompt (and its scores, where log-probabilities are wanted).
    pub echo: bool,
    /// `None`: drawn by the server, and recorded.
    pub seed: Option<u64>,
    pub caller: Caller,
    /// `x-tunegate-record`: may only record less.
    pub record: Option<RecordPolicy>,
    /// `x-tunegate-adapter-wait-ms`: how long to wait for an adapter that is not in memory; `None` is the server's own.
    pub adapter_wait: Option<Duration>,
    /// `store: true`: listable afterwards.
    pub store: bool,
    pub user: Option<String>,
    pub safety_identifier: Option<String>,
    /// The client's id of the conversation.
    pub conversation: Option<String>,
    pub metadata: Map<String, Value>,
    pub origin: Origin,
}

/// The question.
#[derive(Clone, Debug, PartialEq)]
pub enum Prompt {
    Chat { messages: Vec<Message>, add_generation_prompt: bool, continue_final_message: bool },
    Text(String),
    Tokens(Vec<u32>),
}

/// Who asks.
#[derive(Clone, Debug, Default)]
pub struct Caller {
    /// The key's name; `None` where the server has no keys.
    pub key: Option<String>,
    pub salt: KvSalt,
    pub tenant: u64,
    /// The names this key may use; `None` is all.
    pub models: Option<Vec<String>>,
    /// The key's own recording policy.
    pub record: Option<RecordPolicy>,
}

/// Why a request is refused before it runs.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    #[error("the model '{model}' does not exist{}", .nearest.as_ref().map_or_else(String::new, |n| format!("; the nearest is '{n}'")))]
    UnknownModel { model: String, nearest: Option<String> },
    #[error("this key may not use the model '{model}'")]
    ModelNotAllowed { model: String },
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    #[error(transparent)]
    Text(#[from] TextError),
    #[error(transparent)]
    Submit(#[from] SubmitError),
    /// Scoring an echoed prompt failed.
    #[error(transparent)]
    Engine(#[from] EngineFault),
    #[error("{parameter}: {reason}")]
    Invalid { parameter: &'static str, reason: String },
    #[error("the record cannot take another answer now")]
    RecordFull { retry_after_ms: u64 },
    #[error("the record is not writable: {reason}")]
    RecordDown { reason: String },
    #[error("the server is shutting down")]
    Draining,
}

/// What is known when the answer begins.
#[derive(Clone, Debug)]
pub struct ReplyHead {
    pub id: String,
    /// Seconds since the Unix epoch.
    pub created: i64,
    /// The adapter's (or base's) name as the answer echoes it.
    pub model: String,
    /// Names base, adapter and template versions.
    pub fingerprint: String,
    /// The short version that answers, for the header `x-tunegate-version`.
    pub version: String,
    /// Where the adapter's weights were when the request came, for the header `x-tunegate-adapter-tier`; `None` for the base.
    pub found: Option<Residency>,
    /// The conversation that it is recorded in.
    pub conversation: String,
    pub prompt_tokens: usize,
}

/// What the client gets to see, in order. A choice's `Finished` comes after its row is durable (as the settings promise);
/// `Done` is last and comes once.
#[derive(Clone, Debug, PartialEq)]
pub enum ReplyEvent {
    /// The prompt itself, where the request said `echo`: before anything else of this choice. `scores` are those of
    /// `tokens[1..]` (a first token has none), or empty when none are wanted.
    Echo {
        choice: u32,
        text: String,
        tokens: Vec<u32>,
        scores: Vec<TokenScore>,
    },
    /// More of a choice: text that is final, and the scores of the tokens in it (empty when none are wanted).
    Piece {
        choice: u32,
        text: String,
        scores: Vec<TokenScore>,
    },
    Finished {
        choice: u32,
        reason: FinishReason,
    },
    Done {
        usage: Usage,
    },
}

/// Why an answer broke off after it began.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ReplyError {
    #[error(transparent)]
    Engine(#[from] EngineFault),
    #[error("the server is shutting down")]
    CutOff,
    #[error("the answer took longer than {limit_ms} ms")]
    Deadline { limit_ms: u64 },
    #[error("the record could not be written: {reason}")]
    Record { reason: String },
}

impl From<JournalError> for AskError {
    fn from(error: JournalError) -> Self {
        match error {
            JournalError::Full { retry_after_ms, .. } => Self::RecordFull { retry_after_ms },
            JournalError::Down { reason }
            | JournalError::Write { reason }
            | JournalError::Read { reason }
            | JournalError::Secret { reason }
            | JournalError::Rules { reason } => Self::RecordDown { reason },
            JournalError::UnknownCursor { after } => Self::RecordDown { reason: after },
        }
    }
}
