//! Feedback over the API: it cannot miss, is durable when it is acknowledged, and stays within its tenant.

use serde_json::{Value, json};
use tunegate::{
    journal::{FeedbackQuery, Order, Standing},
    store::{SqliteStore, Store},
    terms::{Digest, RecordPolicy},
};

use crate::support::{
    BASE,
    server::{CHAT, TestServer, chat_body},
    wire::{Answer, Request},
};

const FEEDBACK: &str = "/v1/feedback";

async fn give(server: &TestServer, body: Value) -> Answer {
    server.post(FEEDBACK, &body).await
}

/// The id of a fresh answer.
async fn answered(server: &TestServer, more: Value) -> String {
    server.chat(BASE, "rain", more).await.json()["id"].as_str().unwrap().to_owned()
}

/// The count of a series of `tunegate_feedback_total`.
async fn counted(server: &TestServer, standing: &str) -> u64 {
    let metrics = server.get("/metrics").await;
    let line = format!("tunegate_feedback_total{{standing=\"{standing}\"}} ");
    metrics.text().lines().find_map(|found| found.strip_prefix(&line)?.parse().ok()).unwrap_or(0)
}

fn everything() -> FeedbackQuery {
    FeedbackQuery {
        key: None,
        target: None,
        name: None,
        source: None,
        standing: None,
        retracted: None,
        after: None,
        limit: 100,
        order: Order::OldestFirst,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_feedback_is_on_disk_and_stands_beside_its_answer() {
    let server = TestServer::start().await;
    let id = answered(&server, json!({"store": true, "n": 2})).await;
    let body = json!({
        "completion_id": id, "choice_index": 1, "thumbs": "down", "comment": "dull", "correction": "It rained.",
        "source": "reviewer", "author": "ada", "tags": {"page": "7"},
    });
    let given = give(&server, body).await.json();
    assert_eq!(given["standing"], "joined");
    assert_eq!(given["feedback_id"], given["id"]);
    // Another connection sees what is committed, and nothing else.
    let store = SqliteStore::open(&server.data.join("tunegate.db")).unwrap();
    let kept = store.feedback(&everything()).unwrap().feedback.pop().unwrap();
    assert_eq!((kept.feedback.id.as_str(), kept.standing), (given["id"].as_str().unwrap(), Standing::Joined));
    assert_eq!(kept.feedback.correction.as_deref(), Some("It rained."));

    let one = server.get(&format!("{FEEDBACK}/{}", kept.feedback.id)).await.json();
    assert_eq!((&one["value"], &one["choice_index"], &one["author"]), (&json!(false), &json!(1), &json!("ada")));
    assert_eq!((&one["answer"]["model"], &one["answer"]["adapter"]), (&json!(BASE), &Value::Null));
    let stored = server.get(&format!("{CHAT}/{id}")).await.json();
    assert_eq!(stored["feedback"], json!([one]));
    assert_eq!(server.get(CHAT).await.json()["data"][0]["feedback"], json!([one]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn feedback_for_an_answer_in_flight_is_taken_at_once_and_joined_when_it_ends() {
    let server = TestServer::start().await;
    let body = chat_body("rslora", "rain", json!({"stream": true, "max_tokens": 400}));
    let mut stream = server.stream(CHAT, &body).await;
    let first: Value = serde_json::from_str(&stream.next().await.unwrap()).unwrap();
    let given = give(&server, json!({"inference_id": first["id"], "metric_name": "good", "value": true})).await.json();
    assert_eq!(given["standing"], "in_flight");
    assert_eq!((counted(&server, "in_flight").await, counted(&server, "aside").await), (1, 0));
    stream.all().await;
    let one = server.get(&format!("{FEEDBACK}/{}", given["id"].as_str().unwrap())).await.json();
    assert_eq!((&one["standing"], &one["answer"]["adapter"]), (&json!("joined"), &json!("rslora")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn feedback_on_an_answer_whose_client_left_is_joined() {
    let server = TestServer::start().await;
    let body = chat_body(BASE, "rain", json!({"stream": true, "max_tokens": 400}));
    let mut stream = server.stream(CHAT, &body).await;
    let first: Value = serde_json::from_str(&stream.next().await.unwrap()).unwrap();
    drop(stream);
    server.gateway.idle().await;
    let given = give(&server, json!({"completion_id": first["id"], "thumbs": true})).await.json();
    assert_eq!(given["standing"], "joined", "its row was on its way before the judgement came");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_id_that_nobody_knows_is_kept_aside_and_counted() {
    let server = TestServer::start().await;
    let id = answered(&server, json!({})).await;
    for body in [
        json!({"completion_id": "chatcmpl-made-up", "thumbs": "up"}),
        json!({"completion_id": id, "choice_index": 5, "thumbs": "up"}),
        json!({"user": "nobody", "thumbs": "up"}),
    ] {
        let given = give(&server, body.clone()).await;
        assert_eq!((given.status, &given.json()["standing"]), (200, &json!("aside")), "{body}");
    }
    give(&server, json!({"completion_id": id, "thumbs": "up"})).await;
    assert_eq!((counted(&server, "aside").await, counted(&server, "joined").await), (3, 1));
    let aside = server.get(&format!("{FEEDBACK}?standing=aside&order=desc&limit=2")).await.json();
    let users: Vec<&Value> = aside["data"].as_array().unwrap().iter().map(|one| &one["user"]).collect();
    assert_eq!((users, &aside["has_more"]), (vec![&json!("nobody"), &Value::Null], &json!(true)));
    let last = aside["last_id"].as_str().unwrap();
    let rest = server.get(&format!("{FEEDBACK}?standing=aside&order=desc&limit=2&after={last}")).await.json();
    assert_eq!(rest["data"][0]["completion_id"], "chatcmpl-made-up");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn feedback_on_an_end_user_is_joined_by_that_user_s_answers() {
    let server = TestServer::start().await;
    answered(&server, json!({"user": "customer-9"})).await;
    let given = give(&server, json!({"user": "customer-9", "metric_name": "patience", "value": 0.5})).await.json();
    assert_eq!((&given["standing"], &given["value"]), (&json!("joined"), &json!(0.5)));
    let found = server.get(&format!("{FEEDBACK}?user=customer-9")).await.json();
    assert_eq!(found["data"].as_array().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_id_with_the_same_words_is_the_same_and_with_others_is_refused() {
    let server = TestServer::start().await;
    let id = answered(&server, json!({})).await;
    let body = json!({"id": "click-1", "completion_id": id, "thumbs": "up"});
    let first = give(&server, body.clone()).await.json();
    assert_eq!(give(&server, body).await.json(), first);
    assert_eq!((counted(&server, "joined").await, counted(&server, "repeated").await), (1, 1));
    let other = give(&server, json!({"id": "click-1", "completion_id": id, "thumbs": "down"})).await;
    assert_eq!(other.error(), (409, "feedback_conflict".to_owned(), Some("id".to_owned())));
    assert_eq!(server.get(&format!("{FEEDBACK}/click-1")).await.json()["value"], true, "the first one stands");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_an_array_all_are_taken_or_none() {
    let server = TestServer::start().await;
    let id = answered(&server, json!({})).await;
    let on = |name: &str, value: Value| json!({"id": name, "completion_id": id, "metric_name": "m", "value": value});
    let count = async || server.get(FEEDBACK).await.json()["data"].as_array().unwrap().len();
    let bad = give(&server, json!([on("a", json!(1)), on("b", json!([]))])).await;
    assert_eq!(bad.error(), (400, "invalid_type".to_owned(), Some("[1].value".to_owned())));
    assert_eq!(count().await, 0);
    let both = give(&server, json!([on("a", json!(1)), on("b", json!("two"))])).await.json();
    assert_eq!(both["data"].as_array().unwrap().len(), 2);
    let clash = give(&server, json!([on("c", json!(3)), on("b", json!("three"))])).await;
    assert_eq!(clash.error(), (409, "feedback_conflict".to_owned(), Some("[1].id".to_owned())));
    let twice = give(&server, json!([on("d", json!(4)), on("d", json!(4))])).await;
    assert_eq!(twice.error(), (400, "invalid_value".to_owned(), Some("[1].id".to_owned())));
    assert_eq!(count().await, 2);
    let again = give(&server, json!([on("c", json!(3)), on("b", json!("two"))])).await.json();
    assert_eq!(again["data"][1], both["data"][1]);
    assert_eq!(give(&server, json!([])).await.error().0, 400);
    assert_eq!(give(&server, json!("up")).await.error().1, "invalid_type");
    let many: Vec<Value> = (0..1001).map(|at| on(&at.to_string(), json!(1))).collect();
    assert_eq!(give(&server, json!(many)).await.error().0, 400);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dry_run_takes_nothing() {
    let server = TestServer::start().await;
    let body = json!({"episode_id": "e", "metric_name": "m", "value": 1, "dryrun": true});
    let looked = give(&server, body).await;
    assert_eq!((looked.status, &looked.json()["feedback_id"]), (200, &Value::Null));
    assert_eq!(server.get(FEEDBACK).await.json()["data"], json!([]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retracted_feedback_stays_and_says_so() {
    let server = TestServer::start().await;
    let id = answered(&server, json!({})).await;
    let given = give(&server, json!({"completion_id": id, "thumbs": "up"})).await.json();
    let path = format!("{FEEDBACK}/{}", given["id"].as_str().unwrap());
    assert_eq!(server.send(Request::new("DELETE", &path)).await.json()["retracted"], true);
    let first = server.get(&path).await.json()["retracted"].clone();
    assert!(first.is_u64(), "{first}");
    assert_eq!(server.send(Request::new("DELETE", &path)).await.status, 200);
    assert_eq!(server.get(&path).await.json()["retracted"], first, "the first time stands");
    assert_eq!(server.get(&format!("{FEEDBACK}?retracted=false")).await.json()["data"], json!([]));
    let missing = server.send(Request::new("DELETE", &format!("{FEEDBACK}/made-up"))).await;
    assert_eq!(missing.error(), (404, "feedback_not_found".to_owned(), Some("id".to_owned())));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_judges_and_sees_its_own_and_a_reviewer_judges_all() {
    let key = |name: &str, more: &str| {
        format!("[[key]]\nname = '{name}'\nhash = '{}'\n{more}\n", Digest::of(name.as_bytes()))
    };
    let keys = [key("shop", ""), key("bot", ""), key("eve", "role = 'reviewer'")].concat();
    let server = TestServer::with_keys(&keys, |_| {}).await;
    let ask = Request::post(CHAT, &chat_body(BASE, "rain", json!({"store": true})));
    let id = server.send(ask.key("shop")).await.json()["id"].as_str().unwrap().to_owned();
    let give = async |key: &str, word: &str| {
        let body = json!({"id": "one", "completion_id": id, "metric_name": "word", "value": word});
        server.send(Request::post(FEEDBACK, &body).key(key)).await
    };
    let own = give("shop", "mine").await.json();
    assert_eq!((&own["standing"], &own["author"]), (&json!("joined"), &json!("shop")));
    let foreign = give("bot", "theirs").await.json();
    assert_eq!(foreign["standing"], "aside", "to others this answer is not there");
    assert_ne!(own["id"], foreign["id"], "ids of different keys do not meet");
    let reviewed = give("eve", "hers").await.json();
    assert_eq!(reviewed["standing"], "joined");

    let get = async |path: &str, key: &str| server.send(Request::get(path).key(key)).await;
    let words = async |key: &str| {
        let list = get(FEEDBACK, key).await.json();
        let data = list["data"].as_array().unwrap().clone();
        data.iter().map(|one| one["value"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!((words("shop").await, words("bot").await), (vec!["mine".to_owned()], vec!["theirs".to_owned()]));
    assert_eq!(words("eve").await, ["mine", "theirs", "hers"]);
    let path = format!("{FEEDBACK}/{}", own["id"].as_str().unwrap());
    assert_eq!((get(&path, "bot").await.status, get(&path, "eve").await.status), (404, 200));
    assert_eq!(server.send(Request::new("DELETE", &path).key("bot")).await.status, 404);
    let stored = get(&format!("{CHAT}/{id}"), "shop").await.json();
    assert_eq!(stored["feedback"].as_array().unwrap().len(), 1, "what a reviewer says is not for the shop");
    let found = server.gateway.journal().feedback_on(vec![id.clone()]).await.unwrap();
    let who: Vec<_> = found.iter().map(|kept| kept.feedback.key.as_deref().unwrap()).collect();
    assert_eq!(who, ["shop", "eve"], "what a stranger said is on no answer");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn feedback_for_another_key_s_answer_in_flight_is_kept_aside() {
    let key = |name: &str| format!("[[key]]\nname = '{name}'\nhash = '{}'\n", Digest::of(name.as_bytes()));
    let server = TestServer::with_keys(&[key("shop"), key("bot")].concat(), |_| {}).await;
    let body = chat_body(BASE, "rain", json!({"stream": true, "max_tokens": 400}));
    let mut stream = Request::post(CHAT, &body).key("shop").stream(server.connect().await).await;
    let first: Value = serde_json::from_str(&stream.next().await.unwrap()).unwrap();
    for (key, standing) in [("bot", "aside"), ("shop", "in_flight")] {
        let body = json!({"completion_id": first["id"], "thumbs": "up"});
        let given = server.send(Request::post(FEEDBACK, &body).key(key)).await.json();
        assert_eq!(given["standing"], standing, "{key}");
    }
    stream.all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_error_reaches_whoever_gave_feedback() {
    let server = TestServer::start().await;
    let id = answered(&server, json!({})).await;
    let other = rusqlite::Connection::open(server.data.join("tunegate.db")).unwrap();
    other
        .execute_batch(
            "CREATE TRIGGER full BEFORE INSERT ON feedback BEGIN SELECT RAISE(ABORT, 'full'); END;
             CREATE TRIGGER no_probe BEFORE INSERT ON probe BEGIN SELECT RAISE(ABORT, 'full'); END;",
        )
        .unwrap();
    let body = json!({"id": "click-1", "completion_id": id, "thumbs": "up"});
    let refused = give(&server, body.clone()).await;
    assert_eq!(refused.error(), (503, "record_unavailable".to_owned(), None));
    assert!(!refused.text().contains("full"), "the reason is for the log");
    assert_eq!(server.get(FEEDBACK).await.json()["data"], json!([]));
    other.execute_batch("DROP TRIGGER full; DROP TRIGGER no_probe;").unwrap();
    assert_eq!(give(&server, body).await.json()["standing"], "joined");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_keeps_no_words_refuses_them_instead_of_losing_them() {
    let metadata = TestServer::with(|config, _| config.record.policy = RecordPolicy::Metadata).await;
    let none = TestServer::with(|config, _| config.record.policy = RecordPolicy::None).await;
    for (server, body, param) in [
        (&metadata, json!({"completion_id": "c", "thumbs": "up", "comment": "nice"}), Some("comment")),
        (&metadata, json!({"completion_id": "c", "correction": "nice"}), Some("correction")),
        (&metadata, json!({"user": "u", "thumbs": "up"}), None),
        (&none, json!({"user": "u", "thumbs": "up"}), Some("user")),
        (&none, json!({"completion_id": "c", "thumbs": "up", "tags": {"a": "b"}}), Some("tags")),
        (&none, json!({"completion_id": "c", "thumbs": "up"}), None),
    ] {
        let answer = give(server, body.clone()).await;
        match param {
            Some(param) => {
                assert_eq!(answer.error(), (403, "content_not_recorded".to_owned(), Some(param.to_owned())), "{body}")
            }
            None => assert_eq!(answer.status, 200, "{body}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_said_of_an_answer_is_erased_with_it() {
    let server = TestServer::start().await;
    let id = answered(&server, json!({"store": true})).await;
    let body = json!({
        "completion_id": id, "thumbs": "down", "comment": "commentword", "correction": "correctionword",
        "author": "authorword", "tags": {"tagname": "tagword"},
    });
    let given = give(&server, body).await.json();
    assert_eq!(server.send(Request::new("DELETE", &format!("{CHAT}/{id}"))).await.status, 200);
    let one = server.get(&format!("{FEEDBACK}/{}", given["id"].as_str().unwrap())).await.json();
    assert_eq!((&one["value"], &one["comment"], &one["tags"]), (&json!(false), &Value::Null, &json!({})));
    assert!(one["erased"].is_u64());
    for entry in std::fs::read_dir(&server.data).unwrap() {
        let path = entry.unwrap().path();
        let Ok(bytes) = std::fs::read(&path) else { continue };
        for word in ["commentword", "correctionword", "authorword", "tagword"] {
            let there = bytes.windows(word.len()).any(|window| window == word.as_bytes());
            assert!(!there, "{word} in {}", path.display());
        }
    }
}
