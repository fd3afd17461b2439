//! What leaves as a file and what comes in from one.

use std::{path::Path, process::Command};

use futures_util::StreamExt;
use serde_json::{Map, Value, json};
use tunegate::{
    journal::{
        ChoiceRecord, Completion, Format, Given, Imported, JournalError, Mapping, Order, RefusedRow, Search, View,
    },
    terms::{ConversationBy, Digest, Origin, SplitBy},
};

use super::{Desk, choice, fact};

const FACTS: View = View { content: false, scores: false };
const ALL: View = View { content: true, scores: true };

fn in_order() -> Search {
    Search { order: Order::OldestFirst, ..Search::default() }
}

async fn exported(desk: &Desk, search: Search, format: Format, view: View) -> Result<Vec<u8>, JournalError> {
    let mut file = Box::pin(desk.journal.export(search, format, view));
    let mut bytes = Vec::new();
    while let Some(more) = file.next().await {
        bytes.extend(more?);
    }
    Ok(bytes)
}

/// What pyarrow reads.
fn table(file: &Path) -> Value {
    let python = std::env::var("TUNEGATE_TEST_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/client/tables.py");
    let output = Command::new(&python).arg(script).arg(file).output();
    let output = output.unwrap_or_else(|error| panic!("'{python}' cannot be run ({error}): set TUNEGATE_TEST_PYTHON"));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(
        !error.contains("No module named 'pyarrow'"),
        "this Python has no pyarrow: run `make test`, which installs it, or set TUNEGATE_TEST_PYTHON"
    );
    assert!(output.status.success(), "{error}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Seven requests: one of two choices, one without content, one with everything hard to write.
async fn shelf() -> Desk {
    let desk = Desk::new();
    for n in 0..5 {
        desk.record(Completion { created_ms: 1_790_000_000_000 + n, ..fact(&format!("c{n}")) }).await;
    }
    let two = vec![choice(0), ChoiceRecord { text: None, scores: Vec::new(), ..choice(1) }];
    let late = 1_790_000_001_000;
    desk.record(Completion { created_ms: late, choices: two, content: None, sketch: None, user: None, ..fact("two") })
        .await;
    let hard = ChoiceRecord { text: Some("\"quoted\", two\nlines, Öl 🛢\r\n".to_owned()), ..choice(0) };
    desk.record(Completion { created_ms: late + 1, choices: vec![hard], placement: None, ..fact("hard") }).await;
    desk
}

#[tokio::test]
async fn lines_of_json_hold_everything_once_and_in_order() {
    let desk = shelf().await;
    let file = exported(&desk, in_order(), Format::Jsonl, ALL).await.unwrap();
    let rows: Vec<Value> =
        String::from_utf8(file).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let ids: Vec<&str> = rows.iter().map(|row| row["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["c0", "c1", "c2", "c3", "c4", "two", "hard"]);
    let first = &rows[0];
    assert_eq!(first["version"], Digest::of(b"adapter").to_string());
    assert_eq!((&first["split"], &first["conversation"]), (&json!("held_out"), &json!("talk-9")));
    assert_eq!(first["prompts"][0]["messages"][0]["content"], "Die Presse verliert Öl 🛢");
    assert_eq!(first["choices"][0]["logprobs"], json!([-0.125, -0.0625]));
    assert_eq!((first["sketch"].as_array().map(Vec::len), &first["sketch"][0]), (Some(64), &json!(-8.0)));
    assert_eq!(rows[5]["choices"].as_array().map(Vec::len), Some(2));
    assert_eq!((&rows[5]["prompts"], &rows[6]["split"]), (&Value::Null, &Value::Null));
    let facts = exported(&desk, in_order(), Format::Jsonl, FACTS).await.unwrap();
    let facts = String::from_utf8(facts).unwrap();
    assert!(!facts.contains("Presse") && !facts.contains("hydraulics") && !facts.contains("\"logprobs\""), "{facts}");
}

#[tokio::test]
async fn a_table_is_read_by_another_reader_with_its_types() {
    let desk = shelf().await;
    let folder = tempfile::tempdir().unwrap();
    for (format, time, text) in
        [(Format::Parquet, "timestamp[ms, tz=UTC]", "string"), (Format::Csv, "timestamp[ms, tz=UTC]", "string")]
    {
        let path = folder.path().join(format!("answers.{}", format.as_str()));
        std::fs::write(&path, exported(&desk, in_order(), format, ALL).await.unwrap()).unwrap();
        let table = table(&path);
        let types = &table["types"];
        // CSV has no types of its own: what a reader makes of its texts is the reader's choice.
        let kind = types["timestamp"].as_str().unwrap();
        assert!(kind == time || (format == Format::Csv && kind.starts_with("timestamp")), "{format:?}: {kind}");
        for (column, expected) in [
            ("id", text),
            ("choice", "int64"),
            ("output_tokens", "int64"),
            ("mean_logprob", "double"),
            ("finished", "bool"),
            ("answer", text),
            ("emb_63", "double"),
        ] {
            assert_eq!(types[column], expected, "{format:?}: {column}");
        }
        let rows = table["rows"].as_array().unwrap();
        assert_eq!(rows.len(), 8, "{format:?}: a row for each choice");
        let first = &rows[0];
        assert_eq!((&first["id"], &first["choice"], &first["ending"]), (&json!("c0"), &json!(0), &json!("stop")));
        assert_eq!((&first["finished"], &first["mean_logprob"]), (&json!(true), &json!(-0.09375)));
        assert_eq!((first["latency_ms"].as_f64(), first["emb_0"].as_f64()), (Some(9.0), Some(-8.0)), "{format:?}");
        assert!(first["timestamp"].as_str().unwrap().starts_with("2026-09-21 14:13:20"), "{}", first["timestamp"]);
        assert_eq!(first["question"], "Die Presse verliert Öl 🛢");
        assert_eq!(
            (&rows[6]["id"], &rows[6]["choice"], &rows[6]["mean_logprob"]),
            (&json!("two"), &json!(1), &Value::Null)
        );
        assert_eq!(rows[6]["emb_0"], Value::Null);
        assert_eq!(rows[7]["answer"], "\"quoted\", two\nlines, Öl 🛢\r\n");
    }
}

#[tokio::test]
async fn many_pages_and_row_groups_are_one_whole_table_and_none_is_an_empty_one() {
    let desk = Desk::with(tunegate::terms::RecordPolicy::Full, 6000);
    let mut receipts = Vec::new();
    for n in 0..5600 {
        receipts
            .push(desk.journal.reserve(1).unwrap().record(Completion { created_ms: n, ..fact(&format!("c{n:04}")) }));
    }
    for receipt in receipts {
        receipt.await.unwrap();
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("answers.parquet");
    std::fs::write(&path, exported(&desk, in_order(), Format::Parquet, FACTS).await.unwrap()).unwrap();
    let found = table(&path);
    let ids: Vec<&str> = found["rows"].as_array().unwrap().iter().map(|row| row["id"].as_str().unwrap()).collect();
    assert!(ids.len() == 5600 && ids.is_sorted(), "{}", ids.len());
    assert_eq!(found["types"].get("answer"), None);
    let none = Search { user: vec!["nobody".to_owned()], ..in_order() };
    std::fs::write(&path, exported(&desk, none, Format::Parquet, FACTS).await.unwrap()).unwrap();
    assert_eq!(table(&path)["rows"], json!([]));
}

#[tokio::test]
async fn a_search_finds_by_everything_that_it_names_and_pages_meet() {
    let desk = shelf().await;
    let served = Completion { user: Some("ann".to_owned()), origin: Origin::Replayed, ..fact("replayed") };
    desk.record(served).await;
    let ids = async |search: Search| {
        let (mut ids, mut search) = (Vec::new(), Search { limit: 2, ..search });
        loop {
            let page = desk.journal.search(search.clone()).await.unwrap();
            ids.extend(page.completions.into_iter().map(|completion| completion.id));
            match page.next {
                Some(next) => search.after = Some(next),
                None => return ids,
            }
        }
    };
    let all = Search::default;
    assert_eq!(ids(all()).await, ["hard", "two", "c4", "c3", "c2", "c1", "replayed", "c0"], "the latest first");
    let words = |words: &str| Some(words.to_owned());
    assert_eq!(ids(Search { user: vec!["ann".to_owned()], ..all() }).await, ["replayed"]);
    assert_eq!(ids(Search { contains: words("\"quoted\", two\nlines"), ..all() }).await, ["hard"], "in an answer");
    assert_eq!(ids(Search { contains: words("verliert Öl"), ..all() }).await.len(), 7, "in a question");
    assert_eq!(ids(Search { contains: words("VERLIERT"), ..all() }).await, [""; 0]);
    assert_eq!(ids(Search { origin: Some(Origin::Replayed), ..all() }).await, ["replayed"]);
    let version = Digest::of(b"adapter").to_string()[..8].to_owned();
    assert_eq!(ids(Search { version: Some(version), adapter: words("ticket-triage"), ..all() }).await.len(), 8);
    assert_eq!(ids(Search { version: words("000000"), ..all() }).await, [""; 0]);
    let window = Search { since_ms: Some(1_790_000_000_002), until_ms: Some(1_790_000_000_004), ..in_order() };
    assert_eq!(ids(window).await, ["c2", "c3"]);
    assert_eq!(ids(Search { ending: words("length"), ..all() }).await, [""; 0]);
    assert_eq!(ids(Search { conversation: words("talk-9"), model: words("ticket-triage"), ..all() }).await.len(), 7);
}

#[tokio::test]
async fn imported_answers_are_marked_split_and_never_there_twice() {
    let desk = Desk::new();
    let turn = |role: &str, content: &str| json!({"role": role, "content": content});
    let rows = [
        json!({"messages": [turn("user", "rain?"), turn("assistant", "Yes.")], "user": "ann", "created": 1_700_000_000}),
        json!({"messages": [turn("user", "rain?")]}),
        json!({"prompt": "wind?", "completion": "No.", "metadata": {"session_id": "s-1"}}),
    ];
    let first = desk.journal.import("old", &rows, &Mapping::default()).await.unwrap();
    assert_eq!((first.imported, first.known), (2, 0));
    assert!(matches!(&first.refused[..], [RefusedRow { row: 1, reason }] if reason.contains("no answer")), "{first:?}");
    let again = desk.journal.import("old", &rows[..1], &Mapping::default()).await.unwrap();
    assert_eq!(again, Imported { imported: 0, known: 1, refused: Vec::new() });

    let found = desk.journal.search(in_order()).await.unwrap().completions;
    assert_eq!(found.len(), 2);
    let rain = &found[0];
    assert_eq!((rain.origin, rain.adapter.is_none(), rain.created_ms), (Origin::Imported, true, 1_700_000_000_000));
    assert_eq!(rain.choices[0].text.as_deref(), Some("Yes."));
    assert_eq!(rain.placement.as_ref().unwrap().assignment.by, SplitBy::User);
    let wind = &found[1];
    let placement = wind.placement.as_ref().unwrap();
    assert_eq!((placement.conversation.as_str(), placement.conversation_by), ("s-1", ConversationBy::Given));
    assert_eq!(wind.metadata, Map::from_iter([("session_id".to_owned(), json!("s-1"))]));
    assert_eq!(wind.content.as_ref().unwrap().prompts[0].given, Given::Text("wind?".to_owned()));
    assert_eq!(desk.journal.follow(Default::default(), 10).await.unwrap().len(), 2, "followers see them");
    assert_eq!(desk.metrics.record_failures.get(), 0);
}
