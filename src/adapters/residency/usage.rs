//! Who uses a version, when it was used last, and how long loading it took.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering},
};

use crate::{
    adapters::Residency,
    terms::{AdapterVersion, Moment},
};

/// What is known of one version's weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VersionUse {
    pub residency: Residency,
    /// In memory, also of what nobody holds any more and is still being freed.
    pub bytes: u64,
    /// Of a copy in host memory, where the device has its own.
    pub host_bytes: u64,
    /// Requests that hold it.
    pub leases: usize,
    pub pinned: bool,
    /// Milliseconds since the Unix epoch, in this run.
    pub last_used_ms: Option<i64>,
    /// How long its last load took.
    pub load: Option<LoadTimes>,
}

/// What is in memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResidencySnapshot {
    /// With their bytes, in order of version.
    pub versions: Vec<(AdapterVersion, u64)>,
    /// All bytes held or reserved.
    pub bytes: u64,
    /// Copies in host memory; `None` where the weights themselves are there, or none are kept.
    pub host: Option<super::HostSnapshot>,
}

/// How long the stages of one load took, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoadTimes {
    /// Reading the files.
    pub read_us: u64,
    pub hash_us: u64,
    /// Parsing them and checking every tensor against the base.
    pub check_us: u64,
    /// Waiting for room, and bringing them into the decoder's own form.
    pub pack_us: u64,
    /// Waiting for room, and bringing them back from a copy in host memory; all else is 0 then.
    pub place_us: u64,
}

impl LoadTimes {
    /// The stages that there were, with their microseconds.
    pub fn stages(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let Self { read_us, hash_us, check_us, pack_us, place_us } = *self;
        let from_disk = [("read", read_us), ("hash", hash_us), ("check", check_us), ("pack", pack_us)];
        let placed = place_us > 0;
        from_disk.into_iter().filter(move |_| !placed).chain(placed.then_some(("place", place_us)))
    }
}

/// Uses so far, of all versions: which of two was used last.
static USES: AtomicU64 = AtomicU64::new(0);

/// What is counted of one version, for as long as the server runs.
#[derive(Debug, Default)]
pub struct Usage {
    leases: AtomicUsize,
    /// 0: not used yet.
    last_used_ms: AtomicI64,
    /// The number of its last use.
    last_use: AtomicU64,
    load: Mutex<Option<LoadTimes>>,
}

impl Usage {
    pub fn leases(&self) -> usize {
        self.leases.load(Ordering::Relaxed)
    }

    pub fn last_used_ms(&self) -> Option<i64> {
        Some(self.last_used_ms.load(Ordering::Relaxed)).filter(|ms| *ms > 0)
    }

    /// Grows from use to use, over all versions.
    pub fn last_use(&self) -> u64 {
        self.last_use.load(Ordering::Relaxed)
    }

    pub fn load(&self) -> Option<LoadTimes> {
        *self.load.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn loaded(&self, times: LoadTimes) {
        *self.load.lock().unwrap_or_else(PoisonError::into_inner) = Some(times);
        self.count_use();
    }

    fn used(&self) {
        self.last_used_ms.store(Moment::unix_ms(), Ordering::Relaxed);
        self.count_use();
    }

    fn count_use(&self) {
        self.last_use.store(USES.fetch_add(1, Ordering::Relaxed), Ordering::Relaxed);
    }
}

/// One user of a version.
#[derive(Debug)]
pub struct Seat(Arc<Usage>);

impl Seat {
    pub(super) fn take(usage: &Arc<Usage>) -> Self {
        usage.leases.fetch_add(1, Ordering::Relaxed);
        usage.used();
        Self(Arc::clone(usage))
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.leases.fetch_sub(1, Ordering::Relaxed);
        self.0.used();
    }
}
