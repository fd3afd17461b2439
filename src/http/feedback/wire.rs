//! One judgement as a client sends it: our own names, TensorZero's, and plain thumbs.

use http::StatusCode;
use serde_json::{Map, Value};

use crate::{
    http::{
        error::ApiError,
        openai::{
            fields::{Fields, shown, string_at, wrong_type},
            fresh_id,
            messages::text_of,
        },
    },
    journal::{Feedback, Judgement, Source, Standing, Target},
    terms::{Digest, Hasher},
};

/// What our own ids begin with; a client's may not.
pub const PREFIX: &str = "fb-";
const MAX_ID_BYTES: usize = 128;
const MAX_TARGET_BYTES: usize = 512;
const MAX_NAME_BYTES: usize = 64;
const MAX_CATEGORY_BYTES: usize = 256;
const MAX_COMMENT_BYTES: usize = 64 << 10;
const MAX_CORRECTION_BYTES: usize = 1 << 20;
const MAX_AUTHOR_BYTES: usize = 256;
const MAX_CHOICE: usize = 1023;
const MAX_TAGS: usize = 64;
const MAX_TAG_NAME: usize = 64;
const MAX_TAG_VALUE: usize = 512;

/// The name of plain approval and disapproval.
const THUMBS: &str = "thumbs";
/// Names whose value is words about the answer, or a better one; TensorZero reserves the first two.
const COMMENT: &str = "comment";
const DEMONSTRATION: &str = "demonstration";
const CORRECTION: &str = "correction";

/// Who brings judgements.
pub struct Giver {
    pub key: Option<String>,
    /// Whether it may judge other keys' answers.
    pub any_key: bool,
    pub now_ms: i64,
}

/// One judgement that was read.
#[derive(Debug)]
pub struct Given {
    pub feedback: Feedback,
    /// It is only to be looked at.
    pub dryrun: bool,
}

/// Our id for a client's own, under its key.
pub fn id_of(key: Option<&str>, client_id: &str) -> String {
    let digest =
        Hasher::new().part("key", key.unwrap_or_default().as_bytes()).part("id", client_id.as_bytes()).finish();
    format!("{PREFIX}{:.24}", digest.to_string())
}

/// Reads the judgement at `place` (empty where it is the whole body).
///
/// # Errors
/// 400 naming the field. A field that is not known is refused: a judgement with a slip in it would be lost in silence.
pub fn read(place: &str, item: Value, giver: &Giver) -> Result<Given, ApiError> {
    let mut fields = match (place, item) {
        ("", Value::Object(map)) => Fields::new(map),
        (place, item) => Fields::at(place, item)?,
    };
    let client_id = client_id(&mut fields)?;
    let target = target(&mut fields)?;
    let said = said(&mut fields, &target)?;
    let source = fields.word("source", &Source::ALL.map(Source::as_str))?;
    let source = source.and_then(|word| Source::parse(&word)).unwrap_or(Source::EndUser);
    let author = fields.string("author", MAX_AUTHOR_BYTES)?;
    let tags = tags(&mut fields)?;
    let dryrun = fields.boolean("dryrun")?.unwrap_or(false);
    let whole = fields.place("");
    if let Some(unknown) = fields.rest().first() {
        let message = format!("{unknown} is not known here");
        return Err(ApiError::new(StatusCode::BAD_REQUEST, "unknown_parameter", message).about(unknown.clone()));
    }
    if said.value.is_none() && said.comment.is_none() && said.correction.is_none() {
        let message = "it says nothing: it needs a value, thumbs, a comment or a correction";
        let error = ApiError::new(StatusCode::BAD_REQUEST, "missing_required_parameter", message);
        return Err(error.about(whole + "value"));
    }
    let mut feedback = Feedback {
        id: match &client_id {
            Some(client_id) => id_of(giver.key.as_deref(), client_id),
            None => fresh_id("fb"),
        },
        client_id,
        at_ms: giver.now_ms,
        target,
        name: said.name,
        value: said.value,
        comment: said.comment,
        correction: said.correction,
        source,
        author: author.or_else(|| giver.key.clone()),
        key: giver.key.clone(),
        any_key: giver.any_key,
        tags,
        digest: None,
        arrived: Standing::Aside,
        retracted_ms: None,
        erased_ms: None,
    };
    feedback.digest = Some(digest(&feedback));
    Ok(Given { feedback, dryrun })
}

