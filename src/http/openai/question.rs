//! From a request's fields to what the gateway is asked.

use std::time::Duration;

use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};

use super::{
    fields::{Fields, string_at, wrong_type},
    messages, params,
    params::{Form, MAX_TOP_LOGPROBS, Shared},
    refused,
};
use crate::{
    config::LimitsConfig,
    engine::KvSalt,
    gateway::{Ask, Caller, Prompt},
    http::error::ApiError,
    journal::CompletionKind,
    terms::{Origin, RecordPolicy},
};

/// Answer tokens of `/v1/completions` where the request names no limit, as in OpenAI's API.
const COMPLETIONS_MAX_TOKENS: usize = 16;

/// What the server knows of a request without its body.
#[derive(Clone, Debug, Default)]
pub struct Envelope {
    pub request_id: String,
    pub caller: Caller,
    /// `x-tunegate-record`.
    pub record: Option<RecordPolicy>,
    /// `x-tunegate-adapter-wait-ms`.
    pub adapter_wait: Option<Duration>,
    /// `x-tunegate-conversation`.
    pub conversation: Option<String>,
}

/// Reads a request to `/v1/chat/completions`.
///
/// # Errors
/// 400, about the first field that is wrong, unsupported or (under strict fields) unknown.
pub fn chat(map: Map<String, Value>, envelope: Envelope, limits: &LimitsConfig) -> Result<(Ask, Form), ApiError> {
    let mut fields = Fields::new(map);
    refused::settle_chat(&mut fields)?;
    let mut shared = Shared::take(&mut fields, limits)?;
    let messages = messages::take(&mut fields, &mut shared.form.unknown)?;
    let newer = params::max_tokens(&mut fields, "max_completion_tokens", 1)?;
    let older = params::max_tokens(&mut fields, "max_tokens", 1)?;
    let logprobs = fields.boolean("logprobs")?.unwrap_or(false);
    let top = fields.count("top_logprobs", 0..=MAX_TOP_LOGPROBS)?;
    if top.is_some_and(|top| top > 0) && !logprobs {
        return Err(ApiError::invalid("top_logprobs", "top_logprobs needs logprobs: true"));
    }
    let options = params::chat_options(&mut fields)?;
    let store = fields.boolean("store")?.unwrap_or(false);
    params::leave(fields, limits, &mut shared.form)?;
    let prompt = Prompt::Chat {
        messages,
        add_generation_prompt: options.add_generation_prompt,
        continue_final_message: options.continue_final_message,
    };
    let top = logprobs.then(|| top.unwrap_or(0) as u8);
    let question = Question {
        kind: CompletionKind::Chat,
        prompts: vec![prompt],
        max_tokens: newer.or(older),
        top,
        echo: false,
        store,
    };
    Ok(question.asked(shared, envelope))
}

/// Reads a request to `/v1/completions`.
///
/// # Errors
/// As [`chat`].
pub fn completions(
    map: Map<String, Value>,
    envelope: Envelope,
    limits: &LimitsConfig,
) -> Result<(Ask, Form), ApiError> {
    let mut fields = Fields::new(map);
    refused::settle_completions(&mut fields)?;
    let mut shared = Shared::take(&mut fields, limits)?;
    let prompts = prompts(fields.required("prompt")?, limits)?;
    let choices = prompts.len() * shared.n as usize;
    if choices > limits.max_choices as usize {
        let message = format!("{choices} choices are asked for (prompts × n); the limit is {}", limits.max_choices);
        return Err(ApiError::invalid(if shared.n > 1 { "n" } else { "prompt" }, message));
    }
    let echo = fields.boolean("echo")?.unwrap_or(false);
    let least = if echo { 0 } else { 1 };
    let max_tokens = params::max_tokens(&mut fields, "max_tokens", least)?.unwrap_or(COMPLETIONS_MAX_TOKENS);
    let top = fields.count("logprobs", 0..=MAX_TOP_LOGPROBS)?.map(|top| top as u8);
    params::leave(fields, limits, &mut shared.form)?;
    let question =
        Question { kind: CompletionKind::Completions, prompts, max_tokens: Some(max_tokens), top, echo, store: false };
    Ok(question.asked(shared, envelope))
}

