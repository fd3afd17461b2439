//! How feedback is shown.

use serde_json::{Map, Value, json};

use crate::journal::{Feedback, Judgement, KeptFeedback, Target};

/// Feedback with the facts of the answer that it is about.
pub fn shown_feedback(kept: &KeptFeedback) -> Value {
    let mut value = taken(kept);
    value["answer"] = match &kept.answer {
        Some(answer) => {
            let (name, version) = answer.adapter.clone().unzip();
            json!({"created": answer.created_ms / 1000, "model": answer.model, "adapter": name, "version": version})
        }
        None => Value::Null,
    };
    value
}

/// What whoever gave it is told.
pub fn taken(kept: &KeptFeedback) -> Value {
    let feedback = &kept.feedback;
    let mut value = untaken(feedback);
    value["id"] = json!(feedback.id);
    value["feedback_id"] = json!(feedback.id);
    value["created"] = json!(feedback.at_ms / 1000);
    value["standing"] = json!(kept.standing);
    value
}

/// Feedback that was only looked at.
pub fn untaken(feedback: &Feedback) -> Value {
    let mut fields = Map::new();
    let mut set = |name: &str, value: Value| fields.insert(name.to_owned(), value);
    set("object", json!("feedback"));
    set("id", Value::Null);
    // TensorZero's clients look here.
    set("feedback_id", Value::Null);
    set("client_id", json!(feedback.client_id));
    set("created", Value::Null);
    match &feedback.target {
        Target::Answer { completion, choice } => {
            set("completion_id", json!(completion));
            set("choice_index", json!(choice));
        }
        Target::Conversation(id) => {
            set("conversation_id", json!(id));
        }
        Target::User(user) => {
            set("user", json!(user));
        }
    }
    set("metric_name", json!(feedback.name));
    set("value", shown_value(feedback.value.as_ref()));
    set("comment", json!(feedback.comment));
    set("correction", json!(feedback.correction));
    set("source", json!(feedback.source));
    set("author", json!(feedback.author));
    set("key", json!(feedback.key));
    set("tags", Value::Object(feedback.tags.clone()));
    set("standing", Value::Null);
    set("retracted", json!(feedback.retracted_ms.map(|ms| ms / 1000)));
    set("erased", json!(feedback.erased_ms.map(|ms| ms / 1000)));
    Value::Object(fields)
}

fn shown_value(value: Option<&Judgement>) -> Value {
    match value {
        Some(Judgement::Boolean(value)) => json!(value),
        Some(Judgement::Number(value)) => json!(value),
        Some(Judgement::Category(value)) => json!(value),
        None => Value::Null,
    }
}
