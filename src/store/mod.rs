//! The database: typed operations and migrations. The only room with SQL.
//!
//! A store is told whole transactions and answers only when they are durable. Callers bring their own threads: every
//! operation blocks.

mod catalog;
mod feedback;
mod flags;
mod keeping;
mod migrations;
mod record;
mod report;
mod scores;
mod search;
mod sqlite;
mod trial;

use std::path::PathBuf;

pub use catalog::{Changed, ManagedBy, NameChange, NameRow, OldHistory, Operation, Step};
pub use feedback::{
    Accepted, Feedback, FeedbackPage, FeedbackQuery, JudgedAnswer, Judgement, KeptFeedback, Source, Standing, Target,
    TargetKind,
};
pub use flags::{
    FlagPage, FlagQuery, FlagState, Followup, KeptFlag, KeptRule, NewFlag, ReferenceAnswer, Resolved, RuleRow, Verdict,
};
pub use keeping::{Access, AccessQuery, Deed, Erased, Retained, Retention};
pub use record::{ChoiceRecord, Completion, CompletionKind, Content, Given, Options, PromptContent, Thread, Timing};
pub use report::{AnswerFact, FlagMark, Measure, Said, Served};
pub use scores::as_kept;
pub use search::{Found, Mark, Search};
use serde_json::{Map, Value};
pub use sqlite::{Named, SqliteStore, back_up, check};
pub use trial::TrialRow;

use crate::terms::{Digest, Placement};

/// A database that keeps the record and the catalog of adapters. All operations block; writes come from one thread, reads from any.
pub trait Store: Send + Sync {
    /// Applies all writes in order, in one transaction, and returns once it is as durable as `durable` says. On an error
    /// nothing was applied, as far as the store can tell.
    fn commit(&self, writes: &[&Write], durable: Durable) -> Result<Committed, StoreError>;

    /// Proves that an answer could be recorded now, by a durable write of its own.
    fn probe(&self) -> Result<(), StoreError>;

    /// The completion with all its choices, stored (listable) or not.
    fn completion(&self, id: &str) -> Result<Option<Completion>, StoreError>;

    /// One page of the listable completions.
    fn list(&self, query: &ListQuery) -> Result<Page, StoreError>;

    /// One page of everything on record.
    fn search(&self, search: &Search) -> Result<Found, StoreError>;

    /// Up to `limit` choices that became durable after `after`, in the order in which they did.
    fn follow(&self, after: Cursor, limit: usize) -> Result<Vec<Followed>, StoreError>;

    /// The placement of the latest answer that the question names, in the order of its fields.
    fn placement(&self, of: &EarlierTurn<'_>) -> Result<Option<(Matched, Placement)>, StoreError>;

    /// Takes what is too old or too much, up to a limit, in one transaction.
    fn retain(&self, retention: &Retention) -> Result<Retained, StoreError>;

    /// Takes content, user, metadata and listability of up to `limit` answers whose user or safety identifier is one of
    /// `names`, and of those without either in the same conversations; the facts stay. Durable when this returns.
    fn erase_user(&self, names: &[String], at_ms: i64, limit: usize) -> Result<Erased, StoreError>;

    /// Who has looked, the latest first.
    fn accesses(&self, query: &AccessQuery) -> Result<Vec<Access>, StoreError>;

    /// One page of what was said of answers.
    fn feedback(&self, query: &FeedbackQuery) -> Result<FeedbackPage, StoreError>;

    /// Feedback by its ids, in their order; ids that are not known are left out.
    fn feedback_by_id(&self, ids: &[String]) -> Result<Vec<KeptFeedback>, StoreError>;

    /// What was said of these completions and may be said of them by whoever said it, retracted or not, in the order in which
    /// it was accepted.
    fn feedback_on(&self, completions: &[&str]) -> Result<Vec<KeptFeedback>, StoreError>;

    /// Where a follower of the record stands, if it ever stood.
    fn follower(&self, name: &str) -> Result<Option<Cursor>, StoreError>;

    /// One page of what rules found.
    fn flags(&self, query: &FlagQuery) -> Result<FlagPage, StoreError>;

    /// One flag.
    fn flag(&self, id: u64) -> Result<Option<KeptFlag>, StoreError>;

    /// Every version of every rule that ever looked at an answer, by name, the earliest first.
    fn flag_rules(&self) -> Result<Vec<KeptRule>, StoreError>;

    /// The first answers with scores, in the order of the record, of the version that gave this one.
    fn reference(&self, like: &Completion, limit: usize) -> Result<Vec<ReferenceAnswer>, StoreError>;

    /// What the same user asked with the same key within `around_ms` of this request, up to `limit` before it and after it: first
    /// choices with their places. Nothing where the request names no user.
    fn asked_near(&self, like: &Completion, around_ms: i64, limit: usize) -> Result<Vec<Followed>, StoreError>;

    /// Every version of `adapter` (`None`: the base alone) that has answered, the one that answered last first.
    fn served(&self, adapter: Option<&str>) -> Result<Vec<Served>, StoreError>;

    /// The last `limit` choices of a version by its number, admitted at `since_ms` or later, in the order of the record.
    fn measures(&self, served: u64, since_ms: i64, limit: usize) -> Result<Vec<Measure>, StoreError>;

    /// The flags of a version's choices from `from` on.
    fn marks(&self, served: u64, from: Cursor) -> Result<Vec<FlagMark>, StoreError>;

    /// What was said of a version's completions from the number `from` on and was not retracted, in the order in which it was
    /// accepted.
    fn said(&self, served: u64, from: u64) -> Result<Vec<Said>, StoreError>;

    /// What rules ask of a version's choices from `from` on, in the order of the record.
    fn answer_facts(&self, served: u64, from: Cursor) -> Result<Vec<AnswerFact>, StoreError>;

    /// Every adapter name with its history, oldest step first.
    fn names(&self) -> Result<Vec<(NameRow, Vec<Step>)>, StoreError>;

    /// Moves a name and writes the step, in one transaction, if the name has the version that the caller saw. `base` is the
    /// caller's. Durable when this returns.
    fn change_name(&self, change: &NameChange, base: Digest) -> Result<Changed, StoreError>;

    /// Takes over histories that earlier builds kept as files. Names that are known already are left as they are, so that
    /// this may be done again after a crash.
    fn import_names(&self, histories: &[OldHistory]) -> Result<(), StoreError>;

    /// Every verdict of a trial on this base.
    fn trials(&self, base: Digest) -> Result<Vec<TrialRow>, StoreError>;

    /// Keeps a verdict, in the place of an earlier one of the same version, base and suite. Durable when this returns.
    fn keep_trial(&self, row: &TrialRow) -> Result<(), StoreError>;
}

/// When a transaction has to be on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durable {
    /// Before the call returns.
    Now,
    /// When the system writes it: the end of this process loses nothing, the end of the system what was not yet written.
    Later,
}

