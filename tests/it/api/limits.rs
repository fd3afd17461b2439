//! Limits on what a client may send, and on how long it may take.

use std::time::Duration;

use serde_json::json;
use tokio::io::AsyncWriteExt;

use crate::support::{
    BASE,
    server::{CHAT, COMPLETIONS, TestServer, chat_body},
    wire::{Answer, Reader, Request},
};

/// A server that waits for nobody longer than needed to see that it does wait.
async fn impatient() -> TestServer {
    TestServer::with(|config, _| {
        config.limits.header_timeout = Duration::from_millis(100);
        config.limits.body_timeout = Duration::from_millis(100);
        config.limits.idle_timeout = Duration::from_millis(200);
        config.limits.write_timeout = Duration::from_millis(200);
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_body_is_refused_announced_or_not() {
    let server = TestServer::with(|config, _| config.limits.max_body_bytes = 2000).await;
    let large = chat_body(BASE, &"rain".repeat(1000), json!({}));
    let too_large = (413, "body_too_large".to_owned(), None);
    assert_eq!(server.post(CHAT, &large).await.error(), too_large);
    // Announced only: refused before a byte of it is sent.
    let mut stream = server.connect().await;
    let head = format!("POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n");
    stream.write_all(format!("{head}content-length: 4000000000\r\n\r\n").as_bytes()).await.unwrap();
    assert_eq!(Answer::read(&mut Reader::new(stream)).await.error(), too_large);
    // Not announced: refused when it has become too large.
    let mut stream = server.connect().await;
    stream.write_all(format!("{head}transfer-encoding: chunked\r\n\r\n").as_bytes()).await.unwrap();
    let chunk = format!("3e8\r\n{}\r\n", " ".repeat(1000));
    for _ in 0..3 {
        stream.write_all(chunk.as_bytes()).await.unwrap();
    }
    assert_eq!(Answer::read(&mut Reader::new(stream)).await.error(), too_large);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_headers_are_refused() {
    let server = TestServer::with(|config, _| config.limits.max_header_bytes = 8 << 10).await;
    let refused = (431, "headers_too_large".to_owned(), None);
    let long = Request::get("/v1/models").header("x-long", &"a".repeat(9000));
    assert_eq!(server.send(long).await.error(), refused);
    let many = (0..120).fold(Request::get("/v1/models"), |request, n| request.header(&format!("x-{n}"), "1"));
    assert_eq!(server.send(many).await.error(), refused);
    // Far beyond the limit nobody reads on to find words for it.
    let endless = Request::get("/v1/models").header("x-long", &"a".repeat(100_000));
    assert_eq!(server.send(endless).await.status, 431);
    assert_eq!(server.get("/v1/models").await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_sends_nothing_or_half_a_request_is_let_go() {
    let server = impatient().await;
    let silent = server.connect().await;
    assert!(Reader::new(silent).is_closed().await, "nothing was sent");
    // As far as HTTP/2 connections and HTTP/1 requests both can begin.
    for begin in ["P", "PRI * HTTP/2.0\r\n", "POST /v1/chat/completions HTTP/1.1\r\nhost: loc"] {
        let mut slow = server.connect().await;
        slow.write_all(begin.as_bytes()).await.unwrap();
        let last = Reader::new(slow).until_closed().await;
        assert!(last.is_empty() || last.starts_with(b"HTTP/1.1 408"), "{begin:?}: {}", String::from_utf8_lossy(&last));
    }
    let mut half = server.connect().await;
    let head = "host: localhost\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{";
    half.write_all(format!("POST {CHAT} HTTP/1.1\r\n{head}").as_bytes()).await.unwrap();
    let refused = Answer::read(&mut Reader::new(half)).await.error();
    assert_eq!(refused, (408, "body_timeout".to_owned(), None));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_is_kept_for_a_while_and_then_closed() {
    let server = impatient().await;
    let mut stream = server.connect().await;
    stream.write_all(&Request::get("/health").bytes()).await.unwrap();
    let mut reader = Reader::new(stream);
    assert_eq!(Answer::read(&mut reader).await.status, 200);
    reader.write(&Request::get("/health").bytes()).await;
    assert_eq!(Answer::read(&mut reader).await.status, 200, "a second request on the same connection");
    assert!(reader.is_closed().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quiet_connection_outlives_the_time_for_a_head() {
    let server = TestServer::with(|config, _| config.limits.header_timeout = Duration::from_millis(50)).await;
    let mut kept = Reader::new(server.connect().await);
    kept.write(&Request::get("/health").bytes()).await;
    assert_eq!(Answer::read(&mut kept).await.status, 200);
    // When a head that is never finished has been given up, the quiet one has been quiet for longer.
    let mut slow = Reader::new(server.connect().await);
    slow.write(b"GET /health HTTP/1.1\r\nhost: loc").await;
    slow.until_closed().await;
    kept.write(&Request::get("/health").bytes()).await;
    assert_eq!(Answer::read(&mut kept).await.status, 200);
    kept.write(b"GET /health HTTP/1.1\r\nhost: loc").await;
    kept.until_closed().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_http2_connection_is_closed() {
    let server = impatient().await;
    let mut stream = server.connect().await;
    // The preface and empty settings, then nothing.
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    Reader::new(stream).until_closed().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_takes_nothing_of_its_answer_is_let_go_and_on_record() {
    let server = impatient().await;
    let mut durable = server.gateway.journal().watch_durable();
    // Answers with many alternatives are larger than what sockets and buffers between hold.
    let more = json!({
        "stream": true, "n": 16, "max_tokens": 400, "logprobs": true, "top_logprobs": 20,
    });
    let stream = server.connect().await;
    let mut reader = Reader::new(stream);
    reader.write(&Request::post(CHAT, &chat_body(BASE, "rain", more)).bytes()).await;
    // Sixteen choices, sixteen rows.
    durable.wait_for(|cursor| cursor.0 >= 16).await.unwrap();
    let endings: Vec<String> = server
        .gateway
        .journal()
        .follow(Default::default(), 16)
        .await
        .unwrap()
        .iter()
        .map(|followed| followed.completion.choices[0].ending.as_str().to_owned())
        .collect();
    assert!(endings.contains(&"client_left".to_owned()), "{endings:?}");
    drop(reader);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_beyond_the_limit_are_told_so() {
    let server = TestServer::with(|config, _| config.limits.max_connections = 2).await;
    let mut held = Vec::new();
    for _ in 0..2 {
        let mut reader = Reader::new(server.connect().await);
        reader.write(&Request::get("/health").bytes()).await;
        assert_eq!(Answer::read(&mut reader).await.status, 200);
        held.push(reader);
    }
    let refused = server.get("/health").await;
    assert_eq!(refused.error(), (503, "overloaded".to_owned(), None));
    assert_eq!(refused.header("retry-after"), Some("1"));
    assert_eq!(server.send_unix(Request::get("/health")).await.status, 200, "the operator has seats of their own");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_queue_says_when_to_try_again() {
    let server = TestServer::with(|config, _| {
        config.engine.max_num_seqs = 1;
        config.engine.max_queued = 1;
    })
    .await;
    let refused = server.chat(BASE, "rain", json!({"n": 8, "max_tokens": 64})).await;
    assert_eq!(refused.error(), (503, "overloaded".to_owned(), None));
    assert!(refused.header("retry-after").unwrap().parse::<u64>().unwrap() >= 1);
    assert!(refused.header("retry-after-ms").unwrap().parse::<u64>().is_ok());
    // The refused request's choices leave before the engine's next step; until then there is no room.
    let mut after = server.chat(BASE, "rain", json!({})).await;
    while after.status == 503 {
        after = server.chat(BASE, "rain", json!({})).await;
    }
    assert_eq!(after.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_trusts_this_machine_answers_to_no_other_name() {
    let server = TestServer::start().await;
    let host = |host: &str| Request::get("/v1/models").without("host").header("host", host);
    for own in ["localhost:8000", "127.0.0.1", "[::1]:80"] {
        assert_eq!(server.send(host(own)).await.status, 200, "{own}");
    }
    let refused = (403, "host_not_allowed".to_owned(), Some("host".to_owned()));
    assert_eq!(server.send(host("rebound.example")).await.error(), refused);
    let page = Request::post(CHAT, &chat_body(BASE, "rain", json!({}))).header("origin", "https://page.example");
    assert_eq!(server.send(page).await.error(), (403, "origin_not_allowed".to_owned(), Some("origin".to_owned())));
    assert_eq!(server.send_unix(host("anything")).await.status, 200, "the operator's socket has no names");
    let keyed = TestServer::with(|config, _| config.server.api_keys = vec!["secret".into()]).await;
    assert_eq!(keyed.send(host("proxy.example").key("secret")).await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_says_how_long_it_waits_for_a_cold_adapter() {
    let server = TestServer::start().await;
    let body = json!({"model": "rslora", "prompt": "a", "max_tokens": 1});
    let within = |ms: &str| Request::post(COMPLETIONS, &body).header("x-tunegate-adapter-wait-ms", ms);
    for bad in ["soon", "-1", "1.5", "3600001"] {
        let answer = server.send(within(bad)).await;
        assert_eq!(
            (answer.status, answer.json()["error"]["param"].as_str()),
            (400, Some("x-tunegate-adapter-wait-ms"))
        );
    }
    let answer = server.send(within("0")).await;
    assert_eq!(answer.status, 503, "{}", answer.text());
    assert!(
        answer.header("retry-after").is_some() && answer.text().contains("it is being loaded"),
        "{}",
        answer.text()
    );
    // Whoever waits has the load that the other has started.
    assert_eq!(server.send(within("60000")).await.status, 200);
    assert_eq!(server.send(within("0")).await.status, 200, "what is in memory is there at once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_says_where_the_weights_of_its_adapter_were() {
    let server = TestServer::start().await;
    for (model, tier) in [("rslora", Some("disk")), ("rslora", Some("memory")), (BASE, None), ("all7", Some("disk"))] {
        for stream in [true, false] {
            let body = json!({"model": model, "prompt": "a", "max_tokens": 1, "stream": stream});
            let answer = server.send(Request::post(COMPLETIONS, &body)).await;
            // The first of the two brings them.
            let expected = if stream { tier } else { tier.map(|_| "memory") };
            assert_eq!((answer.status, answer.header("x-tunegate-adapter-tier")), (200, expected), "{model}, {stream}");
        }
    }
}
