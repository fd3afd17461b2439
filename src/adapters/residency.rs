//! Which versions' weights are in memory. Bytes are reserved before anything is read, requests that miss together share
//! one load, and what is leased stays until the last lease drops, evicted or not.
//!
//! The book is the truth: every adapter alive, by version, and their bytes until the last of them is really freed. The
//! cache beside it only holds strong references to those that nobody pinned.

mod book;
mod host;
mod reservation;
mod usage;

use std::{
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
        mpsc::{self, RecvTimeoutError},
    },
    time::{Duration, Instant},
};

use book::{Book, Resident};
pub use host::{HostLimits, HostSnapshot};
use host::{HostShelf, Shelved};
use moka::{policy::EvictionPolicy, sync::Cache};
pub use reservation::Reservation;
use tokio::sync::watch;
use usage::Usage;
pub use usage::{LoadTimes, ResidencySnapshot, Seat, VersionUse};

use super::{
    AdapterCard, AdapterError, Residency,
    quarantine::{Confined, Quarantine},
};
use crate::{
    metrics::Metrics,
    model::{HostCopy, LoraAdapter, lora::RetiredAdapter},
    terms::{AdapterName, AdapterVersion, Moment},
};

/// What one version needs while it is used.
#[derive(Clone, Debug)]
pub struct Ready {
    pub weights: Arc<LoraAdapter>,
    pub card: Arc<AdapterCard>,
    usage: Arc<Usage>,
}

impl Ready {
    /// Counts one user for as long as the seat lives.
    pub fn seat(&self) -> Seat {
        Seat::take(&self.usage)
    }
}

/// How much may be in memory.
#[derive(Clone, Copy, Debug)]
pub struct ResidencyLimits {
    /// Bytes of packed weights, leased and unfreed ones included.
    pub max_bytes: u64,
    /// Versions, where a count is wanted beside the bytes.
    pub max_count: Option<usize>,
    /// What may be kept in host memory beside; `None` where there is no such memory beside.
    pub host: Option<HostLimits>,
}

