//! What requests and answers about adapters look like.

use serde_json::{Value, json};

use super::schemas::{count, maybe_text, object, reference, text};

/// Every schema by its name.
pub fn add(add: &mut impl FnMut(&str, Value) -> Option<Value>) {
    let expected = json!({
        "type": "string",
        "description": "6 or more digits of the version that the name should have now, or none; 409 if it has another.",
    });
    let why = json!({"type": "string", "description": "Stands in the history."});
    let path = json!({"type": "string", "description": "A folder below --adapter-root: absolute, or relative to it."});
    let load = json!({
        "lora_name": text(), "lora_path": path, "load_inplace": {"type": "boolean", "default": false},
        "expected_version": expected, "pinned": {"type": "boolean"}, "why": why,
        "suite": {
            "type": "string",
            "description": "A suite below --suite-dir; 422 if the new version is worse by it than the one in force.",
        },
    });
    add("LoadRequest", object(load, &["lora_name", "lora_path"]));
    add(
        "UnloadRequest",
        object(json!({"lora_name": text(), "expected_version": expected, "why": why}), &["lora_name"]),
    );
    let back = json!({
        "version": {"type": "string", "description": "6 or more digits; one step back if absent."},
        "expected_version": expected, "why": why,
    });
    add("RollbackRequest", object(back, &[]));
    add("ReleaseRequest", object(json!({"expected_version": expected, "why": why}), &[]));
    add("CheckRequest", object(json!({"lora_path": path}), &["lora_path"]));
    let refusal = object(json!({"code": text(), "subject": text(), "reason": text()}), &["code", "subject", "reason"]);
    let refusals = json!({"type": "array", "items": refusal});
    let shapes = json!({
        "type": "object", "properties": {"A": {"type": "array", "items": count()}, "B": {"type": "array", "items": count()}},
    });
    let site = json!({
        "module": text(), "rank": count(), "alpha": {"type": "number"}, "scale": {"type": "number"}, "inputs": count(),
        "outputs": count(), "shape": shapes, "dtype": text(),
    });
    let plan = json!({
        "type": "object",
        "properties": {
            "version": text(), "description": text(), "trained_on": text(), "base_digest": text(), "file_bytes": count(),
            "sites": {"type": "array", "items": {"type": "object", "properties": site}}, "notes": texts(),
        },
    });
    let check = json!({
        "object": {"const": "adapter.check"}, "loadable": {"type": "boolean"}, "plan": plan, "refused": refusals,
    });
    add("CheckAnswer", object(check, &["object", "loadable"]));
    let unloaded = json!({
        "id": text(), "object": {"const": "adapter"}, "status": {"const": "unloaded"}, "was": text(),
    });
    add("Unloaded", object(unloaded, &["id", "object", "status", "was"]));
    add("Adapter", adapter(&refusals));
    let host = json!({
        "type": ["object", "null"],
        "description": "Copies in host memory; null where adapters are computed with there, or none are kept.",
        "properties": {"count": count(), "bytes": count(), "limit_bytes": count()},
    });
    let memory =
        object(json!({"bytes": count(), "limit_bytes": count(), "host": host}), &["bytes", "limit_bytes", "host"]);
    let standing = json!({
        "state": {"enum": ["in_place", "held", "waiting", "failed", "passed_over"]}, "reason": text(), "managed_by": text(),
    });
    let standings = json!({"type": "object", "additionalProperties": object(standing, &["state"])});
    let followed = json!({
        "looks": count(), "file": text(), "faults": texts(), "names": standings, "folders": standings,
    });
    let list = json!({
        "object": {"const": "list"}, "data": {"type": "array", "items": reference("Adapter")}, "memory": memory,
        "followed": object(followed, &["looks", "names"]),
        "base": object(json!({"id": text(), "digest": text()}), &["id", "digest"]),
    });
    add("AdapterList", object(list, &["object", "data", "memory", "followed", "base"]));
}

fn adapter(refusals: &Value) -> Value {
    let maybe_count = json!({"type": ["integer", "null"], "minimum": 0});
    let ms = json!({"type": "number", "minimum": 0});
    let load = json!({
        "type": ["object", "null"], "description": "How long the stages of the last load took.",
        "properties": {
            "from": {"enum": ["disk", "host"]}, "read_ms": ms, "hash_ms": ms, "check_ms": ms, "pack_ms": ms, "place_ms": ms,
        },
    });
    let times = json!({
        "type": "object", "description": "How long the stages of the change took, in its answer.",
        "properties": {
            "read_ms": ms, "hash_ms": ms, "check_ms": ms, "keep_ms": ms, "warm_ms": ms, "sync_ms": ms, "flip_ms": ms,
        },
    });
    let golden = json!({
        "base": {"type": "number"}, "candidate": {"type": "number"}, "recorded": {"type": ["number", "null"]},
    });
    let figures = json!({
        "tokens": count(), "mean_gap": ms, "max_gap": ms,
        "golden": {"type": "array", "items": {"type": "object", "properties": golden}},
    });
    let trial = json!({
        "type": ["object", "null"], "description": "What was found when it was run before a name pointed at it.",
        "properties": {
            "passed": {"type": "boolean"}, "at": count(), "test": maybe_text(), "reason": maybe_text(), "suite": text(),
            "figures": {"type": "object", "properties": figures},
        },
    });
    let quarantine = json!({
        "type": ["object", "null"], "description": "What failed last, and until when it is not tried again.",
        "properties": {
            "reason": text(), "version": maybe_text(), "failures": count(), "since": count(), "until": count(),
        },
    });
    let version = json!({
        "version": text(), "current": {"type": "boolean"}, "tier": {"enum": ["memory", "loading", "host", "disk", "gone"]},
        "bytes": count(), "host_bytes": count(), "kept_bytes": count(), "leases": count(), "pinned": {"type": "boolean"},
        "last_used": maybe_count, "load": load, "trial": trial,
    });
    let step = json!({
        "at": count(), "operation": {"enum": ["load", "replace", "rollback", "unload", "settings", "release", "import"]},
        "version": maybe_text(), "managed_by": text(), "who": text(), "why": maybe_text(), "source": maybe_text(),
        "base": maybe_text(),
    });
    object(
        json!({
            "id": text(), "object": {"const": "adapter"}, "status": {"enum": ["serving", "refused", "quarantined", "unloaded"]},
            "version": maybe_text(),
            "managed_by": {"enum": ["first_use", "folder", "flag", "api", "file", null]}, "hold": {"type": "boolean"},
            "pinned": {"type": "boolean"}, "source": maybe_text(), "since": maybe_count,
            "tier": {"enum": ["memory", "loading", "host", "disk", null]}, "bytes": maybe_count, "file_bytes": maybe_count,
            "rank": maybe_count, "targets": texts(), "trained_on": maybe_text(), "description": maybe_text(),
            "notes": texts(), "leases": count(), "last_used": maybe_count, "load": load, "refused": refusals,
            "quarantine": quarantine,
            "suite": {"type": ["object", "null"], "description": "After a load that named one: what the comparison found."},
            "versions": {"type": "array", "items": {"type": "object", "properties": version}},
            "history": {"type": "array", "items": {"type": "object", "properties": step}},
            "was": maybe_text(), "changed": {"type": "boolean"}, "times": times,
        }),
        &["id", "object", "status", "version", "managed_by", "hold", "pinned", "leases"],
    )
}

fn texts() -> Value {
    json!({"type": "array", "items": text()})
}
