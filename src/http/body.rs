//! A request's body: bounded, in time, JSON, and no name said twice.

use std::{cell::RefCell, sync::Arc};

use axum::{
    body::Body,
    extract::{FromRef, FromRequest, Request},
};
use bytes::Bytes;
use http::{HeaderMap, StatusCode, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::{self, DeserializeSeed, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use super::{error::ApiError, openai::fields::shown};
use crate::config::LimitsConfig;

/// The JSON object that a request carries.
#[derive(Debug)]
pub struct JsonBody(pub Map<String, Value>);

impl<S> FromRequest<S> for JsonBody
where
    S: Send + Sync,
    Arc<LimitsConfig>: FromRef<S>,
{
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        match JsonAny::from_request(request, state).await?.0 {
            Value::Object(fields) => Ok(Self(fields)),
            other => Err(ApiError::new(
                StatusCode::BAD_REQUEST,
                "invalid_type",
                format!("the body must be a JSON object; it is {}", kind(&other)),
            )),
        }
    }
}

/// The JSON that a request carries, whatever its kind.
#[derive(Debug)]
pub struct JsonAny(pub Value);

impl<S> FromRequest<S> for JsonAny
where
    S: Send + Sync,
    Arc<LimitsConfig>: FromRef<S>,
{
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let limits = Arc::<LimitsConfig>::from_ref(state);
        let (parts, body) = request.into_parts();
        is_json(&parts.headers)?;
        let bytes = read(&parts.headers, body, &limits).await?;
        parse(&bytes).map(Self)
    }
}

/// Only JSON, uncompressed. A browser may send `application/json` to another origin only after asking, and nobody here
/// says yes: pages cannot use a server on loopback behind its owner's back.
fn is_json(headers: &HeaderMap) -> Result<(), ApiError> {
    let unsupported = |message: String, header: &'static str| {
        ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", message).about(header)
    };
    let given = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("");
    let media = given.split(';').next().unwrap_or("").trim().to_ascii_lowercase();
    if media != "application/json" && !(media.starts_with("application/") && media.ends_with("+json")) {
        let is =
            if given.is_empty() { "the request names none".to_owned() } else { format!("it is '{}'", shown(given)) };
        let message =
            format!("the content type must be application/json; {is} (curl -H 'content-type: application/json')");
        return Err(unsupported(message, "content-type"));
    }
    match headers.get(header::CONTENT_ENCODING).map(|value| value.as_bytes()) {
        None | Some(b"identity") => Ok(()),
        Some(_) => Err(unsupported("compressed bodies are not read".to_owned(), "content-encoding")),
    }
}

/// All bytes of a body, at most `max_body_bytes` of them and within `body_timeout`.
async fn read(headers: &HeaderMap, body: Body, limits: &LimitsConfig) -> Result<Bytes, ApiError> {
    let limit = limits.max_body_bytes;
    let too_large = || {
        let message = format!("the body is larger than {limit} bytes");
        ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", message)
    };
    // Refused before a byte of it is read.
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|length| length > limit as u64) {
        return Err(too_large());
    }
    match tokio::time::timeout(limits.body_timeout, Limited::new(body, limit).collect()).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large()),
        Ok(Err(_)) => Err(ApiError::new(StatusCode::BAD_REQUEST, "body_unreadable", "the body broke off")),
        Err(_) => {
            let message = format!("the body did not arrive within {} ms", limits.body_timeout.as_millis());
            Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, "body_timeout", message))
        }
    }
}

/// Reads JSON strictly: UTF-8, at most 128 levels deep, finite numbers, each name once in an object.
///
/// # Errors
/// 400 `invalid_json`, or `duplicate_key` with the name as its parameter.
pub fn parse(bytes: &[u8]) -> Result<Value, ApiError> {
    let bad = |code, message: String| ApiError::new(StatusCode::BAD_REQUEST, code, message);
    let text = std::str::from_utf8(bytes)
        .map_err(|error| bad("invalid_json", format!("the body is not UTF-8 at byte {}", error.valid_up_to())))?;
    let twice = RefCell::new(None);
    let mut reader = serde_json::Deserializer::from_str(text);
    let value = Strict { twice: &twice }.deserialize(&mut reader).and_then(|value| reader.end().map(|()| value));
    value.map_err(|error| match twice.take() {
        Some(name) => bad("duplicate_key", format!("'{}' is given twice", shown(&name))).about(shown(&name)),
        None => bad("invalid_json", format!("the body is not valid JSON: {error}")),
    })
}

/// What a value is, in words.
pub fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

#[derive(Clone, Copy)]
struct Strict<'a> {
    /// The first name that an object says twice.
    twice: &'a RefCell<Option<String>>,
}

impl<'de> DeserializeSeed<'de> for Strict<'_> {
    type Value = Value;

    fn deserialize<D: de::Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E: de::Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("number out of range"))
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E: de::Error>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(self)? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(name) = entries.next_key::<String>()? {
            if map.contains_key(&name) {
                self.twice.borrow_mut().get_or_insert(name);
                return Err(de::Error::custom("a name is given twice"));
            }
            let value = entries.next_value_seed(self)?;
            map.insert(name, value);
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(body: &[u8]) -> (&'static str, Option<String>) {
        let error = parse(body).unwrap_err();
        assert_eq!(error.status, 400);
        (error.code, error.param.map(Into::into))
    }

    #[test]
    fn what_json_says_is_read_as_it_is() {
        let text = r#"{"b":[1,-2,2.5,null,true,"é\n"],"a":{"x":18446744073709551615}}"#;
        assert_eq!(parse(text.as_bytes()).unwrap().to_string(), text);
    }

    #[test]
    fn a_name_given_twice_is_refused_at_any_depth() {
        assert_eq!(code(br#"{"a":1,"b":{"n":1,"n":1}}"#), ("duplicate_key", Some("n".into())));
        assert_eq!(code(br#"[{"a":1,"a":1}]"#), ("duplicate_key", Some("a".into())));
    }

    #[test]
    fn what_is_not_json_is_refused() {
        let deep = [b"[".repeat(200), b"]".repeat(200)].concat();
        for bad in [
            b"".as_slice(),
            b"{",
            b"{} {}",
            b"NaN",
            b"{\"a\":NaN}",
            b"{\"a\":Infinity}",
            b"{\"a\":-Infinity}",
            b"{\"a\":1e999}",
            b"{'a':1}",
            b"{\"a\":1,}",
            b"{\"a\":\"\\ud800\"}",
            b"\"\xff\"",
            b"\xef\xbb\xbf{}",
            b"{\"a\":\"\n\"}",
            &deep,
        ] {
            assert_eq!(code(bad), ("invalid_json", None), "{}", String::from_utf8_lossy(bad));
        }
    }
}
