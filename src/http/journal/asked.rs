//! What a query string asks of the record.

use http::StatusCode;
use serde_json::{Map, Value, json};

use crate::{
    http::{error::ApiError, openai::fields::shown},
    journal::{Found, Journal, Mark, Order, Search, View, answer, time_ms},
    terms::{Ending, Origin, Split},
};

const MAX_PAGE: usize = 1000;
/// Longer words would be searched for no faster.
const MAX_WORDS_BYTES: usize = 1024;

/// A query, read.
#[derive(Clone, Debug)]
pub struct Asked {
    pub search: Search,
    pub view: View,
    /// Whether the order was given.
    ordered: bool,
    /// As it was given, without what only turns pages.
    given: Vec<(String, String)>,
    extra: Vec<(String, String)>,
}

impl Asked {
    /// `extra` are names that mean something to the caller.
    ///
    /// # Errors
    /// 400 about the first parameter that is not understood.
    pub fn read(pairs: Vec<(String, String)>, extra: &[&str]) -> Result<Self, ApiError> {
        let mut asked = Self {
            search: Search::default(),
            view: View { content: true, scores: false },
            ordered: false,
            given: Vec::new(),
            extra: Vec::new(),
        };
        for (name, value) in pairs {
            if extra.contains(&name.as_str()) {
                asked.extra.push((name, value));
                continue;
            }
            asked.take(&name, &value)?;
            if !matches!(name.as_str(), "after" | "limit" | "order") {
                asked.given.push((name, value));
            }
        }
        Ok(asked)
    }

    /// As [`Asked::read`], for routes that know only these.
    ///
    /// # Errors
    /// As [`Asked::read`], also for what means something elsewhere.
    pub fn only(pairs: Vec<(String, String)>, extra: &[&str], known: &[&str]) -> Result<Self, ApiError> {
        match pairs.iter().find(|(name, _)| !known.contains(&name.as_str()) && !extra.contains(&name.as_str())) {
            Some((unknown, _)) => Err(not_known(unknown)),
            None => Self::read(pairs, extra),
        }
    }

    /// The search for a file: the oldest first, unless the order was given.
    pub fn in_file_order(self) -> Search {
        if self.ordered { self.search } else { Search { order: Order::OldestFirst, ..self.search } }
    }

    /// One of the caller's own, the last that was given.
    pub fn extra(&mut self, name: &str) -> Option<String> {
        let at = self.extra.iter().rposition(|(known, _)| known == name)?;
        Some(self.extra.swap_remove(at).1)
    }

    /// The filters, for the record of accesses: users under another name.
    pub fn what(&self, journal: &Journal) -> Value {
        let shown = self.given.iter().map(|(name, value)| {
            let value = if name == "user" { journal.alias(value) } else { value.clone() };
            (name.clone(), Value::from(value))
        });
        shown.collect::<Map<_, _>>().into()
    }

