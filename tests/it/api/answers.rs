//! What good requests get: whole answers, streams, lists, tokens.

use serde_json::{Value, json};

use crate::support::{
    BASE,
    server::{CHAT, TestServer, chat_body},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chat_is_answered_whole_in_openais_shape() {
    let server = TestServer::start().await;
    let answer = server.chat("rslora", "Tell me of rain", json!({})).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let body = answer.json();
    let keys: Vec<&String> = body.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["id", "object", "created", "model", "choices", "usage", "system_fingerprint"]);
    assert!(body["id"].as_str().unwrap().starts_with("chatcmpl-"));
    assert_eq!((body["object"].as_str(), body["model"].as_str()), (Some("chat.completion"), Some("rslora")));
    assert!(body["system_fingerprint"].as_str().unwrap().starts_with("fp_"));
    let choice = &body["choices"][0];
    assert_eq!(choice["message"]["role"], "assistant");
    assert!(!choice["message"]["content"].as_str().unwrap().is_empty());
    assert_eq!((&choice["message"]["refusal"], &choice["logprobs"]), (&Value::Null, &Value::Null));
    assert!(choice.as_object().unwrap().contains_key("logprobs"), "null, but there");
    assert_eq!(choice["finish_reason"], "length");
    let usage = &body["usage"];
    assert_eq!(usage["completion_tokens"], 8);
    let [prompt, total] = ["prompt_tokens", "total_tokens"].map(|name| usage[name].as_u64().unwrap());
    assert_eq!(total, prompt + 8);
    assert!(answer.header("x-tunegate-version").unwrap().contains("adapter="));
    assert!(answer.header("x-request-id").unwrap().starts_with("req-"));
    assert!(answer.header("openai-processing-ms").unwrap().parse::<u64>().is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_says_the_same_as_the_whole_answer() {
    let server = TestServer::start().await;
    let whole = server.chat("rslora", "Tell me of rain", json!({})).await.content();
    let more = json!({"stream": true, "stream_options": {"include_usage": true}});
    let stream = server.stream(CHAT, &chat_body("rslora", "Tell me of rain", more)).await;
    assert_eq!(stream.head.header("cache-control"), Some("no-cache"));
    assert_eq!(stream.head.header("x-accel-buffering"), Some("no"));
    let events = stream.all().await;
    let (done, chunks) = events.split_last().unwrap();
    assert_eq!(done, "[DONE]");
    let chunks: Vec<Value> = chunks.iter().map(|chunk| serde_json::from_str(chunk).unwrap()).collect();
    for chunk in &chunks {
        for name in ["id", "object", "created", "model", "system_fingerprint"] {
            assert_eq!(chunk[name], chunks[0][name]);
        }
        assert_eq!(chunk["object"], "chat.completion.chunk");
    }
    assert_eq!(chunks[0]["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
    let (usage, chunks) = chunks.split_last().unwrap();
    assert_eq!((&usage["choices"], &usage["usage"]["completion_tokens"]), (&json!([]), &json!(8)));
    assert!(chunks.iter().all(|chunk| chunk.as_object().unwrap()["usage"].is_null()));
    let (finish, chunks) = chunks.split_last().unwrap();
    assert_eq!(finish["choices"][0], json!({"index": 0, "delta": {}, "logprobs": null, "finish_reason": "length"}));
    let text: String = chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(text, whole);
    assert!(chunks.iter().all(|chunk| chunk["choices"][0]["finish_reason"].is_null()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn base_and_adapters_answer_at_the_same_time_as_they_do_alone() {
    let server = TestServer::start().await;
    let names = [BASE, "plain-qv", "rslora", "all7"];
    let mut alone = Vec::new();
    for name in names {
        alone.push(server.chat(name, "one, two,", json!({"max_tokens": 16})).await.content());
    }
    let beside = names.iter().map(|name| server.chat(name, "one, two,", json!({"max_tokens": 16})));
    let beside: Vec<String> = futures_util::future::join_all(beside).await.iter().map(|a| a.content()).collect();
    assert_eq!(alone, beside);
    for (index, one) in alone.iter().enumerate() {
        assert!(!alone[..index].contains(one), "{names:?} answer {alone:?}");
    }
}
