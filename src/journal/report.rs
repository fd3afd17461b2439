//! The rows that reports by version are made of.

use super::{AnswerFact, Cursor, FlagMark, Journal, JournalError, Measure, Said, Served};

impl Journal {
    /// Every version of an adapter (`None`: the base alone) that has answered, the one that answered last first.
    pub async fn served(&self, adapter: Option<String>) -> Result<Vec<Served>, JournalError> {
        self.read(move |store| store.served(adapter.as_deref())).await
    }

    /// The last `limit` choices of a version by its number, admitted at `since_ms` or later, in the order of the record.
    pub async fn measures(&self, served: u64, since_ms: i64, limit: usize) -> Result<Vec<Measure>, JournalError> {
        self.read(move |store| store.measures(served, since_ms, limit)).await
    }

    /// The flags of a version's choices from `from` on.
    pub async fn marks(&self, served: u64, from: Cursor) -> Result<Vec<FlagMark>, JournalError> {
        self.read(move |store| store.marks(served, from)).await
    }

    /// What was said of a version's completions from the number `from` on, and counts.
    pub async fn said(&self, served: u64, from: u64) -> Result<Vec<Said>, JournalError> {
        self.read(move |store| store.said(served, from)).await
    }

    /// What rules ask of a version's choices from `from` on.
    pub async fn answer_facts(&self, served: u64, from: Cursor) -> Result<Vec<AnswerFact>, JournalError> {
        self.read(move |store| store.answer_facts(served, from)).await
    }
}
