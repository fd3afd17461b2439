use std::{
    path::Path,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use futures_util::FutureExt as _;

use super::{
    AdapterEntry, AdapterError, AdapterLease, AdapterLimits, BaseIdentity, Refusal, RefusalCode,
    catalog::{Catalog, Named, Serving},
    check::AdapterPlan,
    fingerprint,
    folder::AdapterFiles,
    peft,
    quarantine::Quarantine,
    residency::{self, HostLimits, Loaded, Reservation, ResidencyLimits, ResidencySnapshot, ResidentSet},
    vault::Vault,
    verdicts::{NameFault, Verdicts},
};
use crate::{
    config::AdapterConfig,
    metrics::Metrics,
    model::{BaseWeights, PackError, Packer},
    store::{NameRow, Step, Store},
    terms::{AdapterName, AdapterVersion},
};

/// Versions that are read and checked at the same time at the start, each held in memory whole.
const RESTORED_AT_ONCE: usize = 4;

/// Every adapter that this server knows: names and versions, the kept files, and the weights in memory.
pub struct AdapterStore {
    pub(super) catalog: Mutex<Catalog>,
    pub(super) residents: ResidentSet,
    pub(super) loader: Arc<Loader>,
    pub(super) store: Arc<dyn Store>,
    /// What trials on this base found.
    pub(super) verdicts: Verdicts,
    /// Names whose candidate failed.
    pub(super) quarantine: Quarantine<AdapterName, NameFault>,
}

/// What opening gives: the store, and the names of the catalog that it cannot serve, with every reason.
pub struct Opened {
    pub store: Arc<AdapterStore>,
    pub refused: Vec<(String, Vec<Refusal>)>,
}

/// Reads and checks adapters for one base.
pub(super) struct Loader {
    pub vault: Vault,
    packer: Arc<dyn Packer>,
    pub base: BaseIdentity,
    weights: Arc<dyn BaseWeights>,
    limits: AdapterLimits,
    max_bytes: u64,
}

impl AdapterStore {
    /// Opens vault and catalog: every name serves the version that it had when the last server ended, from the kept files.
    /// A version that does not serve on this base never stops the others: it is listed, and asking for it is refused with
    /// the same reasons. Bytes that no name ever had are swept away.
    ///
    /// # Errors
    /// If the vault or the catalog cannot be read or written.
    pub fn open(
        config: &AdapterConfig,
        vault: &Path,
        store: Arc<dyn Store>,
        packer: Arc<dyn Packer>,
        base: BaseIdentity,
        weights: Arc<dyn BaseWeights>,
        metrics: Arc<Metrics>,
    ) -> Result<Opened, AdapterError> {
        let unwritable = |error: std::io::Error| AdapterError::Unreadable {
            name: "vault".to_owned(),
            reason: format!("{}: {error}", vault.display()),
        };
        let lost = |error: crate::store::StoreError| AdapterError::Catalog { reason: error.to_string() };
        let vault = Vault::open(vault).map_err(unwritable)?;
        let old = vault.old_histories().map_err(unwritable)?;
        store.import_names(&old).map_err(lost)?;
        vault.forget_old_histories().map_err(unwritable)?;
        let loader = Arc::new(Loader {
            vault,
            packer,
            base,
            weights,
            limits: AdapterLimits::from(config),
            max_bytes: config.max_bytes,
        });
        let mut catalog = Catalog::new(loader.base.names.clone());
        let names = store.names().map_err(lost)?;
        let restored = loader.restore_all(&names);
        for ((row, steps), restored) in names.into_iter().zip(restored) {
            let serving = match restored {
                Some(Ok(serving)) => Some(serving),
                Some(Err(refusals)) => {
                    catalog.refuse(row.name.to_string(), refusals);
                    None
                }
                None => None,
            };
            catalog.put(Named { row, steps, serving });
        }
        let named = catalog.versions();
        // Without a single name the database is a new one beside an older vault: nothing is thrown away for that.
        if !named.is_empty() {
            let swept = loader.vault.sweep(&named).map_err(unwritable)?;
            if swept > 0 {
                tracing::info!(swept, "bytes of adapters that never got a name were removed");
            }
        }
        let refused = catalog.refused().map(|(name, list)| (name.to_owned(), list.to_vec())).collect();
        let verdicts = Verdicts::new(store.trials(loader.base.digest).map_err(lost)?);
        let quarantine = Quarantine::new(Arc::clone(&metrics));
        // Where adapters are computed with in host memory, a count of those there is a count of all.
        let host = (loader.packer.leaves_copies() && config.max_host_bytes > 0)
            .then_some(HostLimits { max_bytes: config.max_host_bytes, max_count: config.max_cpu_loras });
        let max_count = config.max_cpu_loras.filter(|_| host.is_none());
        let limits = ResidencyLimits { max_bytes: config.max_bytes, max_count, host };
        let copies = host.is_some();
        let load = {
            let loader = Arc::clone(&loader);
            Box::new(move |name: &AdapterName, version, reservation: &mut Reservation<'_>| {
                loader.load(name, version, copies, reservation)
            })
        };
        let residents = ResidentSet::start(limits, config.load_threads, metrics, load)
            .map_err(|error| AdapterError::Unreadable { name: "loader".to_owned(), reason: error.to_string() })?;
        let opened = Self { catalog: Mutex::new(catalog), residents, loader, store, verdicts, quarantine };
        Ok(Opened { store: Arc::new(opened), refused })
    }

    /// Every adapter that is served, in order of name.
    pub fn list(&self) -> Vec<AdapterEntry> {
        let catalog = self.catalog();
        let entry = |(row, version, serving): (&NameRow, AdapterVersion, &Serving)| AdapterEntry {
            name: row.name.clone(),
            version,
            card: Arc::clone(&serving.card),
            residency: self.residents.state(version),
            created: row.since_ms.div_euclid(1000),
        };
        catalog.served().map(entry).collect()
    }

    /// The version that a name has now. The name must be exact.
    ///
    /// # Errors
    /// [`AdapterError::Unknown`] with the nearest name, or [`AdapterError::Refused`].
    pub fn find(&self, name: &str) -> Result<(AdapterName, AdapterVersion), AdapterError> {
        self.catalog().find(name)
    }

    /// A version that a name has or had, in this run or an earlier one, by 6 or more of its first digits.
    ///
    /// # Errors
    /// [`AdapterError::Unknown`], [`AdapterError::UnknownVersion`], [`AdapterError::AmbiguousVersion`].
    pub fn find_version(&self, name: &str, prefix: &str) -> Result<(AdapterName, AdapterVersion), AdapterError> {
        self.catalog().find_version(name, prefix)
    }

    /// Keeps a version in memory for as long as the lease lives, loading it if it is not there. Requests that miss
    /// together share one load, which goes on if all of them leave.
    ///
    /// # Errors
    /// [`AdapterError::NoRoom`] or [`AdapterError::Busy`] when it may be tried again; [`AdapterError::Refused`] or
    /// [`AdapterError::Unreadable`] if what is kept does not serve.
    pub async fn lease(&self, name: &AdapterName, version: AdapterVersion) -> Result<AdapterLease, AdapterError> {
        let (ready, found) = self.residents.get(name, version, self.expected_bytes(version)).await?;
        let seat = Arc::new(ready.seat());
        Ok(AdapterLease { name: name.clone(), version, weights: ready.weights, card: ready.card, found, _seat: seat })
    }

    /// As [`AdapterStore::lease`], within a time. The load goes on without whoever has waited enough.
    ///
    /// # Errors
    /// [`AdapterError::NotYet`] after that time, else as [`AdapterStore::lease`].
    pub async fn lease_within(
        &self,
        name: &AdapterName,
        version: AdapterVersion,
        wait: Duration,
    ) -> Result<AdapterLease, AdapterError> {
        // A timer has a grain; whoever does not wait at all is not kept for that long.
        let lease = match wait.is_zero() {
            true => self.lease(name, version).now_or_never(),
            false => tokio::time::timeout(wait, self.lease(name, version)).await.ok(),
        };
        match lease {
            Some(lease) => lease,
            None => Err(AdapterError::NotYet {
                name: name.clone(),
                waited_ms: u64::try_from(wait.as_millis()).unwrap_or(u64::MAX),
                retry_after_ms: residency::RETRY_AFTER_MS,
            }),
        }
    }

    /// Loads a version and keeps it in memory whatever else is asked for.
    ///
    /// # Errors
    /// As [`AdapterStore::lease`].
    pub async fn pin(&self, name: &AdapterName, version: AdapterVersion) -> Result<(), AdapterError> {
        self.residents.pin(name, version, self.expected_bytes(version)).await
    }

    /// Lets a pinned version go when its room is needed.
    pub fn unpin(&self, version: AdapterVersion) {
        self.residents.unpin(version);
    }

    /// Whether a version stays in memory whatever else is asked for.
    pub fn is_pinned(&self, version: AdapterVersion) -> bool {
        self.residents.usage(version).pinned
    }

    /// Requests that hold the weights of an adapter.
    pub fn leases(&self) -> usize {
        self.residents.leases()
    }

    pub fn resident(&self) -> ResidencySnapshot {
        self.residents.snapshot()
    }

    /// Bytes in memory, as far as they are known before reading: an old version is taken to be as large as its file.
    fn expected_bytes(&self, version: AdapterVersion) -> u64 {
        let known = self.catalog().packed_bytes(version);
        known.unwrap_or_else(|| self.loader.vault.weight_bytes(version))
    }

    pub(super) fn catalog(&self) -> std::sync::MutexGuard<'_, Catalog> {
        self.catalog.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Loader {
    /// [`Loader::restore`] of what each name has, several at a time; `None` for a name without a version.
    fn restore_all(&self, names: &[(NameRow, Vec<Step>)]) -> Vec<Option<Result<Serving, Vec<Refusal>>>> {
        let next = AtomicUsize::new(0);
        let restored: Vec<OnceLock<_>> = names.iter().map(|_| OnceLock::new()).collect();
        let threads = thread::available_parallelism().map_or(1, usize::from).min(RESTORED_AT_ONCE);
        let work = || {
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                let Some((row, _)) = names.get(index) else { return };
                if let Some(version) = row.version {
                    // Each is somebody's alone, so it is empty.
                    let _ = restored[index].set(self.restore(&row.name, version));
                }
            }
        };
        thread::scope(|scope| (0..threads.min(names.len())).for_each(|_| drop(scope.spawn(work))));
        restored.into_iter().map(OnceLock::into_inner).collect()
    }

    /// What is known of a kept version, if it serves on this base.
    ///
    /// # Errors
    /// Every reason why it does not.
    pub fn restore(&self, name: &AdapterName, version: AdapterVersion) -> Result<Serving, Vec<Refusal>> {
        let refused = |reason: String| {
            vec![Refusal { code: RefusalCode::MissingFile, subject: format!("{name}@{}", version.short()), reason }]
        };
        if !self.vault.holds(version) {
            return Err(refused("is not kept here any more".to_owned()));
        }
        let files = self.vault.read(version, self.limits.max_file_bytes)?;
        if files.version() != version {
            return Err(refused(format!("its copy holds {} now", files.version().short())));
        }
        self.check(&files).map(|(serving, _)| serving)
    }

    /// Checks an adapter in full against the base.
    ///
    /// # Errors
    /// Every reason why it is refused.
    pub fn check(&self, files: &AdapterFiles) -> Result<(Serving, AdapterPlan), Vec<Refusal>> {
        let adapter = self.read(files)?;
        let packed_bytes = self.packer.packed_bytes(&adapter.sites);
        if packed_bytes > self.max_bytes {
            let reason =
                format!("takes {packed_bytes} bytes in memory; {} are allowed for all adapters", self.max_bytes);
            return Err(vec![Refusal { code: RefusalCode::TooLarge, subject: "weights".to_owned(), reason }]);
        }
        Ok((Serving { card: Arc::new(adapter.card), packed_bytes }, adapter.plan))
    }

    /// The files of a folder that lies in or is `root`.
    ///
    /// # Errors
    /// Every reason why they are not read.
    pub fn files(&self, root: &Path, folder: &Path) -> Result<AdapterFiles, Vec<Refusal>> {
        AdapterFiles::read(root, folder, self.limits.max_file_bytes)
    }

    fn read(&self, files: &AdapterFiles) -> Result<peft::PeftAdapter, Vec<Refusal>> {
        let mut adapter = peft::read(files, &self.base.shape, self.limits, Some(self.weights.as_ref()))?;
        let base = &self.base;
        if let Some(refusal) = fingerprint::digest_refusal(adapter.card.base_digest.as_deref(), base.digest) {
            return Err(vec![refusal]);
        }
        if let Some(note) = fingerprint::name_note(adapter.card.trained_on.as_deref(), &base.names) {
            adapter.card.notes.push(note.clone());
            adapter.plan.notes.push(note);
        }
        Ok(adapter)
    }

    /// Reads a kept version again, hashes what was read and packs it, with a copy for host memory where one is wanted.
    fn load(
        &self,
        name: &AdapterName,
        version: AdapterVersion,
        copied: bool,
        reservation: &mut Reservation<'_>,
    ) -> Result<Loaded, AdapterError> {
        let refused = |refusals| AdapterError::Refused { name: name.to_string(), refusals: Arc::new(refusals) };
        let unreadable = |reason: String| AdapterError::Unreadable { name: name.to_string(), reason };
        if !self.vault.holds(version) {
            return Err(unreadable(format!("version {} is not kept here", version.short())));
        }
        let begun = Instant::now();
        let files = self.vault.read(version, self.limits.max_file_bytes).map_err(refused)?;
        reservation.times.hash_us = files.hash_us();
        reservation.times.read_us = (begun.elapsed().as_micros() as u64).saturating_sub(files.hash_us());
        if files.version() != version {
            let reason = format!("the copy of version {} holds {} now", version.short(), files.version().short());
            return Err(unreadable(reason));
        }
        let begun = Instant::now();
        let adapter = self.read(&files).map_err(refused)?;
        drop(files);
        reservation.times.check_us = begun.elapsed().as_micros() as u64;
        let begun = Instant::now();
        reservation.resize(self.packer.packed_bytes(&adapter.sites))?;
        let packed = match copied {
            true => self.packer.pack_and_copy(version, adapter.sites),
            false => self.packer.pack(version, adapter.sites).map(|weights| (weights, None)),
        };
        reservation.times.pack_us = begun.elapsed().as_micros() as u64;
        match packed {
            Ok((weights, copy)) => Ok(Loaded { weights, card: Arc::new(adapter.card), copy }),
            Err(PackError::Device(reason)) => Err(unreadable(reason)),
            Err(
                error @ (PackError::NoSuchSite { .. }
                | PackError::Shape { .. }
                | PackError::Unsupported { .. }
                | PackError::Degenerate { .. }
                | PackError::Twice { .. }),
            ) => {
                let refusal = Refusal {
                    code: RefusalCode::Unsupported,
                    subject: "weights".to_owned(),
                    reason: error.to_string(),
                };
                Err(refused(vec![refusal]))
            }
        }
    }
}
