//! What a report looks like.

use serde_json::{Value, json};

use super::{
    operations::{answers, gives, id, query},
    schemas::{count, maybe_text, object, text},
};

pub fn operation() -> Value {
    let mut content = gives("Report");
    content["text/html"] = json!({"schema": text()});
    json!({
        "operationId": "reportAdapter",
        "summary": "Two versions of an adapter side by side, each difference with an interval and a verdict. For admins.",
        "parameters": [
            id("The adapter's name, or the base's."),
            query("versions", text(), "A,B: two versions by 6 or more digits; the one in force and the one before it if absent."),
            query("since", json!({"type": "integer"}), "Only answers since then, in Unix seconds."),
            query("last", json!({"type": "integer", "minimum": 1, "default": 20_000}), "The last answers of each version."),
            query("higher", text(), "Names of feedback that are better higher, separated by commas; thumbs are."),
            query("lower", text(), "Names of feedback that are better lower."),
            query("format", json!({"enum": ["json", "html"], "default": "json"}), "A page of its own, or JSON."),
        ],
        "responses": answers(content),
    })
}

/// Every schema by its name.
pub fn add(add: &mut impl FnMut(&str, Value) -> Option<Value>) {
    let verdict = json!({"enum": ["better", "worse", "mixed", "differs", "cannot_tell", "not_enough"]});
    let maybe_count = json!({"type": ["integer", "null"], "minimum": 0});
    let side = object(
        json!({
            "version": maybe_text(), "base": text(), "part": text(), "answers": count(), "from": maybe_count,
            "to": maybe_count,
        }),
        &["version", "base", "answers"],
    );
    let number = json!({"type": ["number", "null"]});
    let figure = object(
        json!({"value": number, "of": count(), "course": {"type": "array", "items": number}}),
        &["value", "of", "course"],
    );
    let metric = json!({
        "name": text(), "unit": {"enum": ["share", "tokens", "nats", "seconds", "number"]},
        "good": {"enum": ["higher", "lower"]}, "counts": {"type": "boolean"}, "first": figure, "second": figure,
        "difference": {"type": ["number", "null"], "description": "second − first; of seconds the ratio second / first."},
        "interval": {"type": ["array", "null"], "items": {"type": "number"}}, "verdict": verdict, "note": text(),
    });
    let report = json!({
        "object": {"const": "adapter.report"}, "adapter": text(), "at": count(), "first": side, "second": side,
        "verdict": verdict, "summary": text(), "needed": count(), "comparisons": count(), "alpha": {"type": "number"},
        "metrics": {"type": "array", "items": {"type": "object", "properties": metric}},
        "notes": {"type": "array", "items": text()},
    });
    add("Report", object(report, &["object", "adapter", "first", "second", "verdict", "summary", "metrics"]));
}
