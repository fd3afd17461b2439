//! Faults planted in real traffic are found; flags are listed, judged, and their rules' worth is shown.

use std::collections::HashSet;

use futures_util::{StreamExt, stream};
use serde_json::{Value, json};
use tunegate::{config::FlagRules, stats, terms::Digest};

use super::{all_flags, looked};
use crate::support::{
    BASE,
    server::{CHAT, TestServer, chat_body},
    wire::{Answer, Request},
};

/// A server with the rules of a text.
async fn flagged(rules: &str) -> TestServer {
    let rules = rules.to_owned();
    TestServer::with(move |config, folder| {
        let path = folder.join("rules.toml");
        std::fs::write(&path, rules).unwrap();
        config.flag_rules = FlagRules::File(path);
    })
    .await
}

const CUT: &str = "[[rule]]\nname = 'cut'\nkind = 'truncated'\n";

/// Ids of the answers to many requests, asked some at a time.
async fn ask_all(server: &TestServer, bodies: Vec<Value>) -> Vec<String> {
    stream::iter(bodies)
        .map(|body| async move {
            let answer = server.post(CHAT, &body).await;
            assert_eq!(answer.status, 200, "{}", answer.text());
            answer.json()["id"].as_str().unwrap().to_owned()
        })
        .buffered(8)
        .collect()
        .await
}

