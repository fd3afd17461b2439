//! `tunegate flags` and `tunegate report` against a running server.

use std::{fs, path::Path, process::Command};

use serde_json::{Value, json};

use super::{end, said, started_with, tunegate};

fn post(url: &str, path: &str, body: &Value) -> Value {
    let agent = ureq::Agent::config_builder().http_status_as_error(false).build().new_agent();
    let mut answer = agent.post(format!("{url}{path}")).send_json(body).expect("an answer");
    answer.body_mut().read_json().expect("JSON")
}

/// Exit code and words of a command beside the server of a data directory.
fn beside(data: &Path, words: &[&str]) -> (Option<i32>, String) {
    let mut command: Command = tunegate();
    command.args(words).arg("--data-dir").arg(data);
    said(&command.output().expect("it runs"))
}

/// The flags that are there once as many as `count` are; a follower needs a moment.
fn flags(data: &Path, count: usize) -> Vec<Value> {
    loop {
        let (code, text) = beside(data, &["flags", "list", "--json"]);
        assert_eq!(code, Some(0), "{text}");
        let list: Value = serde_json::from_str(&text).expect("JSON");
        let data = list["data"].as_array().expect("a list").clone();
        if data.len() >= count {
            return data;
        }
    }
}

#[test]
fn flags_are_listed_shown_resolved_and_tried_by_commands() {
    let folder = tempfile::tempdir().expect("a folder");
    let data = folder.path().join("data");
    let rules = folder.path().join("rules.toml");
    fs::write(&rules, "[[rule]]\nname = 'cut'\nkind = 'truncated'\n").expect("written");
    let (server, url) = started_with(&data, &["--flag-rules", rules.to_str().expect("UTF-8")]);
    let ask = json!({"model": "llama", "prompt": "the quick brown fox", "max_tokens": 5, "ignore_eos": true});
    let answers: Vec<Value> = (0..3).map(|_| post(&url, "/v1/completions", &ask)).collect();
    let found = flags(&data, 3);
    let flag = found[0]["id"].as_str().expect("an id").to_owned();
    assert_eq!(found[0]["completion_id"], answers[2]["id"], "the latest first");

    let (code, text) = beside(&data, &["flags", "list", "--limit", "2"]);
    assert!(
        code == Some(0) && text.contains("cut off by its limit of 5 tokens") && text.contains("more: --after"),
        "{text}"
    );
    let said = json!({"completion_id": answers[2]["id"], "thumbs": "down", "comment": "\u{1b}[31mred"});
    post(&url, "/v1/feedback", &said);
    let (code, text) = beside(&data, &["flags", "show", &flag]);
    assert!(code == Some(0) && text.contains("the quick brown fox") && text.contains("no verdicts yet"), "{text}");
    assert!(
        text.contains("\\u{1b}[31mred") && !text.contains('\u{1b}'),
        "words of others do not drive a terminal: {text}"
    );
    let second = found[1]["id"].as_str().expect("an id").to_owned();
    let (code, text) =
        beside(&data, &["flags", "resolve", &flag, &second, "--verdict", "confirmed", "--note", "half a sentence"]);
    assert!(code == Some(0) && text.lines().filter(|line| line.contains("confirmed")).count() == 2, "{text}");
    let (code, text) = beside(&data, &["flags", "rules"]);
    assert!(
        code == Some(0) && text.contains("3 flags") && text.contains("1.00") && text.contains("of 2 verdicts"),
        "{text}"
    );
    assert!(text.contains("never a measure of truth"), "{text}");
    let (code, text) = beside(&data, &["flags", "list", "--state", "confirmed", "--rule", "cut"]);
    assert!(code == Some(0) && text.contains(&flag), "{text}");

    fs::write(folder.path().join("words.txt"), "\n# nothing\nzzzzzz\n").expect("written");
    let candidate = folder.path().join("candidate.toml");
    fs::write(&candidate, "[[rule]]\nname = 'words'\nkind = 'block_list'\nfile = 'words.txt'\n").expect("written");
    let candidate = candidate.to_str().expect("UTF-8");
    let (code, text) = beside(&data, &["flags", "try", candidate]);
    assert!(code == Some(0) && text.contains("3 answers of the past") && text.contains("0 of 3"), "{text}");
    let (code, text) = beside(&data, &["flags", "apply", "--rule", "cut", "--last", "3"]);
    assert!(code == Some(0) && text.contains("applying the rules to 3 answers"), "{text}");
    let (code, text) = beside(&data, &["flags", "show", "flag-99"]);
    assert!(code == Some(1) && text.contains("there is no flag 'flag-99'"), "{text}");

    let (code, text) = beside(&data, &["report", "llama"]);
    assert!(code == Some(1) && text.contains("only version base of 'llama' has answers"), "{text}");
    let page = folder.path().join("report.html");
    let (code, text) =
        beside(&data, &["report", "llama", "--versions", "base,base", "--html", page.to_str().expect("UTF-8")]);
    assert!(code == Some(0) && text.contains("llama: not enough") && text.contains("flags/cut"), "{text}");
    assert!(fs::read_to_string(&page).expect("written").starts_with("<!doctype html>"));
    assert_eq!(end(server), Some(0));
    let (code, text) = beside(&data, &["flags", "list"]);
    assert!(code == Some(1) && text.contains("no server holds"), "{text}");
}

