//! What flags, their rules and reports look like.

use serde_json::{Value, json};

use super::{
    operations::{answers, gives, id, plain, query, takes},
    schemas::{count, maybe_text, object, reference, text},
};

pub fn list() -> Value {
    let state = json!({"enum": ["open", "confirmed", "dismissed", "all"], "default": "open"});
    json!({
        "operationId": "listFlags",
        "summary": "What rules found in answers. For reviewers and admins.",
        "parameters": [
            query("rule", text(), "Of this rule."),
            query("adapter", text(), "On answers of this adapter."),
            query("completion_id", text(), "On this answer."),
            query("state", state, "By verdict."),
            query("after", text(), "The flag before the page."),
            query("limit", json!({"type": "integer", "minimum": 1, "maximum": 100, "default": 20}), "Page size."),
            query("order", json!({"enum": ["asc", "desc"], "default": "desc"}), "By the time they were found."),
        ],
        "responses": answers(gives("FlagList")),
    })
}

pub fn export() -> Value {
    let mut content = gives("FlagExport");
    content["application/x-ndjson"] = json!({"schema": text()});
    let state = json!({"enum": ["open", "confirmed", "dismissed", "all"], "default": "all"});
    json!({
        "operationId": "exportFlags",
        "summary": "Flagged answers as lines of JSON, or as training rows of what people said they should have been. For reviewers and admins.",
        "parameters": [
            query("format", json!({"enum": ["jsonl", "openai", "trl"], "default": "jsonl"}), "What lines look like."),
            query("rule", text(), "Of this rule."),
            query("adapter", text(), "On answers of this adapter."),
            query("state", state, "By verdict."),
            query("summary", json!({"type": "boolean", "default": false}), "Only how many lines there are, and what is left out and why."),
        ],
        "responses": answers(content),
    })
}

pub fn get() -> Value {
    one(plain("getFlag", "One flag with question, answer and what was said of it.", gives("Flag")))
}

pub fn resolve() -> Value {
    let mut operation = one(plain("resolveFlag", "Say whether a flag was right, or take that back.", gives("Flag")));
    operation["requestBody"] = takes("VerdictRequest");
    operation
}

pub fn rules() -> Value {
    plain("listFlagRules", "The rules, how far they have come, and how often each was right.", gives("FlagRuleList"))
}

pub fn try_rules() -> Value {
    let mut operation = plain(
        "tryFlagRules",
        "What rules would have found in the last answers; writes nothing. For admins.",
        gives("FlagRulesTried"),
    );
    operation["requestBody"] = takes("TryRequest");
    operation
}

pub fn apply() -> Value {
    let mut operation = plain(
        "applyFlagRules",
        "Apply the rules that hold to the last answers, in the background. For admins.",
        gives("FlagRulesApplying"),
    );
    operation["requestBody"] = takes("ApplyRequest");
    operation
}

fn one(mut operation: Value) -> Value {
    operation["parameters"] = json!([id("The flag's id.")]);
    operation
}

