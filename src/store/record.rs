//! The rows of the record.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::terms::{
    AdapterName, AdapterVersion, Digest, Ending, Message, Origin, Placement, RecordPolicy, Sampling, Sketch,
    TokenScore, Usage,
};

/// One answered request: the fact, and beside it what retention may empty. A request has one row for each of its choices,
/// keyed by (`id`, choice index).
#[derive(Clone, Debug, PartialEq)]
pub struct Completion {
    /// As the client sees it: `chatcmpl-…` or `cmpl-…`.
    pub id: String,
    /// Milliseconds since the Unix epoch, when the request was admitted.
    pub created_ms: i64,
    /// `x-request-id`, echoed or made.
    pub request_id: String,
    /// The API key's name; `None` where the server has no keys.
    pub key: Option<String>,
    pub kind: CompletionKind,
    /// `model` as the answer echoes it.
    pub model: String,
    pub base: Digest,
    pub adapter: Option<(AdapterName, AdapterVersion)>,
    /// The chat template's; `None` where none was used.
    pub template: Option<Digest>,
    pub tokenizer: Digest,
    /// Version of the server and what it computed with: `0.1.0 cpu fused fast avx512`. `None` in rows of builds before
    /// this was kept and of other programs.
    pub build: Option<String>,
    pub origin: Origin,
    /// Of the system and developer messages; `None` where there were none, and under policy `none`.
    pub system: Option<Digest>,
    pub sampling: Sampling,
    pub seed: u64,
    /// What else the answer depended on, for a replay.
    pub options: Options,
    /// Over all choices so far; the row of the last choice has the whole.
    pub usage: Usage,
    pub timing: Timing,
    pub policy: RecordPolicy,
    /// The rules that its texts have passed; `None` where there were none.
    pub redaction: Option<Digest>,
    /// Whether the client asked for it to be listable (`store: true`); gone under policy `none`.
    pub stored: bool,
    /// The client's `user`; gone under policy `none`.
    pub user: Option<String>,
    /// The client's `safety_identifier`; gone under policy `none`.
    pub safety_identifier: Option<String>,
    /// `None` in rows of builds before this was kept.
    pub placement: Option<Placement>,
    /// The mean of the prompts' input embeddings; only under policy `full`.
    pub sketch: Option<Sketch>,
    /// The client's `metadata`, in its order; gone under policy `none`.
    pub metadata: Map<String, Value>,
    /// What was asked; only under policy `full`.
    pub content: Option<Arc<Content>>,
    /// The choices that ended now; when read, all that have ended.
    pub choices: Vec<ChoiceRecord>,
    /// When content, user and metadata were erased, in milliseconds since the Unix epoch; `None` in a new record.
    pub erased_ms: Option<i64>,
    /// When retention took its content, in milliseconds since the Unix epoch; `None` in a new record.
    pub expired_ms: Option<i64>,
}

/// Which route was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CompletionKind {
    Chat,
    Completions,
}

impl CompletionKind {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Chat => "chat",
            Self::Completions => "completions",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "chat" => Some(Self::Chat),
            "completions" => Some(Self::Completions),
            _ => None,
        }
    }
}

/// What else the sampler and the ending depended on: together with the sampling, the seed and the content it is enough
/// to run the request again. Kept under every policy, apart from the stop strings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Options {
    /// Choices for each prompt; choice `prompt * n + i` is the i-th of a prompt.
    pub n: u32,
    /// The longest answer allowed, for each prompt, settled.
    pub max_tokens: Vec<usize>,
    pub min_tokens: usize,
    /// Words of the client: only under policy `full`.
    pub stop: Vec<String>,
    pub include_stop: bool,
    pub stop_token_ids: Vec<u32>,
    pub ignore_eos: bool,
    pub skip_special_tokens: bool,
    pub logit_bias: Vec<(u32, f32)>,
    /// Alternatives with each token; `None` when no log-probabilities were wanted.
    pub top_logprobs: Option<u8>,
    pub echo: bool,
    pub add_generation_prompt: bool,
    pub continue_final_message: bool,
}

impl Default for Options {
    /// A request that says nothing.
    fn default() -> Self {
        Self {
            n: 1,
            max_tokens: Vec::new(),
            min_tokens: 0,
            stop: Vec::new(),
            include_stop: false,
            stop_token_ids: Vec::new(),
            ignore_eos: false,
            skip_special_tokens: true,
            logit_bias: Vec::new(),
            top_logprobs: None,
            echo: false,
            add_generation_prompt: true,
            continue_final_message: false,
        }
    }
}

/// What was asked, for policy `full`.
#[derive(Clone, Debug, PartialEq)]
pub struct Content {
    /// One for a chat; one or more for completions.
    pub prompts: Vec<PromptContent>,
}

/// One prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct PromptContent {
    pub given: Given,
    /// What the model read.
    pub tokens: Vec<u32>,
}

/// A prompt as the client sent it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Given {
    Messages(Vec<Message>),
    /// Messages in OpenAI's form with what this server does not serve: calls of tools, parts that are not text. Only of
    /// other programs.
    Turns(Vec<Value>),
    Text(String),
    Tokens,
}

/// One choice and how it ended.
#[derive(Clone, Debug, PartialEq)]
pub struct ChoiceRecord {
    pub index: u32,
    pub ending: Ending,
    pub tokens: usize,
    /// Why it failed, for the operator; never content.
    pub fault: Option<String>,
    /// The text the client got; only under policy `full`.
    pub text: Option<String>,
    /// Token ids with log-probabilities and entropies; only under policy `full`. Read back, they have the 11 bits of a
    /// half-precision number.
    pub scores: Vec<TokenScore>,
    /// The tools that the answer calls, in OpenAI's form; only under policy `full`.
    pub tool_calls: Option<Value>,
    /// Names the conversation as it stands after this answer, so that its next turn can be recognised; only under policy
    /// `full`.
    pub thread: Option<Thread>,
}

impl ChoiceRecord {
    /// Whether it says what was said.
    pub fn has_content(&self) -> bool {
        self.text.is_some() || !self.scores.is_empty() || self.tool_calls.is_some()
    }
}

/// A conversation up to and with one answer: a keyed hash of who said what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Thread(pub [u8; 16]);

/// How long things took, in microseconds. What counts from admission begins when the adapter was in memory and the prompt
/// read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timing {
    /// Before admission: waiting for the adapter to be in memory.
    pub adapter_us: u64,
    /// Before admission: template, tokenizer and placement.
    pub read_us: u64,
    /// From admission to a place in the batch.
    pub queue_us: u64,
    /// From admission to the first token of the first choice; `None` if none came.
    pub first_token_us: Option<u64>,
    /// From admission to the end of the last choice.
    pub total_us: u64,
}
