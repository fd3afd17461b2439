//! The binary as a person starts it.

mod adapters;
mod flags;
mod journal;
mod measured;
mod swapped;

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    net::TcpListener,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Child, Command, Output, Stdio},
    sync::mpsc,
    thread,
};

use serde_json::{Value, json};
use tunegate::{
    app::record_file,
    store::{Cursor, SqliteStore, Store},
};

use crate::support::golden;

fn tunegate() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tunegate"));
    command.env_clear().stdin(Stdio::null());
    command
}

fn said(output: &Output) -> (Option<i32>, String) {
    let text = [output.stdout.as_slice(), output.stderr.as_slice()].concat();
    (output.status.code(), String::from_utf8_lossy(&text).into_owned())
}

/// A server over the tiny model on a port of the system's choice, once it has said that it is ready.
fn started(data_dir: &Path) -> (Child, String) {
    started_with(data_dir, &[])
}

fn started_with(data_dir: &Path, flags: &[&str]) -> (Child, String) {
    let mut child = tunegate()
        .arg("serve")
        .arg(golden("models/llama"))
        .args(["--port", "0", "--kv-cache-memory-bytes", "4MiB", "--data-dir"])
        .arg(data_dir)
        .args(flags)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("the binary starts");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines().map_while(Result::ok);
    let ready = lines.find(|line| line.contains(" is ready ")).expect("it becomes ready");
    let url = ready.split_whitespace().last().expect("a URL").to_owned();
    // The rest of the banner has to be read, or the server would write into a closed pipe.
    thread::spawn(move || lines.for_each(drop));
    (child, url)
}

fn end(mut child: Child) -> Option<i32> {
    terminate(&child);
    child.wait().expect("it ends").code()
}

fn terminate(child: &Child) {
    let kill = Command::new("kill").arg(child.id().to_string()).status().expect("kill runs");
    assert!(kill.success());
}

/// Eight streams of `tokens` tokens each, to the base; SIGTERM once every one of them has begun. Gives each stream's last
/// event, the exit code, and how the record says that each answer ended.
fn terminated_under_load(tokens: usize, flags: &[&str]) -> (Vec<String>, Option<i32>, Vec<String>) {
    const STREAMS: usize = 8;
    let folder = tempfile::tempdir().expect("a folder");
    let data = folder.path().join("data");
    let (mut child, url) = started_with(&data, flags);
    let (begun, beginnings) = mpsc::channel();
    let streams: Vec<_> = (0..STREAMS)
        .map(|_| {
            let (begun, url) = (begun.clone(), url.clone());
            thread::spawn(move || {
                let body = json!({"model": "llama", "prompt": "rain", "max_tokens": tokens, "ignore_eos": true, "stream": true});
                let answer = ureq::post(format!("{url}/v1/completions")).send_json(body).expect("admitted");
                let lines = BufReader::new(answer.into_body().into_reader()).lines().map_while(Result::ok);
                let mut last = String::new();
                for line in lines.filter(|line| line.starts_with("data: ")) {
                    if last.is_empty() {
                        begun.send(()).expect("the test listens");
                    }
                    last = line;
                }
                last
            })
        })
        .collect();
    (0..STREAMS).for_each(|_| beginnings.recv().expect("a stream begins"));
    terminate(&child);
    let lasts = streams.into_iter().map(|stream| stream.join().expect("the stream is read")).collect();
    let code = child.wait().expect("it ends").code();
    let store = SqliteStore::open(&record_file(&data)).expect("the record opens");
    let rows = store.follow(Cursor::default(), 100).expect("the record is read");
    (lasts, code, rows.iter().map(|row| row.completion.choices[0].ending.as_str().to_owned()).collect())
}

#[test]
fn every_fault_in_the_settings_is_listed_at_once() {
    let output = tunegate()
        .args(["serve", "/no/model", "--check-config", "--max-loras", "0", "--adapter-dir", "/nowhere"])
        .env("TUNEGATE_DEVICE", "toaster")
        .output()
        .expect("it runs");
    let (code, text) = said(&output);
    assert_eq!(code, Some(2), "{text}");
    for part in ["/no/model", "--max-loras", "/nowhere", "TUNEGATE_DEVICE"] {
        assert!(text.contains(part), "{part} is not in: {text}");
    }
}

