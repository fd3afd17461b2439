//! The fields of a request's object, taken out one by one; what is left over is unknown.

use std::ops::RangeInclusive;

use http::StatusCode;
use serde_json::{Map, Value};

use crate::http::{body::kind, error::ApiError};

/// An object and where it stands in the request, for errors that name the exact place.
#[derive(Debug)]
pub struct Fields {
    map: Map<String, Value>,
    /// `""`, or `stream_options.`, `messages[2].`
    prefix: String,
}

impl Fields {
    pub fn new(map: Map<String, Value>) -> Self {
        Self { map, prefix: String::new() }
    }

    /// Reads `value` as the object at `place`.
    ///
    /// # Errors
    /// 400 if it is no object.
    pub fn at(place: &str, value: Value) -> Result<Self, ApiError> {
        match value {
            Value::Object(map) => Ok(Self { map, prefix: format!("{place}.") }),
            other => Err(wrong_type(place, "an object", &other)),
        }
    }

    /// A field's full name.
    pub fn place(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// Takes a field out. `null` says as little as no field at all.
    pub fn take(&mut self, name: &str) -> Option<Value> {
        self.map.shift_remove(name).filter(|value| !value.is_null())
    }

    /// Takes a field out of which the request must have one.
    pub fn required(&mut self, name: &str) -> Result<Value, ApiError> {
        self.take(name).ok_or_else(|| {
            let place = self.place(name);
            ApiError::new(StatusCode::BAD_REQUEST, "missing_required_parameter", format!("{place} is required"))
                .about(place)
        })
    }

    pub fn boolean(&mut self, name: &str) -> Result<Option<bool>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(value)),
            Some(other) => Err(wrong_type(&self.place(name), "a boolean", &other)),
        }
    }

    /// A finite number that `f32` can hold; its range is somebody else's matter.
    pub fn number(&mut self, name: &str) -> Result<Option<f32>, ApiError> {
        self.take(name).map(|value| number_at(&self.place(name), &value)).transpose()
    }

    pub fn integer(&mut self, name: &str, range: RangeInclusive<i64>) -> Result<Option<i64>, ApiError> {
        self.take(name).map(|value| integer_at(&self.place(name), &value, range)).transpose()
    }

    pub fn count(&mut self, name: &str, range: RangeInclusive<usize>) -> Result<Option<usize>, ApiError> {
        let most = i64::try_from(*range.end()).unwrap_or(i64::MAX);
        let least = i64::try_from(*range.start()).unwrap_or(i64::MAX);
        // The range is not negative, so every value in it is a count.
        Ok(self.integer(name, least..=most)?.map(|value| value.unsigned_abs() as usize))
    }

    pub fn string(&mut self, name: &str, max_bytes: usize) -> Result<Option<String>, ApiError> {
        self.take(name).map(|value| string_at(&self.place(name), value, max_bytes)).transpose()
    }

    pub fn list(&mut self, name: &str) -> Result<Option<Vec<Value>>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Array(items)) => Ok(Some(items)),
            Some(other) => Err(wrong_type(&self.place(name), "an array", &other)),
        }
    }

    pub fn object(&mut self, name: &str) -> Result<Option<Fields>, ApiError> {
        let place = self.place(name);
        self.take(name).map(|value| Fields::at(&place, value)).transpose()
    }

    /// One of a few words.
    pub fn word(&mut self, name: &str, words: &[&str]) -> Result<Option<String>, ApiError> {
        let place = self.place(name);
        match self.string(name, 64)? {
            Some(word) if !words.contains(&word.as_str()) => {
                let message = format!("{place} must be one of {}; it is '{}'", words.join(", "), shown(&word));
                Err(ApiError::invalid(place, message))
            }
            word => Ok(word),
        }
    }

    /// The full names of what nobody took.
    pub fn rest(self) -> Vec<String> {
        let prefix = self.prefix;
        self.map
            .into_iter()
            .filter(|(_, value)| !value.is_null())
            .map(|(name, _)| shown(&(prefix.clone() + &name)))
            .collect()
    }

    /// The object itself, with nothing taken out.
    pub fn into_map(self) -> Map<String, Value> {
        self.map
    }
}

