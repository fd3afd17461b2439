//! Steps per second through the whole engine: submit, plan, forward, events. One element is one step of every answer.

use std::{hint::black_box, path::Path, sync::Arc, time::Duration};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tunegate::{
    adapters::{AdapterLimits, folder::AdapterFiles, peft},
    config::EngineConfig,
    engine::{
        self, CancelFlag, EngineHandle, Event, EventReceiver, Generate, Job, KvSalt, Priority, Work, event_channel,
    },
    metrics::Metrics,
    model::{self, CpuOptions, DeviceChoice, LanguageModel, LoadOptions, LoraAdapter, ModelSource},
    terms::Sampling,
};

#[path = "../tests/it/engine/toy.rs"]
#[expect(dead_code, reason = "the end-to-end tests use the rest")]
mod toy;

const TOKENS: usize = 64;

fn config() -> EngineConfig {
    EngineConfig { max_num_seqs: 64, step_target: Duration::ZERO, ..Default::default() }
}

fn start(model: Box<dyn LanguageModel>) -> EngineHandle {
    engine::spawn(model, config(), Arc::new(Metrics::new())).0
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

/// One, eight and 64 answers at a time: all on the base, then spread over `voices`.
fn measure(c: &mut Criterion, name: &str, model: Box<dyn LanguageModel>, voices: &[Arc<LoraAdapter>]) {
    let engine = start(model);
    let mut group = c.benchmark_group(name);
    group.sample_size(20).throughput(Throughput::Elements(TOKENS as u64));
    for count in [1, 8, 64] {
        group.bench_function(format!("{count} on the base"), |b| b.iter(|| answers(&engine, &vec![None; count])));
        let tuned: Vec<_> = voices.iter().cycle().take(count).cloned().map(Some).collect();
        let adapters = count.min(voices.len());
        group.bench_function(format!("{count} on {adapters} adapters"), |b| b.iter(|| answers(&engine, &tuned)));
    }
}

/// The engine's own cost, and a toy that hashes its context.
fn toy(c: &mut Criterion) {
    let voices: Vec<_> = (0..8).map(|i| toy::adapter(&format!("voice {i}"))).collect();
    measure(c, "toy", Box::new(toy::Toy::new(1024, 16)), &voices);
}

/// Two layers, hidden size 64.
fn tiny_llama(c: &mut Criterion) {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let source = ModelSource::detect(&golden.join("models/llama")).expect("a model folder");
    let options = LoadOptions {
        device: DeviceChoice::Cpu,
        dtype: None,
        kv_bytes: 8 << 20,
        block_tokens: 16,
        max_model_len: Some(128),
        cpu: CpuOptions::default(),
    };
    let loaded = model::load(&source, &options).expect("the model loads");
    let limits = AdapterLimits { max_rank: 64, max_file_bytes: 1 << 20 };
    let names = ["plain-qv", "all7", "rslora", "patterns", "rslora-patterns", "exclude-list", "o-down", "rank-1"];
    let voices = names.map(|name| {
        let folder = golden.join("adapters/llama").join(name);
        let files = AdapterFiles::read(&folder, &folder, limits.max_file_bytes).expect("adapter files");
        let adapter = peft::read(&files, &loaded.shape, limits, Some(&*loaded.base)).expect("a good adapter");
        Arc::new(loaded.packer.pack(files.version(), adapter.sites).expect("it fits the base"))
    });
    measure(c, "tiny llama", loaded.decoder, &voices);
}

criterion_group!(benches, toy, tiny_llama);
criterion_main!(benches);
