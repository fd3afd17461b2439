use std::sync::atomic::AtomicBool;

use super::*;
use crate::terms::{Digest, SamplingLayer};

fn version(index: u32) -> AdapterVersion {
    AdapterVersion(Digest::of(&index.to_le_bytes()))
}

fn name() -> AdapterName {
    AdapterName::parse("a").unwrap()
}

fn card() -> Arc<AdapterCard> {
    Arc::new(AdapterCard {
        rank: 1,
        targets: Vec::new(),
        file_bytes: 0,
        trained_on: None,
        base_digest: None,
        template: None,
        sampling: SamplingLayer::default(),
        description: None,
        golden: Vec::new(),
        notes: Vec::new(),
    })
}

type Brought = Result<(LoraAdapter, Arc<AdapterCard>), AdapterError>;

fn set(limits: ResidencyLimits, load: impl Fn(AdapterVersion) -> Brought + Send + Sync + 'static) -> ResidentSet {
    let load = move |_: &AdapterName, version, _: &mut Reservation<'_>| {
        load(version).map(|(weights, card)| Loaded { weights, card, copy: None })
    };
    ResidentSet::start(limits, 1, Arc::new(Metrics::default()), Box::new(load)).unwrap()
}

fn alone(weights: LoraAdapter) -> Loaded {
    Loaded { weights, card: card(), copy: None }
}

const ONE: ResidencyLimits = ResidencyLimits { max_bytes: 100, max_count: None, host: None };

/// Weights whose memory is given back only when they are let.
struct Slow {
    let_go: mpsc::Receiver<()>,
    freed: Arc<AtomicBool>,
}

impl Drop for Slow {
    fn drop(&mut self) {
        let _ = self.let_go.recv();
        self.freed.store(true, Ordering::SeqCst);
    }
}

#[tokio::test]
async fn a_load_waits_for_memory_that_is_still_being_freed() {
    let (let_go, wait) = mpsc::channel();
    let freed = Arc::new(AtomicBool::new(false));
    let slow = Mutex::new(Some(Slow { let_go: wait, freed: Arc::clone(&freed) }));
    let seen = Arc::clone(&freed);
    let set = set(ONE, move |version| {
        let packed: crate::model::lora::Packed = match slow.lock().unwrap().take() {
            Some(slow) => Arc::new(Mutex::new(slow)),
            None => {
                assert!(seen.load(Ordering::SeqCst), "loaded before the first one's memory was free");
                Arc::new(())
            }
        };
        Ok((LoraAdapter::new(version, 100, packed), card()))
    });
    drop(set.get(&name(), version(0), 100).await.unwrap());
    let name = name();
    let second = set.get(&name, version(1), 100);
    tokio::pin!(second);
    assert!(futures_util::poll!(second.as_mut()).is_pending());
    assert!(set.snapshot().bytes <= 100);
    let_go.send(()).unwrap();
    assert_eq!(second.await.unwrap().0.weights.version(), version(1));
    assert_eq!(set.snapshot().versions, [(version(1), 100)]);
}

#[tokio::test]
async fn a_load_that_panics_fails_for_those_who_asked_and_for_nobody_else() {
    let bad = version(0);
    let set = set(ONE, move |version| {
        assert_ne!(version, bad, "the files are cursed");
        Ok((LoraAdapter::new(version, 100, Arc::new(())), card()))
    });
    for _ in 0..2 {
        set.release(bad);
        let error = set.get(&name(), bad, 100).await.unwrap_err();
        assert!(matches!(error, AdapterError::Unreadable { .. }), "{error}");
        assert_eq!(set.snapshot().bytes, 0);
        assert!(set.get(&name(), version(1), 100).await.is_ok());
        set.shared.cache.invalidate(&version(1));
    }
}

