//! Servers that follow folders, sources and a file of desired adapters while they answer.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::{Value, json};
use tempfile::TempDir;
use tunegate::{
    adapters::ManagedBy,
    config::{AdapterConfig, Config, DEFAULT_REGION, FetchConfig, FollowConfig, HubConfig, parse_source},
    gateway::reconcile::{Report, Standing},
    terms::AdapterName,
};

use super::draft::Draft;
use crate::support::{
    depot::{Depot, Fault, Proxy},
    server::{COMPLETIONS, TestServer, text_body},
    wire::Request,
};

/// A place with folders of adapters, a file of desired ones, and a server beside them.
struct Desk {
    place: TempDir,
}

impl Desk {
    fn new() -> Self {
        let desk = Self { place: tempfile::tempdir().unwrap() };
        fs::create_dir(desk.root()).unwrap();
        desk
    }

    fn root(&self) -> PathBuf {
        self.place.path().join("adapters")
    }

    fn file(&self) -> PathBuf {
        self.place.path().join("desired.yaml")
    }

    /// Writes the file as those do who replace it whole.
    fn desire(&self, text: &str) {
        let next = self.place.path().join("next");
        fs::write(&next, text).unwrap();
        fs::rename(next, self.file()).unwrap();
    }

    /// A folder with an adapter whose version depends on `alpha`.
    fn put(&self, name: &str, alpha: f64) -> PathBuf {
        let folder = self.root().join(name);
        write(&folder, alpha);
        folder
    }

    fn config(&self) -> AdapterConfig {
        AdapterConfig {
            dirs: vec![self.root()],
            roots: vec![self.root()],
            follow: FollowConfig {
                // Events tell of changes; a look from time to time finds what they do not.
                interval: Duration::from_millis(500),
                settle: Duration::from_millis(50),
                ..FollowConfig::default()
            },
            fetch: FetchConfig { stall: Duration::from_secs(2), ..FetchConfig::default() },
            ..AdapterConfig::default()
        }
    }

    async fn start(&self, change: impl FnOnce(&mut AdapterConfig)) -> TestServer {
        let mut adapters = self.config();
        change(&mut adapters);
        TestServer::with(|config: &mut Config, _| config.adapters = adapters).await
    }

    /// With the file, and objects of a web server under `web:`.
    async fn desiring(&self, depot: std::net::SocketAddr) -> TestServer {
        self.start(|config| {
            config.dirs = Vec::new();
            config.sources = vec![parse_source(&format!("web=http://{depot}/a"), DEFAULT_REGION).unwrap()];
            config.follow.desired = Some(self.file());
        })
        .await
    }
}

fn write(folder: &Path, alpha: f64) {
    let mut draft = Draft::plain();
    draft.set("lora_alpha", json!(alpha));
    draft.write(folder);
}

/// An adapter on a web server, whose version depends on `alpha`.
fn shelve(depot: &Depot, object: &str, alpha: f64) {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), alpha);
    depot.put(&format!("/a/{object}"), folder.path());
}

fn name(text: &str) -> AdapterName {
    AdapterName::parse(text).unwrap()
}

fn version(server: &TestServer, adapter: &str) -> Option<String> {
    server.gateway.adapters().find(adapter).ok().map(|(_, version)| version.to_string())
}

fn managed_by(server: &TestServer, adapter: &str) -> ManagedBy {
    server.gateway.adapters().named(adapter).unwrap().row.managed_by
}

/// Waits for the look after which what is served is as wanted.
async fn until(server: &TestServer, wanted: impl Fn(&Report) -> bool) -> Report {
    let mut reports = server.gateway.reports();
    reports.wait_for(|report| wanted(report)).await.unwrap().clone()
}

fn stands(report: &Report, adapter: &str, standing: &Standing) -> bool {
    report.names.get(&name(adapter)) == Some(standing)
}

