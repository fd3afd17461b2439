//! One operation for each route.

use serde_json::{Value, json};

use super::journal;
use super::{feedback, flags};
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
        Route::SearchJournal
        | Route::TailJournal
        | Route::ExportJournal
        | Route::ImportJournal
        | Route::EraseUser
        | Route::JournalAccess
        | Route::NoteAccess
        | Route::GetJournal => journal::operation(route),
        Route::GiveFeedback => feedback::give(),
        Route::ListFeedback => feedback::list(),
        Route::GetFeedback => feedback::get(),
        Route::RetractFeedback => feedback::retract(),
        Route::ListFlags => flags::list(),
        Route::ExportFlags => flags::export(),
        Route::GetFlag => flags::get(),
        Route::ResolveFlag => flags::resolve(),
        Route::FlagRules => flags::rules(),
        Route::TryFlagRules => flags::try_rules(),
        Route::ApplyFlagRules => flags::apply(),
        Route::LoadAdapter => changes(
            [
                "loadAdapter",
                "Give a name an adapter, or another version in its place. A bare sentence, as vLLM's, unless JSON is accepted.",
            ],
            "LoadRequest",
            spoken("Adapter"),
        ),
        Route::UnloadAdapter => changes(
            ["unloadAdapter", "Take a name away; requests under way end on its version."],
            "UnloadRequest",
            spoken("Unloaded"),
        ),
        Route::ListAdapters => {
            plain("listAdapters", "Every adapter, where it is and who manages it.", gives("AdapterList"))
        }
        Route::CheckAdapter => changes(
            ["checkAdapter", "What an adapter would change in the base, or every reason for refusal; loads nothing."],
            "CheckRequest",
            gives("CheckAnswer"),
        ),
        Route::GetAdapter => one_stored(
            "getAdapter",
            "One adapter with its versions and its history; its name may hold slashes.",
            gives("Adapter"),
        ),
        Route::RollbackAdapter => {
            let mut operation =
                one_stored("rollbackAdapter", "One step back, or to a version that the name had.", gives("Adapter"));
            operation["requestBody"] = takes("RollbackRequest");
            operation
        }
        Route::ReleaseAdapter => {
            let summary = "End a name's hold: the file of desired adapters may move it again.";
            let mut operation = one_stored("releaseAdapter", summary, gives("Adapter"));
            operation["requestBody"] = takes("ReleaseRequest");
            operation
        }
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

pub(super) fn reference(schema: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{schema}")})
}

pub(super) fn gives(schema: &str) -> Value {
    json!({"application/json": {"schema": reference(schema)}})
}

pub(super) fn takes(schema: &str) -> Value {
    json!({"required": true, "content": gives(schema)})
}

pub(super) fn answers(content: Value) -> Value {
    json!({
        "200": {"description": "The answer.", "content": content},
        "4XX": {"$ref": "#/components/responses/Error"},
        "5XX": {"$ref": "#/components/responses/Error"},
    })
}

pub(super) fn plain(id: &str, summary: &str, content: Value) -> Value {
    json!({"operationId": id, "summary": summary, "responses": answers(content)})
}

fn asks([id, summary]: [&str; 2], schema: &str, content: Value) -> Value {
    let mut operation = plain(id, summary, content);
    operation["requestBody"] = takes(schema);
    operation["parameters"] = json!([{
        "name": "x-tunegate-record", "in": "header",
        "description": "Records less of this request than the server and the key would.",
        "schema": {"enum": ["full", "metadata", "none"]},
    }, {
        "name": "x-tunegate-conversation", "in": "header",
        "description": "The conversation that this belongs to.",
        "schema": {"type": "string", "minLength": 1, "maxLength": 512},
    }, {
        "name": "x-tunegate-adapter-wait-ms", "in": "header",
        "description": "How long to wait for an adapter that is not in memory; after that the answer is 503 with Retry-After.",
        "schema": {"type": "integer", "minimum": 0, "maximum": 3_600_000},
    }]);
    operation
}

/// A change of what is served.
pub(super) fn changes([id, summary]: [&str; 2], schema: &str, content: Value) -> Value {
    let mut operation = plain(id, summary, content);
    operation["requestBody"] = takes(schema);
    operation
}

/// vLLM's sentence, or JSON.
fn spoken(schema: &str) -> Value {
    let mut content = gives(schema);
    content["text/plain"] = json!({"schema": {"type": "string"}});
    content
}

pub(super) fn one_stored(operation_id: &str, summary: &str, content: Value) -> Value {
    let mut operation = plain(operation_id, summary, content);
    operation["parameters"] = json!([id("The completion's id, or the adapter's name.")]);
    operation
}

pub(super) fn id(description: &str) -> Value {
    json!({"name": "id", "in": "path", "required": true, "description": description, "schema": {"type": "string"}})
}

pub(super) fn query(name: &str, schema: Value, description: &str) -> Value {
    json!({"name": name, "in": "query", "description": description, "schema": schema})
}
