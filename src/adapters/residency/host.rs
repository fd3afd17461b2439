//! Copies of packed adapters in host memory, where the decoder computes in another: what leaves the device for others comes
//! back from here without a file being read.
//!
//! A copy is kept of what is loaded, used or not, as long as there is room; those used longest ago go first.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
    time::Instant,
};

use super::{Loaded, Reservation, Usage};
use crate::{
    adapters::{AdapterCard, AdapterError},
    metrics::Metrics,
    model::HostCopy,
    terms::{AdapterName, AdapterVersion},
};

/// How much may be kept in host memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostLimits {
    pub max_bytes: u64,
    /// Versions, where a count is wanted beside the bytes.
    pub max_count: Option<usize>,
}

/// What is kept in host memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostSnapshot {
    pub count: usize,
    pub bytes: u64,
    pub limit_bytes: u64,
}

/// The copies of one server.
pub struct HostShelf {
    limits: HostLimits,
    copies: Mutex<Copies>,
    /// Large frees happen on a thread of their own.
    gone: mpsc::Sender<Arc<dyn HostCopy>>,
    metrics: Arc<Metrics>,
}

#[derive(Default)]
struct Copies {
    by_version: HashMap<AdapterVersion, Shelved>,
    bytes: u64,
}

/// A copy with what is known of its version.
#[derive(Clone)]
pub struct Shelved {
    pub copy: Arc<dyn HostCopy>,
    pub card: Arc<AdapterCard>,
    pub usage: Arc<Usage>,
}

impl HostShelf {
    /// Starts the thread that frees; it ends with the shelf.
    pub fn start(limits: HostLimits, metrics: Arc<Metrics>) -> std::io::Result<Self> {
        let (gone, copies) = mpsc::channel();
        std::thread::Builder::new().name("adapter-copy-free".to_owned()).spawn(move || {
            crate::model::lower_thread_priority();
            copies.into_iter().for_each(drop);
        })?;
        metrics.adapter_host_bytes_limit.set(i64::try_from(limits.max_bytes).unwrap_or(i64::MAX));
        Ok(Self { limits, copies: Mutex::default(), gone, metrics })
    }

    pub fn get(&self, version: AdapterVersion) -> Option<Shelved> {
        self.copies().by_version.get(&version).cloned()
    }

    /// Bytes of a version's copy, if there is one.
    pub fn bytes_of(&self, version: AdapterVersion) -> Option<u64> {
        self.copies().by_version.get(&version).map(|shelved| shelved.copy.bytes())
    }

    /// Keeps a copy; those used longest ago make way. One that is larger than all of the shelf is not kept.
    pub fn put(&self, version: AdapterVersion, shelved: Shelved) {
        let bytes = shelved.copy.bytes();
        if bytes > self.limits.max_bytes {
            return;
        }
        let mut copies = self.copies();
        self.take(&mut copies, version);
        let most = self.limits.max_count.unwrap_or(usize::MAX);
        while copies.bytes + bytes > self.limits.max_bytes || copies.by_version.len() >= most {
            let oldest = copies.by_version.iter().min_by_key(|(_, shelved)| shelved.usage.last_use());
            let Some(oldest) = oldest.map(|(version, _)| *version) else { break };
            self.take(&mut copies, oldest);
            self.metrics.adapter_host_evictions.inc();
        }
        copies.bytes += bytes;
        copies.by_version.insert(version, shelved);
        self.show(&copies);
    }

    pub fn remove(&self, version: AdapterVersion) {
        let mut copies = self.copies();
        self.take(&mut copies, version);
        self.show(&copies);
    }

    pub fn snapshot(&self) -> HostSnapshot {
        let copies = self.copies();
        HostSnapshot { count: copies.by_version.len(), bytes: copies.bytes, limit_bytes: self.limits.max_bytes }
    }

    fn take(&self, copies: &mut Copies, version: AdapterVersion) {
        let Some(Shelved { copy, .. }) = copies.by_version.remove(&version) else { return };
        copies.bytes -= copy.bytes();
        // Without the thread it is freed here.
        let _ = self.gone.send(copy);
    }

    fn show(&self, copies: &Copies) {
        self.metrics.adapter_host_bytes.set(i64::try_from(copies.bytes).unwrap_or(i64::MAX));
    }

    fn copies(&self) -> MutexGuard<'_, Copies> {
        self.copies.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shelved {
    /// Brings the weights back to the device.
    ///
    /// # Errors
    /// [`AdapterError::NoRoom`], or [`AdapterError::Unreadable`] if the device refuses them.
    pub fn place(&self, name: &AdapterName, reservation: &mut Reservation<'_>) -> Result<Loaded, AdapterError> {
        let begun = Instant::now();
        reservation.resize(self.copy.device_bytes())?;
        let weights = self
            .copy
            .place()
            .map_err(|error| AdapterError::Unreadable { name: name.to_string(), reason: error.to_string() })?;
        // 0 would say that it came from disk.
        reservation.times.place_us = (begun.elapsed().as_micros() as u64).max(1);
        // The copy that it came from is the one that is kept.
        Ok(Loaded { weights, card: Arc::clone(&self.card), copy: None })
    }
}
