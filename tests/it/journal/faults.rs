//! What each promise is worth while the store fails or is slow: nothing is lost in silence, and the counters tell the truth.

use std::{sync::Arc, time::Duration};

use tunegate::{
    config::{Durability, OnFault, RecordConfig},
    journal::{Completion, Health, Journal, JournalError, ListQuery},
    metrics::Metrics,
    store::{Durable, SqliteStore},
    terms::Ending,
};

use super::{
    choice, fact,
    faulty::{Faulty, Mood},
};

/// A journal over a store that fails or waits.
struct Bench {
    journal: Journal,
    store: Arc<Faulty>,
    metrics: Arc<Metrics>,
    folder: tempfile::TempDir,
}

/// No test waits for this one.
const LONG: Duration = Duration::from_secs(3600);

impl Bench {
    fn new(durability: Durability, on_fault: OnFault) -> Self {
        Self::with(RecordConfig { max_pending: 8, durability, on_fault, stall: LONG, ..RecordConfig::default() })
    }

    fn with(config: RecordConfig) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(&folder.path().join("tunegate.db")).unwrap();
        let (store, metrics) = (Arc::new(Faulty::new(store)), Arc::new(Metrics::new()));
        let config = RecordConfig { data_dir: folder.path().to_owned(), ..config };
        let journal = Journal::open(Arc::clone(&store) as _, &config, Arc::clone(&metrics)).unwrap();
        store.asked();
        Self { journal, store, metrics, folder }
    }

    /// Recorded, failed and lost choices.
    fn counted(&self) -> [u64; 3] {
        let recorded = |ending| self.metrics.recorded.with_label_values(&[ending]).get();
        [recorded("stop") + recorded("failed"), self.metrics.record_failures.get(), self.metrics.record_lost.get()]
    }

    async fn is_up(&self) {
        self.journal.watch_health().wait_for(|health| *health == Health::Up).await.unwrap();
    }

    async fn is_down(&self) {
        self.journal.watch_health().wait_for(|health| *health != Health::Up).await.unwrap();
    }

    async fn ending(&self, id: &str) -> Option<Ending> {
        self.journal.get(id).await.unwrap().map(|row| row.choices[0].ending)
    }
}

#[tokio::test]
async fn strict_and_refusing_the_client_gets_an_error_and_the_row_says_so_once_it_can() {
    let bench = Bench::new(Durability::Strict, OnFault::Refuse);
    let mut admitted = bench.journal.reserve(3).unwrap();
    bench.store.set(Mood::Full);
    let told = admitted.record(fact("told")).await;
    assert!(matches!(told, Err(JournalError::Write { .. })), "{told:?}");
    assert!(matches!(bench.journal.reserve(1), Err(JournalError::Down { .. })));
    assert!(bench.journal.refusal().is_some());
    let left = Completion {
        choices: vec![tunegate::journal::ChoiceRecord { ending: Ending::ClientLeft, ..choice(0) }],
        ..fact("left")
    };
    drop(admitted.record(left));
    assert!(admitted.record(fact("told too")).await.is_err());
    assert_eq!((bench.counted(), bench.metrics.record_held.get()), ([0, 3, 0], 3));

    bench.store.set(Mood::Well);
    bench.is_up().await;
    bench.journal.reserve(1).unwrap().record(fact("after")).await.unwrap();
    assert_eq!(bench.ending("told").await, Some(Ending::Failed));
    assert_eq!(bench.ending("told too").await, Some(Ending::Failed));
    assert_eq!(bench.ending("left").await, Some(Ending::ClientLeft), "nobody had to be told");
    assert_eq!(bench.ending("after").await, Some(fact("after").choices[0].ending));
    assert_eq!((bench.counted(), bench.metrics.record_held.get()), ([3, 3, 0], 0));
}

