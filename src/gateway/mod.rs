//! One request from question to recorded answer. Used by HTTP, evaluation, probes and replay alike.

mod ask;
mod belonging;
mod choice;
mod first_use;
pub mod publish;
mod question;
pub mod reconcile;
mod replay;
mod reply;
mod route;
pub mod trial;

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

pub use ask::{Ask, AskError, Caller, Prompt, ReplyError, ReplyEvent, ReplyHead};
pub use first_use::FirstUse;
pub use publish::Publisher;
pub use replay::{Replay, ReplayError, ReplayedChoice, Side};
pub use reply::Reply;
pub use route::Route;
use tokio::sync::{Notify, Semaphore, watch};

use self::reconcile::Report;
use crate::{
    adapters::{AdapterLease, AdapterStore, source::Sources},
    engine::EngineHandle,
    journal::{Journal, Slot},
    metrics::Metrics,
    terms::{Digest, RecordPolicy, SamplingLayer, TokenSketch},
    text::Text,
};

/// What a gateway is made of.
pub struct Parts {
    pub engine: EngineHandle,
    pub adapters: Arc<AdapterStore>,
    pub publisher: Publisher,
    pub sources: Arc<Sources>,
    /// Looks for names that are not known; `None` where that is not wanted.
    pub first_use: Option<Arc<FirstUse>>,
    pub text: Arc<Text>,
    /// What prompts are about, for the record.
    pub sketch: Arc<TokenSketch>,
    pub journal: Journal,
    pub metrics: Arc<Metrics>,
    pub settings: GatewaySettings,
}

/// What a gateway is told once.
#[derive(Clone, Debug)]
pub struct GatewaySettings {
    /// The base's names; answers echo the first.
    pub base_names: Vec<String>,
    pub base: Digest,
    /// Version of the server and what it computes with, as it is recorded.
    pub build: String,
    /// Sampling defaults that come with the base.
    pub base_sampling: SamplingLayer,
    /// Tokens that end a turn of the base.
    pub eos_tokens: Vec<u32>,
    /// The server's recording policy.
    pub record: RecordPolicy,
    /// Answer tokens where a request names no limit.
    pub default_max_tokens: usize,
    /// The longest an answer may take, from admission.
    pub answer_timeout: Duration,
    /// How long a request waits for an adapter that is not in memory.
    pub adapter_wait: Duration,
    /// Prompts that may be tokenized at the same time.
    pub tokenizer_threads: usize,
}

/// Answers requests: base or adapter, each recorded. Cheap to clone.
#[derive(Clone)]
pub struct Gateway(Arc<Inner>);

struct Inner {
    parts: Parts,
    tokenizing: Arc<Semaphore>,
    draining: AtomicBool,
    cut_off: watch::Sender<bool>,
    /// Answers under way.
    running: watch::Sender<usize>,
    /// The same by id, with the keys that asked.
    in_flight: Mutex<HashMap<String, Option<String>>>,
    /// How names stand to folders and to the file of desired adapters.
    reports: watch::Sender<Report>,
    /// Rung when there may be something to do for whoever follows folders and the file of desired adapters.
    look: Notify,
}

impl Gateway {
    pub fn new(parts: Parts) -> Self {
        let tokenizing = Arc::new(Semaphore::new(parts.settings.tokenizer_threads.max(1)));
        let cut_off = watch::Sender::new(false);
        let running = watch::Sender::new(0);
        let reports = watch::Sender::new(Report::default());
        Self(Arc::new(Inner {
            parts,
            tokenizing,
            draining: AtomicBool::new(false),
            cut_off,
            running,
            in_flight: Mutex::default(),
            reports,
            look: Notify::new(),
        }))
    }

    /// Takes a request to the point where its answer begins. Everything that can be refused is refused here.
    ///
    /// # Errors
    /// [`AskError`]; then nothing runs and nothing is recorded.
    pub async fn ask(&self, ask: Ask) -> Result<Reply, AskError> {
        if self.is_draining() {
            return Err(AskError::Draining);
        }
        let parts = &self.0.parts;
        let (begun, wait) = (Instant::now(), ask.adapter_wait.unwrap_or(parts.settings.adapter_wait));
        let route = match self.route(&ask.model, &ask.caller) {
            Err(AskError::UnknownModel { .. }) if self.bring(&ask.model, &ask.caller, wait).await? => {
                self.route(&ask.model, &ask.caller)?
            }
            route => route?,
        };
        let slot = parts.journal.reserve(question::choices(&ask))?;
        let began = Instant::now();
        let lease = match &route {
            Route::Base => None,
            Route::Adapter { name, version } => {
                let left = wait.saturating_sub(begun.elapsed());
                Some(parts.adapters.lease_within(name, *version, left).await?)
            }
        };
        self.answer(ask, lease, slot, began.elapsed()).await
    }

