//! One operation for each route.

use serde_json::{Value, json};

use crate::http::route::Route;

/// What a route takes and gives.
pub fn operation(route: Route) -> Value {
    let mut operation = match route {
        Route::ChatCompletions => asks(
            ["createChatCompletion", "Answer a conversation with the base or an adapter."],
            "ChatRequest",
            json!({
                "application/json": {"schema": reference("ChatCompletion")},
                "text/event-stream": {"schema": reference("ChatChunk")},
            }),
        ),
        Route::Completions => asks(
            ["createCompletion", "Continue a text with the base or an adapter."],
            "CompletionRequest",
            json!({
                "application/json": {"schema": reference("TextCompletion")},
                "text/event-stream": {"schema": reference("TextCompletion")},
            }),
        ),
        Route::ListStored => json!({
            "operationId": "listStoredCompletions",
            "summary": "This key's completions that were asked for with store: true.",
            "parameters": [
                query("model", json!({"type": "string"}), "Only completions of this model."),
                query("after", json!({"type": "string"}), "The id before the page."),
                query("limit", json!({"type": "integer", "minimum": 1, "maximum": 100, "default": 20}), "Page size."),
                query("order", json!({"enum": ["asc", "desc"], "default": "asc"}), "By time."),
                {
                    "name": "metadata", "in": "query", "style": "deepObject", "explode": true,
                    "description": "Only completions with these metadata: metadata[key]=value.",
                    "schema": {"type": "object", "additionalProperties": {"type": "string"}},
                },
            ],
            "responses": answers(gives("StoredList")),
        }),
        Route::GetStored => one_stored("getStoredCompletion", "One stored completion.", gives("ChatCompletion")),
        Route::UpdateStored => {
            let mut operation = one_stored(
                "updateStoredCompletion",
                "Replace a stored completion's metadata.",
                gives("ChatCompletion"),
            );
            operation["requestBody"] = takes("MetadataRequest");
            operation
        }
        Route::DeleteStored => one_stored(
            "deleteStoredCompletion",
            "Erase a stored completion's content; the fact that it was answered stays.",
            gives("Deleted"),
        ),
        Route::StoredMessages => {
            one_stored("getStoredMessages", "The messages that a stored completion answers.", gives("MessageList"))
        }
        Route::Models => {
            plain("listModels", "The base, then its adapters, as far as this key may use them.", gives("ModelList"))
        }
        Route::Model => {
            let mut operation = plain("getModel", "One model; its id may hold slashes.", gives("Model"));
            operation["parameters"] = json!([id("The model's id.")]);
            operation
        }
        Route::Tokenize => {
            asks(["tokenize", "The tokens of a text or of a conversation."], "TokenizeRequest", gives("TokenizeAnswer"))
        }
        Route::Detokenize => {
            asks(["detokenize", "The text of tokens."], "DetokenizeRequest", gives("DetokenizeAnswer"))
        }
        Route::Replay => one_stored(
            "replayCompletion",
            "Run a recorded request again on its recorded versions, sampling and seed, and compare. For admins.",
            gives("Replay"),
        ),
        Route::Health => plain("health", "Whether the engine is alive.", gives("Status")),
        Route::Ready => plain("ready", "Whether new requests are welcome.", gives("Status")),
        Route::Metrics => plain(
            "metrics",
            "Counters, gauges and histograms in Prometheus' text format.",
            json!({"text/plain": {"schema": {"type": "string"}}}),
        ),
        Route::Version => plain("version", "The server's version.", gives("Version")),
        Route::OpenApi => {
            plain("openapi", "This document.", json!({"application/json": {"schema": {"type": "object"}}}))
        }
    };
    if route.is_open() {
        operation["security"] = json!([]);
    }
    operation
}

fn reference(schema: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{schema}")})
}

fn gives(schema: &str) -> Value {
    json!({"application/json": {"schema": reference(schema)}})
}

fn takes(schema: &str) -> Value {
    json!({"required": true, "content": gives(schema)})
}

fn answers(content: Value) -> Value {
    json!({
        "200": {"description": "The answer.", "content": content},
        "4XX": {"$ref": "#/components/responses/Error"},
        "5XX": {"$ref": "#/components/responses/Error"},
    })
}

fn plain(id: &str, summary: &str, content: Value) -> Value {
    json!({"operationId": id, "summary": summary, "responses": answers(content)})
}

fn asks([id, summary]: [&str; 2], schema: &str, content: Value) -> Value {
    let mut operation = plain(id, summary, content);
    operation["requestBody"] = takes(schema);
    operation["parameters"] = json!([{
        "name": "x-tunegate-record", "in": "header",
        "description": "Records less of this request than the server and the key would.",
        "schema": {"enum": ["full", "metadata", "none"]},
    }]);
    operation
}

fn one_stored(operation_id: &str, summary: &str, content: Value) -> Value {
    let mut operation = plain(operation_id, summary, content);
    operation["parameters"] = json!([id("The completion's id.")]);
    operation
}

fn id(description: &str) -> Value {
    json!({"name": "id", "in": "path", "required": true, "description": description, "schema": {"type": "string"}})
}

fn query(name: &str, schema: Value, description: &str) -> Value {
    json!({"name": name, "in": "query", "description": description, "schema": schema})
}
