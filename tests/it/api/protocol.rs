//! HTTP/2 without TLS, and the line in the log.

use std::{
    io,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use serde_json::{Value, json};
use tracing_subscriber::fmt::MakeWriter;

use crate::support::{
    BASE,
    server::{CHAT, TestServer, chat_body, text_body},
    wire::Request,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http2_carries_several_requests_at_once_and_no_more_than_allowed() {
    let server = TestServer::with(|config, _| config.limits.max_streams = 3).await;
    let (mut client, connection) = h2::client::handshake(server.connect().await).await.unwrap();
    let connection = tokio::spawn(connection);
    let mut answers = Vec::new();
    for _ in 0..3 {
        client = client.ready().await.unwrap();
        let request = http::Request::post(format!("http://localhost{CHAT}"))
            .header("content-type", "application/json")
            .body(())
            .unwrap();
        let (answer, mut body) = client.send_request(request, false).unwrap();
        body.send_data(Bytes::from(chat_body(BASE, "rain", json!({})).to_string()), true).unwrap();
        answers.push(answer);
    }
    let mut texts = Vec::new();
    for answer in answers {
        let answer = answer.await.unwrap();
        assert_eq!(answer.status(), 200);
        assert!(answer.headers().contains_key("x-request-id"));
        let mut body = answer.into_body();
        let mut bytes = Vec::new();
        while let Some(data) = body.data().await {
            bytes.extend(data.unwrap());
        }
        let body: Value = serde_json::from_slice(&bytes).unwrap();
        texts.push(body["choices"][0]["message"]["content"].as_str().unwrap().to_owned());
    }
    assert!(texts.iter().all(|text| *text == texts[0] && !text.is_empty()));
    assert_eq!(client.current_max_send_streams(), 3, "the server says how many it takes");
    let foreign = http::Request::get("http://rebound.example/v1/models").body(()).unwrap();
    let (answer, _) = client.ready().await.unwrap().send_request(foreign, true).unwrap();
    assert_eq!(answer.await.unwrap().status(), 403, "an authority is a host as well");
    connection.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_http2_a_stream_that_is_not_taken_is_let_go_alone() {
    let server = TestServer::with(|config, _| config.limits.write_timeout = Duration::from_millis(200)).await;
    let (client, connection) = h2::client::handshake(server.connect().await).await.unwrap();
    let connection = tokio::spawn(connection);
    let post = |body: Value| {
        let client = client.clone();
        async move {
            let request = http::Request::post(format!("http://localhost{CHAT}"))
                .header("content-type", "application/json")
                .body(())
                .unwrap();
            let (answer, mut stream) = client.ready().await.unwrap().send_request(request, false).unwrap();
            stream.send_data(Bytes::from(body.to_string()), true).unwrap();
            answer.await.unwrap()
        }
    };
    // More than a window of 64 KiB, of which nothing is ever given back.
    let more = json!({"stream": true, "max_tokens": 400, "logprobs": true, "top_logprobs": 20});
    let untaken = post(chat_body(BASE, "rain", more)).await;
    server.gateway.journal().watch_durable().wait_for(|cursor| cursor.0 >= 1).await.unwrap();
    let rows = server.gateway.journal().follow(Default::default(), 10).await.unwrap();
    assert_eq!(rows[0].completion.choices[0].ending.as_str(), "client_left");
    assert_eq!(post(chat_body(BASE, "rain", json!({}))).await.status(), 200, "others on this connection go on");
    drop(untaken);
    connection.abort();
}

/// What a subscriber writes.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

/// One thread runs everything here, so that the log of this test is its own.
#[tokio::test(flavor = "current_thread")]
async fn each_request_has_one_line_in_the_log_without_content() {
    let log = Log::default();
    let subscriber = tracing_subscriber::fmt().json().flatten_event(true).with_writer(log.clone()).finish();
    let server = TestServer::with(|config, _| config.server.api_keys = vec!["hush-hush".into()]).await;
    let guard = tracing::subscriber::set_default(subscriber);
    let word = "umbrella";
    let ask = |more: Value| Request::post(CHAT, &chat_body("rslora", word, more)).key("hush-hush");
    server.send(ask(json!({"user": word, "metadata": {word: word}})).header("x-request-id", "one")).await;
    let streamed = ask(json!({"stream": true})).header("x-request-id", "two");
    streamed.stream(server.connect().await).await.all().await;
    server.send(ask(json!({"stop": [word, ""]})).header("x-request-id", "three")).await;
    server.send(ask(json!({"model": word})).header("x-request-id", "four")).await;
    let left = ask(json!({"stream": true, "max_tokens": 400})).header("x-request-id", "five");
    let mut stream = left.stream(server.connect().await).await;
    stream.next().await.unwrap();
    drop(stream);
    server.gateway.idle().await;
    let echo = Request::post("/v1/completions", &text_body(BASE, json!(word), json!({"echo": true})));
    server.send(echo.key("hush-hush").header("x-request-id", "six")).await;
    drop(guard);

    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    for secret in [word, "hush-hush"] {
        assert!(!text.contains(secret), "{text}");
    }
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |id: &str| {
        let own: Vec<&Value> = lines.iter().filter(|line| line["target"] == "request" && line["id"] == id).collect();
        assert_eq!(own.len(), 1, "{id} in {text}");
        own[0].clone()
    };
    let one = of("one");
    assert_eq!((&one["status"], &one["ending"], &one["key"]), (&json!(200), &json!("length"), &json!("key-1")));
    assert_eq!((&one["model"], &one["route"], &one["method"]), (&json!("rslora"), &json!(CHAT), &json!("POST")));
    assert!(one["version"].as_str().unwrap().contains("adapter=") && one["completion_tokens"] == 8);
    assert!(one["first_token_ms"].as_u64().unwrap() <= one["total_ms"].as_u64().unwrap());
    assert_eq!(of("two")["ending"], "length");
    assert_eq!((&of("three")["status"], &of("three")["code"]), (&json!(400), &json!("invalid_value")));
    assert_eq!((&of("four")["status"], &of("four")["code"]), (&json!(404), &json!("model_not_found")));
    assert_eq!(of("five")["ending"], "client_left");
    assert_eq!(of("six")["model"], BASE);
}