#[tokio::test]
async fn strict_and_serving_every_client_gets_its_finish_and_only_what_does_not_fit_is_lost() {
    let bench = Bench::new(Durability::Strict, OnFault::Serve);
    bench.store.set(Mood::Full);
    for n in 0..10 {
        bench.journal.reserve(1).unwrap().record(fact(&format!("c{n}"))).await.unwrap();
    }
    assert_eq!(bench.journal.refusal(), None, "requests are welcome");
    assert!(matches!(bench.journal.health(), Health::Down { .. }));
    assert_eq!((bench.counted(), bench.metrics.record_held.get()), ([0, 0, 2], 8), "eight is all the room there is");

    bench.store.set(Mood::Well);
    bench.is_up().await;
    // What was held gives its room back a moment later.
    let mut slot = loop {
        match bench.journal.reserve(1) {
            Ok(slot) => break slot,
            Err(_) => tokio::task::yield_now().await,
        }
    };
    slot.record(fact("after")).await.unwrap();
    for n in 0..8 {
        assert_eq!(bench.journal.get(&format!("c{n}")).await.unwrap(), Some(fact(&format!("c{n}"))));
    }
    assert_eq!(bench.journal.get("c8").await.unwrap(), None);
    assert_eq!((bench.counted(), bench.metrics.record_held.get()), ([9, 0, 2], 0));
}

#[tokio::test]
async fn in_a_group_the_finish_does_not_wait_and_one_sync_serves_the_window() {
    let bench = Bench::new(Durability::Group(LONG), OnFault::Refuse);
    for n in 0..5 {
        bench.journal.reserve(1).unwrap().record(fact(&format!("c{n}"))).await.unwrap();
    }
    assert_eq!(bench.store.asked(), []);
    assert_eq!(bench.ending("c0").await, None, "the window is open");
    // Whoever needs the disk ends the window for all.
    assert!(bench.journal.set_metadata("c3", Default::default()).await.unwrap());
    assert_eq!(bench.store.asked(), [Durable::Now]);
    assert!(bench.ending("c4").await.is_some());
    drop(bench.journal.reserve(1).unwrap().record(fact("last")));
    let Bench { journal, folder, .. } = bench;
    drop(journal);
    let store = SqliteStore::open(&folder.path().join("tunegate.db")).unwrap();
    assert!(tunegate::store::Store::completion(&store, "last").unwrap().is_some(), "a clean end loses nothing");
}

#[tokio::test]
async fn a_group_ends_by_itself_after_its_window() {
    let bench = Bench::new(Durability::Group(Duration::from_millis(1)), OnFault::Refuse);
    let mut durable = bench.journal.watch_durable();
    bench.journal.reserve(1).unwrap().record(fact("c0")).await.unwrap();
    durable.changed().await.unwrap();
    assert_eq!(bench.store.asked(), [Durable::Now]);
    assert!(bench.ending("c0").await.is_some());
}

#[tokio::test]
async fn without_a_promise_rows_are_not_synced_but_changes_are() {
    let bench = Bench::new(Durability::BestEffort, OnFault::Refuse);
    let mut durable = bench.journal.watch_durable();
    bench.journal.reserve(1).unwrap().record(fact("c0")).await.unwrap();
    durable.changed().await.unwrap();
    assert_eq!(bench.store.asked(), [Durable::Later]);
    assert!(bench.journal.delete("c0").await.unwrap());
    assert_eq!(bench.store.asked(), [Durable::Now]);
}

#[tokio::test]
async fn what_was_finished_before_the_disk_filled_up_is_held_and_written_in_order() {
    for durability in [Durability::Group(Duration::from_millis(1)), Durability::BestEffort] {
        let bench = Bench::new(durability, OnFault::Refuse);
        let mut slots: Vec<_> = (0..3).map(|_| bench.journal.reserve(1).unwrap()).collect();
        bench.store.set(Mood::Full);
        for (n, slot) in slots.iter_mut().enumerate() {
            slot.record(fact(&format!("c{n}"))).await.unwrap();
        }
        bench.is_down().await;
        assert!(bench.journal.reserve(1).is_err());
        bench.store.set(Mood::Well);
        bench.is_up().await;
        bench.journal.set_metadata("c2", Default::default()).await.unwrap();
        let rows = bench.journal.follow(Default::default(), 10).await.unwrap();
        let ids: Vec<_> = rows.iter().map(|row| row.completion.id.as_str()).collect();
        assert_eq!(ids, ["c0", "c1", "c2"]);
        assert_eq!(bench.counted(), [3, 0, 0]);
    }
}