    /// As [`Gateway::ask`], of weights that the caller holds, whether or not a name points at them. `ask.model` has no
    /// effect.
    ///
    /// # Errors
    /// As [`Gateway::ask`].
    pub async fn ask_version(&self, ask: Ask, lease: AdapterLease) -> Result<Reply, AskError> {
        if self.is_draining() {
            return Err(AskError::Draining);
        }
        let slot = self.0.parts.journal.reserve(question::choices(&ask))?;
        self.answer(ask, Some(lease), slot, Duration::ZERO).await
    }

    /// `waited` is how long the adapter was waited for.
    async fn answer(
        &self,
        ask: Ask,
        lease: Option<AdapterLease>,
        slot: Slot,
        waited: Duration,
    ) -> Result<Reply, AskError> {
        let question = question::settle(self, ask, lease, waited).await?;
        reply::begin(self, question, slot).await
    }

    /// No new requests from now on; running answers go on.
    pub fn drain(&self) {
        self.0.draining.store(true, Ordering::Release);
    }

    pub fn is_draining(&self) -> bool {
        self.0.draining.load(Ordering::Acquire)
    }

    /// Waits until no answer is under way.
    pub async fn idle(&self) {
        // The sender lives as long as this gateway does, so waiting cannot fail.
        let _ = self.0.running.subscribe().wait_for(|running| *running == 0).await;
    }

    /// Ends every running answer with [`ReplyError::CutOff`].
    pub fn cut_off(&self) {
        self.0.cut_off.send_replace(true);
    }

    /// Counts the answer `id` as under way until what this gives is dropped.
    fn count_running(&self, id: &str, key: Option<&str>) -> Running {
        self.0.running.send_modify(|running| *running += 1);
        self.in_flight_ids().insert(id.to_owned(), key.map(str::to_owned));
        Running { gateway: self.clone(), id: id.to_owned() }
    }

    /// Whether an answer of this id is under way, or on its way to the record, that `key` may see; `None` may see all.
    pub fn is_in_flight(&self, id: &str, key: Option<&str>) -> bool {
        self.in_flight_ids().get(id).is_some_and(|owner| key.is_none() || owner.as_deref() == key)
    }

    fn in_flight_ids(&self) -> MutexGuard<'_, HashMap<String, Option<String>>> {
        self.0.in_flight.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks for a name that is not known, where that is switched on, for as long as the caller waits; true if it is served
    /// now.
    async fn bring(&self, model: &str, caller: &Caller, wait: Duration) -> Result<bool, AskError> {
        let parts = &self.0.parts;
        let Some(first_use) = &parts.first_use else { return Ok(false) };
        match route::may_be(model, caller, &parts.settings.base_names) {
            Some(name) => Ok(first_use.find_within(&name, wait).await?),
            None => Ok(false),
        }
    }

    /// Which weights would answer to `model`, for callers that list or look up models.
    pub fn route(&self, model: &str, caller: &Caller) -> Result<Route, AskError> {
        let parts = &self.0.parts;
        let route = route::choose(model, caller, &parts.settings.base_names, &parts.adapters)?;
        match &route {
            Route::Adapter { name, version } => match parts.publisher.objection(name, *version) {
                Some(error) => Err(error.into()),
                None => Ok(route),
            },
            Route::Base => Ok(route),
        }
    }

    /// The base's name as answers echo it.
    pub fn base_name(&self) -> &str {
        self.0.parts.settings.base_names.first().map_or("base", String::as_str)
    }

    pub fn settings(&self) -> &GatewaySettings {
        &self.0.parts.settings
    }

    pub fn engine(&self) -> &EngineHandle {
        &self.0.parts.engine
    }

    pub fn adapters(&self) -> &Arc<AdapterStore> {
        &self.0.parts.adapters
    }

    /// Gives versions their names.
    pub fn publisher(&self) -> &Publisher {
        &self.0.parts.publisher
    }

    pub fn sources(&self) -> &Arc<Sources> {
        &self.0.parts.sources
    }

    /// How names stand to folders and to the file of desired adapters, and word of every look.
    pub fn reports(&self) -> watch::Receiver<Report> {
        self.0.reports.subscribe()
    }

    /// Has folders and the file of desired adapters looked at now instead of when it is time.
    pub fn look_again(&self) {
        self.0.look.notify_one();
    }

    pub fn text(&self) -> &Arc<Text> {
        &self.0.parts.text
    }

    pub fn journal(&self) -> &Journal {
        &self.0.parts.journal
    }

    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.0.parts.metrics
    }
}

/// Counts one answer under way for as long as it lives.
struct Running {
    gateway: Gateway,
    id: String,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.gateway.in_flight_ids().remove(&self.id);
        self.gateway.0.running.send_modify(|running| *running -= 1);
    }
}
