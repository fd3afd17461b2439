//! What reports by version are made of.

use super::Cursor;
use crate::terms::{AdapterVersion, Digest, Ending};

/// A version of an adapter (or the base alone) that has answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Served {
    /// Its number in this store.
    pub number: u64,
    pub base: Digest,
    pub version: Option<AdapterVersion>,
    /// When its last answer on record was admitted, in milliseconds since the Unix epoch.
    pub last_ms: i64,
}

/// The figures of one choice.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Measure {
    pub choice: Cursor,
    /// The completion's number in this store, and the choice's index.
    pub completion: u64,
    pub position: u32,
    /// Milliseconds since the Unix epoch, when the request was admitted.
    pub at_ms: i64,
    pub ending: Ending,
    pub prompt_tokens: usize,
    pub tokens: usize,
    /// Over its tokens, where scores were kept.
    pub mean_logprob: Option<f64>,
    pub min_logprob: Option<f64>,
    pub first_token_us: Option<u64>,
    pub total_us: u64,
}

/// What a filter of a rule may ask of an answer.
#[derive(Clone, Debug, PartialEq)]
pub struct AnswerFact {
    pub choice: Cursor,
    pub id: String,
    pub key: Option<String>,
    pub kind: super::CompletionKind,
    pub model: String,
    pub metadata: Vec<(String, String)>,
}

/// A flag, as reports count it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlagMark {
    pub choice: Cursor,
    pub rule: Digest,
}

/// A judgement of an answer that counts, as reports count it.
#[derive(Clone, Debug, PartialEq)]
pub struct Said {
    /// The completion's number in this store, and the choice, or all of them.
    pub completion: u64,
    pub choice: Option<u32>,
    pub name: String,
    /// A boolean is 0 or 1.
    pub number: Option<f64>,
    pub is_boolean: bool,
    /// Whether it says what the answer should have been, also after the words were erased.
    pub corrects: bool,
    pub by_person: bool,
}
