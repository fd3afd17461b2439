//! The rows of the catalog: what each adapter name points at now, and every step that brought it there.

use serde::Serialize;

use crate::terms::{AdapterName, AdapterVersion, Digest};

/// Who is in charge of a name. A later one in this order may take a name over from an earlier one, never the other way
/// round; an administrator may move any name, and what he does to a name of the desired-state file puts it on hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ManagedBy {
    /// It was asked for, and a configured source had it.
    FirstUse,
    /// A folder of adapters (`--adapter-dir`).
    Folder,
    /// A flag (`--lora-modules`).
    Flag,
    /// An administrator, by API or command.
    Api,
    /// The desired-state file.
    File,
}

impl ManagedBy {
    const ALL: [Self; 5] = [Self::FirstUse, Self::Folder, Self::Flag, Self::Api, Self::File];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::FirstUse => "first_use",
            Self::Folder => "folder",
            Self::Flag => "flag",
            Self::File => "file",
            Self::Api => "api",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|by| by.as_str() == text)
    }
}

/// What was done to a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Operation {
    /// It had no version and got one.
    Load,
    /// It got another version.
    Replace,
    /// It got a version back that it had before.
    Rollback,
    /// It has none any more.
    Unload,
    /// Its version stayed; who manages it, its hold or its pin changed.
    Settings,
    /// Its version stayed; its hold ended.
    Release,
    /// Taken over from the histories that earlier builds kept as files.
    Import,
}

impl Operation {
    const ALL: [Self; 7] =
        [Self::Load, Self::Replace, Self::Rollback, Self::Unload, Self::Settings, Self::Release, Self::Import];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Load => "load",
            Self::Replace => "replace",
            Self::Rollback => "rollback",
            Self::Unload => "unload",
            Self::Settings => "settings",
            Self::Release => "release",
            Self::Import => "import",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|operation| operation.as_str() == text)
    }
}

/// A name and what it points at now. A name that was unloaded stays known, without a version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NameRow {
    pub name: AdapterName,
    pub version: Option<AdapterVersion>,
    /// Milliseconds since the Unix epoch when it got this version, or lost it.
    pub since_ms: i64,
    pub managed_by: ManagedBy,
    /// Somebody moved it by hand, and the desired-state file leaves it alone.
    pub hold: bool,
    /// Its weights stay in memory.
    pub pinned: bool,
    /// Where the version came from, as its manager names it.
    pub source: Option<String>,
}

/// One step of a name's history. Steps are only ever added.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Grows in the order of commits, over all names.
    pub seq: u64,
    pub at_ms: i64,
    pub operation: Operation,
    /// What the name points at after it; of an unload, nothing.
    pub version: Option<AdapterVersion>,
    pub managed_by: ManagedBy,
    /// A key's name, or what else acted.
    pub who: String,
    pub why: Option<String>,
    pub source: Option<String>,
    /// The base of the server that did it; `None` in what earlier builds wrote.
    pub base: Option<Digest>,
}

/// A change of one name, applied only if the name still has the version that the caller saw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NameChange {
    /// The version that the caller saw; `None`: the name is unknown or has none.
    pub seen: Option<AdapterVersion>,
    /// The row afterwards.
    pub row: NameRow,
    pub operation: Operation,
    pub at_ms: i64,
    pub who: String,
    pub why: Option<String>,
}

/// What became of a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Changed {
    /// Durable, with its step.
    Applied(Step),
    /// The name points elsewhere; nothing was changed.
    Moved { found: Option<AdapterVersion> },
}

/// A name's history as earlier builds kept it: versions with the seconds since the Unix epoch when each began.
pub type OldHistory = (AdapterName, Vec<(i64, AdapterVersion)>);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_of_the_catalog_are_read_back() {
        for by in ManagedBy::ALL {
            assert_eq!(ManagedBy::parse(by.as_str()), Some(by));
        }
        for operation in Operation::ALL {
            assert_eq!(Operation::parse(operation.as_str()), Some(operation));
        }
        assert!(
            ManagedBy::FirstUse < ManagedBy::Folder
                && ManagedBy::Flag < ManagedBy::Api
                && ManagedBy::Api < ManagedBy::File
        );
        assert_eq!((ManagedBy::parse("king"), Operation::parse("")), (None, None));
    }
}
