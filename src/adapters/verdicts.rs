//! What is remembered of adapters beside their names: what trials on this base found, and candidates that failed.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use super::{AdapterError, AdapterStore, quarantine::Confined};
use crate::{
    store::TrialRow,
    terms::{AdapterName, AdapterVersion, Digest, Moment},
};

/// The verdicts of one base, in memory as they stand in the store.
pub struct Verdicts(Mutex<HashMap<(AdapterVersion, Digest), TrialRow>>);

/// A candidate that got no name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NameFault {
    /// `None` where it could not even be read.
    pub version: Option<AdapterVersion>,
    pub reason: String,
}

impl Verdicts {
    pub fn new(rows: Vec<TrialRow>) -> Self {
        Self(Mutex::new(rows.into_iter().map(|row| ((row.version, row.suite), row)).collect()))
    }
}

impl AdapterStore {
    /// The digest of the base that adapters are served on.
    pub fn base(&self) -> Digest {
        self.loader.base.digest
    }

    /// What the trial of a version by this suite found on this base, in this run or an earlier one.
    pub fn verdict(&self, version: AdapterVersion, suite: Digest) -> Option<TrialRow> {
        let verdicts = self.verdicts.0.lock().unwrap_or_else(PoisonError::into_inner);
        verdicts.get(&(version, suite)).cloned()
    }

    /// The latest verdict on a version on this base, by whatever suite.
    pub fn latest_verdict(&self, version: AdapterVersion) -> Option<TrialRow> {
        let verdicts = self.verdicts.0.lock().unwrap_or_else(PoisonError::into_inner);
        verdicts.values().filter(|row| row.version == version).max_by_key(|row| row.at_ms).cloned()
    }

    /// Keeps a verdict, durably. Blocks.
    ///
    /// # Errors
    /// [`AdapterError::Catalog`] if it cannot be written.
    pub fn keep_verdict(&self, row: TrialRow) -> Result<(), AdapterError> {
        let lost = |error: crate::store::StoreError| AdapterError::Catalog { reason: error.to_string() };
        self.store.keep_trial(&row).map_err(lost)?;
        self.verdicts.0.lock().unwrap_or_else(PoisonError::into_inner).insert((row.version, row.suite), row);
        Ok(())
    }

    /// Remembers that a name's candidate failed. The same candidate is then left alone for a while, longer each time.
    pub fn confine(&self, name: &AdapterName, fault: NameFault) {
        let version = fault.version;
        self.quarantine.failed(name.clone(), fault, Moment::unix_ms(), |earlier| earlier.version == version);
    }

    /// Whether this candidate of the name failed and it is not time yet to try it again. Another one is free at once.
    pub fn barred(&self, name: &AdapterName, version: Option<AdapterVersion>) -> Option<Confined<NameFault>> {
        self.quarantine.barred(name, Moment::unix_ms()).filter(|confined| confined.fault.version == version)
    }

    /// The name has what it should have, or nobody wants it any more.
    pub fn release_name(&self, name: &AdapterName) {
        self.quarantine.release(name);
    }

    /// Lets a version's weights be read again at once. True if they could not be read before.
    pub fn release_version(&self, version: AdapterVersion) -> bool {
        self.residents.release(version)
    }

    /// Names whose last candidate failed, in order.
    pub fn confined(&self) -> Vec<(AdapterName, Confined<NameFault>)> {
        let mut confined = self.quarantine.all();
        confined.sort_by(|one, other| one.0.cmp(&other.0));
        confined
    }

    /// Why a name's candidate failed, or else why the version that it has cannot be brought into memory.
    pub fn confined_as(&self, name: &str, version: Option<AdapterVersion>) -> Option<Confined<NameFault>> {
        let of_name = AdapterName::parse(name).ok().and_then(|name| self.quarantine.get(&name));
        of_name.or_else(|| {
            let Confined { fault, failures, since_ms, until_ms } = self.residents.confined(version?)?;
            let fault = NameFault { version, reason: fault.to_string() };
            Some(Confined { fault, failures, since_ms, until_ms })
        })
    }
}
