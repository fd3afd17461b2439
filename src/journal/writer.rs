//! Group commit: one thread takes everything that waits, writes it in one transaction, then acknowledges. What the store
//! cannot take is held, oldest first, until it can.

use std::{
    collections::VecDeque,
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
    config::{Durability, OnFault},
    metrics::Metrics,
    store::{Committed, Completion, Cursor, Durable, Outcome, Store, StoreError, Write},
    terms::Ending,
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
    /// Given back once the write is durable or has failed for good.
    pub room: OwnedSemaphorePermit,
    /// `None`: nobody waits, its client has its finish.
    pub acknowledge: Option<oneshot::Sender<Result<Outcome, JournalError>>>,
}

impl Entry {
    fn choices(&self) -> u64 {
        match &self.write {
            Write::Choices(completion) => completion.choices.len() as u64,
            Write::Metadata { .. }
            | Write::Erase { .. }
            | Write::Hold { .. }
            | Write::Release { .. }
            | Write::Access(_)
            | Write::Feedback(_)
            | Write::FollowUp(_)
            | Write::Resolve { .. }
            | Write::Retract { .. } => 0,
        }
    }
}

/// What the writer tells everybody else.
pub struct Progress {
    pub health: watch::Sender<Health>,
    pub durable: watch::Sender<Cursor>,
    /// Moving average of the time from a reservation to its durable row, in microseconds; 0 before the first.
    pub held_us: AtomicU64,
    /// When the store was last called, in microseconds after `began`; 0 while nobody calls it.
    busy_since_us: AtomicU64,
    began: Instant,
}

impl Progress {
    pub fn new(health: Health, last: Cursor) -> Self {
        Self {
            health: watch::Sender::new(health),
            durable: watch::Sender::new(last),
            held_us: 0.into(),
            busy_since_us: 0.into(),
            began: Instant::now(),
        }
    }

    /// How long the store has been at the write that is under way.
    pub fn busy_for(&self) -> Option<Duration> {
        let since = self.busy_since_us.load(Ordering::Acquire);
        (since > 0).then(|| self.began.elapsed().saturating_sub(Duration::from_micros(since)))
    }
}

pub struct Writer {
    pub queue: Receiver<Entry>,
    pub store: Arc<dyn Store>,
    pub metrics: Arc<Metrics>,
    pub progress: Arc<Progress>,
    pub durability: Durability,
    pub on_fault: OnFault,
    /// What could not be written, oldest first; nobody waits for it. Bounded by the room that each entry holds.
    pub held: VecDeque<Entry>,
}

impl Writer {
    /// Ends when nobody can send any more and all that was sent is acknowledged.
    pub fn run(mut self) {
        while let Some(batch) = self.next() {
            // What waits is not overtaken.
            match self.recover() {
                Ok(()) => self.write(batch),
                Err(error) => self.keep(batch, &error.to_string()),
            }
        }
        if let Err(error) = self.recover() {
            let lost: u64 = self.held.iter().map(Entry::choices).sum();
            self.metrics.record_lost.inc_by(lost);
            tracing::error!(lost, %error, "the server ends with answers that the record could not take");
        }
    }

