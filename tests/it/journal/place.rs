//! Which conversation an answer belongs to and what it may be used for: decided at the door, and never again.

use std::path::Path;

use tunegate::{
    config::{RecordConfig, SplitConfig},
    journal::{Asked, ChoiceRecord, Completion},
    terms::{ConversationBy, Message, Placement, Role, Split, SplitBy},
};

use super::{Desk, choice, fact};

/// A record that puts everything on one side, keyed with a secret of its own.
fn desk(folder: &Path, split: Split, secret: &str) -> Desk {
    let share = |of| if split == of { 1.0 } else { 0.0 };
    let secret = Some(tunegate::config::Secret(secret.to_owned()));
    let split = SplitConfig { held_out: share(Split::HeldOut), audit: share(Split::Audit), secret };
    Desk::of(folder, RecordConfig { split, ..RecordConfig::default() })
}

fn asked(id: &str) -> Asked {
    Asked { id: id.to_owned(), first: "Will it rain?".to_owned(), ..Asked::default() }
}

/// Records an answer that was placed so.
async fn answered(desk: &Desk, id: &str, user: Option<&str>, placement: &Placement, choices: Vec<ChoiceRecord>) {
    let fact = Completion { user: user.map(str::to_owned), placement: Some(placement.clone()), choices, ..fact(id) };
    desk.record(fact).await;
}

fn said(role: Role, content: &str) -> Message {
    Message { role, content: content.to_owned(), name: None }
}

#[tokio::test]
async fn a_conversation_keeps_its_side_when_secret_and_shares_change() {
    let folder = tempfile::tempdir().unwrap();
    let named = || Asked { conversation: Some("talk-1".to_owned()), user: Some("ann".to_owned()), ..asked("c1") };
    let before = desk(folder.path(), Split::HeldOut, "the first secret");
    let placement = before.journal.place(named()).await;
    assert_eq!(placement.assignment.split, Split::HeldOut);
    assert_eq!(placement.assignment.by, SplitBy::Conversation);
    assert_eq!((placement.conversation.as_str(), placement.conversation_by), ("talk-1", ConversationBy::Given));
    answered(&before, "c1", Some("ann"), &placement, vec![choice(0)]).await;
    let of_user = before.journal.place(Asked { user: Some("bob".to_owned()), ..asked("c2") }).await;
    answered(&before, "c2", Some("bob"), &of_user, vec![choice(0)]).await;
    drop(before);

    let after = desk(folder.path(), Split::Train, "quite another one");
    assert_eq!(after.journal.place(named()).await, placement);
    let bob = after.journal.place(Asked { user: Some("bob".to_owned()), ..asked("c3") }).await;
    assert_eq!(bob.assignment, of_user.assignment);
    assert_eq!((bob.conversation.as_str(), bob.conversation_by), ("c3", ConversationBy::Own), "another conversation");
    let fresh = after.journal.place(Asked { user: Some("eve".to_owned()), ..asked("c4") }).await;
    assert_eq!(fresh.assignment.split, Split::Train);
    let ann = after.journal.place(Asked { user: Some("ann".to_owned()), ..asked("c5") }).await;
    assert_eq!(
        ann.assignment.split,
        Split::Train,
        "what a conversation was placed as says nothing of its user's others"
    );
    assert_eq!(after.journal.get("c1").await.unwrap().unwrap().placement, Some(placement));
}

#[tokio::test]
async fn the_next_turn_is_recognised_by_what_was_said() {
    let folder = tempfile::tempdir().unwrap();
    let before = desk(folder.path(), Split::Audit, "the first secret");
    let first = before.journal.place(asked("c1")).await;
    assert_eq!((first.assignment.split, first.assignment.audit_share), (Split::Audit, 1.0));
    let (none, talk) = before.journal.turns(Some("shop"), &[said(Role::User, "Will it rain?")]);
    assert_eq!(none, []);
    let answer = |index: u32, text: &str| {
        let thread = Some(talk.then(Role::Assistant, text).thread());
        ChoiceRecord { text: Some(text.to_owned()), thread, ..choice(index) }
    };
    answered(&before, "c1", None, &first, vec![answer(0, "Yes.\n"), answer(1, "No.")]).await;
    drop(before);

    let after = desk(folder.path(), Split::Train, "quite another one");
    let next = |key: Option<&str>, turns: &[Message]| {
        let (threads, _) = after.journal.turns(key, turns);
        after.journal.place(Asked { threads, ..asked("c2") })
    };
    let turns = |answer: &str| {
        [
            said(Role::System, "new"),
            said(Role::User, "Will it rain?"),
            said(Role::Assistant, answer),
            said(Role::User, "When?"),
        ]
    };
    for text in ["Yes.", "No."] {
        let found = next(Some("shop"), &turns(text)).await;
        assert_eq!((found.conversation.as_str(), found.conversation_by), ("c1", ConversationBy::Found), "{text}");
        assert_eq!(found.assignment, first.assignment, "{text}");
    }
    let longer = [turns("Yes.").as_slice(), &[said(Role::Assistant, "edited"), said(Role::User, "Sure?")]].concat();
    assert_eq!(next(Some("shop"), &longer).await.conversation, "c1", "an earlier turn is enough");
    for (key, text) in [(Some("shop"), "Perhaps."), (None, "Yes."), (Some("bank"), "Yes.")] {
        let other = next(key, &turns(text)).await;
        assert_eq!(
            (other.conversation_by, other.assignment.split),
            (ConversationBy::Own, Split::Train),
            "{key:?} {text}"
        );
    }
    after.journal.delete("c1").await.unwrap();
    assert_eq!(next(Some("shop"), &turns("Yes.")).await.conversation_by, ConversationBy::Own, "it is forgotten");
}

#[tokio::test]
async fn without_a_secret_of_the_settings_the_data_directory_has_its_own() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let sides = async |folder: &Path| {
        let split = SplitConfig { held_out: 0.5, audit: 0.0, secret: None };
        let desk = Desk::of(folder, RecordConfig { split, ..RecordConfig::default() });
        let mut sides = Vec::new();
        for n in 0..64 {
            let asked = Asked { first: n.to_string(), ..asked("c") };
            sides.push(desk.journal.place(asked).await.assignment.split);
        }
        sides
    };
    let first = sides(one.path()).await;
    assert_eq!(sides(one.path()).await, first, "also after a restart");
    assert_ne!(sides(two.path()).await, first);
}