#[tokio::test]
async fn a_watched_folder_brings_a_name_and_moves_it_until_somebody_else_does() {
    let desk = Desk::new();
    desk.put("old", 1.0);
    let server = desk.start(|_| {}).await;
    assert!(version(&server, "old").is_some());

    desk.put("new", 1.0);
    until(&server, |_| version(&server, "new").is_some()).await;
    let first = version(&server, "new");
    assert_eq!(server.complete("new", json!("a"), json!({})).await.status, 200);
    desk.put("new", 2.0);
    until(&server, |_| version(&server, "new") != first).await;
    assert_eq!(managed_by(&server, "new"), ManagedBy::Folder);

    let elsewhere = desk.place.path().join("adapters/.elsewhere");
    write(&elsewhere, 3.0);
    let body = json!({"lora_name": "new", "lora_path": elsewhere, "load_inplace": true});
    assert_eq!(server.post("/v1/load_lora_adapter", &body).await.status, 200);
    let by_hand = version(&server, "new");
    desk.put("new", 4.0);
    let passed = |report: &Report| {
        matches!(report.folders.get(&name("new")), Some(Standing::PassedOver { managed_by: ManagedBy::Api }))
    };
    until(&server, passed).await;
    assert_eq!(version(&server, "new"), by_hand, "a folder moves only what folders brought");

    fs::remove_dir_all(desk.root().join("old")).unwrap();
    desk.put("marker", 1.0);
    until(&server, |_| version(&server, "marker").is_some()).await;
    assert!(version(&server, "old").is_some(), "a name outlives its folder");
    assert_eq!(server.complete("old", json!("a"), json!({})).await.status, 200);
}

#[tokio::test]
async fn a_half_copied_folder_is_not_loaded_and_a_bad_one_is_refused_with_its_reason() {
    let desk = Desk::new();
    let server = desk.start(|_| {}).await;
    let ready = desk.place.path().join("ready");
    write(&ready, 1.0);
    let folder = desk.root().join("half");
    fs::create_dir(&folder).unwrap();
    fs::copy(ready.join("adapter_config.json"), folder.join("adapter_config.json")).unwrap();
    let weights = fs::read(ready.join("adapter_model.safetensors")).unwrap();
    fs::write(folder.join("adapter_model.safetensors"), &weights[..weights.len() / 2]).unwrap();
    let waits = |report: &Report| matches!(report.folders.get(&name("half")), Some(Standing::Waiting { reason }) if reason.contains("header tells of"));
    until(&server, waits).await;
    assert!(version(&server, "half").is_none());
    fs::write(folder.join("adapter_model.safetensors"), &weights).unwrap();
    until(&server, |_| version(&server, "half").is_some()).await;

    let mut bad = Draft::plain();
    bad.set("peft_type", json!("IA3"));
    bad.write(&desk.root().join("bad"));
    until(&server, |report| matches!(report.folders.get(&name("bad")), Some(Standing::Failed { .. }))).await;
    let answer = server.complete("bad", json!("a"), json!({})).await;
    assert!(answer.status != 200 && answer.text().contains("IA3"), "{}", answer.text());
    desk.put("bad", 1.0);
    until(&server, |_| version(&server, "bad").is_some()).await;
    assert_eq!(server.complete("bad", json!("a"), json!({})).await.status, 200);
}

#[tokio::test]
async fn the_file_says_what_is_served_and_replicas_agree() {
    let (desk, depot) = (Desk::new(), Depot::start());
    shelve(&depot, "triage", 1.0);
    shelve(&depot, "sql", 1.0);
    desk.put("local", 1.0);
    desk.desire("adapters:\n  triage: {source: web:triage, pinned: true}\n  team/sql: {source: web:sql}\n  local: {source: local}\n");
    let (one, two) = tokio::join!(desk.desiring(depot.address), desk.desiring(depot.address));
    for server in [&one, &two] {
        let names = ["triage", "team/sql", "local"];
        until(server, |report| names.iter().all(|name| stands(report, name, &Standing::InPlace))).await;
        assert!(names.iter().all(|name| managed_by(server, name) == ManagedBy::File));
        assert!(server.gateway.adapters().named("triage").unwrap().row.pinned);
        assert_eq!(server.complete("team/sql", json!("a"), json!({})).await.status, 200);
    }
    assert_eq!(version(&one, "triage"), version(&two, "triage"));

    // The source changes, and both follow without being told.
    let before = version(&one, "triage");
    shelve(&depot, "triage", 2.0);
    for server in [&one, &two] {
        until(server, |_| version(server, "triage") != before).await;
    }
    assert_eq!(version(&one, "triage"), version(&two, "triage"));

    // What the file had and no longer has goes.
    desk.desire("absent: [local]\nadapters:\n  triage: {source: web:triage}\n");
    for server in [&one, &two] {
        until(server, |_| version(server, "team/sql").is_none() && version(server, "local").is_none()).await;
        assert!(version(server, "triage").is_some());
    }

    // A file that cannot be read changes nothing, and says so.
    desk.desire("adapters: [");
    until(&one, |report| report.file.is_some() && stands(report, "triage", &Standing::InPlace)).await;
    assert!(version(&one, "triage").is_some());
    let listed: Value = one.get("/v1/adapters").await.json();
    assert!(listed["followed"]["file"].is_string(), "{listed}");
    assert_eq!(listed["followed"]["names"]["triage"]["state"], "in_place");
}

