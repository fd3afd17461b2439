//! `tunegate journal`, `backup` and `restore`: beside a running server, and without one.

use std::{
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use serde_json::{Value, json};

use super::{end, said, started, tunegate};
use crate::support::golden;

fn run(words: &[&str], data: &Path) -> (Option<i32>, String) {
    said(&tunegate().args(words).arg("--data-dir").arg(data).output().expect("it runs"))
}

fn journal(words: &[&str], data: &Path) -> (Option<i32>, String) {
    run(&[&["journal"], words].concat(), data)
}

fn lines(words: &[&str], data: &Path) -> Vec<Value> {
    let (code, text) = journal(&[words, &["--json"]].concat(), data);
    assert_eq!(code, Some(0), "{text}");
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

fn ask(url: &str, words: &str) -> Result<Value, ureq::Error> {
    let body =
        json!({"model": "llama", "messages": [{"role": "user", "content": words}], "max_tokens": 4, "user": "ann"});
    ureq::post(format!("{url}/v1/chat/completions")).send_json(body)?.body_mut().read_json()
}

#[test]
fn the_record_is_read_filled_and_cleaned_with_and_without_a_server() {
    let folder = tempfile::tempdir().expect("a folder");
    let data = folder.path().join("data");
    let (code, text) = journal(&["search"], &data);
    assert!(code == Some(1) && text.contains("no record"), "{text}");
    let (server, url) = started(&data);
    let id = ask(&url, "rain").expect("answered")["id"].as_str().expect("an id").to_owned();
    let log = folder.path().join("old.jsonl");
    fs::write(&log, "{\"q\":\"old?\",\"a\":\"yes\"}\n\n{\"q\":\"older?\"}\nno json\n").expect("written");
    let log = log.display().to_string();
    let import = ["import", &log, "--map", "prompt=q", "--map", "answer=a"];
    let (code, text) = journal(&import, &data);
    assert_eq!(code, Some(1), "{text}");
    assert!(
        text.starts_with("1 imported, 0 on record already, 2 not understood\nline 3: there is no answer"),
        "{text}"
    );
    assert!(text.contains("line 4: it is no JSON"), "{text}");

    let both = |beside: &str| {
        let found = lines(&["search", "--origin", "served"], &data);
        assert_eq!(found.iter().map(|row| row["id"].as_str()).collect::<Vec<_>>(), [Some(id.as_str())], "{beside}");
        let (_, text) = journal(&["search", "--contains", "old?", "--since", "1d"], &data);
        assert!(text.contains("\"old?\" → \"yes\""), "{beside}: {text}");
        let (_, text) = journal(&["show", &id], &data);
        assert!(
            text.contains("user               \"rain\"") && text.contains("mean log-probability"),
            "{beside}: {text}"
        );
        let (code, text) = journal(&["show", "nothing"], &data);
        assert!(code == Some(1) && text.contains("no completion 'nothing'"), "{beside}: {text}");
        let out = folder.path().join(format!("{beside}.csv"));
        let (code, text) = journal(&["export", "--out", &out.display().to_string()], &data);
        assert_eq!(code, Some(0), "{text}");
        let table = fs::read_to_string(out).expect("written");
        assert_eq!(table.lines().count(), 3, "{table}");
        let (code, text) = journal(&["search", "--split", "odd"], &data);
        assert!(code == Some(1) && text.contains("train, held_out or audit"), "{beside}: {text}");
        table
    };
    let table = both("server");
    assert_eq!(end(server), Some(0));
    assert_eq!(both("here"), table);
    let (code, text) = journal(&import, &data);
    assert!(code == Some(1) && text.starts_with("0 imported, 1 on record already"), "{text}");
    let (code, text) = journal(&["tail"], &data);
    assert!(code == Some(1) && text.contains("no server"), "{text}");
    let (code, text) = journal(&["erase", "--user", "ann"], &data);
    assert!(code == Some(0) && text.starts_with("1 answers erased"), "{text}");
    assert!(text.contains("beyond reach") && text.matches("export").count() == 1, "{text}");
    assert_eq!(lines(&["search", "--user", "ann"], &data), [Value::Null; 0]);
    let deeds = lines(&["access"], &data);
    assert!(deeds.iter().all(|deed| deed["who"] == "operator"), "{deeds:?}");
}

#[test]
fn a_backup_made_under_load_is_one_moment_and_a_restore_brings_it_back() {
    let folder = tempfile::tempdir().expect("a folder");
    let (data, copy) = (folder.path().join("data"), folder.path().join("copies/one"));
    fs::create_dir(folder.path().join("copies")).expect("made");
    let (none, root) = (folder.path().join("none"), golden("adapters/llama"));
    fs::create_dir(&none).expect("made");
    let flags = ["--adapter-dir", none.to_str().expect("UTF-8"), "--adapter-root", root.to_str().expect("UTF-8")];
    let (server, url) = super::started_with(&data, &flags);
    let (code, text) = run(&["adapter", "load", "sql", "rslora"], &data);
    assert_eq!(code, Some(0), "{text}");
    let first = ask(&url, "the first").expect("answered");
    let done = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let (url, done) = (url.clone(), Arc::clone(&done));
            thread::spawn(move || {
                let mut ids = Vec::new();
                while !done.load(Ordering::Relaxed) {
                    ids.push(ask(&url, "load").expect("answered")["id"].as_str().expect("an id").to_owned());
                }
                ids
            })
        })
        .collect();
    let copied = copy.display().to_string();
    let (code, text) = run(&["backup", &copied], &data);
    done.store(true, Ordering::Relaxed);
    let mut asked: Vec<String> = clients.into_iter().flat_map(|client| client.join().expect("no panic")).collect();
    asked.push(first["id"].as_str().expect("an id").to_owned());
    assert!(code == Some(0) && text.contains(" files, "), "{text}");
    let (code, text) = run(&["backup", &copied], &data);
    assert!(code == Some(1) && text.contains("is there already"), "{text}");
    let (code, text) = run(&["restore", &copied, "--replace"], &data);
    assert!(code == Some(1) && text.contains("is held by"), "a server holds it: {text}");
    let late = ask(&url, "after the backup").expect("answered")["id"].as_str().expect("an id").to_owned();
    assert_eq!(end(server), Some(0));
    let (code, text) = run(&["restore", &copied], &data);
    assert!(code == Some(1) && text.contains("--replace"), "{text}");

    let elsewhere = folder.path().join("elsewhere");
    let (code, text) = run(&["restore", &copied], &elsewhere);
    assert_eq!(code, Some(0), "{text}");
    let (code, text) = run(&["restore", &copied, "--replace"], &data);
    assert!(code == Some(0) && text.contains("what was there before is in"), "{text}");
    for restored in [&elsewhere, &data] {
        let found = lines(&["search", "--limit", "100000"], restored);
        let ids: Vec<&str> = found.iter().map(|row| row["id"].as_str().expect("an id")).collect();
        assert!(ids.iter().all(|id| asked.iter().any(|asked| asked == id)), "{ids:?}");
        assert!(ids.contains(&first["id"].as_str().expect("an id")) && !ids.contains(&late.as_str()));
        assert!(found.iter().all(|row| row["choices"][0]["text"].is_string()), "every answer is whole");
    }
    let (server, url) = super::started_with(&elsewhere, &flags);
    let body = json!({"model": "sql", "prompt": "rain", "max_tokens": 2});
    let answer = ureq::post(format!("{url}/v1/completions")).send_json(body);
    let answer: Value = answer.expect("answered").body_mut().read_json().expect("JSON");
    assert_eq!(answer["model"], "sql", "names and weights are there");
    assert_eq!(end(server), Some(0));
}

