use std::{borrow::Borrow, fmt, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// The name of an adapter: segments `[A-Za-z0-9][A-Za-z0-9._-]*` joined by `/`, at most 128 bytes in all.
/// `check` is reserved: it is a route beside the names.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AdapterName(Arc<str>);

/// Why a text is no adapter name.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum NameError {
    #[error("an adapter name may not be empty")]
    Empty,
    #[error("an adapter name has at most {limit} bytes; this has {got}")]
    TooLong { got: usize, limit: usize },
    #[error(
        "'{name}' is no adapter name: segments of letters, digits, '.', '_' and '-' that begin with a letter or digit, joined by '/'"
    )]
    Form { name: String },
    #[error("'{name}' is reserved")]
    Reserved { name: String },
}

impl AdapterName {
    pub const MAX_BYTES: usize = 128;

    pub fn parse(text: &str) -> Result<Self, NameError> {
        if text.is_empty() {
            return Err(NameError::Empty);
        }
        if text.len() > Self::MAX_BYTES {
            return Err(NameError::TooLong { got: text.len(), limit: Self::MAX_BYTES });
        }
        let segment_ok = |segment: &str| {
            segment.starts_with(|c: char| c.is_ascii_alphanumeric())
                && segment.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))
        };
        if !text.split('/').all(segment_ok) {
            return Err(NameError::Form { name: text.escape_debug().to_string() });
        }
        if text == "check" {
            return Err(NameError::Reserved { name: text.to_owned() });
        }
        Ok(Self(text.into()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for AdapterName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for AdapterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for AdapterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for AdapterName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for AdapterName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_segments_joined_by_slashes() {
        for good in ["a", "team/sql-v2", "A.b_c-d/9", &"x".repeat(128)] {
            assert!(AdapterName::parse(good).is_ok(), "{good}");
        }
        for bad in ["", "/a", "a/", "a//b", "../a", "a/..", ".a", "-a", "a b", "a,b", "é", "a\n", "a@b", "a:b", "check"]
        {
            assert!(AdapterName::parse(bad).is_err(), "{bad:?}");
        }
        assert!(AdapterName::parse(&"x".repeat(129)).is_err());
    }
}
