//! The rules of the house, read from the sources: who may import whom, and what only one room may do.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// Rooms that everybody may import.
const GROUND: [&str; 4] = ["config", "metrics", "stats", "terms"];

/// Each room and the rooms that it may import beside the ground and itself.
const RULES: [(&str, &[&str]); 21] = [
    ("main", &["cli"]),
    (
        "cli",
        &[
            "app",
            "http",
            "eval",
            "feedback",
            "gateway",
            "engine",
            "adapters",
            "text",
            "journal",
            "model",
            "store",
            "data_dir",
            "model_files",
        ],
    ),
    (
        "app",
        &["http", "eval", "feedback", "gateway", "engine", "adapters", "text", "journal", "model", "store", "data_dir"],
    ),
    ("http", &["eval", "feedback", "gateway", "engine", "adapters", "text", "journal"]),
    ("eval", &["gateway", "engine", "adapters", "text", "journal"]),
    ("feedback", &["gateway", "journal"]),
    ("gateway", &["engine", "adapters", "text", "journal"]),
    ("engine", &["model"]),
    ("adapters", &["model", "store", "kernels"]),
    ("journal", &["store"]),
    ("model", &["kernels"]),
    ("text", &[]),
    ("store", &[]),
    ("kernels", &[]),
    ("data_dir", &[]),
    ("model_files", &[]),
    ("config", &[]),
    ("metrics", &[]),
    ("stats", &[]),
    ("terms", &[]),
    ("lib", &[]),
];

/// What only some rooms may write, and why a match elsewhere is a fault.
const RESERVED: [(&str, &[&str], &str); 7] = [
    ("unsafe ", &["kernels"], "only kernels has unsafe"),
    ("std::env::var", &["config"], "only config reads the environment"),
    ("env::vars", &["config"], "only config reads the environment"),
    ("StatusCode::", &["http"], "only http knows status codes"),
    ("rusqlite", &["store"], "only store knows the database"),
    ("candle_core", &["model", "text"], "tensors are the model's; text reads GGUF metadata with the same crate"),
    ("axum::", &["http"], "only http knows HTTP"),
];

/// Marks of unfinished work.
const UNFINISHED: [&str; 4] = ["todo!(", "unimplemented!(", "FIXME", "#[ignore"];

const MAX_LINES: usize = 600;

/// Faults in one file of `room`.
fn faults(room: &str, text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    let code = code_only(text);
    match RULES.iter().find(|(name, _)| *name == room) {
        None => faults.push(format!("'{room}' is no room of the house")),
        Some((_, allowed)) => {
            for imported in imports(&code) {
                let known = RULES.iter().any(|(name, _)| *name == imported);
                let fine =
                    imported == room || GROUND.contains(&imported.as_str()) || allowed.contains(&imported.as_str());
                if known && !fine {
                    faults.push(format!("{room} may not import {imported}"));
                }
            }
        }
    }
    for (mark, rooms, why) in RESERVED {
        if !rooms.contains(&room) && code.contains(mark) {
            faults.push(format!("'{mark}' in {room}: {why}"));
        }
    }
    for mark in UNFINISHED {
        if text.contains(mark) {
            faults.push(format!("'{mark}' is unfinished work"));
        }
    }
    let lines = text.lines().count();
    if lines > MAX_LINES {
        faults.push(format!("{lines} lines: past {MAX_LINES}, ask what the second subject is"));
    }
    faults
}

/// The text without comments. Unit tests at the end of a file may do what they like.
fn code_only(text: &str) -> String {
    let code = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
    code.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

/// The rooms named after `crate::`, in paths and in `use crate::{…}` groups.
fn imports(code: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        match rest.strip_prefix('{') {
            Some(group) => found.extend(group_heads(group)),
            None => found.extend(head(rest)),
        }
    }
    found
}

/// The first names of a `{a::b, c::{d, e}, f}` group, given what follows its brace.
fn group_heads(group: &str) -> Vec<String> {
    let (mut heads, mut depth, mut at_start) = (Vec::new(), 0usize, true);
    for (index, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => at_start = true,
            c if at_start && depth == 0 && !c.is_whitespace() => {
                heads.extend(head(&group[index..]));
                at_start = false;
            }
            _ => {}
        }
    }
    heads
}

fn head(path: &str) -> Option<String> {
    let end = path.find(|c: char| !(c.is_ascii_lowercase() || c == '_')).unwrap_or(path.len());
    Some(path[..end].to_owned()).filter(|head| !head.is_empty())
}

fn sources(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder of sources") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sources(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            into.push(path);
        }
    }
}

#[test]
fn the_sources_keep_the_rules_of_the_house() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    assert!(files.len() > 50, "only {} sources found", files.len());
    let mut all = Vec::new();
    for file in files {
        let inside = file.strip_prefix(&root).expect("below the root");
        let first = inside.components().next().expect("a name").as_os_str().to_string_lossy().into_owned();
        let room = first.trim_end_matches(".rs").to_owned();
        let text = fs::read_to_string(&file).expect("readable");
        all.extend(faults(&room, &text).into_iter().map(|fault| format!("{}: {fault}", inside.display())));
    }
    assert!(all.is_empty(), "{}", all.join("\n"));
}

#[test]
fn every_kind_of_breach_is_noticed() {
    for (room, text, part) in [
        ("engine", "use crate::gateway::Ask;", "engine may not import gateway"),
        ("text", "use crate::{terms::Digest, model::{Batch, Site}};", "text may not import model"),
        ("store", "let x: crate::journal::Journal;", "store may not import journal"),
        ("model", "fn f() { unsafe { g() } }", "only kernels has unsafe"),
        ("http", "let x = std::env::var(\"A\");", "only config reads"),
        ("gateway", "use http::StatusCode; let s = StatusCode::OK;", "only http knows status"),
        ("journal", "use rusqlite::Connection;", "only store"),
        ("attic", "", "no room of the house"),
        ("terms", "fn f() { todo!() }", "unfinished"),
        ("terms", &"//\n".repeat(601), "601 lines"),
    ] {
        let found = faults(room, text);
        assert!(found.iter().any(|fault| fault.contains(part)), "{room}: {text:?} gave {found:?}");
    }
    assert_eq!(faults("gateway", "use crate::{engine::Job, terms::{Digest, Usage}};\n// unsafe words"), [""; 0]);
}
