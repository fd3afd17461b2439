//! The record: every admitted answer ends as a row here, whatever ended it.
//!
//! Admission reserves room for each choice; whoever holds a slot can always record. A receipt resolves when the row is
//! on disk, or with the reason why it is not.

mod feedback;
mod flags;
mod redact;
mod report;
mod writer;

use std::{
    pin::Pin,
    sync::{Arc, atomic::Ordering, mpsc},
    task::{Context, Poll},
    thread::JoinHandle,
    time::{Instant, SystemTime},
};

use serde_json::{Map, Value};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};

pub use crate::store::{
    Accepted, AnswerFact, ChoiceRecord, Completion, CompletionKind, Content, Cursor, Feedback, FeedbackPage,
    FeedbackQuery, FlagMark, FlagPage, FlagQuery, FlagState, Followed, Followup, Given, JudgedAnswer, Judgement,
    KeptFeedback, KeptFlag, KeptRule, ListQuery, Measure, NewFlag, Options, Order, Page, PromptContent,
    ReferenceAnswer, Resolved, RuleRow, Said, Served, Source, Standing, Target, TargetKind, Timing, Verdict,
};
use crate::{
    config::RecordConfig,
    metrics::Metrics,
    store::{Outcome, Store, StoreError, Write},
    terms::RecordPolicy,
};
pub use feedback::FeedbackError;
use writer::{Entry, Progress, Writer};

/// Changes of metadata and erasures that may wait; others wait for their turn.
const EDITS: usize = 64;
/// What a refused caller is told before anything is known about how long answers take.
const FIRST_RETRY_MS: u64 = 1000;

/// The record of one server. Cheap to clone; the last to go waits until all that was recorded is on disk.
#[derive(Clone)]
pub struct Journal(Arc<Inner>);

struct Inner {
    store: Arc<dyn Store>,
    policy: RecordPolicy,
    limit: usize,
    room: Arc<Semaphore>,
    edits: Arc<Semaphore>,
    progress: Arc<Progress>,
    metrics: Arc<Metrics>,
    /// Gone only while the last `Journal` is dropped.
    queue: Option<mpsc::SyncSender<Entry>>,
    writer: Option<JoinHandle<()>>,
}

/// Whether answers can be recorded now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    Up,
    /// The last write failed; it is tried again every second.
    Down {
        reason: String,
    },
}

/// Why the record refuses.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JournalError {
    #[error("the record has room for {limit} choices under way and {wanted} more do not fit")]
    Full { wanted: usize, limit: usize, retry_after_ms: u64 },
    #[error("the record is not writable: {reason}")]
    Down { reason: String },
    #[error("the answer could not be recorded: {reason}")]
    Write { reason: String },
    #[error("the record could not be read: {reason}")]
    Read { reason: String },
    #[error("there is no '{after}' to list after")]
    UnknownCursor { after: String },
}

impl Journal {
    /// Starts the writer. A store that cannot be written now is no error: the journal begins [`Health::Down`] and
    /// recovers.
    ///
    /// # Errors
    /// [`JournalError::Down`] if the system gives no thread.
    pub fn open(store: Arc<dyn Store>, config: &RecordConfig, metrics: Arc<Metrics>) -> Result<Self, JournalError> {
        let begun = store.probe().and_then(|()| store.commit(&[]));
        let (health, last) = match begun {
            Ok(committed) => (Health::Up, committed.last),
            Err(error) => (Health::Down { reason: error.to_string() }, Cursor::default()),
        };
        let limit = config.max_pending.clamp(1, Semaphore::MAX_PERMITS);
        let progress = Arc::new(Progress {
            health: watch::Sender::new(health),
            durable: watch::Sender::new(last),
            held_us: 0.into(),
        });
        let (queue, entries) = mpsc::sync_channel(limit + EDITS);
        let writer = Writer {
            queue: entries,
            store: Arc::clone(&store),
            metrics: Arc::clone(&metrics),
            progress: Arc::clone(&progress),
        };
        let thread = std::thread::Builder::new()
            .name("journal".to_owned())
            .spawn(move || writer.run())
            .map_err(|error| JournalError::Down { reason: error.to_string() })?;
        Ok(Self(Arc::new(Inner {
            store,
            policy: config.policy,
            limit,
            room: Arc::new(Semaphore::new(limit)),
            edits: Arc::new(Semaphore::new(EDITS)),
            progress,
            metrics,
            queue: Some(queue),
            writer: Some(thread),
        })))
    }

    /// Room for the rows of one request, one for each choice. Never blocks.
    ///
    /// # Errors
    /// [`JournalError::Full`], [`JournalError::Down`].
    pub fn reserve(&self, choices: usize) -> Result<Slot, JournalError> {
        if let Health::Down { reason } = self.health() {
            return Err(JournalError::Down { reason });
        }
        let room = u32::try_from(choices).ok().and_then(|n| Arc::clone(&self.0.room).try_acquire_many_owned(n).ok());
        match room {
            Some(room) => Ok(Slot { journal: self.clone(), room, since: Instant::now() }),
            None => Err(JournalError::Full {
                wanted: choices,
                limit: self.0.limit,
                retry_after_ms: self.retry_after_ms(choices),
            }),
        }
    }

    /// How long until as many choices have ended, by how long they took lately.
    fn retry_after_ms(&self, choices: usize) -> u64 {
        match self.0.progress.held_us.load(Ordering::Relaxed) {
            0 => FIRST_RETRY_MS,
            held_us => (held_us / 1000).saturating_mul(choices as u64) / self.0.limit as u64,
        }
        .clamp(50, 60_000)
    }

    pub fn health(&self) -> Health {
        self.0.progress.health.borrow().clone()
    }

