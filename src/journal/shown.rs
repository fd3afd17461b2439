//! An answer on record as JSON, for people and programs outside.

use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::{
    store::{ChoiceRecord, Completion, Given, PromptContent},
    terms::TokenScore,
};

/// How much of an answer is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// Messages and texts.
    pub content: bool,
    /// Ids of tokens and their scores, and the sketch of the prompt.
    pub scores: bool,
}

/// One object for each request, its choices inside. What is not there is null.
pub fn answer(completion: &Completion, view: View) -> Value {
    let placement = completion.placement.as_ref();
    let version = completion.adapter.as_ref().map(|(_, version)| version.0);
    let facts = [
        ("id", to(&completion.id)),
        ("object", to("journal.answer")),
        ("created_ms", to(completion.created_ms)),
        ("origin", to(completion.origin)),
        ("kind", to(completion.kind)),
        ("key", to(&completion.key)),
        ("request_id", to(&completion.request_id)),
        ("model", to(&completion.model)),
        ("base", to(completion.base)),
        ("adapter", to(completion.adapter.as_ref().map(|(name, _)| name.as_str()))),
        ("version", to(version)),
        ("template", to(completion.template)),
        ("tokenizer", to(completion.tokenizer)),
        ("build", to(&completion.build)),
        ("system", to(completion.system)),
        ("sampling", to(&completion.sampling)),
        ("seed", to(completion.seed)),
        ("options", to(&completion.options)),
        ("usage", to(completion.usage)),
        ("timing", to(completion.timing)),
        ("user", to(&completion.user)),
        ("safety_identifier", to(&completion.safety_identifier)),
        ("conversation", to(placement.map(|placement| placement.conversation.as_str()))),
        ("conversation_by", to(placement.map(|placement| placement.conversation_by))),
        ("split", to(placement.map(|placement| placement.assignment.split))),
        ("split_by", to(placement.map(|placement| placement.assignment.by))),
        ("audit_share", to(placement.map(|placement| placement.assignment.audit_share))),
        ("metadata", to(&completion.metadata)),
        ("stored", to(completion.stored)),
        ("policy", to(completion.policy)),
        ("redaction", to(completion.redaction)),
        ("erased_ms", to(completion.erased_ms)),
        ("expired_ms", to(completion.expired_ms)),
    ];
    let mut shown: Map<String, Value> = facts.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    if view.content {
        let prompts = completion.content.as_ref().map(|content| content.prompts.iter());
        let prompts = prompts.map_or(Value::Null, |prompts| prompts.map(|p| prompt(p, view)).collect());
        shown.insert("prompts".to_owned(), prompts);
    }
    if view.scores {
        shown.insert("sketch".to_owned(), to(completion.sketch.map(|sketch| sketch.values().to_vec())));
    }
    shown.insert("choices".to_owned(), completion.choices.iter().map(|of| choice(of, view)).collect());
    shown.into()
}

/// Strings, finite numbers, maps and lists of them: nothing here can fail to be JSON.
fn to(value: impl Serialize) -> Value {
    serde_json::to_value(value).unwrap_or_default()
}

fn prompt(prompt: &PromptContent, view: View) -> Value {
    let mut shown = Map::new();
    match &prompt.given {
        Given::Messages(messages) => shown.insert("messages".to_owned(), json!(messages)),
        Given::Turns(turns) => shown.insert("messages".to_owned(), json!(turns)),
        Given::Text(text) => shown.insert("text".to_owned(), json!(text)),
        // There were no words.
        Given::Tokens => shown.insert("token_ids".to_owned(), json!(prompt.tokens)),
    };
    if view.scores {
        shown.insert("token_ids".to_owned(), json!(prompt.tokens));
    }
    shown.into()
}

fn choice(choice: &ChoiceRecord, view: View) -> Value {
    let mut shown = json!({
        "index": choice.index,
        "ending": choice.ending.as_str(),
        "tokens": choice.tokens,
        "fault": choice.fault,
        "mean_logprob": mean(choice.scores.iter().map(|score| score.logprob)),
    });
    if view.content {
        shown["text"] = json!(choice.text);
        shown["tool_calls"] = json!(choice.tool_calls);
    }
    if view.scores {
        let list = |of: fn(&TokenScore) -> Value| choice.scores.iter().map(of).collect::<Value>();
        shown["token_ids"] = list(|score| json!(score.token));
        shown["logprobs"] = list(|score| json!(score.logprob));
        shown["entropies"] = list(|score| json!(score.entropy));
        if choice.scores.iter().any(|score| !score.top.is_empty()) {
            shown["alternatives"] = list(|score| json!(score.top));
        }
    }
    shown
}

/// `None` of nothing.
pub(super) fn mean(values: impl Iterator<Item = f32>) -> Option<f64> {
    let (count, sum) = values.fold((0u32, 0.0), |(count, sum), value| (count + 1, sum + f64::from(value)));
    (count > 0).then(|| sum / f64::from(count))
}
