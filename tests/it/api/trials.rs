//! Loads that a trial or a suite refuses, as callers see them.

use std::path::Path;

use serde_json::{Value, json};

use crate::support::{golden, server::TestServer, wire::Request};

const LOAD: &str = "/v1/load_lora_adapter";

/// A copy of a golden adapter, its configuration changed.
fn put(root: &Path, name: &str, from: &str, change: impl FnOnce(&mut Value)) {
    let (from, to) = (golden(&format!("adapters/llama/{from}")), root.join(name));
    std::fs::create_dir_all(&to).unwrap();
    std::fs::copy(from.join("adapter_model.safetensors"), to.join("adapter_model.safetensors")).unwrap();
    let mut config = serde_json::from_slice(&std::fs::read(from.join("adapter_config.json")).unwrap()).unwrap();
    change(&mut config);
    std::fs::write(to.join("adapter_config.json"), config.to_string()).unwrap();
}

/// As it is, but for a last digit that no answer hangs on.
fn nearly_the_same(config: &mut Value) {
    let alpha = config["lora_alpha"].as_f64().unwrap();
    config["lora_alpha"] = json!(alpha * 1.000_000_1);
}

async fn load(server: &TestServer, body: Value) -> (u16, Value) {
    let answer = server.send(Request::post(LOAD, &body).header("accept", "application/json")).await;
    (answer.status, answer.json())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_load_that_fails_its_trial_is_refused_with_the_figure_and_shown_in_quarantine() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("root");
    put(&root, "good", "rslora", |_| {});
    // A delta too small for any score to show it.
    put(&root, "idle", "rslora", |config| config["lora_alpha"] = json!(1e-9));
    let server = TestServer::with(|config, _| {
        config.adapters.dirs = Vec::new();
        config.adapters.roots = vec![root.clone()];
        config.adapters.trial = true;
    })
    .await;
    let (status, answer) = load(&server, json!({"lora_name": "idle", "lora_path": "idle"})).await;
    assert_eq!((status, &answer["error"]["code"]), (400, &json!("adapter_refused")), "{answer}");
    let message = answer["message"].as_str().unwrap();
    assert!(message.contains("no_op: it changes nothing") && message.contains("--adapter-trial=false"), "{message}");
    assert_eq!(load(&server, json!({"lora_name": "poet", "lora_path": "good"})).await.0, 200);
    let (status, _) = load(&server, json!({"lora_name": "poet", "lora_path": "idle", "load_inplace": true})).await;
    assert_eq!(status, 400);

    let list = server.get("/v1/adapters").await.json();
    assert_eq!(list["base"]["digest"].as_str().map(str::len), Some(64), "{list}");
    let entry = |name: &str| list["data"].as_array().unwrap().iter().find(|one| one["id"] == name).unwrap().clone();
    assert_eq!((&entry("idle")["status"], &entry("poet")["status"]), (&json!("quarantined"), &json!("serving")));
    for name in ["idle", "poet"] {
        let quarantine = entry(name)["quarantine"].clone();
        assert!(quarantine["reason"].as_str().unwrap().contains("no_op"), "{quarantine}");
        assert!(quarantine["until"].as_i64().unwrap() >= quarantine["since"].as_i64().unwrap());
    }
    assert_eq!(server.get("/v1/adapters/idle").await.json()["status"], "quarantined");
    let trial = server.get("/v1/adapters/poet").await.json()["versions"][0]["trial"].clone();
    assert_eq!(trial["passed"], true, "{trial}");
    assert!(trial["figures"]["mean_gap"].as_f64().unwrap() > 0.0, "{trial}");
    let metrics = server.get("/metrics").await.text().to_owned();
    for line in [
        "tunegate_adapters_quarantined 2",
        r#"tunegate_adapter_trials_total{outcome="no_op"} 2"#,
        r#"tunegate_adapter_trials_total{outcome="passed"} 1"#,
    ] {
        assert!(metrics.contains(line), "{line}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_suite_the_name_moves_only_to_what_is_not_worse() {
    let folder = tempfile::tempdir().unwrap();
    let (root, suites) = (folder.path().join("root"), folder.path().join("suites"));
    put(&root, "old", "rslora", |_| {});
    put(&root, "new", "rslora", nearly_the_same);
    put(&root, "other", "all7", |_| {});
    std::fs::create_dir_all(suites.join("team")).unwrap();
    let server = TestServer::with(|config, _| {
        config.adapters.dirs = Vec::new();
        config.adapters.roots = vec![root.clone()];
        config.adapters.suites = vec![suites.clone()];
    })
    .await;
    let body = |path: &str, more: Value| {
        let mut body = json!({"lora_name": "poet", "lora_path": path, "load_inplace": true});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    assert_eq!(load(&server, body("old", json!({}))).await.0, 200);
    let mut suite = format!(
        "{}\n",
        json!({"suite": "team/answers", "sampling": {"temperature": 0, "max_tokens": 8}, "scorers": [{"kind": "exact"}]})
    );
    for index in 0..8 {
        let words = format!("question number {index}, of the rain");
        let answer = server.chat("poet", &words, json!({"ignore_eos": false})).await.json();
        let text = answer["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
        let messages = json!([{"role": "user", "content": words}]);
        suite.push_str(&format!("{}\n", json!({"id": index.to_string(), "messages": messages, "expect": text})));
    }
    std::fs::write(suites.join("team/answers.jsonl"), suite).unwrap();
    std::fs::write(suites.join("torn.jsonl"), "{").unwrap();

    let (status, answer) = load(&server, body("other", json!({"suite": "team/answers"}))).await;
    assert_eq!((status, &answer["error"]["code"]), (422, &json!("worse_than_current")), "{answer}");
    let message = answer["message"].as_str().unwrap();
    assert!(message.contains("is worse than") && message.contains("McNemar p = 7.81e-3, 8 items"), "{message}");
    let poet = server.get("/v1/adapters/poet").await.json();
    assert_eq!((poet["history"].as_array().unwrap().len(), &poet["quarantine"]), (1, &Value::Null), "{poet}");

    let (status, answer) = load(&server, body("new", json!({"suite": "team/answers"}))).await;
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answer["suite"]["comparison"]["verdict"], "cannot_tell", "{answer}");
    assert_eq!((&answer["suite"]["comparison"]["difference"], &answer["changed"]), (&json!(0.0), &json!(true)));
    let first = json!({"lora_name": "novice", "lora_path": "old", "suite": "team/answers"});
    let (status, answer) = load(&server, first).await;
    assert_eq!((status, &answer["suite"]), (200, &Value::Null), "there is nothing to compare with: {answer}");

    for (suite, expected) in [
        ("nothing", (404, "suite_not_found")),
        ("../root/old", (400, "invalid_value")),
        ("torn", (400, "suite_malformed")),
    ] {
        let (status, answer) = load(&server, body("other", json!({"suite": suite}))).await;
        assert_eq!((status, answer["error"]["code"].as_str().unwrap()), expected, "{answer}");
        assert!(!answer["message"].as_str().unwrap().contains("/suites"), "{answer}");
    }
}
