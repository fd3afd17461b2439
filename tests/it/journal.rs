//! The record: durable before it is acknowledged, bounded, and never silent about a failure.

mod durability;
mod exported;
mod faults;
mod faulty;
mod keeping;
mod place;
mod redaction;
mod size;
mod stored;

use std::{path::Path, sync::Arc};

use serde_json::{Map, json};
use tunegate::{
    config::RecordConfig,
    journal::{
        ChoiceRecord, Completion, CompletionKind, Content, Cursor, Given, Health, Journal, JournalError, Options,
        PromptContent, Thread, Timing,
    },
    metrics::Metrics,
    store::SqliteStore,
    terms::{
        AdapterName, AdapterVersion, Assignment, ConversationBy, Digest, Ending, FinishReason, Message, Origin,
        Placement, RecordPolicy, Role, Sampling, Sketch, Split, SplitBy, TokenScore, Usage,
    },
};

struct Desk {
    journal: Journal,
    metrics: Arc<Metrics>,
    _folder: Option<tempfile::TempDir>,
}

impl Desk {
    fn new() -> Self {
        Self::with(RecordPolicy::Full, 64)
    }

    fn with(policy: RecordPolicy, max_pending: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let desk = Self::at_with(folder.path(), policy, max_pending);
        Self { _folder: Some(folder), ..desk }
    }

    fn at(folder: &Path) -> Self {
        Self::at_with(folder, RecordPolicy::Full, 64)
    }

    fn at_with(folder: &Path, policy: RecordPolicy, max_pending: usize) -> Self {
        Self::of(folder, RecordConfig { policy, max_pending, ..RecordConfig::default() })
    }

    fn of(folder: &Path, config: RecordConfig) -> Self {
        Self::try_of(folder, config).unwrap()
    }

    fn try_of(folder: &Path, config: RecordConfig) -> Result<Self, JournalError> {
        let store = SqliteStore::open(&folder.join("tunegate.db")).unwrap();
        let metrics = Arc::new(Metrics::new());
        let config = RecordConfig { data_dir: folder.to_owned(), ..config };
        let journal = Journal::open(Arc::new(store), &config, Arc::clone(&metrics))?;
        Ok(Self { journal, metrics, _folder: None })
    }

    async fn record(&self, fact: Completion) {
        self.journal.reserve(fact.choices.len()).unwrap().record(fact).await.unwrap();
    }
}

/// A chat with everything in it, of one choice.
fn fact(id: &str) -> Completion {
    Completion {
        id: id.to_owned(),
        created_ms: 1_790_000_000_000,
        request_id: format!("req-{id}"),
        key: Some("shop".to_owned()),
        kind: CompletionKind::Chat,
        model: "ticket-triage".to_owned(),
        base: Digest::of(b"base"),
        adapter: Some((AdapterName::parse("ticket-triage").unwrap(), AdapterVersion(Digest::of(b"adapter")))),
        template: Some(Digest::of(b"template")),
        tokenizer: Digest::of(b"tokenizer"),
        build: Some("0.1.0 cpu fused fast avx2".to_owned()),
        origin: Origin::Served,
        system: Some(Digest::of(b"system")),
        sampling: Sampling { temperature: 0.7, top_p: 0.9, ..Sampling::default() },
        seed: u64::MAX - 7,
        options: Options {
            max_tokens: vec![32],
            stop: vec!["\n\n".to_owned()],
            stop_token_ids: vec![2],
            logit_bias: vec![(11, -1.5)],
            top_logprobs: Some(2),
            ..Options::default()
        },
        usage: Usage { prompt_tokens: 5, completion_tokens: 2, cached_tokens: 1 },
        timing: Timing { adapter_us: 3, read_us: 7, queue_us: 12, first_token_us: Some(3400), total_us: 9000 },
        policy: RecordPolicy::Full,
        redaction: None,
        stored: true,
        user: Some("customer-9".to_owned()),
        safety_identifier: Some("hashed-9".to_owned()),
        placement: Some(Placement {
            conversation: "talk-9".to_owned(),
            conversation_by: ConversationBy::Given,
            assignment: Assignment { split: Split::HeldOut, by: SplitBy::Conversation, audit_share: 0.05 },
        }),
        sketch: Some(Sketch { scale: 0.25, steps: std::array::from_fn(|at| at as i8 - 32) }),
        metadata: Map::from_iter([("team".to_owned(), json!("blue")), ("a".to_owned(), json!("last"))]),
        content: Some(Arc::new(Content {
            prompts: vec![PromptContent {
                given: Given::Messages(vec![Message {
                    role: Role::User,
                    content: "Die Presse verliert Öl 🛢".to_owned(),
                    name: None,
                }]),
                tokens: vec![1, 2, 3, 4, u32::MAX],
            }],
        })),
        choices: vec![choice(0)],
        erased_ms: None,
        expired_ms: None,
    }
}

