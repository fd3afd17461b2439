//! Names, versions and weights in memory, on a real base.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde_json::json;
use tunegate::{
    adapters::{AdapterError, AdapterStore, Opened, Residency},
    config::AdapterConfig,
    gateway::publish::{PublishError, Publisher, VaultLimits},
    metrics::Metrics,
    store::SqliteStore,
    terms::AdapterVersion,
};

use super::draft::{Draft, LLAMA};

/// A server's place on disk and its settings.
pub struct Setup {
    pub config: AdapterConfig,
    pub metrics: Arc<Metrics>,
    pub data: PathBuf,
}

impl Setup {
    pub fn new(place: &Path) -> Self {
        let config = AdapterConfig { dirs: vec![place.join("adapters")], ..Default::default() };
        Self { config, metrics: Arc::new(Metrics::default()), data: place.join("data") }
    }

    /// The catalog as the last server left it, and then what the folders name.
    pub fn open(&self) -> Result<Opened, AdapterError> {
        let mut opened = self.open_catalog()?;
        let publisher = Publisher::new(Arc::clone(&opened.store), VaultLimits::from(&self.config));
        match publisher.publish_configured(&self.config) {
            Ok(refused) => opened.refused.extend(refused),
            Err(PublishError::Adapter(error)) => return Err(error),
            Err(error) => panic!("{error}"),
        }
        Ok(opened)
    }

    /// The catalog alone.
    pub fn open_catalog(&self) -> Result<Opened, AdapterError> {
        let (packer, weights) = (Arc::clone(&LLAMA.packer), Arc::clone(&LLAMA.weights));
        fs::create_dir_all(&self.data).unwrap();
        let store = Arc::new(SqliteStore::open(&self.data.join("tunegate.db")).unwrap());
        let (vault, metrics) = (self.data.join("vault"), Arc::clone(&self.metrics));
        AdapterStore::open(&self.config, &vault, store, packer, LLAMA.identity.clone(), weights, metrics)
    }

    pub fn serve(&self) -> Arc<AdapterStore> {
        let opened = self.open().unwrap();
        assert!(opened.refused.is_empty(), "{:?}", opened.refused);
        opened.store
    }
}

/// A healthy adapter whose version depends on `alpha`.
pub fn put(place: &Path, name: &str, alpha: f64) {
    let mut draft = Draft::plain();
    draft.set("lora_alpha", json!(alpha));
    draft.write(&place.join("adapters").join(name));
}

/// Bytes of one such adapter in memory: rank 8, q and v of two layers.
pub const BYTES: u64 = 4 * 2 * (8 * 64 + 64 * 8 + 8 * 64 + 32 * 8);

#[tokio::test]
async fn folders_are_served_by_name_and_loaded_when_they_are_leased() {
    let place = tempfile::tempdir().unwrap();
    put(place.path(), "triage", 1.0);
    put(place.path(), "team/sql", 2.0);
    let setup = Setup::new(place.path());
    let store = setup.serve();
    let names: Vec<String> = store.list().iter().map(|entry| entry.name.to_string()).collect();
    assert_eq!(names, ["team/sql", "triage"]);
    assert!(store.list().iter().all(|entry| entry.residency == Residency::Cold && entry.created > 1_700_000_000));

    let (name, version) = store.find("team/sql").unwrap();
    let lease = store.lease(&name, version).await.unwrap();
    assert_eq!((lease.version, lease.weights.version(), lease.weights.bytes()), (version, version, BYTES));
    assert_eq!((lease.card.rank, lease.card.targets.len()), (8, 2));
    assert_eq!(store.list()[0].residency, Residency::Resident);
    assert_eq!(store.resident().versions, [(version, BYTES)]);
    let again = store.lease(&name, version).await.unwrap();
    assert!(Arc::ptr_eq(&lease.weights, &again.weights));
    assert_eq!(setup.metrics.adapter_loads.with_label_values(&["loaded"]).get(), 1);
    assert_eq!(setup.metrics.adapter_load_seconds.get_sample_count(), 1);
    assert_eq!(setup.metrics.adapters_resident.get(), 1);
    assert_eq!(setup.metrics.adapter_bytes.get(), BYTES as i64);
}

#[test]
fn an_unknown_name_is_answered_with_the_nearest() {
    let place = tempfile::tempdir().unwrap();
    put(place.path(), "ticket-triage", 1.0);
    put(place.path(), "house-style", 2.0);
    let store = Setup::new(place.path()).serve();
    for (wanted, near) in [("ticket-triag", "ticket-triage"), ("House-Style", "house-style"), ("bas", "base")] {
        match store.find(wanted) {
            Err(AdapterError::Unknown { name, nearest }) => {
                assert_eq!((name.as_str(), nearest.as_deref()), (wanted, Some(near)));
            }
            other => panic!("{wanted}: {other:?}"),
        }
    }
    assert!(store.find("ticket-triage").is_ok());
}

