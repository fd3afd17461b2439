//! What judgements look like.

use serde_json::{Value, json};

use super::{
    operations::{answers, gives, id, plain, query},
    schemas::{count, maybe_text, object, reference, text},
};

pub fn give() -> Value {
    let one_or_many =
        |one: &str, many: &str| json!({"application/json": {"schema": {"oneOf": [reference(one), reference(many)]}}});
    let mut give = plain(
        "giveFeedback",
        "Judge answers: durable when this answers. One object, or an array of which all are taken or none.",
        one_or_many("Feedback", "FeedbackBatch"),
    );
    give["requestBody"] = json!({"required": true, "content": one_or_many("FeedbackRequest", "FeedbackRequests")});
    give
}

pub fn list() -> Value {
    json!({
        "operationId": "listFeedback",
        "summary": "What this key said of answers; all feedback for reviewers and admins.",
        "parameters": [
            query("completion_id", text(), "On this answer; `inference_id` means the same."),
            query("conversation_id", text(), "On this conversation; `episode_id` means the same."),
            query("user", text(), "On this end user."),
            query("metric_name", text(), "Of this name; `name` means the same."),
            query("source", source(), "Of this source."),
            query("standing", json!({"enum": ["joined", "in_flight", "aside"]}), "Whether its target is on record."),
            query("retracted", json!({"type": "boolean"}), "Whether it was retracted."),
            query("after", text(), "The id before the page."),
            query("limit", json!({"type": "integer", "minimum": 1, "maximum": 100, "default": 20}), "Page size."),
            query("order", json!({"enum": ["asc", "desc"], "default": "asc"}), "By the time it was accepted."),
        ],
        "responses": answers(gives("FeedbackList")),
    })
}

pub fn get() -> Value {
    one(plain("getFeedback", "One judgement.", gives("Feedback")))
}

pub fn retract() -> Value {
    one(plain("retractFeedback", "It stays on record, and counts no more.", gives("FeedbackRetracted")))
}

fn one(mut operation: Value) -> Value {
    operation["parameters"] = json!([id("The judgement's id: ours, or the client's own.")]);
    operation
}

/// Every schema by its name.
pub fn add(add: &mut impl FnMut(&str, Value) -> Option<Value>) {
    let choice = json!({"type": ["integer", "null"], "minimum": 0, "description": "All choices if absent."});
    let tags = json!({"type": "object", "maxProperties": 64, "additionalProperties": {"type": "string"}});
    let value = json!({"type": ["boolean", "number", "string", "null"]});
    let request = json!({
        "id": {"type": "string", "maxLength": 128, "description": "Your own: the same id with the same words is the same judgement."},
        "completion_id": text(), "inference_id": {"type": "string", "description": "The same as completion_id."},
        "choice_index": choice, "conversation_id": text(),
        "episode_id": {"type": "string", "description": "The same as conversation_id."}, "user": text(),
        "metric_name": {"type": "string", "maxLength": 64, "description": "What the value means; `comment` and `demonstration` make it words and a better answer."},
        "name": {"type": "string", "description": "The same as metric_name."}, "value": value,
        "thumbs": {"enum": ["up", "down", true, false]}, "comment": text(),
        "correction": {"description": "What the answer should have been: a string, parts of text, or a message of the assistant."},
        "demonstration": {"description": "The same as correction."},
        "source": source(), "author": {"type": "string", "description": "The key's name if absent."}, "tags": tags,
        "dryrun": {"type": "boolean", "default": false, "description": "Only look whether it could be taken."},
    });
    add("FeedbackRequest", object(request, &[]));
    add(
        "FeedbackRequests",
        json!({"type": "array", "minItems": 1, "maxItems": 1000, "items": reference("FeedbackRequest")}),
    );
    let maybe_count = json!({"type": ["integer", "null"], "minimum": 0});
    let answer = json!({
        "type": ["object", "null"], "description": "The facts of the answer, where it is on record; when reading.",
        "properties": {"created": count(), "model": text(), "adapter": maybe_text(), "version": maybe_text()},
    });
    let feedback = json!({
        "object": {"const": "feedback"}, "id": maybe_text(), "feedback_id": maybe_text(), "client_id": maybe_text(),
        "created": maybe_count, "completion_id": text(), "choice_index": choice, "conversation_id": text(), "user": text(),
        "metric_name": text(), "value": value, "comment": maybe_text(), "correction": maybe_text(), "source": source(),
        "author": maybe_text(), "key": maybe_text(), "tags": tags,
        "standing": {"enum": ["joined", "in_flight", "aside", null]}, "retracted": maybe_count, "erased": maybe_count,
        "answer": answer,
    });
    add("Feedback", object(feedback, &["object", "id", "feedback_id", "metric_name", "value", "source", "tags"]));
    let data = json!({"type": "array", "items": reference("Feedback")});
    add("FeedbackBatch", object(json!({"object": {"const": "list"}, "data": data}), &["object", "data"]));
    let list = json!({
        "object": {"const": "list"}, "data": data, "first_id": maybe_text(), "last_id": maybe_text(),
        "has_more": {"type": "boolean"},
    });
    add("FeedbackList", object(list, &["object", "data", "first_id", "last_id", "has_more"]));
    let retracted = json!({
        "object": {"const": "feedback.retracted"}, "id": text(), "feedback_id": text(), "retracted": {"const": true},
    });
    add("FeedbackRetracted", object(retracted, &["object", "id", "retracted"]));
}

fn source() -> Value {
    json!({"enum": ["end_user", "reviewer", "judge", "code"], "default": "end_user"})
}