#[test]
fn the_rules_that_hold_by_default_are_a_file_to_begin_with() {
    let (code, text) = said(&tunegate().args(["flags", "rules", "--default"]).output().expect("it runs"));
    assert!(code == Some(0) && text.contains("kind = \"low_confidence\""), "{text}");
    let folder = tempfile::tempdir().expect("a folder");
    let rules = folder.path().join("rules.toml");
    fs::write(&rules, text + "[[rule]]\nname = 'odd'\nkind = 'far'\n").expect("written");
    let model = crate::support::golden("models/llama");
    let output = tunegate()
        .arg("serve")
        .arg(&model)
        .args(["--check-config", "--flag-rules"])
        .arg(&rules)
        .output()
        .expect("it runs");
    let (code, text) = said(&output);
    assert!(code == Some(2) && text.contains("rule 'odd': kind 'far' cannot be used"), "{text}");
}

/// Asks and judges until the server is gone; what was acknowledged.
fn ask_and_judge(url: &str, client: usize) -> (Vec<Value>, Vec<Value>) {
    let agent = ureq::Agent::config_builder().http_status_as_error(false).build().new_agent();
    let (mut answered, mut judged) = (Vec::new(), Vec::new());
    for at in 0.. {
        let ask = json!({"model": "llama", "prompt": format!("{client} {at}"), "max_tokens": 3, "ignore_eos": true});
        let sent = agent.post(format!("{url}/v1/completions")).send_json(ask);
        let Ok(answer) = sent.and_then(|mut answer| answer.body_mut().read_json::<Value>()) else { break };
        answered.push(answer["id"].clone());
        let id = format!("{client}-{at}");
        let said = json!({"id": id, "completion_id": answer["id"], "metric_name": "score", "value": at});
        let sent = agent.post(format!("{url}/v1/feedback")).send_json(said);
        let Ok(given) = sent.and_then(|mut given| given.body_mut().read_json::<Value>()) else { break };
        assert_eq!(given["standing"], "joined", "{given}");
        judged.push(given["id"].clone());
    }
    (answered, judged)
}

#[test]
fn what_was_acknowledged_survives_kill_9_and_every_answer_is_flagged_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let data = folder.path().join("data");
    let rules = folder.path().join("rules.toml");
    fs::write(&rules, "[[rule]]\nname = 'cut'\nkind = 'truncated'\n").expect("written");
    let flags = ["--flag-rules", rules.to_str().expect("UTF-8")];
    let (mut answered, mut judged): (Vec<Value>, Vec<Value>) = Default::default();
    for round in 0..4u64 {
        let (mut server, url) = started_with(&data, &flags);
        let acknowledged = std::thread::scope(|scope| {
            let clients: Vec<_> = (0..4)
                .map(|client| {
                    let url = &url;
                    scope.spawn(move || ask_and_judge(url, client + 10 * round as usize))
                })
                .collect();
            // A moment that has nothing to do with what the server does.
            std::thread::park_timeout(std::time::Duration::from_millis(120 + round * 90));
            server.kill().expect("kill -9");
            server.wait().expect("gone");
            clients.into_iter().map(|client| client.join().expect("no panic")).collect::<Vec<_>>()
        });
        for (more_answered, more_judged) in acknowledged {
            answered.extend(more_answered);
            judged.extend(more_judged);
        }
    }
    assert!(answered.len() > 20 && judged.len() > 20, "{} answers, {} judgements", answered.len(), judged.len());
    let (server, url) = started_with(&data, &flags);
    let get = |path: &str| -> Value {
        let agent = ureq::Agent::config_builder().http_status_as_error(false).build().new_agent();
        agent.get(format!("{url}{path}")).call().expect("an answer").body_mut().read_json().expect("JSON")
    };
    let walk = |path: &str| {
        let mut all: Vec<Value> = Vec::new();
        loop {
            let after =
                all.last().map_or_else(String::new, |last| format!("&after={}", last["id"].as_str().expect("an id")));
            let page = get(&format!("{path}limit=100&order=asc{after}"));
            all.extend(page["data"].as_array().expect("a list").clone());
            if page["has_more"] != true {
                return all;
            }
        }
    };
    let kept: Vec<Value> = walk("/v1/feedback?").iter().map(|one| one["id"].clone()).collect();
    for id in &judged {
        assert_eq!(kept.iter().filter(|kept| *kept == id).count(), 1, "{id}");
    }
    // Until the rules have caught up.
    let choices = loop {
        let rules = get("/v1/flag-rules");
        if rules["followed"] == rules["durable"] {
            break rules["durable"].as_u64().expect("a count") as usize;
        }
    };
    let flagged: Vec<Value> = walk("/v1/flags?state=all&").iter().map(|flag| flag["completion_id"].clone()).collect();
    for id in &answered {
        assert_eq!(flagged.iter().filter(|flagged| *flagged == id).count(), 1, "{id}");
    }
    assert!(flagged.len() <= choices, "{} flags on {choices} choices", flagged.len());
    assert_eq!(end(server), Some(0));
}
