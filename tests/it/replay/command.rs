//! `tunegate replay`, beside a running server and without one.

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, ChildStdout, Command, Output, Stdio},
};

use serde_json::{Value, json};
use tunegate::{
    journal::Completion,
    store::{Cursor, Durable, SqliteStore, Store, Write},
};

use crate::support::golden;

fn tunegate(arguments: &[&str], data_dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tunegate"));
    command.args(arguments).arg("--data-dir").arg(data_dir);
    command
}

/// A server of the tiny model, killed when it is dropped.
struct Server {
    child: Child,
    url: String,
    _stdout: BufReader<ChildStdout>,
}

impl Server {
    fn start(data_dir: &Path) -> Self {
        let mut child = tunegate(&["serve", "--port", "0", "--log-level", "error"], data_dir)
            .arg("--model")
            .arg(golden("models/llama"))
            .arg("--adapter-dir")
            .arg(golden("adapters/llama"))
            .stdout(Stdio::piped())
            .spawn()
            .expect("started");
        let mut stdout = BufReader::new(child.stdout.take().expect("piped"));
        let mut line = String::new();
        let url = loop {
            line.clear();
            assert!(stdout.read_line(&mut line).expect("readable") > 0, "the server ended before it was ready");
            if let Some((_, url)) = line.trim_end().split_once(" on http://") {
                break format!("http://{url}");
            }
        };
        Self { child, url, _stdout: stdout }
    }

    /// The id of a finished answer of two choices.
    fn answer(&self, model: &str) -> String {
        let body = json!({
            "model": model, "n": 2, "max_tokens": 12, "temperature": 1.0, "ignore_eos": true,
            "messages": [{"role": "user", "content": "of rain"}],
        });
        let answer = ureq::post(format!("{}/v1/chat/completions", self.url)).send_json(body).expect("answered");
        let answer: Value = answer.into_body().read_json().expect("JSON");
        answer["id"].as_str().expect("an id").to_owned()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.child.kill().expect("killed");
        self.child.wait().expect("ended");
    }
}

fn replay(id: &str, arguments: &[&str], data_dir: &Path) -> Output {
    tunegate(&["replay", id], data_dir).args(arguments).output().expect("run")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_replay_goes_through_the_server_that_holds_the_directory_and_without_one_loads_the_model_itself() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = Server::start(folder.path());
    let id = server.answer("rslora");
    // Without a model: only the server can do it.
    let through = replay(&id, &["--json"], folder.path());
    assert_eq!(through.status.code(), Some(0), "{}", stderr(&through));
    let compared: Value = serde_json::from_slice(&through.stdout).expect("JSON");
    assert_eq!((&compared["id"], compared["choices"].as_array().map(Vec::len)), (&json!(id), Some(2)));
    drop(server);

    let unnamed = replay(&id, &[], folder.path());
    assert_eq!(unnamed.status.code(), Some(2), "no server, no model");
    let (model, adapters) = (golden("models/llama"), golden("adapters/llama"));
    let here = [model.to_str().expect("UTF-8"), "--adapter-dir", adapters.to_str().expect("UTF-8")];
    let alone = replay(&id, &here, folder.path());
    assert_eq!(alone.status.code(), Some(0), "{}", stderr(&alone));
    let shown = String::from_utf8(alone.stdout).expect("UTF-8");
    assert!(shown.contains("choice 0: identical, 12 tokens") && shown.contains("choice 1: identical"), "{shown}");

    let other = altered(folder.path(), &id);
    let different = replay(&other, &here, folder.path());
    assert_eq!(different.status.code(), Some(1), "{}", stderr(&different));
    let shown = String::from_utf8(different.stdout).expect("UTF-8");
    assert!(shown.contains("choice 1: different from token 4 on") && shown.contains("choice 0: identical"), "{shown}");

    let unknown = replay("chatcmpl-nobody", &here, folder.path());
    assert_eq!(unknown.status.code(), Some(2));
    assert!(stderr(&unknown).contains("no completion 'chatcmpl-nobody'"), "{}", stderr(&unknown));
}

/// Puts a copy of `id` on record whose second choice has another fifth token.
fn altered(data_dir: &Path, id: &str) -> String {
    let store = SqliteStore::open(&data_dir.join("tunegate.db")).expect("opened");
    let mut copy: Completion = store.completion(id).expect("readable").expect("on record");
    copy.id = format!("{id}-altered");
    copy.choices[1].scores[4].token += 1;
    store.commit(&[&Write::Choices(Box::new(copy.clone()))], Durable::Now).expect("written");
    copy.id
}

#[test]
fn a_folder_without_a_record_is_left_as_it_is() {
    let folder = tempfile::tempdir().expect("a folder");
    let nowhere = folder.path().join("data");
    let refused = replay("chatcmpl-1", &[golden("models/llama").to_str().expect("UTF-8")], &nowhere);
    assert_eq!(refused.status.code(), Some(2));
    assert!(stderr(&refused).contains("no record"), "{}", stderr(&refused));
    assert!(!nowhere.exists());
}

#[test]
fn every_answer_that_a_client_saw_finish_is_on_record_when_the_server_is_killed() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut seen = Vec::new();
    for round in 0..3 {
        let server = Server::start(folder.path());
        for _ in 0..4 {
            seen.push(server.answer(["rslora", "plain-qv", "llama"][round]));
        }
        drop(server);
        let store = SqliteStore::open(&folder.path().join("tunegate.db")).expect("opened");
        for id in &seen {
            let row = store.completion(id).expect("readable").expect("on record");
            assert_eq!(row.choices.iter().map(|choice| choice.scores.len()).collect::<Vec<_>>(), [12, 12]);
        }
        assert_eq!(store.follow(Cursor::default(), 100).expect("readable").len(), 2 * seen.len());
    }
}
