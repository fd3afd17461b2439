//! The engine thread: take jobs, plan, forward, advance.

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        mpsc::{Receiver, TryRecvError},
    },
    time::{Duration, Instant},
};

use super::{
    EngineFault,
    pulse::{Occupancy, Pulse},
    scheduler::{Scheduler, Step},
    sequence::Sequence,
};
use crate::{
    config::EngineConfig,
    metrics::Metrics,
    model::{LanguageModel, StepOutput},
};

/// What comes in from the handles.
pub enum Note {
    Run(Box<Sequence>),
    /// Look whether the engine is to stop.
    Wake,
}

/// Steps that may fail one after another before the engine gives up: by then it is the decoder, not a request.
const FAILURES: u32 = 3;

/// Owns the decoder, the blocks and every sequence. Whatever ends it, its sequences report it and its handles show it.
pub struct Worker {
    decoder: Box<dyn LanguageModel>,
    scheduler: Scheduler,
    inbox: Receiver<Note>,
    pulse: Arc<Pulse>,
    metrics: Arc<Metrics>,
    step: Step,
    output: StepOutput,
    /// Failed steps since the last good one.
    failures: u32,
}

impl Worker {
    pub fn new(
        decoder: Box<dyn LanguageModel>,
        config: &EngineConfig,
        inbox: Receiver<Note>,
        pulse: Arc<Pulse>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let kv = decoder.kv_shape();
        let scheduler = Scheduler::new(config, kv, decoder.shape().vocab);
        metrics.kv_blocks.set(kv.blocks as i64);
        metrics.kv_block_tokens.set(kv.block_tokens as i64);
        metrics.kv_bytes.set((kv.blocks * kv.block_bytes) as i64);
        Self {
            decoder,
            scheduler,
            inbox,
            pulse,
            metrics,
            step: Step::default(),
            output: StepOutput::default(),
            failures: 0,
        }
    }

    /// The life of the engine thread. It ends when every handle is gone and all work is done, when it is told to stop,
    /// or when the decoder keeps failing.
    pub fn run(mut self) {
        while !self.pulse.is_stopping() && (self.take_jobs() || self.scheduler.has_work()) {
            let left = self.scheduler.drop_abandoned();
            let planned = self.scheduler.plan(&mut self.step);
            self.show();
            if !planned {
                continue;
            }
            let ended = match self.forward() {
                Ok(took) => {
                    self.failures = 0;
                    self.scheduler.advance(&self.step, &mut self.output, took)
                }
                Err(reason) => self.fail(reason),
            };
            self.pulse.stepped(ended + left);
            self.show();
        }
    }

    /// Takes in every job that has come; waits for one only when idle. `false` once every handle is gone.
    fn take_jobs(&mut self) -> bool {
        if !self.scheduler.has_work() {
            self.rest();
            match self.inbox.recv() {
                Ok(note) => self.take(note),
                Err(_) => return false,
            }
        }
        loop {
            match self.inbox.try_recv() {
                Ok(note) => self.take(note),
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    fn take(&mut self, note: Note) {
        match note {
            Note::Run(sequence) => self.scheduler.push(*sequence),
            Note::Wake => {}
        }
    }

    /// Nothing runs: every block must be free.
    fn rest(&mut self) {
        self.show();
        if !self.scheduler.is_whole() {
            tracing::error!("KV blocks are held though nothing runs; their counts are made anew");
            debug_assert!(false, "KV blocks are held though nothing runs");
            self.scheduler.restore_blocks();
        }
    }

    /// Runs the planned step; returns how long it took, or what went wrong.
    fn forward(&mut self) -> Result<Duration, String> {
        let begun = Instant::now();
        // After a panic the decoder's scratch memory may be half written, which every step writes anew; its KV storage
        // too, which is why `Scheduler::fail` begins all sequences again.
        let result = catch_unwind(AssertUnwindSafe(|| self.decoder.forward(&self.step.batch, &mut self.output)));
        let took = begun.elapsed();
        let (load, prompt_rows) = (self.step.load, self.step.prompt_rows);
        let foreseen_us = (1e6 * self.scheduler.foreseen(&self.step)) as u64;
        tracing::trace!(?load, prompt_rows, foreseen_us, took_us = took.as_micros() as u64, "step");
        // An idle engine holds no weights.
        self.step.batch.adapters.clear();
        self.metrics.step_seconds.observe(took.as_secs_f64());
        self.metrics.step_rows.observe(self.step.batch.rows() as f64);
        let (answers, asks) = (self.output.answers.len(), self.step.batch.asks.len());
        match result {
            Ok(Ok(())) if answers == asks => {
                self.metrics.logits_fetched.inc_by(self.output.fetched.into());
                Ok(took)
            }
            Ok(Ok(())) => Err(format!("{asks} asks got {answers} answers")),
            Ok(Err(error)) => Err(error.to_string()),
            Err(panic) => Err(format!("it panicked: {}", panic_text(&*panic))),
        }
    }

    fn fail(&mut self, reason: String) -> usize {
        self.failures += 1;
        tracing::error!(reason, failures = self.failures, rows = self.step.batch.rows(), "a forward pass failed");
        let ended = self.scheduler.fail(&self.step, &EngineFault::Step(reason));
        if self.failures >= FAILURES {
            tracing::error!(failures = self.failures, "the engine stops: forward passes keep failing");
            self.pulse.ask_to_stop();
        }
        ended
    }

    fn show(&mut self) {
        self.metrics.preemptions.inc_by(self.scheduler.take_preemptions());
        self.scheduler.take_waits().for_each(|seconds| self.metrics.queue_seconds.observe(seconds));
        self.show_as(self.scheduler.occupancy());
    }

    fn show_as(&self, occupancy: Occupancy) {
        self.pulse.show(occupancy);
        let load = self.pulse.load();
        self.metrics.running.set(load.running as i64);
        self.metrics.waiting.set(load.waiting as i64);
        self.metrics.kv_blocks_used.set(load.kv_blocks_used as i64);
        self.metrics.kv_usage.set(load.kv_blocks_used as f64 / load.kv_blocks.max(1) as f64);
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // First, so that nobody who sees a job fail submits another.
        self.pulse.mark_stopped();
        self.scheduler.clear();
        // What is still in the inbox reports the same when it is dropped.
        while self.inbox.try_recv().is_ok() {}
        self.show_as(self.scheduler.occupancy());
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("without a message")
}
