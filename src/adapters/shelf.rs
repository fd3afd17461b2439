use std::{
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use super::{
    AdapterCard, AdapterEntry, AdapterError, AdapterLease, AdapterLimits, BaseIdentity, Refusal, RefusalCode,
    catalog::Catalog,
    folder::AdapterFiles,
    peft,
    residency::{Reservation, ResidencyLimits, ResidencySnapshot, ResidentSet},
    source::{self, Found},
    vault::Vault,
};
use crate::{
    config::AdapterConfig,
    metrics::Metrics,
    model::{BaseWeights, LoraAdapter, PackError, Packer},
    terms::{AdapterName, AdapterVersion},
};

/// Every adapter that this server knows: names and versions, the kept files, and the weights in memory.
pub struct AdapterStore {
    catalog: Mutex<Catalog>,
    residents: ResidentSet,
    loader: Arc<Loader>,
}

/// What opening gives: the store, and the adapters that it does not serve, by name, with every reason.
pub struct Opened {
    pub store: Arc<AdapterStore>,
    pub refused: Vec<(String, Vec<Refusal>)>,
}

/// Reads and checks adapters for one base.
struct Loader {
    vault: Vault,
    packer: Arc<dyn Packer>,
    base: BaseIdentity,
    weights: Arc<dyn BaseWeights>,
    limits: AdapterLimits,
    max_bytes: u64,
}

impl AdapterStore {
    /// Reads every configured folder, checks it in full, keeps a copy in the vault and gives it its name. A bad adapter
    /// never stops the others: it is listed, and asking for it is refused with the same reasons.
    ///
    /// # Errors
    /// If the vault cannot be written or a configured folder of adapters is not there.
    pub fn open(
        config: &AdapterConfig,
        vault: &Path,
        packer: Arc<dyn Packer>,
        base: BaseIdentity,
        weights: Arc<dyn BaseWeights>,
        metrics: Arc<Metrics>,
    ) -> Result<Opened, AdapterError> {
        let unwritable = |error: std::io::Error| AdapterError::Unreadable {
            name: "vault".to_owned(),
            reason: format!("{}: {error}", vault.display()),
        };
        let vault = Vault::open(vault).map_err(unwritable)?;
        let mut catalog = Catalog::open(&vault, base.names.clone()).map_err(unwritable)?;
        let findings = source::configured(config)?;
        let loader = Arc::new(Loader {
            vault,
            packer,
            base,
            weights,
            limits: AdapterLimits::from(config),
            max_bytes: config.max_bytes,
        });
        for (name, refusal) in findings.refused {
            catalog.refuse(name, vec![refusal]);
        }
        for found in findings.found {
            let is_base = loader.base.names.iter().any(|name| name == found.name.as_str());
            if catalog.is_taken(&found.name) || is_base {
                let reason = if is_base { "is the base's name" } else { "is taken by another folder" };
                let refusal =
                    Refusal { code: RefusalCode::Name, subject: found.name.to_string(), reason: reason.to_owned() };
                catalog.refuse(found.name.to_string(), vec![refusal]);
                continue;
            }
            match loader.admit(&found) {
                Ok((version, card, bytes)) => {
                    catalog.serve(&loader.vault, found.name, version, card, bytes).map_err(unwritable)?;
                }
                Err(Rejected::Refused(refusals)) => catalog.refuse(found.name.to_string(), refusals),
                Err(Rejected::Vault(error)) => return Err(unwritable(error)),
            }
        }
        let refused = catalog.refused().map(|(name, list)| (name.to_owned(), list.to_vec())).collect();
        let limits = ResidencyLimits { max_bytes: config.max_bytes, max_count: config.max_cpu_loras };
        let load = {
            let loader = Arc::clone(&loader);
            Box::new(move |name: &AdapterName, version, reservation: &mut Reservation<'_>| {
                loader.load(name, version, reservation)
            })
        };
        let residents = ResidentSet::start(limits, LOADERS, metrics, load)
            .map_err(|error| AdapterError::Unreadable { name: "loader".to_owned(), reason: error.to_string() })?;
        Ok(Opened { store: Arc::new(Self { catalog: Mutex::new(catalog), residents, loader }), refused })
    }

    /// Every adapter that is served, in order of name.
    pub fn list(&self) -> Vec<AdapterEntry> {
        let catalog = self.catalog();
        let entry = |(name, served): (&AdapterName, &super::catalog::Served)| AdapterEntry {
            name: name.clone(),
            version: served.version,
            card: Arc::clone(&served.card),
            residency: self.residents.state(served.version),
            created: served.since,
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
        let ready = self.residents.get(name, version, self.expected_bytes(version)).await?;
        Ok(AdapterLease { name: name.clone(), version, weights: ready.weights, card: ready.card })
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

    pub fn resident(&self) -> ResidencySnapshot {
        self.residents.snapshot()
    }

    /// Bytes in memory, as far as they are known before reading: an old version is taken to be as large as its file.
    fn expected_bytes(&self, version: AdapterVersion) -> u64 {
        let known = self.catalog().known(version).map(|served| served.packed_bytes);
        known.unwrap_or_else(|| self.loader.vault.weight_bytes(version))
    }

    fn catalog(&self) -> std::sync::MutexGuard<'_, Catalog> {
        self.catalog.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Threads that load. One: loading shares the machine with answers that are under way.
const LOADERS: usize = 1;

enum Rejected {
    Refused(Vec<Refusal>),
    Vault(std::io::Error),
}

impl Loader {
    /// Reads and checks one folder and keeps a copy.
    fn admit(&self, found: &Found) -> Result<(AdapterVersion, Arc<AdapterCard>, u64), Rejected> {
        let files =
            AdapterFiles::read(&found.root, &found.path, self.limits.max_file_bytes).map_err(Rejected::Refused)?;
        let adapter = self.read(&files).map_err(Rejected::Refused)?;
        let bytes = self.packer.packed_bytes(&adapter.sites);
        if bytes > self.max_bytes {
            let reason = format!("takes {bytes} bytes in memory; {} are allowed for all adapters", self.max_bytes);
            let refusal = Refusal { code: RefusalCode::TooLarge, subject: "weights".to_owned(), reason };
            return Err(Rejected::Refused(vec![refusal]));
        }
        self.vault.keep(&files).map_err(Rejected::Vault)?;
        Ok((files.version(), Arc::new(adapter.card), bytes))
    }

    fn read(&self, files: &AdapterFiles) -> Result<peft::PeftAdapter, Vec<Refusal>> {
        peft::read(files, &self.base.shape, self.limits, Some(self.weights.as_ref()))
    }

    /// Reads a kept version again, hashes what was read and packs it.
    fn load(
        &self,
        name: &AdapterName,
        version: AdapterVersion,
        reservation: &mut Reservation<'_>,
    ) -> Result<(LoraAdapter, Arc<AdapterCard>), AdapterError> {
        let refused = |refusals| AdapterError::Refused { name: name.to_string(), refusals: Arc::new(refusals) };
        let unreadable = |reason: String| AdapterError::Unreadable { name: name.to_string(), reason };
        if !self.vault.holds(version) {
            return Err(unreadable(format!("version {} is not kept here", version.short())));
        }
        let files = self.vault.read(version, self.limits.max_file_bytes).map_err(refused)?;
        if files.version() != version {
            let reason = format!("the copy of version {} holds {} now", version.short(), files.version().short());
            return Err(unreadable(reason));
        }
        let adapter = self.read(&files).map_err(refused)?;
        drop(files);
        reservation.resize(self.packer.packed_bytes(&adapter.sites))?;
        match self.packer.pack(version, adapter.sites) {
            Ok(weights) => Ok((weights, Arc::new(adapter.card))),
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
