//! Names that are loaded, replaced, rolled back and unloaded, over restarts and failures.

use std::{path::Path, sync::Arc};

use serde_json::json;
use tunegate::{
    adapters::{AdapterError, AdapterStore, ManagedBy, Operation},
    gateway::publish::{
        Candidate, Expected, Load, Origin, PublishError, Published, Publisher, Release, Rollback, Unload, VaultLimits,
    },
    terms::{AdapterName, AdapterVersion},
};

use super::{
    draft::Draft,
    store::{BYTES, Setup},
};

/// A server's place whose folders are elsewhere: what is loaded is not what a restart finds there.
struct Desk {
    place: tempfile::TempDir,
    setup: Setup,
}

impl Desk {
    fn new() -> Self {
        let place = tempfile::tempdir().unwrap();
        let mut setup = Setup::new(place.path());
        setup.config.dirs = Vec::new();
        Self { place, setup }
    }

    /// The server, started: catalog, then what its folders name.
    fn start(&self) -> Publisher {
        publisher(&self.setup, self.setup.open().unwrap().store)
    }

    /// A folder with an adapter whose version depends on `alpha`.
    fn folder(&self, name: &str, alpha: f64) -> Candidate {
        self.written(name, |draft| draft.set("lora_alpha", json!(alpha)))
    }

    fn written(&self, name: &str, change: impl FnOnce(&mut Draft)) -> Candidate {
        let mut draft = Draft::plain();
        change(&mut draft);
        let path = self.place.path().join("inbox").join(name);
        draft.write(&path);
        Candidate::Folder { root: path.clone(), path }
    }
}

fn publisher(setup: &Setup, store: Arc<AdapterStore>) -> Publisher {
    Publisher::new(store, VaultLimits::from(&setup.config))
}

fn name(text: &str) -> AdapterName {
    AdapterName::parse(text).unwrap()
}

fn by(managed_by: ManagedBy) -> Origin {
    Origin { managed_by, who: "tester".to_owned(), why: Some("to see".to_owned()), source: Some("inbox".to_owned()) }
}

fn load(adapter: &str, candidate: Candidate, replace: bool) -> Load {
    Load {
        name: name(adapter),
        candidate,
        replace,
        expected: Expected::Anything,
        pinned: None,
        warm: true,
        origin: by(ManagedBy::Api),
    }
}

async fn put(publisher: &Publisher, adapter: &str, candidate: Candidate) -> Published {
    publisher.load(load(adapter, candidate, true)).await.unwrap()
}

async fn back(
    publisher: &Publisher,
    adapter: &str,
    to: Option<AdapterVersion>,
) -> Result<AdapterVersion, PublishError> {
    let to = to.map(|version| version.short());
    let origin = by(ManagedBy::Api);
    let rollback = Rollback { name: name(adapter), to, expected: Expected::Anything, origin };
    publisher.rollback(rollback).await.map(|published| published.version())
}

async fn gone(publisher: &Publisher, adapter: &str, origin: Origin) -> Result<AdapterVersion, PublishError> {
    publisher.unload(Unload { name: name(adapter), expected: Expected::Anything, origin }).await
}

fn now(publisher: &Publisher, adapter: &str) -> Option<AdapterVersion> {
    publisher.adapters().find(adapter).ok().map(|(_, version)| version)
}

fn steps(publisher: &Publisher, adapter: &str) -> Vec<&'static str> {
    publisher.adapters().named(adapter).unwrap().steps.iter().map(|step| step.operation.as_str()).collect()
}

