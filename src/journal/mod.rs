//! The record: every admitted answer ends as a row here, whatever ended it.
//!
//! Admission reserves room for each choice; whoever holds a slot can always record. A receipt resolves when the row is
//! on disk, or with the reason why it is not.

mod erase;
mod export;
mod feedback;
mod flags;
mod flat;
mod import;
mod keeper;
mod place;
mod redact;
mod report;
mod secret;
mod shown;
mod slot;
mod writer;

use std::{
    collections::VecDeque,
    sync::{Arc, atomic::Ordering, mpsc},
    thread::JoinHandle,
    time::{Duration, Instant},
};

pub use erase::{Erasure, Holder};
pub use export::Format;
pub use feedback::FeedbackError;
pub use import::{Imported, Mapping, RefusedRow, time_ms};
pub use place::{Asked, Talk};
pub use redact::{Detector, NOT_KEPT, Place, Redactor};
use serde_json::{Map, Value};
pub use shown::{View, answer};
pub use slot::{Receipt, Slot};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};

pub use crate::store::{
    Accepted, Access, AccessQuery, AnswerFact, ChoiceRecord, Completion, CompletionKind, Content, Cursor, Deed,
    Feedback, FeedbackPage, FeedbackQuery, FlagMark, FlagPage, FlagQuery, FlagState, Followed, Followup, Found, Given,
    JudgedAnswer, Judgement, KeptFeedback, KeptFlag, KeptRule, ListQuery, Mark, Measure, NewFlag, Options, Order, Page,
    PromptContent, ReferenceAnswer, Resolved, Retained, RuleRow, Said, Search, Served, Source, Standing, Target,
    TargetKind, Thread, Timing, Verdict, as_kept,
};
use crate::{
    config::{Durability, OnFault, RecordConfig},
    metrics::Metrics,
    store::{Durable, Outcome, Store, StoreError, Write},
    terms::{Moment, RecordPolicy},
};
use erase::Gone;
use keeper::{Keeper, Keeping};
use place::Splitter;
use secret::Key;
use slot::Word;
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
    secret: Key,
    redactor: Redactor,
    gone: Gone,
    keeper: Keeper,
    /// Absent where everything is kept.
    keeping: Option<Keeping>,
    splitter: Splitter,
    durability: Durability,
    on_fault: OnFault,
    stall: Duration,
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
    /// The last write failed and is tried again every second, or one has taken too long.
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
    #[error("the record's own secret cannot be read or made: {reason}")]
    Secret { reason: String },
    #[error("the rules of redaction cannot be used: {reason}")]
    Rules { reason: String },
    #[error("there is no '{after}' to list after")]
    UnknownCursor { after: String },
}