/// The token of a text that is one token.
async fn token(server: &TestServer, text: &str) -> u64 {
    let answer = server.post("/tokenize", &json!({"model": BASE, "prompt": text, "add_special_tokens": false})).await;
    answer.json()["tokens"].as_array().unwrap().last().unwrap().as_u64().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn faults_planted_in_traffic_are_found_and_clean_answers_are_left_alone() {
    let rules = "
        [[rule]]\nname = 'cut'\nkind = 'truncated'
        [[rule]]\nname = 'empty'\nkind = 'empty'
        [[rule]]\nname = 'loop'\nkind = 'loop'
        [[rule]]\nname = 'schema'\nkind = 'schema'\nschema = '{\"type\": \"integer\", \"minimum\": 0}'\nwhere = {metadata = {form = 'json'}}
        [[rule]]\nname = 'digits'\nkind = 'regex'\npattern = '^[0-9]+$'\nmust_match = true\nwhere = {metadata = {form = 'json'}}
    ";
    let server = flagged(rules).await;
    looked(&server.flags, server.gateway.journal()).await;
    let digit = token(&server, "7").await.to_string();
    let word = token(&server, "a").await.to_string();
    let ask = |at: usize, more: Value| {
        let mut body = chat_body("rslora", &format!("question number {at}"), json!({"seed": at, "temperature": 1.0}));
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    const EACH: usize = 40;
    let many = |more: &dyn Fn(usize) -> Value| (0..EACH).map(|at| ask(at, more(at))).collect::<Vec<_>>();
    let stop_at = ["e", "a", "t", "o", "i", "n", "s", "r", " ", "l", "d", "u"];
    // Ended by a stop string, wherever it came; forced digits end by a token of their own.
    let ended = ask_all(&server, many(&|_| json!({"max_tokens": 200, "stop": stop_at}))).await;
    let cut = ask_all(&server, many(&|at| json!({"max_tokens": 3 + at % 9}))).await;
    let empty = ask_all(&server, many(&|_| json!({"max_tokens": 8, "logit_bias": {&digit: 100}, "stop": ["7"]}))).await;
    let looping = ask_all(
        &server,
        many(&|at| json!({"max_tokens": 40 + at, "logit_bias": {&word: 100}, "frequency_penalty": 0})),
    )
    .await;
    let json_form = json!({"form": "json"});
    let number = ask_all(
        &server,
        many(&|at| json!({"max_tokens": 2 + at % 5, "logit_bias": {&digit: 100}, "metadata": json_form})),
    )
    .await;
    let wrong = ask_all(&server, many(&|at| json!({"max_tokens": 6 + at % 5, "metadata": json_form}))).await;
    looked(&server.flags, server.gateway.journal()).await;

    let flags = all_flags(server.gateway.journal()).await;
    let journal = server.gateway.journal();
    let (mut really_ended, mut without_words) = (HashSet::new(), HashSet::new());
    for id in &ended {
        let completion = journal.get(id).await.unwrap().unwrap();
        if completion.choices[0].ending.as_str() == "stop" {
            really_ended.insert(id.clone());
            // Its first word was the stop string: that is as empty as what was planted.
            if completion.choices[0].text.as_deref().is_some_and(|text| text.trim().is_empty()) {
                without_words.insert(id.clone());
            }
        }
    }
    let of = |lists: &[&Vec<String>]| lists.iter().flat_map(|list| list.iter().cloned()).collect::<HashSet<_>>();
    let mut length = of(&[&cut, &looping, &number, &wrong]);
    length.extend(ended.iter().filter(|id| !really_ended.contains(*id)).cloned());
    for (rule, planted) in [
        ("cut", length),
        ("empty", of(&[&empty]).union(&without_words).cloned().collect()),
        ("loop", of(&[&looping])),
        ("schema", of(&[&wrong])),
        ("digits", of(&[&wrong])),
    ] {
        let found: HashSet<String> =
            flags.iter().filter(|flag| flag.rule == rule).map(|flag| flag.completion.clone()).collect();
        let right = found.intersection(&planted).count() as f64;
        let (recall, precision) = (right / planted.len() as f64, right / found.len().max(1) as f64);
        assert!(planted.len() >= EACH && recall >= 0.95, "{rule}: recall {recall} of {}", planted.len());
        // What a random model says may happen to end without a word, or to go round.
        assert!(precision >= 0.9, "{rule}: precision {precision} of {}", found.len());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn low_confidence_is_above_chance_on_traffic_that_is_less_sure_and_within_its_budget_on_the_rest() {
    let rules = "[[rule]]\nname = 'unsure'\nkind = 'low_confidence'\nbudget = 0.05\nat_least = 100\nreference = 100\n";
    let server = flagged(rules).await;
    looked(&server.flags, server.gateway.journal()).await;
    let ask = |at: usize, temperature: f64| {
        let content = format!("question number {}", at % 7);
        let max_tokens = 6 + at % 12;
        chat_body("rslora", &content, json!({"seed": at, "temperature": temperature, "max_tokens": max_tokens}))
    };
    let sure = ask_all(&server, (0..300).map(|at| ask(at, 0.4)).collect()).await;
    let unsure = ask_all(&server, (0..60).map(|at| ask(1000 + at, 1.8)).collect()).await;
    looked(&server.flags, server.gateway.journal()).await;
    let flags = all_flags(server.gateway.journal()).await;
    let flagged: HashSet<&str> = flags.iter().map(|flag| flag.completion.as_str()).collect();
    let count = |ids: &[String]| ids.iter().filter(|id| flagged.contains(id.as_str())).count() as u64;
    // The first 100 are the reference.
    let (clean, planted) = (count(&sure[100..]), count(&unsure));
    let (low, _) = stats::wilson(clean, 200, 0.01).unwrap();
    assert!(low <= 0.05, "{clean} of 200 clean answers are above the budget");
    let (low, high) = stats::newcombe((clean, 200), (planted, 60), 0.05).unwrap();
    assert!(low > 0.0, "{planted} of 60 unsure answers, {clean} of 200 clean ones: [{low}, {high}]");
}

/// Three keys whose secrets are their names.
async fn keyed(rules: &str) -> TestServer {
    let rules = rules.to_owned();
    let key = |name: &str, more: &str| {
        format!("[[key]]\nname = '{name}'\nhash = '{}'\n{more}\n", Digest::of(name.as_bytes()))
    };
    let keys = [key("shop", ""), key("eve", "role = 'reviewer'"), key("root", "role = 'admin'")].concat();
    TestServer::with(move |config, folder| {
        std::fs::write(folder.join("keys.toml"), keys).unwrap();
        std::fs::write(folder.join("rules.toml"), rules).unwrap();
        config.server.keys_file = Some(folder.join("keys.toml"));
        config.flag_rules = FlagRules::File(folder.join("rules.toml"));
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reviewer_lists_shows_and_resolves_flags_and_the_rule_s_precision_follows() {
    let server = keyed(CUT).await;
    looked(&server.flags, server.gateway.journal()).await;
    let get = async |path: &str| server.send(Request::get(path).key("eve")).await;
    let mut ids = Vec::new();
    for at in 0..5 {
        let body = chat_body("rslora", &format!("rain {at}"), json!({}));
        let answer = server.send(Request::post(CHAT, &body).key("shop")).await.json();
        ids.push(answer["id"].as_str().unwrap().to_owned());
    }
    looked(&server.flags, server.gateway.journal()).await;
    let page = get("/v1/flags?limit=2").await.json();
    let data = page["data"].as_array().unwrap();
    assert_eq!((data.len(), &page["has_more"]), (2, &json!(true)));
    assert_eq!((&data[0]["completion_id"], &data[0]["rule"]), (&json!(ids[4]), &json!("cut")), "the latest first");
    assert!(data[0]["precision"]["share"].is_null(), "no verdict yet: {}", data[0]);
    let mut walked: Vec<Value> = data.clone();
    while walked.len() < 5 {
        let after = walked.last().unwrap()["id"].as_str().unwrap();
        let page = get(&format!("/v1/flags?limit=2&after={after}")).await.json();
        walked.extend(page["data"].as_array().unwrap().clone());
    }
    let listed: HashSet<&str> = walked.iter().map(|flag| flag["completion_id"].as_str().unwrap()).collect();
    assert_eq!((listed.len(), walked.len()), (5, 5));

    let path = |at: usize| format!("/v1/flags/{}", walked[at]["id"].as_str().unwrap());
    let whole = get(&path(0)).await.json();
    assert_eq!(whole["question"][0]["messages"][0]["content"], "rain 4");
    assert!(whole["answer"].is_string() && whole["reason"] == "cut off by its limit of 8 tokens", "{whole}");
    let resolve = async |at: usize, body: Value| server.send(Request::post(&path(at), &body).key("eve")).await;
    let confirmed = resolve(0, json!({"verdict": "confirmed", "note": "half a sentence"})).await.json();
    assert_eq!((&confirmed["state"], &confirmed["resolved"]["by"]), (&json!("confirmed"), &json!("eve")));
    resolve(1, json!({"verdict": "confirmed"})).await;
    let dismissed = resolve(2, json!({"verdict": "dismissed"})).await.json();
    let share = dismissed["precision"]["share"].as_f64().unwrap();
    assert!((share - 2.0 / 3.0).abs() < 1e-9, "{dismissed}");
    let count =
        async |state: &str| get(&format!("/v1/flags?state={state}")).await.json()["data"].as_array().unwrap().len();
    assert_eq!(
        (count("open").await, count("confirmed").await, count("dismissed").await, count("all").await),
        (2, 2, 1, 5)
    );
    resolve(2, json!({"verdict": "open"})).await;
    let rules = get("/v1/flag-rules").await.json();
    let precision = &rules["data"][0]["precision"];
    assert_eq!(
        (&precision["confirmed"], &precision["dismissed"], &rules["data"][0]["flags"]),
        (&json!(2), &json!(0), &json!(5))
    );
    let by_rule = get("/v1/flags?rule=cut&adapter=rslora&state=open").await.json();
    assert_eq!(by_rule["data"].as_array().unwrap().len(), 3);
    assert_eq!(get(&format!("/v1/flags?completion_id={}", ids[0])).await.json()["data"][0]["choice_index"], 0);
    for (body, code) in [
        (json!({}), "missing_required_parameter"),
        (json!({"verdict": "maybe"}), "invalid_value"),
        (json!({"verdict": "open", "why": "x"}), "unknown_parameter"),
    ] {
        assert_eq!(resolve(0, body.clone()).await.error().1, code, "{body}");
    }
    assert_eq!(get("/v1/flags/flag-999").await.error(), (404, "flag_not_found".to_owned(), Some("id".to_owned())));
    for bad in ["state=new", "limit=0", "after=x", "odd=1", "order=up"] {
        assert_eq!(get(&format!("/v1/flags?{bad}")).await.status, 400, "{bad}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flags_are_for_reviewers_and_their_rules_for_admins() {
    let server = keyed(CUT).await;
    let role = |answer: &Answer| (answer.status, answer.error().1);
    let send = async |key: &str, request: Request| server.send(request.key(key)).await;
    let tried = || Request::post("/v1/flag-rules/try", &json!({"rules": CUT}));
    let applied = || Request::post("/v1/flag-rules/apply", &json!({"last": 5}));
    let refused = (403, "role_not_allowed".to_owned());
    for request in [
        Request::get("/v1/flags"),
        Request::get("/v1/flags/flag-1"),
        Request::get("/v1/flag-rules"),
        Request::post("/v1/flags/flag-1", &json!({"verdict": "open"})),
        tried(),
        applied(),
    ] {
        assert_eq!(role(&send("shop", request.clone()).await), refused, "{request:?}");
    }
    assert_eq!(send("eve", Request::get("/v1/flags")).await.status, 200);
    for request in [tried(), applied()] {
        assert_eq!(role(&send("eve", request).await), refused);
    }
    let looked_at = send("root", tried()).await;
    assert_eq!((looked_at.status, &looked_at.json()["rules"][0]["name"]), (200, &json!("cut")));
    assert_eq!(send("root", applied()).await.status, 200);
    let file = json!({"rules": "[[rule]]\nname = 'x'\nkind = 'block_list'\nfile = '/etc/passwd'"});
    let refused = send("root", Request::post("/v1/flag-rules/try", &file)).await;
    assert_eq!(refused.error(), (400, "flag_rules_malformed".to_owned(), Some("rules".to_owned())));
    assert!(refused.text().contains("files cannot be named here"), "{}", refused.text());
    let unknown = Request::post("/v1/flag-rules/apply", &json!({"rules": ["ct"]}));
    assert_eq!(send("root", unknown).await.error().1, "flag_rule_not_found");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flag_outlives_the_words_that_it_is_about() {
    let server = flagged(CUT).await;
    looked(&server.flags, server.gateway.journal()).await;
    let answer = server.chat(BASE, "rainword", json!({"store": true})).await.json();
    looked(&server.flags, server.gateway.journal()).await;
    let id = answer["id"].as_str().unwrap();
    let flag = server.get("/v1/flags").await.json()["data"][0]["id"].as_str().unwrap().to_owned();
    let path = format!("/v1/flags/{flag}");
    server.post(&path, &json!({"verdict": "confirmed", "note": "noteword"})).await;
    server.send(Request::new("DELETE", &format!("{CHAT}/{id}"))).await;
    let whole = server.get(&path).await.json();
    assert_eq!(
        (&whole["state"], &whole["answer"], &whole["question"]),
        (&json!("confirmed"), &Value::Null, &Value::Null)
    );
    assert!(whole["erased"].is_u64() && whole["resolved"]["note"].is_null(), "{whole}");
    assert!(!whole.to_string().contains("word"), "{whole}");
}
