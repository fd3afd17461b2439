//! `tunegate bench swap`: the proof that adapters may be changed under fire, at a tenth of its full count.

use std::fs;

use serde_json::Value;

use super::{said, tunegate};
use crate::support::golden;

const ROUNDS: u64 = 20;

#[test]
fn under_sixteen_streams_adapters_are_changed_and_every_answer_is_its_version_s_own() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("out.json");
    let versions = ["rslora", "all7", "plain-qv"].map(|name| golden("adapters/llama").join(name));
    let output = tunegate()
        .args(["bench", "swap"])
        .arg(golden("models/llama"))
        .args(versions)
        .args([
            "--rounds",
            &ROUNDS.to_string(),
            "--output-tokens",
            "96",
            "--prefix-tokens",
            "200",
            "--cold",
            "3",
            "--json",
        ])
        .arg(&file)
        .arg("--cold-adapter")
        .arg(golden("adapters/llama/rank-1"))
        .args(["--", "--kv-cache-memory-bytes", "64MiB", "--block-size", "16"])
        .env("TMPDIR", folder.path())
        .output()
        .expect("it runs");
    let (code, text) = said(&output);
    assert_eq!(code, Some(0), "{text}");
    let report: Value = serde_json::from_str(&fs::read_to_string(&file).expect("written")).expect("JSON");
    let count = |field: &str| report[field].as_u64().unwrap_or_else(|| panic!("{field}: {report:#}"));
    for nothing in ["failed", "mixed", "stale", "left_bytes"] {
        assert_eq!(count(nothing), 0, "{nothing}: {text}");
    }
    assert_eq!((count("rounds"), count("clients"), count("parted_within")), (ROUNDS, 16, 5));
    assert!(count("answered") >= 2 * ROUNDS && count("absent") >= 4 && count("peak_bytes") > 0, "{text}");
    assert!(2 * count("with_cached_prefix") > count("answered"), "the common prefix is hot: {text}");
    let changes = |kind: &str, field: &str| {
        let value = report["changes"][kind][field].as_u64();
        value.unwrap_or_else(|| panic!("{kind}, {field}: {report:#}"))
    };
    for kind in ["replace", "roll back", "unload"] {
        assert_eq!(changes(kind, "count"), ROUNDS, "{kind}");
    }
    assert!(10 * changes("replace", "met_a_stream") >= 9 * ROUNDS, "{text}");
    for kind in ["replace", "roll back", "load"] {
        assert!(report["changes"][kind]["flip_ms"]["max"].as_f64().is_some_and(|ms| ms > 0.0), "{kind}: {report:#}");
    }
    assert_eq!((&report["cold"]["rank"], &report["cold"]["adapters"]), (&Value::from(1), &Value::from(3)));
    for stage in ["load", "asked"] {
        let stages = report["cold"][stage].as_array().expect("stages");
        assert!(stages.len() >= 5 && stages.iter().all(|stage| stage["ms"].is_number()), "{report:#}");
    }
    assert!(text.contains("bound by: "), "{text}");
    let left: Vec<_> = fs::read_dir(folder.path()).expect("listed").flatten().map(|entry| entry.file_name()).collect();
    assert_eq!(left, ["out.json"], "its server's folder went with it");
}

#[test]
fn versions_that_answer_alike_prove_nothing_and_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let same = golden("adapters/llama/rslora");
    let output = tunegate()
        .args(["bench", "swap"])
        .arg(golden("models/llama"))
        .args([&same, &same])
        .args(["--rounds", "1", "--prefix-tokens", "16"])
        .env("TMPDIR", folder.path())
        .output()
        .expect("it runs");
    let (code, text) = said(&output);
    assert!(code == Some(1) && text.contains("the versions answer alike"), "{text}");
}
