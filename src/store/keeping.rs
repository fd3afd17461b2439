//! What leaves the record again, what may not, and who has looked.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// How much one pass of retention may take, and what.
#[derive(Clone, Copy, Debug, Default)]
pub struct Retention {
    /// Now.
    pub at_ms: i64,
    /// Content of answers admitted before is taken.
    pub content_before_ms: Option<i64>,
    /// The facts of answers admitted before are taken as well.
    pub facts_before_ms: Option<i64>,
    /// Content is taken, oldest first, while the database uses more than this.
    pub max_bytes: Option<u64>,
    /// Answers in one transaction.
    pub limit: usize,
}

/// What a pass took. What a hold names stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Retained {
    /// Answers that lost their content.
    pub content: u64,
    /// Answers that are gone altogether.
    pub facts: u64,
    /// Answers that would have lost something but for a hold.
    pub held: u64,
    /// What the database uses now, without free pages.
    pub bytes: u64,
    /// Whether there is more to take.
    pub more: bool,
}

/// What a step of an erasure reached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Erased {
    pub completions: u64,
    /// When the first of them was admitted.
    pub first_ms: Option<i64>,
    /// Who holds how many of them.
    pub held: Vec<(String, u64)>,
    /// Whether there may be others.
    pub more: bool,
}

/// What somebody did with the record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Deed {
    Show,
    Search,
    Export,
    Replay,
    Import,
    Backup,
    Erase,
}

impl Deed {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Show => "show",
            Self::Search => "search",
            Self::Export => "export",
            Self::Replay => "replay",
            Self::Import => "import",
            Self::Backup => "backup",
            Self::Erase => "erase",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "show" => Self::Show,
            "search" => Self::Search,
            "export" => Self::Export,
            "replay" => Self::Replay,
            "import" => Self::Import,
            "backup" => Self::Backup,
            "erase" => Self::Erase,
            _ => return None,
        })
    }
}

/// Who has looked at recorded content, or has taken it elsewhere.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Access {
    /// Milliseconds since the Unix epoch.
    pub at_ms: i64,
    /// When it was done for the last time: page after page, say.
    pub last_ms: i64,
    pub times: u64,
    /// A key's name, `operator`, or an address.
    pub who: String,
    pub deed: Deed,
    /// What was asked for. Users are not named.
    pub what: Value,
}

impl Access {
    pub fn once(at_ms: i64, who: &str, deed: Deed, what: Value) -> Self {
        Self { at_ms, last_ms: at_ms, times: 1, who: who.to_owned(), deed, what }
    }
}

/// Which accesses are wanted.
#[derive(Clone, Debug, Default)]
pub struct AccessQuery {
    /// None is all.
    pub deeds: Vec<Deed>,
    /// Only what was done then or later.
    pub since_ms: i64,
    /// The latest of them.
    pub limit: usize,
}
