//! What people and programs say of answers, and what the server itself notices about them.

mod export;
mod flags;
mod given;
mod report;
mod rules;

use std::{path::Path, sync::Arc};

use serde_json::Map;
use tunegate::{
    config::{FlagRules, RecordConfig},
    feedback::Flags,
    journal::{
        ChoiceRecord, Completion, CompletionKind, Content, Cursor, FlagQuery, FlagState, Given, Journal, KeptFlag,
        Options, Order, PromptContent, Timing,
    },
    metrics::Metrics,
    store::SqliteStore,
    terms::{
        AdapterName, AdapterVersion, Digest, Ending, FinishReason, Message, Origin, RecordPolicy, Role, Sampling,
        TokenScore, Usage,
    },
};

/// A record with rules, and nobody who asks.
struct Desk {
    journal: Journal,
    flags: Flags,
    metrics: Arc<Metrics>,
}

impl Desk {
    fn at(folder: &Path, rules: FlagRules) -> Self {
        let store = SqliteStore::open(&folder.join("tunegate.db")).unwrap();
        let metrics = Arc::new(Metrics::new());
        let config = RecordConfig { data_dir: folder.to_owned(), max_pending: 4096, ..RecordConfig::default() };
        let journal = Journal::open(Arc::new(store), &config, Arc::clone(&metrics)).unwrap();
        let flags = Flags::open(rules, journal.clone(), Arc::clone(&metrics)).unwrap();
        Self { journal, flags, metrics }
    }

    /// With rules written to a file in the folder.
    fn with(folder: &Path, rules: &str) -> Self {
        let path = folder.join("rules.toml");
        std::fs::write(&path, rules).unwrap();
        Self::at(folder, FlagRules::File(path))
    }

    async fn record(&self, facts: impl IntoIterator<Item = Completion>) {
        let receipts: Vec<_> =
            facts.into_iter().map(|fact| self.journal.reserve(fact.choices.len()).unwrap().record(fact)).collect();
        for receipt in receipts {
            receipt.await.unwrap();
        }
    }

    /// Waits until everything that is durable was looked at.
    async fn looked(&self) {
        looked(&self.flags, &self.journal).await;
    }

    async fn all_flags(&self) -> Vec<KeptFlag> {
        all_flags(&self.journal).await
    }
}

async fn looked(flags: &Flags, journal: &Journal) {
    let end = *journal.watch_durable().borrow();
    flags.watch_followed().wait_for(|followed| *followed >= end).await.unwrap();
}

async fn all_flags(journal: &Journal) -> Vec<KeptFlag> {
    let mut all: Vec<KeptFlag> = Vec::new();
    loop {
        let query = FlagQuery {
            rule: None,
            adapter: None,
            completion: None,
            state: FlagState::All,
            after: all.last().map(|flag| flag.id),
            limit: 100,
            order: Order::OldestFirst,
        };
        let page = journal.flags(query).await.unwrap();
        all.extend(page.flags);
        if !page.more {
            return all;
        }
    }
}

/// An answer of one choice to a customer's question.
fn fact(id: &str, answer: &str) -> Completion {
    let words = answer.split_whitespace().count().max(1);
    Completion {
        id: id.to_owned(),
        created_ms: 1_790_000_000_000,
        request_id: format!("req-{id}"),
        key: None,
        kind: CompletionKind::Chat,
        model: "poet".to_owned(),
        base: Digest::of(b"base"),
        adapter: Some((AdapterName::parse("poet").unwrap(), version("one"))),
        template: None,
        tokenizer: Digest::of(b"tokenizer"),
        build: None,
        origin: Origin::Served,
        system: None,
        sampling: Sampling::default(),
        seed: 0,
        options: Options { max_tokens: vec![64], ..Options::default() },
        usage: Usage { prompt_tokens: 5, completion_tokens: words, cached_tokens: 0 },
        timing: Timing { adapter_us: 0, read_us: 0, queue_us: 10, first_token_us: Some(2000), total_us: 30_000 },
        policy: RecordPolicy::Full,
        redaction: None,
        stored: false,
        user: None,
        safety_identifier: None,
        placement: None,
        sketch: None,
        metadata: Map::new(),
        content: Some(asked("Tell me of rain")),
        choices: vec![ChoiceRecord {
            index: 0,
            ending: Ending::Finished(FinishReason::Stop),
            tokens: words,
            fault: None,
            text: Some(answer.to_owned()),
            scores: vec![TokenScore { token: 7, logprob: -0.5, entropy: 1.0, top: Vec::new() }; words],
            tool_calls: None,
            thread: None,
        }],
        erased_ms: None,
        expired_ms: None,
    }
}

fn asked(question: &str) -> Arc<Content> {
    let message = Message { role: Role::User, content: question.to_owned(), name: None };
    Arc::new(Content { prompts: vec![PromptContent { given: Given::Messages(vec![message]), tokens: vec![1, 2, 3] }] })
}

fn version(word: &str) -> AdapterVersion {
    AdapterVersion(Digest::of(word.as_bytes()))
}

/// The same, cut off by its limit.
fn cut(id: &str) -> Completion {
    let mut fact = fact(id, "it rains and rains on");
    fact.choices[0].ending = Ending::Finished(FinishReason::Length);
    fact
}

const TRUNCATED: &str = "[[rule]]\nname = 'cut'\nkind = 'truncated'\n";

fn place(cursor: u64) -> Cursor {
    Cursor(cursor)
}
