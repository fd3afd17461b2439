//! What leaves the record: content before facts, nothing that is held, and everything of a user who wants it gone.

use serde_json::json;
use tunegate::{
    config::{RecordConfig, RetentionConfig},
    journal::{Access, AccessQuery, Completion, Cursor, Deed, Holder},
    terms::{ConversationBy, Placement},
};

use super::{Desk, choice, fact, stored::is_on_disk};

const DAY_MS: i64 = 24 * 3600 * 1000;

fn days_ago(days: i64) -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    now.as_millis() as i64 - days * DAY_MS
}

fn aged(id: &str, days: i64) -> Completion {
    Completion { created_ms: days_ago(days), ..fact(id) }
}

fn keeping(retention: RetentionConfig) -> (tempfile::TempDir, RecordConfig) {
    let config = RecordConfig { retention, ..RecordConfig::default() };
    (tempfile::tempdir().unwrap(), config)
}

/// Whether the answer is on record, and whether its content is.
async fn standing(desk: &Desk, id: &str) -> Option<bool> {
    desk.journal.get(id).await.unwrap().map(|row| row.content.is_some())
}

#[tokio::test]
async fn content_goes_before_the_facts_and_nothing_that_is_held() {
    let (folder, config) = keeping(RetentionConfig { content_days: Some(30), facts_days: Some(90), max_bytes: None });
    let desk = Desk::at(folder.path());
    for (id, days) in [("ancient", 100), ("reviewed", 101), ("old", 40), ("dataset", 41), ("new", 1)] {
        desk.record(aged(id, days)).await;
    }
    let ids = |ids: &[&str]| ids.iter().map(|id| (*id).to_owned()).collect::<Vec<_>>();
    assert!(desk.journal.hold(ids(&["reviewed"]), "review 7").await.unwrap());
    assert!(desk.journal.hold(ids(&["dataset", "reviewed"]), "dataset 3").await.unwrap());
    assert!(!desk.journal.hold(ids(&["new", "nowhere"]), "dataset 4").await.unwrap());
    drop(desk);

    let desk = Desk::of(folder.path(), config);
    let taken = desk.journal.retain().await.unwrap();
    assert_eq!((taken.held, taken.more), (2, false));
    let now = async || {
        let mut all = Vec::new();
        for id in ["ancient", "reviewed", "old", "dataset", "new"] {
            all.push(standing(&desk, id).await);
        }
        all
    };
    assert_eq!(now().await, [None, Some(true), Some(false), Some(true), Some(true)]);
    let old = desk.journal.get("old").await.unwrap().unwrap();
    assert!(old.expired_ms.is_some() && old.erased_ms.is_none() && old.stored);
    assert_eq!((old.choices[0].text.clone(), old.choices[0].thread, old.options.stop.len()), (None, None, 0));
    assert_eq!((old.user, old.sketch), (fact("old").user, fact("old").sketch), "the facts are whole");
    let removed = |what: &str| desk.metrics.retention_removed.with_label_values(&[what]).get();
    assert!(removed("facts") >= 1 && removed("content") >= 1);
    assert_eq!(desk.metrics.retention_held.get(), 2);

    assert!(desk.journal.release("dataset 3").await.unwrap());
    assert!(!desk.journal.release("dataset 3").await.unwrap());
    desk.journal.retain().await.unwrap();
    assert_eq!(now().await, [None, Some(true), Some(false), Some(false), Some(true)], "reviewed is still held");
}

#[tokio::test]
async fn a_choice_that_ends_after_its_content_went_leaves_none() {
    let (folder, config) = keeping(RetentionConfig { content_days: Some(30), ..RetentionConfig::default() });
    let desk = Desk::of(folder.path(), config);
    let mut slot = desk.journal.reserve(2).unwrap();
    slot.record(aged("slow", 31)).await.unwrap();
    desk.journal.retain().await.unwrap();
    slot.record(Completion { choices: vec![choice(1)], ..aged("slow", 31) }).await.unwrap();
    let row = desk.journal.get("slow").await.unwrap().unwrap();
    assert!(row.choices.len() == 2 && row.choices.iter().all(|choice| choice.text.is_none()));
}

#[tokio::test]
async fn a_record_that_is_too_large_loses_its_oldest_content() {
    let (folder, config) = keeping(RetentionConfig { max_bytes: Some(2 << 20), ..RetentionConfig::default() });
    let desk = Desk::of(folder.path(), config);
    for n in 0..200 {
        let mut row = aged(&format!("c{n:03}"), 200 - n);
        row.choices[0].text = Some("x".repeat(20 << 10));
        desk.record(row).await;
    }
    let taken = desk.journal.retain().await.unwrap();
    assert!(taken.bytes <= 2 << 20, "{}", taken.bytes);
    assert_eq!((standing(&desk, "c000").await, standing(&desk, "c199").await), (Some(false), Some(true)));
    let left = desk.journal.follow(Cursor::default(), 1000).await.unwrap();
    assert_eq!(left.len(), 200, "every fact");
    let kept: Vec<bool> = left.iter().map(|row| row.completion.content.is_some()).collect();
    assert!(kept.is_sorted() && kept.iter().filter(|kept| **kept).count() > 50, "only as much as is needed");
}

