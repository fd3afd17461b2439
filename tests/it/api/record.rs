//! When answers cannot be recorded, nobody is told that one is finished.

use serde_json::{Value, json};
use tunegate::{
    config::OnFault,
    journal::Health,
    terms::{ConversationBy, Origin, SplitBy},
};

use crate::support::{
    BASE,
    server::{CHAT, TestServer, chat_body},
    wire::Request,
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_serving_goes_first_answers_are_given_without_a_record_and_written_when_it_is_back() {
    let server = TestServer::with(|config, _| config.record.on_fault = OnFault::Serve).await;
    break_record(&server, true);
    let answer = server.chat(BASE, "rain", json!({})).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(server.get("/health/ready").await.status, 200);
    let metrics = server.get("/metrics").await.text().to_owned();
    for line in ["tunegate_record_up 0", "tunegate_record_held 1", "tunegate_record_lost_total 0"] {
        assert!(metrics.lines().any(|found| found == line), "{line}");
    }
    let journal = server.gateway.journal();
    let mut health = journal.watch_health();
    break_record(&server, false);
    health.wait_for(|health| *health == Health::Up).await.unwrap();
    let id = answer.json()["id"].as_str().unwrap().to_owned();
    assert_eq!(journal.get(&id).await.unwrap().unwrap().choices[0].text, Some(answer.content()));
    assert!(server.get("/metrics").await.text().contains("\ntunegate_record_up 1\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_request_says_of_its_conversation_is_on_record_and_the_next_turn_is_recognised() {
    let server = TestServer::start().await;
    let journal = server.gateway.journal();
    let ask = async |messages: &Value, more: &Value| {
        let mut body = json!({"model": "rslora", "messages": messages, "max_tokens": 8});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let answer = server.post(CHAT, &body).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        let row = journal.get(answer.json()["id"].as_str().unwrap()).await.unwrap().unwrap();
        let placement = row.placement.clone().unwrap();
        assert_eq!(answer.header("x-tunegate-conversation"), Some(placement.conversation.as_str()));
        (answer.content(), row, placement)
    };
    let turn = |role: &str, content: &str| json!({"role": role, "content": content});
    let opening = [turn("system", "Be brief."), turn("user", "rain")];
    let (said, first, placed) = ask(&json!(opening), &json!({"safety_identifier": "s-1", "user": "ann"})).await;
    assert_eq!((placed.conversation.as_str(), placed.conversation_by), (first.id.as_str(), ConversationBy::Own));
    assert_eq!((placed.assignment.by, placed.assignment.audit_share), (SplitBy::User, 0.05));
    assert_eq!((first.safety_identifier.as_deref(), first.origin), (Some("s-1"), Origin::Served));
    assert!(first.build.unwrap().starts_with(env!("CARGO_PKG_VERSION")));
    assert!(first.system.is_some() && first.timing.read_us > 0);
    let sketch = first.sketch.unwrap();
    assert!(sketch.scale > 0.0 && sketch.steps.iter().any(|step| step.abs() == 127));

    let longer = [&opening[..], &[turn("assistant", &said), turn("user", "more")]].concat();
    let (_, second, placed) = ask(&json!(longer), &json!({})).await;
    assert_eq!((placed.conversation.as_str(), placed.conversation_by), (first.id.as_str(), ConversationBy::Found));
    assert_eq!(Some(placed.assignment), first.placement.map(|first| first.assignment));
    assert_eq!(second.system, first.system, "the same instructions");

    let plain = ask(&json!([turn("user", "rain")]), &json!({"metadata": {"thread_id": "t-1"}})).await;
    assert_eq!((plain.2.conversation.as_str(), plain.2.conversation_by), ("t-1", ConversationBy::Given));
    assert_eq!((plain.1.system, plain.2.assignment.by), (None, SplitBy::Conversation));

    let request = Request::post(CHAT, &chat_body(BASE, "rain", json!({}))).header("x-tunegate-conversation", "h-1");
    assert_eq!(server.send(request).await.header("x-tunegate-conversation"), Some("h-1"));
    let request = Request::post(CHAT, &chat_body(BASE, "rain", json!({}))).header("x-tunegate-conversation", " ");
    let (status, code, param) = server.send(request).await.error();
    assert_eq!((status, code.as_str(), param.as_deref()), (400, "invalid_value", Some("x-tunegate-conversation")));
}