fn client_id(fields: &mut Fields) -> Result<Option<String>, ApiError> {
    let place = fields.place("id");
    let Some(id) = fields.string("id", MAX_ID_BYTES)? else { return Ok(None) };
    let printable = !id.is_empty() && id.bytes().all(|byte| (0x21..0x7f).contains(&byte) && byte != b'/');
    if !printable {
        return Err(ApiError::invalid(place, "an id has printable ASCII characters, without spaces and slashes"));
    }
    if id.starts_with(PREFIX) {
        return Err(ApiError::invalid(place, format!("an id of your own may not begin with '{PREFIX}'")));
    }
    Ok(Some(id))
}

/// Exactly one of the ids that a judgement may be about.
fn target(fields: &mut Fields) -> Result<Target, ApiError> {
    const NAMES: [&str; 5] = ["completion_id", "inference_id", "conversation_id", "episode_id", "user"];
    let mut found: Option<(&str, String)> = None;
    for name in NAMES {
        let Some(id) = fields.string(name, MAX_TARGET_BYTES)? else { continue };
        let place = fields.place(name);
        if id.is_empty() {
            return Err(ApiError::invalid(place.clone(), format!("{place} may not be empty")));
        }
        if let Some((other, _)) = found {
            return Err(ApiError::invalid(place, format!("one judgement is about one thing; {other} is given too")));
        }
        found = Some((name, id));
    }
    let Some((name, id)) = found else {
        let place = fields.place("completion_id");
        let message = format!("one of {} is required", NAMES.join(", "));
        return Err(ApiError::new(StatusCode::BAD_REQUEST, "missing_required_parameter", message).about(place));
    };
    let choice_place = fields.place("choice_index");
    let choice = fields.count("choice_index", 0..=MAX_CHOICE)?.map(|choice| choice as u32);
    match name {
        "completion_id" | "inference_id" => Ok(Target::Answer { completion: id, choice }),
        _ if choice.is_some() => Err(ApiError::invalid(choice_place, "only an answer has choices")),
        "conversation_id" | "episode_id" => Ok(Target::Conversation(id)),
        _ => Ok(Target::User(id)),
    }
}

/// What a judgement says.
struct Said {
    name: String,
    value: Option<Judgement>,
    comment: Option<String>,
    correction: Option<String>,
}

fn said(fields: &mut Fields, target: &Target) -> Result<Said, ApiError> {
    let name = name(fields)?;
    let thumbs_place = fields.place("thumbs");
    let thumbs = fields.take("thumbs").map(|value| thumbs(&thumbs_place, &value)).transpose()?;
    let comment = fields.string("comment", MAX_COMMENT_BYTES)?;
    let correction = one_of_two(fields, CORRECTION, DEMONSTRATION)?;
    let value_place = fields.place("value");
    let value = fields.take("value");
    let mut said = Said { name: name.clone().unwrap_or_default(), value: None, comment, correction: None };
    said.correction = correction.map(|(place, value)| correction_at(&place, value)).transpose()?;
    let twice = |what: &str| ApiError::invalid(value_place.clone(), format!("the {what} is given twice"));
    match (name.as_deref(), value) {
        (_, None) => {}
        (Some(COMMENT), Some(value)) => {
            let words = string_at(&value_place, value, MAX_COMMENT_BYTES)?;
            if said.comment.replace(words).is_some() {
                return Err(twice("comment"));
            }
        }
        (Some(CORRECTION | DEMONSTRATION), Some(value)) => {
            if said.correction.replace(correction_at(&value_place, value)?).is_some() {
                return Err(twice("correction"));
            }
        }
        (Some(THUMBS), Some(value)) => {
            said.value = Some(Judgement::Boolean(self::thumbs(&value_place, &value)?));
        }
        (Some(_), Some(value)) => said.value = Some(judgement(&value_place, value)?),
        (None, Some(_)) => {
            let place = fields.place("metric_name");
            let message = format!("{place} is required: it says what the value means");
            return Err(ApiError::new(StatusCode::BAD_REQUEST, "missing_required_parameter", message).about(place));
        }
    }
    if let Some(up) = thumbs {
        if name.as_deref().is_some_and(|name| name != THUMBS) || said.value.is_some() {
            return Err(ApiError::invalid(thumbs_place, "thumbs are a value of their own name; another is given too"));
        }
        said.name = THUMBS.to_owned();
        said.value = Some(Judgement::Boolean(up));
    }
    if said.correction.is_some() && !matches!(target, Target::Answer { .. }) {
        return Err(ApiError::invalid(value_place.replace("value", CORRECTION), "only an answer can be corrected"));
    }
    if said.name.is_empty() {
        said.name = if said.correction.is_some() { CORRECTION } else { COMMENT }.to_owned();
    }
    if said.name == DEMONSTRATION {
        said.name = CORRECTION.to_owned();
    }
    Ok(said)
}

