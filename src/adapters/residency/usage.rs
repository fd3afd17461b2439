//! Who uses a version, when it was used last, and how long loading it took.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicI64, AtomicUsize, Ordering},
};

use crate::terms::Moment;

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
}

/// What is counted of one version, for as long as the server runs.
#[derive(Debug, Default)]
pub struct Usage {
    leases: AtomicUsize,
    /// 0: not used yet.
    last_used_ms: AtomicI64,
    load: Mutex<Option<LoadTimes>>,
}

impl Usage {
    pub fn leases(&self) -> usize {
        self.leases.load(Ordering::Relaxed)
    }

    pub fn last_used_ms(&self) -> Option<i64> {
        Some(self.last_used_ms.load(Ordering::Relaxed)).filter(|ms| *ms > 0)
    }

    pub fn load(&self) -> Option<LoadTimes> {
        *self.load.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn loaded(&self, times: LoadTimes) {
        *self.load.lock().unwrap_or_else(PoisonError::into_inner) = Some(times);
    }

    fn used(&self) {
        self.last_used_ms.store(Moment::unix_ms(), Ordering::Relaxed);
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