fn choice(index: u32) -> ChoiceRecord {
    let score = |token, logprob| TokenScore { token, logprob, entropy: 1.25, top: vec![(token, logprob), (9, -3.5)] };
    ChoiceRecord {
        index,
        ending: Ending::Finished(FinishReason::Stop),
        tokens: 2,
        fault: None,
        text: Some("hydraulics".to_owned()),
        scores: vec![score(71, -0.125), score(2, -0.0625)],
        tool_calls: None,
        thread: Some(Thread([7; 16])),
    }
}

#[tokio::test]
async fn what_is_recorded_is_read_back_to_the_last_bit() {
    let desk = Desk::new();
    let fact = fact("chatcmpl-1");
    desk.record(fact.clone()).await;
    assert_eq!(desk.journal.get("chatcmpl-1").await.unwrap(), Some(fact));
    assert_eq!(desk.journal.get("chatcmpl-2").await.unwrap(), None);
    assert_eq!(desk.metrics.recorded.with_label_values(&["stop"]).get(), 1);
}

#[tokio::test]
async fn choices_that_end_at_different_times_are_one_answer() {
    let desk = Desk::new();
    let mut slot = desk.journal.reserve(2).unwrap();
    let late = Completion {
        choices: vec![choice(1)],
        usage: Usage { prompt_tokens: 5, completion_tokens: 3, cached_tokens: 1 },
        ..fact("chatcmpl-1")
    };
    let early = Completion {
        choices: vec![choice(0)],
        usage: Usage { prompt_tokens: 5, completion_tokens: 7, cached_tokens: 1 },
        timing: Timing { total_us: 12_000, ..fact("chatcmpl-1").timing },
        ..fact("chatcmpl-1")
    };
    slot.record(late).await.unwrap();
    slot.record(early.clone()).await.unwrap();
    let whole = Completion { choices: vec![choice(0), choice(1)], ..early };
    assert_eq!(desk.journal.get("chatcmpl-1").await.unwrap(), Some(whole));
}

#[tokio::test]
async fn a_choice_is_recorded_once_and_the_first_row_stands() {
    let desk = Desk::new();
    desk.record(fact("chatcmpl-1")).await;
    let again = Completion {
        choices: vec![ChoiceRecord { text: Some("another".to_owned()), ..choice(0) }],
        ..fact("chatcmpl-1")
    };
    let refused = desk.journal.reserve(1).unwrap().record(again).await;
    assert!(matches!(refused, Err(JournalError::Write { .. })), "{refused:?}");
    assert_eq!(desk.metrics.record_failures.get(), 1);
    let kept = desk.journal.get("chatcmpl-1").await.unwrap().unwrap();
    assert_eq!(kept.choices, [choice(0)]);
}

#[tokio::test]
async fn a_full_record_refuses_and_says_when_to_come_back() {
    let desk = Desk::with(RecordPolicy::Full, 4);
    let three = desk.journal.reserve(3).unwrap();
    let refused = desk.journal.reserve(2).err();
    assert!(matches!(refused, Some(JournalError::Full { wanted: 2, limit: 4, retry_after_ms: 50.. })), "{refused:?}");
    let one = desk.journal.reserve(1).unwrap();
    assert!(desk.journal.reserve(1).is_err());
    drop(three);
    drop(one);
    desk.journal.reserve(4).unwrap();
}

#[tokio::test]
async fn room_comes_back_when_a_row_is_durable_and_with_the_rest_of_a_dropped_slot() {
    let desk = Desk::with(RecordPolicy::Full, 3);
    let mut slot = desk.journal.reserve(3).unwrap();
    slot.record(fact("chatcmpl-1")).await.unwrap();
    desk.journal.reserve(1).unwrap();
    assert!(desk.journal.reserve(2).is_err(), "two choices are still under way");
    drop(slot);
    desk.journal.reserve(3).unwrap();
}