fn name(fields: &mut Fields) -> Result<Option<String>, ApiError> {
    let Some((place, name)) = one_of_two(fields, "metric_name", "name")? else { return Ok(None) };
    let name = string_at(&place, name, MAX_NAME_BYTES)?;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_.:-/".contains(&byte);
    if name.is_empty() || !name.bytes().all(plain) {
        let message = format!("{place} has letters, digits and _.:-/; it is '{}'", shown(&name));
        return Err(ApiError::invalid(place, message));
    }
    Ok(Some(name))
}

/// A field under one of two names, with the place of the one that was given.
fn one_of_two(fields: &mut Fields, name: &str, other: &str) -> Result<Option<(String, Value)>, ApiError> {
    match (fields.take(name), fields.take(other)) {
        (Some(_), Some(_)) => {
            Err(ApiError::invalid(fields.place(other), format!("{name} is given too, and means the same")))
        }
        (Some(value), None) => Ok(Some((fields.place(name), value))),
        (None, Some(value)) => Ok(Some((fields.place(other), value))),
        (None, None) => Ok(None),
    }
}

fn thumbs(place: &str, value: &Value) -> Result<bool, ApiError> {
    match value {
        Value::Bool(up) => Ok(*up),
        Value::String(word) if word == "up" => Ok(true),
        Value::String(word) if word == "down" => Ok(false),
        other => Err(wrong_type(place, "up, down or a boolean", other)),
    }
}

fn judgement(place: &str, value: Value) -> Result<Judgement, ApiError> {
    match value {
        Value::Bool(value) => Ok(Judgement::Boolean(value)),
        Value::Number(number) => match number.as_f64().filter(|number| number.is_finite()) {
            Some(number) => Ok(Judgement::Number(number)),
            None => Err(ApiError::invalid(place.to_owned(), format!("{place} is too large: {number}"))),
        },
        Value::String(word) => Ok(Judgement::Category(string_at(place, word.into(), MAX_CATEGORY_BYTES)?)),
        other => Err(wrong_type(place, "a boolean, a number or a string", &other)),
    }
}

/// The text of a better answer: a string, parts of text, a message of the assistant, or a list of one.
fn correction_at(place: &str, value: Value) -> Result<String, ApiError> {
    let text = match value {
        Value::String(text) => text,
        Value::Array(items) if items.iter().all(|item| item.get("role").is_none()) => whole_text(place, items)?,
        Value::Array(mut items) if items.len() == 1 => {
            message_text(&format!("{place}[0]"), items.pop().unwrap_or_default())?
        }
        Value::Array(_) => {
            return Err(ApiError::invalid(place.to_owned(), format!("{place} is one message of the assistant")));
        }
        message @ Value::Object(_) => message_text(place, message)?,
        other => return Err(wrong_type(place, "a string, parts of text or a message", &other)),
    };
    string_at(place, text.into(), MAX_CORRECTION_BYTES)
}

fn message_text(place: &str, message: Value) -> Result<String, ApiError> {
    let mut fields = Fields::at(place, message)?;
    let role_place = fields.place("role");
    if fields.string("role", 64)?.is_some_and(|role| role != "assistant") {
        return Err(ApiError::invalid(role_place, "a correction is a message of the assistant"));
    }
    if fields.take("tool_calls").is_some() {
        return Err(ApiError::unsupported(fields.place("tool_calls"), "functions are not called"));
    }
    let content_place = fields.place("content");
    let text = match fields.required("content")? {
        Value::String(text) => text,
        Value::Array(parts) => whole_text(&content_place, parts)?,
        other => return Err(wrong_type(&content_place, "a string or an array of parts", &other)),
    };
    match fields.rest().first() {
        None => Ok(text),
        Some(unknown) => {
            let message = format!("{unknown} is not known here");
            Err(ApiError::new(StatusCode::BAD_REQUEST, "unknown_parameter", message).about(unknown.clone()))
        }
    }
}

fn whole_text(place: &str, parts: Vec<Value>) -> Result<String, ApiError> {
    text_of(place, parts, &mut Vec::new())
}

