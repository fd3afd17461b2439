//! What is recorded, where, and what a record is worth when the store is in trouble.

use std::{path::PathBuf, time::Duration};

use serde::Deserialize;

use super::Secret;
use crate::terms::RecordPolicy;

/// What is recorded, and where.
#[derive(Clone, Debug)]
pub struct RecordConfig {
    pub policy: RecordPolicy,
    /// Holds the database, the vault and the server's socket.
    pub data_dir: PathBuf,
    /// Choices that may be under way or waiting to be recorded at the same time.
    pub max_pending: usize,
    pub durability: Durability,
    pub on_fault: OnFault,
    /// A write that takes longer counts as a fault.
    pub stall: Duration,
    pub split: SplitConfig,
    /// A file of rules for what is replaced before it is stored.
    pub redact_rules: Option<PathBuf>,
    pub retention: RetentionConfig,
}

/// How long what is kept. By default everything is, for ever.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RetentionConfig {
    /// Days after which an answer's content goes.
    pub content_days: Option<u32>,
    /// Days after which its facts go as well.
    pub facts_days: Option<u32>,
    /// What the database may use before content goes, oldest first.
    pub max_bytes: Option<u64>,
}

/// What answers may be used for: shares of conversations, the rest is for training.
#[derive(Clone, Debug, PartialEq)]
pub struct SplitConfig {
    pub held_out: f64,
    pub audit: f64,
    /// What the hash is keyed with; `None` is the data directory's own.
    pub secret: Option<Secret>,
}

impl Default for SplitConfig {
    fn default() -> Self {
        Self { held_out: 0.1, audit: 0.05, secret: None }
    }
}

impl Default for RecordConfig {
    fn default() -> Self {
        Self {
            policy: RecordPolicy::Full,
            data_dir: "data".into(),
            max_pending: 1024,
            durability: Durability::Strict,
            on_fault: OnFault::Refuse,
            stall: Duration::from_secs(5),
            split: SplitConfig::default(),
            redact_rules: None,
            retention: RetentionConfig::default(),
        }
    }
}

/// When an answer's finish may reach its client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// Once its row is on disk.
    Strict,
    /// At once; its row is on disk within this window and one commit.
    Group(Duration),
    /// At once; its row is written at once and synced when the system likes.
    BestEffort,
}

/// The window of [`Durability::Group`] where none is given.
pub const GROUP: Duration = Duration::from_millis(50);

/// What becomes of requests while the record cannot be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnFault {
    /// New ones are refused.
    Refuse,
    /// They are answered; what the record never gets is counted.
    Serve,
}

impl OnFault {
    pub fn parse(text: &str) -> Result<Self, String> {
        match text {
            "refuse" => Ok(Self::Refuse),
            "serve" => Ok(Self::Serve),
            _ => Err("it is refuse or serve".to_owned()),
        }
    }
}

/// [`Durability`] as settings spell it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DurabilityName {
    Strict,
    Group,
    BestEffort,
}

impl DurabilityName {
    pub fn parse(text: &str) -> Result<Self, String> {
        match text {
            "strict" => Ok(Self::Strict),
            "group" => Ok(Self::Group),
            "best-effort" => Ok(Self::BestEffort),
            _ => Err("it is strict, group or best-effort".to_owned()),
        }
    }
}
