//! Adapters changed while the server answers, by the calls that vLLM's callers make and by our own.

use std::path::Path;

use serde_json::{Value, json};
use tokio::net::TcpStream;
use tunegate::terms::{AdapterVersion, Digest};

use crate::support::{
    BASE, golden,
    server::{COMPLETIONS, TestServer, text_body},
    wire::{Answer, EventStream, Request},
};

const LOAD: &str = "/v1/load_lora_adapter";
const UNLOAD: &str = "/v1/unload_lora_adapter";

/// A server without adapters that may load those made for its base.
async fn empty() -> TestServer {
    TestServer::with(|config, _| {
        config.adapters.dirs = Vec::new();
        config.adapters.roots = vec![golden("adapters/llama")];
    })
    .await
}

async fn load(server: &TestServer, name: &str, path: &str, more: Value) -> Answer {
    let mut body = json!({"lora_name": name, "lora_path": path});
    for (key, value) in more.as_object().unwrap() {
        body[key] = value.clone();
    }
    server.post(LOAD, &body).await
}

async fn unload(server: &TestServer, name: &str) -> Answer {
    server.post(UNLOAD, &json!({"lora_name": name})).await
}

async fn adapter(server: &TestServer, name: &str) -> Value {
    let answer = server.get(&format!("/v1/adapters/{name}")).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()
}

async fn models(server: &TestServer) -> Vec<Value> {
    server.get("/v1/models").await.json()["data"].as_array().unwrap().clone()
}

/// Status, `type` and message of a refusal, which has both shapes.
fn refusal(answer: &Answer) -> (u16, String, String) {
    let body = answer.json();
    let (nested, top) = (&body["error"], &body);
    assert_eq!((&nested["type"], &nested["message"]), (&top["type"], &top["message"]), "{body}");
    assert_eq!((&top["object"], &top["code"]), (&json!("error"), &json!(answer.status)), "{body}");
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    (answer.status, text(&top["type"]), text(&top["message"]))
}

