//! What people and programs say of answers.

use serde::Serialize;
use serde_json::{Map, Value};

use super::Order;
use crate::terms::{AdapterName, AdapterVersion, Digest};

/// One judgement: a value, words, a better answer, or several of these. Rows are only ever added; a retracted one stays, and
/// counts no more.
#[derive(Clone, Debug, PartialEq)]
pub struct Feedback {
    /// `fb-…`; two with the same id are one.
    pub id: String,
    /// The client's own id, where it gave one.
    pub client_id: Option<String>,
    /// Milliseconds since the Unix epoch, when it was accepted.
    pub at_ms: i64,
    pub target: Target,
    /// What is judged: `thumbs`, `accuracy`, ….
    pub name: String,
    pub value: Option<Judgement>,
    /// Words about it.
    pub comment: Option<String>,
    /// What the answer should have been.
    pub correction: Option<String>,
    pub source: Source,
    /// Who judged; the key's name where nobody else is named.
    pub author: Option<String>,
    /// The key that brought it; `None` where the server has no keys.
    pub key: Option<String>,
    /// Whether it may judge other keys' answers.
    pub any_key: bool,
    /// Flat, in the client's order.
    pub tags: Map<String, Value>,
    /// Over all that was given, before anything was taken out of it; gone once the words are erased.
    pub digest: Option<Digest>,
    /// How its target stood when it came.
    pub arrived: Standing,
    pub retracted_ms: Option<i64>,
    /// When words, tags and author were erased.
    pub erased_ms: Option<i64>,
}

/// What is judged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A completion by its id, and one of its choices or all of them.
    Answer {
        completion: String,
        choice: Option<u32>,
    },
    Conversation(String),
    /// An end user, by the `user` of requests.
    User(String),
}

impl Target {
    pub const fn kind(&self) -> TargetKind {
        match self {
            Self::Answer { .. } => TargetKind::Answer,
            Self::Conversation(_) => TargetKind::Conversation,
            Self::User(_) => TargetKind::User,
        }
    }

    /// The id of the completion, the conversation or the user.
    pub fn id(&self) -> &str {
        match self {
            Self::Answer { completion, .. } => completion,
            Self::Conversation(id) | Self::User(id) => id,
        }
    }

    pub const fn choice(&self) -> Option<u32> {
        match self {
            Self::Answer { choice, .. } => *choice,
            Self::Conversation(_) | Self::User(_) => None,
        }
    }
}

/// A kind of target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TargetKind {
    Answer,
    Conversation,
    User,
}

impl TargetKind {
    pub const ALL: [Self; 3] = [Self::Answer, Self::Conversation, Self::User];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Answer => "answer",
            Self::Conversation => "conversation",
            Self::User => "user",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text)
    }
}

/// A value that was given.
#[derive(Clone, Debug, PartialEq)]
pub enum Judgement {
    Boolean(bool),
    /// Finite.
    Number(f64),
    Category(String),
}

/// Who judges.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    EndUser,
    /// A person whose task it is.
    Reviewer,
    /// A model.
    Judge,
    Code,
}

impl Source {
    pub const ALL: [Self; 4] = [Self::EndUser, Self::Reviewer, Self::Judge, Self::Code];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::EndUser => "end_user",
            Self::Reviewer => "reviewer",
            Self::Judge => "judge",
            Self::Code => "code",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|source| source.as_str() == text)
    }

    /// Whether a human being judged.
    pub const fn is_person(self) -> bool {
        matches!(self, Self::EndUser | Self::Reviewer)
    }
}

/// How feedback stands to its target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// The target is on record.
    Joined,
    /// The answer was under way when it came.
    InFlight,
    /// Nobody knows the target; kept until somebody does.
    Aside,
}

impl Standing {
    pub const ALL: [Self; 3] = [Self::Joined, Self::InFlight, Self::Aside];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Joined => "joined",
            Self::InFlight => "in_flight",
            Self::Aside => "aside",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|standing| standing.as_str() == text)
    }
}

/// Feedback as it stands now.
#[derive(Clone, Debug, PartialEq)]
pub struct KeptFeedback {
    pub feedback: Feedback,
    pub standing: Standing,
    /// Of an answer that is on record.
    pub answer: Option<JudgedAnswer>,
}

/// The facts of a judged answer.
#[derive(Clone, Debug, PartialEq)]
pub struct JudgedAnswer {
    pub created_ms: i64,
    /// `model` as the answer echoed it.
    pub model: String,
    pub adapter: Option<(AdapterName, AdapterVersion)>,
}

/// What became of several judgements that were given together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Accepted {
    pub joined: usize,
    pub in_flight: usize,
    pub aside: usize,
    /// They were there already, word for word.
    pub repeated: usize,
}

/// Which feedback is wanted, in the order in which it was accepted.
#[derive(Clone, Debug)]
pub struct FeedbackQuery {
    /// Only what this key brought; `None` is all.
    pub key: Option<String>,
    /// By kind and id.
    pub target: Option<(TargetKind, String)>,
    pub name: Option<String>,
    pub source: Option<Source>,
    pub standing: Option<Standing>,
    pub retracted: Option<bool>,
    /// The id before the page.
    pub after: Option<String>,
    pub limit: usize,
    pub order: Order,
}

/// A part of a list.
#[derive(Clone, Debug, PartialEq)]
pub struct FeedbackPage {
    pub feedback: Vec<KeptFeedback>,
    /// Whether there is more behind it.
    pub more: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_of_feedback_are_read_back() {
        for kind in TargetKind::ALL {
            assert_eq!(TargetKind::parse(kind.as_str()), Some(kind));
        }
        for source in Source::ALL {
            assert_eq!(Source::parse(source.as_str()), Some(source));
        }
        for standing in Standing::ALL {
            assert_eq!(Standing::parse(standing.as_str()), Some(standing));
        }
        assert_eq!((Source::parse("boss"), Standing::parse("")), (None, None));
    }
}
