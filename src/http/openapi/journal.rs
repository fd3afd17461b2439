//! The routes of the record, and what they take and give.

use serde_json::{Value, json};

use super::{
    operations::{answers, changes, gives, id, plain, query},
    schemas::{count, maybe_text, object, reference, text},
};
use crate::http::route::Route;

/// # Panics
/// For a route that is none of the record's; the caller has sorted them.
pub fn operation(route: Route) -> Value {
    let with = |mut operation: Value, parameters: Vec<Value>| {
        operation["parameters"] = parameters.into();
        operation
    };
    match route {
        Route::SearchJournal => with(
            plain(
                "searchJournal",
                "Everything on record, page by page. For reviewers and admins.",
                gives("JournalList"),
            ),
            [filters(), pages(), shown()].concat(),
        ),
        Route::TailJournal => with(
            plain("tailJournal", "Choices as they become durable. For reviewers and admins.", gives("JournalTail")),
            [
                vec![
                    query("cursor", count(), "Only what came after; from now on if absent."),
                    query(
                        "wait_ms",
                        json!({"type": "integer", "minimum": 0, "maximum": 30_000}),
                        "How long to wait if nothing is there.",
                    ),
                    query(
                        "limit",
                        json!({"type": "integer", "minimum": 1, "maximum": 1000, "default": 20}),
                        "Choices.",
                    ),
                ],
                shown(),
            ]
            .concat(),
        ),
        Route::ExportJournal => with(
            json!({
                "operationId": "exportJournal",
                "summary": "Everything on record as a file. For reviewers and admins.",
                "responses": answers(json!({
                    "application/x-ndjson": {"schema": reference("JournalAnswer")},
                    "text/csv": {"schema": text()},
                    "application/vnd.apache.parquet": {"schema": {"type": "string", "format": "binary"}},
                })),
            }),
            [
                vec![query(
                    "format",
                    json!({"enum": ["jsonl", "csv", "parquet"], "default": "jsonl"}),
                    "The kind of file.",
                )],
                filters(),
                shown(),
            ]
            .concat(),
        ),
        Route::ImportJournal => changes(
            ["importJournal", "Put answers of another program on record, marked as imported. For admins."],
            "ImportRequest",
            gives("ImportAnswer"),
        ),
        Route::EraseUser => changes(
            ["eraseUser", "Take a user's content and names out of the record; the facts stay. For admins."],
            "EraseRequest",
            gives("Erasure"),
        ),
        Route::JournalAccess => with(
            plain(
                "listJournalAccess",
                "Who has looked at recorded content, the latest first. For admins.",
                gives("AccessList"),
            ),
            vec![
                query("since", text(), "RFC 3339, or Unix seconds."),
                query("limit", json!({"type": "integer", "minimum": 1, "maximum": 1000, "default": 20}), "How many."),
            ],
        ),
        Route::NoteAccess => changes(
            ["noteJournalAccess", "Put on record that content was taken elsewhere, as by a backup. For admins."],
            "AccessRequest",
            gives("AccessNoted"),
        ),
        Route::GetJournal => with(
            plain(
                "getJournal",
                "One request with all its choices and scores. For reviewers and admins.",
                gives("JournalAnswer"),
            ),
            vec![id("The completion's id.")],
        ),
        other => unreachable!("{other:?} is described elsewhere"),
    }
}

fn filters() -> Vec<Value> {
    let words = |words: &[&str]| json!({"enum": words});
    vec![
        query("user", text(), "As the client named it."),
        query("conversation", text(), "The conversation's id."),
        query("model", text(), "As the answers echo it."),
        query("adapter", text(), "The adapter's name."),
        query("version", json!({"type": "string", "pattern": "^[0-9a-fA-F]{6,64}$"}), "What the version begins with."),
        query("key", text(), "The API key's name."),
        query("split", words(&["train", "held_out", "audit"]), "What it may be used for."),
        query("origin", words(&["served", "replayed", "evaluated", "imported"]), "Who made it."),
        query("ending", words(&["stop", "length", "cut_off", "failed", "client_left"]), "Of one of its choices."),
        query("since", text(), "Admitted then or later: RFC 3339, or Unix seconds."),
        query("until", text(), "Admitted before."),
        query("contains", text(), "Words as they stand in a message, prompt or answer."),
        query(
            "order",
            json!({"enum": ["asc", "desc"], "default": "desc"}),
            "By time of admission; files begin with the oldest.",
        ),
    ]
}

fn pages() -> Vec<Value> {
    vec![
        query("after", text(), "What the page before gave as next."),
        query("limit", json!({"type": "integer", "minimum": 1, "maximum": 1000, "default": 20}), "Page size."),
    ]
}

fn shown() -> Vec<Value> {
    vec![
        query("content", json!({"type": "boolean", "default": true}), "With messages and texts."),
        query(
            "scores",
            json!({"type": "boolean", "default": false}),
            "With ids of tokens, their scores and the sketch.",
        ),
    ]
}

