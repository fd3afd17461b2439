//! Reading JSON objects strictly: unknown keys are faults, and kinds are named.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// Takes `key` out of `object` as a `T`; `None` if it is not there.
pub fn take<T: DeserializeOwned>(object: &mut Map<String, Value>, key: &str) -> Result<Option<T>, String> {
    match object.remove(key) {
        None => Ok(None),
        Some(value) => serde_json::from_value(value).map(Some).map_err(|error| format!("{key}: {error}")),
    }
}

/// Takes `key`, which has to be there.
pub fn need<T: DeserializeOwned>(object: &mut Map<String, Value>, key: &str) -> Result<T, String> {
    take(object, key)?.ok_or_else(|| format!("'{key}' is missing"))
}

/// Whatever is left over was not understood.
pub fn nothing_left(object: &Map<String, Value>) -> Result<(), String> {
    match object.keys().next() {
        Some(key) => Err(format!("unknown key '{key}'")),
        None => Ok(()),
    }
}
