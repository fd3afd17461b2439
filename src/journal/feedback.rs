//! Feedback on its way into the record and out of it.

use super::{Accepted, Feedback, FeedbackPage, FeedbackQuery, Journal, JournalError, KeptFeedback, TargetKind, redact};
use crate::{
    store::{Outcome, Write},
    terms::{Moment, RecordPolicy},
};

/// Why feedback is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FeedbackError {
    #[error("there is other feedback under the id of this one")]
    Conflict { at: usize },
    #[error("{field} would not be kept: only {} is recorded here (policy {})", kept(*.policy), .policy.as_str())]
    NotKept { at: usize, field: &'static str, policy: RecordPolicy },
    #[error(transparent)]
    Journal(#[from] JournalError),
}

/// What a policy keeps of feedback, in words.
const fn kept(policy: RecordPolicy) -> &'static str {
    match policy {
        RecordPolicy::Full => "everything",
        RecordPolicy::Metadata => "what needs no words",
        RecordPolicy::None => "the bare value",
    }
}

impl Journal {
    /// Takes all of `given`, or none. `limit` is what the key that brings it lets be recorded. Durable when this returns.
    ///
    /// # Errors
    /// [`FeedbackError`]; then none was taken.
    pub async fn give(&self, mut given: Vec<Feedback>, limit: Option<RecordPolicy>) -> Result<Accepted, FeedbackError> {
        let policy = limit.map_or(self.0.policy, |limit| limit.min(self.0.policy));
        for (at, feedback) in given.iter().enumerate() {
            if let Some(field) = redact::refused(feedback, policy) {
                return Err(FeedbackError::NotKept { at, field, policy });
            }
        }
        given.iter_mut().for_each(|feedback| self.0.redactor.feedback(feedback));
        match self.edited(Write::Feedback(given)).await? {
            Outcome::Accepted(accepted) => Ok(accepted),
            Outcome::Conflict { at } => Err(FeedbackError::Conflict { at }),
            Outcome::Applied | Outcome::Missing | Outcome::Duplicate => {
                let reason = "the store took feedback for something else".to_owned();
                Err(JournalError::Write { reason }.into())
            }
        }
    }

    /// Says that feedback counts no more; false if there is none of this id.
    pub async fn retract(&self, id: &str) -> Result<bool, JournalError> {
        self.edit(Write::Retract { id: id.to_owned(), at_ms: Moment::unix_ms() }).await
    }

    /// One page of feedback.
    pub async fn feedback(&self, mut query: FeedbackQuery) -> Result<FeedbackPage, JournalError> {
        if let Some((TargetKind::Conversation | TargetKind::User, name)) = &mut query.target {
            *name = self.0.redactor.identity(name).into_owned();
        }
        self.read(move |store| store.feedback(&query)).await
    }

    /// Feedback by its ids, in their order; ids that are not known are left out.
    pub async fn feedback_by_id(&self, ids: Vec<String>) -> Result<Vec<KeptFeedback>, JournalError> {
        self.read(move |store| store.feedback_by_id(&ids)).await
    }

    /// What was said of these completions, the earliest first.
    pub async fn feedback_on(&self, completions: Vec<String>) -> Result<Vec<KeptFeedback>, JournalError> {
        self.read(move |store| {
            let ids: Vec<&str> = completions.iter().map(String::as_str).collect();
            store.feedback_on(&ids)
        })
        .await
    }
}