#[test]
fn what_kubernetes_injects_and_a_pasted_vllm_line_do_not_keep_it_from_starting() {
    let adapter = golden("adapters/llama/plain-qv");
    let module = format!(r#"'{{"name":"a","path":"{}"}}'"#, adapter.display());
    let output = tunegate()
        .args(["serve", "--check-config", "--enable-lora", "--max_loras=4", "--lora-modules", &module])
        .args(["-tp", "2", "--gpu-memory-utilization", "0.9", "--served-model-name", "m", "publishers/ns/models/m"])
        .arg("--model")
        .arg(golden("models/llama"))
        .env("TUNEGATE_PORT", "tcp://10.0.0.1:8000")
        .env("TUNEGATE_SERVICE_HOST", "10.0.0.1")
        .output()
        .expect("it runs");
    let (code, text) = said(&output);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("--tensor-parallel-size has no effect"), "{text}");
    let output = tunegate().args(["serve", "m", "--quantization", "fp8"]).output().expect("it runs");
    let (code, text) = said(&output);
    assert!(code == Some(2) && text.contains("--quantization"), "{text}");
}

#[test]
fn a_busy_port_is_named_with_the_way_out() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port().to_string();
    let folder = tempfile::tempdir().expect("a folder");
    let output = tunegate()
        .arg("serve")
        .arg(golden("models/llama"))
        .args(["--port", &port, "--data-dir"])
        .arg(folder.path().join("data"))
        .output()
        .expect("it runs");
    let (code, text) = said(&output);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("is in use") && text.contains("--port"), "{text}");
}

#[test]
fn one_server_holds_a_data_directory_and_leaves_it_by_sigterm_or_by_force() {
    let folder = tempfile::tempdir().expect("a folder");
    let data = folder.path().join("data");
    let (first, url) = started(&data);
    let socket = fs::metadata(data.join("tunegate.sock")).expect("a socket");
    assert_eq!(socket.permissions().mode() & 0o777, 0o600);
    let second = tunegate()
        .arg("serve")
        .arg(golden("models/llama"))
        .args(["--port", "0", "--data-dir"])
        .arg(&data)
        .output()
        .expect("it runs");
    let (code, text) = said(&second);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains(&format!("process {}", first.id())), "the holder is not named: {text}");
    let mut health = ureq::get(format!("{url}/health/ready")).call().expect("ready");
    let mut body = String::new();
    health.body_mut().as_reader().read_to_string(&mut body).expect("a body");
    assert_eq!(end(first), Some(0), "a drain ends well");
    assert!(!data.join("tunegate.sock").exists());

    let (mut killed, _) = started(&data);
    killed.kill().expect("kill -9");
    killed.wait().expect("gone");
    let (again, _) = started(&data);
    assert_eq!(end(again), Some(0), "what a killed server left behind keeps nobody out");
}

#[test]
fn sigterm_under_load_lets_running_answers_finish_and_records_them() {
    let (lasts, code, endings) = terminated_under_load(100, &[]);
    assert_eq!(lasts, vec!["data: [DONE]"; 8]);
    assert_eq!(code, Some(0));
    assert_eq!(endings, vec!["length"; 8]);
}

#[test]
fn sigterm_without_time_to_drain_ends_answers_with_an_error_and_records_that() {
    let (lasts, code, endings) = terminated_under_load(440, &["--shutdown-timeout", "0"]);
    for last in lasts {
        let event: Value = serde_json::from_str(last.trim_start_matches("data: ")).expect("an error event");
        assert_eq!(event["error"]["code"], "draining", "{last}");
    }
    assert_eq!(code, Some(0), "cut off, but by a rule that was set");
    assert_eq!(endings, vec!["cut_off"; 8]);
}
