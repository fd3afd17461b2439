//! The way into the engine from any thread. Nothing here waits for the engine.

use std::{
    sync::{Arc, mpsc},
    thread::{self, JoinHandle},
};

use super::{
    Job, SubmitError, Work,
    pulse::{EngineLoad, Pulse},
    scheduler,
    sequence::Sequence,
    worker::{Note, Worker},
};
use crate::{config::EngineConfig, metrics::Metrics, model::LanguageModel};

/// Submits jobs to one engine. The engine ends when all its handles are gone and its work is done.
#[derive(Clone, Debug)]
pub struct EngineHandle {
    inbox: mpsc::Sender<Note>,
    pulse: Arc<Pulse>,
    limits: EngineLimits,
    max_queued: usize,
    /// Positions in a block, where blocks are shared.
    shared: Option<usize>,
}

/// What a job may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EngineLimits {
    /// Prompt and answer together: the least of the setting, the model's context, and what all KV blocks hold.
    pub max_model_len: usize,
    pub vocab: usize,
}

/// Starts the engine thread.
///
/// # Panics
/// If the operating system refuses the thread.
pub fn spawn(
    decoder: Box<dyn LanguageModel>,
    config: EngineConfig,
    metrics: Arc<Metrics>,
) -> (EngineHandle, JoinHandle<()>) {
    let kv = decoder.kv_shape();
    let shape = decoder.shape();
    let limits = EngineLimits {
        // A sequence that does not fit into all blocks could never finish.
        max_model_len: config.max_model_len.min(shape.max_positions).min(kv.blocks * kv.block_tokens),
        vocab: shape.vocab,
    };
    let places = scheduler::places(&config);
    let pulse = Arc::new(Pulse::new(config.stall, kv.blocks, config.max_queued, places));
    // Bounded by the seats: nothing is sent without one.
    let (inbox, notes) = mpsc::channel();
    let worker = Worker::new(decoder, &config, notes, Arc::clone(&pulse), metrics);
    let thread = thread::Builder::new().name("engine".to_owned()).spawn(move || worker.run());
    let shared = config.prefix_caching.then_some(kv.block_tokens);
    let handle = EngineHandle { inbox, pulse, limits, max_queued: config.max_queued, shared };
    (handle, thread.expect("the operating system refused the engine thread"))
}

impl EngineHandle {
    /// Hands a job over. Never waits.
    ///
    /// # Errors
    /// [`SubmitError`], and then nothing is sent to the job's channel.
    pub fn submit(&self, job: Job) -> Result<(), SubmitError> {
        self.check(&job)?;
        if self.pulse.is_stopped() || self.pulse.is_stopping() {
            return Err(SubmitError::Stopped);
        }
        let seat = self.pulse.seat().map_err(|waiting| self.full(waiting))?;
        let note = Note::Run(Box::new(Sequence::new(job, seat, self.shared)));
        self.inbox.send(note).map_err(|mpsc::SendError(note)| {
            if let Note::Run(mut sequence) = note {
                sequence.abandon();
            }
            SubmitError::Stopped
        })
    }

    fn check(&self, job: &Job) -> Result<(), SubmitError> {
        let EngineLimits { max_model_len: limit, vocab } = self.limits;
        let prompt = job.tokens.len();
        if prompt == 0 {
            return Err(SubmitError::EmptyPrompt);
        }
        let (wanted, bias) = match &job.work {
            Work::Generate(generate) => (generate.max_tokens, &*generate.logit_bias),
            Work::Score { .. } | Work::Embed => (0, Default::default()),
        };
        if prompt.saturating_add(wanted) > limit {
            return Err(SubmitError::TooLong { prompt, wanted, limit });
        }
        let mut tokens = job.tokens.iter().copied().chain(bias.iter().map(|&(token, _)| token));
        match tokens.find(|&token| token as usize >= vocab) {
            Some(token) => Err(SubmitError::UnknownToken { token, vocab }),
            None => Ok(()),
        }
    }

    fn full(&self, waiting: usize) -> SubmitError {
        SubmitError::QueueFull { waiting, limit: self.max_queued, retry_after_ms: self.pulse.retry_after_ms() }
    }

    /// How the engine is doing, without asking it.
    pub fn load(&self) -> EngineLoad {
        self.pulse.load()
    }

    pub fn limits(&self) -> EngineLimits {
        self.limits
    }

    /// Ends the engine after the step under way; whatever has not finished gets `Failed(Stopped)`.
    pub fn stop(&self) {
        self.pulse.ask_to_stop();
        // An engine that is gone needs no waking.
        let _ = self.inbox.send(Note::Wake);
    }
}
