//! Durable rows a second: each writer waits for its receipt before it records the next, as a reply does.
//!
//! `cargo bench --bench journal`; the data directory is made in the system's folder for temporary files, so set `TMPDIR`
//! to the disk that is meant.

use std::{sync::Arc, time::Duration};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use serde_json::Map;
use tunegate::{
    config::RecordConfig,
    journal::{
        ChoiceRecord, Completion, CompletionKind, Content, Given, Journal, Options, PromptContent, Thread, Timing,
    },
    metrics::Metrics,
    store::SqliteStore,
    terms::{
        Assignment, ConversationBy, Digest, Ending, FinishReason, Message, Origin, Placement, RecordPolicy, Role,
        Sampling, Sketch, Split, SplitBy, TokenScore, Usage,
    },
};

/// Rows that each writer records in one measurement.
const ROWS: u64 = 20;
/// Tokens of prompt and of answer.
const TOKENS: usize = 200;

fn strict_rows(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_multi_thread().build().expect("a runtime");
    let mut group = criterion.benchmark_group("strict_rows");
    group.measurement_time(Duration::from_secs(10)).sample_size(20);
    for writers in [1, 32] {
        let folder = tempfile::tempdir().expect("a folder");
        let store = SqliteStore::open(&folder.path().join("tunegate.db")).expect("a database");
        let config =
            RecordConfig { data_dir: folder.path().to_owned(), max_pending: writers, ..RecordConfig::default() };
        let journal = Journal::open(Arc::new(store), &config, Arc::new(Metrics::new())).expect("a journal");
        let content = Arc::new(content());
        group.throughput(Throughput::Elements(writers as u64 * ROWS));
        group.bench_function(BenchmarkId::from_parameter(writers), |bencher| {
            bencher.iter(|| {
                let tasks: Vec<_> = (0..writers)
                    .map(|_| {
                        let (journal, content) = (journal.clone(), Arc::clone(&content));
                        runtime.spawn(async move {
                            for _ in 0..ROWS {
                                let mut slot = journal.reserve(1).expect("room for each writer");
                                slot.record(answer(&content)).await.expect("a durable row");
                            }
                        })
                    })
                    .collect();
                runtime.block_on(async {
                    for task in tasks {
                        task.await.expect("a writer that ends");
                    }
                });
            });
        });
    }
    group.finish();
}

fn content() -> Content {
    let message = Message { role: Role::User, content: "The press leaks oil. ".repeat(40), name: None };
    Content {
        prompts: vec![PromptContent { given: Given::Messages(vec![message]), tokens: (0..TOKENS as u32).collect() }],
    }
}

fn answer(content: &Arc<Content>) -> Completion {
    let mut random = [0; 16];
    getrandom::fill(&mut random).expect("random numbers");
    let score = |token| TokenScore { token, logprob: -0.5, entropy: 1.0, top: Vec::new() };
    Completion {
        id: format!("chatcmpl-{:016x}", getrandom::u64().expect("a random number")),
        created_ms: 1_790_000_000_000,
        request_id: "req-1".to_owned(),
        key: None,
        kind: CompletionKind::Chat,
        model: "base".to_owned(),
        base: Digest::of(b"base"),
        adapter: None,
        template: Some(Digest::of(b"template")),
        tokenizer: Digest::of(b"tokenizer"),
        build: Some("0.1.0 cpu fused fast avx2".to_owned()),
        origin: Origin::Served,
        system: None,
        sampling: Sampling::default(),
        seed: 7,
        options: Options { max_tokens: vec![TOKENS], ..Options::default() },
        usage: Usage { prompt_tokens: TOKENS, completion_tokens: TOKENS, cached_tokens: 0 },
        timing: Timing { adapter_us: 1, read_us: 90, queue_us: 10, first_token_us: Some(1000), total_us: 100_000 },
        policy: RecordPolicy::Full,
        redaction: None,
        stored: false,
        user: None,
        safety_identifier: None,
        placement: Some(Placement {
            conversation: "chatcmpl-0123456789abcdef".to_owned(),
            conversation_by: ConversationBy::Own,
            assignment: Assignment { split: Split::Train, by: SplitBy::Message, audit_share: 0.05 },
        }),
        sketch: Some(Sketch { scale: 0.25, steps: [7; 64] }),
        metadata: Map::new(),
        content: Some(Arc::clone(content)),
        choices: vec![ChoiceRecord {
            index: 0,
            ending: Ending::Finished(FinishReason::Length),
            tokens: TOKENS,
            fault: None,
            text: Some("Check the seal of the main cylinder. ".repeat(20)),
            scores: (0..TOKENS as u32).map(score).collect(),
            tool_calls: None,
            thread: Some(Thread(random)),
        }],
        erased_ms: None,
        expired_ms: None,
    }
}

criterion_group!(benches, strict_rows);
criterion_main!(benches);