#[test]
fn a_named_folder_comes_before_one_of_the_same_name_and_both_are_told() {
    let place = tempfile::tempdir().unwrap();
    put(place.path(), "one", 1.0);
    put(place.path(), "two", 2.0);
    let mut setup = Setup::new(place.path());
    setup.config.modules = vec![("one".to_owned(), place.path().join("adapters/two"))];
    let opened = setup.open().unwrap();
    assert_eq!(opened.store.find("one").unwrap().1, opened.store.find("two").unwrap().1);
    assert_eq!(opened.refused.len(), 1);
    assert!(opened.refused[0].1[0].to_string().contains("taken by another folder"), "{:?}", opened.refused);
}

#[test]
fn a_folder_of_adapters_that_is_not_there_is_an_error_for_the_operator() {
    let place = tempfile::tempdir().unwrap();
    let error = Setup::new(place.path()).open().err().unwrap();
    assert!(error.to_string().contains("adapters"), "{error}");
}

#[tokio::test]
async fn an_old_version_is_found_and_served_after_the_folder_changed_and_the_server_restarted() {
    let place = tempfile::tempdir().unwrap();
    let setup = Setup::new(place.path());
    let mut versions: Vec<AdapterVersion> = Vec::new();
    for alpha in [1.0, 2.0, 2.0, 3.0] {
        put(place.path(), "triage", alpha);
        versions.push(setup.serve().find("triage").unwrap().1);
    }
    assert_eq!(versions[1], versions[2], "the same content is the same version");
    fs::remove_dir_all(place.path().join("adapters/triage")).unwrap();
    put(place.path(), "other", 9.0);

    let store = setup.serve();
    assert_eq!(store.find("triage").unwrap().1, versions[3], "its folder is gone, its copy is not");
    for version in [versions[0], versions[1], versions[3]] {
        let (name, found) = store.find_version("triage", &version.short()).unwrap();
        assert_eq!(found, version);
        let lease = store.lease(&name, found).await.unwrap();
        assert_eq!((lease.weights.version(), lease.card.rank), (version, 8));
    }
    let other = store.find("other").unwrap().1;
    let unknown = |prefix: &str| store.find_version("triage", prefix).unwrap_err();
    assert!(matches!(unknown(&other.short()), AdapterError::UnknownVersion { .. }), "another name's version");
    assert!(matches!(unknown("abc"), AdapterError::UnknownVersion { .. }), "three digits");
    assert!(matches!(unknown(""), AdapterError::UnknownVersion { .. }));
    assert!(matches!(store.find_version("nobody", &other.short()), Err(AdapterError::Unknown { .. })));
}

#[tokio::test]
async fn a_folder_that_went_bad_leaves_its_name_what_it_had() {
    let place = tempfile::tempdir().unwrap();
    let setup = Setup::new(place.path());
    put(place.path(), "triage", 1.0);
    let version = setup.serve().find("triage").unwrap().1;
    let mut bad = Draft::plain();
    bad.set("alora_invocation_tokens", json!([5, 6]));
    bad.write(&place.path().join("adapters/triage"));
    let opened = setup.open().unwrap();
    assert!(opened.refused[0].1[0].to_string().contains("alora_invocation_tokens"), "{:?}", opened.refused);
    let store = opened.store;
    assert_eq!(store.find("triage").unwrap().1, version);
    let (name, found) = store.find_version("triage", &version.short()).unwrap();
    assert!(store.lease(&name, found).await.is_ok());
}

#[tokio::test]
async fn histories_of_an_earlier_build_are_taken_over_once_and_its_old_versions_serve() {
    let place = tempfile::tempdir().unwrap();
    let setup = Setup::new(place.path());
    put(place.path(), "triage", 1.0);
    let one = setup.serve().find("triage").unwrap().1;
    put(place.path(), "triage", 2.0);
    let two = setup.serve().find("triage").unwrap().1;
    // As the build before left it: bytes and histories in the vault, nothing in the database.
    for file in ["tunegate.db", "tunegate.db-wal", "tunegate.db-shm"] {
        let _ = fs::remove_file(setup.data.join(file));
    }
    let names = setup.data.join("vault/names");
    fs::create_dir(&names).unwrap();
    fs::write(names.join("0"), format!("triage\n5 {one}\n9 {two}\n")).unwrap();
    fs::write(names.join("1"), format!("gone\n5 {one}\n")).unwrap();

    let store = setup.serve();
    assert!(!names.exists());
    assert_eq!(store.find("triage").unwrap().1, two);
    assert!(matches!(store.find("gone"), Err(AdapterError::Unknown { .. })), "no folder names it any more");
    for (name, version) in [("triage", one), ("gone", one)] {
        let (name, found) = store.find_version(name, &version.short()).unwrap();
        assert_eq!(store.lease(&name, found).await.unwrap().version, version);
    }
    let steps = store.named("triage").unwrap().steps;
    let steps: Vec<_> = steps.iter().map(|step| (step.operation.as_str(), step.version)).collect();
    assert_eq!(steps, [("import", Some(one)), ("import", Some(two)), ("load", Some(two))]);
}

