//! What a cold adapter costs: the time until it is leased, and what streams that are under way feel of it. And what moving a
//! name takes.
//!
//!     cargo bench --bench adapters [-- MODEL]

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::json;
use tunegate::{
    adapters::{AdapterStore, BaseIdentity, ManagedBy},
    config::{AdapterConfig, EngineConfig},
    engine::{self, CancelFlag, EngineHandle, Event, Generate, Job, KvSalt, Priority, Work, event_channel},
    gateway::publish::{Candidate, Expected, Load, Origin, Publisher, VaultLimits},
    metrics::Metrics,
    model::{self, CpuOptions, DeviceChoice, LoadOptions, ModelShape, ModelSource},
    store::SqliteStore,
    terms::{AdapterName, AdapterVersion, Sampling},
};

const ADAPTERS: usize = 6;
const RANK: usize = 16;
const STREAMS: usize = 4;
const TOKENS: usize = 160;

fn main() {
    let given = std::env::args().skip(1).find(|argument| !argument.starts_with("--"));
    let model =
        given.map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/models/wide"), PathBuf::from);
    let source = ModelSource::detect(&model).expect("a model");
    let options = LoadOptions {
        device: DeviceChoice::Cpu,
        dtype: None,
        kv_bytes: 256 << 20,
        block_tokens: 16,
        max_model_len: Some(256),
        cpu: CpuOptions::default(),
    };
    let loaded = model::load(&source, &options).expect("the model loads");
    let place = tempfile::tempdir().expect("a folder");
    for index in 0..ADAPTERS {
        write_adapter(&place.path().join(format!("adapters/a{index}")), &loaded.shape, index);
    }

    let metrics = Arc::new(Metrics::new());
    let identity = BaseIdentity { shape: loaded.shape.clone(), digest: loaded.digest, names: vec!["base".to_owned()] };
    // Room for one: every lease of another is cold.
    let config =
        AdapterConfig { dirs: vec![place.path().join("adapters")], max_cpu_loras: Some(1), ..AdapterConfig::default() };
    let started = Instant::now();
    let vault = place.path().join("vault");
    let database = Arc::new(SqliteStore::open(&place.path().join("tunegate.db")).expect("a database"));
    let opened =
        AdapterStore::open(&config, &vault, database, loaded.packer, identity, loaded.base, Arc::clone(&metrics))
            .expect("the store opens");
    let store = opened.store;
    let publisher = Publisher::new(Arc::clone(&store), VaultLimits::from(&config));
    let refused = publisher.publish_configured(&config);
    assert!(refused.as_ref().is_ok_and(Vec::is_empty), "{refused:?}");
    let names: Vec<_> = (0..ADAPTERS).map(|i| store.find(&format!("a{i}")).expect("it is served")).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().expect("a runtime");
    println!("opened {ADAPTERS} adapters of rank {RANK} in {:.0} ms", millis(started.elapsed()));
    let mut cold: Vec<f64> = (0..30).map(|i| millis(runtime.block_on(lease(&store, &names[i % ADAPTERS])))).collect();
    println!("{} bytes each in memory", store.resident().bytes);
    show("cold lease, idle engine", &mut cold);
    runtime.block_on(moves(&publisher, place.path()));

    let (engine, _) = engine::spawn(loaded.decoder, EngineConfig::default(), metrics);
    streams(&engine);
    let mut alone = streams(&engine);
    let done = Arc::new(AtomicBool::new(false));
    let loads = runtime.spawn({
        let (store, names, done) = (Arc::clone(&store), names.clone(), Arc::clone(&done));
        async move {
            let mut times = Vec::new();
            while !done.load(Ordering::Relaxed) {
                times.push(millis(lease(&store, &names[times.len() % ADAPTERS]).await));
            }
            times
        }
    });
    let mut beside = streams(&engine);
    done.store(true, Ordering::Relaxed);
    let mut cold = runtime.block_on(loads).expect("the loads go on");
    let before = show("between tokens, no loads", &mut alone);
    let during = show("between tokens, always a cold load", &mut beside);
    show("cold lease, busy engine", &mut cold);
    println!("p99 ratio {:.2}", during / before);
}

