//! Which conversation a request belongs to and what its answers may be used for, decided at the door: train, held-out or
//! audit, by a keyed hash of the conversation's id, else of the user, else of the first message. What an earlier turn was
//! placed as holds for the next, whatever the secret and the shares are by then.

use std::sync::Arc;

use sha2::{Digest as _, Sha256};

use super::{Journal, JournalError, secret::Key};
use crate::{
    config::SplitConfig,
    store::{EarlierTurn, Matched, Thread},
    terms::{Assignment, ConversationBy, Message, Placement, Role, Split, SplitBy},
};

/// How many earlier answers of a conversation are looked for, from the latest on.
const EARLIER: usize = 4;

/// What a request says of where it belongs.
#[derive(Clone, Debug, Default)]
pub struct Asked {
    /// The completion's id, under which a new conversation begins.
    pub id: String,
    /// The client's id of the conversation.
    pub conversation: Option<String>,
    pub user: Option<String>,
    /// The conversation after each answer in the request's messages, from the latest on.
    pub threads: Vec<Thread>,
    /// The first message of the user, or the prompt.
    pub first: String,
}

/// A conversation turn by turn, as a keyed hash. Instructions of the system are no turn: they may change on the way.
#[derive(Clone, Copy)]
pub struct Talk([u8; 32]);

impl Talk {
    /// What was said next. Blanks around it make no difference: clients cut them off.
    #[must_use]
    pub fn then(self, role: Role, content: &str) -> Self {
        if matches!(role, Role::System | Role::Developer) {
            return self;
        }
        let content = content.trim();
        let turn = Sha256::new().chain_update(self.0).chain_update(role.as_str()).chain_update([0]);
        Self(turn.chain_update(content).finalize().into())
    }

    /// The conversation so far.
    pub fn thread(self) -> Thread {
        let mut name = [0; 16];
        name.copy_from_slice(&self.0[..16]);
        Thread(name)
    }
}

/// Decides splits.
#[derive(Clone)]
pub(super) struct Splitter {
    key: Key,
    held_out: f64,
    audit: f64,
}

impl Splitter {
    pub fn new(own: &Key, config: &SplitConfig) -> Self {
        let key = config.secret.as_ref().map_or_else(|| own.clone(), |secret| Key::said(&secret.0));
        Self { key, held_out: config.held_out, audit: config.audit }
    }

    fn assign(&self, by: SplitBy, value: &str) -> Assignment {
        let hash = self.key.hash(by.as_str(), value.as_bytes());
        let mut first = [0; 8];
        first.copy_from_slice(&hash[..8]);
        // In [0, 1), in steps of 2^-53.
        let place = (u64::from_le_bytes(first) >> 11) as f64 / (1u64 << 53) as f64;
        let split = match place {
            _ if place < self.audit => Split::Audit,
            _ if place < self.audit + self.held_out => Split::HeldOut,
            _ => Split::Train,
        };
        Assignment { split, by, audit_share: self.audit }
    }

    fn fresh(&self, asked: &Asked) -> Assignment {
        match (&asked.conversation, &asked.user) {
            (Some(conversation), _) => self.assign(SplitBy::Conversation, conversation),
            (None, Some(user)) => self.assign(SplitBy::User, user),
            (None, None) => self.assign(SplitBy::Message, &asked.first),
        }
    }
}

impl Journal {
    /// A conversation of this key's before its first turn.
    pub fn talk(&self, key: Option<&str>) -> Talk {
        Talk(self.0.secret.hash("talk", key.unwrap_or_default().as_bytes()))
    }

    /// The conversation after each answer in `messages`, from the latest on, and after all of them.
    pub fn turns(&self, key: Option<&str>, messages: &[Message]) -> (Vec<Thread>, Talk) {
        let mut talk = self.talk(key);
        let mut threads = Vec::new();
        for message in messages {
            talk = talk.then(message.role, &message.content);
            if message.role == Role::Assistant {
                threads.push(talk.thread());
            }
        }
        threads.reverse();
        threads.truncate(EARLIER);
        (threads, talk)
    }