/// A string, strings, token ids, or lists of token ids.
fn prompts(value: Value, limits: &LimitsConfig) -> Result<Vec<Prompt>, ApiError> {
    let items = match value {
        Value::String(text) => return Ok(vec![Prompt::Text(text)]),
        Value::Array(items) => items,
        other => return Err(wrong_type("prompt", "a string or an array", &other)),
    };
    match items.first() {
        None => Err(ApiError::invalid("prompt", "prompt may not be empty")),
        Some(Value::Number(_)) => Ok(vec![Prompt::Tokens(params::token_ids("prompt", &items)?)]),
        Some(_) if items.len() > limits.max_choices as usize => {
            let message = format!("{} prompts are given; the limit is {}", items.len(), limits.max_choices);
            Err(ApiError::invalid("prompt", message))
        }
        Some(_) => items.into_iter().enumerate().map(|(index, item)| prompt(index, item)).collect(),
    }
}

fn prompt(index: usize, item: Value) -> Result<Prompt, ApiError> {
    let place = format!("prompt[{index}]");
    match item {
        // How long a prompt may be is said in tokens, by the context.
        text @ Value::String(_) => Ok(Prompt::Text(string_at(&place, text, usize::MAX)?)),
        Value::Array(items) if items.is_empty() => {
            Err(ApiError::invalid("prompt", format!("{place} may not be empty")))
        }
        Value::Array(items) => Ok(Prompt::Tokens(params::token_ids(&place, &items)?)),
        other => Err(wrong_type(&place, "a string or an array of token ids", &other)),
    }
}

/// What the two routes ask in different words.
struct Question {
    kind: CompletionKind,
    prompts: Vec<Prompt>,
    max_tokens: Option<usize>,
    top: Option<u8>,
    echo: bool,
    /// Only chats can be listed afterwards, as at OpenAI.
    store: bool,
}

impl Question {
    fn asked(self, shared: Shared, envelope: Envelope) -> (Ask, Form) {
        let prefix = match self.kind {
            CompletionKind::Chat => "chatcmpl",
            CompletionKind::Completions => "cmpl",
        };
        let mut caller = envelope.caller;
        if let Some(salt) = &shared.cache_salt {
            caller.salt = salted(caller.salt, salt);
        }
        let ask = Ask {
            id: super::fresh_id(prefix),
            request_id: envelope.request_id,
            kind: self.kind,
            model: shared.model,
            prompts: self.prompts,
            sampling: shared.sampling,
            n: shared.n,
            max_tokens: self.max_tokens,
            min_tokens: shared.min_tokens,
            stop: shared.stop,
            include_stop: shared.include_stop,
            stop_token_ids: shared.stop_token_ids,
            ignore_eos: shared.ignore_eos,
            skip_special_tokens: shared.skip_special_tokens,
            logit_bias: shared.logit_bias,
            top_logprobs: self.top,
            echo: self.echo,
            seed: shared.seed,
            caller,
            record: envelope.record,
            adapter_wait: envelope.adapter_wait,
            store: self.store,
            user: shared.user,
            safety_identifier: shared.safety_identifier,
            conversation: envelope.conversation.or(shared.conversation),
            origin: Origin::Served,
            metadata: shared.metadata,
        };
        (ask, shared.form)
    }
}