async fn lease(store: &AdapterStore, (name, version): &(AdapterName, AdapterVersion)) -> Duration {
    let started = Instant::now();
    drop(store.lease(name, *version).await.expect("there is room"));
    started.elapsed()
}

/// Moves one name to and fro between two adapters.
async fn moves(publisher: &Publisher, place: &Path) {
    let (mut sync, mut flip) = (Vec::new(), Vec::new());
    for index in 0..100 {
        let path = place.join(format!("adapters/a{}", index % 2));
        let origin = Origin { managed_by: ManagedBy::Api, who: "bench".to_owned(), why: None, source: None };
        let load = Load {
            name: AdapterName::parse("moved").expect("a name"),
            candidate: Candidate::Folder { root: path.clone(), path },
            replace: true,
            expected: Expected::Anything,
            pinned: None,
            warm: false,
            origin,
        };
        let moved = publisher.load(load).await.expect("it is loaded").times.moved;
        sync.push(moved.sync_us as f64 / 1e3);
        flip.push(moved.flip_us as f64 / 1e3);
    }
    show("moving a name, written down and synced", &mut sync);
    show("moving a name, from then on", &mut flip);
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Prints the percentiles and returns the 99th.
fn show(what: &str, times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    let at = |share: f64| times[((times.len() - 1) as f64 * share).round() as usize];
    println!("{what}: n {}, p50 {:.3} ms, p99 {:.3} ms, max {:.3} ms", times.len(), at(0.5), at(0.99), at(1.0));
    at(0.99)
}

/// Milliseconds between the tokens of some streams on the base.
fn streams(engine: &EngineHandle) -> Vec<f64> {
    let readers: Vec<_> = (0..STREAMS as u32)
        .map(|stream| {
            let work = Work::Generate(Generate {
                sampling: Sampling { temperature: 0.0, ..Sampling::default() },
                max_tokens: TOKENS,
                min_tokens: 0,
                stop_tokens: [].into(),
                logit_bias: [].into(),
                top: 0,
                seed: 0,
                choice: 0,
            });
            let prompt: Vec<u32> = (1..17).map(|token| token + stream).collect();
            let (events, mut receiver) = event_channel(&work, prompt.len());
            let job = Job {
                work,
                tokens: prompt.into(),
                adapter: None,
                salt: KvSalt::default(),
                tenant: 0,
                priority: Priority::Normal,
                cancel: CancelFlag::default(),
                events,
            };
            engine.submit(job).expect("the engine takes the job");
            std::thread::spawn(move || {
                let (mut gaps, mut last) = (Vec::new(), None);
                while let Some(event) = receiver.blocking_recv() {
                    assert!(!matches!(event, Event::Failed(_)));
                    let now = Instant::now();
                    gaps.extend(last.replace(now).map(|before| millis(now - before)));
                }
                gaps
            })
        })
        .collect();
    readers.into_iter().flat_map(|reader| reader.join().expect("the stream ends")).collect()
}

/// Every linear layer, f32, small values that differ between adapters.
fn write_adapter(folder: &Path, shape: &ModelShape, index: usize) {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    let mut state = index as u32 + 1;
    for site in shape.layer_sites() {
        let (outputs, inputs) = shape.site_shape(site).expect("a site of the base");
        for (half, dimensions) in [("lora_A", [RANK, inputs]), ("lora_B", [outputs, RANK])] {
            let begin = data.len();
            for _ in 0..dimensions[0] * dimensions[1] {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                data.extend((state as f32 / u32::MAX as f32 * 0.02 - 0.01).to_le_bytes());
            }
            let entry = json!({ "dtype": "F32", "shape": dimensions, "data_offsets": [begin, data.len()] });
            header.insert(format!("base_model.model.{site}.{half}.weight"), entry);
        }
    }
    let header = serde_json::Value::Object(header).to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.into_bytes());
    file.extend(data);
    let config = json!({ "peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "target_modules": "all-linear" });
    std::fs::create_dir_all(folder).expect("a folder");
    std::fs::write(folder.join("adapter_config.json"), config.to_string()).expect("written");
    std::fs::write(folder.join("adapter_model.safetensors"), file).expect("written");
}