#[tokio::test]
async fn a_slot_takes_no_more_choices_than_it_has_reserved() {
    let desk = Desk::new();
    let mut slot = desk.journal.reserve(1).unwrap();
    let two = Completion { choices: vec![choice(0), choice(1)], ..fact("chatcmpl-1") };
    assert!(slot.record(two).await.is_err());
    slot.record(fact("chatcmpl-2")).await.unwrap();
    assert!(slot.record(fact("chatcmpl-3")).await.is_err());
    assert_eq!(desk.metrics.record_failures.get(), 3);
    assert_eq!(desk.journal.get("chatcmpl-1").await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_four_tasks_record_at_once_and_every_receipt_resolves() {
    let desk = Desk::new();
    let tasks: Vec<_> = (0..64)
        .map(|task| {
            let journal = desk.journal.clone();
            tokio::spawn(async move {
                for row in 0..10 {
                    let mut slot = journal.reserve(1).expect("one slot for each task");
                    slot.record(fact(&format!("chatcmpl-{task}-{row}"))).await.unwrap();
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(desk.metrics.recorded.with_label_values(&["stop"]).get(), 640);
    let followed = desk.journal.follow(Cursor::default(), 1000).await.unwrap();
    assert_eq!(followed.len(), 640);
}

#[tokio::test]
async fn one_commit_serves_all_that_wait() {
    let folder = tempfile::tempdir().unwrap();
    let desk = Desk::at(folder.path());
    // Another process's lock holds up the writer, so that the rest must queue behind its first batch.
    let other = rusqlite::Connection::open(folder.path().join("tunegate.db")).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let receipts: Vec<_> =
        (0..64).map(|row| desk.journal.reserve(1).unwrap().record(fact(&format!("chatcmpl-{row}")))).collect();
    other.execute_batch("ROLLBACK").unwrap();
    for receipt in receipts {
        receipt.await.unwrap();
    }
    let commits = desk.metrics.record_commit_seconds.get_sample_count();
    assert!(commits <= 2, "{commits} commits for 64 rows");
}

#[tokio::test]
async fn a_follower_reads_on_where_it_stopped() {
    let folder = tempfile::tempdir().unwrap();
    let desk = Desk::at(folder.path());
    let mut durable = desk.journal.watch_durable();
    for id in ["a", "b"] {
        desk.record(fact(id)).await;
    }
    let two = Completion { choices: vec![choice(1), choice(0)], ..fact("c") };
    desk.record(two).await;
    durable.changed().await.unwrap();
    assert_eq!(*durable.borrow_and_update(), Cursor(4));
    let first = desk.journal.follow(Cursor::default(), 3).await.unwrap();
    let ids: Vec<_> = first.iter().map(|row| (row.completion.id.as_str(), row.completion.choices[0].index)).collect();
    assert_eq!(ids, [("a", 0), ("b", 0), ("c", 1)]);
    assert!(first.iter().all(|row| row.completion.choices.len() == 1));
    let cursor = first[2].cursor;
    drop(desk);
    let desk = Desk::at(folder.path());
    assert_eq!(*desk.journal.watch_durable().borrow(), Cursor(4), "known again after a restart");
    let rest = desk.journal.follow(cursor, 3).await.unwrap();
    assert_eq!(rest.len(), 1);
    assert_eq!(rest[0].completion, Completion { choices: vec![choice(0)], ..fact("c") });
    assert_eq!(desk.journal.follow(rest[0].cursor, 3).await.unwrap(), []);
}

#[tokio::test]
async fn the_record_is_idle_when_the_last_answer_is_durable() {
    let desk = Desk::with(RecordPolicy::Full, 8);
    let mut slot = desk.journal.reserve(2).unwrap();
    let receipt = slot.record(fact("chatcmpl-1"));
    let idle = desk.journal.idle();
    tokio::pin!(idle);
    assert!(futures_util::poll!(&mut idle).is_pending(), "a choice is still running");
    receipt.await.unwrap();
    assert!(futures_util::poll!(&mut idle).is_pending(), "a choice is still running");
    drop(slot);
    idle.await;
    assert_eq!(desk.journal.health(), Health::Up);
}
