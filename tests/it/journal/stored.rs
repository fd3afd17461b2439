//! What a policy keeps, what is listed, and what an erasure leaves.

use serde_json::{Map, json};
use tunegate::{
    journal::{ChoiceRecord, Completion, JournalError, ListQuery, Options, Order},
    terms::{ConversationBy, RecordPolicy},
};

use super::{Desk, choice, fact};

/// All bytes of all files in the folder.
fn bytes_on_disk(folder: &std::path::Path) -> Vec<u8> {
    std::fs::read_dir(folder).unwrap().flat_map(|entry| std::fs::read(entry.unwrap().path()).unwrap()).collect()
}

pub fn is_on_disk(folder: &std::path::Path, word: &str) -> bool {
    bytes_on_disk(folder).windows(word.len()).any(|window| window == word.as_bytes())
}

/// A fact whose every word of the client can be found again.
fn telling(id: &str, policy: RecordPolicy) -> Completion {
    Completion {
        policy,
        metadata: Map::from_iter([("mdname".to_owned(), json!("mdvalue"))]),
        options: Options { stop: vec!["stopword".to_owned()], ..fact(id).options },
        choices: vec![ChoiceRecord { text: Some("answertext".to_owned()), ..choice(0) }],
        ..fact(id)
    }
}

const CONTENT: [&str; 3] = ["Die Presse", "answertext", "stopword"];
const USER_AND_METADATA: [&str; 5] = ["customer-9", "hashed-9", "talk-9", "mdname", "mdvalue"];

#[tokio::test]
async fn a_policy_keeps_what_it_says_and_nothing_else_reaches_the_disk() {
    use RecordPolicy::{Full, Metadata, None};
    for (server, row, kept) in [
        (Full, Full, Full),
        (Full, Metadata, Metadata),
        (Full, None, None),
        (Metadata, Full, Metadata),
        (Metadata, None, None),
        (None, Full, None),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let desk = Desk::at_with(folder.path(), server, 8);
        desk.record(telling("chatcmpl-1", row)).await;
        let read = desk.journal.get("chatcmpl-1").await.unwrap().unwrap();
        let given = telling("chatcmpl-1", row);
        let mut expected = Completion { policy: kept, ..given };
        if kept < Full {
            expected.content = Option::None;
            expected.options.stop.clear();
            expected.choices[0].text = Option::None;
            expected.choices[0].scores.clear();
            expected.choices[0].thread = Option::None;
            expected.sketch = Option::None;
        }
        if kept < Metadata {
            expected.safety_identifier = Option::None;
            expected.system = Option::None;
            let placement = expected.placement.as_mut().unwrap();
            placement.conversation = "chatcmpl-1".to_owned();
            placement.conversation_by = ConversationBy::Own;
            expected.user = Option::None;
            expected.metadata.clear();
            expected.stored = false;
        }
        assert_eq!(read, expected, "server {server:?}, row {row:?}");
        let on_disk = |word: &&str| is_on_disk(folder.path(), word);
        assert_eq!(CONTENT.iter().any(on_disk), kept == Full, "server {server:?}, row {row:?}");
        assert_eq!(USER_AND_METADATA.iter().any(on_disk), kept >= Metadata, "server {server:?}, row {row:?}");
    }
}

#[tokio::test]
async fn a_deleted_completion_leaves_its_fact_and_no_word_of_the_client() {
    let folder = tempfile::tempdir().unwrap();
    let desk = Desk::at(folder.path());
    desk.record(telling("chatcmpl-1", RecordPolicy::Full)).await;
    assert!(desk.journal.delete("chatcmpl-1").await.unwrap());
    assert!(!desk.journal.delete("chatcmpl-1").await.unwrap(), "it is gone already");
    assert!(!desk.journal.delete("chatcmpl-2").await.unwrap());
    let left = desk.journal.get("chatcmpl-1").await.unwrap().unwrap();
    assert!(left.erased_ms.is_some_and(|at| at > left.created_ms - 1_000_000_000_000));
    let mut expected = telling("chatcmpl-1", RecordPolicy::Full);
    expected.erased_ms = left.erased_ms;
    expected.stored = false;
    expected.user = None;
    expected.metadata.clear();
    expected.options.stop.clear();
    expected.content = None;
    expected.choices[0].text = None;
    expected.choices[0].scores.clear();
    expected.choices[0].thread = None;
    (expected.safety_identifier, expected.sketch) = (None, None);
    let placement = expected.placement.as_mut().unwrap();
    (placement.conversation, placement.conversation_by) = ("chatcmpl-1".to_owned(), ConversationBy::Own);
    assert_eq!(left, expected);
    assert_eq!(desk.journal.list(everything()).await.unwrap().completions, []);
    for word in CONTENT.iter().chain(&USER_AND_METADATA) {
        assert!(!is_on_disk(folder.path(), word), "{word}");
    }
}