/// Every schema by its name.
pub fn add(add: &mut impl FnMut(&str, Value) -> Option<Value>) {
    let ms = json!({"type": ["integer", "null"]});
    let number = json!({"type": ["number", "null"]});
    let choice = json!({
        "index": count(), "ending": text(), "tokens": count(), "fault": maybe_text(), "mean_logprob": number, "text": maybe_text(),
        "tool_calls": {}, "token_ids": {"type": "array", "items": count()}, "logprobs": {"type": "array", "items": number},
        "entropies": {"type": "array", "items": number}, "alternatives": {"type": "array"},
    });
    let answer = json!({
        "id": text(), "object": {"const": "journal.answer"}, "created_ms": {"type": "integer"},
        "origin": {"enum": ["served", "replayed", "evaluated", "imported"]}, "kind": {"enum": ["chat", "completions"]}, "key": maybe_text(),
        "request_id": text(), "model": text(), "base": text(), "adapter": maybe_text(), "version": maybe_text(),
        "template": maybe_text(), "tokenizer": text(), "build": maybe_text(), "system": maybe_text(),
        "sampling": {"type": "object"}, "seed": count(), "options": {"type": "object"}, "usage": {"type": "object"},
        "timing": {"type": "object"}, "user": maybe_text(), "safety_identifier": maybe_text(), "conversation": maybe_text(),
        "conversation_by": {"enum": ["given", "found", "own", null]}, "split": {"enum": ["train", "held_out", "audit", null]},
        "split_by": {"enum": ["conversation", "user", "message", null]}, "audit_share": number, "metadata": {"type": "object"},
        "stored": {"type": "boolean"}, "policy": {"enum": ["full", "metadata", "none"]}, "redaction": maybe_text(),
        "erased_ms": ms, "expired_ms": ms, "prompts": {"type": ["array", "null"]}, "sketch": {"type": ["array", "null"]},
        "choices": {"type": "array", "items": {"type": "object", "properties": choice}},
        "feedback": {"type": "array", "items": reference("Feedback"), "description": "Of one answer: what was said of it."},
        "flags": {"type": "array", "items": {"type": "object"}, "description": "Of one answer: what rules found in it."},
    });
    add("JournalAnswer", object(answer, &["id", "object", "created_ms", "origin", "choices"]));
    let data = json!({"type": "array", "items": reference("JournalAnswer")});
    let list = json!({"object": {"const": "list"}, "data": data, "next": maybe_text()});
    add("JournalList", object(list, &["object", "data", "next"]));
    let tail = json!({"object": {"const": "list"}, "data": data, "cursor": count()});
    add("JournalTail", object(tail, &["object", "data", "cursor"]));
    let path = json!({"type": "string", "description": "Names of fields with dots between them."});
    let fields = [
        "id",
        "created",
        "model",
        "user",
        "conversation",
        "messages",
        "prompt",
        "system",
        "answer",
        "ending",
        "prompt_tokens",
        "output_tokens",
        "latency_ms",
        "metadata",
    ];
    let paths: serde_json::Map<String, Value> =
        fields.iter().map(|field| ((*field).to_owned(), path.clone())).collect();
    let import = json!({
        "source": {"type": "string", "description": "Tells one log from another."},
        "mapping": {"type": "object", "properties": paths},
        "rows": {"type": "array", "maxItems": 1000, "items": {"type": "object"}},
    });
    add("ImportRequest", object(import, &["rows"]));
    let refused = object(json!({"row": count(), "reason": text()}), &["row", "reason"]);
    let imported = json!({
        "object": {"const": "journal.import"}, "imported": count(), "known": count(),
        "refused": {"type": "array", "items": refused},
    });
    add("ImportAnswer", object(imported, &["object", "imported", "known", "refused"]));
    add("EraseRequest", object(json!({"user": text()}), &["user"]));
    let access = json!({
        "at_ms": {"type": "integer"}, "last_ms": {"type": "integer"}, "times": count(), "who": text(), "deed": text(),
        "what": {"type": "object"},
    });
    add("Access", object(access, &["at_ms", "last_ms", "times", "who", "deed", "what"]));
    let request = json!({"deed": {"enum": ["backup", "export"]}, "what": {"type": "object"}});
    add("AccessRequest", object(request, &["deed"]));
    let noted = json!({"object": {"const": "journal.access"}, "noted": {"const": true}});
    add("AccessNoted", object(noted, &["object", "noted"]));
    let accesses = json!({"type": "array", "items": reference("Access")});
    let holder = object(json!({"holder": text(), "completions": count()}), &["holder", "completions"]);
    let erasure = json!({
        "object": {"const": "journal.erasure"}, "completions": count(),
        "held_by": {"type": "array", "items": holder, "description": "What was made of them has to be made again."},
        "beyond_reach": accesses,
    });
    add("Erasure", object(erasure, &["object", "completions", "held_by", "beyond_reach"]));
    add("AccessList", object(json!({"object": {"const": "list"}, "data": accesses}), &["object", "data"]));
}
