//! Group commit: one thread takes everything that waits, writes it in one durable transaction, then acknowledges.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, RecvTimeoutError},
    },
    time::{Duration, Instant},
};

use tokio::sync::{OwnedSemaphorePermit, oneshot, watch};

use super::{Health, JournalError};
use crate::{
    metrics::Metrics,
    store::{Cursor, Outcome, Store, Write},
};

/// How often a store that failed is tried again.
const PROBE_EVERY: Duration = Duration::from_secs(1);
/// Writes in one transaction, so that the first of a long queue does not wait for the last.
const BATCH: usize = 256;

/// One write on its way, and who waits for it.
pub struct Entry {
    pub write: Write,
    /// When its slot was reserved.
    pub since: Instant,
    /// Given back once the write is durable or has failed.
    pub room: OwnedSemaphorePermit,
    pub acknowledge: oneshot::Sender<Result<Outcome, JournalError>>,
}

/// What the writer tells everybody else.
pub struct Progress {
    pub health: watch::Sender<Health>,
    pub durable: watch::Sender<Cursor>,
    /// Moving average of the time from a reservation to its durable row, in microseconds; 0 before the first.
    pub held_us: AtomicU64,
}

pub struct Writer {
    pub queue: Receiver<Entry>,
    pub store: Arc<dyn Store>,
    pub metrics: Arc<Metrics>,
    pub progress: Arc<Progress>,
}

impl Writer {
    /// Ends when nobody can send any more and all that was sent is acknowledged.
    pub fn run(self) {
        while let Some(batch) = self.next() {
            if batch.is_empty() {
                self.announce(self.store.probe().err().map(|error| error.to_string()));
            } else {
                self.commit(batch);
            }
        }
    }

    /// Waits for a write and takes all that is there. Empty when the store is down and should be tried again.
    fn next(&self) -> Option<Vec<Entry>> {
        let first = if self.is_down() {
            match self.queue.recv_timeout(PROBE_EVERY) {
                Ok(first) => first,
                Err(RecvTimeoutError::Timeout) => return Some(Vec::new()),
                Err(RecvTimeoutError::Disconnected) => return None,
            }
        } else {
            self.queue.recv().ok()?
        };
        let mut batch = vec![first];
        batch.extend(self.queue.try_iter().take(BATCH - 1));
        Some(batch)
    }

    fn commit(&self, batch: Vec<Entry>) {
        let mut writes = Vec::with_capacity(batch.len());
        let mut waiting = Vec::with_capacity(batch.len());
        for Entry { write, since, room, acknowledge } in batch {
            writes.push(write);
            waiting.push((since, room, acknowledge));
        }
        let began = Instant::now();
        let committed = self.store.commit(&writes);
        self.metrics.record_commit_seconds.observe(began.elapsed().as_secs_f64());
        let outcomes: Vec<_> = match &committed {
            Ok(committed) => {
                self.progress.durable.send_replace(committed.last);
                self.announce(None);
                committed.outcomes.iter().map(|outcome| Ok(*outcome)).collect()
            }
            Err(error) => {
                let reason = error.to_string();
                self.announce(Some(reason.clone()));
                writes.iter().map(|_| Err(JournalError::Write { reason: reason.clone() })).collect()
            }
        };
        for ((write, (since, room, acknowledge)), outcome) in writes.iter().zip(waiting).zip(outcomes) {
            self.count(write, since, &outcome);
            // Before the acknowledgement: whoever hears it may reserve again at once.
            drop(room);
            // Nobody listens where the client has left; the row counts all the same.
            let _ = acknowledge.send(outcome);
        }
    }

    fn count(&self, write: &Write, since: Instant, outcome: &Result<Outcome, JournalError>) {
        if let Ok(Outcome::Accepted(accepted)) = outcome {
            self.metrics.count_feedback(accepted.joined, accepted.in_flight, accepted.aside, accepted.repeated);
        }
        let Write::Choices(completion) = write else { return };
        match outcome {
            Ok(Outcome::Applied) => {
                for choice in &completion.choices {
                    self.metrics.recorded.with_label_values(&[choice.ending.as_str()]).inc();
                }
                let sample = u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX);
                let before = self.progress.held_us.load(Ordering::Relaxed);
                let average = if before == 0 { sample } else { before - before / 8 + sample / 8 };
                self.progress.held_us.store(average.max(1), Ordering::Relaxed);
            }
            Ok(Outcome::Missing | Outcome::Duplicate | Outcome::Accepted(_) | Outcome::Conflict { .. }) | Err(_) => {
                self.metrics.record_failures.inc_by(completion.choices.len() as u64);
            }
        }
    }

    fn is_down(&self) -> bool {
        matches!(*self.progress.health.borrow(), Health::Down { .. })
    }

    fn announce(&self, fault: Option<String>) {
        let health = fault.map_or(Health::Up, |reason| Health::Down { reason });
        self.progress.health.send_if_modified(|current| {
            if *current == health {
                return false;
            }
            match &health {
                Health::Up => tracing::info!("the record is writable again"),
                Health::Down { reason } => tracing::error!(%reason, "the record is not writable"),
            }
            *current = health;
            true
        });
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let reason = "the writer of the record has stopped".to_owned();
        self.progress.health.send_replace(Health::Down { reason });
    }
}