#[tokio::test]
async fn a_name_is_loaded_replaced_rolled_back_and_unloaded_and_its_history_tells() {
    let desk = Desk::new();
    let publisher = desk.start();
    let one = put(&publisher, "poet", desk.folder("one", 1.0)).await;
    assert_eq!((one.was, one.row.managed_by), (None, ManagedBy::Api));
    let again = put(&publisher, "poet", desk.folder("copy-of-one", 1.0)).await;
    assert!(again.step.is_none() && again.version() == one.version(), "the same bytes change nothing");

    let second = desk.folder("two", 2.0);
    let refused = publisher.load(load("poet", second.clone(), false)).await.unwrap_err();
    assert!(matches!(refused, PublishError::AlreadyLoaded { .. }), "{refused}");
    let two = put(&publisher, "poet", second).await;
    assert_eq!((two.was, now(&publisher, "poet")), (Some(one.version()), Some(two.version())));

    assert_eq!(back(&publisher, "poet", None).await.unwrap(), one.version());
    let nothing = back(&publisher, "poet", None).await.unwrap_err();
    assert!(matches!(nothing, PublishError::NoEarlier { .. }), "{nothing}");
    assert_eq!(back(&publisher, "poet", Some(two.version())).await.unwrap(), two.version());
    assert_eq!(gone(&publisher, "poet", by(ManagedBy::Api)).await.unwrap(), two.version());
    assert!(matches!(publisher.adapters().find("poet"), Err(AdapterError::Unknown { .. })));
    let twice = gone(&publisher, "poet", by(ManagedBy::Api)).await.unwrap_err();
    assert!(matches!(twice, PublishError::NotLoaded { .. }), "{twice}");
    assert_eq!(back(&publisher, "poet", None).await.unwrap(), two.version(), "an unload is undone");

    assert_eq!(steps(&publisher, "poet"), ["load", "replace", "rollback", "rollback", "unload", "rollback"]);
    let named = publisher.adapters().named("poet").unwrap();
    let last = named.steps.last().unwrap();
    assert_eq!((last.who.as_str(), last.why.as_deref(), last.version), ("tester", Some("to see"), named.row.version));
    assert!(last.at_ms > 1_700_000_000_000);
}

#[tokio::test]
async fn an_expected_version_that_does_not_match_changes_nothing() {
    let desk = Desk::new();
    let publisher = desk.start();
    let (one, two) = (desk.folder("one", 1.0), desk.folder("two", 2.0));
    let expecting =
        |candidate: &Candidate, expected: Expected| Load { expected, ..load("poet", candidate.clone(), true) };
    let conflict = |error: &PublishError| matches!(error, PublishError::Conflict { .. });
    let wrong = Expected::Version("0123456789".to_owned());
    assert!(conflict(&publisher.load(expecting(&one, wrong.clone())).await.unwrap_err()));
    let first = publisher.load(expecting(&one, Expected::Nothing)).await.unwrap().version();
    for expected in [Expected::Nothing, wrong.clone()] {
        let error = publisher.load(expecting(&two, expected)).await.unwrap_err();
        assert!(conflict(&error) && error.to_string().contains(&first.short()), "{error}");
    }
    let known = Expected::Version(first.to_string());
    let second = publisher.load(expecting(&two, known.clone())).await.unwrap().version();
    let rollback = |expected| Rollback { name: name("poet"), to: None, expected, origin: by(ManagedBy::Api) };
    assert!(conflict(&publisher.rollback(rollback(known.clone())).await.unwrap_err()));
    let unload = |expected| Unload { name: name("poet"), expected, origin: by(ManagedBy::Api) };
    assert!(conflict(&publisher.unload(unload(known)).await.unwrap_err()));
    assert_eq!(now(&publisher, "poet"), Some(second));
    assert_eq!(steps(&publisher, "poet"), ["load", "replace"]);
    publisher.unload(unload(Expected::Version(second.short()))).await.unwrap();
}