#[tokio::test]
async fn facts_that_go_leave_no_number_to_be_given_again() {
    let (folder, config) = keeping(RetentionConfig { facts_days: Some(1), ..RetentionConfig::default() });
    let desk = Desk::of(folder.path(), config);
    for id in ["a", "b"] {
        desk.record(aged(id, 2)).await;
    }
    desk.journal.retain().await.unwrap();
    assert_eq!((standing(&desk, "a").await, standing(&desk, "b").await.is_some()), (None, true), "the last one stays");
    desk.record(aged("c", 0)).await;
    let rows = desk.journal.follow(Cursor(2), 10).await.unwrap();
    assert_eq!(rows.len(), 1);
    assert_eq!((rows[0].cursor, rows[0].completion.id.as_str()), (Cursor(3), "c"));
}

#[tokio::test]
async fn an_erased_user_is_nowhere_and_what_was_made_of_it_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let desk = Desk::at(folder.path());
    let talk = |conversation: &str, by| {
        let placement = fact("").placement.unwrap();
        Some(Placement { conversation: conversation.to_owned(), conversation_by: by, ..placement })
    };
    let telling = |id: &str, user: Option<&str>, safety: Option<&str>, placement| {
        let mut row = Completion {
            created_ms: 1000,
            user: user.map(str::to_owned),
            safety_identifier: safety.map(str::to_owned),
            placement,
            ..fact(id)
        };
        row.choices[0].text = Some(format!("secret of {id}"));
        row
    };
    for row in [
        telling("by-user", Some("ann"), None, talk("talk-1", ConversationBy::Given)),
        telling("by-safety", None, Some("ann"), talk("by-safety", ConversationBy::Own)),
        telling("same-talk", None, None, talk("talk-1", ConversationBy::Given)),
        telling("found-talk", None, None, talk("by-safety", ConversationBy::Found)),
        telling("other-in-talk", Some("bob"), None, talk("talk-1", ConversationBy::Given)),
        telling("other", None, None, talk("talk-2", ConversationBy::Given)),
    ] {
        desk.record(row).await;
    }
    let note = |at_ms, deed| desk.journal.note(Access::once(at_ms, "carl", deed, json!({"format": "jsonl"})));
    note(500, Deed::Export).await.unwrap();
    note(2000, Deed::Export).await.unwrap();
    note(2000, Deed::Search).await.unwrap();
    note(3_000_000, Deed::Backup).await.unwrap();
    assert!(desk.journal.hold(vec!["by-user".to_owned(), "other".to_owned()], "dataset 3").await.unwrap());

    let erasure = desk.journal.erase_user("ann", "carl").await.unwrap();
    assert_eq!(erasure.completions, 4);
    assert_eq!(erasure.held_by, [Holder { holder: "dataset 3".to_owned(), completions: 1 }]);
    let beyond: Vec<_> = erasure.beyond_reach.iter().map(|access| (access.deed, access.times)).collect();
    assert_eq!(beyond, [(Deed::Backup, 1), (Deed::Export, 2)], "the earlier export went on until later");
    for id in ["by-user", "by-safety", "same-talk", "found-talk"] {
        let row = desk.journal.get(id).await.unwrap().unwrap();
        assert!(row.erased_ms.is_some() && row.content.is_none() && !row.stored, "{id}");
        assert_eq!((row.user, row.safety_identifier, row.metadata.len(), row.sketch), (None, None, 0, None), "{id}");
        assert!(!is_on_disk(folder.path(), &format!("secret of {id}")), "{id}");
    }
    for id in ["other-in-talk", "other"] {
        assert_eq!(desk.journal.get(id).await.unwrap().unwrap().erased_ms, None, "{id}");
        assert!(is_on_disk(folder.path(), &format!("secret of {id}")), "{id}");
    }
    assert!(!is_on_disk(folder.path(), "\"ann\""), "the record of the erasure does not name who was erased");
    let deeds = desk.journal.accesses(AccessQuery { limit: 10, ..AccessQuery::default() }).await.unwrap();
    assert_eq!((deeds[0].deed, deeds[0].who.as_str()), (Deed::Erase, "carl"));
    assert_eq!(deeds[0].what, json!({"user": desk.journal.alias("ann")}));
    let again = desk.journal.erase_user("ann", "carl").await.unwrap();
    assert_eq!((again.completions, again.beyond_reach.len()), (0, 0));
}

#[tokio::test]
async fn an_answer_that_was_under_way_ends_without_its_erased_user() {
    let folder = tempfile::tempdir().unwrap();
    let desk = Desk::at(folder.path());
    let mut slot = desk.journal.reserve(1).unwrap();
    let under_way = Completion { created_ms: days_ago(0), ..fact("under-way") };
    desk.journal.erase_user("customer-9", "carl").await.unwrap();
    slot.record(under_way).await.unwrap();
    let row = desk.journal.get("under-way").await.unwrap().unwrap();
    assert_eq!((row.user, row.content, row.choices[0].text.clone()), (None, None, None));
    desk.record(Completion { created_ms: days_ago(-1), ..fact("later") }).await;
    let later = desk.journal.get("later").await.unwrap().unwrap();
    assert_eq!(later.user.as_deref(), Some("customer-9"), "who comes back is kept again");
}