    /// Waits for a write and takes all that is there, or that comes within the window. Empty when the store is down and
    /// should be tried again.
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
        if let Durability::Group(window) = self.durability {
            let until = Instant::now() + window;
            while batch.len() < BATCH && batch.iter().all(|entry| entry.acknowledge.is_none()) {
                match self.queue.recv_timeout(until.saturating_duration_since(Instant::now())) {
                    Ok(entry) => batch.push(entry),
                    Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
                }
            }
        }
        batch.extend(self.queue.try_iter().take(BATCH.saturating_sub(batch.len())));
        Some(batch)
    }

    /// Writes what is held, if the store takes it again. Without any, one that is down is asked whether it could.
    fn recover(&mut self) -> Result<(), StoreError> {
        if self.held.is_empty() {
            if self.is_down() {
                let up = self.busy(|store| store.probe());
                self.announce(up.as_ref().err().map(ToString::to_string));
                return up;
            }
            return Ok(());
        }
        while !self.held.is_empty() {
            let batch: Vec<Entry> = self.held.drain(..self.held.len().min(BATCH)).collect();
            if let Err((batch, error)) = self.try_write(batch) {
                batch.into_iter().rev().for_each(|entry| self.held.push_front(entry));
                self.announce(Some(error.to_string()));
                return Err(error);
            }
            self.count_held();
        }
        Ok(())
    }

    fn write(&mut self, batch: Vec<Entry>) {
        if batch.is_empty() {
            return;
        }
        if let Err((batch, error)) = self.try_write(batch) {
            let reason = error.to_string();
            self.announce(Some(reason.clone()));
            self.keep(batch, &reason);
        }
    }

    /// Writes the batch and acknowledges it, or gives back what the store cannot take now. A single row that the store
    /// will never take is told so, and the others are written without it.
    fn try_write(&mut self, batch: Vec<Entry>) -> Result<(), (Vec<Entry>, StoreError)> {
        let began = Instant::now();
        let committed = self.commit(&batch);
        self.metrics.record_commit_seconds.observe(began.elapsed().as_secs_f64());
        match committed {
            Ok(committed) => {
                self.progress.durable.send_replace(committed.last);
                self.announce(None);
                batch.into_iter().zip(committed.outcomes).for_each(|(entry, outcome)| self.settle(entry, outcome));
                Ok(())
            }
            Err(error) if error.is_about_the_write() && batch.len() > 1 => {
                let mut rest = batch.into_iter();
                while let Some(entry) = rest.next() {
                    if let Err((mut back, error)) = self.try_write(vec![entry]) {
                        back.extend(rest);
                        return Err((back, error));
                    }
                }
                Ok(())
            }
            Err(error) if error.is_about_the_write() && self.busy(|store| store.probe()).is_ok() => {
                batch.into_iter().for_each(|entry| self.refuse(entry, &error.to_string()));
                Ok(())
            }
            Err(error) => Err((batch, error)),
        }
    }

    fn commit(&self, batch: &[Entry]) -> Result<Committed, StoreError> {
        let writes: Vec<&Write> = batch.iter().map(|entry| &entry.write).collect();
        // Whoever waits, waits for the disk.
        let durable = match self.durability {
            Durability::BestEffort if batch.iter().all(|entry| entry.acknowledge.is_none()) => Durable::Later,
            Durability::Strict | Durability::Group(_) | Durability::BestEffort => Durable::Now,
        };
        self.busy(|store| store.commit(&writes, durable))
    }

    fn busy<T>(&self, call: impl FnOnce(&dyn Store) -> T) -> T {
        let now = u64::try_from(self.progress.began.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.progress.busy_since_us.store(now.max(1), Ordering::Release);
        let done = call(&*self.store);
        self.progress.busy_since_us.store(0, Ordering::Release);
        done
    }

    fn settle(&self, entry: Entry, outcome: Outcome) {
        let Entry { write, since, room, acknowledge } = entry;
        if let Outcome::Accepted(accepted) = outcome {
            self.metrics.count_feedback(accepted.joined, accepted.in_flight, accepted.aside, accepted.repeated);
        }
        if let Write::Choices(completion) = &write {
            match outcome {
                Outcome::Applied => self.count_recorded(completion, since),
                // What failed once may have reached the disk all the same.
                Outcome::Duplicate if acknowledge.is_none() => {}
                Outcome::Duplicate | Outcome::Missing | Outcome::Accepted(_) | Outcome::Conflict { .. } => {
                    self.metrics.record_failures.inc_by(completion.choices.len() as u64);
                }
            }
        }
        // Before the acknowledgement: whoever hears it may reserve again at once.
        drop(room);
        // Nobody listens where the client has left; the row counts all the same.
        let _ = acknowledge.map(|acknowledge| acknowledge.send(Ok(outcome)));
    }

    fn count_recorded(&self, completion: &Completion, since: Instant) {
        for choice in &completion.choices {
            self.metrics.recorded.with_label_values(&[choice.ending.as_str()]).inc();
        }
        let sample = u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX);
        let before = self.progress.held_us.load(Ordering::Relaxed);
        let average = if before == 0 { sample } else { before - before / 8 + sample / 8 };
        self.progress.held_us.store(average.max(1), Ordering::Relaxed);
    }

    /// A write that no store would take: told to whoever waits, lost where nobody does.
    fn refuse(&self, entry: Entry, reason: &str) {
        let choices = entry.choices();
        tracing::error!(reason, choices, "the record cannot hold an answer");
        match entry.acknowledge {
            Some(acknowledge) if self.on_fault == OnFault::Refuse || choices == 0 => {
                self.metrics.record_failures.inc_by(choices);
                let _ = acknowledge.send(Err(JournalError::Write { reason: reason.to_owned() }));
            }
            _ => self.metrics.record_lost.inc_by(choices),
        }
    }

    /// Tells whoever waits that the store is down, and keeps the rows until it is back. Where that keeps a client from its
    /// finish, the row says so.
    fn keep(&mut self, batch: Vec<Entry>, reason: &str) {
        for mut entry in batch {
            let choices = entry.choices();
            if let Some(acknowledge) = entry.acknowledge.take() {
                if self.on_fault == OnFault::Refuse {
                    self.metrics.record_failures.inc_by(choices);
                    fail(&mut entry.write, reason);
                }
                let _ = acknowledge.send(Err(JournalError::Write { reason: reason.to_owned() }));
            }
            if choices > 0 {
                self.held.push_back(entry);
            }
        }
        self.count_held();
    }

    fn count_held(&self) {
        let held: u64 = self.held.iter().map(Entry::choices).sum();
        self.metrics.record_held.set(i64::try_from(held).unwrap_or(i64::MAX));
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

/// The client of these choices gets an error instead of its finish.
fn fail(write: &mut Write, reason: &str) {
    let Write::Choices(completion) = write else { return };
    for choice in &mut completion.choices {
        if matches!(choice.ending, Ending::Finished(_)) {
            choice.ending = Ending::Failed;
            choice.fault = Some(format!("it could not be recorded in time: {reason}"));
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let reason = "the writer of the record has stopped".to_owned();
        self.progress.health.send_replace(Health::Down { reason });
    }
}