#[tokio::test]
async fn of_two_loads_of_one_name_at_once_each_is_whole_and_one_is_first() {
    let desk = Desk::new();
    let publisher = desk.start();
    let candidates: Vec<Candidate> = (0..8).map(|i| desk.folder(&format!("c{i}"), 1.0 + f64::from(i))).collect();
    let only = |candidate: &Candidate| Load { expected: Expected::Nothing, ..load("poet", candidate.clone(), false) };
    let results = futures_util::future::join_all(candidates.iter().map(|one| publisher.load(only(one)))).await;
    let (won, lost): (Vec<_>, Vec<_>) = results.into_iter().partition(Result::is_ok);
    assert_eq!((won.len(), lost.len()), (1, 7));
    let winner = won[0].as_ref().map(Published::version).ok();
    assert_eq!(now(&publisher, "poet"), winner);

    let replaced = candidates.iter().map(|one| publisher.load(load("poet", one.clone(), true)));
    let results = futures_util::future::join_all(replaced).await;
    assert!(results.iter().all(Result::is_ok));
    let named = publisher.adapters().named("poet").unwrap();
    assert_eq!(named.steps.last().unwrap().version, named.row.version, "memory and history agree");
    let moved = results.iter().flatten().filter(|published| published.step.is_some()).count();
    assert_eq!(named.steps.len(), 1 + moved);
}

#[tokio::test]
async fn a_change_goes_on_when_its_caller_has_left() {
    let desk = Desk::new();
    let publisher = desk.start();
    let candidate = desk.folder("one", 1.0);
    {
        let leaves = publisher.load(load("poet", candidate.clone(), false));
        tokio::pin!(leaves);
        assert!(futures_util::poll!(leaves.as_mut()).is_pending());
    }
    // Whatever is done to the name next comes after it.
    let second = publisher.load(load("poet", candidate, false)).await.unwrap();
    assert!(second.step.is_none(), "it is there already");
    assert_eq!(steps(&publisher, "poet"), ["load"]);
}

#[tokio::test]
async fn what_fails_leaves_the_name_as_it_was() {
    let mut desk = Desk::new();
    desk.setup.config.max_bytes = BYTES + 1;
    let publisher = desk.start();
    let good = put(&publisher, "poet", desk.folder("one", 1.0)).await.version();
    let held = {
        let (name, version) = publisher.adapters().find("poet").unwrap();
        publisher.adapters().lease(&name, version).await.unwrap()
    };
    let bad = desk.written("bad", |draft| draft.set("use_dora", json!("perhaps")));
    let missing = Candidate::Folder { root: desk.place.path().to_owned(), path: desk.place.path().join("nowhere") };
    for candidate in [bad, missing] {
        let error = publisher.load(load("poet", candidate, true)).await.unwrap_err();
        assert!(matches!(error, PublishError::Adapter(AdapterError::Refused { .. })), "{error}");
    }
    let pinned = Load { pinned: Some(true), ..load("poet", desk.folder("two", 2.0), true) };
    let error = publisher.load(pinned).await.unwrap_err();
    assert!(matches!(error, PublishError::Adapter(AdapterError::NoRoom { .. })), "{error}");
    let base = publisher.load(load("base", desk.folder("two", 2.0), true)).await.unwrap_err();
    assert!(matches!(base, PublishError::BaseName { .. }), "{base}");
    let unknown = back(&publisher, "poet", Some(desk_version(&desk))).await.unwrap_err();
    assert!(matches!(unknown, PublishError::Adapter(AdapterError::UnknownVersion { .. })), "{unknown}");
    assert_eq!((now(&publisher, "poet"), steps(&publisher, "poet")), (Some(good), vec!["load"]));
    assert_eq!(held.version, good);
}

/// A version that no name ever had.
fn desk_version(desk: &Desk) -> AdapterVersion {
    let Candidate::Folder { root, path } = desk.folder("never", 77.0) else { unreachable!() };
    let files = tunegate::adapters::folder::AdapterFiles::read(&root, &path, 1 << 20).unwrap();
    files.version()
}

