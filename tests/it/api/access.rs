//! Who may ask what.

use serde_json::{Value, json};
use tunegate::{http::route::Route, terms::Digest};

use crate::support::{
    BASE,
    server::{CHAT, TestServer, chat_body},
    wire::{Answer, Request},
};

fn key(name: &str, more: &str) -> String {
    format!("[[key]]\nname = '{name}'\nhash = '{}'\n{more}\n", Digest::of(name.as_bytes()))
}

/// Three keys whose secrets are their names: `shop` may use one adapter, `bot` everything but records little, `root`
/// is an admin.
async fn keyed() -> TestServer {
    let keys =
        [key("shop", "models = ['rslora']"), key("bot", "record = 'metadata'"), key("root", "role = 'admin'")].concat();
    TestServer::with_keys(&keys, |_| {}).await
}

fn ask(model: &str, more: Value) -> Request {
    Request::post(CHAT, &chat_body(model, "rain", more))
}

/// A request that the route's method and path fit.
fn request(route: Route) -> Request {
    let path = route.path().replace("{id}", "x").replace("{*id}", "x");
    match route.method().as_str() {
        "POST" => Request::post(&path, &json!({})),
        method => Request::new(method, &path),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_route_needs_a_key_but_those_that_say_otherwise() {
    let server = keyed().await;
    let refused = (401, "invalid_api_key".to_owned(), Some("authorization".to_owned()));
    for &route in Route::ALL {
        let bare = server.send(request(route)).await;
        let wrong = server.send(request(route).key("nobody")).await;
        if route.is_open() {
            assert_eq!((bare.status, wrong.status), (200, 200), "{route:?}");
        } else {
            assert_eq!(bare.error(), refused, "{route:?}");
            assert_eq!(wrong.error(), refused, "{route:?}");
            assert_eq!(bare.header("www-authenticate"), Some("Bearer"));
        }
        let known = server.send(request(route).key("root")).await;
        assert_ne!(known.status, 401, "{route:?}");
    }
    for path in
        ["/v1/embeddings", "/nothing", "/v1/chat/completions/", "//v1/models", "/HEALTH", "/health/../v1/models"]
    {
        assert_eq!(server.get(path).await.error(), refused, "{path}: what is not there is nobody's business");
    }
    assert_eq!(server.send(Request::new("DELETE", "/v1/models")).await.error(), refused);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_is_sent_as_a_bearer_once() {
    let server = keyed().await;
    let ask = || Request::get("/v1/models");
    assert_eq!(server.send(ask().header("authorization", "bearer bot")).await.status, 200);
    for bad in ["bot", "Basic bot", "Bearer", "Bearer  ", "Bearer bot root", "Bearer Bot"] {
        assert_eq!(server.send(ask().header("authorization", bad)).await.status, 401, "{bad}");
    }
    assert_eq!(server.send(ask().key("bot").key("bot")).await.status, 401, "twice");
    let query = Request::get("/v1/models?api_key=bot");
    assert_eq!(server.send(query).await.status, 401, "keys in addresses end up in logs");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_sees_and_uses_its_own_models_only() {
    let server = keyed().await;
    let ids = |answer: Answer| -> Vec<String> {
        let data = answer.json()["data"].as_array().unwrap().clone();
        data.iter().map(|model| model["id"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(ids(server.send(Request::get("/v1/models").key("shop")).await), ["rslora"]);
    let all = ids(server.send(Request::get("/v1/models").key("bot")).await);
    assert!(all[0] == BASE && all.len() > 10, "{all:?}");
    assert_eq!(server.send(ask("rslora", json!({})).key("shop")).await.status, 200);
    let refused = (403, "model_not_allowed".to_owned(), Some("model".to_owned()));
    for other in [BASE.to_owned(), "all7".to_owned(), format!("{BASE}:all7")] {
        assert_eq!(server.send(ask(&other, json!({})).key("shop")).await.error(), refused, "{other}");
    }
    assert_eq!(server.send(Request::get("/v1/models/all7").key("shop")).await.error(), refused);
    assert_eq!(server.send(Request::get("/v1/models/rslora").key("shop")).await.status, 200);
    let tokenize = Request::post("/tokenize", &json!({"model": "all7", "prompt": "rain"})).key("shop");
    assert_eq!(server.send(tokenize).await.error(), refused);
    // A name that is not there is not explained by names that are somebody else's.
    let unknown = server.send(ask("all8", json!({})).key("shop")).await;
    assert_eq!(unknown.status, 404);
    assert!(!unknown.text().contains("all7"), "{}", unknown.text());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stored_completions_belong_to_their_key() {
    let server = keyed().await;
    let stored = json!({"store": true, "metadata": {"tone": "dry"}});
    let answer = server.send(ask("rslora", stored).key("shop")).await;
    let (id, content) = (answer.json()["id"].as_str().unwrap().to_owned(), answer.content());
    server.send(ask("rslora", json!({})).key("shop")).await;
    let one = format!("/v1/chat/completions/{id}");
    let get = |path: &str, key: &str| server.send(Request::get(path).key(key));

    let list = get("/v1/chat/completions?metadata[tone]=dry", "shop").await.json();
    assert_eq!(list["data"].as_array().unwrap().len(), 1, "only what was asked for with store: true: {list}");
    assert_eq!((&list["data"][0]["id"], &list["has_more"]), (&json!(id), &json!(false)));
    assert_eq!(list["data"][0]["choices"][0]["message"]["content"], content);
    assert_eq!(get("/v1/chat/completions?metadata[tone]=wet", "shop").await.json()["data"], json!([]));
    assert_eq!(get("/v1/chat/completions", "bot").await.json()["data"], json!([]));
    assert_eq!(get(&one, "bot").await.error().0, 404);
    assert_eq!(get(&one, "shop").await.json()["metadata"], json!({"tone": "dry"}));
    let messages = get(&format!("{one}/messages"), "shop").await.json();
    assert_eq!((&messages["data"][0]["role"], &messages["data"][0]["content"]), (&json!("user"), &json!("rain")));

    let change = json!({"metadata": {"tone": "wet"}});
    assert_eq!(server.send(Request::post(&one, &change).key("bot")).await.status, 404);
    assert_eq!(server.send(Request::post(&one, &change).key("shop")).await.json()["metadata"], change["metadata"]);
    assert_eq!(get(&one, "shop").await.json()["metadata"], change["metadata"]);

    assert_eq!(server.send(Request::new("DELETE", &one).key("bot")).await.status, 404);
    assert_eq!(server.send(Request::new("DELETE", &one).key("shop")).await.json()["deleted"], true);
    assert_eq!(get(&one, "shop").await.error().1, "completion_not_found");
    let fact = server.gateway.journal().get(&id).await.unwrap().unwrap();
    assert!(fact.content.is_none() && fact.key.as_deref() == Some("shop"), "the fact stays, the content is gone");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_strictest_of_server_key_and_request_decides_what_is_recorded() {
    let server = keyed().await;
    let record = |key: &'static str, header: Option<&'static str>| {
        let request = ask("rslora", json!({"user": "ann", "metadata": {"a": "b"}})).key(key);
        let request = header.map_or(request.clone(), |header| request.header("x-tunegate-record", header));
        let server = &server;
        async move {
            let id = server.send(request).await.json()["id"].as_str().unwrap().to_owned();
            let row = server.gateway.journal().get(&id).await.unwrap().unwrap();
            (row.content.is_some(), row.user.is_some(), row.choices[0].text.is_some(), row.key.unwrap())
        }
    };
    assert_eq!(record("shop", None).await, (true, true, true, "shop".into()));
    assert_eq!(record("shop", Some("metadata")).await, (false, true, false, "shop".into()));
    assert_eq!(record("shop", Some("none")).await, (false, false, false, "shop".into()));
    assert_eq!(record("bot", Some("full")).await, (false, true, false, "bot".into()), "only less, never more");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_without_keys_shows_records_to_this_machine_only() {
    let private = TestServer::start().await;
    assert_eq!(private.get("/v1/chat/completions").await.status, 200);
    let public = TestServer::with(|config, _| config.server.listen = ([0, 0, 0, 0], 0).into()).await;
    assert_eq!(public.send(ask("rslora", json!({"store": true}))).await.status, 200);
    let refused = (403, "records_need_a_key".to_owned(), None);
    for route in [
        Route::ListStored,
        Route::GetStored,
        Route::UpdateStored,
        Route::DeleteStored,
        Route::StoredMessages,
        Route::Replay,
    ] {
        assert_eq!(public.send(request(route)).await.error(), refused, "{route:?}");
    }
    let own = public.send_unix(Request::get("/v1/chat/completions")).await.json();
    assert_eq!(own["data"].as_array().unwrap().len(), 1, "the operator's socket is this machine");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_an_admin_runs_a_record_again() {
    let server = keyed().await;
    let answer = server.send(ask("rslora", json!({})).key("shop")).await;
    let path = format!("/admin/replay/{}", answer.json()["id"].as_str().unwrap());
    let replay = |key: &str| server.send(Request::post(&path, &json!({})).key(key));
    assert_eq!(replay("shop").await.error().0, 403);
    let replayed = replay("root").await;
    assert_eq!(replayed.status, 200, "{}", replayed.text());
    assert_eq!(replayed.json()["choices"][0]["identical"], true, "{}", replayed.text());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prompt_is_read_once_for_each_version_and_key() {
    let server = keyed().await;
    let words = ["rain"; 40].join(" ");
    let cached = async |key: &str, model: &str, more: Value| {
        let answer = server.send(Request::post(CHAT, &chat_body(model, &words, more)).key(key)).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap()
    };
    assert_eq!(cached("root", "rslora", json!({})).await, 0);
    let again = cached("root", "rslora", json!({})).await;
    assert!(again >= 32, "whole blocks of the same beginning: {again}");
    assert_eq!(cached("root", BASE, json!({})).await, 0, "another version");
    assert_eq!(cached("shop", "rslora", json!({})).await, 0, "another key");
    assert_eq!(cached("root", "rslora", json!({"cache_salt": "a"})).await, 0, "another salt");
    assert_eq!(cached("root", "rslora", json!({"cache_salt": "a"})).await, again);
    let answer = server.send(Request::get("/metrics").key("root")).await;
    let metrics = answer.text();
    let hits = format!("tunegate_prefix_cache_hit_tokens_total {}", 2 * again);
    assert!(metrics.contains(&hits) && metrics.contains("vllm:prefix_cache_hits_total{"), "{metrics}");
}