    /// Changes when the record goes down or comes back.
    pub fn watch_health(&self) -> watch::Receiver<Health> {
        self.0.progress.health.subscribe()
    }

    /// The last durable choice; changes with every commit. What came before it can be read by [`Journal::follow`].
    pub fn watch_durable(&self) -> watch::Receiver<Cursor> {
        self.0.progress.durable.subscribe()
    }

    /// Resolves when no answer is under way and all that was recorded is durable or has failed. New requests are refused
    /// meanwhile.
    pub async fn idle(&self) {
        // Closing is not foreseen, so there is no error to report.
        let _ = self.0.room.acquire_many(u32::try_from(self.0.limit).unwrap_or(u32::MAX)).await;
    }

    /// A completion with all its choices, listable or not.
    pub async fn get(&self, id: &str) -> Result<Option<Completion>, JournalError> {
        let id = id.to_owned();
        self.read(move |store| store.completion(&id)).await
    }

    /// One page of the listable completions.
    pub async fn list(&self, query: ListQuery) -> Result<Page, JournalError> {
        self.read(move |store| store.list(&query)).await
    }

    /// Up to `limit` choices that became durable after `after`, in that order.
    pub async fn follow(&self, after: Cursor, limit: usize) -> Result<Vec<Followed>, JournalError> {
        self.read(move |store| store.follow(after, limit)).await
    }

    /// Replaces the metadata of a listable completion; false if there is none of this id.
    pub async fn set_metadata(&self, id: &str, metadata: Map<String, Value>) -> Result<bool, JournalError> {
        self.edit(Write::Metadata { id: id.to_owned(), metadata }).await
    }

    /// Takes a listable completion's content, user, metadata and listability; the fact stays. False if there is none of
    /// this id.
    pub async fn delete(&self, id: &str) -> Result<bool, JournalError> {
        let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.edit(Write::Erase { id: id.to_owned(), at_ms: since_epoch.as_millis() as i64 }).await
    }

    async fn edit(&self, write: Write) -> Result<bool, JournalError> {
        match self.edited(write).await? {
            Outcome::Applied | Outcome::Accepted(_) => Ok(true),
            Outcome::Missing | Outcome::Duplicate | Outcome::Conflict { .. } => Ok(false),
        }
    }

    /// What became of a write, once that is durable.
    async fn edited(&self, write: Write) -> Result<Outcome, JournalError> {
        let room = Arc::clone(&self.0.edits).acquire_owned().await.map_err(|_| stopped())?;
        let Receipt(outcome) = self.send(write, Instant::now(), room);
        outcome.await.map_err(|_| stopped())?
    }

    async fn read<T: Send + 'static>(
        &self,
        query: impl FnOnce(&dyn Store) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, JournalError> {
        let store = Arc::clone(&self.0.store);
        match tokio::task::spawn_blocking(move || query(&*store)).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(StoreError::UnknownCursor(after))) => Err(JournalError::UnknownCursor { after }),
            Ok(Err(error)) => Err(JournalError::Read { reason: error.to_string() }),
            Err(error) => Err(JournalError::Read { reason: error.to_string() }),
        }
    }

    /// Every entry brings its room, and the queue is as long as all room together, so there is always a place.
    fn send(&self, write: Write, since: Instant, room: OwnedSemaphorePermit) -> Receipt {
        let (acknowledge, receipt) = oneshot::channel();
        let entry = Entry { write, since, room, acknowledge };
        if self.0.queue.as_ref().is_none_or(|queue| queue.try_send(entry).is_err()) {
            // The entry is gone, and with it `acknowledge`: the receipt reports that the writer has stopped.
            self.0.metrics.record_failures.inc();
        }
        Receipt(receipt)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(writer) = self.writer.take() {
            // A writer that panicked has already said so by its health.
            let _ = writer.join();
        }
    }
}

fn stopped() -> JournalError {
    JournalError::Down { reason: "the writer of the record has stopped".to_owned() }
}

/// Room for the rows of one request. Dropping it gives back what was not used.
pub struct Slot {
    journal: Journal,
    room: OwnedSemaphorePermit,
    since: Instant,
}

impl Slot {
    /// Records the choices of `fact`, which ended now, under the policy of the fact or the server's if that is stricter.
    /// Accepted at once, whatever the disk does; the receipt tells when it is durable. Dropping the receipt changes
    /// nothing.
    ///
    /// A fact with more choices than the slot has room left for is refused through its receipt.
    pub fn record(&mut self, fact: Completion) -> Receipt {
        let choices = fact.choices.len();
        match self.room.split(choices.max(1)) {
            Some(room) => {
                let fact = redact::redacted(fact, self.journal.0.policy);
                self.journal.send(Write::Choices(Box::new(fact)), self.since, room)
            }
            None => {
                self.journal.0.metrics.record_failures.inc_by(choices.max(1) as u64);
                let (acknowledge, receipt) = oneshot::channel();
                let reason = format!("{choices} more choices than were reserved");
                let _ = acknowledge.send(Err(JournalError::Write { reason }));
                Receipt(receipt)
            }
        }
    }
}

/// Resolves when the row is on disk, or with the reason why it is not.
#[must_use = "a row is durable only when its receipt says so"]
pub struct Receipt(oneshot::Receiver<Result<Outcome, JournalError>>);

impl Future for Receipt {
    type Output = Result<(), JournalError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(context).map(|outcome| match outcome.map_err(|_| stopped())?? {
            Outcome::Applied => Ok(()),
            Outcome::Duplicate => Err(JournalError::Write { reason: "this choice is on record already".to_owned() }),
            Outcome::Missing | Outcome::Accepted(_) | Outcome::Conflict { .. } => {
                Err(JournalError::Write { reason: "there was nothing to change".to_owned() })
            }
        })
    }
}
