//! The rows of the record.

use serde::{Deserialize, Serialize};

use crate::terms::{AdapterName, AdapterVersion, Digest, Ending, Message, RecordPolicy, Sampling, TokenScore, Usage};

/// One answered request: the fact, and beside it what retention may empty. A request has one row for each of its choices,
/// keyed by (`id`, choice index).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Completion {
    /// As the client sees it: `chatcmpl-…` or `cmpl-…`.
    pub id: String,
    /// Milliseconds since the Unix epoch, when the request was admitted.
    pub created_ms: i64,
    /// `x-request-id`, echoed or made.
    pub request_id: String,
    /// The API key's name; `None` where the server has no keys.
    pub key: Option<String>,
    /// `chat` or `completions`.
    pub kind: CompletionKind,
    /// `model` as the answer echoes it.
    pub model: String,
    pub base: Digest,
    pub adapter: Option<(AdapterName, AdapterVersion)>,
    pub template: Option<Digest>,
    pub tokenizer: Digest,
    pub sampling: Sampling,
    pub seed: u64,
    pub max_tokens: usize,
    /// What else the sampler and the ending depended on, as JSON: `stop`, `stop_token_ids`, `logit_bias`, `min_tokens`, `ignore_eos`, …
    pub options: serde_json::Value,
    pub usage: Usage,
    pub timing: Timing,
    pub policy: RecordPolicy,
    /// Whether the client asked for it to be listable (`store: true`).
    pub stored: bool,
    /// The client's `user`; gone under policy `none`.
    pub user: Option<String>,
    /// The client's `metadata`, in its order; gone under policy `none`.
    pub metadata: serde_json::Map<String, serde_json::Value>,
    /// Prompt as given; only under policy `full`.
    pub content: Option<Content>,
    pub choices: Vec<ChoiceRecord>,
}

/// Which route was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CompletionKind {
    Chat,
    Completions,
}

/// What the client sent, for policy `full`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Content {
    /// The conversation, for chat.
    pub messages: Vec<Message>,
    /// The text prompt, for completions.
    pub prompt: Option<String>,
    /// What the model read.
    pub prompt_tokens: Vec<u32>,
}

/// One choice and how it ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChoiceRecord {
    pub index: u32,
    pub ending: Ending,
    pub tokens: usize,
    /// Why it failed, for the operator; never content.
    pub fault: Option<String>,
    /// The text the client got; only under policy `full`.
    pub text: Option<String>,
    /// Token ids with log-probabilities and entropies; only under policy `full`.
    pub scores: Vec<TokenScore>,
}

/// When things happened, in microseconds from admission.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timing {
    pub queue_us: u64,
    /// To the first token of the first choice; `None` if none came.
    pub first_token_us: Option<u64>,
    pub total_us: u64,
}