#[tokio::test]
async fn a_store_that_never_comes_back_costs_what_is_counted_at_the_end() {
    let bench = Bench::new(Durability::Strict, OnFault::Serve);
    bench.store.set(Mood::Full);
    for n in 0..3 {
        bench.journal.reserve(1).unwrap().record(fact(&format!("c{n}"))).await.unwrap();
    }
    let Bench { journal, metrics, .. } = bench;
    drop(journal);
    assert_eq!(metrics.record_lost.get(), 3);
}

#[tokio::test]
async fn a_slow_store_is_a_fault_that_ends_by_itself() {
    let stall = Duration::from_millis(1);
    let config = RecordConfig { max_pending: 8, stall, ..RecordConfig::default() };
    let bench = Bench::with(config);
    let mut waiting = bench.journal.reserve(1).unwrap();
    bench.store.set(Mood::Stuck);
    let receipt = waiting.record(fact("waits"));
    tokio::pin!(receipt);
    while bench.journal.refusal().is_none() {
        tokio::task::yield_now().await;
    }
    assert!(matches!(bench.journal.reserve(1), Err(JournalError::Down { .. })));
    assert!(futures_util::poll!(&mut receipt).is_pending(), "an answer that was admitted waits for the disk");
    bench.store.set(Mood::Well);
    receipt.await.unwrap();
    assert_eq!(bench.journal.refusal(), None);
    assert_eq!(bench.counted(), [1, 0, 0]);
}

#[tokio::test]
async fn serving_a_slow_store_holds_nobody_back_and_loses_nothing() {
    let stall = Duration::from_millis(1);
    let config = RecordConfig { max_pending: 8, on_fault: OnFault::Serve, stall, ..RecordConfig::default() };
    let bench = Bench::with(config);
    bench.store.set(Mood::Stuck);
    bench.journal.reserve(1).unwrap().record(fact("c0")).await.unwrap();
    bench.journal.reserve(1).unwrap().record(fact("c1")).await.unwrap();
    bench.store.set(Mood::Well);
    bench.journal.idle().await;
    assert!(bench.ending("c0").await.is_some() && bench.ending("c1").await.is_some());
    assert_eq!(bench.counted(), [2, 0, 0]);
}

#[tokio::test]
async fn a_row_that_no_store_would_take_does_not_stop_the_others() {
    let bench = Bench::new(Durability::Group(LONG), OnFault::Refuse);
    let database = rusqlite::Connection::open(bench.folder.path().join("tunegate.db")).unwrap();
    let trigger =
        "CREATE TRIGGER never BEFORE INSERT ON completions WHEN NEW.id = 'bad' BEGIN SELECT RAISE(ABORT, 'never'); END";
    database.execute_batch(trigger).unwrap();
    for id in ["good", "bad", "better"] {
        bench.journal.reserve(1).unwrap().record(fact(id)).await.unwrap();
    }
    bench.journal.set_metadata("good", Default::default()).await.unwrap();
    assert_eq!(bench.journal.health(), Health::Up);
    let query = ListQuery {
        model: None,
        key: None,
        metadata: Vec::new(),
        after: None,
        limit: 9,
        order: tunegate::journal::Order::OldestFirst,
    };
    let page = bench.journal.list(query).await.unwrap();
    let ids: Vec<_> = page.completions.iter().map(|row| row.id.as_str()).collect();
    assert_eq!(ids, ["good", "better"]);
    assert_eq!(bench.counted(), [2, 0, 1]);
}