fn tags(fields: &mut Fields) -> Result<Map<String, Value>, ApiError> {
    let place = fields.place("tags");
    let Some(tags) = fields.object("tags")? else { return Ok(Map::new()) };
    let tags = tags.into_map();
    if tags.len() > MAX_TAGS {
        return Err(ApiError::invalid(place, format!("at most {MAX_TAGS} tags; there are {}", tags.len())));
    }
    for (name, value) in &tags {
        let at = format!("{place}.{}", shown(name));
        if name.len() > MAX_TAG_NAME {
            return Err(ApiError::invalid(at, format!("a tag's name has at most {MAX_TAG_NAME} bytes")));
        }
        match value {
            Value::String(text) if text.len() <= MAX_TAG_VALUE => {}
            Value::String(_) => {
                return Err(ApiError::invalid(at, format!("a tag's value has at most {MAX_TAG_VALUE} bytes")));
            }
            other => return Err(wrong_type(&at, "a string", other)),
        }
    }
    Ok(tags)
}

/// Over everything that was said, so that the same id with other words is noticed.
fn digest(feedback: &Feedback) -> Digest {
    let value = match &feedback.value {
        Some(Judgement::Boolean(value)) => format!("b{value}"),
        Some(Judgement::Number(value)) => format!("n{:016x}", value.to_bits()),
        Some(Judgement::Category(value)) => format!("c{value}"),
        None => String::new(),
    };
    let choice = feedback.target.choice().map_or_else(String::new, |choice| choice.to_string());
    let said = |text: &Option<String>| text.as_ref().map_or_else(String::new, |text| format!("s{text}"));
    Hasher::new()
        .part("kind", feedback.target.kind().as_str().as_bytes())
        .part("target", feedback.target.id().as_bytes())
        .part("choice", choice.as_bytes())
        .part("name", feedback.name.as_bytes())
        .part("value", value.as_bytes())
        .part("comment", said(&feedback.comment).as_bytes())
        .part("correction", said(&feedback.correction).as_bytes())
        .part("source", feedback.source.as_str().as_bytes())
        .part("author", said(&feedback.author).as_bytes())
        .part("tags", Value::Object(feedback.tags.clone()).to_string().as_bytes())
        .finish()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn giver() -> Giver {
        Giver { key: Some("shop".to_owned()), any_key: false, now_ms: 5 }
    }

    fn take(item: Value) -> Feedback {
        read("", item, &giver()).unwrap_or_else(|error| panic!("{error:?}")).feedback
    }

    fn refusal(item: Value) -> (&'static str, String) {
        let error = read("[2]", item, &giver()).unwrap_err();
        assert_eq!(error.status, 400);
        (error.code, error.param.unwrap_or_default().into_owned())
    }

    #[test]
    fn tensorzero_s_bodies_and_plain_thumbs_are_one_shape() {
        let value = |item: Value| take(item).value;
        let on = json!({"inference_id": "c", "metric_name": "good", "value": true});
        assert_eq!(value(on), Some(Judgement::Boolean(true)));
        let of_episode = take(json!({"episode_id": "e", "metric_name": "score", "value": 0.25, "tags": {"a": "b"}}));
        assert_eq!(of_episode.target, Target::Conversation("e".to_owned()));
        assert_eq!(of_episode.value, Some(Judgement::Number(0.25)));
        assert_eq!(of_episode.tags["a"], "b");
        let comment = take(json!({"inference_id": "c", "metric_name": "comment", "value": "so so"}));
        assert_eq!(
            (comment.name.as_str(), comment.comment.as_deref(), &comment.value),
            ("comment", Some("so so"), &None)
        );
        let parts = json!([{"type": "text", "text": "better"}]);
        let shown = take(json!({"inference_id": "c", "metric_name": "demonstration", "value": parts}));
        assert_eq!((shown.name.as_str(), shown.correction.as_deref()), ("correction", Some("better")));
        let thumbs = take(json!({"completion_id": "c", "choice_index": 1, "thumbs": "down", "comment": "no"}));
        assert_eq!((thumbs.name.as_str(), thumbs.value), ("thumbs", Some(Judgement::Boolean(false))));
        assert_eq!(thumbs.target, Target::Answer { completion: "c".to_owned(), choice: Some(1) });
        assert_eq!((thumbs.author.as_deref(), thumbs.source), (Some("shop"), Source::EndUser));
        let up = json!({"completion_id": "c", "metric_name": "thumbs", "value": "up"});
        assert_eq!(value(up), Some(Judgement::Boolean(true)));
        let word = json!({"user": "u", "name": "mood", "value": "calm", "source": "judge", "author": "m"});
        assert_eq!(value(word), Some(Judgement::Category("calm".to_owned())));
        let alone = take(json!({"completion_id": "c", "correction": "so"}));
        assert_eq!((alone.name.as_str(), alone.value), ("correction", None));
    }

    #[test]
    fn a_correction_is_what_the_assistant_should_have_said() {
        let read = |correction: Value| take(json!({"completion_id": "c", "correction": correction})).correction;
        let parts = json!([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]);
        for (given, expected) in [
            (json!("a\nb"), "a\nb"),
            (parts.clone(), "a\nb"),
            (json!({"role": "assistant", "content": "a\nb"}), "a\nb"),
            (json!([{"role": "assistant", "content": parts}]), "a\nb"),
            (json!(""), ""),
        ] {
            assert_eq!(read(given.clone()).as_deref(), Some(expected), "{given}");
        }
    }

    #[test]
    fn the_id_tells_the_same_from_other_words_and_keys_from_each_other() {
        let say = |id: &str, comment: &str| json!({"id": id, "completion_id": "c", "comment": comment});
        let (one, again, other) = (take(say("x", "a")), take(say("x", "a")), take(say("x", "b")));
        assert_eq!((&one.id, one.digest), (&again.id, again.digest));
        assert_eq!(one.id, other.id);
        assert_ne!(one.digest, other.digest);
        assert_ne!(id_of(Some("shop"), "x"), id_of(None, "x"));
        assert_eq!(one.id, id_of(Some("shop"), "x"));
        let (without, another) =
            (take(json!({"user": "u", "thumbs": true})), take(json!({"user": "u", "thumbs": true})));
        assert_ne!(without.id, another.id);
        assert_eq!(without.digest, another.digest);
    }

    #[test]
    fn what_cannot_be_meant_is_refused_by_its_place() {
        let on = |more: Value| {
            let mut item = json!({"completion_id": "c"});
            item.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            item
        };
        for (item, code, place) in [
            (json!({"thumbs": "up"}), "missing_required_parameter", "[2].completion_id"),
            (on(json!({})), "missing_required_parameter", "[2].value"),
            (on(json!({"episode_id": "e", "thumbs": "up"})), "invalid_value", "[2].episode_id"),
            (on(json!({"thumbs": "sideways"})), "invalid_type", "[2].thumbs"),
            (on(json!({"thumbs": "up", "metric_name": "x", "value": 1})), "invalid_value", "[2].thumbs"),
            (on(json!({"value": 1})), "missing_required_parameter", "[2].metric_name"),
            (on(json!({"metric_name": "x", "value": [1]})), "invalid_type", "[2].value"),
            (on(json!({"metric_name": "x", "name": "y", "value": 1})), "invalid_value", "[2].name"),
            (on(json!({"metric_name": "a b", "value": 1})), "invalid_value", "[2].metric_name"),
            (on(json!({"metric_name": "comment", "value": 1})), "invalid_type", "[2].value"),
            (on(json!({"metric_name": "comment", "value": "a", "comment": "b"})), "invalid_value", "[2].value"),
            (on(json!({"coment": "slip"})), "unknown_parameter", "[2].coment"),
            (on(json!({"thumbs": "up", "source": "boss"})), "invalid_value", "[2].source"),
            (on(json!({"thumbs": "up", "id": "fb-1"})), "invalid_value", "[2].id"),
            (on(json!({"thumbs": "up", "id": "a b"})), "invalid_value", "[2].id"),
            (on(json!({"thumbs": "up", "choice_index": -1})), "invalid_value", "[2].choice_index"),
            (on(json!({"thumbs": "up", "tags": {"a": 1}})), "invalid_type", "[2].tags.a"),
            (on(json!({"correction": {"role": "user", "content": "x"}})), "invalid_value", "[2].correction.role"),
            (on(json!({"correction": 5})), "invalid_type", "[2].correction"),
            (json!({"user": "u", "correction": "x"}), "invalid_value", "[2].correction"),
            (json!({"user": "u", "choice_index": 0, "thumbs": true}), "invalid_value", "[2].choice_index"),
            (json!({"user": "", "thumbs": true}), "invalid_value", "[2].user"),
            (json!("up"), "invalid_type", "[2]"),
        ] {
            assert_eq!(refusal(item.clone()), (code, place.to_owned()), "{item}");
        }
    }
}
