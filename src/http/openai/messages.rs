//! The messages of a chat: text only, and nothing of them dropped in silence.

use http::StatusCode;
use serde_json::Value;

use super::fields::{Fields, shown, wrong_type};
use crate::{
    http::error::ApiError,
    terms::{Message, Role},
};

const MAX_NAME_BYTES: usize = 256;

/// Reads `messages`, at least one. Unknown fields of messages and parts are added to `unknown`.
///
/// # Errors
/// 400 naming the message, and the part of it, that cannot be read as text.
pub fn take(fields: &mut Fields, unknown: &mut Vec<String>) -> Result<Vec<Message>, ApiError> {
    let items = match fields.required("messages")? {
        Value::Array(items) => items,
        other => return Err(wrong_type("messages", "an array", &other)),
    };
    if items.is_empty() {
        return Err(ApiError::invalid("messages", "messages needs at least one message"));
    }
    items.into_iter().enumerate().map(|(index, item)| message(index, item, unknown)).collect()
}

fn message(index: usize, item: Value, unknown: &mut Vec<String>) -> Result<Message, ApiError> {
    let place = format!("messages[{index}]");
    let mut fields = Fields::at(&place, item)?;
    let role = role(&mut fields)?;
    for (name, reason) in [
        ("tool_calls", "functions are not called"),
        ("function_call", "functions are not called"),
        ("audio", "messages are text"),
        ("refusal", "send it as content"),
    ] {
        if fields.take(name).is_some_and(|value| value != Value::Array(Vec::new())) {
            return Err(ApiError::unsupported(fields.place(name), reason));
        }
    }
    // Which call a tool's answer belongs to; no template here has calls.
    fields.take("tool_call_id");
    let content_place = fields.place("content");
    let content = match fields.required("content")? {
        Value::String(text) => text,
        Value::Array(parts) => text_of(&content_place, parts, unknown)?,
        other => return Err(wrong_type(&content_place, "a string or an array of parts", &other)),
    };
    let name = fields.string("name", MAX_NAME_BYTES)?;
    unknown.extend(fields.rest());
    Ok(Message { role, content, name })
}

fn role(fields: &mut Fields) -> Result<Role, ApiError> {
    let place = fields.place("role");
    let value = fields.required("role")?;
    let Value::String(word) = value else { return Err(wrong_type(&place, "a string", &value)) };
    match word.as_str() {
        "developer" => Ok(Role::Developer),
        "system" => Ok(Role::System),
        "user" => Ok(Role::User),
        "assistant" => Ok(Role::Assistant),
        "tool" => Ok(Role::Tool),
        "function" => Err(ApiError::unsupported(place, "functions are not called")),
        other => {
            let message =
                format!("{place} must be one of developer, system, user, assistant, tool; it is '{}'", shown(other));
            Err(ApiError::invalid(place, message))
        }
    }
}

/// The text of all parts, one a line.
pub(in crate::http) fn text_of(place: &str, parts: Vec<Value>, unknown: &mut Vec<String>) -> Result<String, ApiError> {
    if parts.is_empty() {
        return Err(ApiError::invalid(place.to_owned(), format!("{place} needs at least one part")));
    }
    let mut texts = Vec::with_capacity(parts.len());
    for (index, part) in parts.into_iter().enumerate() {
        let mut part = Fields::at(&format!("{place}[{index}]"), part)?;
        let kind_place = part.place("type");
        match part.required("type")?.as_str() {
            Some("text") => {}
            Some(kind @ ("image_url" | "image" | "input_audio" | "audio" | "file" | "video_url" | "refusal")) => {
                let reason = format!("parts are text, not {kind}");
                return Err(ApiError::unsupported(kind_place, reason));
            }
            Some(other) => {
                let message = format!("{kind_place} must be text; it is '{}'", shown(other));
                return Err(ApiError::invalid(kind_place, message));
            }
            None => {
                let message = format!("{kind_place} must be a string");
                return Err(ApiError::new(StatusCode::BAD_REQUEST, "invalid_type", message).about(kind_place));
            }
        }
        let text_place = part.place("text");
        match part.required("text")? {
            Value::String(text) => texts.push(text),
            other => return Err(wrong_type(&text_place, "a string", &other)),
        }
        unknown.extend(part.rest());
    }
    Ok(texts.join("\n"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    type Refusal = (&'static str, String);

    fn read(messages: Value) -> Result<(Vec<Message>, Vec<String>), Refusal> {
        let mut fields = Fields::at("", json!({"messages": messages})).unwrap();
        let mut unknown = Vec::new();
        take(&mut fields, &mut unknown)
            .map(|messages| (messages, unknown))
            .map_err(|error| (error.code, error.param.unwrap_or_default().into_owned()))
    }

    #[test]
    fn text_comes_as_a_string_or_in_parts() {
        let parts = json!([{"type": "text", "text": "one"}, {"type": "text", "text": "two", "cache_control": {}}]);
        let (messages, unknown) =
            read(json!([{"role": "system", "content": "s"}, {"role": "user", "content": parts, "name": "ann"}]))
                .unwrap();
        assert_eq!(messages[1], Message { role: Role::User, content: "one\ntwo".into(), name: Some("ann".into()) });
        assert_eq!(unknown, ["messages[1].content[1].cache_control"]);
    }

    #[test]
    fn what_is_not_text_is_refused_with_its_place() {
        let user = |content: Value| json!([{"role": "user", "content": content}]);
        let place = |messages: Value| read(messages).unwrap_err();
        assert_eq!(place(json!([])), ("invalid_value", "messages".into()));
        assert_eq!(place(json!("hello")), ("invalid_type", "messages".into()));
        assert_eq!(place(json!(["hello"])), ("invalid_type", "messages[0]".into()));
        assert_eq!(place(user(json!(7))), ("invalid_type", "messages[0].content".into()));
        assert_eq!(place(user(json!(null))), ("missing_required_parameter", "messages[0].content".into()));
        assert_eq!(
            place(user(json!([{"type": "image_url", "image_url": {"url": "x"}}]))),
            ("unsupported_parameter", "messages[0].content[0].type".into())
        );
        assert_eq!(
            place(json!([{"role": "assistant", "content": "x", "tool_calls": [{}]}])),
            ("unsupported_parameter", "messages[0].tool_calls".into())
        );
        assert_eq!(place(json!([{"role": "robot", "content": "x"}])), ("invalid_value", "messages[0].role".into()));
        assert_eq!(place(json!([{"content": "x"}])), ("missing_required_parameter", "messages[0].role".into()));
    }
}
