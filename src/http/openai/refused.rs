//! Known parameters that are not honoured: harmless ones are accepted, those that would change the answer are refused.

use serde_json::{Value, json};

use super::fields::Fields;
use crate::http::error::ApiError;

/// A known parameter without effect here.
#[derive(Clone, Copy)]
struct Stance {
    name: &'static str,
    /// Values that ask for nothing that is not done anyway. `null` never gets here.
    harmless: fn(&Value) -> bool,
    /// Why anything else is refused.
    reason: &'static str,
}

const fn refused(name: &'static str, harmless: fn(&Value) -> bool, reason: &'static str) -> Stance {
    Stance { name, harmless, reason }
}

/// Accepted whatever it says: it tells a provider about billing, caching or speed, never about the answer.
const fn harmless(name: &'static str) -> Stance {
    Stance { name, harmless: |_| true, reason: "" }
}

fn never(_: &Value) -> bool {
    false
}

fn no(value: &Value) -> bool {
    *value == json!(false)
}

fn yes(value: &Value) -> bool {
    *value == json!(true)
}

fn zero(value: &Value) -> bool {
    value.as_f64() == Some(0.0)
}

fn one(value: &Value) -> bool {
    value.as_f64() == Some(1.0)
}

fn empty(value: &Value) -> bool {
    match value {
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        Value::String(text) => text.is_empty(),
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}

fn plain_text(value: &Value) -> bool {
    *value == json!({"type": "text"})
}

const CONSTRAINED: &str = "constrained decoding is not served";
const BEAMS: &str = "answers are sampled, not searched for";
const SAMPLER: &str = "this sampler is not served";

/// On both routes.
const BOTH: &[Stance] = &[
    refused("guided_json", never, CONSTRAINED),
    refused("guided_regex", never, CONSTRAINED),
    refused("guided_choice", never, CONSTRAINED),
    refused("guided_grammar", never, CONSTRAINED),
    refused("structured_outputs", empty, CONSTRAINED),
    refused("grammar", empty, CONSTRAINED),
    refused("json_schema", never, CONSTRAINED),
    refused("response_format", plain_text, "answers are text"),
    refused("allowed_token_ids", never, CONSTRAINED),
    refused("bad_words", empty, "use logit_bias"),
    refused("logits_processors", empty, SAMPLER),
    refused("use_beam_search", no, BEAMS),
    refused("length_penalty", one, BEAMS),
    refused("early_stopping", no, BEAMS),
    refused("typical_p", one, SAMPLER),
    refused("mirostat", zero, SAMPLER),
    refused("dry_multiplier", zero, SAMPLER),
    refused("xtc_probability", zero, SAMPLER),
    refused("samplers", never, SAMPLER),
    refused("repeat_penalty", one, "use repetition_penalty"),
    refused("n_predict", never, "use max_tokens"),
    refused("n_probs", zero, "use logprobs"),
    refused("prompt_logprobs", never, "use echo and logprobs of /v1/completions"),
    refused("truncate_prompt_tokens", never, "a prompt is read whole or refused"),
    refused("return_token_ids", no, "answers are text; /tokenize gives their ids"),
    refused("return_tokens_as_token_ids", no, "answers are text"),
    refused("spaces_between_special_tokens", yes, "text is what the tokenizer says"),
    refused("priority", zero, "requests are served in the order of their arrival"),
    refused("thinking_token_budget", never, "the answer is not split into thinking and answering"),
    refused("repetition_detection", never, SAMPLER),
    refused("kv_transfer_params", empty, "there is one server"),
    refused("vllm_xargs", empty, "they are vLLM's own"),
    refused("best_of", one, "use n"),
    harmless("guided_decoding_backend"),
    harmless("guided_whitespace_pattern"),
    harmless("cache_prompt"),
    harmless("prompt_cache_key"),
    harmless("prompt_cache_options"),
    harmless("prompt_cache_retention"),
    harmless("request_id"),
];

/// On `/v1/chat/completions`.
const CHAT: &[Stance] = &[
    refused("tools", empty, "functions are not called"),
    refused("tool_choice", |value| matches!(value.as_str(), Some("none" | "auto")), "functions are not called"),
    refused("functions", empty, "functions are not called"),
    refused("function_call", |value| matches!(value.as_str(), Some("none" | "auto")), "functions are not called"),
    refused("audio", never, "answers are text"),
    refused("modalities", |value| *value == json!(["text"]), "answers are text"),
    refused("web_search_options", never, "there is no search"),
    refused("moderation", never, "there is no moderation"),
    refused("chat_template", never, "templates come with the model or the adapter"),
    refused("chat_template_kwargs", empty, "templates are rendered with the messages alone"),
    refused("documents", empty, "templates are rendered with the messages alone"),
    refused("mm_processor_kwargs", empty, "messages are text"),
    refused("add_special_tokens", no, "special tokens come from the chat template"),
    refused("echo", no, "use /v1/completions, or continue_final_message"),
    refused("include_reasoning", yes, "the answer is not split into thinking and answering"),
    harmless("parallel_tool_calls"),
    harmless("prediction"),
];

/// On `/v1/completions`.
const COMPLETIONS: &[Stance] = &[
    refused("suffix", empty, "text is continued, not filled in"),
    refused("add_special_tokens", yes, "send token ids for a prompt without them"),
    refused("prompt_embeds", never, "prompts are text or token ids"),
];

/// Takes every known parameter without effect out of `fields`.
///
/// # Errors
/// 400 `unsupported_parameter`, naming the first that would change the answer.
pub fn settle_chat(fields: &mut Fields) -> Result<(), ApiError> {
    settle(fields, &[BOTH, CHAT])
}

/// As [`settle_chat`], for `/v1/completions`.
pub fn settle_completions(fields: &mut Fields) -> Result<(), ApiError> {
    settle(fields, &[BOTH, COMPLETIONS])
}

fn settle(fields: &mut Fields, tables: &[&[Stance]]) -> Result<(), ApiError> {
    for stance in tables.iter().copied().flatten() {
        if let Some(value) = fields.take(stance.name)
            && !(stance.harmless)(&value)
        {
            return Err(ApiError::unsupported(stance.name, stance.reason));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chat(value: Value) -> Result<Vec<String>, Option<String>> {
        let Value::Object(map) = value else { panic!("an object") };
        let mut fields = Fields::new(map);
        settle_chat(&mut fields).map_err(|error| error.param.map(Into::into))?;
        Ok(fields.rest())
    }

    #[test]
    fn what_would_change_the_answer_is_refused_by_name() {
        for value in [
            json!({"tools": [{"type": "function"}]}),
            json!({"tool_choice": "required"}),
            json!({"response_format": {"type": "json_object"}}),
            json!({"modalities": ["text", "audio"]}),
            json!({"chat_template": "{{ messages }}"}),
            json!({"guided_regex": "a*"}),
            json!({"use_beam_search": true}),
            json!({"best_of": 3}),
        ] {
            let name = value.as_object().unwrap().keys().next().cloned();
            assert_eq!(chat(value), Err(name));
        }
    }

    #[test]
    fn the_manual_names_every_parameter_without_effect() {
        let manual = include_str!("../../../docs/api.md");
        for stance in [BOTH, CHAT, COMPLETIONS].concat() {
            assert!(manual.contains(&format!("`{}`", stance.name)), "{}", stance.name);
        }
    }

    #[test]
    fn what_asks_for_nothing_is_accepted_and_not_called_unknown() {
        let value = json!({
            "tools": [], "tool_choice": "auto", "response_format": {"type": "text"}, "modalities": ["text"],
            "best_of": 1, "guided_json": null, "prompt_cache_key": "k", "parallel_tool_calls": true, "made_up": 1,
        });
        assert_eq!(chat(value), Ok(vec!["made_up".into()]));
    }
}
