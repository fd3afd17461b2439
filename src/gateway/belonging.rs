//! Where a request belongs: its conversation, its system prompt, and what its next turn will be recognised by.

use super::{Ask, Gateway, Prompt};
use crate::{
    journal::{Asked, Talk, Thread},
    terms::{Digest, Hasher, Message, Placement, Role},
};

/// What is known of a request's place before it runs.
pub(super) struct Belonging {
    pub placement: Placement,
    /// Of the system and developer messages.
    pub system: Option<Digest>,
    turns: Option<Turns>,
}

/// A chat up to the answer.
struct Turns {
    talk: Talk,
    /// The beginning of the answer, where the request gave it.
    begun: String,
}

impl Belonging {
    pub async fn of(gateway: &Gateway, ask: &Ask) -> Self {
        let journal = gateway.journal();
        let mut asked = Asked {
            id: ask.id.clone(),
            conversation: ask.conversation.clone(),
            user: ask.user.clone(),
            ..Asked::default()
        };
        let (mut system, mut turns) = (None, None);
        match ask.prompts.first() {
            Some(Prompt::Chat { messages, continue_final_message, .. }) => {
                let first = messages.iter().find(|message| message.role == Role::User).or(messages.first());
                asked.first = first.map(|message| message.content.clone()).unwrap_or_default();
                system = system_digest(messages);
                let (before, begun) = match messages.split_last() {
                    Some((last, before)) if *continue_final_message && last.role == Role::Assistant => {
                        (before, last.content.clone())
                    }
                    _ => (messages.as_slice(), String::new()),
                };
                let (threads, talk) = journal.turns(ask.caller.key.as_deref(), before);
                asked.threads = threads;
                turns = Some(Turns { talk, begun });
            }
            Some(Prompt::Text(text)) => asked.first.clone_from(text),
            Some(Prompt::Tokens(tokens)) => asked.first = format!("{tokens:?}"),
            None => {}
        }
        Self { placement: journal.place(asked).await, system, turns }
    }

    /// The conversation once this is answered with `text`; `None` if it is no chat.
    pub fn thread_after(&self, text: &str) -> Option<Thread> {
        let Turns { talk, begun } = self.turns.as_ref()?;
        Some(talk.then(Role::Assistant, &format!("{begun}{text}")).thread())
    }
}

fn system_digest(messages: &[Message]) -> Option<Digest> {
    let mut parts = messages.iter().filter(|message| matches!(message.role, Role::System | Role::Developer)).peekable();
    parts.peek()?;
    let digest = parts.fold(Hasher::new(), |hasher, part| hasher.part(part.role.as_str(), part.content.as_bytes()));
    Some(digest.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_system_says_makes_its_digest() {
        let message = |role, content: &str| Message { role, content: content.to_owned(), name: None };
        let (system, user) = (message(Role::System, "be brief"), message(Role::User, "rain"));
        let digest = system_digest(&[system.clone(), user.clone()]);
        assert!(digest.is_some());
        assert_eq!(system_digest(&[user.clone(), system]), digest);
        assert_ne!(system_digest(&[message(Role::System, "be long"), user.clone()]), digest);
        assert_eq!(system_digest(&[user]), None);
    }
}