/// Every schema by its name.
pub fn add(add: &mut impl FnMut(&str, Value) -> Option<Value>) {
    let share = json!({"type": ["number", "null"], "minimum": 0, "maximum": 1});
    let interval = json!({"type": ["array", "null"], "items": {"type": "number"}, "minItems": 2, "maxItems": 2});
    let precision = json!({
        "type": ["object", "null"], "description": "Of the flags that somebody looked at, how many were right; with Wilson's 95 % interval.",
        "properties": {"confirmed": count(), "dismissed": count(), "share": share, "interval": interval},
    });
    let resolved = json!({
        "type": ["object", "null"],
        "properties": {"verdict": {"enum": ["confirmed", "dismissed"]}, "at": count(), "by": text(), "note": maybe_text()},
    });
    let other = json!({"id": text(), "choice_index": count(), "rule": text(), "reason": text()});
    let flag = json!({
        "object": {"const": "flag"}, "id": text(), "at": count(), "completion_id": text(), "choice_index": count(),
        "rule": text(), "rule_version": text(),
        "reason": {"type": "string", "description": "For a person; no word of question or answer."},
        "value": {"type": ["number", "null"]}, "created": count(), "model": text(), "adapter": maybe_text(),
        "version": maybe_text(), "key": maybe_text(), "state": {"enum": ["open", "confirmed", "dismissed"]},
        "resolved": resolved, "precision": precision,
        "question": {"description": "Of one flag: the prompts as they were given."}, "answer": maybe_text(),
        "ending": maybe_text(), "erased": {"type": ["integer", "null"]},
        "feedback": {"type": "array", "items": reference("Feedback")},
        "others": {"type": "array", "items": {"type": "object", "properties": other}},
    });
    add("Flag", object(flag, &["object", "id", "completion_id", "choice_index", "rule", "reason", "state"]));
    let list = json!({
        "object": {"const": "list"}, "data": {"type": "array", "items": reference("Flag")}, "first_id": maybe_text(),
        "last_id": maybe_text(), "has_more": {"type": "boolean"}, "note": text(),
    });
    add("FlagList", object(list, &["object", "data", "has_more"]));
    let left_out = json!({"type": "object", "additionalProperties": count()});
    let export = json!({"object": {"const": "flags.export"}, "lines": count(), "left_out": left_out});
    add("FlagExport", object(export, &["object", "lines", "left_out"]));
    let verdict = json!({"verdict": {"enum": ["confirmed", "dismissed", "open"]}, "note": text()});
    add("VerdictRequest", object(verdict, &["verdict"]));
    let stretch = json!({"type": "array", "items": count(), "minItems": 2, "maxItems": 2});
    let rule = json!({
        "object": {"const": "flag_rule"}, "name": text(), "kind": text(), "version": text(), "description": maybe_text(),
        "in_force": {"type": "boolean"}, "where": {"type": "object"}, "sample": {"type": "number"},
        "action": {"enum": ["flag", "log", "count"]}, "parameters": {}, "since": {"type": ["integer", "null"]},
        "flags": count(), "precision": precision,
        "looked": {"type": "array", "items": stretch, "description": "Stretches of the record that it has looked at."},
    });
    let rules = json!({
        "object": {"const": "list"},
        "data": {"type": "array", "items": object(rule, &["object", "name", "version", "in_force"])}, "digest": text(),
        "faults": {"type": "array", "items": text(), "description": "What is wrong with the file as it stands."},
        "followed": count(), "durable": count(),
        "applying": {"type": ["object", "null"], "properties": {"at": count(), "to": count()}}, "note": text(),
    });
    add("FlagRuleList", object(rules, &["object", "data", "digest", "faults", "followed", "durable"]));
    let asked = json!({
        "rules": {"type": "string", "description": "The text of a TOML file; it may name no files."},
        "last": {"type": "integer", "minimum": 1, "maximum": 100_000, "default": 1000},
    });
    add("TryRequest", object(asked, &["rules"]));
    let example = json!({
        "completion_id": text(), "choice_index": count(), "adapter": maybe_text(), "version": maybe_text(), "reason": text(),
    });
    let tried = json!({
        "name": text(), "version": text(), "looked": count(), "found": count(), "share": share, "interval": interval,
        "needs_words": {"type": "boolean"},
        "examples": {"type": "array", "items": {"type": "object", "properties": example}},
    });
    let tried = json!({
        "object": {"const": "flag_rules.tried"}, "answers": count(), "without_words": count(), "from": count(), "to": count(),
        "rules": {"type": "array", "items": {"type": "object", "properties": tried}}, "note": text(),
    });
    add("FlagRulesTried", object(tried, &["object", "answers", "rules"]));
    let apply = json!({
        "rules": {"type": "array", "items": text(), "description": "Names; all if absent or empty."},
        "last": {"type": "integer", "minimum": 1, "description": "All if absent."},
    });
    add("ApplyRequest", object(apply, &[]));
    let applying = json!({"object": {"const": "flag_rules.applying"}, "from": count(), "to": count()});
    add("FlagRulesApplying", object(applying, &["object", "from", "to"]));
}