#[tokio::test]
async fn what_ends_after_an_erasure_leaves_no_content_behind() {
    let desk = Desk::new();
    let mut slot = desk.journal.reserve(2).unwrap();
    slot.record(fact("chatcmpl-1")).await.unwrap();
    assert!(desk.journal.delete("chatcmpl-1").await.unwrap());
    slot.record(Completion { choices: vec![choice(1)], ..fact("chatcmpl-1") }).await.unwrap();
    let left = desk.journal.get("chatcmpl-1").await.unwrap().unwrap();
    assert_eq!(left.choices.len(), 2);
    assert!(left.choices.iter().all(|choice| choice.text.is_none() && choice.scores.is_empty()));
    assert_eq!((left.content, left.user, left.metadata.len(), left.stored), (None, None, 0, false));
}

fn everything() -> ListQuery {
    ListQuery { model: None, key: None, metadata: Vec::new(), after: None, limit: 20, order: Order::OldestFirst }
}

/// Seven listable rows, two of each time, recorded newest first; and one that is not listable.
async fn shelf() -> Desk {
    let desk = Desk::new();
    for n in (0..7).rev() {
        desk.record(Completion {
            created_ms: i64::from(n) / 2,
            model: if n % 2 == 0 { "even" } else { "odd" }.to_owned(),
            key: (n < 4).then(|| "shop".to_owned()),
            metadata: Map::from_iter([
                ("n".to_owned(), json!(n.to_string())),
                ("half".to_owned(), json!(if n < 3 { "low" } else { "high" })),
            ]),
            ..fact(&format!("c{n}"))
        })
        .await;
    }
    desk.record(Completion { stored: false, ..fact("unlisted") }).await;
    desk
}

async fn ids(desk: &Desk, query: ListQuery) -> (Vec<String>, bool) {
    let page = desk.journal.list(query).await.unwrap();
    (page.completions.into_iter().map(|completion| completion.id).collect(), page.more)
}

#[tokio::test]
async fn only_what_was_stored_is_listed_and_pages_meet_without_gap_or_overlap() {
    let desk = shelf().await;
    let (all, more) = ids(&desk, everything()).await;
    assert_eq!((all.len(), more), (7, false));
    for order in [Order::OldestFirst, Order::NewestFirst] {
        let mut expected = all.clone();
        if order == Order::NewestFirst {
            expected.reverse();
        }
        let mut walked = Vec::new();
        loop {
            let after = walked.last().cloned();
            let (page, more) = ids(&desk, ListQuery { after, limit: 2, order, ..everything() }).await;
            assert!(page.len() == 2 || !more);
            walked.extend(page);
            if !more {
                break;
            }
        }
        assert_eq!(walked, expected, "{order:?}");
    }
    let times: Vec<_> =
        desk.journal.list(everything()).await.unwrap().completions.iter().map(|row| row.created_ms).collect();
    assert!(times.is_sorted());
}

#[tokio::test]
async fn filters_hold_together() {
    let desk = shelf().await;
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let by = |query: ListQuery| async {
        let (mut found, _) = ids(&desk, query).await;
        found.sort();
        found
    };
    let even = Some("even".to_owned());
    assert_eq!(by(ListQuery { model: even.clone(), ..everything() }).await, ["c0", "c2", "c4", "c6"]);
    assert_eq!(by(ListQuery { key: Some("shop".to_owned()), ..everything() }).await, ["c0", "c1", "c2", "c3"]);
    assert_eq!(by(ListQuery { metadata: vec![pair("half", "low")], ..everything() }).await, ["c0", "c1", "c2"]);
    let both = vec![pair("half", "low"), pair("n", "2")];
    assert_eq!(by(ListQuery { metadata: both, model: even.clone(), ..everything() }).await, ["c2"]);
    let apart = vec![pair("half", "high"), pair("n", "2")];
    assert!(by(ListQuery { metadata: apart, ..everything() }).await.is_empty());
    assert!(by(ListQuery { metadata: vec![pair("half", "' OR 1=1 --")], ..everything() }).await.is_empty());
    assert!(by(ListQuery { key: Some("other".to_owned()), model: even, ..everything() }).await.is_empty());
}

#[tokio::test]
async fn a_list_after_an_unknown_completion_is_refused() {
    let desk = shelf().await;
    let refused = desk.journal.list(ListQuery { after: Some("c9".to_owned()), ..everything() }).await;
    assert_eq!(refused, Err(JournalError::UnknownCursor { after: "c9".to_owned() }));
}

#[tokio::test]
async fn metadata_is_replaced_in_its_order_and_filters_follow() {
    let desk = shelf().await;
    let fresh = Map::from_iter([("z".to_owned(), json!("1")), ("flag".to_owned(), json!("retrain"))]);
    assert!(desk.journal.set_metadata("c3", fresh.clone()).await.unwrap());
    assert!(!desk.journal.set_metadata("unlisted", fresh.clone()).await.unwrap());
    assert!(!desk.journal.set_metadata("c9", fresh.clone()).await.unwrap());
    let flagged = vec![("flag".to_owned(), "retrain".to_owned())];
    let page = desk.journal.list(ListQuery { metadata: flagged, ..everything() }).await.unwrap();
    assert_eq!(page.completions.len(), 1);
    let names: Vec<_> = page.completions[0].metadata.keys().map(String::as_str).collect();
    assert_eq!((page.completions[0].id.as_str(), names), ("c3", vec!["z", "flag"]));
    let old = vec![("n".to_owned(), "3".to_owned())];
    assert_eq!(desk.journal.list(ListQuery { metadata: old, ..everything() }).await.unwrap().completions, []);
}
