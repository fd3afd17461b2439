use serde::{Deserialize, Serialize};

/// What an answer may be used for, decided when its request came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Split {
    /// For training sets.
    Train,
    /// For measuring only; never in a training set.
    HeldOut,
    /// The uniform sample that people look at, beside what is flagged; never in a training set.
    Audit,
}

impl Split {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::HeldOut => "held_out",
            Self::Audit => "audit",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "train" => Self::Train,
            "held_out" => Self::HeldOut,
            "audit" => Self::Audit,
            _ => return None,
        })
    }
}

/// What decided a [`Split`]. All that shares it is on one side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SplitBy {
    /// The client's id of the conversation.
    Conversation,
    /// The client's user.
    User,
    /// The first message of the user, or the prompt.
    Message,
}

impl SplitBy {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Conversation => "conversation",
            Self::User => "user",
            Self::Message => "message",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "conversation" => Self::Conversation,
            "user" => Self::User,
            "message" => Self::Message,
            _ => return None,
        })
    }
}

/// A split as it was decided.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Assignment {
    pub split: Split,
    pub by: SplitBy,
    /// With what probability it would have been in the audit: the share in force then.
    pub audit_share: f64,
}

/// How a conversation is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ConversationBy {
    /// The client named it.
    Given,
    /// Its earlier turns are on record.
    Found,
    /// Nothing came before: it begins here, under this completion's id.
    Own,
}

impl ConversationBy {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Given => "given",
            Self::Found => "found",
            Self::Own => "own",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "given" => Self::Given,
            "found" => Self::Found,
            "own" => Self::Own,
            _ => return None,
        })
    }
}

/// The conversation that an answer belongs to, and what its answers may be used for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Placement {
    pub conversation: String,
    pub conversation_by: ConversationBy,
    pub assignment: Assignment,
}

/// Who made an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// This server, for a client.
    #[default]
    Served,
    /// This server, once more, to compare.
    Replayed,
    /// This server, for a suite.
    Evaluated,
    /// Another program; it says nothing about our versions.
    Imported,
}

impl Origin {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Served => "served",
            Self::Replayed => "replayed",
            Self::Evaluated => "evaluated",
            Self::Imported => "imported",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "served" => Self::Served,
            "replayed" => Self::Replayed,
            "evaluated" => Self::Evaluated,
            "imported" => Self::Imported,
            _ => return None,
        })
    }
}
