//! When answers cannot be recorded, nobody is told that one is finished.

use serde_json::{Value, json};
use tunegate::journal::Health;

use crate::support::{
    BASE,
    server::{CHAT, TestServer, chat_body},
};

/// Makes every write to the record fail, or succeed again.
fn break_record(server: &TestServer, broken: bool) {
    let connection = rusqlite::Connection::open(server.data.join("tunegate.db")).unwrap();
    for table in ["completions", "probe"] {
        let statement = match broken {
            true => {
                format!("CREATE TRIGGER {table}_full BEFORE INSERT ON {table} BEGIN SELECT RAISE(ABORT, 'full'); END")
            }
            false => format!("DROP TRIGGER {table}_full"),
        };
        connection.execute_batch(&statement).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_record_there_is_an_error_and_never_a_finish() {
    let server = TestServer::start().await;
    let mut stream =
        server.stream(CHAT, &chat_body("rslora", "rain", json!({"stream": true, "max_tokens": 200}))).await;
    stream.next().await.expect("the first event");
    break_record(&server, true);
    let events: Vec<Value> = stream.all().await.iter().map(|event| serde_json::from_str(event).unwrap()).collect();
    let (last, before) = events.split_last().unwrap();
    assert_eq!(last["error"]["code"], "record_unavailable", "{last}");
    assert!(before.iter().all(|chunk| chunk["choices"][0]["finish_reason"].is_null()), "no finish was shown");

    let down = (503, "record_unavailable".to_owned(), None);
    assert_eq!(server.get("/health/ready").await.error(), down);
    assert_eq!(server.get("/health").await.status, 200, "the engine is alive");
    let refused = server.chat(BASE, "rain", json!({})).await;
    assert_eq!(refused.error(), down);
    assert!(refused.header("retry-after").is_some(), "it is tried again by itself");
    assert!(!refused.text().contains("full"), "the reason is for the log");

    let mut health = server.gateway.journal().watch_health();
    break_record(&server, false);
    health.wait_for(|health| *health == Health::Up).await.unwrap();
    assert_eq!(server.get("/health/ready").await.status, 200);
    assert_eq!(server.chat(BASE, "rain", json!({})).await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_whole_answer_that_cannot_be_recorded_is_an_error() {
    let server = TestServer::start().await;
    break_record(&server, true);
    let answer = server.chat(BASE, "rain", json!({})).await;
    assert_eq!(answer.error(), (503, "record_unavailable".to_owned(), None));
}