#[tokio::test]
async fn a_restart_serves_the_same_versions_from_the_kept_bytes_and_rollback_still_works() {
    let desk = Desk::new();
    let (one, two, three) = {
        let publisher = desk.start();
        let one = put(&publisher, "poet", desk.folder("poet", 1.0)).await.version();
        let two = put(&publisher, "poet", desk.folder("poet", 2.0)).await.version();
        let three = put(&publisher, "lawyer", desk.folder("lawyer", 3.0)).await.version();
        put(&publisher, "clerk", desk.folder("clerk", 4.0)).await;
        gone(&publisher, "clerk", by(ManagedBy::Api)).await.unwrap();
        (one, two, three)
    };
    desk.folder("lawyer", 9.0);
    std::fs::remove_dir_all(desk.place.path().join("inbox/poet")).unwrap();

    let publisher = desk.start();
    assert_eq!((now(&publisher, "poet"), now(&publisher, "lawyer")), (Some(two), Some(three)));
    assert_eq!(now(&publisher, "clerk"), None);
    let (name, version) = publisher.adapters().find("poet").unwrap();
    assert_eq!(publisher.adapters().lease(&name, version).await.unwrap().weights.version(), two);
    assert_eq!(back(&publisher, "poet", None).await.unwrap(), one);
    let (name, version) = publisher.adapters().find("poet").unwrap();
    assert_eq!(publisher.adapters().lease(&name, version).await.unwrap().weights.version(), one);
    drop(publisher);
    assert_eq!(now(&desk.start(), "poet"), Some(one));
}

#[tokio::test]
async fn a_version_that_does_not_serve_after_a_restart_is_refused_and_a_good_copy_mends_it() {
    let desk = Desk::new();
    let version = put(&desk.start(), "poet", desk.folder("poet", 1.0)).await.version();
    let copy = desk.setup.data.join("vault").join(version.to_string()).join("adapter_model.safetensors");
    let bytes = std::fs::read(&copy).unwrap();
    std::fs::write(&copy, &bytes[..bytes.len() - 1]).unwrap();
    let opened = desk.setup.open().unwrap();
    assert_eq!(opened.refused[0].0, "poet");
    let publisher = publisher(&desk.setup, opened.store);
    assert!(matches!(publisher.adapters().find("poet"), Err(AdapterError::Refused { .. })));
    put(&publisher, "poet", desk.folder("poet", 1.0)).await;
    assert_eq!(now(&publisher, "poet"), Some(version));
    assert_eq!(std::fs::read(&copy).unwrap(), bytes);
}

#[tokio::test]
async fn a_folder_creates_a_name_and_follows_it_until_somebody_moves_it() {
    let mut desk = Desk::new();
    let folders = desk.place.path().join("adapters");
    desk.setup.config.dirs = vec![folders.clone()];
    let write = |adapter: &str, alpha: f64| super::store::put(desk.place.path(), adapter, alpha);
    for adapter in ["kept", "replaced", "rolled", "unloaded"] {
        write(adapter, 1.0);
    }
    let publisher = desk.start();
    let managed = |publisher: &Publisher, name: &str| publisher.adapters().named(name).unwrap().row.managed_by;
    assert_eq!(managed(&publisher, "kept"), ManagedBy::Folder);
    for adapter in ["kept", "replaced", "rolled", "unloaded"] {
        write(adapter, 2.0);
    }
    drop(publisher);
    let publisher = desk.start();
    let second = now(&publisher, "kept").unwrap();
    assert!(publisher.adapters().names().iter().all(|named| named.row.version == Some(second)), "all have followed");

    let replaced = put(&publisher, "replaced", desk.folder("x", 5.0)).await.version();
    let rolled = back(&publisher, "rolled", None).await.unwrap();
    gone(&publisher, "unloaded", by(ManagedBy::Api)).await.unwrap();
    drop(publisher);
    for adapter in ["kept", "replaced", "rolled", "unloaded"] {
        write(adapter, 3.0);
    }
    let publisher = desk.start();
    assert_ne!(now(&publisher, "kept"), Some(second));
    assert_eq!(now(&publisher, "replaced"), Some(replaced));
    assert_eq!(now(&publisher, "rolled"), Some(rolled));
    assert_eq!(now(&publisher, "unloaded"), None);
    assert_eq!((managed(&publisher, "kept"), managed(&publisher, "rolled")), (ManagedBy::Folder, ManagedBy::Api));
}

