//! Models, tokens, the server's own description.

use serde_json::{Value, json};
use tunegate::http::route::Route;

use crate::support::{BASE, golden, server::TestServer, wire::Request};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn models_are_listed_base_first_without_paths() {
    let server = TestServer::with(|config, _| {
        config.server.served_names.push("tiny-too".into());
        config.adapters.modules.push(("team/sql".into(), golden("adapters/llama/rslora")));
    })
    .await;
    let answer = server.get("/v1/models").await;
    assert!(!answer.text().contains("golden"), "{}", answer.text());
    let data = answer.json()["data"].as_array().unwrap().clone();
    assert_eq!((&data[0]["id"], &data[1]["id"]), (&json!(BASE), &json!("tiny-too")));
    for base in &data[..2] {
        assert_eq!((&base["parent"], &base["root"]), (&Value::Null, &json!(BASE)));
    }
    for model in &data {
        let keys: Vec<&String> = model.as_object().unwrap().keys().collect();
        assert_eq!(keys, ["id", "object", "created", "owned_by", "root", "parent", "max_model_len"]);
        assert_eq!((&model["object"], &model["max_model_len"]), (&json!("model"), &json!(512)));
    }
    assert!(data[2..].iter().all(|adapter| adapter["parent"] == BASE));
    let ids: Vec<&str> = data.iter().map(|model| model["id"].as_str().unwrap()).collect();
    assert!(ids.contains(&"team/sql") && ids.contains(&"plain-qv"), "{ids:?}");

    for path in ["/v1/models/team/sql", "/v1/models/team%2Fsql", "/v1/models/team%2fsql"] {
        assert_eq!(server.get(path).await.json()["id"], "team/sql", "{path}");
    }
    assert_eq!(server.get("/v1/models/tiny").await.json()["id"], BASE);
    let root = server.get("/v1/models/team/sql").await.json()["root"].as_str().unwrap().to_owned();
    assert_eq!(server.chat(&root, "rain", json!({})).await.json()["model"], "team/sql", "a root names a version");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn text_becomes_tokens_and_tokens_become_text() {
    let server = TestServer::start().await;
    let text = "rain — <|im_end|> 雨 🌧";
    let body = json!({"prompt": text, "return_token_strs": true, "add_special_tokens": false});
    let tokens = server.post("/tokenize", &body).await.json();
    assert_eq!(tokens["max_model_len"], 512);
    let ids = tokens["tokens"].as_array().unwrap();
    assert_eq!(
        (tokens["count"].as_u64().unwrap() as usize, tokens["token_strs"].as_array().unwrap().len()),
        (ids.len(), ids.len())
    );
    assert!(ids.iter().all(|id| id.as_u64().unwrap() > 2), "a user's text never becomes a special token: {ids:?}");
    let back = server.post("/detokenize", &json!({"tokens": ids})).await;
    assert_eq!(back.json()["prompt"], text);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_conversation_is_tokenized_as_it_would_be_answered() {
    let server = TestServer::start().await;
    let messages = json!([{"role": "user", "content": "rain"}]);
    let tokens = server.post("/tokenize", &json!({"model": "rslora", "messages": messages})).await.json();
    let usage = server.chat("rslora", "rain", json!({})).await.json()["usage"].clone();
    assert_eq!(tokens["count"], usage["prompt_tokens"]);
    let text = server.post("/detokenize", &json!({"tokens": tokens["tokens"]})).await.json();
    assert!(text["prompt"].as_str().unwrap().contains("<|im_start|>user\nrain<|im_end|>"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_route_is_described_and_every_description_is_a_route() {
    let server = TestServer::start().await;
    let document = server.get("/openapi.json").await.json();
    assert_eq!(document["openapi"], "3.1.0");
    let mut described = 0;
    for (path, methods) in document["paths"].as_object().unwrap() {
        for method in methods.as_object().unwrap().keys() {
            described += 1;
            let request = Request::new(&method.to_ascii_uppercase(), &path.replace("{id}", "x"));
            let answer = server.send(request).await;
            let code = if answer.status == 200 { String::new() } else { answer.error().1 };
            assert!(!["route_not_found", "method_not_allowed"].contains(&code.as_str()), "{method} {path}: {code}");
        }
    }
    assert_eq!(described, Route::ALL.len() + 1, "and the report, which shares a route with what lies below an adapter");
    let chat = &document["components"]["schemas"]["ChatRequest"]["properties"];
    for name in [
        "messages",
        "model",
        "temperature",
        "top_p",
        "n",
        "stop",
        "max_tokens",
        "max_completion_tokens",
        "seed",
        "frequency_penalty",
        "presence_penalty",
        "logit_bias",
        "logprobs",
        "top_logprobs",
        "stream",
        "stream_options",
        "user",
        "metadata",
        "store",
        "top_k",
        "min_p",
        "repetition_penalty",
        "ignore_eos",
        "min_tokens",
        "stop_token_ids",
        "skip_special_tokens",
        "include_stop_str_in_output",
        "add_generation_prompt",
    ] {
        assert!(chat[name].is_object(), "{name} is not described");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_version_is_the_packages() {
    let server = TestServer::start().await;
    assert_eq!(server.get("/version").await.json(), json!({"version": env!("CARGO_PKG_VERSION")}));
}
