//! Steps per second through the whole engine: submit, plan, forward, events. One element is one step of every answer.

use std::{hint::black_box, sync::Arc, time::Duration};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tunegate::{
    config::EngineConfig,
    engine::{
        self, CancelFlag, EngineHandle, Event, EventReceiver, Generate, Job, KvSalt, Priority, Work, event_channel,
    },
    metrics::Metrics,
    model::{LanguageModel, LoraAdapter},
    terms::Sampling,
};

#[path = "../tests/it/engine/toy.rs"]
#[expect(dead_code, reason = "the end-to-end tests use the rest")]
mod toy;

const TOKENS: usize = 64;

fn config() -> EngineConfig {
    EngineConfig { max_num_seqs: 64, step_target: Duration::ZERO, ..Default::default() }
}

fn start(model: impl LanguageModel + 'static) -> EngineHandle {
    engine::spawn(Box::new(model), config(), Arc::new(Metrics::new())).0
}

fn ask(engine: &EngineHandle, prompt: Vec<u32>, adapter: Option<Arc<LoraAdapter>>) -> EventReceiver {
    let work = Work::Generate(Generate {
        sampling: Sampling { temperature: 0.0, ..Default::default() },
        max_tokens: TOKENS,
        min_tokens: 0,
        stop_tokens: [].into(),
        logit_bias: [].into(),
        top: 0,
        seed: 0,
        choice: 0,
    });
    let (events, receiver) = event_channel(&work, prompt.len());
    let job = Job {
        work,
        tokens: prompt.into(),
        adapter,
        salt: KvSalt::default(),
        tenant: 0,
        priority: Priority::Normal,
        cancel: CancelFlag::default(),
        events,
    };
    engine.submit(job).expect("the engine takes the job");
    receiver
}

/// Asks for as many answers as there are adapters and reads them all.
fn answers(engine: &EngineHandle, adapters: &[Option<Arc<LoraAdapter>>]) {
    let prompt = |i: usize| (1..9).map(|token| token + i as u32 % 8).collect();
    let readers: Vec<_> =
        adapters.iter().enumerate().map(|(i, adapter)| ask(engine, prompt(i), adapter.clone())).collect();
    for mut reader in readers {
        while let Some(event) = reader.blocking_recv() {
            assert!(!matches!(black_box(event), Event::Failed(_)));
        }
    }
}

fn scheduling(c: &mut Criterion) {
    let engine = start(toy::Toy::new(1024, 16));
    let mut group = c.benchmark_group("toy");
    group.throughput(Throughput::Elements(TOKENS as u64));
    let voices: Vec<_> = (0..8).map(|i| toy::adapter(&format!("voice {i}"))).collect();
    for count in [1, 8, 64] {
        group.bench_function(format!("{count} on the base"), |b| b.iter(|| answers(&engine, &vec![None; count])));
        let tuned: Vec<_> = voices.iter().cycle().take(count).cloned().map(Some).collect();
        group.bench_function(format!("{count} on up to 8 adapters"), |b| b.iter(|| answers(&engine, &tuned)));
    }
}

criterion_group!(benches, scheduling);
criterion_main!(benches);
