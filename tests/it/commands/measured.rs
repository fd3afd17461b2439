//! `tunegate eval` and `tunegate bench` against a running server, and servers of their own.

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    path::Path,
    process::{ChildStderr, Command, Stdio},
};

use serde_json::{Value, json};
use tunegate::model::Isa;

use super::{end, said, started_with, terminate, tunegate};
use crate::support::golden;

fn with_adapter() -> String {
    format!("--lora-modules=rslora={}", golden("adapters/llama/rslora").display())
}

/// What the base answers greedily, as the API says it.
fn answer(url: &str, question: &str) -> String {
    let body = json!({
        "model": "llama", "messages": [{"role": "user", "content": question}], "max_tokens": 6, "temperature": 0,
    });
    let mut answer = ureq::post(format!("{url}/v1/chat/completions")).send_json(body).expect("answered");
    let answer: Value = answer.body_mut().read_json().expect("JSON");
    answer["choices"][0]["message"]["content"].as_str().expect("text").trim().to_owned()
}

/// A suite that wants the base's own answers, with one preset.
fn write_suite(folder: &Path, url: &str) {
    let mut lines = vec![
        json!({"suite": "own", "sampling": {"max_tokens": 6, "temperature": 0}, "scorers": [{"kind": "exact"}]})
            .to_string(),
    ];
    for number in 0..8 {
        let question = format!("question {number} of rain");
        lines.push(
            json!({"id": format!("i{number}"), "expect": answer(url, &question),
                   "messages": [{"role": "user", "content": question}]})
            .to_string(),
        );
    }
    fs::write(folder.join("suite.jsonl"), lines.join("\n")).expect("written");
    fs::write(folder.join("prompts.json"), r#"{"loud": {"wrap": "HEAR: {message}"}}"#).expect("written");
}

#[test]
fn an_evaluation_compares_contenders_pair_by_pair_or_cannot_tell() {
    let folder = tempfile::tempdir().expect("a folder");
    let (server, url) = started_with(&folder.path().join("data"), &[&with_adapter()]);
    write_suite(folder.path(), &url);
    let json_file = folder.path().join("out.json");
    let output = tunegate()
        .arg("eval")
        .arg(folder.path().join("suite.jsonl"))
        .args(["--against", &format!("{url}/v1"), "--model", "llama", "--model", "llama+loud", "--model", "rslora"])
        .arg("--json")
        .arg(&json_file)
        .output()
        .expect("it runs");
    let (code, text) = said(&output);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("rslora − llama: -1.000") && text.contains("llama is better"), "{text}");
    assert!(text.contains("rslora − llama+loud") && text.contains("cannot tell"), "{text}");
    let report: Value = serde_json::from_str(&fs::read_to_string(json_file).expect("written")).expect("JSON");
    let contenders = report["contenders"].as_array().expect("contenders");
    let mean = |index: usize| contenders[index]["means"]["exact"]["mean"].as_f64().expect("a mean");
    assert_eq!((mean(0), mean(1), mean(2)), (1.0, 0.0, 0.0), "the base alone answers as the base");
    assert!(contenders[2]["version"].as_str().is_some_and(|version| version.contains("adapter=")), "{report:#}");
    let tokens = |index: usize| contenders[index]["mean_prompt_tokens"].as_f64().expect("tokens");
    assert!(tokens(1) > tokens(0), "the preset's words are in the prompt");

    let nobody = tunegate()
        .arg("eval")
        .arg(folder.path().join("suite.jsonl"))
        .args(["--against", &url, "--model", "nobody"])
        .output()
        .expect("it runs");
    let (code, text) = said(&nobody);
    assert!(code == Some(1) && text.contains("'nobody' answered nothing") && text.contains("404"), "{text}");
    assert_eq!(end(server), Some(0));
}

#[test]
fn a_bench_drives_a_running_server_and_counts_what_its_clients_see() {
    let folder = tempfile::tempdir().expect("a folder");
    let (server, url) = started_with(&folder.path().join("data"), &[&with_adapter()]);
    let json_file = folder.path().join("out.json");
    let output = tunegate()
        .args(["bench", "--url", &url, "--concurrency", "2", "--requests", "4", "--adapters", "1"])
        .args(["--prompt-tokens", "16", "--output-tokens", "8", "--json"])
        .arg(&json_file)
        .output()
        .expect("it runs");
    let (code, text) = said(&output);
    assert_eq!(code, Some(0), "{text}");
    let report: Value = serde_json::from_str(&fs::read_to_string(json_file).expect("written")).expect("JSON");
    assert_eq!((&report["requests"], &report["errors"]), (&json!(4), &json!(0)), "{report:#}");
    assert_eq!((&report["prompt_tokens"], &report["completion_tokens"]), (&json!(64), &json!(32)), "{report:#}");
    assert_eq!(report["models"], json!(["rslora"]));
    assert!(report["ready_after_s"].is_null(), "the server is not the bench's own: {report:#}");
    for name in ["time_to_first_token_ms", "inter_token_ms"] {
        let [p50, p95, p99] = ["p50", "p95", "p99"].map(|at| report[name][at].as_f64().expect("a quantile"));
        assert!(0.0 < p50 && p50 <= p95 && p95 <= p99, "{name}: {report:#}");
    }
    assert_eq!(end(server), Some(0));
    let output = tunegate().args(["bench", "--url", &url]).output().expect("it runs");
    let (code, text) = said(&output);
    assert!(code == Some(1) && text.contains(&url), "nobody is there any more: {text}");
}

