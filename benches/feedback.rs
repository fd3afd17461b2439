//! Pages of flags and feedback, and reports by version, over a large record: median and 95th percentile of each.
//!
//! `cargo bench --bench feedback -- [FACTS]` (200,000 by default; 10,000,000 take about an hour to write). The newest 100,000 answers have
//! content and scores of 128 tokens, as retention would leave them. The record is made in the system's folder for temporary files.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use serde_json::Map;
use tunegate::{
    config::{FlagRules, RecordConfig},
    feedback::{Flags, RuleSet, report::Asked},
    journal::{
        ChoiceRecord, Completion, CompletionKind, Content, Cursor, Feedback, FeedbackQuery, FlagQuery, FlagState,
        Followup, Given, Journal, Judgement, NewFlag, Options, Order, PromptContent, RuleRow, Source, Standing, Target,
        Timing,
    },
    metrics::Metrics,
    store::{Durable, SqliteStore, Store, Write},
    terms::{
        AdapterName, AdapterVersion, Digest, Ending, FinishReason, Message, Origin, RecordPolicy, Role, Sampling,
        TokenScore, Usage,
    },
};

/// The newest answers that have content.
const WITH_CONTENT: usize = 100_000;
/// Versions that answer in turns.
const VERSIONS: usize = 8;
/// Rows in one transaction.
const BATCH: usize = 500;
const ROUNDS: usize = 60;

fn main() {
    let facts = std::env::args().skip(1).find_map(|word| word.parse().ok()).unwrap_or(200_000usize);
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("tunegate.db");
    let began = Instant::now();
    fill(&path, facts);
    let bytes = std::fs::metadata(&path).map_or(0, |metadata| metadata.len());
    println!("{facts} facts in {:.0} s, {:.2} GB on disk", began.elapsed().as_secs_f64(), bytes as f64 / 1e9);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    runtime.block_on(measure(folder.path()));
}

fn version(number: usize) -> AdapterVersion {
    AdapterVersion(Digest::of(format!("version {number}").as_bytes()))
}

fn fill(path: &Path, facts: usize) {
    let store = SqliteStore::open(path).expect("a database");
    let rules = RuleSet::of(&FlagRules::Default).expect("sound rules");
    let rows: Vec<RuleRow> = rules
        .rules
        .iter()
        .map(|rule| RuleRow { name: rule.name.clone(), version: rule.version, definition: rule.settled.to_string() })
        .collect();
    let question = "The drive belt of Norvik HX-310 has snapped, the line is standing. ".repeat(20);
    let message = Message { role: Role::User, content: question, name: None };
    let prompt = PromptContent { given: Given::Messages(vec![message]), tokens: (0..300).collect() };
    let content = Arc::new(Content { prompts: vec![prompt] });
    let answer = "Close the valve, then call the service team. ".repeat(16);
    let mut at = 0;
    let mut stands = Some(Cursor::default());
    while at < facts {
        let batch = BATCH.min(facts - at);
        let mut writes = Vec::with_capacity(batch + 2);
        let (mut flags, mut said) = (Vec::new(), Vec::new());
        for number in at..at + batch {
            let full = number + WITH_CONTENT >= facts;
            writes.push(Write::Choices(Box::new(fact(number, full, &content, &answer))));
            if number % 33 == 0 {
                flags.push(NewFlag {
                    choice: Cursor(number as u64 + 1),
                    rule: rows[number / 33 % rows.len()].version,
                    reason: "a reason as long as reasons are, with a figure or two in it".to_owned(),
                    value: Some(1.0),
                });
            }
            if number % 10 == 0 {
                said.push(thumbs(number));
            }
        }
        at += batch;
        writes.push(Write::Feedback(said));
        writes.push(Write::FollowUp(Box::new(Followup {
            follower: Some(("flags".to_owned(), stands)),
            from: stands.unwrap_or_default(),
            to: Cursor(at as u64),
            rules: rows.clone(),
            flags,
            at_ms: at as i64,
        })));
        stands = Some(Cursor(at as u64));
        store.commit(&writes.iter().collect::<Vec<_>>(), Durable::Now).expect("written");
    }
}