#[tokio::test]
async fn a_name_that_was_rolled_back_by_hand_is_held_until_its_entry_changes() {
    let (desk, depot) = (Desk::new(), Depot::start());
    shelve(&depot, "v1", 1.0);
    shelve(&depot, "v2", 2.0);
    let entry = |object: &str| format!("adapters: {{triage: {{source: 'web:{object}'}}, other: {{source: 'web:v1'}}}}");
    desk.desire(&entry("v1"));
    let server = desk.desiring(depot.address).await;
    until(&server, |report| stands(report, "triage", &Standing::InPlace)).await;
    let first = version(&server, "triage");
    desk.desire(&entry("v2"));
    until(&server, |_| version(&server, "triage") != first).await;
    let second = version(&server, "triage");

    let answer = server.post("/v1/adapters/triage/rollback", &json!({"why": "it answers worse"})).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    until(&server, |report| stands(report, "triage", &Standing::Held)).await;
    let looks = server.gateway.reports().borrow().looks;
    until(&server, |report| report.looks > looks + 2).await;
    assert_eq!(version(&server, "triage"), first, "looking again does not undo it");
    assert!(
        until(&server, |_| true).await.names.values().any(|standing| *standing == Standing::InPlace),
        "others go on"
    );

    shelve(&depot, "v3", 3.0);
    desk.desire(&entry("v3"));
    until(&server, |report| stands(report, "triage", &Standing::InPlace)).await;
    assert!(version(&server, "triage") != first && version(&server, "triage") != second);
}

#[tokio::test]
async fn a_hold_that_is_ended_by_hand_gives_the_name_back_to_its_file_at_once() {
    let (desk, depot) = (Desk::new(), Depot::start());
    shelve(&depot, "triage", 1.0);
    desk.desire("adapters: {triage: {source: 'web:triage'}, gone: {source: 'web:triage'}}");
    let server = desk
        .start(|config| {
            config.dirs = Vec::new();
            config.sources = vec![parse_source(&format!("web={}/a", depot.url()), DEFAULT_REGION).unwrap()];
            config.follow.desired = Some(desk.file());
            // Nothing but a change of the file or a word looks again.
            config.follow.interval = Duration::from_secs(3600);
        })
        .await;
    let names = ["triage", "gone"];
    until(&server, |report| names.iter().all(|name| stands(report, name, &Standing::InPlace))).await;
    let first = version(&server, "triage");
    shelve(&depot, "triage", 2.0);
    server.gateway.look_again();
    until(&server, |_| version(&server, "triage") != first).await;
    let second = version(&server, "triage");

    let post = async |path: &str| server.post(path, &json!({"why": "by hand"})).await;
    assert_eq!(post("/v1/adapters/triage/rollback").await.status, 200);
    assert_eq!(server.post("/v1/unload_lora_adapter", &json!({"lora_name": "gone"})).await.status, 200);
    server.gateway.look_again();
    until(&server, |report| names.iter().all(|name| stands(report, name, &Standing::Held))).await;
    let listed = server.get("/v1/adapters").await.json();
    for (index, status) in [(0, "unloaded"), (1, "serving")] {
        let one = &listed["data"][index];
        assert_eq!((&one["status"], &one["hold"]), (&json!(status), &json!(true)), "{listed}");
    }
    assert_eq!(post("/v1/adapters/nobody/release").await.error().0, 404);
    let other = server.post("/v1/adapters/triage/release", &json!({"expected_version": "000000"})).await;
    assert_eq!(other.error(), (409, "version_mismatch".to_owned(), Some("expected_version".to_owned())));

    for name in names {
        let released = post(&format!("/v1/adapters/{name}/release")).await.json();
        assert_eq!((&released["hold"], &released["changed"]), (&json!(false), &json!(true)), "{released}");
    }
    until(&server, |_| version(&server, "triage") == second && version(&server, "gone") == second).await;
    until(&server, |report| names.iter().all(|name| stands(report, name, &Standing::InPlace))).await;
    assert_eq!(post("/v1/adapters/triage/release").await.json()["changed"], false, "there is nothing to end");
    let history = server.get("/v1/adapters/triage").await.json()["history"].clone();
    assert_eq!((&history[1]["operation"], &history[1]["why"]), (&json!("release"), &json!("by hand")), "{history}");
}

