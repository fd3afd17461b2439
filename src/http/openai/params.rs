//! The parameters that `/v1/chat/completions` and `/v1/completions` share.

use http::StatusCode;
use serde_json::{Map, Value};

use super::fields::{Fields, integer_at, number_at, shown, string_at, wrong_type};
use crate::{config::LimitsConfig, http::error::ApiError, terms::SamplingLayer, text::ChatOptions};

/// The largest answer that any context could hold; the context itself is checked with the prompt.
const MAX_TOKENS: usize = 1 << 31;
pub const MAX_MODEL_BYTES: usize = 512;
const MAX_USER_BYTES: usize = 512;
pub const MAX_CONVERSATION_BYTES: usize = 512;
/// TensorZero's name for a conversation.
const EPISODE: &str = "tensorzero::episode_id";
const MAX_LOGIT_BIAS: usize = 4096;
const MAX_STOP_TOKENS: usize = 256;
const MAX_METADATA: usize = 16;
const MAX_METADATA_KEY: usize = 64;
const MAX_METADATA_VALUE: usize = 512;
/// As in OpenAI's API.
pub const MAX_TOP_LOGPROBS: usize = 20;

/// What both routes are asked in the same words.
#[derive(Debug)]
pub struct Shared {
    pub model: String,
    pub sampling: SamplingLayer,
    pub n: u32,
    pub min_tokens: usize,
    pub stop: Vec<String>,
    pub include_stop: bool,
    pub stop_token_ids: Vec<u32>,
    pub ignore_eos: bool,
    pub skip_special_tokens: bool,
    pub logit_bias: Vec<(u32, f32)>,
    pub seed: Option<u64>,
    pub user: Option<String>,
    pub safety_identifier: Option<String>,
    /// The conversation's id, in the words of TensorZero or as metadata.
    pub conversation: Option<String>,
    pub metadata: Map<String, Value>,
    /// Keeps this request's KV cache apart, within its key's.
    pub cache_salt: Option<String>,
    pub form: Form,
}

/// How the answer is written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Form {
    pub stream: bool,
    /// The stream ends with a chunk of token counts.
    pub include_usage: bool,
    /// Each chunk is padded to a random length, against listeners who count bytes.
    pub obfuscate: bool,
    /// The request named a service tier, so the answer names the one there is.
    pub service_tier: bool,
    /// Fields that nobody knows.
    pub unknown: Vec<String>,
    /// Known hints that have no effect here.
    pub hints: Vec<&'static str>,
}

impl Form {
    /// Everything that was asked for and had no effect.
    pub fn ignored(&self) -> impl Iterator<Item = &str> {
        self.unknown.iter().map(String::as_str).chain(self.hints.iter().copied())
    }
}

impl Shared {
    /// Takes the shared parameters out of `fields`.
    ///
    /// # Errors
    /// 400, about the first parameter with a wrong type or a value out of its range.
    pub fn take(fields: &mut Fields, limits: &LimitsConfig) -> Result<Self, ApiError> {
        let model = string_at("model", fields.required("model")?, MAX_MODEL_BYTES)?;
        if model.is_empty() {
            return Err(ApiError::invalid("model", "model may not be empty"));
        }
        let metadata = metadata(fields)?;
        Ok(Self {
            model,
            sampling: sampling(fields)?,
            n: fields.count("n", 1..=limits.max_choices as usize)?.unwrap_or(1) as u32,
            min_tokens: fields.count("min_tokens", 0..=MAX_TOKENS)?.unwrap_or(0),
            stop: stop(fields, limits)?,
            include_stop: fields.boolean("include_stop_str_in_output")?.unwrap_or(false),
            stop_token_ids: stop_token_ids(fields)?,
            ignore_eos: fields.boolean("ignore_eos")?.unwrap_or(false),
            skip_special_tokens: fields.boolean("skip_special_tokens")?.unwrap_or(true),
            logit_bias: logit_bias(fields)?,
            // Every 64-bit integer names a random stream of its own.
            seed: fields.integer("seed", i64::MIN..=i64::MAX)?.map(i64::cast_unsigned),
            user: fields.string("user", MAX_USER_BYTES)?,
            safety_identifier: fields.string("safety_identifier", MAX_USER_BYTES)?,
            conversation: conversation(fields.string(EPISODE, MAX_CONVERSATION_BYTES)?, &metadata),
            metadata,
            cache_salt: fields.string("cache_salt", MAX_USER_BYTES)?,
            form: form(fields)?,
        })
    }
}

