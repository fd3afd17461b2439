//! Builds each part, wires them, serves, and drains in order.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::oneshot,
};

use crate::{
    adapters::{
        AdapterError, AdapterStore, BaseIdentity, Refusal,
        source::{SourceError, Sources, Watch, WatchSettings},
    },
    config::{AdapterConfig, Config, Device},
    data_dir, engine,
    feedback::Flags,
    gateway::{
        FirstUse, Gateway, GatewaySettings, Parts, Publisher,
        publish::{PublishError, VaultLimits},
        reconcile::{Follow, Following},
        trial::Trial,
    },
    http::{
        self,
        auth::{Keys, KeysError},
        serve::{Listener, ServeSettings},
    },
    journal::{Journal, JournalError},
    metrics::Metrics,
    model::{
        self, CpuDecoder, CpuOptions, DeviceChoice, Isa, KvShape, LoadError, LoadOptions, MissingIsa, ModelSource,
    },
    store::{SqliteStore, Store, StoreError},
    terms::{AdapterVersion, SamplingLayer},
    text::{Text, TextError, TextSource},
};

/// Why the server could not start.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    #[error("{address} is in use; stop what listens there, or choose another with --port")]
    PortInUse { address: SocketAddr },
    #[error("{address}: {error}")]
    Listen { address: SocketAddr, error: std::io::Error },
    #[error("the model cannot be loaded: {0}")]
    Model(#[from] LoadError),
    #[error("--cpu-instructions: {0}")]
    Instructions(#[from] MissingIsa),
    #[error("the tokenizer cannot be loaded: {0}")]
    Text(#[from] TextError),
    #[error("the record cannot be opened: {0}")]
    Store(#[from] StoreError),
    #[error("the record cannot be opened: {0}")]
    Journal(#[from] JournalError),
    #[error("the adapters cannot be read: {0}")]
    Adapters(#[from] AdapterError),
    #[error("the adapters cannot be read: {0}")]
    Publish(#[from] PublishError),
    #[error("the adapters' sources cannot be used: {0}")]
    Sources(#[from] SourceError),
    #[error("the rules for flags cannot be read: {}", .0.join("; "))]
    FlagRules(Vec<String>),
    #[error("the API keys cannot be read: {0}")]
    Keys(#[from] KeysError),
    #[error("{0}")]
    System(String),
}

/// What a person is told once the server is ready.
pub struct Ready<'a> {
    pub address: SocketAddr,
    pub base: &'a str,
    pub adapters: Vec<(String, AdapterVersion)>,
    pub refused: &'a [(String, Vec<Refusal>)],
    pub notes: &'a [String],
    /// How long loading took.
    pub took: Duration,
}

/// A gateway with its engine, and what came up while it was built.
pub struct Built {
    pub gateway: Gateway,
    /// The rules that flag answers; nothing is followed yet.
    pub flags: Flags,
    pub refused: Vec<(String, Vec<Refusal>)>,
    pub notes: Vec<String>,
    /// What stood in the folders before it was published.
    watch: Option<Watch>,
    engine: JoinHandle<()>,
}

impl Built {
    /// Follows folders and the file of desired adapters from now on, where that is wanted, until what this gives is
    /// dropped. Needs a running `tokio`.
    pub fn follow(&mut self, config: &Config) -> Option<Following> {
        let watch = self.watch.take()?;
        let (gateway, adapters) = (self.gateway.clone(), &config.adapters);
        let follow = Follow { gateway, watch, config: adapters.follow.clone(), at_once: adapters.fetch.at_once };
        Some(follow.start())
    }

    /// Ends the engine; what still runs fails.
    pub fn stop(self) {
        self.gateway.engine().stop();
        if self.engine.join().is_err() {
            tracing::error!("the engine ended by a panic");
        }
    }
}

/// Loads the base model and opens adapters and record. Takes as long as reading the model takes.
///
/// The caller holds the data directory.
pub fn build(config: &Config, metrics: &Arc<Metrics>) -> Result<Built, AppError> {
    model::give_back_large_buffers();
    let source = ModelSource::detect(&config.model.path)?;
    let text_source = match &source {
        ModelSource::Folder(path) => TextSource::Folder(path.clone()),
        ModelSource::Gguf(path) => TextSource::Gguf(path.clone()),
    };
    let loaded = model::load(&source, &load_options(config)?)?;
    let mut notes = loaded.notes;
    notes.push(memory_note(loaded.weight_bytes, loaded.decoder.kv_shape(), config.adapters.max_bytes));
    metrics.weight_bytes.set(loaded.weight_bytes as i64);
    metrics.adapter_bytes_limit.set(i64::try_from(config.adapters.max_bytes).unwrap_or(i64::MAX));
    let text = Arc::new(Text::load(&text_source, config.model.chat_template.clone())?);
    let base_names = base_names(config);
    let mut eos_tokens = loaded.eos_tokens;
    eos_tokens.extend(text.eos_tokens());
    eos_tokens.sort_unstable();
    eos_tokens.dedup();
    let vault = config.record.data_dir.join("vault");
    let identity = BaseIdentity { shape: loaded.shape.clone(), digest: loaded.digest, names: base_names.clone() };
    let store = open_store(config)?;
    let adapters = AdapterStore::open(
        &config.adapters,
        &vault,
        Arc::clone(&store),
        loaded.packer,
        identity,
        loaded.base,
        Arc::clone(metrics),
    )?;
    notes.extend(host_note(config.adapters.max_host_bytes, adapters.store.resident().host.is_some()));
    let journal = Journal::open(store, &config.record, Arc::clone(metrics))?;
    let flags =
        Flags::open(config.flag_rules.clone(), journal.clone(), Arc::clone(metrics)).map_err(AppError::FlagRules)?;
    let (engine, thread) = engine::spawn(loaded.decoder, config.engine.clone(), Arc::clone(metrics));
    let trial = config.adapters.trial.then(|| Trial::new(engine.clone(), Arc::clone(&text), Arc::clone(metrics)));
    let limits = VaultLimits::from(&config.adapters);
    let publisher = Publisher::trying(Arc::clone(&adapters.store), limits, trial);
    let sources = Arc::new(Sources::open(&config.adapters, config.record.data_dir.join("fetched"))?);
    let first_use = config.adapters.follow.on_first_use.then(|| FirstUse::new(publisher.clone(), Arc::clone(&sources)));
    let watch = watch(config)?;
    model::give_back_free_memory();
    let gateway = Gateway::new(Parts {
        engine,
        adapters: Arc::clone(&adapters.store),
        publisher,
        sources,
        first_use,
        text,
        sketch: loaded.sketch,
        journal,
        metrics: Arc::clone(metrics),
        settings: GatewaySettings {
            base_names,
            base: loaded.digest,
            build: format!("{} {}", env!("CARGO_PKG_VERSION"), loaded.engine),
            base_sampling: if config.model.own_sampling { loaded.sampling } else { SamplingLayer::default() },
            eos_tokens,
            record: config.record.policy,
            default_max_tokens: config.limits.default_max_tokens,
            answer_timeout: config.limits.answer_timeout,
            adapter_wait: config.adapters.wait,
            tokenizer_threads: 2,
        },
    });
    let built = Built { gateway, flags, refused: Vec::new(), notes, watch, engine: thread };
    match built.gateway.publisher().publish_configured(&config.adapters) {
        Ok(mut refused) => {
            // A name of the catalog that a folder has put right is served after all.
            let still = |name: &str| adapters.store.find(name).is_err();
            refused.extend(adapters.refused.into_iter().filter(|(name, _)| still(name)));
            refused.sort_by(|one, other| one.0.cmp(&other.0));
            refused.dedup_by(|one, other| one.0 == other.0);
            Ok(Built { refused, ..built })
        }
        Err(error) => {
            built.stop();
            Err(error.into())
        }
    }
}

/// Looks at the folders of adapters, and goes on looking, where they or a file of desired adapters are followed.
fn watch(config: &Config) -> Result<Option<Watch>, AppError> {
    let AdapterConfig { dirs, follow, .. } = &config.adapters;
    if follow.interval.is_zero() || (dirs.is_empty() && follow.desired.is_none()) {
        return Ok(None);
    }
    let settings = WatchSettings {
        roots: dirs.clone(),
        files: follow.desired.iter().cloned().collect(),
        interval: follow.interval,
        settle: follow.settle,
    };
    Watch::start(settings).map(Some).map_err(|error| AppError::System(error.to_string()))
}

/// What the server's memory is for. What comes beside depends on neither requests nor adapters, but for a step's buffers,
/// which grow with its rows.
fn memory_note(weight_bytes: u64, kv: KvShape, adapter_bytes: u64) -> String {
    let mib = |bytes: u64| bytes.div_ceil(1 << 20);
    format!(
        "memory: {} MiB of weights; up to {} MiB of keys and values (--kv-cache-memory-bytes), as they are used; up to {} MiB of \
         adapters (--adapter-memory-bytes)",
        mib(weight_bytes),
        mib((kv.blocks * kv.block_bytes) as u64),
        mib(adapter_bytes),
    )
}

/// What is to be said of the tier between the device and the disk.
fn host_note(bytes: u64, there: bool) -> Option<String> {
    match (bytes, there) {
        (0, _) => None,
        (_, true) => Some(format!(
            "host memory: up to {} MiB of copies of adapters (--adapter-host-bytes)",
            bytes.div_ceil(1 << 20)
        )),
        (_, false) => Some(
            "--adapter-host-bytes makes no difference: on a CPU adapters are computed with in host memory".to_owned(),
        ),
    }
}

/// The database of a data directory.
pub fn record_file(data_dir: &Path) -> PathBuf {
    data_dir.join("tunegate.db")
}

/// Opens the database in the data directory: record and catalog.
pub fn open_store(config: &Config) -> Result<Arc<dyn Store>, AppError> {
    std::fs::create_dir_all(&config.record.data_dir)
        .map_err(|error| AppError::System(format!("{}: {error}", config.record.data_dir.display())))?;
    if data_dir::is_restoring(&config.record.data_dir) {
        let dir = config.record.data_dir.display();
        return Err(AppError::System(format!("a restore of {dir} was interrupted: run tunegate restore again")));
    }
    Ok(Arc::new(SqliteStore::open(&record_file(&config.record.data_dir))?))
}

/// The base's names: the configured ones, else the model's file or folder name.
fn base_names(config: &Config) -> Vec<String> {
    if !config.server.served_names.is_empty() {
        return config.server.served_names.clone();
    }
    let path = &config.model.path;
    let name = if path.is_file() { path.file_stem() } else { path.file_name() };
    vec![name.map_or_else(|| "base".to_owned(), |name| name.to_string_lossy().into_owned())]
}

fn load_options(config: &Config) -> Result<LoadOptions, MissingIsa> {
    let isa = config.model.cpu.instructions.map(|level| Isa::named(level.as_str())).transpose()?.flatten();
    Ok(LoadOptions {
        device: match config.model.device {
            Device::Cpu => DeviceChoice::Cpu,
            Device::Cuda(index) => DeviceChoice::Cuda(index),
            Device::Metal(index) => DeviceChoice::Metal(index),
        },
        dtype: config.model.dtype,
        kv_bytes: config.model.kv_bytes,
        block_tokens: config.model.block_tokens,
        max_model_len: config.model.max_model_len,
        cpu: CpuOptions {
            decoder: if config.model.cpu.tensors { CpuDecoder::Tensor } else { CpuDecoder::Fused },
            exact: config.model.cpu.exact,
            threads: config.model.cpu.threads,
            pin: config.model.cpu.pin,
            isa,
        },
    })
}

/// Serves until SIGTERM or SIGINT, then drains: readiness goes red, running answers finish for at most the configured
/// time, the rest end with an error event, and the record is written out. A second signal ends the wait.
///
/// `socket` is the operators' own listener, where there is one; `orphaned` resolves when nobody is left to serve, which
/// counts as a signal; `ready` is told once requests can be answered.
pub async fn serve(
    config: Config,
    socket: Option<tokio::net::UnixListener>,
    orphaned: impl Future<Output = ()>,
    ready: impl FnOnce(&Ready<'_>),
) -> Result<(), AppError> {
    let begin = Instant::now();
    // Bound first: a busy port is known before the model is read.
    let listener = bind(config.server.listen).await?;
    let address = listener.local_addr().map_err(|error| AppError::System(error.to_string()))?;
    let admin = match config.server.admin.port {
        Some(port) => Some(bind(SocketAddr::new(config.server.listen.ip(), port)).await?),
        None => None,
    };
    let signals = Signals::install()?;
    let keys = Arc::new(Keys::load(&config.server)?);
    let metrics = Arc::new(Metrics::new());
    let config = Arc::new(config);
    let mut built = {
        let (config, metrics) = (Arc::clone(&config), Arc::clone(&metrics));
        tokio::task::spawn_blocking(move || build(&config, &metrics))
            .await
            .map_err(|error| AppError::System(error.to_string()))??
    };
    let gateway = built.gateway.clone();
    let following = built.follow(&config);
    let flagging = built.flags.follow();
    let app = http::AppState::new(gateway.clone(), built.flags.clone(), Arc::clone(&metrics), &config, keys);
    let router = http::router(app);
    ready(&Ready {
        address,
        base: gateway.base_name(),
        adapters: gateway.adapters().list().into_iter().map(|entry| (entry.name.to_string(), entry.version)).collect(),
        refused: &built.refused,
        notes: &built.notes,
        took: begin.elapsed(),
    });
    let listeners = [Listener::Tcp(listener)]
        .into_iter()
        .chain(admin.map(Listener::Admin))
        .chain(socket.map(Listener::Unix))
        .collect();
    let settings = ServeSettings { limits: Arc::new(config.limits.clone()), metrics, grace: CLOSE_WITHIN };
    let (stop, stopping) = oneshot::channel::<()>();
    let serving = tokio::spawn(http::serve::serve(listeners, router, settings, async {
        // A dropped sender stops as well.
        let _ = stopping.await;
    }));
    drain(&gateway, signals, orphaned, config.server.shutdown_timeout).await;
    drop(following);
    drop(flagging);
    drop(stop);
    if let Err(error) = serving.await {
        tracing::error!(%error, "the listener ended by a panic");
    }
    // A record that is down is tried once more as the last of the gateway goes.
    let _ = tokio::time::timeout(CLOSE_WITHIN, gateway.journal().idle()).await;
    tokio::task::spawn_blocking(move || built.stop()).await.map_err(|error| AppError::System(error.to_string()))
}

/// How long connections may take to close once their answers have ended.
const CLOSE_WITHIN: Duration = Duration::from_secs(5);

async fn bind(address: SocketAddr) -> Result<TcpListener, AppError> {
    TcpListener::bind(address).await.map_err(|error| match error.kind() {
        std::io::ErrorKind::AddrInUse => AppError::PortInUse { address },
        _ => AppError::Listen { address, error },
    })
}

/// Waits for a signal, then for the answers under way.
async fn drain(gateway: &Gateway, mut signals: Signals, orphaned: impl Future<Output = ()>, limit: Duration) {
    tokio::select! {
        () = signals.next() => {}
        () = orphaned => {}
    }
    gateway.drain();
    tracing::info!(limit_ms = limit.as_millis() as u64, "draining: running answers may finish");
    tokio::select! {
        () = gateway.idle() => {}
        () = tokio::time::sleep(limit) => tracing::warn!("the time to drain is over: the rest is cut off"),
        () = signals.next() => tracing::warn!("a second signal: the rest is cut off"),
    }
    gateway.cut_off();
    // Each answer records its ending as it is dropped; slow readers are closed with their connections.
    let _ = tokio::time::timeout(CLOSE_WITHIN, gateway.idle()).await;
}

/// SIGTERM and SIGINT.
struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    fn install() -> Result<Self, AppError> {
        let install = |kind| signal(kind).map_err(|error| AppError::System(error.to_string()));
        Ok(Self { terminate: install(SignalKind::terminate())?, interrupt: install(SignalKind::interrupt())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