/// Reads and packs one version. It calls [`Reservation::resize`] with the bytes that packing will take before it packs.
/// Runs on a loading thread.
pub type Load =
    dyn Fn(&AdapterName, AdapterVersion, &mut Reservation<'_>) -> Result<Loaded, AdapterError> + Send + Sync;

/// What a load brings.
pub struct Loaded {
    pub weights: LoraAdapter,
    pub card: Arc<AdapterCard>,
    /// The same in host memory, to be kept there.
    pub copy: Option<Arc<dyn HostCopy>>,
}

/// The weights in memory, and the threads that load and free them.
pub struct ResidentSet {
    shared: Arc<Shared>,
    jobs: mpsc::SyncSender<LoadJob>,
}

/// Versions that may wait for a loading thread at the same time.
const MAX_WAITING: usize = 1024;
/// Without anything freed for so long, what the allocator kept of it goes back to the system.
const SETTLED: Duration = Duration::from_secs(1);
/// When to come back if everything in memory is in use: about as long as a short answer takes.
pub const RETRY_AFTER_MS: u64 = 1000;

/// How long a load that finds no room waits for the others that are under way.
const FOR_OTHERS: Duration = Duration::from_millis(200);

struct Shared {
    cache: Cache<AdapterVersion, Arc<Held>>,
    limits: ResidencyLimits,
    book: Mutex<Book>,
    /// Rung whenever bytes were freed.
    freed: Condvar,
    /// Counts uses, so that of two adapters the one used longer ago is known.
    clock: AtomicU64,
    graveyard: Mutex<mpsc::Sender<RetiredAdapter>>,
    metrics: Arc<Metrics>,
    load: Box<Load>,
    host: Option<HostShelf>,
    /// Versions whose load failed for a reason of their own.
    quarantine: Quarantine<AdapterVersion, AdapterError>,
}

/// `None` while loading.
type Outcome = Option<Result<Ready, AdapterError>>;

/// What the cache holds. The weights are taken out when the entry is evicted, because the cache may keep the entry
/// itself for a while.
struct Held {
    ready: Mutex<Option<Ready>>,
    last_used: AtomicU64,
}

struct LoadJob {
    name: AdapterName,
    version: AdapterVersion,
    /// A first guess at the bytes, until the files are read.
    bytes: u64,
    done: watch::Sender<Outcome>,
}

impl ResidentSet {
    /// Starts `loaders` loading threads (at least one) and the one that frees. All end when the set and every adapter
    /// are gone.
    pub fn start(
        limits: ResidencyLimits,
        loaders: usize,
        metrics: Arc<Metrics>,
        load: Box<Load>,
    ) -> std::io::Result<Self> {
        let (graveyard, retired) = mpsc::channel();
        let cache = Cache::builder()
            .eviction_policy(EvictionPolicy::lru())
            .max_capacity(limits.max_bytes.div_ceil(1024))
            .weigher(|_, held: &Arc<Held>| {
                // Rounded down, so that what fits the book also fits here and the book alone decides.
                let bytes = held.lock().as_ref().map_or(0, |ready| ready.weights.bytes());
                u32::try_from(bytes / 1024).unwrap_or(u32::MAX)
            })
            .eviction_listener(|_, held: Arc<Held>, _| drop(held.lock().take()))
            .build();
        let host = limits.host.map(|limits| HostShelf::start(limits, Arc::clone(&metrics))).transpose()?;
        let shared = Arc::new(Shared {
            cache,
            limits,
            book: Mutex::default(),
            freed: Condvar::new(),
            clock: AtomicU64::new(0),
            graveyard: Mutex::new(graveyard),
            quarantine: Quarantine::new(Arc::clone(&metrics)),
            metrics,
            load,
            host,
        });
        let (jobs, waiting) = mpsc::sync_channel::<LoadJob>(MAX_WAITING);
        let waiting = Arc::new(Mutex::new(waiting));
        for index in 0..loaders.max(1) {
            let (shared, waiting) = (Arc::clone(&shared), Arc::clone(&waiting));
            std::thread::Builder::new().name(format!("adapter-load-{index}")).spawn(move || {
                crate::model::lower_thread_priority();
                loop {
                    let job = waiting.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    let Ok(job) = job else { return };
                    shared.run(job);
                }
            })?;
        }
        let weak = Arc::downgrade(&shared);
        std::thread::Builder::new().name("adapter-free".to_owned()).spawn(move || {
            crate::model::lower_thread_priority();
            let mut freed = false;
            loop {
                let next = match freed {
                    true => retired.recv_timeout(SETTLED),
                    false => retired.recv().map_err(|_| RecvTimeoutError::Disconnected),
                };
                match next {
                    Ok(adapter) => {
                        let (version, bytes) = (adapter.version, adapter.bytes);
                        drop(adapter);
                        freed = true;
                        if let Some(shared) = weak.upgrade() {
                            shared.buried(version, bytes);
                        }
                    }
                    Err(RecvTimeoutError::Timeout) => {
                        crate::model::give_back_free_memory();
                        freed = false;
                    }
                    Err(RecvTimeoutError::Disconnected) => return,
                }
            }
        })?;
        Ok(Self { shared, jobs })
    }

    /// The weights, from memory or loaded, and where they were. `bytes` is a first guess at what they take.
    ///
    /// # Errors
    /// What loading met, or that there is no room.
    pub async fn get(
        &self,
        name: &AdapterName,
        version: AdapterVersion,
        bytes: u64,
    ) -> Result<(Ready, Residency), AdapterError> {
        let joined = match self.shared.cached(version) {
            Some(ready) => Joined::Ready(ready),
            None => self.join_or_start(name, version, bytes)?,
        };
        let found = match &joined {
            Joined::Ready(_) => Residency::Resident,
            Joined::Loading(_) => Residency::Loading,
            Joined::Started(from, _) => *from,
        };
        self.shared.metrics.adapter_lookups.with_label_values(&[found.tier()]).inc();
        let mut outcome = match joined {
            Joined::Ready(ready) => return Ok((ready, found)),
            Joined::Loading(outcome) | Joined::Started(_, outcome) => outcome,
        };
        let lost = || AdapterError::Unreadable { name: name.to_string(), reason: "the load was given up".to_owned() };
        let done = outcome.wait_for(Option::is_some).await.map_err(|_| lost())?;
        Ok((done.clone().unwrap_or_else(|| Err(lost()))?, found))
    }

    fn join_or_start(&self, name: &AdapterName, version: AdapterVersion, bytes: u64) -> Result<Joined, AdapterError> {
        let mut book = self.shared.book();
        if let Some(ready) = book.ready(version) {
            if !book.pinned.contains_key(&version) {
                drop(book);
                self.shared.hold(version, &ready);
            }
            return Ok(Joined::Ready(ready));
        }
        if let Some(outcome) = book.loading.get(&version) {
            return Ok(Joined::Loading(outcome.clone()));
        }
        // What failed is not read again by everybody who asks for it.
        if let Some(confined) = self.shared.quarantine.barred(&version, Moment::unix_ms()) {
            return Err(confined.fault);
        }
        let (done, outcome) = watch::channel(None);
        let job = LoadJob { name: name.clone(), version, bytes, done };
        self.jobs.try_send(job).map_err(|_| AdapterError::Busy {
            name: name.clone(),
            reason: format!("{MAX_WAITING} others are waiting to be loaded"),
            retry_after_ms: RETRY_AFTER_MS,
        })?;
        book.loading.insert(version, outcome.clone());
        let from = if self.shared.copied(version).is_some() { Residency::Host } else { Residency::Cold };
        Ok(Joined::Started(from, outcome))
    }

    /// Loads a version and keeps it, whatever else is asked for.
    pub async fn pin(&self, name: &AdapterName, version: AdapterVersion, bytes: u64) -> Result<(), AdapterError> {
        let (ready, _) = self.get(name, version, bytes).await?;
        let mut book = self.shared.book();
        book.pinned.insert(version, ready);
        self.shared.cache.invalidate(&version);
        Ok(())
    }

    /// A name points at this version: it is kept while there is room.
    pub fn named(&self, version: AdapterVersion) {
        let mut book = self.shared.book();
        book.passing.remove(&version);
        let ready = book.ready(version).filter(|_| !book.pinned.contains_key(&version));
        drop(book);
        if let Some(ready) = ready {
            self.shared.hold(version, &ready);
        }
    }

    /// No name points at this version any more: it is freed when its last user lets go. Whoever asks for it by its digits
    /// has it for as long as it is used.
    pub fn retire(&self, version: AdapterVersion) {
        let mut book = self.shared.book();
        book.passing.insert(version);
        let pinned = book.pinned.remove(&version);
        self.shared.cache.invalidate(&version);
        if let Some(host) = &self.shared.host {
            host.remove(version);
        }
        drop(book);
        drop(pinned);
    }

    /// Lets a pinned version be evicted again.
    pub fn unpin(&self, version: AdapterVersion) {
        let ready = self.shared.book().pinned.remove(&version);
        if let Some(ready) = ready {
            self.shared.hold(version, &ready);
        }
    }

    /// Why a version's weights cannot be loaded, and until when nobody tries.
    pub fn confined(&self, version: AdapterVersion) -> Option<Confined<AdapterError>> {
        self.shared.quarantine.get(&version)
    }

    /// Lets a version be tried at once. True if its last load had failed.
    pub fn release(&self, version: AdapterVersion) -> bool {
        self.shared.quarantine.release(&version)
    }

    pub fn state(&self, version: AdapterVersion) -> Residency {
        let book = self.shared.book();
        if book.ready(version).is_some() {
            Residency::Resident
        } else if book.loading.contains_key(&version) {
            Residency::Loading
        } else if self.shared.copied(version).is_some() {
            Residency::Host
        } else {
            Residency::Cold
        }
    }

    pub fn usage(&self, version: AdapterVersion) -> VersionUse {
        let residency = self.state(version);
        let book = self.shared.book();
        let usage = book.usage.get(&version);
        VersionUse {
            residency,
            bytes: book.live.get(&version).map_or(0, |resident| resident.bytes),
            host_bytes: self.shared.copied(version).unwrap_or(0),
            leases: usage.map_or(0, |usage| usage.leases()),
            pinned: book.pinned.contains_key(&version),
            last_used_ms: usage.and_then(|usage| usage.last_used_ms()),
            load: usage.and_then(|usage| usage.load()),
        }
    }

    /// Requests that hold weights.
    pub fn leases(&self) -> usize {
        self.shared.book().usage.values().map(|usage| usage.leases()).sum()
    }

    pub fn snapshot(&self) -> ResidencySnapshot {
        let book = self.shared.book();
        let alive = book.live.iter().filter(|(_, resident)| resident.weights.strong_count() > 0);
        let mut versions: Vec<_> = alive.map(|(version, resident)| (*version, resident.bytes)).collect();
        versions.sort_unstable();
        let host = self.shared.host.as_ref().map(HostShelf::snapshot);
        ResidencySnapshot { versions, bytes: book.bytes, host }
    }
}

enum Joined {
    Ready(Ready),
    /// Somebody else's load.
    Loading(watch::Receiver<Outcome>),
    /// A load, from this tier.
    Started(Residency, watch::Receiver<Outcome>),
}

impl Held {
    fn lock(&self) -> MutexGuard<'_, Option<Ready>> {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes and last use, if only the cache has the weights.
    fn idle(&self) -> Option<Idle> {
        let held = self.lock();
        let weights = &held.as_ref()?.weights;
        let last_used = self.last_used.load(Ordering::Relaxed);
        (Arc::strong_count(weights) == 1).then(|| Idle { bytes: weights.bytes(), last_used })
    }
}

struct Idle {
    bytes: u64,
    last_used: u64,
}

impl Shared {
    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cached(&self, version: AdapterVersion) -> Option<Ready> {
        let held = self.cache.get(&version)?;
        held.last_used.store(self.tick(), Ordering::Relaxed);
        held.lock().clone()
    }

    fn tick(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::Relaxed)
    }

    /// Bytes of a version's copy in host memory, if there is one.
    fn copied(&self, version: AdapterVersion) -> Option<u64> {
        self.host.as_ref()?.bytes_of(version)
    }

    /// Keeps a copy in host memory, unless its version has lost its name.
    fn shelve(&self, version: AdapterVersion, shelved: Shelved) {
        // Held to the end, as in `hold`.
        let book = self.book();
        if let (Some(host), false) = (&self.host, book.passing.contains(&version)) {
            host.put(version, shelved);
        }
    }

    /// Puts the weights where they stay until they are evicted, unless their version has lost its name.
    fn hold(&self, version: AdapterVersion, ready: &Ready) {
        // Held to the end, so that no version is put back that loses its name meanwhile.
        let book = self.book();
        if book.passing.contains(&version) {
            return;
        }
        let held = Held { ready: Mutex::new(Some(ready.clone())), last_used: AtomicU64::new(self.tick()) };
        self.cache.insert(version, Arc::new(held));
    }

    /// One load, from reservation to the answer for all who wait.
    fn run(&self, job: LoadJob) {
        self.book().running += 1;
        self.load_and_tell(job);
        self.book().running -= 1;
        // Whoever found no room beside this load may look again.
        self.freed.notify_all();
    }

    fn load_and_tell(&self, job: LoadJob) {
        let started = Instant::now();
        let loaded = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.load(&job)));
        let result = loaded.unwrap_or_else(|_| {
            let reason = "reading it failed in an unforeseen way; the log has more".to_owned();
            Err(AdapterError::Unreadable { name: job.name.to_string(), reason })
        });
        let outcome = match &result {
            Ok(_) => "loaded",
            Err(AdapterError::Refused { .. }) => "refused",
            Err(AdapterError::NoRoom { .. } | AdapterError::Busy { .. }) => "no_room",
            Err(
                AdapterError::Unreadable { .. }
                | AdapterError::Unknown { .. }
                | AdapterError::UnknownVersion { .. }
                | AdapterError::AmbiguousVersion { .. }
                | AdapterError::NotYet { .. }
                | AdapterError::Catalog { .. },
            ) => "failed",
        };
        self.metrics.adapter_loads.with_label_values(&[outcome]).inc();
        match &result {
            Ok(ready) => {
                self.metrics.adapter_load_seconds.observe(started.elapsed().as_secs_f64());
                self.quarantine.release(&job.version);
                self.hold(job.version, ready);
            }
            Err(error @ (AdapterError::Refused { .. } | AdapterError::Unreadable { .. })) => {
                self.quarantine.failed(job.version, error.clone(), Moment::unix_ms(), |_| true);
            }
            // Nothing is wrong with the adapter itself.
            Err(
                AdapterError::NoRoom { .. }
                | AdapterError::Busy { .. }
                | AdapterError::Unknown { .. }
                | AdapterError::UnknownVersion { .. }
                | AdapterError::AmbiguousVersion { .. }
                | AdapterError::NotYet { .. }
                | AdapterError::Catalog { .. },
            ) => {}
        }
        self.book().loading.remove(&job.version);
        // Those who asked may all have left; the weights stay for the next one.
        let _ = job.done.send(Some(result));
    }

    fn load(&self, job: &LoadJob) -> Result<Ready, AdapterError> {
        let mut reservation = Reservation::open(self, &job.name, job.bytes)?;
        let loaded = match self.host.as_ref().and_then(|host| host.get(job.version)) {
            Some(shelved) => shelved.place(&job.name, &mut reservation)?,
            None => (self.load)(&job.name, job.version, &mut reservation)?,
        };
        let Loaded { weights, card, copy } = loaded;
        let bytes = weights.bytes();
        reservation.resize(bytes)?;
        let graveyard = self.graveyard.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let weights = Arc::new(weights.retiring_to(graveyard));
        let usage = Arc::clone(self.book().usage.entry(job.version).or_default());
        usage.loaded(reservation.times);
        if let Some(copy) = copy {
            self.shelve(job.version, Shelved { copy, card: Arc::clone(&card), usage: Arc::clone(&usage) });
        }
        for (stage, us) in reservation.times.stages() {
            self.metrics.adapter_load_stage_seconds.with_label_values(&[stage]).observe(us as f64 / 1e6);
        }
        let resident =
            Resident { weights: Arc::downgrade(&weights), card: Arc::clone(&card), bytes, usage: Arc::clone(&usage) };
        reservation.settle(job.version, resident);
        Ok(Ready { weights, card, usage })
    }

    /// Counts down what the graveyard has freed.
    fn buried(&self, version: AdapterVersion, bytes: u64) {
        let mut book = self.book();
        book.bytes = book.bytes.saturating_sub(bytes);
        book.count = book.count.saturating_sub(1);
        // The same version may have been loaded anew meanwhile.
        if book.live.get(&version).is_some_and(|resident| resident.weights.strong_count() == 0) {
            book.live.remove(&version);
        }
        self.show(&book);
        drop(book);
        self.freed.notify_all();
    }

    fn show(&self, book: &Book) {
        self.metrics
            .adapters_resident
            .set(i64::try_from(book.count - book.reserved.min(book.count)).unwrap_or(i64::MAX));
        self.metrics.adapter_bytes.set(i64::try_from(book.bytes).unwrap_or(i64::MAX));
    }

    /// Makes room for `more` bytes (`needed` in all for this adapter) and `count` more adapters: evicts those used
    /// longest ago that nobody leases, and waits for memory that is being freed. Returns with both already counted.
    fn make_room(&self, name: &AdapterName, needed: u64, more: u64, count: usize) -> Result<(), AdapterError> {
        let limit = self.limits.max_bytes;
        let no_room = || AdapterError::NoRoom { name: name.clone(), needed, limit, retry_after_ms: RETRY_AFTER_MS };
        if needed > limit {
            return Err(no_room());
        }
        let most = self.limits.max_count.unwrap_or(usize::MAX);
        let (mut book, begun) = (self.book(), Instant::now());
        loop {
            let fits = |book: &Book, idle_bytes: u64, idle_count: usize| {
                let bytes_fit = (book.bytes - idle_bytes.min(book.bytes)).saturating_add(more) <= limit;
                (bytes_fit, book.count.saturating_sub(idle_count) + count <= most)
            };
            if fits(&book, 0, 0) == (true, true) {
                book.bytes += more;
                book.count += count;
                book.reserved += count;
                self.show(&book);
                return Ok(());
            }
            if book.leaving() > 0 {
                book = self.freed.wait(book).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let idle: Vec<_> = self.cache.iter().filter_map(|(version, held)| Some((*version, held.idle()?))).collect();
            let idle_bytes = idle.iter().map(|(_, idle)| idle.bytes).sum();
            // Nobody is evicted for what would not fit even then.
            match fits(&book, idle_bytes, idle.len()) {
                (true, true) => {}
                // What another load has just brought can be evicted once that load lets go of it.
                (false, _) | (_, false) if book.running > 1 && begun.elapsed() < FOR_OTHERS => {
                    let left = FOR_OTHERS.saturating_sub(begun.elapsed());
                    let woken = self.freed.wait_timeout(book, left).unwrap_or_else(PoisonError::into_inner);
                    book = woken.0;
                    continue;
                }
                (false, _) => return Err(no_room()),
                (true, false) => {
                    return Err(AdapterError::Busy {
                        name: name.clone(),
                        reason: format!("{most} adapters may be in memory and all of them are in use"),
                        retry_after_ms: RETRY_AFTER_MS,
                    });
                }
            }
            if let Some((version, _)) = idle.iter().min_by_key(|(_, idle)| idle.last_used) {
                self.cache.invalidate(version);
                self.metrics.adapter_evictions.inc();
            }
        }
    }
}

#[cfg(test)]
mod tests;
