//! What the publisher asks of the store of adapters: candidates checked and kept, names moved. Everything here blocks.

use std::{path::Path, time::Instant};

use super::{
    AdapterError, AdapterStore, Named, Refusal, RefusalCode, Serving, check::AdapterPlan, folder::AdapterFiles,
    residency::VersionUse,
};
use crate::{
    store::{Changed, NameChange},
    terms::{AdapterName, AdapterVersion},
};

/// A version that serves on this base and whose bytes are kept. Nothing points at it yet.
#[derive(Clone, Debug)]
pub struct Admitted {
    pub version: AdapterVersion,
    pub serving: Serving,
    pub times: AdmitTimes,
}

/// How long admitting a candidate took, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AdmitTimes {
    /// Parsing it and checking every tensor; for a version that is kept already, reading and hashing it as well.
    pub check_us: u64,
    /// Copying its files and syncing them.
    pub keep_us: u64,
}

/// How long moving a name took, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MoveTimes {
    /// Writing it down, synced.
    pub sync_us: u64,
    /// From then until every request sees it.
    pub flip_us: u64,
}

/// A version that a name has or had.
#[derive(Clone, Copy, Debug)]
pub struct KeptVersion {
    pub version: AdapterVersion,
    /// Bytes of its files in the vault; 0 if they are not kept any more.
    pub kept_bytes: u64,
    pub usage: VersionUse,
}

impl AdapterStore {
    /// Reads the files of a folder that lies in or is `root`.
    ///
    /// # Errors
    /// [`AdapterError::Refused`] with every reason why they are not read.
    pub fn files(&self, name: &str, root: &Path, folder: &Path) -> Result<AdapterFiles, AdapterError> {
        self.loader.files(root, folder).map_err(|refusals| refused(name, refusals))
    }

    /// What would be applied, without keeping anything.
    ///
    /// # Errors
    /// Every reason for refusal.
    pub fn plan(&self, files: &AdapterFiles) -> Result<AdapterPlan, Vec<Refusal>> {
        self.loader.check(files).map(|(_, plan)| plan)
    }

    /// Checks a candidate in full against the base and keeps its bytes, synced.
    ///
    /// # Errors
    /// [`AdapterError::Refused`], or [`AdapterError::Catalog`] where the bytes cannot be kept.
    pub fn admit(&self, name: &AdapterName, files: &AdapterFiles) -> Result<Admitted, AdapterError> {
        let begun = Instant::now();
        let (serving, _) = self.loader.check(files).map_err(|refusals| refused(name.as_str(), refusals))?;
        let check_us = micros(begun);
        let begun = Instant::now();
        self.loader.vault.keep(files).map_err(|error| AdapterError::Catalog { reason: error.to_string() })?;
        self.catalog().checked(files.version(), &serving);
        let times = AdmitTimes { check_us, keep_us: micros(begun) };
        Ok(Admitted { version: files.version(), serving, times })
    }

    /// A version from the kept bytes, checked again: a name may go back to it.
    ///
    /// # Errors
    /// [`AdapterError::Refused`] if its bytes are gone, damaged, or do not fit this base.
    pub fn readmit(&self, name: &AdapterName, version: AdapterVersion) -> Result<Admitted, AdapterError> {
        let begun = Instant::now();
        let serving = self.loader.restore(name, version).map_err(|refusals| refused(name.as_str(), refusals))?;
        self.catalog().checked(version, &serving);
        let times = AdmitTimes { check_us: micros(begun), keep_us: 0 };
        Ok(Admitted { version, serving, times })
    }

    /// Moves a name, if it still has the version that the caller saw; durable when this returns. New requests use what it
    /// points at from then on; the memory of a version that no name points at any more goes with its last user.
    ///
    /// # Errors
    /// [`AdapterError::Catalog`]; then nothing has changed.
    pub fn change(&self, change: &NameChange, serving: Option<Serving>) -> Result<(Changed, MoveTimes), AdapterError> {
        let lost = |error: crate::store::StoreError| AdapterError::Catalog { reason: error.to_string() };
        let begun = Instant::now();
        let changed = self.store.change_name(change, self.base()).map_err(lost)?;
        let mut times = MoveTimes { sync_us: micros(begun), flip_us: 0 };
        let Changed::Applied(step) = &changed else { return Ok((changed, times)) };
        let begun = Instant::now();
        let mut catalog = self.catalog();
        catalog.moved(change.row.clone(), step.clone(), serving);
        // Under the catalog's lock, so that two names which share a version do not undo each other's doing.
        for version in [change.seen, change.row.version].into_iter().flatten() {
            match catalog.points_at(version) {
                (false, _) => self.residents.retire(version),
                (true, pinned) => {
                    self.residents.named(version);
                    if !pinned {
                        self.residents.unpin(version);
                    }
                }
            }
        }
        drop(catalog);
        times.flip_us = micros(begun);
        Ok((changed, times))
    }

