//! Questions over everything that is on record.

use crate::terms::{Origin, Split};

use super::{Completion, Order};

/// Which answers are wanted. All conditions hold together.
#[derive(Clone, Debug)]
pub struct Search {
    /// Any of these names, as user or safety identifier.
    pub user: Vec<String>,
    pub conversation: Option<String>,
    /// As answers echo it.
    pub model: Option<String>,
    pub adapter: Option<String>,
    /// Hex digits that the adapter's version begins with.
    pub version: Option<String>,
    pub key: Option<String>,
    pub split: Option<Split>,
    pub origin: Option<Origin>,
    /// Of at least one choice.
    pub ending: Option<String>,
    /// Admitted then or later, in milliseconds since the Unix epoch.
    pub since_ms: Option<i64>,
    /// Admitted before.
    pub until_ms: Option<i64>,
    /// Words, as they stand in a message, a prompt or an answer.
    pub contains: Option<String>,
    pub order: Order,
    /// Where the page before ended.
    pub after: Option<Mark>,
    /// Answers on a page.
    pub limit: usize,
}

impl Default for Search {
    /// The latest 20 of all.
    fn default() -> Self {
        Self {
            user: Vec::new(),
            conversation: None,
            model: None,
            adapter: None,
            version: None,
            key: None,
            split: None,
            origin: None,
            ending: None,
            since_ms: None,
            until_ms: None,
            contains: None,
            order: Order::NewestFirst,
            after: None,
            limit: 20,
        }
    }
}

/// A place in the order of admission.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    pub created_ms: i64,
    pub row: u64,
}

impl Mark {
    /// Reads what [`std::fmt::Display`] writes.
    pub fn parse(text: &str) -> Option<Self> {
        let (created_ms, row) = text.split_once('.')?;
        Some(Self { created_ms: created_ms.parse().ok()?, row: row.parse().ok()? })
    }
}

impl std::fmt::Display for Mark {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.created_ms, self.row)
    }
}

/// A page of answers.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    pub completions: Vec<Completion>,
    /// Where the next page begins; `None` after the last. A page that took long to fill may be short or empty and have one
    /// all the same.
    pub next: Option<Mark>,
}