#[test]
fn a_profile_of_the_engine_tells_of_every_phase_and_the_whole_step() {
    let folder = tempfile::tempdir().expect("a folder");
    let json_file = folder.path().join("out.json");
    let output = tunegate()
        .args([
            "bench",
            "engine",
            "--profile",
            "--streams",
            "3",
            "--prompt-tokens",
            "9",
            "--steps",
            "3",
            "--cpu-threads",
            "2",
        ])
        .arg(golden("models/llama"))
        .arg("--json")
        .arg(&json_file)
        .output()
        .expect("it runs");
    let (code, text) = said(&output);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("G multiply-adds/s") && text.contains("whole step"), "{text}");
    let measured: Value = serde_json::from_str(&fs::read_to_string(json_file).expect("written")).expect("JSON");
    assert!(measured["machine"]["multiply_adds_per_second"].as_f64().is_some_and(|rate| rate > 0.0), "{measured:#}");
    let workload = |name: &str| {
        let all = measured["workloads"].as_array().expect("workloads");
        all.iter().find(|one| one["workload"] == name).unwrap_or_else(|| panic!("no {name} in {measured:#}"))
    };
    let bytes = |workload: &Value, part: &str| {
        let parts = workload["profile"]["phases"].as_array().expect("phases");
        parts.iter().find(|one| one["part"] == part).and_then(|one| one["bytes"].as_u64()).unwrap_or_default()
    };
    let (one, three) = (workload("1 stream, base"), workload("3 streams, base"));
    // Two layers, two key heads of 16, in 16 bits; ten positions and the row's own, before the middle of three steps.
    assert_eq!(bytes(one, "attention"), 2 * (9 + 1 + 1) * 2 * 2 * 16 * 2, "{one:#}");
    assert_eq!(bytes(three, "attention"), 3 * bytes(one, "attention"));
    assert_eq!(bytes(three, "gate, up"), bytes(one, "gate, up"), "weights are read once, whatever the rows");
    let tuned = workload("3 streams, 3 adapters");
    assert!(bytes(tuned, "gate, up") > bytes(workload("3 streams, 1 adapter"), "gate, up"), "{tuned:#}");
    for figures in measured["workloads"].as_array().expect("workloads") {
        let profile = &figures["profile"];
        let sum = |field: &str| {
            let parts = profile["phases"].as_array().expect("phases").iter();
            parts.map(|part| part[field].as_f64().expect("a number")).sum::<f64>()
        };
        let whole = |field: &str| profile["step"][field].as_f64().expect("a number");
        assert_eq!(sum("bytes"), whole("bytes"), "{figures:#}");
        assert!((sum("microseconds") / whole("microseconds") - 1.0).abs() < 1e-6, "{figures:#}");
        assert!((sum("share") - 1.0).abs() < 1e-6, "{figures:#}");
    }
}

#[test]
fn numerics_are_compared_at_the_level_of_instructions_that_is_asked_for() {
    let folder = tempfile::tempdir().expect("a folder");
    let text = folder.path().join("text");
    fs::write(&text, "the rain and the river and the sea ".repeat(20)).expect("written");
    let compared = |level: &str| {
        let json_file = folder.path().join(level);
        let output = tunegate()
            .args(["bench", "numerics", "--tokens", "30", "--window", "16", "--cpu-instructions", level, "--json"])
            .arg(&json_file)
            .arg("--text")
            .arg(&text)
            .arg(golden("models/llama"))
            .output()
            .expect("it runs");
        let (code, said) = said(&output);
        assert_eq!(code, Some(0), "{said}");
        let figures: Value = serde_json::from_str(&fs::read_to_string(json_file).expect("written")).expect("JSON");
        figures[0]["figures"].clone()
    };
    let plain = compared("plain");
    assert!(plain["tokens"].as_u64().is_some_and(|tokens| tokens >= 30), "{plain:#}");
    assert!(plain["widest_parting"].as_f64().is_some(), "{plain:#}");
    if Isa::best() != Isa::PLAIN {
        assert_ne!(compared("auto"), plain, "another level rounds differently");
    }
    let refused = tunegate()
        .args(["bench", "numerics", "--cpu-instructions", "avx9", "--text"])
        .arg(&text)
        .arg(golden("models/llama"))
        .output()
        .expect("it runs");
    let (code, text) = said(&refused);
    assert!(
        code == Some(1) && text.contains("--cpu-instructions: this machine has no instructions called 'avx9'"),
        "{text}"
    );
}