#[tokio::test]
async fn loads_wait_in_a_bounded_queue() {
    let (open, gate) = mpsc::channel::<()>();
    let gate = Mutex::new(gate);
    let limits = ResidencyLimits { max_bytes: u64::MAX, max_count: None, host: None };
    let set = set(limits, move |version| {
        let _ = gate.lock().unwrap().recv();
        Ok((LoraAdapter::new(version, 1, Arc::new(())), card()))
    });
    let (name, mut waiting) = (name(), Vec::new());
    let mut refused = 0;
    for index in 0..=MAX_WAITING as u32 + 1 {
        let mut load = Box::pin(set.get(&name, version(index), 1));
        match futures_util::poll!(load.as_mut()) {
            std::task::Poll::Pending => waiting.push(load),
            std::task::Poll::Ready(Err(AdapterError::Busy { retry_after_ms, .. })) => {
                assert!(retry_after_ms > 0);
                refused += 1;
            }
            std::task::Poll::Ready(other) => panic!("{other:?}"),
        }
    }
    // The loading thread may have taken one off the queue already.
    assert!((1..=2).contains(&refused), "{refused}");
    assert_eq!(set.state(version(0)), Residency::Loading);
    assert_eq!(set.state(version(9999)), Residency::Cold);
    drop(open);
    for load in waiting {
        load.await.unwrap();
    }
    assert_eq!(set.state(version(0)), Residency::Resident);
}

#[tokio::test]
async fn what_turns_out_larger_than_expected_is_held_to_the_limit_too() {
    let set = set(ONE, |version| Ok((LoraAdapter::new(version, 101, Arc::new(())), card())));
    let error = set.get(&name(), version(0), 10).await.unwrap_err();
    assert!(matches!(error, AdapterError::NoRoom { needed: 101, limit: 100, .. }), "{error}");
    assert_eq!(set.snapshot(), ResidencySnapshot::default());
}

#[tokio::test]
async fn an_evicted_adapter_that_is_still_leased_is_found_again_without_a_load() {
    let loads = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&loads);
    let set = set(ONE, move |version| {
        counted.fetch_add(1, Ordering::SeqCst);
        Ok((LoraAdapter::new(version, 60, Arc::new(())), card()))
    });
    let (leased, _) = set.get(&name(), version(0), 60).await.unwrap();
    set.shared.cache.invalidate(&version(0));
    let (again, found) = set.get(&name(), version(0), 60).await.unwrap();
    assert!(Arc::ptr_eq(&leased.weights, &again.weights));
    assert_eq!((loads.load(Ordering::SeqCst), set.snapshot().bytes, found), (1, 60, Residency::Resident));
}

#[tokio::test]
async fn a_version_that_failed_is_not_read_again_by_everybody_until_it_is_let() {
    let loads = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&loads);
    let bad = version(0);
    let set = set(ONE, move |version| {
        if version == bad && counted.fetch_add(1, Ordering::SeqCst) < 2 {
            return Err(AdapterError::Unreadable { name: "a".to_owned(), reason: "torn".to_owned() });
        }
        Ok((LoraAdapter::new(version, 10, Arc::new(())), card()))
    });
    for _ in 0..5 {
        let error = set.get(&name(), bad, 10).await.unwrap_err();
        assert!(error.to_string().contains("torn"), "{error}");
    }
    assert_eq!(loads.load(Ordering::SeqCst), 1);
    assert!(set.get(&name(), version(1), 10).await.is_ok(), "nobody else waits for it");
    assert!(set.release(bad));
    assert!(set.get(&name(), bad, 10).await.is_err());
    assert_eq!(set.confined(bad).unwrap().failures, 1, "it was let go, so this is the first again");
    assert!(set.release(bad));
    assert!(set.get(&name(), bad, 10).await.is_ok());
    assert!(set.confined(bad).is_none());
}

