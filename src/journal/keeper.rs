//! Retention: a thread that takes what is too old or too much, a little at a time, so that answers are not held up.

use std::{
    sync::{Arc, mpsc},
    thread::JoinHandle,
    time::Duration,
};

use crate::{
    config::RetentionConfig,
    metrics::Metrics,
    store::{Retained, Retention, Store, StoreError},
    terms::Moment,
};

/// How often there is a look.
const EVERY: Duration = Duration::from_secs(60);
/// Answers in one transaction: some milliseconds.
const STEP: usize = 100;
/// A record that is too large is brought this far below its limit, so that not every answer needs a pass.
const BELOW: f64 = 0.95;
const DAY_MS: i64 = 24 * 3600 * 1000;

/// Takes what the settings do not keep.
#[derive(Clone)]
pub(super) struct Keeper {
    pub store: Arc<dyn Store>,
    pub config: RetentionConfig,
    pub metrics: Arc<Metrics>,
}

/// The thread; it ends when this is dropped.
pub(super) struct Keeping {
    stop: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Keeper {
    /// `None` if everything is kept for ever.
    pub fn start(self) -> Option<std::io::Result<Keeping>> {
        if self.config == RetentionConfig::default() {
            return None;
        }
        let (stop, stopped) = mpsc::channel();
        let thread = std::thread::Builder::new().name("retention".to_owned()).spawn(move || self.run(&stopped));
        Some(thread.map(|thread| Keeping { stop: Some(stop), thread: Some(thread) }))
    }

    fn run(&self, stopped: &mpsc::Receiver<()>) {
        loop {
            match self.pass(Moment::unix_ms(), || stopped.try_recv() == Err(mpsc::TryRecvError::Disconnected)) {
                Ok(_) => {}
                // The writer of the record says so as well, and refuses if it is to.
                Err(error) => tracing::warn!(%error, "nothing was taken from the record"),
            }
            if stopped.recv_timeout(EVERY) != Err(mpsc::RecvTimeoutError::Timeout) {
                return;
            }
        }
    }

    /// Takes all there is to take, until `enough` says so.
    pub fn pass(&self, at_ms: i64, enough: impl Fn() -> bool) -> Result<Retained, StoreError> {
        let before = |days: Option<u32>| days.map(|days| at_ms - i64::from(days) * DAY_MS);
        let mut step = Retention {
            at_ms,
            content_before_ms: before(self.config.content_days),
            facts_before_ms: before(self.config.facts_days),
            max_bytes: self.config.max_bytes,
            limit: STEP,
        };
        let mut sum = Retained::default();
        loop {
            let taken = self.store.retain(&step)?;
            sum = Retained { content: sum.content + taken.content, facts: sum.facts + taken.facts, ..taken };
            self.metrics.retention_removed.with_label_values(&["content"]).inc_by(taken.content);
            self.metrics.retention_removed.with_label_values(&["facts"]).inc_by(taken.facts);
            if taken.more {
                step.max_bytes = self.config.max_bytes.map(|bytes| (bytes as f64 * BELOW) as u64);
            }
            if !taken.more || enough() {
                break;
            }
        }
        self.metrics.retention_held.set(i64::try_from(sum.held).unwrap_or(i64::MAX));
        self.metrics.record_bytes.set(i64::try_from(sum.bytes).unwrap_or(i64::MAX));
        if sum.content + sum.facts > 0 {
            tracing::info!(content = sum.content, facts = sum.facts, held = sum.held, bytes = sum.bytes, "retention");
        }
        if self.config.max_bytes.is_some_and(|limit| sum.bytes > limit) && !sum.more {
            tracing::warn!(bytes = sum.bytes, "the record is over its limit, and no content is left that may go");
        }
        Ok(sum)
    }
}

impl Drop for Keeping {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            // What it has taken is durable; a panic shows in the log.
            let _ = thread.join();
        }
    }
}
