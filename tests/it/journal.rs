//! The record: durable before it is acknowledged, bounded, and never silent about a failure.

use std::{path::Path, sync::Arc};

use serde_json::{Map, json};
use tunegate::{
    config::RecordConfig,
    journal::{ChoiceRecord, Completion, CompletionKind, Content, Given, Journal, Options, PromptContent, Timing},
    metrics::Metrics,
    store::SqliteStore,
    terms::{
        AdapterName, AdapterVersion, Digest, Ending, FinishReason, Message, RecordPolicy, Role, Sampling, TokenScore,
        Usage,
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
        let store = SqliteStore::open(&folder.join("tunegate.db")).unwrap();
        let metrics = Arc::new(Metrics::new());
        let config = RecordConfig { policy, data_dir: folder.to_owned(), max_pending };
        let journal = Journal::open(Arc::new(store), &config, Arc::clone(&metrics)).unwrap();
        Self { journal, metrics, _folder: None }
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
        timing: Timing { queue_us: 12, first_token_us: Some(3400), total_us: 9000 },
        policy: RecordPolicy::Full,
        stored: true,
        user: Some("customer-9".to_owned()),
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
        scores: vec![score(71, -0.125), score(2, -0.001)],
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