#[tokio::test]
async fn two_cold_adapters_are_loaded_side_by_side() {
    // Each load waits for the other: one after the other they would never end.
    let meeting = Arc::new(std::sync::Barrier::new(2));
    let both = Arc::clone(&meeting);
    let load = move |_: &AdapterName, version, _: &mut Reservation<'_>| {
        both.wait();
        Ok(alone(LoraAdapter::new(version, 1, Arc::new(()))))
    };
    let limits = ResidencyLimits { max_bytes: u64::MAX, max_count: None, host: None };
    let set = ResidentSet::start(limits, 2, Arc::new(Metrics::default()), Box::new(load)).unwrap();
    let name = name();
    let (one, other) = tokio::join!(set.get(&name, version(0), 1), set.get(&name, version(1), 1));
    assert!(one.is_ok() && other.is_ok());
}

#[tokio::test]
async fn a_cold_adapter_whose_load_stalls_holds_up_no_warm_one() {
    let (open, gate) = mpsc::channel::<()>();
    let gate = Mutex::new(gate);
    let limits = ResidencyLimits { max_bytes: u64::MAX, max_count: None, host: None };
    let set = set(limits, move |version| {
        if version != self::version(0) {
            let _ = gate.lock().unwrap().recv();
        }
        Ok((LoraAdapter::new(version, 1, Arc::new(())), card()))
    });
    let name = name();
    set.get(&name, version(0), 1).await.unwrap();
    let mut cold = Box::pin(set.get(&name, version(1), 1));
    assert!(futures_util::poll!(cold.as_mut()).is_pending());
    for _ in 0..100 {
        assert!(set.get(&name, version(0), 1).await.is_ok());
    }
    assert_eq!(set.state(version(1)), Residency::Loading);
    drop(open);
    cold.await.unwrap();
}

#[tokio::test]
async fn lookups_are_counted_by_where_the_weights_were() {
    let metrics = Arc::new(Metrics::default());
    let load =
        |_: &AdapterName, version, _: &mut Reservation<'_>| Ok(alone(LoraAdapter::new(version, 100, Arc::new(()))));
    let set = ResidentSet::start(ONE, 2, Arc::clone(&metrics), Box::new(load)).unwrap();
    let name = name();
    for index in [0, 0, 1, 0] {
        drop(set.get(&name, version(index), 100).await.unwrap());
    }
    let count = |tier: &str| metrics.adapter_lookups.with_label_values(&[tier]).get();
    assert_eq!((count("memory"), count("loading"), count("disk")), (1, 0, 3));
    assert_eq!(metrics.adapter_evictions.get(), 2);
}

/// A copy from which an adapter of 100 bytes is made again.
struct OneCopy {
    version: AdapterVersion,
    freed: mpsc::Sender<AdapterVersion>,
}

impl HostCopy for OneCopy {
    fn bytes(&self) -> u64 {
        40
    }

    fn device_bytes(&self) -> u64 {
        100
    }

    fn place(&self) -> Result<LoraAdapter, crate::model::PackError> {
        Ok(LoraAdapter::new(self.version, 100, Arc::new(())))
    }
}

impl Drop for OneCopy {
    fn drop(&mut self) {
        let _ = self.freed.send(self.version);
    }
}

/// A device with room for one, and a host memory for copies; counts the loads from disk and tells of copies that are freed.
struct Tiers {
    set: ResidentSet,
    metrics: Arc<Metrics>,
    loads: Arc<AtomicU64>,
    freed: mpsc::Receiver<AdapterVersion>,
}

