//! Room for a request's rows, and word of each row.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Instant,
};

use serde_json::Map;
use tokio::{
    sync::{OwnedSemaphorePermit, oneshot},
    time::Sleep,
};

use super::{Journal, JournalError, erase::without_person};
use crate::{
    config::{Durability, OnFault},
    store::{Completion, Outcome, Write},
};

/// Room for the rows of one request. Dropping it gives back what was not used.
pub struct Slot {
    pub(super) journal: Journal,
    /// `None` where the record was full of what it could not write, and the policy is to serve all the same.
    pub(super) room: Option<OwnedSemaphorePermit>,
    pub(super) since: Instant,
    /// A row of this request is on its way: what was asked goes with the first.
    pub(super) begun: bool,
}

impl Slot {
    /// Records the choices of `fact`, which ended now, under the policy of the fact or the server's if that is stricter.
    /// Accepted at once, whatever the disk does; the receipt tells when its client may hear of the finish. Dropping the
    /// receipt changes nothing.
    ///
    /// A fact with more choices than the slot has room left for is refused through its receipt.
    pub fn record(&mut self, mut fact: Completion) -> Receipt {
        let inner = &self.journal.0;
        let choices = fact.choices.len().max(1);
        let room = match &mut self.room {
            Some(room) => match room.split(choices) {
                Some(room) => room,
                None => {
                    inner.metrics.record_failures.inc_by(choices as u64);
                    let reason = format!("{choices} more choices than were reserved");
                    return Receipt(State::Told(Some(Err(JournalError::Write { reason }))));
                }
            },
            // The store may have come back meanwhile.
            None => match self.journal.room(choices) {
                Some(room) => room,
                None => {
                    inner.metrics.record_lost.inc_by(choices as u64);
                    return Receipt(State::Told(Some(Ok(()))));
                }
            },
        };
        if std::mem::replace(&mut self.begun, true) {
            fact.content = None;
            fact.metadata = Map::new();
        }
        if inner.gone.includes(&fact) {
            fact = without_person(fact);
        }
        let write = Write::Choices(Box::new(inner.redactor.admit(fact, inner.policy)));
        match (inner.durability, inner.on_fault) {
            (Durability::Strict, OnFault::Refuse) => Receipt(State::Waits(self.journal.send(write, self.since, room))),
            (Durability::Strict, OnFault::Serve) => {
                let patience = Box::pin(tokio::time::sleep(inner.stall));
                Receipt(State::Patient(self.journal.send(write, self.since, room), patience))
            }
            (Durability::Group(_) | Durability::BestEffort, _) => {
                self.journal.send_unawaited(write, self.since, room);
                Receipt(State::Told(Some(Ok(()))))
            }
        }
    }
}

/// What becomes of a write, from the writer.
pub(super) type Word = oneshot::Receiver<Result<Outcome, JournalError>>;

/// Resolves when the client may hear of the finish: under `strict` when the row is on disk, or with the reason why it is
/// not.
#[must_use = "a row is durable only when its receipt says so"]
pub struct Receipt(State);

enum State {
    Told(Option<Result<(), JournalError>>),
    Waits(Word),
    /// The policy is to serve: no fault of the store keeps the client from its finish, and for no longer than this.
    Patient(Word, Pin<Box<Sleep>>),
}

impl Future for Receipt {
    type Output = Result<(), JournalError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            State::Told(told) => Poll::Ready(told.take().unwrap_or_else(|| Err(super::stopped()))),
            State::Waits(word) => Pin::new(word).poll(context).map(|word| read(word)?),
            State::Patient(word, patience) => match Pin::new(word).poll(context) {
                Poll::Ready(word) => Poll::Ready(read(word).unwrap_or(Ok(()))),
                Poll::Pending => patience.as_mut().poll(context).map(Ok),
            },
        }
    }
}

/// What the writer says of a row; outside, that it could not be written.
fn read(
    word: Result<Result<Outcome, JournalError>, oneshot::error::RecvError>,
) -> Result<Result<(), JournalError>, JournalError> {
    let twice = || JournalError::Write { reason: "this choice is on record already".to_owned() };
    let nothing = || JournalError::Write { reason: "there was nothing to change".to_owned() };
    Ok(match word.map_err(|_| super::stopped())?? {
        Outcome::Applied => Ok(()),
        Outcome::Duplicate => Err(twice()),
        Outcome::Missing | Outcome::Accepted(_) | Outcome::Conflict { .. } => Err(nothing()),
    })
}
