//! Flags on their way into the record and out of it.

use std::sync::Arc;

use super::{
    Completion, Cursor, FlagPage, FlagQuery, Followed, Followup, Journal, JournalError, KeptFlag, KeptRule, Place,
    ReferenceAnswer, Resolved,
};
use crate::store::Write;

impl Journal {
    /// Where a follower stands, if it ever stood.
    pub async fn follower(&self, name: &'static str) -> Result<Option<Cursor>, JournalError> {
        self.read(move |store| store.follower(name)).await
    }

    /// Flags and the follower's new place, in one transaction. False if it stands elsewhere than it thinks; nothing was done then.
    pub async fn follow_up(&self, followup: Followup) -> Result<bool, JournalError> {
        self.edit(Write::FollowUp(Box::new(followup))).await
    }

    /// One page of flags.
    pub async fn flags(&self, query: FlagQuery) -> Result<FlagPage, JournalError> {
        self.read(move |store| store.flags(&query)).await
    }

    /// One flag.
    pub async fn flag(&self, id: u64) -> Result<Option<KeptFlag>, JournalError> {
        self.read(move |store| store.flag(id)).await
    }

    /// Sets a verdict, or takes it back; false if there is no such flag.
    pub async fn resolve(&self, flag: u64, mut resolved: Option<Resolved>) -> Result<bool, JournalError> {
        if let Some(note) = resolved.as_mut().and_then(|resolved| resolved.note.as_mut()) {
            self.0.redactor.string(Place::Comment, note);
        }
        self.edit(Write::Resolve { flag, resolved }).await
    }

    /// Every version of every rule that ever looked at an answer.
    pub async fn flag_rules(&self) -> Result<Vec<KeptRule>, JournalError> {
        self.read(|store| store.flag_rules()).await
    }

    /// The first answers with scores of the version that gave this one.
    pub async fn reference(&self, like: &Arc<Completion>, limit: usize) -> Result<Vec<ReferenceAnswer>, JournalError> {
        let like = Arc::clone(like);
        self.read(move |store| store.reference(&like, limit)).await
    }

    /// What the same user asked within `around_ms` of this request, up to `limit` before it and after it.
    pub async fn asked_near(
        &self,
        like: &Arc<Completion>,
        around_ms: i64,
        limit: usize,
    ) -> Result<Vec<Followed>, JournalError> {
        let like = Arc::clone(like);
        self.read(move |store| store.asked_near(&like, around_ms, limit)).await
    }
}