impl Journal {
    /// Starts the writer. A store that cannot be written now is no error: the journal begins [`Health::Down`] and
    /// recovers.
    ///
    /// # Errors
    /// [`JournalError::Down`] if the system gives no thread; [`JournalError::Secret`], [`JournalError::Rules`].
    pub fn open(store: Arc<dyn Store>, config: &RecordConfig, metrics: Arc<Metrics>) -> Result<Self, JournalError> {
        let secret = Key::open(&config.data_dir).map_err(|error| JournalError::Secret { reason: error.to_string() })?;
        let redactor = Redactor::open(config.redact_rules.as_deref(), secret.clone(), metrics.redacted.clone());
        let redactor = redactor.map_err(|reason| JournalError::Rules { reason })?;
        let begun = store.probe().and_then(|()| store.commit(&[], Durable::Now));
        let (health, last) = match begun {
            Ok(committed) => (Health::Up, committed.last),
            Err(error) => (Health::Down { reason: error.to_string() }, Cursor::default()),
        };
        let limit = config.max_pending.clamp(1, Semaphore::MAX_PERMITS);
        let progress = Arc::new(Progress::new(health, last));
        let (queue, entries) = mpsc::sync_channel(limit + EDITS);
        let writer = Writer {
            queue: entries,
            store: Arc::clone(&store),
            metrics: Arc::clone(&metrics),
            progress: Arc::clone(&progress),
            durability: config.durability,
            on_fault: config.on_fault,
            held: VecDeque::new(),
        };
        let thread = std::thread::Builder::new()
            .name("journal".to_owned())
            .spawn(move || writer.run())
            .map_err(|error| JournalError::Down { reason: error.to_string() })?;
        let keeper = Keeper { store: Arc::clone(&store), config: config.retention, metrics: Arc::clone(&metrics) };
        let keeping = keeper.clone().start().transpose();
        let keeping = keeping.map_err(|error| JournalError::Down { reason: error.to_string() })?;
        Ok(Self(Arc::new(Inner {
            store,
            policy: config.policy,
            splitter: Splitter::new(&secret, &config.split),
            secret,
            redactor,
            gone: Gone::default(),
            keeper,
            keeping,
            durability: config.durability,
            on_fault: config.on_fault,
            stall: config.stall,
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
        let slot = |room| Ok(Slot { journal: self.clone(), room, since: Instant::now(), begun: false });
        let room = match self.health() {
            Health::Down { reason } if self.0.on_fault == OnFault::Refuse => return Err(JournalError::Down { reason }),
            // Even where there is no room for what is lost.
            Health::Down { .. } => return slot(self.room(choices)),
            Health::Up => self.room(choices),
        };
        match room {
            Some(room) => slot(Some(room)),
            None => Err(JournalError::Full {
                wanted: choices,
                limit: self.0.limit,
                retry_after_ms: self.retry_after_ms(choices),
            }),
        }
    }

    fn room(&self, choices: usize) -> Option<OwnedSemaphorePermit> {
        let choices = u32::try_from(choices).ok()?;
        Arc::clone(&self.0.room).try_acquire_many_owned(choices).ok()
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
        match self.0.progress.busy_for() {
            Some(busy) if busy > self.0.stall => {
                Health::Down { reason: format!("a write has taken more than {} ms", self.0.stall.as_millis()) }
            }
            Some(_) | None => self.0.progress.health.borrow().clone(),
        }
    }

    /// Why new requests are refused, if they are: the record is down, and the policy is not to serve without it.
    pub fn refusal(&self) -> Option<String> {
        match self.health() {
            Health::Down { reason } if self.0.on_fault == OnFault::Refuse => Some(reason),
            Health::Down { .. } | Health::Up => None,
        }
    }

    /// What every text passes before it is stored, also what others write beside the answers.
    pub fn redactor(&self) -> &Redactor {
        &self.0.redactor
    }

    /// Changes when a write fails and when writes succeed again.
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

    /// One page of everything on record; a user is found under the name that is stored.
    pub async fn search(&self, search: Search) -> Result<Found, JournalError> {
        let search = self.0.redactor.search(search);
        self.read(move |store| store.search(&search)).await
    }

    /// Up to `limit` choices that became durable after `after`, in that order.
    pub async fn follow(&self, after: Cursor, limit: usize) -> Result<Vec<Followed>, JournalError> {
        self.read(move |store| store.follow(after, limit)).await
    }

    /// Replaces the metadata of a listable completion; false if there is none of this id.
    pub async fn set_metadata(&self, id: &str, mut metadata: Map<String, Value>) -> Result<bool, JournalError> {
        self.0.redactor.map(Place::Metadata, &mut metadata);
        self.edit(Write::Metadata { id: id.to_owned(), metadata }).await
    }

    /// Takes what the settings do not keep, now, and not only when the time has come.
    pub async fn retain(&self) -> Result<Retained, JournalError> {
        let keeper = self.0.keeper.clone();
        self.write_beside(move |_| keeper.pass(Moment::unix_ms(), || false)).await
    }

    /// Takes a listable completion's content, user, metadata and listability; the fact stays. False if there is none of
    /// this id.
    pub async fn delete(&self, id: &str) -> Result<bool, JournalError> {
        self.edit(Write::Erase { id: id.to_owned(), at_ms: Moment::unix_ms() }).await
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
        self.send(write, Instant::now(), room).await.map_err(|_| stopped())?
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

    /// A write that does not go through the queue, for what is done in many small steps.
    async fn write_beside<T: Send + 'static>(
        &self,
        write: impl FnOnce(&dyn Store) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, JournalError> {
        let store = Arc::clone(&self.0.store);
        let failed = |reason: String| JournalError::Write { reason };
        let done = tokio::task::spawn_blocking(move || write(&*store)).await;
        done.map_err(|error| failed(error.to_string()))?.map_err(|error| failed(error.to_string()))
    }

    fn send(&self, write: Write, since: Instant, room: OwnedSemaphorePermit) -> Word {
        let (acknowledge, word) = oneshot::channel();
        // What cannot be sent is gone, and `acknowledge` with it: the word is that the writer has stopped.
        if !self.enqueue(Entry { write, since, room, acknowledge: Some(acknowledge) }) {
            self.0.metrics.record_failures.inc();
        }
        word
    }

    fn send_unawaited(&self, write: Write, since: Instant, room: OwnedSemaphorePermit) {
        if !self.enqueue(Entry { write, since, room, acknowledge: None }) {
            self.0.metrics.record_lost.inc();
        }
    }

    /// Every entry brings its room, and the queue is as long as all room together, so there is always a place; false where
    /// the writer has stopped.
    fn enqueue(&self, entry: Entry) -> bool {
        self.0.queue.as_ref().is_some_and(|queue| queue.try_send(entry).is_ok())
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.keeping = None;
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