#[test]
fn a_bench_records_how_long_its_own_server_took_to_be_ready() {
    let folder = tempfile::tempdir().expect("a folder");
    let json_file = folder.path().join("out.json");
    let output = tunegate()
        .args(["bench", "--requests", "1", "--prompt-tokens", "4", "--output-tokens", "2", "--json"])
        .arg(&json_file)
        .arg("--start")
        .arg(golden("models/llama"))
        .args(["--", "--kv-cache-memory-bytes", "4MiB"])
        .env("TMPDIR", folder.path())
        .output()
        .expect("it runs");
    let (code, text) = said(&output);
    assert!(code == Some(0) && text.contains("the server was ready after "), "{text}");
    let report: Value = serde_json::from_str(&fs::read_to_string(json_file).expect("written")).expect("JSON");
    assert!(report["ready_after_s"].as_f64().is_some_and(|seconds| seconds > 0.0), "{report:#}");
}

/// A bench with a server of its own that would go on for hours, once that server reads its model; and where the server's
/// data directory is.
fn endless_bench(scratch: &Path) -> (std::process::Child, BufReader<ChildStderr>) {
    let mut bench = tunegate()
        .args(["bench", "--requests", "100000000", "--start"])
        .arg(golden("models/llama"))
        .args(["--", "--kv-cache-memory-bytes", "4MiB"])
        .env("TMPDIR", scratch)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    let mut said = BufReader::new(bench.stderr.take().expect("piped"));
    let mut line = String::new();
    while !line.starts_with("loading ") {
        line.clear();
        assert_ne!(said.read_line(&mut line).expect("text"), 0, "it ended before its server began");
    }
    (bench, said)
}

#[test]
fn a_server_of_a_commands_own_ends_with_a_command_that_gets_a_signal() {
    let scratch = tempfile::tempdir().expect("a folder");
    let (mut bench, mut said) = endless_bench(scratch.path());
    terminate(&bench);
    assert_eq!(bench.wait().expect("it ends").code(), Some(128 + 15));
    // The server has this pipe as well: its end is the end of both.
    let mut rest = String::new();
    said.read_to_string(&mut rest).expect("text");
    assert_eq!(fs::read_dir(scratch.path()).expect("a folder").count(), 0, "the server's directory went with it");
}

#[test]
fn a_server_of_a_commands_own_ends_with_a_command_that_is_killed() {
    let scratch = tempfile::tempdir().expect("a folder");
    let (mut bench, mut said) = endless_bench(scratch.path());
    bench.kill().expect("kill -9");
    bench.wait().expect("gone");
    let mut rest = String::new();
    said.read_to_string(&mut rest).expect("text");
    let folder = fs::read_dir(scratch.path()).expect("a folder").next().expect("left behind").expect("an entry");
    assert!(!folder.path().join("tunegate.sock").exists(), "it drained and left the socket");
}

#[test]
fn the_command_line_is_told_of_every_fault_at_once_whatever_kind_it_is() {
    let folder = tempfile::tempdir().expect("a folder");
    let (file, keys) = (folder.path().join("tunegate.toml"), folder.path().join("keys.toml"));
    fs::write(&file, "max-num-seqs = 0\nprot = 1\nlog-format = \"xml\"\n").expect("written");
    fs::write(&keys, "[[key]]\nname = 'a'\nhash = 'short'\n").expect("written");
    let output = tunegate()
        .args(["serve", "--check-config", "--quantization", "fp8", "--port", "many", "--nonsense", "--max-loras=0"])
        .arg(format!("--config={}", file.display()))
        .arg(format!("--api-keys-file={}", keys.display()))
        .arg(format!("--model={}", folder.path().display()))
        .env("TUNEGATE_DEVICE", "toaster")
        .output()
        .expect("it runs");
    let (code, text) = said(&output);
    assert_eq!(code, Some(2), "{text}");
    for part in [
        "--quantization",
        "'many' for '--port",
        "'--nonsense'",
        "--max-loras: it has to be at least 1",
        "tunegate.toml, max-num-seqs: it has to be at least 1",
        "prot: there is no such setting",
        "log-format: it has to be json or text",
        "TUNEGATE_DEVICE",
        "the key 'a' has no SHA-256",
        "holds neither a config.json nor a .gguf file",
    ] {
        assert!(text.contains(part), "{part} is not in: {text}");
    }
}

#[test]
fn a_server_that_belongs_to_nobody_needs_no_input() {
    let folder = tempfile::tempdir().expect("a folder");
    let (server, url) = started_with(&folder.path().join("data"), &[]);
    ureq::get(format!("{url}/health/ready")).call().expect("standard input is closed, and it serves");
    assert_eq!(end(server), Some(0));
    let mut owned = Command::new(env!("CARGO_BIN_EXE_tunegate"));
    let mut owned = owned
        .env_clear()
        .arg("serve")
        .arg(golden("models/llama"))
        .args(["--port", "0", "--kv-cache-memory-bytes", "4MiB", "--end-with-stdin", "--data-dir"])
        .arg(folder.path().join("owned"))
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the binary starts");
    drop(owned.stdin.take());
    assert_eq!(owned.wait().expect("it ends").code(), Some(0));
}