#[test]
fn a_damaged_backup_is_refused_and_an_interrupted_restore_keeps_servers_away() {
    let folder = tempfile::tempdir().expect("a folder");
    let (data, copy) = (folder.path().join("data"), folder.path().join("copy"));
    let (server, url) = started(&data);
    ask(&url, "rain").expect("answered");
    assert_eq!(end(server), Some(0));
    let copied = copy.display().to_string();
    assert_eq!(run(&["backup", &copied], &data).0, Some(0));
    let database = copy.join("tunegate.db");
    let whole = fs::read(&database).expect("read");
    let mut damaged = whole.clone();
    *damaged.last_mut().expect("a byte") ^= 1;
    fs::write(&database, damaged).expect("written");
    let (code, text) = run(&["restore", &copied, "--replace"], &data);
    assert!(code == Some(1) && text.contains("its digest is another"), "{text}");
    assert_eq!(lines(&["search"], &data).len(), 1, "what was there is still there");
    fs::write(&database, whole).expect("written");
    let manifest = copy.join("backup.json");
    let written = fs::read_to_string(&manifest).expect("read");
    fs::write(&manifest, written.replace("\"tunegate.db\"", "\"../tunegate.db\"")).expect("written");
    let (code, text) = run(&["restore", &copied, "--replace"], &data);
    assert!(code == Some(1) && text.contains("is no path of a backup"), "{text}");
    fs::write(&manifest, written).expect("written");

    fs::write(data.join("restore.unfinished"), "").expect("written");
    let (code, text) = journal(&["search"], &data);
    assert!(code == Some(1) && text.contains("run tunegate restore again"), "{text}");
    let (code, text) = run(&["restore", &copied], &data);
    assert_eq!(code, Some(0), "the same command finishes it: {text}");
    assert_eq!(lines(&["search"], &data).len(), 1);
}