#[tokio::test]
async fn a_version_that_the_file_pins_is_that_version_or_none() {
    let (desk, depot) = (Desk::new(), Depot::start());
    shelve(&depot, "triage", 1.0);
    desk.desire("adapters: {triage: {source: 'web:triage', version: 000000000000}}");
    let server = desk.desiring(depot.address).await;
    let failed = |report: &Report| matches!(report.names.get(&name("triage")), Some(Standing::Failed { reason }) if reason.contains("000000000000"));
    until(&server, failed).await;
    assert!(version(&server, "triage").is_none());
    let local = tempfile::tempdir().unwrap();
    write(local.path(), 1.0);
    let wanted = tunegate::adapters::folder::AdapterFiles::read(local.path(), local.path(), 1 << 30).unwrap().version();
    desk.desire(&format!("adapters: {{triage: {{source: 'web:triage', version: {}}}}}", wanted.short()));
    until(&server, |report| stands(report, "triage", &Standing::InPlace)).await;
    assert_eq!(version(&server, "triage"), Some(wanted.to_string()));

    // What is pinned and in place asks nobody.
    let asked = depot.requests().len();
    let looks = server.gateway.reports().borrow().looks;
    until(&server, |report| report.looks > looks + 2).await;
    assert_eq!(depot.requests().len(), asked);
}

#[tokio::test]
async fn the_sidecars_file_is_followed_as_the_sidecar_did() {
    let (desk, depot) = (Desk::new(), Depot::start());
    depot.commit("yard1/sql-lora", "main", &desk.put(".hub", 1.0));
    desk.put("tweet", 1.0);
    let exist = "vLLMLoRAConfig:\n  name: x\n  defaultBaseModel: tiny\n  ensureExist:\n    models:\n    - {id: sql-lora, source: yard1/sql-lora}\n    - {id: tweet-1, source: tweet}\n";
    desk.desire(exist);
    let server = desk
        .start(|config| {
            config.dirs = Vec::new();
            config.sources = vec![parse_source("hub=hf://yard1", DEFAULT_REGION).unwrap()];
            config.hub = HubConfig { endpoint: depot.url(), token: None };
            config.follow.desired = Some(desk.file());
        })
        .await;
    until(&server, |_| version(&server, "sql-lora").is_some() && version(&server, "tweet-1").is_some()).await;
    desk.desire("vLLMLoRAConfig:\n  ensureExist:\n    models:\n  ensureNotExist:\n    models:\n    - {id: tweet-1, source: tweet}\n");
    until(&server, |_| version(&server, "tweet-1").is_none()).await;
    assert!(version(&server, "sql-lora").is_some(), "what its file no longer names it left alone");
}

#[tokio::test]
async fn a_source_that_stalls_holds_up_no_other_name() {
    let (desk, depot) = (Desk::new(), Depot::start());
    shelve(&depot, "slow", 1.0);
    shelve(&depot, "quick", 1.0);
    let proxy = Proxy::before(depot.address);
    for _ in 0..100 {
        proxy.order("GET /a/slow/adapter_model", Fault::Stall(10));
    }
    desk.desire("adapters: {a-slow: {source: 'web:slow'}, quick: {source: 'web:quick'}}");
    let server = desk
        .start(|config| {
            config.dirs = Vec::new();
            config.sources = vec![parse_source(&format!("web={}/a", proxy.url()), DEFAULT_REGION).unwrap()];
            config.follow.desired = Some(desk.file());
            config.fetch.stall = Duration::from_secs(600);
        })
        .await;
    let report = until(&server, |report| stands(report, "quick", &Standing::InPlace)).await;
    assert!(matches!(report.names[&name("a-slow")], Standing::Waiting { .. }));
    assert_eq!(server.complete("quick", json!("a"), json!({})).await.status, 200);
}