/// One change of the record.
#[derive(Clone, Debug)]
pub enum Write {
    /// The choices that ended now; usage and timing replace those of earlier choices of the same request.
    Choices(Box<Completion>),
    /// Replaces the metadata of a listable completion.
    Metadata { id: String, metadata: Map<String, Value> },
    /// Takes content, user, metadata and listability; the fact stays, with the time of erasure.
    Erase { id: String, at_ms: i64 },
    /// Retention leaves these completions alone as long as somebody holds them; missing, and nothing is held, if one of
    /// them is not there.
    Hold { ids: Vec<String>, holder: String },
    /// The holder needs none of its completions any more.
    Release { holder: String },
    /// Somebody has looked; once more, where the same was done a moment ago.
    Access(Access),
    /// All of these, or none where one has the id of another that says something else.
    Feedback(Vec<Feedback>),
    /// What a follower found in a stretch of the record, and where it stands now.
    FollowUp(Box<Followup>),
    /// What a person made of a flag; `None` takes the verdict back.
    Resolve { flag: u64, resolved: Option<Resolved> },
    /// This feedback counts no more. What is retracted already stays as it is.
    Retract { id: String, at_ms: i64 },
}

/// What became of a transaction's writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    /// One for each write.
    pub outcomes: Vec<Outcome>,
    /// The last choice that is durable.
    pub last: Cursor,
}

/// What became of one write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Applied,
    /// No such completion, or it is not listable (any more); no such row; the follower stands elsewhere.
    Missing,
    /// A choice of this index is on record already; the first row stands.
    Duplicate,
    /// Of feedback.
    Accepted(Accepted),
    /// Of feedback: the one at this place has the id of another that says something else; none was taken.
    Conflict {
        at: usize,
    },
}

/// What may connect a request with answers on record; the first that does counts.
#[derive(Clone, Copy, Debug, Default)]
pub struct EarlierTurn<'a> {
    pub conversation: Option<&'a str>,
    /// The longest beginning first.
    pub threads: &'a [Thread],
    /// Only answers that were placed by their user.
    pub user: Option<&'a str>,
}

/// What connected them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Matched {
    Conversation,
    Thread,
    User,
}

/// A place in the record: how many choices had become durable. Later choices have larger cursors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cursor(pub u64);

/// One choice as a follower sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct Followed {
    pub cursor: Cursor,
    /// With this one choice only.
    pub completion: Completion,
}

/// Which listable completions are wanted.
#[derive(Clone, Debug)]
pub struct ListQuery {
    pub model: Option<String>,
    /// Only completions of this key; `None` is all.
    pub key: Option<String>,
    /// Names with the string that each must have.
    pub metadata: Vec<(String, String)>,
    /// The id of the completion before the page.
    pub after: Option<String>,
    pub limit: usize,
    pub order: Order,
}

/// By time of admission.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    OldestFirst,
    NewestFirst,
}

/// A part of a list.
#[derive(Clone, Debug, PartialEq)]
pub struct Page {
    pub completions: Vec<Completion>,
    /// Whether there are others behind it.
    pub more: bool,
}

/// Why the database could not be opened, written or read.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("{path}: {reason}")]
    Open { path: PathBuf, reason: String },
    #[error("{path} was written by a newer build: its schema is {found}, this build knows up to {known}")]
    Newer { path: PathBuf, found: i64, known: i64 },
    #[error("{path} is the database of another program")]
    Foreign { path: PathBuf },
    #[error("{0}")]
    Sql(#[from] rusqlite::Error),
    #[error("the row of '{id}' cannot be read: {reason}")]
    Corrupt { id: String, reason: String },
    #[error("there is no '{0}' to list after")]
    UnknownCursor(String),
}

impl StoreError {
    /// Whether it may be the fault of what was to be written rather than the store's: then another write may succeed.
    pub fn is_about_the_write(&self) -> bool {
        use rusqlite::ErrorCode::{ConstraintViolation, ParameterOutOfRange, TooBig, TypeMismatch};
        match self {
            Self::Sql(rusqlite::Error::SqliteFailure(failure, _)) => {
                matches!(failure.code, ConstraintViolation | ParameterOutOfRange | TooBig | TypeMismatch)
            }
            Self::Sql(error) => matches!(error, rusqlite::Error::ToSqlConversionFailure(_)),
            Self::Open { .. } | Self::Newer { .. } | Self::Foreign { .. } => false,
            Self::Corrupt { .. } | Self::UnknownCursor(_) => false,
        }
    }
}