pub fn number_at(place: &str, value: &Value) -> Result<f32, ApiError> {
    let number = value.as_f64().ok_or_else(|| wrong_type(place, "a number", value))? as f32;
    if number.is_finite() {
        return Ok(number);
    }
    Err(ApiError::invalid(place.to_owned(), format!("{place} is too large: {value}")))
}

pub fn integer_at(place: &str, value: &Value, range: RangeInclusive<i64>) -> Result<i64, ApiError> {
    if !value.is_number() {
        return Err(wrong_type(place, "an integer", value));
    }
    match value.as_i64() {
        Some(integer) if range.contains(&integer) => Ok(integer),
        // Beyond `i64` a number may still be an integer, only one that no range here holds.
        Some(_) => Err(out_of_range(place, value, &range)),
        None if value.is_u64() => Err(out_of_range(place, value, &range)),
        None => match value.as_f64() {
            Some(number) if number.fract() == 0.0 && number.abs() > 9e15 => Err(out_of_range(place, value, &range)),
            Some(_) | None => Err(ApiError::new(
                StatusCode::BAD_REQUEST,
                "invalid_type",
                format!("{place} must be an integer; it is {value}"),
            )
            .about(place.to_owned())),
        },
    }
}

fn out_of_range(place: &str, value: &Value, range: &RangeInclusive<i64>) -> ApiError {
    let range = match (*range.start(), *range.end()) {
        (least, i64::MAX) => format!("at least {least}"),
        (least, most) => format!("between {least} and {most}"),
    };
    ApiError::invalid(place.to_owned(), format!("{place} must be {range}; it is {value}"))
}

pub fn string_at(place: &str, value: Value, max_bytes: usize) -> Result<String, ApiError> {
    match value {
        Value::String(text) if text.len() <= max_bytes => Ok(text),
        Value::String(text) => {
            let message = format!("{place} has at most {max_bytes} bytes; this has {}", text.len());
            Err(ApiError::new(StatusCode::BAD_REQUEST, "string_above_max_length", message).about(place.to_owned()))
        }
        other => Err(wrong_type(place, "a string", &other)),
    }
}

pub fn wrong_type(place: &str, wanted: &str, value: &Value) -> ApiError {
    let message = format!("{place} must be {wanted}; it is {}", kind(value));
    ApiError::new(StatusCode::BAD_REQUEST, "invalid_type", message).about(place.to_owned())
}

/// A client's word as a message or header repeats it: printable ASCII, not endless.
pub fn shown(word: &str) -> String {
    word.chars().take(64).flat_map(char::escape_default).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn fields(value: Value) -> Fields {
        Fields::at("here", value).unwrap()
    }

    #[test]
    fn a_wrong_type_names_the_place_and_both_types() {
        let error = fields(json!({"n": "two"})).integer("n", 1..=4).unwrap_err();
        assert_eq!((error.code, error.param.as_deref()), ("invalid_type", Some("here.n")));
        assert_eq!(error.message, "here.n must be an integer; it is a string");
    }

    #[test]
    fn an_integer_is_an_integer_of_its_range() {
        let read = |value: Value| fields(json!({"n": value})).integer("n", 0..=10).map_err(|error| error.code);
        assert_eq!(read(json!(10)), Ok(Some(10)));
        assert_eq!(read(json!(null)), Ok(None));
        assert_eq!(read(json!(11)), Err("invalid_value"));
        assert_eq!(read(json!(-1)), Err("invalid_value"));
        assert_eq!(read(json!(u64::MAX)), Err("invalid_value"));
        assert_eq!(read(json!(1e30)), Err("invalid_value"));
        assert_eq!(read(json!(1.5)), Err("invalid_type"));
        assert_eq!(read(json!(true)), Err("invalid_type"));
    }

    #[test]
    fn a_number_beyond_single_precision_is_refused() {
        assert_eq!(fields(json!({"t": 1e300})).number("t").unwrap_err().code, "invalid_value");
        assert_eq!(fields(json!({"t": 1})).number("t").unwrap(), Some(1.0));
    }

    #[test]
    fn what_nobody_took_is_left() {
        let mut fields = fields(json!({"known": 1, "odd": 2, "silent": null, "two\nlines": 3}));
        fields.take("known");
        assert_eq!(fields.rest(), ["here.odd", "here.two\\nlines"]);
    }
}
