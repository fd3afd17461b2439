//! What rules found in answers.

use serde::Serialize;

use super::{Cursor, Order};
use crate::terms::{AdapterName, AdapterVersion, Digest};

/// A version of a rule, as it is kept so that its flags can be explained later.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleRow {
    pub name: String,
    pub version: Digest,
    /// What it was understood as, as JSON.
    pub definition: String,
}

/// A finding on its way into the record. A choice has at most one flag of each version of a rule.
#[derive(Clone, Debug, PartialEq)]
pub struct NewFlag {
    /// The choice by its place in the record.
    pub choice: Cursor,
    /// Which of the rules.
    pub rule: Digest,
    /// For a person; no word of question or answer.
    pub reason: String,
    /// What was measured, where something was.
    pub value: Option<f64>,
}

/// What a follower did with a stretch of the record: committed as one, so that a restart goes on exactly where it stopped.
#[derive(Clone, Debug, PartialEq)]
pub struct Followup {
    /// Whose place is moved, and where it was, or nowhere; if it is elsewhere, nothing is applied. Whoever reads a stretch again has
    /// no place.
    pub follower: Option<(String, Option<Cursor>)>,
    /// The stretch: after this place …
    pub from: Cursor,
    /// … up to this one.
    pub to: Cursor,
    /// The rules that looked at the choices between; all that flags name are among them.
    pub rules: Vec<RuleRow>,
    pub flags: Vec<NewFlag>,
    /// Milliseconds since the Unix epoch.
    pub at_ms: i64,
}

/// What a person made of a flag.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Something was wrong with the answer.
    Confirmed,
    /// A false alarm.
    Dismissed,
}

impl Verdict {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Confirmed => "confirmed",
            Self::Dismissed => "dismissed",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        [Self::Confirmed, Self::Dismissed].into_iter().find(|verdict| verdict.as_str() == text)
    }
}

/// A flag with the facts of its answer.
#[derive(Clone, Debug, PartialEq)]
pub struct KeptFlag {
    pub id: u64,
    pub at_ms: i64,
    /// The completion's id, and its choice.
    pub completion: String,
    pub position: u32,
    pub rule: String,
    pub rule_version: Digest,
    pub reason: String,
    pub value: Option<f64>,
    pub created_ms: i64,
    pub model: String,
    pub adapter: Option<(AdapterName, AdapterVersion)>,
    pub key: Option<String>,
    pub resolved: Option<Resolved>,
}

/// How a flag was resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    pub verdict: Verdict,
    pub at_ms: i64,
    pub by: String,
    pub note: Option<String>,
}

/// Which flags are wanted, by the order in which they were found.
#[derive(Clone, Debug)]
pub struct FlagQuery {
    pub rule: Option<String>,
    pub adapter: Option<String>,
    pub completion: Option<String>,
    pub state: FlagState,
    /// The id before the page.
    pub after: Option<u64>,
    pub limit: usize,
    pub order: Order,
}

/// Which flags, by their verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlagState {
    All,
    /// Nobody has looked yet.
    Open,
    Resolved(Verdict),
}

/// A part of a list.
#[derive(Clone, Debug, PartialEq)]
pub struct FlagPage {
    pub flags: Vec<KeptFlag>,
    /// Whether there are others behind it.
    pub more: bool,
}

/// A version of a rule with what became of its flags.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptRule {
    pub rule: RuleRow,
    /// Milliseconds since the Unix epoch, when it first looked at an answer.
    pub since_ms: i64,
    pub flags: u64,
    pub confirmed: u64,
    pub dismissed: u64,
    /// The stretches of the record that it has looked at: after the first place, up to the second; merged, in order.
    pub spans: Vec<(Cursor, Cursor)>,
}

/// One answer of a version's reference.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ReferenceAnswer {
    pub choice: Cursor,
    pub tokens: usize,
    /// Mean log-probability of its tokens.
    pub mean_logprob: f64,
}
