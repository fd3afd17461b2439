//! What requests and answers look like.

use serde_json::{Map, Value, json};

/// Every schema by its name.
pub fn all() -> Value {
    let mut all = Map::new();
    let mut add = |name: &str, schema: Value| all.insert(name.to_owned(), schema);
    add("Error", error());
    add("Message", message());
    add("ChatRequest", chat_request());
    add("CompletionRequest", completion_request());
    add("Usage", usage());
    add("ChatToken", chat_token());
    add("ChatCompletion", chat_completion());
    add("ChatChunk", chat_chunk());
    add("TextCompletion", text_completion());
    add("StoredList", list_of("ChatCompletion"));
    add("MessageList", list_of("Message"));
    add("MetadataRequest", object(json!({"metadata": metadata()}), &["metadata"]));
    let deleted = json!({"object": {"const": "chat.completion.deleted"}, "id": text(), "deleted": {"const": true}});
    add("Deleted", object(deleted, &["id", "object", "deleted"]));
    add("Model", model());
    let models = json!({"object": {"const": "list"}, "data": {"type": "array", "items": reference("Model")}});
    add("ModelList", object(models, &["object", "data"]));
    add("TokenizeRequest", tokenize_request());
    let tokens = json!({
        "count": count(), "max_model_len": count(), "tokens": token_ids(),
        "token_strs": {"type": ["array", "null"], "items": text()},
    });
    add("TokenizeAnswer", object(tokens, &["count", "max_model_len", "tokens", "token_strs"]));
    add("DetokenizeRequest", object(json!({"model": text(), "tokens": token_ids()}), &["tokens"]));
    add("DetokenizeAnswer", object(json!({"prompt": text()}), &["prompt"]));
    add("Replay", replay());
    super::adapters::add(&mut add);
    super::journal::add(&mut add);
    super::feedback::add(&mut add);
    super::flags::add(&mut add);
    super::report::add(&mut add);
    add("Status", object(json!({"status": {"enum": ["ok", "ready"]}}), &["status"]));
    add("Version", object(json!({"version": text()}), &["version"]));
    Value::Object(all)
}

pub(super) fn reference(schema: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{schema}")})
}

pub(super) fn object(properties: Value, required: &[&str]) -> Value {
    json!({"type": "object", "properties": properties, "required": required})
}

pub(super) fn text() -> Value {
    json!({"type": "string"})
}

pub(super) fn maybe_text() -> Value {
    json!({"type": ["string", "null"]})
}

pub(super) fn count() -> Value {
    json!({"type": "integer", "minimum": 0})
}

fn flag(default: bool) -> Value {
    json!({"type": "boolean", "default": default})
}

fn token_ids() -> Value {
    json!({"type": "array", "items": count()})
}

fn between(low: f64, high: f64) -> Value {
    json!({"type": "number", "minimum": low, "maximum": high})
}

fn metadata() -> Value {
    json!({
        "type": "object", "maxProperties": 16,
        "propertyNames": {"maxLength": 64},
        "additionalProperties": {"type": "string", "maxLength": 512},
    })
}

fn error() -> Value {
    let fields = json!({"message": text(), "type": text(), "param": maybe_text(), "code": maybe_text()});
    object(json!({"error": object(fields, &["message", "type", "param", "code"])}), &["error"])
}

fn message() -> Value {
    let part = object(json!({"type": {"const": "text"}, "text": text()}), &["type", "text"]);
    object(
        json!({
            "role": {"enum": ["developer", "system", "user", "assistant", "tool"]},
            "content": {"oneOf": [text(), {"type": "array", "minItems": 1, "items": part}]},
            "name": maybe_text(),
        }),
        &["role", "content"],
    )
}