    fn take(&mut self, name: &str, value: &str) -> Result<(), ApiError> {
        let wrong = |name: &'static str, wanted: &str| {
            Err(ApiError::invalid(name, format!("{name} must be {wanted}; it is '{}'", shown(value))))
        };
        let search = &mut self.search;
        let text = || Some(value.to_owned());
        match name {
            "user" => search.user = vec![value.to_owned()],
            "conversation" => search.conversation = text(),
            "model" => search.model = text(),
            "adapter" => search.adapter = text(),
            "key" => search.key = text(),
            "version" => {
                let fine = (6..=64).contains(&value.len()) && value.bytes().all(|byte| byte.is_ascii_hexdigit());
                if !fine {
                    return wrong("version", "6 to 64 hex digits");
                }
                search.version = Some(value.to_ascii_lowercase());
            }
            "split" => match Split::parse(value) {
                Some(split) => search.split = Some(split),
                None => return wrong("split", "train, held_out or audit"),
            },
            "origin" => match Origin::parse(value) {
                Some(origin) => search.origin = Some(origin),
                None => return wrong("origin", "served, replayed, evaluated or imported"),
            },
            "ending" => match Ending::parse(value) {
                Some(ending) => search.ending = Some(ending.as_str().to_owned()),
                None => return wrong("ending", "stop, length, cut_off, failed or client_left"),
            },
            "since" | "until" => match time_ms(value) {
                Some(ms) if name == "since" => search.since_ms = Some(ms),
                Some(ms) => search.until_ms = Some(ms),
                None if name == "since" => return wrong("since", "a time: RFC 3339, or Unix seconds"),
                None => return wrong("until", "a time: RFC 3339, or Unix seconds"),
            },
            "contains" => {
                if value.is_empty() || value.len() > MAX_WORDS_BYTES {
                    return wrong("contains", "1 to 1024 bytes");
                }
                search.contains = text();
            }
            "order" => {
                self.ordered = true;
                match value {
                    "asc" => search.order = Order::OldestFirst,
                    "desc" => search.order = Order::NewestFirst,
                    _ => return wrong("order", "asc or desc"),
                }
            }
            "after" => match Mark::parse(value) {
                Some(mark) => search.after = Some(mark),
                None => return wrong("after", "what the page before gave as next"),
            },
            "limit" => match value.parse().ok().filter(|limit| (1..=MAX_PAGE).contains(limit)) {
                Some(limit) => search.limit = limit,
                None => return wrong("limit", "between 1 and 1000"),
            },
            "content" | "scores" => {
                let on = match value {
                    "true" => true,
                    "false" => false,
                    _ if name == "content" => return wrong("content", "true or false"),
                    _ => return wrong("scores", "true or false"),
                };
                if name == "content" { self.view.content = on } else { self.view.scores = on }
            }
            unknown => return Err(not_known(unknown)),
        }
        Ok(())
    }
}

fn not_known(name: &str) -> ApiError {
    let message = format!("{} is no parameter of this route", shown(name));
    ApiError::new(StatusCode::BAD_REQUEST, "unknown_parameter", message).about(shown(name))
}

/// A page as it is answered.
pub fn page(found: &Found, view: View) -> Value {
    let data: Vec<Value> = found.completions.iter().map(|completion| answer(completion, view)).collect();
    json!({"object": "list", "data": data, "next": found.next.map(|next| next.to_string())})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<Asked, String> {
        let pairs = pairs.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
        Asked::read(pairs, &["format"]).map_err(|error| error.param.unwrap_or_default().into_owned())
    }

    #[test]
    fn filters_and_pages_are_read() {
        let mut asked = read(&[
            ("adapter", "poet"),
            ("version", "ABCDEF12"),
            ("split", "held_out"),
            ("since", "2026-09-21T14:13:20Z"),
            ("contains", "oil leak"),
            ("after", "1790000000000.7"),
            ("limit", "5"),
            ("order", "asc"),
            ("scores", "true"),
            ("format", "csv"),
        ])
        .unwrap();
        assert_eq!(asked.extra("format").as_deref(), Some("csv"));
        let search = &asked.search;
        assert_eq!((search.adapter.as_deref(), search.version.as_deref()), (Some("poet"), Some("abcdef12")));
        assert_eq!((search.split, search.since_ms), (Some(Split::HeldOut), Some(1_790_000_000_000)));
        assert_eq!(search.after, Some(Mark { created_ms: 1_790_000_000_000, row: 7 }));
        assert_eq!((search.limit, search.order), (5, Order::OldestFirst));
        assert!(asked.view.content && asked.view.scores);
    }

    #[test]
    fn what_is_not_understood_is_named() {
        for (name, value) in [
            ("version", "abc"),
            ("split", "test"),
            ("origin", "elsewhere"),
            ("ending", "bored"),
            ("since", "soon"),
            ("until", ""),
            ("contains", ""),
            ("order", "up"),
            ("after", "7"),
            ("limit", "0"),
            ("limit", "1001"),
            ("content", "yes"),
            ("scores", "1"),
            ("odd", "1"),
        ] {
            assert_eq!(read(&[(name, value)]).unwrap_err(), name);
        }
    }
}
