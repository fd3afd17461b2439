//! Continuous batching: jobs in, one channel of events per choice out. Knows no HTTP, no files, no text.
//!
//! One thread owns the decoder, the KV blocks, the scheduler and every running sequence.

mod blocks;
mod budget;
mod cost;
mod handle;
mod prefix;
mod pulse;
mod queue;
mod sampler;
mod scheduler;
mod sequence;
mod share;
mod worker;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use tokio::sync::{Semaphore, mpsc};

pub use handle::{EngineHandle, EngineLimits, spawn};
pub use pulse::EngineLoad;

use crate::{
    model::LoraAdapter,
    terms::{FinishReason, Sampling, TokenScore},
};

/// One sequence to run: a choice of an answer, a text to score, or a prompt to embed.
pub struct Job {
    pub work: Work,
    /// The prompt (for `Score`: the whole text). At least one token.
    pub tokens: Arc<[u32]>,
    /// `None` runs on the base weights. Held until the sequence ends.
    pub adapter: Option<Arc<LoraAdapter>>,
    /// Separates KV caches that must not be shared; made by the server, never by a client.
    pub salt: KvSalt,
    /// Who is asking, for fairness between callers.
    pub tenant: u64,
    pub priority: Priority,
    pub cancel: CancelFlag,
    pub events: EventSender,
}

/// What a job does with its tokens.
#[derive(Clone, Debug)]
pub enum Work {
    Generate(Generate),
    /// Teacher-forced: one score for each token after the first, then `Finished(Length)`. `top` tokens are reported for
    /// each.
    Score {
        top: u8,
    },
    /// The mean of the last hidden states over all positions.
    Embed,
}

/// How one choice is generated.
#[derive(Clone, Debug)]
pub struct Generate {
    pub sampling: Sampling,
    /// At least 1; prompt and answer together may not exceed the context.
    pub max_tokens: usize,
    /// Stop tokens are banned until this many tokens are out.
    pub min_tokens: usize,
    /// Any of these ends the answer. The token itself is reported, then `Finished(Stop)`.
    pub stop_tokens: Arc<[u32]>,
    pub logit_bias: Arc<[(u32, f32)]>,
    /// How many alternatives to report with each token, at most 20.
    pub top: u8,
    /// With `choice`, names the random stream: token `i` uses a number that depends on (seed, choice, i) alone.
    pub seed: u64,
    pub choice: u32,
}

/// Keeps one tenant's KV blocks apart from another's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct KvSalt(pub [u8; 32]);

/// Which jobs are admitted first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Priority {
    /// Runs when nothing else wants to: probes, embeddings for drift.
    Background,
    #[default]
    Normal,
}

/// Set by whoever no longer wants the job; the engine frees its place before the next step, and the job's channel
/// closes without a last event. Dropping the event receiver does the same.
#[derive(Clone, Debug, Default)]
pub struct CancelFlag(Arc<AtomicBool>);

impl CancelFlag {
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Release);
    }

    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

pub type EventSender = mpsc::Sender<Event>;
pub type EventReceiver = mpsc::Receiver<Event>;

/// A channel with room for every event that `work` over `prompt_tokens` can cause, so that the engine never waits.
pub fn event_channel(work: &Work, prompt_tokens: usize) -> (EventSender, EventReceiver) {
    let events = match work {
        Work::Generate(generate) => generate.max_tokens.saturating_add(2),
        Work::Score { .. } => prompt_tokens.saturating_add(2),
        Work::Embed => 2,
    };
    // Beyond what a channel can hold, the job itself is refused as too long.
    mpsc::channel(events.min(Semaphore::MAX_PERMITS))
}

/// What the engine reports about one job, in order. `Finished`, `Failed` and `Hidden` are last.
#[derive(Clone, Debug)]
pub enum Event {
    /// The sequence has a place since `at`; `cached_tokens` of its prompt needed no computing. Comes before the first result.
    Started {
        at: Instant,
        cached_tokens: usize,
    },
    /// The next token of an answer, or the next score of a scored text.
    Token {
        score: TokenScore,
        at: Instant,
    },
    Finished(FinishReason),
    /// The mean hidden state, `[hidden]`.
    Hidden(Vec<f32>),
    Failed(EngineFault),
}

/// Why a running job could not be finished.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum EngineFault {
    #[error("the model's scores were not finite")]
    NotFinite,
    #[error("the forward pass failed: {0}")]
    Step(String),
    #[error("the engine was stopped")]
    Stopped,
}

/// Why a job was not taken.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SubmitError {
    #[error("the prompt is empty")]
    EmptyPrompt,
    #[error("the prompt has {prompt} tokens and {wanted} more are wanted; the model's context is {limit}")]
    TooLong { prompt: usize, wanted: usize, limit: usize },
    #[error("token {token} is not in the vocabulary of {vocab}")]
    UnknownToken { token: u32, vocab: usize },
    #[error("{waiting} requests are waiting, the limit is {limit}")]
    QueueFull { waiting: usize, limit: usize, retry_after_ms: u64 },
    #[error("the engine has stopped")]
    Stopped,
}