    /// Has a name serve nothing until it is resumed or changed. What it points at stays.
    pub fn suspend(&self, name: &AdapterName) {
        self.catalog().serve(name, None);
    }

    /// Serves again what a name points at, if that is still the same and nothing else has come.
    pub fn resume(&self, name: &AdapterName, version: AdapterVersion, serving: Serving) {
        let mut catalog = self.catalog();
        let waits = |named: &Named| named.row.version == Some(version) && named.serving.is_none();
        if catalog.name(name.as_str()).is_some_and(waits) {
            catalog.serve(name, Some(serving));
        }
    }

    /// Frees a candidate that got no name.
    pub fn let_go(&self, version: AdapterVersion) {
        let catalog = self.catalog();
        match catalog.points_at(version) {
            (false, _) => self.residents.retire(version),
            (true, false) => self.residents.unpin(version),
            (true, true) => {}
        }
    }

    /// Everything that is known of a name that is or was served.
    pub fn named(&self, name: &str) -> Option<Named> {
        self.catalog().name(name).cloned()
    }

    /// Every name that is or was served, in order.
    pub fn names(&self) -> Vec<Named> {
        self.catalog().names().cloned().collect()
    }

    /// Remembers why what was to be served under this name is not.
    pub fn refuse(&self, name: &str, refusals: Vec<Refusal>) {
        self.catalog().refuse(name.to_owned(), refusals);
    }

    /// What is not served, with every reason.
    pub fn refused(&self) -> Vec<(String, Vec<Refusal>)> {
        self.catalog().refused().map(|(name, refusals)| (name.to_owned(), refusals.to_vec())).collect()
    }

    /// The versions that a name has or had, each once, the latest first.
    pub fn versions(&self, named: &Named) -> Vec<KeptVersion> {
        let mut versions: Vec<AdapterVersion> = Vec::new();
        for version in named.row.version.into_iter().chain(named.steps.iter().rev().filter_map(|step| step.version)) {
            if !versions.contains(&version) {
                versions.push(version);
            }
        }
        let kept = |version: AdapterVersion| KeptVersion {
            version,
            kept_bytes: self.loader.vault.bytes(version),
            usage: self.residents.usage(version),
        };
        versions.into_iter().map(kept).collect()
    }

    /// Where a version's weights are, who uses them, and how long loading them took.
    pub fn usage(&self, version: AdapterVersion) -> VersionUse {
        self.residents.usage(version)
    }

    /// Whether this is one of the base's names.
    pub fn is_base(&self, name: &str) -> bool {
        self.loader.base.names.iter().any(|base| base == name)
    }

    /// Removes kept bytes until at most `max_bytes` are left: versions that a name had longest ago first, and none that is
    /// in memory or that one of any name's last `steps` steps names. Gives what was removed. No candidate may be on its
    /// way to a name meanwhile.
    ///
    /// # Errors
    /// If the vault cannot be read or written.
    pub fn prune(&self, steps: usize, max_bytes: u64) -> std::io::Result<Vec<AdapterVersion>> {
        let vault = &self.loader.vault;
        let mut kept: Vec<(u64, AdapterVersion, u64)> = Vec::new();
        let names = self.names();
        for version in vault.versions()? {
            let last = names.iter().flat_map(|named| &named.steps).filter(|step| step.version == Some(version));
            kept.push((last.map(|step| step.seq).max().unwrap_or(0), version, vault.bytes(version)));
        }
        let mut total: u64 = kept.iter().map(|(_, _, bytes)| bytes).sum();
        kept.sort_unstable();
        let mut removed = Vec::new();
        for (_, version, bytes) in kept {
            if total <= max_bytes {
                break;
            }
            let wanted = names.iter().any(|named| named.recent(steps).any(|recent| recent == version));
            if wanted || self.residents.usage(version).bytes > 0 {
                continue;
            }
            vault.remove(version)?;
            total -= bytes;
            removed.push(version);
        }
        Ok(removed)
    }
}

fn micros(begun: Instant) -> u64 {
    begun.elapsed().as_micros() as u64
}

fn refused(name: &str, refusals: Vec<Refusal>) -> AdapterError {
    AdapterError::Refused { name: name.to_owned(), refusals: refusals.into() }
}

impl Refusal {
    /// About a name that cannot be used.
    pub fn of_name(name: &str, reason: &str) -> Self {
        Self { code: RefusalCode::Name, subject: name.to_owned(), reason: reason.to_owned() }
    }
}