#[tokio::test]
async fn a_changed_copy_in_the_vault_is_never_served() {
    let place = tempfile::tempdir().unwrap();
    put(place.path(), "triage", 1.0);
    let setup = Setup::new(place.path());
    let store = setup.serve();
    let (name, version) = store.find("triage").unwrap();
    let copy = place.path().join("data/vault").join(version.to_string()).join("adapter_model.safetensors");
    let mut bytes = fs::read(&copy).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&copy, &bytes).unwrap();
    let error = store.lease(&name, version).await.unwrap_err();
    assert!(matches!(&error, AdapterError::Unreadable { reason, .. } if reason.contains(&version.short())), "{error}");
    assert_eq!(setup.metrics.adapter_loads.with_label_values(&["failed"]).get(), 1);
    assert_eq!(store.resident().bytes, 0, "what was reserved is given back");
    bytes[0] = 0xff;
    *bytes.last_mut().unwrap() ^= 1;
    fs::remove_dir_all(copy.parent().unwrap()).unwrap();
    assert!(matches!(store.lease(&name, version).await, Err(AdapterError::Unreadable { .. })));
}

#[tokio::test]
async fn requests_that_miss_together_share_one_load_also_if_the_first_leaves() {
    let place = tempfile::tempdir().unwrap();
    put(place.path(), "triage", 1.0);
    let setup = Setup::new(place.path());
    let store = setup.serve();
    let (name, version) = store.find("triage").unwrap();
    {
        let leaves = store.lease(&name, version);
        tokio::pin!(leaves);
        // One poll: the load begins, and then its only reader is gone.
        assert!(futures_util::poll!(leaves.as_mut()).is_pending());
    }
    let mut leases = Vec::new();
    for lease in futures_util::future::join_all((0..64).map(|_| store.lease(&name, version))).await {
        leases.push(lease.unwrap());
    }
    assert!(leases.iter().all(|lease| Arc::ptr_eq(&lease.weights, &leases[0].weights)));
    assert_eq!(setup.metrics.adapter_loads.with_label_values(&["loaded"]).get(), 1);
}

#[tokio::test]
async fn the_budget_of_bytes_holds_and_the_one_used_longest_ago_goes_first() {
    let place = tempfile::tempdir().unwrap();
    for index in 0..4 {
        put(place.path(), &format!("a{index}"), 1.0 + f64::from(index));
    }
    let mut setup = Setup::new(place.path());
    setup.config.max_bytes = 3 * BYTES;
    let store = setup.serve();
    let find = |index: usize| store.find(&format!("a{index}")).unwrap();
    for index in [0, 1, 2, 0, 3] {
        let (name, version) = find(index);
        drop(store.lease(&name, version).await.unwrap());
        assert!(store.resident().bytes <= 3 * BYTES);
    }
    let resident: Vec<AdapterVersion> = store.resident().versions.iter().map(|(version, _)| *version).collect();
    assert!(!resident.contains(&find(1).1), "a1 was used longest ago");
    assert!([0, 2, 3].iter().all(|&index| resident.contains(&find(index).1)));
    assert_eq!(setup.metrics.adapters_resident.get(), 3);
    assert_eq!(setup.metrics.adapter_bytes.get(), 3 * BYTES as i64);
}

