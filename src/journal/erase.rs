//! What a user wants gone goes, from everything that this server keeps; what is beyond its reach is named.

use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;
use serde_json::json;

use super::{Journal, JournalError};
use crate::{
    store::{Access, AccessQuery, Completion, Deed, Erased, Write},
    terms::{Digest, Moment, RecordPolicy},
};

/// Answers in one transaction.
const STEP: usize = 100;
/// Accesses that a report names.
const NAMED: usize = 1000;
/// No answer is under way for longer than this after its admission.
const LONGEST_MS: i64 = 24 * 3600 * 1000;

/// What an erasure has reached, and what it could not.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Erasure {
    pub completions: u64,
    /// Who held some of them: what was made of them has to be made again.
    pub held_by: Vec<Holder>,
    /// Exports and backups that were made since the user's first answer and may hold it.
    pub beyond_reach: Vec<Access>,
}

/// Whoever held answers against retention, and how many.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Holder {
    pub holder: String,
    pub completions: u64,
}

/// Users who were erased while this process runs: what they asked before ends without them.
#[derive(Default)]
pub(super) struct Gone(Mutex<Vec<(String, i64)>>);

impl Gone {
    fn add(&self, names: &[String], at_ms: i64) {
        let mut gone = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        gone.retain(|(_, at)| *at > at_ms - LONGEST_MS);
        gone.extend(names.iter().map(|name| (name.clone(), at_ms)));
    }

    /// Whether the answer was asked for by somebody who is gone since.
    pub fn includes(&self, completion: &Completion) -> bool {
        let gone = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let of = |name: &Option<String>| {
            name.as_ref().is_some_and(|name| gone.iter().any(|(g, at)| g == name && completion.created_ms <= *at))
        };
        !gone.is_empty() && (of(&completion.user) || of(&completion.safety_identifier))
    }
}

impl Journal {
    /// Takes content, user, metadata and listability of every answer of `user` (also as a safety identifier) and of the
    /// answers without either in the same conversations; the facts stay. Answers under way end without them. Durable when
    /// this returns, and itself on record.
    ///
    /// # Errors
    /// [`JournalError`]; then some may be erased already, and the erasure should be asked for again.
    pub async fn erase_user(&self, user: &str, who: &str) -> Result<Erasure, JournalError> {
        let at_ms = Moment::unix_ms();
        let names = self.redactor().names(user);
        self.0.gone.add(&names, at_ms);
        // Behind whatever is on its way already.
        let what = json!({"user": self.alias(user)});
        self.note(Access::once(at_ms, who, Deed::Erase, what)).await?;
        let names = Arc::new(names);
        let mut sum = Erased::default();
        loop {
            let names = Arc::clone(&names);
            let step = self.write_beside(move |store| store.erase_user(&names, at_ms, STEP)).await?;
            sum.completions += step.completions;
            sum.first_ms = [sum.first_ms, step.first_ms].into_iter().flatten().min();
            for (holder, count) in step.held {
                match sum.held.iter_mut().find(|(known, _)| *known == holder) {
                    Some((_, known)) => *known += count,
                    None => sum.held.push((holder, count)),
                }
            }
            if !step.more {
                break;
            }
        }
        let beyond_reach = match sum.first_ms {
            Some(since_ms) => {
                let query = AccessQuery { deeds: vec![Deed::Export, Deed::Backup], since_ms, limit: NAMED };
                self.accesses(query).await?
            }
            None => Vec::new(),
        };
        let held_by = sum.held.into_iter().map(|(holder, completions)| Holder { holder, completions }).collect();
        Ok(Erasure { completions: sum.completions, held_by, beyond_reach })
    }

    /// A user's name as it stands in the record of accesses.
    pub fn alias(&self, user: &str) -> String {
        let hash = self.0.secret.hash("alias", user.as_bytes());
        Digest::from_bytes(hash).short()
    }

    /// Puts on record that somebody looks at recorded content. Durable when this returns.
    pub async fn note(&self, access: Access) -> Result<(), JournalError> {
        self.edit(Write::Access(access)).await.map(drop)
    }

    /// Who has looked, the latest first.
    pub async fn accesses(&self, query: AccessQuery) -> Result<Vec<Access>, JournalError> {
        self.read(move |store| store.accesses(&query)).await
    }

    /// Keeps completions from retention until the holder lets go; false, and nothing is held, if one is not there.
    pub async fn hold(&self, ids: Vec<String>, holder: &str) -> Result<bool, JournalError> {
        self.edit(Write::Hold { ids, holder: holder.to_owned() }).await
    }

    /// False if the holder held nothing.
    pub async fn release(&self, holder: &str) -> Result<bool, JournalError> {
        self.edit(Write::Release { holder: holder.to_owned() }).await
    }
}

/// The row of somebody who is gone.
pub(super) fn without_person(completion: Completion) -> Completion {
    Completion { policy: RecordPolicy::None, ..completion }
}