#[tokio::test]
async fn a_name_of_the_file_that_somebody_moved_is_on_hold_until_that_ends() {
    let desk = Desk::new();
    let publisher = desk.start();
    let file = |candidate: Candidate| Load { origin: by(ManagedBy::File), ..load("poet", candidate, true) };
    let (one, two, three) = (desk.folder("one", 1.0), desk.folder("two", 2.0), desk.folder("three", 3.0));
    let first = publisher.load(file(one)).await.unwrap().version();
    publisher.load(file(two.clone())).await.unwrap();
    back(&publisher, "poet", None).await.unwrap();
    let row = publisher.adapters().named("poet").unwrap().row;
    assert_eq!((row.managed_by, row.hold, row.version), (ManagedBy::File, true, Some(first)));
    let held = publisher.load(file(three.clone())).await.unwrap_err();
    assert!(matches!(held, PublishError::Held { .. }), "{held}");
    assert!(matches!(gone(&publisher, "poet", by(ManagedBy::File)).await, Err(PublishError::Held { .. })));
    let folder = Load { origin: by(ManagedBy::Folder), ..load("poet", two, true) };
    let managed = publisher.load(folder).await.unwrap_err();
    assert!(matches!(managed, PublishError::Managed { by: ManagedBy::File, .. }), "{managed}");

    drop(publisher);
    let publisher = desk.start();
    assert!(publisher.adapters().named("poet").unwrap().row.hold, "a hold outlives a restart");
    let release = |who: &str, expected: Expected| Release { name: name(who), expected, origin: by(ManagedBy::Api) };
    let other = Expected::Version("000000".to_owned());
    assert!(matches!(publisher.release(release("poet", other)).await, Err(PublishError::Conflict { .. })));
    let nobody = publisher.release(release("nobody", Expected::Anything)).await;
    assert!(matches!(nobody, Err(PublishError::NotLoaded { .. })));
    let step = publisher.release(release("poet", Expected::Version(first.short()))).await.unwrap().unwrap();
    assert_eq!((step.operation, step.version), (Operation::Release, Some(first)));
    assert!(publisher.release(release("poet", Expected::Anything)).await.unwrap().is_none());
    drop(publisher);
    let publisher = desk.start();
    let poet = publisher.adapters().named("poet").unwrap();
    assert!(!poet.row.hold, "so does its end");
    assert_eq!(poet.steps.last(), Some(&step));
    let row = publisher.load(file(three)).await.unwrap().row;
    assert_eq!((row.managed_by, row.hold), (ManagedBy::File, false));
}

#[tokio::test]
async fn the_memory_of_an_unloaded_or_replaced_version_goes_with_its_last_lease() {
    let mut desk = Desk::new();
    desk.setup.config.max_bytes = BYTES + 1;
    let publisher = desk.start();
    let adapters = publisher.adapters();
    put(&publisher, "poet", desk.folder("one", 1.0)).await;
    let (poet, one) = adapters.find("poet").unwrap();
    let lease = adapters.lease(&poet, one).await.unwrap();
    assert_eq!((adapters.usage(one).leases, adapters.usage(one).bytes), (1, BYTES));
    let two = put(&publisher, "poet", desk.folder("two", 2.0)).await.version();
    assert_eq!((adapters.usage(one).leases, adapters.usage(one).bytes), (1, BYTES), "held by its lease alone");
    let full = adapters.lease(&poet, two).await.unwrap_err();
    assert!(matches!(full, AdapterError::NoRoom { .. }), "{full}");
    drop(lease);
    // There is room for one: this waits until the other is really freed.
    let lease = adapters.lease(&poet, two).await.unwrap();
    assert_eq!((adapters.usage(one).leases, adapters.usage(one).bytes), (0, 0));

    gone(&publisher, "poet", by(ManagedBy::Api)).await.unwrap();
    assert_eq!(lease.weights.version(), two, "who has begun ends on it");
    assert_eq!(adapters.usage(two).bytes, BYTES);
    put(&publisher, "lawyer", desk.folder("three", 3.0)).await;
    drop(lease);
    let (lawyer, three) = adapters.find("lawyer").unwrap();
    adapters.lease(&lawyer, three).await.unwrap();
    assert_eq!(adapters.resident().versions, [(three, BYTES)]);
    let (_, old) = adapters.find_version("poet", &two.short()).unwrap();
    drop(adapters.lease(&poet, old).await.unwrap());
    adapters.lease(&lawyer, three).await.unwrap();
    assert_eq!(adapters.usage(two).bytes, 0, "asked for by its digits it stays no longer than it is used");
}