#[tokio::test]
async fn a_name_is_found_in_the_sources_when_it_is_first_asked_for() {
    let (desk, depot) = (Desk::new(), Depot::start());
    shelve(&depot, "team/sql", 1.0);
    let server = desk
        .start(|config| {
            config.follow.on_first_use = true;
            config.sources = vec![parse_source(&format!("web={}/a", depot.url()), DEFAULT_REGION).unwrap()];
        })
        .await;
    let fetched = "GET /a/team/sql/adapter_model";
    let asked = || depot.requests().iter().filter(|request| request.starts_with(fetched)).count();
    let questions = (0..8).map(|_| server.complete("team/sql", json!("a"), json!({})));
    for answer in futures_util::future::join_all(questions).await {
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    assert_eq!(asked(), 1, "one fetches for all");
    assert_eq!(managed_by(&server, "team/sql"), ManagedBy::FirstUse);

    // Nowhere: looked for once, however often it is asked for.
    let before = depot.requests().len();
    let questions = (0..8).map(|_| server.complete("nowhere", json!("a"), json!({})));
    for answer in futures_util::future::join_all(questions).await {
        assert_eq!(answer.status, 404, "{}", answer.text());
    }
    let first = depot.requests().len() - before;
    assert_eq!(server.complete("nowhere", json!("a"), json!({})).await.status, 404);
    assert_eq!((first, depot.requests().len() - before), (1, 1));

    // Very many names that are nowhere: some are looked for, the rest are asked to come again.
    let mut statuses = Vec::new();
    for number in 0..100 {
        statuses.push(server.complete(&format!("no-{number}"), json!("a"), json!({})).await.status);
    }
    assert!(statuses.contains(&404) && statuses.contains(&503), "{statuses:?}");
    assert!(depot.requests().len() - before < 100);

    // What was unloaded by hand stays away.
    assert_eq!(server.post("/v1/unload_lora_adapter", &json!({"lora_name": "team/sql"})).await.status, 200);
    let gone = server.complete("team/sql", json!("a"), json!({})).await.status;
    assert!(matches!(gone, 404 | 503), "{gone}");
    assert!(version(&server, "team/sql").is_none());
}

#[tokio::test]
async fn whoever_waits_for_a_name_that_is_being_fetched_waits_no_longer_than_he_says() {
    let (desk, depot) = (Desk::new(), Depot::start());
    shelve(&depot, "slow", 1.0);
    let proxy = Proxy::before(depot.address);
    proxy.order("GET /a/slow/adapter_model", Fault::Stall(10));
    let server = desk
        .start(|config| {
            config.follow.on_first_use = true;
            config.dirs = Vec::new();
            config.sources = vec![parse_source(&format!("web={}/a", proxy.url()), DEFAULT_REGION).unwrap()];
            // It goes on when the client gives up on the connection.
            config.fetch.stall = Duration::from_secs(3);
        })
        .await;
    for wait in ["0", "100"] {
        let body = text_body("slow", json!("a"), json!({}));
        let request = Request::post(COMPLETIONS, &body).header("x-tunegate-adapter-wait-ms", wait);
        let answer = server.send(request).await;
        assert_eq!(answer.status, 503, "{}", answer.text());
        assert!(answer.header("retry-after").is_some() && answer.text().contains("was not in memory within"));
    }
    assert_eq!(server.complete("slow", json!("a"), json!({})).await.status, 200, "the fetch went on meanwhile");
    let fetches = proxy.requests().iter().filter(|head| head.starts_with("GET /a/slow/adapter_model")).count();
    assert_eq!(fetches, 2, "cut once, for all who asked");
}

#[tokio::test]
async fn first_use_is_off_unless_it_is_switched_on() {
    let (desk, depot) = (Desk::new(), Depot::start());
    shelve(&depot, "sql", 1.0);
    let web = format!("web={}/a", depot.url());
    let server = desk.start(|config| config.sources = vec![parse_source(&web, DEFAULT_REGION).unwrap()]).await;
    assert_eq!(server.complete("sql", json!("a"), json!({})).await.status, 404);
    assert!(depot.requests().is_empty());

    // By hand it is loaded from there all the same; and from nowhere else.
    let load = |path: &str| json!({"lora_name": "sql", "lora_path": path});
    assert_eq!(server.post("/v1/load_lora_adapter", &load("web:sql")).await.status, 200);
    let row = server.gateway.adapters().named("sql").unwrap().row;
    assert!(row.source.unwrap().starts_with("web:sql#"));
    for (path, status) in [
        ("web:other", 404),
        ("other:sql", 403),
        ("http://127.0.0.1/a/sql", 403),
        ("web:../sql", 403),
        ("/etc", 403),
        ("s3://bucket/sql", 403),
    ] {
        let answer = server.post("/v1/load_lora_adapter", &load(path)).await;
        assert_eq!(answer.status, status, "{path}: {}", answer.text());
    }
}