async fn version_of(server: &TestServer, model: &str) -> String {
    let answer = server.complete(model, json!("the quick brown fox"), json!({})).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.header("x-tunegate-version").unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubeai_drives_us() {
    // Any status up to 299 is fine; what is there or gone already it knows by 400, the nested type and words.
    let server = empty().await;
    let path = golden("adapters/llama/rslora");
    let body = json!({"lora_name": "sql", "lora_path": path.to_str().unwrap()});
    assert!(server.post(LOAD, &body).await.status <= 299);
    assert!(server.post(LOAD, &body).await.status <= 299, "the same again is no fault");
    let other = json!({"lora_name": "sql", "lora_path": golden("adapters/llama/all7").to_str().unwrap()});
    let answer = server.post(LOAD, &other).await;
    let nested = answer.json()["error"].clone();
    assert_eq!((answer.status, nested["type"].as_str()), (400, Some("InvalidUserInput")));
    let message = nested["message"].as_str().unwrap();
    assert!(message.contains("already") && message.contains("loaded"), "{message}");
    assert!(unload(&server, "sql").await.status <= 299);
    let answer = unload(&server, "sql").await;
    let nested = answer.json()["error"].clone();
    assert_eq!((answer.status, nested["type"].as_str()), (400, Some("InvalidUserInput")));
    assert!(nested["message"].as_str().unwrap().contains("cannot be found"), "{nested}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_production_stack_drives_us() {
    // It wants exactly 200, reads the flat error, finds adapters by id, parent and root, and may send a bearer.
    let server = TestServer::with(|config, _| {
        config.adapters.dirs = Vec::new();
        config.adapters.roots = vec![golden("adapters/llama")];
        config.server.api_keys = vec!["sk-vllm".to_owned()];
    })
    .await;
    let send = async |request: Request| server.send(request.key("sk-vllm")).await;
    let body = |path: &str| json!({"lora_name": "sql", "lora_path": golden(path).to_str().unwrap()});
    assert_eq!(send(Request::post(LOAD, &body("adapters/llama/rslora"))).await.status, 200);
    let answer = send(Request::post(LOAD, &body("adapters/llama/all7"))).await;
    let flat = answer.json();
    assert_eq!((answer.status, flat["type"].as_str()), (400, Some("InvalidUserInput")));
    assert!(flat["message"].as_str().unwrap().contains("has already been loaded"), "{flat}");
    let listed = send(Request::get("/v1/models")).await.json();
    let card = listed["data"].as_array().unwrap().iter().find(|card| card["id"] == "sql").unwrap().clone();
    assert_eq!(card["parent"], BASE);
    assert!(card["root"].as_str().is_some_and(|root| !root.contains("golden")), "never a path: {card}");
    assert_eq!(send(Request::post(UNLOAD, &json!({"lora_name": "sql"}))).await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn aibrix_drives_us() {
    // It looks whether the model is listed, loads (200 or 201), and pays no attention to what an unload answers.
    let server = empty().await;
    assert!(!models(&server).await.iter().any(|model| model["id"] == "text2sql"));
    let body = json!({
        "lora_name": "text2sql", "lora_path": "rslora", "additional_config": {"api-key": "x"}, "lora_int_id": 3,
    });
    assert_eq!(server.post(LOAD, &body).await.status, 200, "fields that mean nothing here are passed over");
    assert!(models(&server).await.iter().any(|model| model["id"] == "text2sql"));
    assert_eq!(server.post(UNLOAD, &json!({"lora_name": "text2sql", "lora_path": "rslora"})).await.status, 200);
    assert!(!models(&server).await.iter().any(|model| model["id"] == "text2sql"));
    // A hub id is a path that is not there, and a URL is never followed.
    let (status, kind, _) = refusal(&load(&server, "x", "yard1/llama-2-7b-sql-lora-test", json!({})).await);
    assert_eq!((status, kind.as_str()), (404, "NotFoundError"));
    let (status, _, message) = refusal(&load(&server, "x", "s3://bucket/x", json!({})).await);
    assert!(status == 403 && message.contains("configured source"), "{status}: {message}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_old_sidecar_drives_us() {
    // Every 5 seconds: health, the list, then a load of what is missing and an unload of what should not be.
    let server = empty().await;
    let ids = async || models(&server).await.iter().map(|model| model["id"].clone()).collect::<Vec<_>>();
    for _ in 0..2 {
        assert_eq!(server.get("/health").await.status, 200);
        if !ids().await.contains(&json!("sql")) {
            let body = json!({"lora_name": "sql", "lora_path": "rslora", "base_model_name": BASE});
            assert_eq!(server.post(LOAD, &body).await.status / 100, 2);
        }
    }
    assert!(ids().await.contains(&json!("sql")));
    assert_eq!(unload(&server, "sql").await.status / 100, 2);
    assert_eq!(ids().await, [json!(BASE)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kserve_names_adapters_by_flags_and_finds_them_listed() {
    let server = TestServer::with(|config, _| {
        config.adapters.dirs = Vec::new();
        config.adapters.modules = vec![("a".to_owned(), golden("adapters/llama/rslora"))];
    })
    .await;
    assert!(models(&server).await.iter().any(|model| model["id"] == "a" && model["parent"] == BASE));
    assert_eq!(adapter(&server, "a").await["managed_by"], "flag");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_load_answers_vllms_sentence_or_json() {
    let server = empty().await;
    let answer = load(&server, "team/poet", "rslora", json!({"is_3d_lora_weight": false})).await;
    assert_eq!(answer.text(), "Success: LoRA adapter 'team/poet' added successfully.");
    let short = answer.header("x-tunegate-version").unwrap().to_owned();
    assert!(version_of(&server, "team/poet").await.contains(&short));
    let body = json!({"lora_name": "team/poet", "lora_path": "all7", "load_inplace": true, "why": "better"});
    let answer = server.send(Request::post(LOAD, &body).header("accept", "application/json")).await.json();
    assert_eq!((&answer["id"], &answer["status"]), (&json!("team/poet"), &json!("serving")), "{answer}");
    assert!(answer["was"].as_str().unwrap().starts_with(&short) && answer["changed"] == true);
    let gone = server.post(UNLOAD, &json!({"lora_name": "team/poet"})).await;
    assert_eq!(gone.text(), "Success: LoRA adapter 'team/poet' removed successfully.");
    let answer = server.complete("team/poet", json!("x"), json!({})).await;
    assert_eq!(answer.error(), (404, "model_not_found".to_owned(), Some("model".to_owned())));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_with_a_load_is_said_in_both_shapes_and_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("root");
    for (name, source) in [("good", "rslora"), ("torn", "rslora")] {
        copy(&golden(&format!("adapters/llama/{source}")), &root.join(name));
    }
    let weights = root.join("torn/adapter_model.safetensors");
    let bytes = std::fs::read(&weights).unwrap();
    std::fs::write(&weights, &bytes[..bytes.len() / 2]).unwrap();
    copy(&golden("adapters/llama/all7"), &folder.path().join("secret"));
    std::os::unix::fs::symlink(folder.path().join("secret"), root.join("out")).unwrap();
    let server = TestServer::with(|config, _| {
        config.adapters.dirs = Vec::new();
        config.adapters.roots = vec![root.clone()];
    })
    .await;
    assert_eq!(load(&server, "poet", "good", json!({})).await.status, 200);
    let secret = folder.path().join("secret").display().to_string();
    for (name, path, more, expected) in [
        ("poet", "torn", json!({"load_inplace": true}), (400, "InvalidUserInput")),
        ("poet", "../secret", json!({"load_inplace": true}), (403, "PermissionDeniedError")),
        ("poet", "out", json!({"load_inplace": true}), (403, "PermissionDeniedError")),
        ("poet", &secret, json!({"load_inplace": true}), (403, "PermissionDeniedError")),
        ("poet", "/no/such/place", json!({}), (403, "PermissionDeniedError")),
        ("poet", "https://example.com/x", json!({}), (403, "PermissionDeniedError")),
        ("poet", "nothing-here", json!({}), (404, "NotFoundError")),
        ("poet", "good", json!({"expected_version": "0123456789"}), (409, "ConflictError")),
        ("poet", "good", json!({"expected_version": "none"}), (409, "ConflictError")),
        ("poet", "good", json!({"expected_version": "xyz"}), (400, "InvalidUserInput")),
        ("poet", "good", json!({"suite": "s"}), (400, "InvalidUserInput")),
        ("poet", "good", json!({"is_3d_lora_weight": true}), (400, "InvalidUserInput")),
        ("poet", "good", json!({"pinned": "yes"}), (400, "InvalidUserInput")),
        ("check", "good", json!({}), (400, "InvalidUserInput")),
        ("../x", "good", json!({}), (400, "InvalidUserInput")),
        (BASE, "good", json!({}), (400, "InvalidUserInput")),
    ] {
        let answer = load(&server, name, path, more.clone()).await;
        let (status, kind, message) = refusal(&answer);
        assert_eq!((status, kind.as_str()), expected, "{name} {path} {more}: {message}");
    }
    for body in [json!({}), json!({"lora_name": "x"}), json!({"lora_path": "good"}), json!({"lora_name": 1})] {
        assert_eq!(refusal(&server.post(LOAD, &body).await).0, 400, "{body}");
        assert_eq!(refusal(&server.send(Request::raw(LOAD, b"{").without("content-type")).await).0, 415);
    }
    let known = adapter(&server, "poet").await;
    assert_eq!(known["history"].as_array().unwrap().len(), 1, "{known}");
    assert_eq!(server.complete("poet", json!("x"), json!({})).await.status, 200);
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_adapter_is_shown_with_its_versions_where_they_are_and_its_history() {
    let server = empty().await;
    load(&server, "poet", "rslora", json!({"why": "first", "pinned": true})).await;
    load(&server, "poet", "all7", json!({"load_inplace": true})).await;
    version_of(&server, "poet").await;
    let poet = adapter(&server, "poet").await;
    for (key, value) in [
        ("status", json!("serving")),
        ("managed_by", json!("api")),
        ("hold", json!(false)),
        ("pinned", json!(true)),
        ("source", json!("all7")),
        ("tier", json!("memory")),
        ("rank", json!(4)),
        ("leases", json!(0)),
    ] {
        assert_eq!(poet[key], value, "{key}: {poet}");
    }
    assert_eq!(poet["targets"].as_array().unwrap().len(), 7);
    assert!(poet["bytes"].as_u64().unwrap() > 0 && poet["last_used"].as_i64().unwrap() > 1_700_000_000);
    for stage in ["read_ms", "check_ms", "pack_ms"] {
        assert!(poet["load"][stage].is_number(), "{stage}: {poet}");
    }
    let versions = poet["versions"].as_array().unwrap();
    assert_eq!((versions.len(), &versions[0]["current"], &versions[1]["current"]), (2, &json!(true), &json!(false)));
    assert!(versions[1]["kept_bytes"].as_u64().unwrap() > 0);
    assert_eq!(versions[1]["tier"], "disk", "what was replaced is in nobody's use");
    let steps = poet["history"].as_array().unwrap();
    assert_eq!((&steps[0]["operation"], &steps[1]["operation"]), (&json!("replace"), &json!("load")));
    assert_eq!((&steps[1]["why"], &steps[1]["who"]), (&json!("first"), &json!("127.0.0.1")));
    let list = server.get("/v1/adapters").await.json();
    assert_eq!(list["data"][0]["version"], poet["version"]);
    assert!(list["data"][0].get("history").is_none());
    assert!(list["memory"]["bytes"].as_u64().unwrap() >= poet["bytes"].as_u64().unwrap());
    assert_eq!(server.get("/v1/adapters/nobody").await.error().0, 404);
    unload(&server, "poet").await;
    assert_eq!(server.get("/v1/adapters").await.json()["data"], json!([]));
    assert_eq!(adapter(&server, "poet").await["status"], "unloaded");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_call_rolls_back_by_a_step_or_to_a_version() {
    let server = empty().await;
    for path in ["rslora", "all7", "plain-qv"] {
        assert_eq!(load(&server, "team/poet", path, json!({"load_inplace": true})).await.status, 200);
    }
    let versions = adapter(&server, "team/poet").await["versions"].clone();
    let short = |index: usize| versions[index]["version"].as_str().unwrap()[..8].to_owned();
    let roll = async |body: Value| server.post("/v1/adapters/team/poet/rollback", &body).await;
    let conflict = roll(json!({"expected_version": short(1)})).await;
    assert_eq!(conflict.error(), (409, "version_mismatch".to_owned(), Some("expected_version".to_owned())));
    let back = roll(json!({"expected_version": short(0)})).await.json();
    assert_eq!((&back["version"], &back["was"]), (&versions[1]["version"], &versions[0]["version"]), "{back}");
    assert!(version_of(&server, "team/poet").await.contains(&short(1)));
    roll(json!({"why": "still worse"})).await;
    assert!(version_of(&server, "team/poet").await.contains(&short(2)));
    assert_eq!(roll(json!({})).await.error().1, "no_earlier_version");
    let forth = roll(json!({"version": short(0)})).await.json();
    assert_eq!(forth["version"], versions[0]["version"]);
    let unknown = roll(json!({"version": "00000000"})).await.error();
    assert_eq!((unknown.0, unknown.2.as_deref()), (404, Some("version")));
    for path in ["/v1/adapters/nobody/rollback", "/v1/adapters/poet", "/v1/adapters/../rollback"] {
        assert_eq!(server.post(path, &json!({})).await.error().0, 404, "{path}");
    }
    assert_eq!(adapter(&server, "team/poet").await["history"][0]["operation"], "rollback");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_check_gives_the_plan_or_the_reasons_and_loads_nothing() {
    let server = TestServer::with(|config, _| {
        config.adapters.dirs = Vec::new();
        config.adapters.roots = vec![golden("adapters"), golden("later")];
    })
    .await;
    let check = async |path: &str| server.post("/v1/adapters/check", &json!({"lora_path": path})).await;
    let plan = check("llama/rslora").await.json();
    assert_eq!((&plan["loadable"], &plan["plan"]["sites"][0]["rank"]), (&json!(true), &json!(8)), "{plan}");
    let refused = check("llama/pissa").await.json();
    assert_eq!((&refused["loadable"], &refused["refused"][0]["code"]), (&json!(false), &json!("base_changing")));
    let wide = check("wide/all7").await.json();
    let codes: Vec<&Value> = wide["refused"].as_array().unwrap().iter().map(|refusal| &refusal["code"]).collect();
    assert!(codes.contains(&&json!("shape")), "made for another base: {wide}");
    assert_eq!(check("../models").await.error().0, 403);
    assert_eq!(check("llama/none").await.error().0, 404);
    assert_eq!(server.get("/v1/adapters").await.json()["data"], json!([]));
    assert_eq!(server.gateway.adapters().resident().bytes, 0);
}

/// A streamed answer of `tokens` tokens, once its first one is there.
async fn begun(server: &TestServer, model: &str, tokens: usize) -> (EventStream<TcpStream>, String) {
    let body = text_body(model, json!("the quick brown fox"), json!({"stream": true, "max_tokens": tokens}));
    let mut stream = server.stream(COMPLETIONS, &body).await;
    let first = piece(&stream.next().await.unwrap());
    (stream, first)
}

fn piece(event: &str) -> String {
    let event: Value = serde_json::from_str(event).unwrap();
    assert!(event.get("error").is_none(), "{event}");
    event["choices"][0]["text"].as_str().unwrap().to_owned()
}

async fn whole(stream: EventStream<TcpStream>, first: String) -> String {
    let mut events = stream.all().await;
    assert_eq!(events.pop().as_deref(), Some("[DONE]"));
    events.iter().fold(first, |text, event| text + &piece(event))
}

/// Waits until nothing of a version is in memory.
async fn freed(server: &TestServer, version: &str) {
    let adapters = server.gateway.adapters();
    let version = AdapterVersion(Digest::parse(version).unwrap());
    let wait = async {
        while adapters.usage(version).bytes > 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(60), wait).await.expect("its memory is freed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_ends_on_the_version_it_began_with_whatever_becomes_of_its_name() {
    const TOKENS: usize = 400;
    let server = empty().await;
    load(&server, "poet", "rslora", json!({})).await;
    let (stream, first) = begun(&server, "poet", TOKENS).await;
    let alone = whole(stream, first).await;
    let one = adapter(&server, "poet").await["version"].as_str().unwrap().to_owned();

    let (stream, first) = begun(&server, "poet", TOKENS).await;
    assert_eq!(load(&server, "poet", "all7", json!({"load_inplace": true})).await.status, 200);
    let two = adapter(&server, "poet").await["version"].as_str().unwrap().to_owned();
    assert!(version_of(&server, "poet").await.contains(&two[..12]), "new requests are answered by the new one");
    assert_eq!(whole(stream, first).await, alone);
    freed(&server, &one).await;

    let (stream, first) = begun(&server, "poet", TOKENS).await;
    assert_eq!(unload(&server, "poet").await.status, 200);
    assert_eq!(server.complete("poet", json!("x"), json!({})).await.error().0, 404);
    let text = whole(stream, first).await;
    assert_ne!(text, alone);
    freed(&server, &two).await;
    assert_eq!(server.gateway.adapters().resident().bytes, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_never_uses_the_prefix_cache_of_another() {
    let server = empty().await;
    let words = ["rain"; 60].join(" ");
    let ask = async || {
        let answer = server.complete("poet", json!(words), json!({})).await;
        let cached = answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
        (answer.content(), cached)
    };
    load(&server, "poet", "rslora", json!({})).await;
    let (one, cached) = ask().await;
    assert_eq!(cached, 0);
    assert!(ask().await.1 >= 32);
    load(&server, "poet", "all7", json!({"load_inplace": true})).await;
    let (two, cached) = ask().await;
    assert_eq!(cached, 0, "another version under the same name");
    let fresh = empty().await;
    load(&fresh, "poet", "all7", json!({})).await;
    assert_eq!(fresh.complete("poet", json!(words), json!({})).await.content(), two);
    assert_eq!(server.post("/v1/adapters/poet/rollback", &json!({})).await.status, 200);
    let (again, cached) = ask().await;
    assert!(again == one && cached >= 32, "the version that it was, and what was computed for it");
    unload(&server, "poet").await;
    load(&server, "poet", "all7", json!({})).await;
    assert_eq!(ask().await.0, two);
}
