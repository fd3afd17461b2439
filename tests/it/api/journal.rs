//! The record over HTTP: who may look, what they see, and that it is on record.

use serde_json::{Value, json};
use tunegate::terms::Digest;

use crate::support::{
    BASE,
    server::{CHAT, TestServer, chat_body},
    wire::{Answer, Request},
};

fn key(name: &str, role: &str) -> String {
    format!("[[key]]\nname = '{name}'\nhash = '{}'\nrole = '{role}'\n", Digest::of(name.as_bytes()))
}

/// Three keys whose secrets are their names.
async fn keyed() -> TestServer {
    let keys = [key("shop", "app"), key("eva", "reviewer"), key("root", "admin")].concat();
    TestServer::with_keys(&keys, |_| {}).await
}

async fn get(server: &TestServer, who: &str, path: &str) -> Answer {
    server.send(Request::get(path).key(who)).await
}

async fn post(server: &TestServer, who: &str, path: &str, body: Value) -> Answer {
    server.send(Request::post(path, &body).key(who)).await
}

async fn ask(server: &TestServer, content: &str, user: &str) -> String {
    let body = chat_body(BASE, content, json!({"user": user}));
    let answer = post(server, "shop", CHAT, body).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()["id"].as_str().unwrap().to_owned()
}

fn ids(page: &Value) -> Vec<&str> {
    page["data"].as_array().unwrap().iter().map(|row| row["id"].as_str().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reviewers_search_and_every_look_is_on_record() {
    let server = keyed().await;
    let (rain, wind) = (ask(&server, "rain", "ann").await, ask(&server, "wind", "bob").await);
    let refused = |answer: Answer| (answer.error().0, answer.error().1);
    for path in ["/v1/journal", "/v1/journal/tail", "/v1/journal/export", &format!("/v1/journal/{rain}")] {
        assert_eq!(refused(get(&server, "shop", path).await), (403, "role_not_allowed".to_owned()), "{path}");
    }
    assert_eq!(refused(get(&server, "eva", "/v1/journal/access").await).0, 403);
    let page = get(&server, "eva", "/v1/journal").await.json();
    assert_eq!(ids(&page), [wind.as_str(), &rain], "the latest first");
    assert_eq!(page["next"], Value::Null);
    assert_eq!(page["data"][1]["prompts"][0]["messages"][0]["content"], "rain");
    assert_eq!(page["data"][1]["choices"][0].get("logprobs"), None);
    let page = get(&server, "eva", "/v1/journal?user=ann&content=false").await.json();
    assert_eq!((ids(&page), page["data"][0].get("prompts")), (vec![rain.as_str()], None));
    let first = get(&server, "eva", "/v1/journal?limit=1&order=asc").await.json();
    let next = format!("/v1/journal?limit=1&order=asc&after={}", first["next"].as_str().unwrap());
    assert_eq!(
        (ids(&first), ids(&get(&server, "eva", &next).await.json())),
        (vec![rain.as_str()], vec![wind.as_str()])
    );
    let (status, code, param) = get(&server, "eva", "/v1/journal?colour=red").await.error();
    assert_eq!((status, code.as_str(), param.as_deref()), (400, "unknown_parameter", Some("colour")));
    let whole = get(&server, "eva", &format!("/v1/journal/{rain}")).await.json();
    assert_eq!((&whole["user"], &whole["key"]), (&json!("ann"), &json!("shop")));
    assert_eq!(whole["choices"][0]["logprobs"].as_array().unwrap().len(), 8);
    assert_eq!(get(&server, "eva", "/v1/journal/nothing").await.error().1, "completion_not_found");

    let access = get(&server, "root", "/v1/journal/access").await.json();
    let seen: Vec<(&str, &str, u64)> = access["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| (row["who"].as_str().unwrap(), row["deed"].as_str().unwrap(), row["times"].as_u64().unwrap()))
        .collect();
    assert_eq!(seen, [("eva", "show", 1), ("eva", "search", 3), ("eva", "search", 1)]);
    assert!(!access.to_string().contains("ann"), "users are not named there: {access}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_tail_waits_for_the_next_answer() {
    let server = TestServer::start().await;
    let start = server.get("/v1/journal/tail").await.json();
    let cursor = start["cursor"].as_u64().unwrap();
    assert_eq!(start["data"], json!([]));
    let path = format!("/v1/journal/tail?cursor={cursor}&wait_ms=30000");
    let (tail, asked) = tokio::join!(server.get(&path), server.chat(BASE, "rain", json!({})));
    let tail = tail.json();
    assert_eq!(ids(&tail), [asked.json()["id"].as_str().unwrap()]);
    assert_eq!(tail["cursor"], cursor + 1);
    assert_eq!(server.get("/v1/journal/tail?adapter=poet").await.error().1, "unknown_parameter");
    assert_eq!(server.get("/v1/journal/tail?cursor=x").await.error().2.as_deref(), Some("cursor"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_export_is_a_file_of_its_kind() {
    let server = TestServer::start().await;
    for content in ["rain", "wind"] {
        assert_eq!(server.chat(BASE, content, json!({})).await.status, 200);
    }
    let lines = server.get("/v1/journal/export").await;
    assert_eq!(lines.header("content-type"), Some("application/x-ndjson"));
    let rows: Vec<Value> = lines.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((rows.len(), &rows[0]["prompts"][0]["messages"][0]["content"]), (2, &json!("rain")));
    let table = server.get("/v1/journal/export?format=csv&content=false&order=desc").await;
    let lines: Vec<&str> = table.text().lines().collect();
    assert!(
        lines.len() == 3 && lines[0].starts_with("id,choice,timestamp,") && !lines[0].contains("answer,"),
        "{lines:?}"
    );
    let latest = rows[1]["id"].as_str().unwrap();
    assert!(lines[1].starts_with(latest), "{lines:?}");
    for path in ["/v1/journal/export?format=xlsx", "/v1/journal/export?after=1.1"] {
        assert_eq!(server.get(path).await.status, 400, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn admins_import_and_erase_and_are_told_what_is_beyond_reach() {
    let server = keyed().await;
    let rain = ask(&server, "rain", "ann").await;
    let row = json!({"prompt": "old question", "completion": "old answer", "user": "ann"});
    let body = json!({"source": "old", "rows": [row, {"odd": 1}], "mapping": {}});
    assert_eq!(post(&server, "eva", "/v1/journal/import", body.clone()).await.status, 403);
    let imported = post(&server, "root", "/v1/journal/import", body).await.json();
    assert_eq!(
        (&imported["imported"], &imported["known"], &imported["refused"][0]["row"]),
        (&json!(1), &json!(0), &json!(1))
    );
    let bad = post(&server, "root", "/v1/journal/import", json!({"rows": [], "mapping": {"colour": "x"}})).await;
    assert_eq!(bad.error().2.as_deref(), Some("mapping"));
    let imported = get(&server, "eva", "/v1/journal?origin=imported").await.json();
    assert_eq!(imported["data"][0]["choices"][0]["text"], "old answer");
    assert_eq!(get(&server, "eva", "/v1/journal/export").await.status, 200);
    let noted = json!({"deed": "backup", "what": {"folder": "/backups/1"}});
    assert_eq!(post(&server, "root", "/v1/journal/access", noted).await.status, 200);

    assert_eq!(post(&server, "eva", "/v1/journal/erase", json!({"user": "ann"})).await.status, 403);
    assert_eq!(post(&server, "root", "/v1/journal/erase", json!({})).await.error().2.as_deref(), Some("user"));
    let erasure = post(&server, "root", "/v1/journal/erase", json!({"user": "ann"})).await.json();
    assert_eq!(erasure["completions"], 2);
    let beyond: Vec<&str> =
        erasure["beyond_reach"].as_array().unwrap().iter().map(|row| row["deed"].as_str().unwrap()).collect();
    assert_eq!(beyond, ["backup", "export"]);
    let left = get(&server, "root", &format!("/v1/journal/{rain}")).await.json();
    assert_eq!(
        (&left["user"], &left["prompts"], &left["choices"][0]["text"]),
        (&Value::Null, &Value::Null, &Value::Null)
    );
    assert!(left["erased_ms"].is_i64() && left["usage"]["completion_tokens"] == 8, "the fact stays: {left}");
    assert_eq!(get(&server, "eva", "/v1/journal?user=ann").await.json()["data"], json!([]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_redacted_is_redacted_everywhere_but_in_the_answer_to_the_client() {
    let server = TestServer::with(|config, folder| {
        let rules = folder.join("rules.toml");
        std::fs::write(&rules, "[[rule]]\nname = 'email'\ndetect = 'email'\n").unwrap();
        config.record.redact_rules = Some(rules);
    })
    .await;
    let more = json!({"user": "ann@mail.example", "store": true, "metadata": {"by": "eve@mail.example"}});
    let answer = server.chat(BASE, "write to bob@mail.example", more).await;
    let id = answer.json()["id"].as_str().unwrap().to_owned();
    let row = server.get(&format!("/v1/journal/{id}")).await;
    assert!(!row.text().contains("mail.example"), "{}", row.text());
    let row = row.json();
    assert_eq!(row["prompts"][0]["messages"][0]["content"], "write to [email]");
    assert_eq!(row["prompts"][0]["token_ids"], json!([]));
    assert!(row["redaction"].is_string() && row["user"].as_str().unwrap().starts_with("[email]"));
    let found = server.get("/v1/journal?user=ann%40mail.example").await.json();
    assert_eq!(ids(&found), [id.as_str()], "a user is found under the name that clients use");
    let tokens = server.post("/tokenize", &json!({"prompt": "to joe@mail.example"})).await.json()["tokens"].clone();
    let by_tokens = server.complete(BASE, tokens, json!({})).await.json();
    let row = server.get(&format!("/v1/journal/{}", by_tokens["id"].as_str().unwrap())).await.json();
    assert!(row["prompts"][0]["text"].as_str().unwrap().contains("[email]"), "{}", row["prompts"]);
    let (status, code, _) = server.post(&format!("/admin/replay/{id}"), &json!({})).await.error();
    assert_eq!((status, code.as_str()), (409, "not_replayable"));
    let erased = server.post("/v1/journal/erase", &json!({"user": "ann@mail.example"})).await.json();
    assert_eq!(erased["completions"], 1);
    assert!(server.get("/metrics").await.text().contains("tunegate_redacted_total{rule=\"email\"}"));
}