#[tokio::test]
async fn leased_adapters_are_never_evicted_and_no_room_says_when_to_come_back() {
    let place = tempfile::tempdir().unwrap();
    for index in 0..3 {
        put(place.path(), &format!("a{index}"), 1.0 + f64::from(index));
    }
    let mut setup = Setup::new(place.path());
    setup.config.max_bytes = 2 * BYTES + 100;
    let store = setup.serve();
    let find = |index: usize| store.find(&format!("a{index}")).unwrap();
    let ((n0, v0), (n1, v1), (n2, v2)) = (find(0), find(1), find(2));
    let first = store.lease(&n0, v0).await.unwrap();
    let second = store.lease(&n1, v1).await.unwrap();
    match store.lease(&n2, v2).await {
        Err(AdapterError::NoRoom { needed, limit, retry_after_ms, .. }) => {
            assert_eq!((needed, limit), (BYTES, 2 * BYTES + 100));
            assert!(retry_after_ms > 0);
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(store.resident().versions.len(), 2, "nobody was evicted for what did not fit");
    drop(first);
    let third = store.lease(&n2, v2).await.unwrap();
    assert_eq!(third.weights.version(), v2);
    assert!(store.resident().versions.iter().all(|(version, _)| *version != v0));
    assert_eq!(second.weights.version(), v1);
    assert_eq!(setup.metrics.adapter_loads.with_label_values(&["no_room"]).get(), 1);
}

#[tokio::test]
async fn a_count_limits_the_adapters_in_memory_too() {
    let place = tempfile::tempdir().unwrap();
    for index in 0..3 {
        put(place.path(), &format!("a{index}"), 1.0 + f64::from(index));
    }
    let mut setup = Setup::new(place.path());
    setup.config.max_cpu_loras = Some(2);
    let store = setup.serve();
    let find = |index: usize| store.find(&format!("a{index}")).unwrap();
    let (n0, v0) = find(0);
    let held = store.lease(&n0, v0).await.unwrap();
    for index in [1, 2, 1] {
        let (name, version) = find(index);
        store.lease(&name, version).await.unwrap();
        assert!(store.resident().versions.len() <= 2);
    }
    let (n1, v1) = find(1);
    let _also = store.lease(&n1, v1).await.unwrap();
    let (n2, v2) = find(2);
    let error = store.lease(&n2, v2).await.unwrap_err();
    assert!(matches!(&error, AdapterError::Busy { reason, .. } if reason.contains("2 adapters")), "{error}");
    drop(held);
    assert!(store.lease(&n2, v2).await.is_ok());
}

#[tokio::test]
async fn a_pinned_adapter_stays_until_it_is_let_go() {
    let place = tempfile::tempdir().unwrap();
    for index in 0..2 {
        put(place.path(), &format!("a{index}"), 1.0 + f64::from(index));
    }
    let mut setup = Setup::new(place.path());
    setup.config.max_bytes = BYTES;
    let store = setup.serve();
    let ((n0, v0), (n1, v1)) = (store.find("a0").unwrap(), store.find("a1").unwrap());
    store.pin(&n0, v0).await.unwrap();
    assert!(matches!(store.lease(&n1, v1).await, Err(AdapterError::NoRoom { .. })));
    drop(store.lease(&n0, v0).await.unwrap());
    assert_eq!(setup.metrics.adapter_loads.with_label_values(&["loaded"]).get(), 1);
    store.unpin(v0);
    assert!(store.lease(&n1, v1).await.is_ok());
}

#[test]
fn an_adapter_larger_than_the_whole_budget_is_refused_at_once() {
    let place = tempfile::tempdir().unwrap();
    put(place.path(), "big", 1.0);
    let mut setup = Setup::new(place.path());
    setup.config.max_bytes = BYTES - 1;
    let opened = setup.open().unwrap();
    assert!(opened.refused[0].1[0].reason.contains(&format!("takes {BYTES} bytes")), "{:?}", opened.refused);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_clients_over_more_adapters_than_fit_never_pass_the_budget_or_get_the_wrong_weights() {
    let place = tempfile::tempdir().unwrap();
    for index in 0..6 {
        put(place.path(), &format!("a{index}"), 1.0 + f64::from(index));
    }
    let mut setup = Setup::new(place.path());
    setup.config.max_bytes = 3 * BYTES;
    let store = setup.serve();
    let mut clients = Vec::new();
    for client in 0..8u64 {
        let store = Arc::clone(&store);
        clients.push(tokio::spawn(async move {
            let (mut served, mut turned_away) = (0, 0);
            for round in 0..50 {
                let (name, version) = store.find(&format!("a{}", (client * 7 + round * 5 + round / 7) % 6)).unwrap();
                match store.lease(&name, version).await {
                    Ok(lease) => {
                        assert_eq!(lease.weights.version(), version);
                        assert!(store.resident().bytes <= 3 * BYTES);
                        tokio::task::yield_now().await;
                        served += 1;
                    }
                    Err(AdapterError::NoRoom { .. }) => turned_away += 1,
                    Err(error) => panic!("{error}"),
                }
            }
            (served, turned_away)
        }));
    }
    let mut served = 0;
    for client in clients {
        served += client.await.unwrap().0;
    }
    assert!(served > 0);
    assert!(store.resident().versions.len() <= 3);
}
