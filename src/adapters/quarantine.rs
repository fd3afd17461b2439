//! What failed and is left alone for a while, longer each time: it is not tried again by everybody who asks for it, and
//! whoever asks hears at once why.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::metrics::Metrics;

/// The first time to wait; it doubles with each failure in a row.
const FIRST_MS: i64 = 5000;
const LONGEST_MS: i64 = 10 * 60 * 1000;
/// Entries that are remembered; beyond them the one that may be tried the soonest is forgotten.
const MAX_ENTRIES: usize = 1024;

/// Why one thing failed, and until when it is left alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Confined<F> {
    pub fault: F,
    /// In a row, of the same thing.
    pub failures: u32,
    /// Milliseconds since the Unix epoch, of the first of them.
    pub since_ms: i64,
    pub until_ms: i64,
}

/// Faults by key. Times are milliseconds since the Unix epoch, given by the caller.
pub struct Quarantine<K, F> {
    entries: Mutex<HashMap<K, Confined<F>>>,
    metrics: Arc<Metrics>,
}

impl<K: Clone + Eq + Hash, F: Clone> Quarantine<K, F> {
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self { entries: Mutex::default(), metrics }
    }

    /// Remembers a failure. `same` says whether an earlier fault was of the same thing: then the time to wait doubles.
    pub fn failed(&self, key: K, fault: F, now_ms: i64, same: impl FnOnce(&F) -> bool) {
        let mut entries = self.entries();
        let before = entries.len();
        let earlier = entries.get(&key).filter(|confined| same(&confined.fault));
        let (failures, since_ms) = earlier.map_or((1, now_ms), |one| (one.failures.saturating_add(1), one.since_ms));
        let wait_ms = FIRST_MS.saturating_mul(1 << failures.saturating_sub(1).min(20)).min(LONGEST_MS);
        entries.insert(key, Confined { fault, failures, since_ms, until_ms: now_ms.saturating_add(wait_ms) });
        if entries.len() > MAX_ENTRIES
            && let Some(soonest) = entries.iter().min_by_key(|(_, one)| one.until_ms).map(|(key, _)| key.clone())
        {
            entries.remove(&soonest);
        }
        self.count(before, entries.len());
    }

    /// The entry, if it is not time yet to try again.
    pub fn barred(&self, key: &K, now_ms: i64) -> Option<Confined<F>> {
        // A clock that was set back does not keep anything out for longer than the longest wait.
        let waits = |confined: &&Confined<F>| now_ms < confined.until_ms && confined.until_ms - now_ms <= LONGEST_MS;
        self.entries().get(key).filter(waits).cloned()
    }

    pub fn get(&self, key: &K) -> Option<Confined<F>> {
        self.entries().get(key).cloned()
    }

    /// Every entry, in no order.
    pub fn all(&self) -> Vec<(K, Confined<F>)> {
        self.entries().iter().map(|(key, confined)| (key.clone(), confined.clone())).collect()
    }

    /// It serves, or somebody wants it tried at once. True if there was an entry.
    pub fn release(&self, key: &K) -> bool {
        let mut entries = self.entries();
        let before = entries.len();
        let released = entries.remove(key).is_some();
        self.count(before, entries.len());
        released
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<K, Confined<F>>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Several quarantines share one count.
    fn count(&self, before: usize, after: usize) {
        self.metrics.adapters_quarantined.add(after as i64 - before as i64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quarantine() -> Quarantine<&'static str, u8> {
        Quarantine::new(Arc::default())
    }

    #[test]
    fn each_failure_in_a_row_doubles_the_wait_up_to_ten_minutes() {
        let quarantine = quarantine();
        let mut waits = Vec::new();
        let mut now = 0;
        for _ in 0..12 {
            assert_eq!(quarantine.barred(&"a", now), None, "it may be tried again at {now}");
            quarantine.failed("a", 1, now, |fault| *fault == 1);
            let confined = quarantine.barred(&"a", now).unwrap();
            waits.push((confined.until_ms - now) / 1000);
            assert!(quarantine.barred(&"a", confined.until_ms - 1).is_some());
            now = confined.until_ms;
        }
        assert_eq!(waits, [5, 10, 20, 40, 80, 160, 320, 600, 600, 600, 600, 600]);
        assert_eq!(quarantine.get(&"a").map(|one| (one.failures, one.since_ms)), Some((12, 0)));
    }

    #[test]
    fn another_fault_begins_anew_and_what_is_released_is_free() {
        let quarantine = quarantine();
        for fault in [1, 1, 2] {
            quarantine.failed("a", fault, 0, |earlier| *earlier == fault);
        }
        assert_eq!(quarantine.get(&"a").map(|one| (one.fault, one.failures)), Some((2, 1)));
        assert!(quarantine.release(&"a") && !quarantine.release(&"a"));
        assert_eq!((quarantine.barred(&"a", 0), quarantine.metrics.adapters_quarantined.get()), (None, 0));
    }

    #[test]
    fn a_clock_that_was_set_back_bars_nothing_for_ever() {
        let quarantine = quarantine();
        quarantine.failed("a", 1, 1_000_000_000, |_| true);
        assert_eq!(quarantine.barred(&"a", 0), None);
    }

    #[test]
    fn the_number_of_entries_is_bounded() {
        let quarantine = Quarantine::<usize, u8>::new(Arc::default());
        for key in 0..MAX_ENTRIES + 10 {
            quarantine.failed(key, 1, key as i64, |_| true);
        }
        assert_eq!(
            (quarantine.all().len(), quarantine.metrics.adapters_quarantined.get()),
            (MAX_ENTRIES, MAX_ENTRIES as i64)
        );
        assert!(quarantine.get(&0).is_none() && quarantine.get(&(MAX_ENTRIES + 9)).is_some());
    }
}