impl Tiers {
    fn new(host: HostLimits) -> Self {
        let (metrics, loads) = (Arc::new(Metrics::default()), Arc::new(AtomicU64::new(0)));
        let (gone, freed) = mpsc::channel();
        let counted = Arc::clone(&loads);
        let load = move |_: &AdapterName, version, _: &mut Reservation<'_>| {
            counted.fetch_add(1, Ordering::SeqCst);
            let copy: Arc<dyn HostCopy> = Arc::new(OneCopy { version, freed: gone.clone() });
            Ok(Loaded { copy: Some(copy), ..alone(LoraAdapter::new(version, 100, Arc::new(()))) })
        };
        let limits = ResidencyLimits { host: Some(host), ..ONE };
        let set = ResidentSet::start(limits, 1, Arc::clone(&metrics), Box::new(load)).unwrap();
        Self { set, metrics, loads, freed }
    }

    /// Each is used in turn and makes way for the next. Gives the loads from disk that it took.
    async fn used(&self, versions: &[u32]) -> u64 {
        let before = self.loads.load(Ordering::SeqCst);
        for index in versions {
            let (ready, _) = self.set.get(&name(), version(*index), 100).await.unwrap();
            assert_eq!(ready.weights.version(), version(*index));
            drop(ready.seat());
        }
        self.loads.load(Ordering::SeqCst) - before
    }
}

#[tokio::test]
async fn what_left_the_device_comes_back_from_host_memory_without_a_load() {
    let tiers = Tiers::new(HostLimits { max_bytes: 120, max_count: None });
    assert_eq!(tiers.used(&[0, 1, 2]).await, 3);
    let states = [0, 1, 2, 3].map(|index| tiers.set.state(version(index)));
    assert_eq!(states, [Residency::Host, Residency::Host, Residency::Resident, Residency::Cold]);
    assert_eq!(tiers.used(&[0, 1, 0, 2]).await, 0);
    let usage = tiers.set.usage(version(0));
    assert_eq!((usage.bytes, usage.host_bytes), (0, 40));
    assert!(usage.load.unwrap().place_us > 0);
    let snapshot = tiers.set.snapshot();
    assert_eq!(snapshot.bytes, 100, "a copy is no weight on the device");
    assert_eq!(snapshot.host, Some(HostSnapshot { count: 3, bytes: 120, limit_bytes: 120 }));
    let found = |tier: &str| tiers.metrics.adapter_lookups.with_label_values(&[tier]).get();
    assert_eq!((found("disk"), found("host")), (3, 4));
    assert_eq!((tiers.metrics.adapter_host_bytes.get(), tiers.metrics.adapter_host_bytes_limit.get()), (120, 120));
}

#[tokio::test]
async fn of_copies_in_host_memory_those_used_longest_ago_make_way() {
    for host in [HostLimits { max_bytes: 80, max_count: None }, HostLimits { max_bytes: u64::MAX, max_count: Some(2) }]
    {
        let tiers = Tiers::new(host);
        assert_eq!(tiers.used(&[0, 1, 0, 2]).await, 3, "{host:?}");
        assert_eq!(tiers.freed.recv().unwrap(), version(1), "{host:?}");
        assert_eq!(tiers.used(&[0]).await, 0, "{host:?}");
        assert_eq!(tiers.used(&[1]).await, 1, "{host:?}");
        assert_eq!(tiers.metrics.adapter_host_evictions.get(), 2, "{host:?}");
    }
    let small = Tiers::new(HostLimits { max_bytes: 39, max_count: None });
    assert_eq!(small.used(&[0, 1, 0]).await, 3, "what is larger than all of it is not kept");
    assert_eq!(small.set.snapshot().host.unwrap().bytes, 0);
}

#[tokio::test]
async fn a_version_that_loses_its_name_leaves_host_memory_too() {
    let tiers = Tiers::new(HostLimits { max_bytes: 120, max_count: None });
    tiers.used(&[0, 1]).await;
    tiers.set.retire(version(0));
    assert_eq!(tiers.freed.recv().unwrap(), version(0));
    assert_eq!(tiers.set.state(version(0)), Residency::Cold);
    // Asked for by its digits it is loaded, and leaves nothing behind.
    assert_eq!(tiers.used(&[0]).await, 1);
    assert_eq!(tiers.freed.recv().unwrap(), version(0));
    assert_eq!(tiers.set.usage(version(0)).host_bytes, 0);
    tiers.set.named(version(0));
    assert_eq!(tiers.used(&[1, 0, 1, 0]).await, 1);
}