/// A token limit: at least `least`.
pub fn max_tokens(fields: &mut Fields, name: &str, least: usize) -> Result<Option<usize>, ApiError> {
    fields.count(name, least..=MAX_TOKENS)
}

/// Names what is left over; under strict fields that is an error.
pub fn leave(fields: Fields, limits: &LimitsConfig, form: &mut Form) -> Result<(), ApiError> {
    form.unknown.extend(fields.rest());
    match form.unknown.first() {
        Some(first) if limits.strict_fields => {
            let message = format!("{first} is not known");
            Err(ApiError::new(StatusCode::BAD_REQUEST, "unknown_parameter", message).about(first.clone()))
        }
        Some(_) | None => Ok(()),
    }
}

fn sampling(fields: &mut Fields) -> Result<SamplingLayer, ApiError> {
    let layer = SamplingLayer {
        temperature: fields.number("temperature")?,
        top_p: fields.number("top_p")?,
        // vLLM's -1 is our 0: all tokens.
        top_k: fields.integer("top_k", -1..=i64::from(u32::MAX))?.map(|k| u32::try_from(k).unwrap_or(0)),
        min_p: fields.number("min_p")?,
        repetition_penalty: fields.number("repetition_penalty")?,
        frequency_penalty: fields.number("frequency_penalty")?,
        presence_penalty: fields.number("presence_penalty")?,
    };
    match layer.fault() {
        Some((name, message)) => Err(ApiError::invalid(name, message)),
        None => Ok(layer),
    }
}

fn stop(fields: &mut Fields, limits: &LimitsConfig) -> Result<Vec<String>, ApiError> {
    let items = match fields.take("stop") {
        None => return Ok(Vec::new()),
        Some(text @ Value::String(_)) => vec![text],
        Some(Value::Array(items)) => items,
        Some(other) => return Err(wrong_type("stop", "a string or an array of strings", &other)),
    };
    let limit = limits.max_stop_strings;
    if items.len() > limit {
        let message = format!("stop has at most {limit} strings; this has {}", items.len());
        return Err(ApiError::invalid("stop", message));
    }
    let strings = items.into_iter().map(|item| string_at("stop", item, limits.max_stop_bytes));
    let strings = strings.collect::<Result<Vec<_>, _>>()?;
    if strings.iter().any(String::is_empty) {
        return Err(ApiError::invalid("stop", "a stop string may not be empty"));
    }
    Ok(strings)
}

fn stop_token_ids(fields: &mut Fields) -> Result<Vec<u32>, ApiError> {
    let items = fields.list("stop_token_ids")?.unwrap_or_default();
    if items.len() > MAX_STOP_TOKENS {
        let message = format!("stop_token_ids has at most {MAX_STOP_TOKENS} tokens; this has {}", items.len());
        return Err(ApiError::invalid("stop_token_ids", message));
    }
    token_ids("stop_token_ids", &items)
}

/// How a conversation is laid out: it ends with the beginning of an answer, unless its last message is to be continued.
pub fn chat_options(fields: &mut Fields) -> Result<ChatOptions, ApiError> {
    let continue_final_message = fields.boolean("continue_final_message")?.unwrap_or(false);
    let opens = fields.boolean("add_generation_prompt")?;
    if continue_final_message && opens == Some(true) {
        let message = "continue_final_message and add_generation_prompt cannot both be true";
        return Err(ApiError::invalid("continue_final_message", message));
    }
    Ok(ChatOptions { add_generation_prompt: opens.unwrap_or(!continue_final_message), continue_final_message })
}

/// A list of token ids that the request must have.
pub fn required_token_ids(fields: &mut Fields, name: &str) -> Result<Vec<u32>, ApiError> {
    match fields.required(name)? {
        Value::Array(items) => token_ids(name, &items),
        other => Err(wrong_type(name, "an array of token ids", &other)),
    }
}