#[tokio::test]
async fn two_names_share_a_version_and_one_may_go() {
    let desk = Desk::new();
    let publisher = desk.start();
    let adapters = publisher.adapters();
    let pin = Load { pinned: Some(true), ..load("a", desk.folder("one", 1.0), false) };
    let version = publisher.load(pin).await.unwrap().version();
    put(&publisher, "b", desk.folder("one", 1.0)).await;
    assert!(adapters.usage(version).pinned);
    gone(&publisher, "a", by(ManagedBy::Api)).await.unwrap();
    assert_eq!((adapters.usage(version).pinned, adapters.usage(version).bytes), (false, BYTES));
    assert_eq!(now(&publisher, "b"), Some(version));
    let lets = Load { pinned: Some(true), ..load("b", desk.folder("one", 1.0), false) };
    let pinned = publisher.load(lets).await.unwrap();
    assert_eq!(pinned.step.unwrap().operation.as_str(), "settings");
    assert!(adapters.usage(version).pinned);
    drop(publisher);
    let publisher = desk.start();
    assert!(publisher.adapters().usage(version).pinned, "a pin outlives a restart");
}

#[tokio::test]
async fn bytes_that_never_got_a_name_are_swept_and_those_of_old_steps_stay() {
    let desk = Desk::new();
    let publisher = desk.start();
    let one = put(&publisher, "poet", desk.folder("one", 1.0)).await.version();
    let two = put(&publisher, "poet", desk.folder("two", 2.0)).await.version();
    gone(&publisher, "poet", by(ManagedBy::Api)).await.unwrap();
    // As a crash between keeping and naming would leave it.
    let Candidate::Folder { root, path } = desk.folder("lost", 3.0) else { unreachable!() };
    let files = publisher.adapters().files("lost", &root, &path).unwrap();
    let lost = publisher.adapters().admit(&name("lost"), &files).unwrap().version;
    let kept = |version: AdapterVersion| desk.setup.data.join("vault").join(version.to_string()).is_dir();
    assert!(kept(lost));
    drop(publisher);
    desk.start();
    assert_eq!((kept(one), kept(two), kept(lost)), (true, true, false));
}

#[tokio::test]
async fn a_full_vault_gives_up_the_oldest_but_never_what_the_last_steps_name() {
    let mut desk = Desk::new();
    desk.setup.config.keep_steps = 2;
    desk.setup.config.max_vault_bytes = Some(1);
    let publisher = desk.start();
    let mut versions = Vec::new();
    for index in 0..5 {
        versions.push(put(&publisher, "poet", desk.folder("poet", 1.0 + f64::from(index))).await.version());
    }
    let other = put(&publisher, "other", desk.folder("other", 50.0)).await.version();
    let kept = |version: AdapterVersion| vault_holds(&desk.setup.data, version);
    // One that is still being freed is let be; the next change looks again.
    while kept(versions[2]) {
        put(&publisher, "other", desk.folder("other", 51.0)).await;
        put(&publisher, "other", desk.folder("other", 50.0)).await;
    }
    let there: Vec<bool> = versions.iter().map(|version| kept(*version)).collect();
    assert_eq!(there, [false, false, false, true, true]);
    assert!(kept(other));
    assert_eq!(back(&publisher, "poet", None).await.unwrap(), versions[3]);
    let lost = back(&publisher, "poet", Some(versions[0])).await.unwrap_err();
    assert!(lost.to_string().contains("is not kept here any more"), "{lost}");
    assert_eq!(now(&publisher, "poet"), Some(versions[3]));
}

fn vault_holds(data: &Path, version: AdapterVersion) -> bool {
    data.join("vault").join(version.to_string()).is_dir()
}
