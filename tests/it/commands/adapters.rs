//! `tunegate adapter` against a running server, over kill and restart.

use std::{fs, path::Path};

use serde_json::{Value, json};

use super::{end, said, started_with, tunegate};
use crate::support::golden;

/// A data directory, a folder of adapters to load from, and none that are served at the start.
struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        fs::create_dir(folder.path().join("none")).expect("made");
        let place = Self { folder };
        place.put("triage", "rslora");
        place
    }

    /// Writes one of the tiny model's adapters to be loaded as `name`.
    fn put(&self, name: &str, adapter: &str) {
        let to = self.folder.path().join("root").join(name);
        fs::create_dir_all(&to).expect("made");
        for entry in fs::read_dir(golden("adapters/llama").join(adapter)).expect("listed") {
            let entry = entry.expect("an entry");
            fs::copy(entry.path(), to.join(entry.file_name())).expect("copied");
        }
    }

    fn flags(&self) -> [String; 4] {
        let path = |name: &str| self.folder.path().join(name).display().to_string();
        ["--adapter-dir".to_owned(), path("none"), "--adapter-root".to_owned(), path("root")]
    }

    fn data(&self) -> std::path::PathBuf {
        self.folder.path().join("data")
    }

    fn start(&self, more: &[&str]) -> (std::process::Child, String) {
        let flags = self.flags();
        let flags: Vec<&str> = flags.iter().map(String::as_str).chain(more.iter().copied()).collect();
        started_with(&self.data(), &flags)
    }

    /// Exit code and words of `tunegate adapter …` beside the server.
    fn adapter(&self, words: &[&str]) -> (Option<i32>, String) {
        let mut command = tunegate();
        command.arg("adapter").args(words).arg("--data-dir").arg(self.data());
        said(&command.output().expect("it runs"))
    }

    fn json(&self, words: &[&str]) -> Value {
        let (code, text) = self.adapter(&[words, &["--json"]].concat());
        assert_eq!(code, Some(0), "{text}");
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }
}

fn answer(url: &str, model: &str) -> (u16, String) {
    let agent = ureq::Agent::config_builder().http_status_as_error(false).build().new_agent();
    let body = json!({"model": model, "prompt": "the quick brown fox", "max_tokens": 12, "temperature": 0});
    let mut answer = agent.post(format!("{url}/v1/completions")).send_json(body).expect("an answer");
    let status = answer.status().as_u16();
    let body: Value = answer.body_mut().read_json().expect("JSON");
    (status, body["choices"][0]["text"].as_str().unwrap_or_default().to_owned())
}

#[test]
fn a_name_is_loaded_replaced_killed_restarted_and_rolled_back_by_commands() {
    let place = Place::new();
    let (mut server, url) = place.start(&[]);
    assert!(place.adapter(&["list"]).1.starts_with("no adapters"));
    let (code, text) = place.adapter(&["load", "triage", "triage", "--why", "first"]);
    assert!(code == Some(0) && text.starts_with("triage is "), "{text}");
    let one = answer(&url, "triage").1;
    place.put("triage", "all7");
    let (code, text) = place.adapter(&["load", "triage", "triage"]);
    assert!(code == Some(1) && text.contains("has already been loaded"), "{text}");
    let was = place.json(&["history", "triage"])["version"].as_str().expect("a version")[..12].to_owned();
    let (code, text) = place.adapter(&["load", "triage", "triage", "--replace", "--expect", "000000"]);
    assert!(code == Some(1) && text.contains(&format!("points at {was}")), "{text}");
    let loaded = place.json(&["load", "triage", "triage", "--replace", "--expect", &was, "--pin"]);
    assert_eq!((&loaded["pinned"], &loaded["rank"]), (&json!(true), &json!(4)), "{loaded}");
    let two = answer(&url, "triage").1;
    assert_ne!(one, two);

    fs::remove_dir_all(place.folder.path().join("root/triage")).expect("removed");
    server.kill().expect("kill -9");
    server.wait().expect("gone");
    let (server, url) = place.start(&[]);
    assert_eq!(answer(&url, "triage").1, two);
    let (code, text) = place.adapter(&["list"]);
    assert!(code == Some(0) && text.contains("triage  ") && text.contains("api") && text.contains("pinned"), "{text}");

    let (code, text) = place.adapter(&["rollback", "triage", "--why", "worse"]);
    assert!(code == Some(0) && text.contains(&format!("triage is {was}; it was ")), "{text}");
    assert_eq!(answer(&url, "triage").1, one);
    let (code, text) = place.adapter(&["unload", "triage"]);
    assert!(code == Some(0) && text.contains(&format!("is unloaded; it was {was}")), "{text}");
    assert_eq!(answer(&url, "triage").0, 404);
    let (_, text) = place.adapter(&["unload", "triage"]);
    assert!(text.contains("cannot be found"), "{text}");
    let (code, text) = place.adapter(&["history", "triage"]);
    assert_eq!(code, Some(0), "{text}");
    for part in ["unloaded", "WHEN", "operator", "rollback", "replace", "first", "worse", "UTC"] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    assert_eq!(end(server), Some(0));
    let (server, url) = place.start(&[]);
    assert_eq!(answer(&url, "triage").0, 404, "what was unloaded stays so");
    assert_eq!(end(server), Some(0));
}

#[test]
fn a_server_elsewhere_is_asked_with_its_key() {
    let place = Place::new();
    let (server, url) = place.start(&["--admin-key", "root"]);
    let ask =
        |words: &[&str]| said(&tunegate().arg("adapter").args(words).args(["--url", &url]).output().expect("it runs"));
    let (code, text) = ask(&["list"]);
    assert!(code == Some(1) && text.contains("--admin-key"), "{text}");
    let (code, text) = ask(&["load", "triage", "triage", "--key", "root"]);
    assert_eq!(code, Some(0), "{text}");
    let output = tunegate().args(["adapter", "list", "--url", &url]).env("TUNEGATE_ADMIN_KEY", "root").output();
    let (code, text) = said(&output.expect("it runs"));
    assert!(code == Some(0) && text.contains("triage"), "{text}");
    let (code, text) = ask(&["check", "triage", "nowhere", "--key", "root"]);
    assert!(code == Some(1) && text.contains("there is no adapter folder 'nowhere'"), "{text}");
    let (code, text) = ask(&["check", "triage", "--key", "root"]);
    assert!(code == Some(0) && text.contains("model.layers.1.self_attn.v_proj"), "{text}");
    assert_eq!(end(server), Some(0));
}

#[test]
fn without_a_server_a_check_needs_the_model_and_the_rest_says_so() {
    let place = Place::new();
    let (code, text) = place.adapter(&["unload", "triage"]);
    assert!(code == Some(1) && text.contains("no server holds") && text.contains("--url"), "{text}");
    let folder = place.folder.path().join("root/triage").display().to_string();
    let model = golden("models/llama").display().to_string();
    let (code, text) = place.adapter(&["check", &folder, "--model", &model]);
    assert!(code == Some(0) && text.contains("v_proj"), "{text}");
    let (code, text) = place.adapter(&["load", "triage", &folder, "--model", &model]);
    assert!(code == Some(1) && text.contains("only list and check"), "{text}");
    assert!(!Path::new(&place.data()).exists());
}