/// The parameters that both routes read alike.
fn shared() -> Map<String, Value> {
    let properties = json!({
        "model": {"type": "string", "description": "The base's name, an adapter's, base:adapter, or adapter@version."},
        "temperature": between(0.0, 2.0),
        "top_p": {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
        "top_k": {"type": "integer", "minimum": -1, "description": "0 and -1 keep all tokens."},
        "min_p": between(0.0, 1.0),
        "repetition_penalty": {"type": "number", "exclusiveMinimum": 0, "maximum": 10},
        "frequency_penalty": between(-2.0, 2.0),
        "presence_penalty": between(-2.0, 2.0),
        "n": {"type": "integer", "minimum": 1, "default": 1},
        "stop": {"oneOf": [text(), {"type": "array", "items": text()}]},
        "include_stop_str_in_output": flag(false),
        "stop_token_ids": token_ids(),
        "ignore_eos": flag(false),
        "min_tokens": count(),
        "skip_special_tokens": flag(true),
        "logit_bias": {"type": "object", "additionalProperties": between(-100.0, 100.0)},
        "seed": {"type": "integer", "format": "int64", "description": "Drawn by the server, and recorded, if absent."},
        "stream": flag(false),
        "stream_options": object(
            json!({"include_usage": flag(false), "include_obfuscation": flag(false)}), &[]
        ),
        "user": {"type": "string", "maxLength": 512},
        "safety_identifier": {"type": "string", "maxLength": 512},
        "tensorzero::episode_id": {"type": "string", "maxLength": 512, "description": "The conversation that this belongs to."},
        "metadata": metadata(),
        "cache_salt": {"type": "string", "description": "Keeps this request's KV cache apart."},
        "service_tier": {"enum": ["auto", "default", "flex", "scale", "priority", "fast"]},
        "reasoning_effort": {
            "enum": ["none", "minimal", "low", "medium", "high", "xhigh", "max"], "description": "Has no effect."
        },
        "verbosity": {"enum": ["low", "medium", "high"], "description": "Has no effect."},
    });
    match properties {
        Value::Object(properties) => properties,
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => Map::new(),
    }
}

fn request(own: Value, required: &[&str]) -> Value {
    let mut properties = shared();
    if let Value::Object(own) = own {
        properties.extend(own);
    }
    object(Value::Object(properties), required)
}

fn chat_request() -> Value {
    request(
        json!({
            "messages": {"type": "array", "minItems": 1, "items": reference("Message")},
            "max_completion_tokens": {"type": "integer", "minimum": 1},
            "max_tokens": {"type": "integer", "minimum": 1, "description": "max_completion_tokens wins."},
            "store": {"type": "boolean", "default": false, "description": "Listable afterwards."},
            "logprobs": flag(false),
            "top_logprobs": {"type": "integer", "minimum": 0, "maximum": 20},
            "add_generation_prompt": flag(true),
            "continue_final_message": flag(false),
        }),
        &["model", "messages"],
    )
}

fn completion_request() -> Value {
    request(
        json!({
            "prompt": {"oneOf": [
                text(), {"type": "array", "items": text()}, token_ids(), {"type": "array", "items": token_ids()},
            ]},
            "max_tokens": {"type": "integer", "minimum": 0, "default": 16, "description": "0 only with echo."},
            "logprobs": {"type": "integer", "minimum": 0, "maximum": 20},
            "echo": flag(false),
        }),
        &["model", "prompt"],
    )
}

fn tokenize_request() -> Value {
    object(
        json!({
            "model": text(),
            "prompt": text(),
            "messages": {"type": "array", "items": reference("Message")},
            "add_special_tokens": flag(true),
            "add_generation_prompt": flag(true),
            "continue_final_message": flag(false),
            "return_token_strs": flag(false),
        }),
        &[],
    )
}

fn usage() -> Value {
    object(
        json!({
            "prompt_tokens": count(), "completion_tokens": count(), "total_tokens": count(),
            "prompt_tokens_details": object(json!({"cached_tokens": count(), "audio_tokens": count()}), &[]),
            "completion_tokens_details": {"type": "object", "additionalProperties": count()},
        }),
        &["prompt_tokens", "completion_tokens", "total_tokens"],
    )
}

fn chat_token() -> Value {
    let bytes = json!({"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 255}});
    let token = json!({"token": text(), "logprob": {"type": "number"}, "bytes": bytes});
    let alternative = object(token.clone(), &["token", "logprob", "bytes"]);
    let mut own = object(token, &["token", "logprob", "bytes", "top_logprobs"]);
    own["properties"]["top_logprobs"] = json!({"type": "array", "items": alternative});
    own
}

fn chat_logprobs() -> Value {
    let content = json!({"type": "array", "items": reference("ChatToken")});
    json!({"oneOf": [{"type": "null"}, object(json!({"content": content, "refusal": {"type": "null"}}), &["content"])]})
}

/// What every answer says of itself, and its choices.
fn answer(object_name: &str, choice: Value) -> Value {
    json!({
        "id": text(), "object": {"const": object_name}, "created": count(), "model": text(),
        "system_fingerprint": {"type": "string", "description": "Names base, adapter and template versions."},
        "service_tier": text(),
        "choices": {"type": "array", "items": choice},
        "usage": {"oneOf": [{"type": "null"}, reference("Usage")]},
    })
}

fn chat_completion() -> Value {
    let message = object(
        json!({"role": {"const": "assistant"}, "content": maybe_text(), "refusal": {"type": "null"}}),
        &["role", "content", "refusal"],
    );
    let choice = object(
        json!({
            "index": count(), "message": message, "logprobs": chat_logprobs(),
            "finish_reason": {"enum": ["stop", "length"]},
        }),
        &["index", "message", "logprobs", "finish_reason"],
    );
    let mut properties = answer("chat.completion", choice);
    properties["feedback"] = json!({
        "type": "array", "items": reference("Feedback"), "description": "Of a stored completion: what this key said of it.",
    });
    object(properties, &["id", "object", "created", "model", "choices", "usage"])
}

fn chat_chunk() -> Value {
    let delta = object(json!({"role": {"const": "assistant"}, "content": text()}), &[]);
    let choice = object(
        json!({
            "index": count(), "delta": delta, "logprobs": chat_logprobs(),
            "finish_reason": {"enum": ["stop", "length", null]},
        }),
        &["index", "delta", "logprobs", "finish_reason"],
    );
    let mut properties = answer("chat.completion.chunk", choice);
    properties["obfuscation"] = text();
    object(properties, &["id", "object", "created", "model", "choices"])
}

fn text_completion() -> Value {
    let lists = object(
        json!({
            "tokens": {"type": "array", "items": text()},
            "token_logprobs": {"type": "array", "items": {"type": ["number", "null"]}},
            "top_logprobs": {"type": "array", "items": {"type": ["object", "null"]}},
            "text_offset": {"type": "array", "items": count()},
        }),
        &["tokens", "token_logprobs", "top_logprobs", "text_offset"],
    );
    let choice = object(
        json!({
            "index": count(), "text": text(), "logprobs": {"oneOf": [{"type": "null"}, lists]},
            "finish_reason": {"enum": ["stop", "length", null]},
        }),
        &["index", "text", "logprobs", "finish_reason"],
    );
    let mut properties = answer("text_completion", choice);
    properties["obfuscation"] = text();
    object(properties, &["id", "object", "created", "model", "choices"])
}

fn replay() -> Value {
    let endings = json!({"enum": ["stop", "length", "cut_off", "failed", "client_left"]});
    let side = object(json!({"ending": endings, "text": text(), "tokens": token_ids()}), &["ending", "text", "tokens"]);
    let position = json!({"type": ["integer", "null"], "minimum": 0});
    let choice = object(
        json!({
            "index": count(), "recorded": side, "replayed": side, "identical": {"type": "boolean"},
            "parts_at": position, "max_logprob_gap": {"type": "number", "minimum": 0},
        }),
        &["index", "recorded", "replayed", "identical", "parts_at", "max_logprob_gap"],
    );
    object(
        json!({
            "id": text(), "model": text(), "version": text(), "seed": count(),
            "choices": {"type": "array", "items": choice},
        }),
        &["id", "model", "version", "seed", "choices"],
    )
}

fn list_of(schema: &str) -> Value {
    object(
        json!({
            "object": {"const": "list"},
            "data": {"type": "array", "items": reference(schema)},
            "first_id": maybe_text(), "last_id": maybe_text(), "has_more": {"type": "boolean"},
        }),
        &["object", "data", "first_id", "last_id", "has_more"],
    )
}

fn model() -> Value {
    object(
        json!({
            "id": text(), "object": {"const": "model"}, "created": count(), "owned_by": text(), "root": text(),
            "parent": maybe_text(), "max_model_len": count(),
        }),
        &["id", "object", "created", "owned_by", "root", "parent", "max_model_len"],
    )
}