/// Token ids at `place`; whether the vocabulary has them is checked with the prompt.
pub fn token_ids(place: &str, items: &[Value]) -> Result<Vec<u32>, ApiError> {
    items.iter().map(|item| Ok(integer_at(place, item, 0..=i64::from(u32::MAX))? as u32)).collect()
}

fn logit_bias(fields: &mut Fields) -> Result<Vec<(u32, f32)>, ApiError> {
    let Some(map) = fields.object("logit_bias")?.map(Fields::into_map) else { return Ok(Vec::new()) };
    if map.len() > MAX_LOGIT_BIAS {
        let message = format!("logit_bias has at most {MAX_LOGIT_BIAS} tokens; this has {}", map.len());
        return Err(ApiError::invalid("logit_bias", message));
    }
    map.iter()
        .map(|(key, value)| {
            // "7" and "07" would be one token said twice.
            let token = key.parse::<u32>().ok().filter(|token| token.to_string() == *key).ok_or_else(|| {
                ApiError::invalid("logit_bias", format!("logit_bias: '{}' is no token id", shown(key)))
            })?;
            let place = format!("logit_bias.{token}");
            let bias = number_at(&place, value)?;
            if (-100.0..=100.0).contains(&bias) {
                return Ok((token, bias));
            }
            let message = format!("{place} must be between -100 and 100; it is {bias}");
            Err(ApiError::invalid(place, message))
        })
        .collect()
}

/// What names a conversation in metadata, the first that is there and says something.
const CONVERSATION: [&str; 3] = ["conversation_id", "thread_id", "session_id"];

fn conversation(episode: Option<String>, metadata: &Map<String, Value>) -> Option<String> {
    let named = || CONVERSATION.iter().filter_map(|name| metadata.get(*name)?.as_str()).map(str::to_owned);
    episode.into_iter().chain(named()).find(|id| !id.is_empty())
}

fn metadata(fields: &mut Fields) -> Result<Map<String, Value>, ApiError> {
    let Some(map) = fields.object("metadata")?.map(Fields::into_map) else { return Ok(Map::new()) };
    check_metadata(&map)?;
    Ok(map)
}

/// At most 16 pairs of strings: keys of 64 characters, values of 512.
pub fn check_metadata(map: &Map<String, Value>) -> Result<(), ApiError> {
    let invalid = |message: String| Err(ApiError::invalid("metadata", message));
    if map.len() > MAX_METADATA {
        return invalid(format!("metadata has at most {MAX_METADATA} pairs; this has {}", map.len()));
    }
    for (key, value) in map {
        let length = key.chars().count();
        if length > MAX_METADATA_KEY {
            return invalid(format!("a key of metadata has at most {MAX_METADATA_KEY} characters; this has {length}"));
        }
        let place = format!("metadata.{}", shown(key));
        let Value::String(text) = value else { return Err(wrong_type(&place, "a string", value)) };
        let length = text.chars().count();
        if length > MAX_METADATA_VALUE {
            return invalid(format!("{place} has at most {MAX_METADATA_VALUE} characters; this has {length}"));
        }
    }
    Ok(())
}

fn form(fields: &mut Fields) -> Result<Form, ApiError> {
    let mut form = Form { stream: fields.boolean("stream")?.unwrap_or(false), ..Form::default() };
    if let Some(mut options) = fields.object("stream_options")? {
        form.include_usage = options.boolean("include_usage")?.unwrap_or(false);
        form.obfuscate = options.boolean("include_obfuscation")?.unwrap_or(false);
        form.unknown = options.rest();
    }
    let tiers = ["auto", "default", "flex", "scale", "priority", "fast"];
    form.service_tier = fields.word("service_tier", &tiers)?.is_some();
    // Hints that some models take; here they have no effect, and the answer says so.
    let hints: [(&'static str, &[&str]); 2] = [
        ("reasoning_effort", &["none", "minimal", "low", "medium", "high", "xhigh", "max"]),
        ("verbosity", &["low", "medium", "high"]),
    ];
    for (name, words) in hints {
        if fields.word(name, words)?.is_some_and(|word| word != "none") {
            form.hints.push(name);
        }
    }
    Ok(form)
}
