//! Health, draining, failures, and clients that leave.

use std::time::Duration;

use serde_json::{Value, json};
use tunegate::journal::Journal;

use crate::support::{
    BASE,
    server::{CHAT, TestServer, chat_body},
    wire::Request,
};

/// Waits until `rows` choices are on record and gives their endings, in order.
async fn endings(journal: &Journal, rows: u64) -> Vec<String> {
    journal.watch_durable().wait_for(|cursor| cursor.0 >= rows).await.unwrap();
    let rows = journal.follow(Default::default(), 100).await.unwrap();
    rows.iter().map(|row| row.completion.choices[0].ending.as_str().to_owned()).collect()
}

fn long_stream(more: Value) -> Value {
    let mut body = chat_body("rslora", "rain", json!({"stream": true, "max_tokens": 450}));
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_leaves_a_stream_frees_the_engine_and_is_on_record() {
    let server = TestServer::start().await;
    let mut stream = server.stream(CHAT, &long_stream(json!({"n": 4}))).await;
    for _ in 0..6 {
        stream.next().await.expect("an event");
    }
    drop(stream);
    assert_eq!(endings(server.gateway.journal(), 4).await, ["client_left"; 4]);
    server.gateway.idle().await;
    assert_eq!(server.chat(BASE, "rain", json!({})).await.status, 200);
    let load = server.gateway.engine().load();
    assert_eq!((load.running, load.waiting), (0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_leaves_before_its_whole_answer_is_on_record() {
    let server = TestServer::start().await;
    let mut body = long_stream(json!({}));
    body["stream"] = json!(false);
    let mut stream = crate::support::wire::Reader::new(server.connect().await);
    stream.write(&Request::post(CHAT, &body).bytes()).await;
    // It runs: the prompt is counted when the answer begins.
    while server.get("/metrics").await.text().contains("tunegate_running_sequences 0") {}
    drop(stream);
    assert_eq!(endings(server.gateway.journal(), 1).await, ["client_left"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn draining_turns_readiness_red_first_and_lets_answers_finish() {
    let mut server = TestServer::start().await;
    assert_eq!(server.get("/health/ready").await.status, 200);
    let mut stream = server.stream(CHAT, &long_stream(json!({}))).await;
    stream.next().await.expect("the first event");
    server.gateway.drain();
    let draining = (503, "draining".to_owned(), None);
    assert_eq!(server.get("/health/ready").await.error(), draining);
    assert_eq!(server.get("/health").await.status, 200, "draining is not dead");
    let refused = server.chat(BASE, "rain", json!({})).await;
    assert_eq!(refused.error(), draining);
    assert!(refused.header("retry-after").is_some());
    assert_eq!(refused.header("connection"), Some("close"));
    let events = stream.all().await;
    assert_eq!(events.last().map(String::as_str), Some("[DONE]"), "what ran before may finish");
    server.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_cut_off_ends_with_an_error_event() {
    let server = TestServer::start().await;
    let mut stream = server.stream(CHAT, &long_stream(json!({}))).await;
    stream.next().await.expect("the first event");
    server.gateway.cut_off();
    let events = stream.all().await;
    let last: Value = serde_json::from_str(events.last().unwrap()).unwrap();
    assert_eq!((&last["error"]["code"], &last["error"]["type"]), (&json!("draining"), &json!("server_error")));
    assert_eq!(last["error"].as_object().unwrap().len(), 4);
    assert_eq!(endings(server.gateway.journal(), 1).await, ["cut_off"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_takes_too_long_is_cut_off() {
    let server = TestServer::with(|config, _| config.limits.answer_timeout = Duration::from_millis(30)).await;
    let mut body = long_stream(json!({"n": 16}));
    body["stream"] = json!(false);
    assert_eq!(server.post(CHAT, &body).await.error(), (504, "answer_timeout".to_owned(), None));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_follows_the_engine() {
    // No step may take any time at all, so a running engine is a stalled one.
    let server = TestServer::with(|config, _| config.engine.stall = Duration::ZERO).await;
    assert_eq!(server.get("/health").await.status, 200, "idle is alive");
    let mut stream = server.stream(CHAT, &long_stream(json!({}))).await;
    stream.next().await.expect("the first event");
    let stalled = (503, "engine_stalled".to_owned(), None);
    assert_eq!(server.get("/health").await.error(), stalled);
    assert_eq!(server.get("/health/ready").await.error(), stalled);
    stream.all().await;
    server.gateway.engine().stop();
    while !server.gateway.engine().load().stopped {
        tokio::task::yield_now().await;
    }
    let stopped = (503, "engine_stopped".to_owned(), None);
    assert_eq!(server.get("/health").await.error(), stopped);
    assert_eq!(server.chat(BASE, "rain", json!({})).await.error(), stopped);
    assert_eq!(server.get("/metrics").await.status, 200, "metrics need no engine");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_engine_that_stops_ends_running_streams_with_an_error() {
    let server = TestServer::start().await;
    let mut stream = server.stream(CHAT, &long_stream(json!({}))).await;
    stream.next().await.expect("the first event");
    server.gateway.engine().stop();
    let events = stream.all().await;
    let last: Value = serde_json::from_str(events.last().unwrap()).unwrap();
    assert_eq!(last["error"]["code"], "engine_stopped");
    assert_eq!(endings(server.gateway.journal(), 1).await, ["failed"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_count_by_adapter_and_version() {
    let server = TestServer::start().await;
    server.chat("rslora", "rain", json!({})).await;
    server.chat(BASE, "rain", json!({"temperature": 9})).await;
    let answer = server.get("/metrics").await;
    assert_eq!(answer.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    let text = answer.text();
    let entry = server.gateway.adapters().list().into_iter().find(|entry| entry.name.as_str() == "rslora").unwrap();
    let version = entry.version.short();
    for line in [
        format!(r#"tunegate_requests_total{{adapter="rslora",outcome="length",version="{version}"}} 1"#),
        format!(r#"tunegate_generated_tokens_total{{adapter="rslora",version="{version}"}} 8"#),
        format!(r#"tunegate_time_to_first_token_seconds_count{{adapter="rslora",version="{version}"}} 1"#),
        format!(r#"tunegate_inter_token_seconds_count{{adapter="rslora",version="{version}"}} 7"#),
        r#"tunegate_refused_total{code="invalid_value"} 1"#.to_owned(),
        format!(r#"tunegate_http_responses_total{{route="{CHAT}",status="200"}} 1"#),
        r#"vllm:num_requests_waiting{model_name="tiny",engine="0"} 0"#.to_owned(),
        r#"tunegate_adapters{tier="memory"} 1"#.to_owned(),
        r#"tunegate_adapter_lookups_total{tier="disk"} 1"#.to_owned(),
        "tunegate_adapter_evictions_total 0".to_owned(),
        "tunegate_adapter_leases 0".to_owned(),
        r#"tunegate_adapter_load_stage_seconds_count{stage="pack"} 1"#.to_owned(),
        "vllm:num_gpu_loaded_lora_adapters 1".to_owned(),
    ] {
        assert!(text.lines().any(|known| known == line), "{line} is not in\n{text}");
    }
    let lora: Vec<&str> = text.lines().filter(|line| line.starts_with("vllm:lora_requests_info{")).collect();
    assert!(lora.len() == 1 && lora[0].contains(r#"running_lora_adapters="rslora""#), "{lora:?}");
    assert!(text.contains("block_size=\"16\""), "{text}");
}