fn fact(number: usize, full: bool, content: &Arc<Content>, answer: &str) -> Completion {
    let score = TokenScore { token: 7, logprob: -0.5 - (number % 97) as f32 / 100.0, entropy: 1.0, top: Vec::new() };
    let ending = if number.is_multiple_of(50) { FinishReason::Length } else { FinishReason::Stop };
    Completion {
        id: format!("chatcmpl-{number:024x}"),
        created_ms: 1_790_000_000_000 + number as i64 * 20,
        request_id: format!("req-{number}"),
        key: Some(["shop", "web", "desk"][number % 3].to_owned()),
        kind: CompletionKind::Chat,
        model: "ticket-triage".to_owned(),
        base: Digest::of(b"base"),
        adapter: Some((AdapterName::parse("ticket-triage").expect("a name"), version(number % VERSIONS))),
        template: Some(Digest::of(b"template")),
        tokenizer: Digest::of(b"tokenizer"),
        build: None,
        origin: Origin::Served,
        system: None,
        sampling: Sampling::default(),
        seed: number as u64,
        options: Options { max_tokens: vec![128], ..Options::default() },
        usage: Usage { prompt_tokens: 300, completion_tokens: 128, cached_tokens: 0 },
        timing: Timing {
            adapter_us: 0,
            read_us: 0,
            queue_us: 10,
            first_token_us: Some(2000),
            total_us: 30_000 + (number % 1000) as u64,
        },
        policy: if full { RecordPolicy::Full } else { RecordPolicy::Metadata },
        redaction: None,
        stored: false,
        user: None,
        safety_identifier: None,
        placement: None,
        sketch: None,
        metadata: Map::new(),
        content: full.then(|| Arc::clone(content)),
        choices: vec![ChoiceRecord {
            index: 0,
            ending: Ending::Finished(ending),
            tokens: 128,
            fault: None,
            text: full.then(|| answer.to_owned()),
            scores: if full { vec![score; 128] } else { vec![score] },
            tool_calls: None,
            thread: None,
        }],
        erased_ms: None,
        expired_ms: None,
    }
}

fn thumbs(number: usize) -> Feedback {
    let completion = format!("chatcmpl-{number:024x}");
    Feedback {
        id: format!("fb-{number:024x}"),
        client_id: None,
        at_ms: number as i64,
        target: Target::Answer { completion, choice: None },
        name: "thumbs".to_owned(),
        value: Some(Judgement::Boolean(!number.is_multiple_of(7))),
        comment: None,
        correction: None,
        source: Source::EndUser,
        author: None,
        key: None,
        any_key: true,
        tags: Map::new(),
        digest: Some(Digest::of(&number.to_le_bytes())),
        arrived: Standing::Aside,
        retracted_ms: None,
        erased_ms: None,
    }
}

async fn measure(folder: &Path) {
    let store = SqliteStore::open(&folder.join("tunegate.db")).expect("a database");
    let metrics = Arc::new(Metrics::new());
    let config = RecordConfig { data_dir: folder.to_owned(), max_pending: 64, ..RecordConfig::default() };
    let journal = Journal::open(Arc::new(store), &config, Arc::clone(&metrics)).expect("a journal");
    let flags = Flags::open(FlagRules::Default, journal.clone(), metrics).expect("sound rules");
    let end = journal.watch_durable().borrow().0;
    let flag_query = |rule: Option<&str>, adapter: Option<&str>, after: Option<u64>| FlagQuery {
        rule: rule.map(str::to_owned),
        adapter: adapter.map(str::to_owned),
        completion: None,
        state: FlagState::Open,
        after,
        limit: 20,
        order: Order::NewestFirst,
    };
    let deep = |round: usize| Some(end / 33 * (round as u64 + 1) / (ROUNDS as u64 + 1) + 1);
    timed("flags, any page", async |round| {
        drop(journal.flags(flag_query(None, None, deep(round))).await.expect("read"))
    })
    .await;
    timed("flags of a rule, any page", async |round| {
        drop(journal.flags(flag_query(Some("loop"), None, deep(round))).await.expect("read"));
    })
    .await;
    timed("flags of an adapter, any page", async |round| {
        drop(journal.flags(flag_query(None, Some("ticket-triage"), deep(round))).await.expect("read"));
    })
    .await;
    timed("feedback of a name, any page", async |round| {
        let after = Some(format!("fb-{:024x}", end as usize / 10 * (round + 1) / (ROUNDS + 1) / 10 * 100));
        let query = FeedbackQuery {
            key: None,
            target: None,
            name: Some("thumbs".to_owned()),
            source: None,
            standing: None,
            retracted: None,
            after,
            limit: 20,
            order: Order::NewestFirst,
        };
        drop(journal.feedback(query).await.expect("read"));
    })
    .await;
    let asked = |round: usize, last: usize| Asked {
        adapter: Some("ticket-triage".to_owned()),
        label: "ticket-triage".to_owned(),
        versions: Some([version(round % VERSIONS).short(), version((round + 3) % VERSIONS).short()]),
        last: Some(last),
        ..Asked::default()
    };
    timed("report on 20,000 answers of each", async |round| {
        drop(flags.report(asked(round, 20_000)).await.expect("a report"));
    })
    .await;
    let began = Instant::now();
    let whole = flags.report(asked(0, usize::MAX >> 1)).await.expect("a report");
    println!(
        "report on the whole history, {} answers of each: {:.2} s",
        whole.first.answers,
        began.elapsed().as_secs_f64()
    );
}

async fn timed(what: &str, run: impl AsyncFn(usize)) {
    let mut times = Vec::with_capacity(ROUNDS);
    for round in 0..ROUNDS {
        let began = Instant::now();
        run(round).await;
        times.push(began.elapsed());
    }
    times.sort();
    let ms = |time: Duration| time.as_secs_f64() * 1000.0;
    println!("{what}: median {:.2} ms, p95 {:.2} ms", ms(times[ROUNDS / 2]), ms(times[ROUNDS * 95 / 100]));
}
