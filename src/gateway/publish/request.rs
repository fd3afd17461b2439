//! What is asked of the publisher and what comes back.

use std::path::PathBuf;

use crate::{
    adapters::{AdapterError, AdmitTimes, Admitted, ManagedBy, MoveTimes, NameRow, Step, folder::AdapterFiles},
    config::AdapterConfig,
    terms::{AdapterName, AdapterVersion},
};

/// Who moves a name, and why. It stands in the name's history.
#[derive(Clone, Debug)]
pub struct Origin {
    pub managed_by: ManagedBy,
    /// A key's name, or what else acts.
    pub who: String,
    pub why: Option<String>,
    /// Where the bytes came from, as a person would name it; never a secret.
    pub source: Option<String>,
}

/// An adapter that has been opened, or a folder that is here.
#[derive(Clone)]
pub enum Candidate {
    Files(AdapterFiles),
    /// Links in the folder may not lead out of `root`.
    Folder {
        root: PathBuf,
        path: PathBuf,
    },
}

/// What the caller takes a name to point at now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Expected {
    /// Whatever it is.
    #[default]
    Anything,
    /// The name is unknown or has no version.
    Nothing,
    /// A version, by 6 or more of its first digits.
    Version(String),
}

/// A name is to get the candidate's version.
#[derive(Clone)]
pub struct Load {
    pub name: AdapterName,
    pub candidate: Candidate,
    /// Whether it may take the place of another version.
    pub replace: bool,
    pub expected: Expected,
    /// Whether its weights stay in memory; `None` leaves it as it is.
    pub pinned: Option<bool>,
    /// Whether its weights are brought into memory before the name points at them, if there is room.
    pub warm: bool,
    pub origin: Origin,
}

/// A name is to get a version back that it had. Its source is again where that version came from, whatever the origin says.
#[derive(Clone, Debug)]
pub struct Rollback {
    pub name: AdapterName,
    /// 6 or more of its first digits; `None` is one step back.
    pub to: Option<String>,
    pub expected: Expected,
    pub origin: Origin,
}

/// A name is to be served no longer.
#[derive(Clone, Debug)]
pub struct Unload {
    pub name: AdapterName,
    pub expected: Expected,
    pub origin: Origin,
}

/// A name's hold is to end.
#[derive(Clone, Debug)]
pub struct Release {
    pub name: AdapterName,
    pub expected: Expected,
    pub origin: Origin,
}

/// A name and what it points at now, durable.
#[derive(Clone, Debug)]
pub struct Published {
    pub row: NameRow,
    /// The version that it had before.
    pub was: Option<AdapterVersion>,
    /// What was written down; `None` where nothing changed.
    pub step: Option<Step>,
    pub admitted: Admitted,
    pub times: PublishTimes,
}

/// How long the stages of a change took, in microseconds; 0 for those that it did not need. What it waited for its turn is
/// in none of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PublishTimes {
    /// Reading the candidate's files.
    pub read_us: u64,
    pub hash_us: u64,
    pub admit: AdmitTimes,
    /// Bringing its weights into memory.
    pub warm_us: u64,
    pub moved: MoveTimes,
}

impl Published {
    pub fn version(&self) -> AdapterVersion {
        self.admitted.version
    }
}

/// How much the vault may hold.
#[derive(Clone, Copy, Debug)]
pub struct VaultLimits {
    /// What this many of a name's last steps name is never removed.
    pub steps: usize,
    /// `None`: nothing is removed.
    pub max_bytes: Option<u64>,
}

impl From<&AdapterConfig> for VaultLimits {
    fn from(config: &AdapterConfig) -> Self {
        Self { steps: config.keep_steps, max_bytes: config.max_vault_bytes }
    }
}

/// Why a name was not moved. It serves what it served before.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    #[error("'{name}' is the base's name")]
    BaseName { name: AdapterName },
    #[error(
        "The lora adapter '{name}' has already been loaded, with another version than {}. If you want to replace it in place, \
         set 'load_inplace' to true.",
        .version.short()
    )]
    AlreadyLoaded { name: AdapterName, version: AdapterVersion },
    #[error("The lora adapter '{name}' cannot be found.")]
    NotLoaded { name: AdapterName },
    #[error("adapter '{name}' points at {found}, not at {expected}")]
    Conflict { name: AdapterName, expected: String, found: String },
    #[error("adapter '{name}' has no earlier version to go back to")]
    NoEarlier { name: AdapterName },
    #[error("adapter '{name}' is managed by {}, which goes before", .by.as_str())]
    Managed { name: AdapterName, by: ManagedBy },
    #[error("adapter '{name}' was moved by hand and is on hold")]
    Held { name: AdapterName },
    /// The same candidate failed a short while ago.
    #[error("adapter '{name}' failed and is not tried again for {} s: {reason}", .retry_after_ms.div_ceil(1000))]
    Quarantined { name: AdapterName, reason: String, retry_after_ms: u64 },
    /// The trial could not be run; nothing is known against the candidate.
    #[error("adapter '{name}' could not be tried: {reason}")]
    Untried { name: AdapterName, reason: String, retry_after_ms: u64 },
    /// By a suite, than the version that it was to replace.
    #[error("adapter '{name}' stays as it is: {reason}")]
    Worse { name: AdapterName, reason: String },
    /// The suite could not be run.
    #[error("adapter '{name}' stays as it is, it could not be compared: {reason}")]
    Uncompared { name: AdapterName, reason: String },
    #[error("{limit} changes of adapters are under way or waiting, the limit")]
    Busy { limit: usize, retry_after_ms: u64 },
    #[error("the change failed in an unforeseen way: {reason}")]
    Failed { reason: String },
}

impl Expected {
    /// # Errors
    /// [`PublishError::Conflict`] if the name points elsewhere.
    pub(super) fn check(&self, name: &AdapterName, row: Option<&NameRow>) -> Result<(), PublishError> {
        let current = row.and_then(|row| row.version);
        let (fits, expected) = match self {
            Self::Anything => return Ok(()),
            Self::Nothing => (current.is_none(), "no version".to_owned()),
            Self::Version(prefix) => (
                current.is_some_and(|version| version.0.starts_with(prefix)),
                prefix.chars().take(64).flat_map(char::escape_default).collect(),
            ),
        };
        if fits {
            return Ok(());
        }
        Err(PublishError::Conflict { name: name.clone(), expected, found: super::shown(current) })
    }
}