    /// Where a request belongs: as an earlier turn was placed, else by its own words. A record that cannot be read knows
    /// of no earlier turns.
    pub async fn place(&self, asked: Asked) -> Placement {
        let asked = Arc::new(asked);
        let known = asked.conversation.is_some() || asked.user.is_some() || !asked.threads.is_empty();
        let earlier = if known { self.earlier(Arc::clone(&asked)).await } else { Ok(None) };
        let earlier = earlier.unwrap_or_else(|error| {
            tracing::warn!(%error, "a request was placed without knowing of earlier turns");
            None
        });
        let (conversation, conversation_by) = match (&asked.conversation, &earlier) {
            (Some(id), _) => (id.clone(), ConversationBy::Given),
            (None, Some((Matched::Thread, earlier))) => (earlier.conversation.clone(), ConversationBy::Found),
            (None, Some((Matched::User | Matched::Conversation, _)) | None) => (asked.id.clone(), ConversationBy::Own),
        };
        let assignment = earlier.map_or_else(|| self.0.splitter.fresh(&asked), |(_, earlier)| earlier.assignment);
        Placement { conversation, conversation_by, assignment }
    }

    async fn earlier(&self, asked: Arc<Asked>) -> Result<Option<(Matched, Placement)>, JournalError> {
        self.read(move |store| {
            store.placement(&EarlierTurn {
                conversation: asked.conversation.as_deref(),
                threads: &asked.threads,
                user: asked.user.as_deref(),
            })
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn splitter(held_out: f64, audit: f64) -> Splitter {
        Splitter { key: Key::said("secret"), held_out, audit }
    }

    fn asked(conversation: Option<&str>, user: Option<&str>, first: &str) -> Asked {
        Asked {
            conversation: conversation.map(str::to_owned),
            user: user.map(str::to_owned),
            first: first.to_owned(),
            ..Asked::default()
        }
    }

    #[test]
    fn shares_are_what_they_say_and_the_same_name_is_on_the_same_side() {
        let splitter = splitter(0.2, 0.05);
        let mut counts = [0; 3];
        for n in 0..20_000 {
            let user = format!("user-{n}");
            let assignment = splitter.fresh(&asked(None, Some(&user), "hello"));
            assert_eq!(assignment, splitter.fresh(&asked(None, Some(&user), "something else")));
            assert_eq!((assignment.by, assignment.audit_share), (SplitBy::User, 0.05));
            counts[assignment.split as usize] += 1;
        }
        // Five standard deviations of a share of 20,000.
        for (count, share) in counts.into_iter().zip([0.75, 0.2, 0.05]) {
            let deviation = f64::sqrt(20_000.0 * share * (1.0 - share));
            assert!((f64::from(count) - 20_000.0 * share).abs() < 5.0 * deviation, "{counts:?}");
        }
    }

    #[test]
    fn the_conversation_decides_before_the_user_and_the_user_before_the_words() {
        let splitter = splitter(0.5, 0.0);
        let by = |conversation, user| splitter.fresh(&asked(conversation, user, "hello")).by;
        assert_eq!(by(Some("c"), Some("u")), SplitBy::Conversation);
        assert_eq!(by(None, Some("u")), SplitBy::User);
        assert_eq!(by(None, None), SplitBy::Message);
    }

    #[test]
    fn shares_of_nothing_and_everything_hold() {
        for n in 0..1000 {
            let asked = asked(None, None, &n.to_string());
            assert_eq!(splitter(0.0, 0.0).fresh(&asked).split, Split::Train);
            assert_eq!(splitter(0.0, 1.0).fresh(&asked).split, Split::Audit);
            assert_eq!(splitter(1.0, 0.0).fresh(&asked).split, Split::HeldOut);
        }
    }

    #[test]
    fn a_talk_is_known_by_its_turns_whatever_the_blanks_and_the_instructions() {
        let begin = Talk([7; 32]);
        let one = begin.then(Role::System, "be brief").then(Role::User, "rain? ").then(Role::Assistant, "\nYes.");
        let other = begin.then(Role::User, "rain?").then(Role::Assistant, "Yes.").then(Role::System, "be long");
        assert_eq!(one.thread(), other.thread());
        assert_ne!(one.thread(), begin.then(Role::User, "rain?").then(Role::User, "Yes.").thread());
        assert_ne!(one.thread(), begin.then(Role::User, "rain?Yes.").thread());
    }
}