/// A salt below the caller's own: whatever a client says, it never meets another key's cache.
fn salted(own: KvSalt, said: &str) -> KvSalt {
    KvSalt(Sha256::new().chain_update(own.0).chain_update(said).finalize().into())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(value: Value) -> Map<String, Value> {
        match value {
            Value::Object(map) => map,
            other => panic!("an object, not {other}"),
        }
    }

    fn ask_chat(value: Value) -> Result<(Ask, Form), ApiError> {
        let mut map = object(json!({"model": "poet", "messages": [{"role": "user", "content": "rain"}]}));
        map.extend(object(value));
        chat(map, Envelope::default(), &LimitsConfig::default())
    }

    fn ask_completions(value: Value) -> Result<(Ask, Form), ApiError> {
        let mut map = object(json!({"model": "poet"}));
        map.extend(object(value));
        completions(map, Envelope::default(), &LimitsConfig::default())
    }

    fn param(result: Result<(Ask, Form), ApiError>) -> String {
        result.unwrap_err().param.unwrap_or_default().into_owned()
    }

    #[test]
    fn every_parameter_of_a_chat_arrives() {
        let (ask, form) = ask_chat(json!({
            "temperature": 0.5, "top_p": 0.9, "top_k": -1, "min_p": 0.1, "repetition_penalty": 1.2,
            "frequency_penalty": -0.5, "presence_penalty": 0.25, "n": 2, "stop": "END", "max_tokens": 9,
            "max_completion_tokens": 7, "seed": -1, "logit_bias": {"5": -100, "6": 1.5}, "logprobs": true,
            "top_logprobs": 3, "stream": true, "stream_options": {"include_usage": true, "new": 1}, "user": "u",
            "metadata": {"k": "v", "session_id": "", "thread_id": "t"}, "safety_identifier": "s", "store": true, "ignore_eos": true, "min_tokens": 2, "stop_token_ids": [3],
            "skip_special_tokens": false, "include_stop_str_in_output": true, "add_generation_prompt": false,
            "verbosity": "low", "reasoning_effort": "none",
        }))
        .unwrap();
        let s = &ask.sampling;
        assert_eq!((s.temperature, s.top_p, s.top_k, s.min_p), (Some(0.5), Some(0.9), Some(0), Some(0.1)));
        assert_eq!(
            (s.repetition_penalty, s.frequency_penalty, s.presence_penalty),
            (Some(1.2), Some(-0.5), Some(0.25))
        );
        assert_eq!((ask.n, ask.max_tokens, ask.min_tokens, ask.seed), (2, Some(7), 2, Some(u64::MAX)));
        assert_eq!((ask.stop, ask.stop_token_ids), (vec!["END".to_owned()], vec![3]));
        assert_eq!((ask.logit_bias, ask.top_logprobs), (vec![(5, -100.0), (6, 1.5)], Some(3)));
        assert!(ask.ignore_eos && !ask.skip_special_tokens && ask.include_stop && ask.store);
        assert_eq!((ask.user.as_deref(), ask.metadata["k"].as_str()), (Some("u"), Some("v")));
        assert!(matches!(&ask.prompts[..], [Prompt::Chat { add_generation_prompt: false, .. }]));
        assert_eq!((ask.safety_identifier.as_deref(), ask.conversation.as_deref()), (Some("s"), Some("t")));
        assert!(ask.id.starts_with("chatcmpl-"));
        assert!(form.stream && form.include_usage);
        assert_eq!(form.ignored().collect::<Vec<_>>(), ["stream_options.new", "verbosity"]);
    }

    #[test]
    fn a_conversation_is_named_by_header_then_episode_then_metadata() {
        let metadata = json!({"conversation_id": "c", "thread_id": "t", "session_id": "s"});
        let named = |header: Option<&str>, more: Value| {
            let mut map = object(json!({"model": "m", "prompt": "a"}));
            map.extend(object(more));
            let envelope = Envelope { conversation: header.map(str::to_owned), ..Envelope::default() };
            completions(map, envelope, &LimitsConfig::default()).unwrap().0.conversation
        };
        let both = json!({"tensorzero::episode_id": "e", "metadata": metadata});
        assert_eq!(named(Some("h"), both.clone()).as_deref(), Some("h"));
        assert_eq!(named(None, both).as_deref(), Some("e"));
        assert_eq!(named(None, json!({"metadata": metadata})).as_deref(), Some("c"));
        assert_eq!(named(None, json!({"metadata": {"session_id": "s"}})).as_deref(), Some("s"));
        assert_eq!(named(None, json!({})), None);
    }

    #[test]
    fn a_prompt_has_four_forms() {
        let prompts = |prompt: Value| ask_completions(json!({"prompt": prompt})).unwrap().0.prompts;
        assert_eq!(prompts(json!("a")), [Prompt::Text("a".into())]);
        assert_eq!(prompts(json!(["a", "b"])), [Prompt::Text("a".into()), Prompt::Text("b".into())]);
        assert_eq!(prompts(json!([1, 2])), [Prompt::Tokens(vec![1, 2])]);
        assert_eq!(prompts(json!([[1], [2, 3]])), [Prompt::Tokens(vec![1]), Prompt::Tokens(vec![2, 3])]);
        for (bad, place) in [
            (json!([]), "prompt"),
            (json!([[]]), "prompt"),
            (json!({}), "prompt"),
            (json!([1, "a"]), "prompt"),
            (json!(["a", {}]), "prompt[1]"),
            (json!([-1]), "prompt"),
            (json!([[1, 1.5]]), "prompt[0]"),
            (json!(null), "prompt"),
        ] {
            assert_eq!(param(ask_completions(json!({"prompt": bad}))), place);
        }
    }

    #[test]
    fn choices_are_counted_over_all_prompts() {
        assert!(ask_completions(json!({"prompt": ["a", "b"], "n": 8})).is_ok());
        assert_eq!(param(ask_completions(json!({"prompt": ["a", "b"], "n": 9}))), "n");
        assert_eq!(param(ask_completions(json!({"prompt": vec!["a"; 17]}))), "prompt");
    }

    #[test]
    fn an_answer_of_no_tokens_is_only_an_echo() {
        assert_eq!(param(ask_completions(json!({"prompt": "a", "max_tokens": 0}))), "max_tokens");
        let (ask, _) = ask_completions(json!({"prompt": "a", "max_tokens": 0, "echo": true, "logprobs": 1})).unwrap();
        assert_eq!((ask.max_tokens, ask.echo, ask.top_logprobs), (Some(0), true, Some(1)));
        let (ask, form) = ask_completions(json!({"prompt": "a", "store": true})).unwrap();
        assert_eq!(ask.max_tokens, Some(COMPLETIONS_MAX_TOKENS));
        assert!(!ask.store && form.ignored().eq(["store"]), "only chats are stored");
    }

    #[test]
    fn strict_fields_refuse_what_nobody_knows_and_accept_known_hints() {
        let strict = LimitsConfig { strict_fields: true, ..LimitsConfig::default() };
        let ask = |value: Value| {
            let mut map = object(json!({"model": "poet", "messages": [{"role": "user", "content": "rain"}]}));
            map.extend(object(value));
            chat(map, Envelope::default(), &strict)
        };
        assert!(ask(json!({"verbosity": "low", "prompt_cache_key": "k"})).is_ok());
        for (value, place) in [
            (json!({"odd": 1}), "odd"),
            (json!({"stream_options": {"odd": 1}}), "stream_options.odd"),
            (json!({"messages": [{"role": "user", "content": "x", "odd": 1}]}), "messages[0].odd"),
        ] {
            let error = ask(value).unwrap_err();
            assert_eq!((error.code, error.param.as_deref()), ("unknown_parameter", Some(place)));
        }
    }

    #[test]
    fn a_client_salt_separates_caches_within_a_key_and_never_joins_two() {
        let salt = |own: u8, said: Option<&str>| {
            let caller = Caller { salt: KvSalt([own; 32]), ..Caller::default() };
            let map = object(json!({"model": "m", "prompt": "a", "cache_salt": said}));
            completions(map, Envelope { caller, ..Envelope::default() }, &LimitsConfig::default())
                .unwrap()
                .0
                .caller
                .salt
        };
        assert_eq!(salt(1, None), KvSalt([1; 32]));
        assert_ne!(salt(1, Some("x")), salt(1, Some("y")));
        assert_ne!(salt(1, Some("x")), salt(2, Some("x")));
    }
}
