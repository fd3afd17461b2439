//! A store that fails or waits when a test says so.

use std::sync::{Condvar, Mutex};

use tunegate::{
    store::{
        Access, AccessQuery, AnswerFact, Changed, Committed, Completion, Cursor, Durable, EarlierTurn, Erased,
        FeedbackPage, FeedbackQuery, FlagMark, FlagPage, FlagQuery, Followed, Found, KeptFeedback, KeptFlag, KeptRule,
        ListQuery, Matched, Measure, NameChange, NameRow, OldHistory, Page, ReferenceAnswer, Retained, Retention, Said,
        Search, Served, SqliteStore, Step, Store, StoreError, TrialRow, Write,
    },
    terms::{Digest, Placement},
};

/// What happens to writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mood {
    Well,
    /// Every write fails, as on a full disk.
    Full,
    /// Every write waits until the mood changes.
    Stuck,
}

pub struct Faulty {
    store: SqliteStore,
    mood: Mutex<Mood>,
    changed: Condvar,
    /// How each commit was asked to be.
    asked: Mutex<Vec<Durable>>,
}

impl Faulty {
    pub fn new(store: SqliteStore) -> Self {
        Self { store, mood: Mutex::new(Mood::Well), changed: Condvar::new(), asked: Mutex::default() }
    }

    pub fn set(&self, mood: Mood) {
        *self.mood.lock().unwrap() = mood;
        self.changed.notify_all();
    }

    /// How the commits since the last call were asked to be.
    pub fn asked(&self) -> Vec<Durable> {
        std::mem::take(&mut *self.asked.lock().unwrap())
    }

    fn gate(&self) -> Result<(), StoreError> {
        let mood = self.mood.lock().unwrap();
        match *self.changed.wait_while(mood, |mood| *mood == Mood::Stuck).unwrap() {
            Mood::Well | Mood::Stuck => Ok(()),
            Mood::Full => Err(StoreError::Open { path: "disk".into(), reason: "full".to_owned() }),
        }
    }
}

impl Store for Faulty {
    fn commit(&self, writes: &[&Write], durable: Durable) -> Result<Committed, StoreError> {
        self.gate()?;
        self.asked.lock().unwrap().push(durable);
        self.store.commit(writes, durable)
    }

    fn probe(&self) -> Result<(), StoreError> {
        self.gate()?;
        self.store.probe()
    }

    fn completion(&self, id: &str) -> Result<Option<Completion>, StoreError> {
        self.store.completion(id)
    }

    fn list(&self, query: &ListQuery) -> Result<Page, StoreError> {
        self.store.list(query)
    }

    fn search(&self, search: &Search) -> Result<Found, StoreError> {
        self.store.search(search)
    }

    fn follow(&self, after: Cursor, limit: usize) -> Result<Vec<Followed>, StoreError> {
        self.store.follow(after, limit)
    }

    fn placement(&self, of: &EarlierTurn<'_>) -> Result<Option<(Matched, Placement)>, StoreError> {
        self.store.placement(of)
    }

    fn retain(&self, retention: &Retention) -> Result<Retained, StoreError> {
        self.gate()?;
        self.store.retain(retention)
    }

    fn erase_user(&self, names: &[String], at_ms: i64, limit: usize) -> Result<Erased, StoreError> {
        self.gate()?;
        self.store.erase_user(names, at_ms, limit)
    }

    fn accesses(&self, query: &AccessQuery) -> Result<Vec<Access>, StoreError> {
        self.store.accesses(query)
    }

    fn feedback(&self, query: &FeedbackQuery) -> Result<FeedbackPage, StoreError> {
        self.store.feedback(query)
    }

    fn feedback_by_id(&self, ids: &[String]) -> Result<Vec<KeptFeedback>, StoreError> {
        self.store.feedback_by_id(ids)
    }

    fn feedback_on(&self, completions: &[&str]) -> Result<Vec<KeptFeedback>, StoreError> {
        self.store.feedback_on(completions)
    }

    fn follower(&self, name: &str) -> Result<Option<Cursor>, StoreError> {
        self.store.follower(name)
    }

    fn flags(&self, query: &FlagQuery) -> Result<FlagPage, StoreError> {
        self.store.flags(query)
    }

    fn flag(&self, id: u64) -> Result<Option<KeptFlag>, StoreError> {
        self.store.flag(id)
    }

    fn flag_rules(&self) -> Result<Vec<KeptRule>, StoreError> {
        self.store.flag_rules()
    }

    fn reference(&self, like: &Completion, limit: usize) -> Result<Vec<ReferenceAnswer>, StoreError> {
        self.store.reference(like, limit)
    }

    fn asked_near(&self, like: &Completion, around_ms: i64, limit: usize) -> Result<Vec<Followed>, StoreError> {
        self.store.asked_near(like, around_ms, limit)
    }

    fn served(&self, adapter: Option<&str>) -> Result<Vec<Served>, StoreError> {
        self.store.served(adapter)
    }

    fn measures(&self, served: u64, since_ms: i64, limit: usize) -> Result<Vec<Measure>, StoreError> {
        self.store.measures(served, since_ms, limit)
    }

    fn marks(&self, served: u64, from: Cursor) -> Result<Vec<FlagMark>, StoreError> {
        self.store.marks(served, from)
    }

    fn said(&self, served: u64, from: u64) -> Result<Vec<Said>, StoreError> {
        self.store.said(served, from)
    }

    fn answer_facts(&self, served: u64, from: Cursor) -> Result<Vec<AnswerFact>, StoreError> {
        self.store.answer_facts(served, from)
    }

    fn names(&self) -> Result<Vec<(NameRow, Vec<Step>)>, StoreError> {
        self.store.names()
    }

    fn change_name(&self, change: &NameChange, base: Digest) -> Result<Changed, StoreError> {
        self.store.change_name(change, base)
    }

    fn import_names(&self, histories: &[OldHistory]) -> Result<(), StoreError> {
        self.store.import_names(histories)
    }

    fn trials(&self, base: Digest) -> Result<Vec<TrialRow>, StoreError> {
        self.store.trials(base)
    }

    fn keep_trial(&self, row: &TrialRow) -> Result<(), StoreError> {
        self.store.keep_trial(row)
    }
}
