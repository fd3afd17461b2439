//! Which adapters exist, and their weights in memory.

mod catalog;
pub mod check;
mod faults;
mod fingerprint;
pub mod folder;
mod naming;
pub mod peft;
mod quarantine;
mod residency;
mod shelf;
pub mod source;
mod vault;
mod verdicts;

use std::{path::PathBuf, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::{
    config::AdapterConfig,
    model::{LoraAdapter, ModelShape},
    terms::{AdapterName, AdapterVersion, Digest, SamplingLayer, TemplateSource},
};

pub use self::{
    catalog::{Named, Serving, nearest},
    naming::{AdmitTimes, Admitted, KeptVersion, MoveTimes},
    quarantine::Confined,
    residency::{HostSnapshot, LoadTimes, ResidencySnapshot, VersionUse},
    shelf::{AdapterStore, Opened},
    source::{Roots, RootsError},
    verdicts::NameFault,
};
pub use crate::store::{Changed, ManagedBy, NameChange, NameRow, Operation, Step, TrialRow};

/// Keeps one version of an adapter in memory, even if it is evicted or replaced meanwhile. After a lease nobody looks
/// anything up by name.
#[derive(Clone, Debug)]
pub struct AdapterLease {
    pub name: AdapterName,
    pub version: AdapterVersion,
    pub weights: Arc<LoraAdapter>,
    pub card: Arc<AdapterCard>,
    /// Where the weights were when they were asked for.
    pub found: Residency,
    /// Counts the lease, however often it is cloned.
    _seat: Arc<residency::Seat>,
}

/// What is known of one version without its weights.
#[derive(Clone, Debug)]
pub struct AdapterCard {
    /// The largest rank of any site.
    pub rank: usize,
    /// The module names that it changes (`q_proj`, …), sorted.
    pub targets: Vec<String>,
    /// Bytes of `adapter_model.safetensors`.
    pub file_bytes: u64,
    /// `base_model_name_or_path`, a label only.
    pub trained_on: Option<String>,
    /// From `adapter.toml`: the first digits of the base that it was made for.
    pub base_digest: Option<String>,
    /// From `adapter.toml`: its own chat template, sampling defaults, description.
    pub template: Option<TemplateSource>,
    pub sampling: SamplingLayer,
    pub description: Option<String>,
    /// Answers that this version is known to give.
    pub golden: Vec<GoldenAnswer>,
    /// What an operator should know about how it was read, one sentence each.
    pub notes: Vec<String>,
}

/// A prompt and what the adapter answers to it, from `adapter.toml`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GoldenAnswer {
    pub prompt: String,
    pub answer: String,
    /// The mean log-probability of the answer's tokens, in nats, as a healthy server found it.
    pub logprob: Option<f64>,
}

/// What an adapter may be at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AdapterLimits {
    pub max_rank: usize,
    /// Largest `adapter_model.safetensors`, in bytes.
    pub max_file_bytes: u64,
}

impl From<&AdapterConfig> for AdapterLimits {
    fn from(config: &AdapterConfig) -> Self {
        Self { max_rank: config.max_lora_rank, max_file_bytes: config.max_file_bytes }
    }
}

/// The base that adapters are checked against.
#[derive(Clone, Debug)]
pub struct BaseIdentity {
    pub shape: ModelShape,
    pub digest: Digest,
    /// The names that requests use for it, so that no adapter takes one of them.
    pub names: Vec<String>,
}

/// One name in the list of adapters.
#[derive(Clone, Debug)]
pub struct AdapterEntry {
    pub name: AdapterName,
    pub version: AdapterVersion,
    pub card: Arc<AdapterCard>,
    pub residency: Residency,
    /// Seconds since the Unix epoch when this name got this version.
    pub created: i64,
}

/// Where a version's weights are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Residency {
    /// In memory, ready.
    Resident,
    /// Being read and packed.
    Loading,
    /// Not on the device; a copy is in host memory.
    Host,
    /// On disk only.
    Cold,
}

impl Residency {
    /// As answers, headers and metrics have it.
    pub const fn tier(self) -> &'static str {
        match self {
            Self::Resident => "memory",
            Self::Loading => "loading",
            Self::Host => "host",
            Self::Cold => "disk",
        }
    }
}

/// Why an adapter cannot serve.
#[derive(Clone, Debug, thiserror::Error)]
pub enum AdapterError {
    #[error("there is no adapter '{name}'{}", .nearest.as_ref().map_or_else(String::new, |n| format!("; the nearest is '{n}'")))]
    Unknown { name: String, nearest: Option<String> },
    #[error("adapter '{name}' has no version {prefix}{}", if .prefix.len() < 6 { "; give 6 or more of its digits" } else { "" })]
    UnknownVersion { name: AdapterName, prefix: String },
    #[error("version prefix {prefix} of adapter '{name}' fits {count} versions; give more digits")]
    AmbiguousVersion { name: AdapterName, prefix: String, count: usize },
    #[error("adapter '{name}' is refused: {}", .refusals.first().map_or_else(|| "no reason".to_owned(), ToString::to_string))]
    Refused { name: String, refusals: Arc<Vec<Refusal>> },
    #[error("adapter '{name}' needs {needed} bytes; {limit} are allowed for adapters and what is there is in use")]
    NoRoom { name: AdapterName, needed: u64, limit: u64, retry_after_ms: u64 },
    #[error("adapter '{name}' was not in memory within {waited_ms} ms; it is being loaded")]
    NotYet { name: AdapterName, waited_ms: u64, retry_after_ms: u64 },
    #[error("adapter '{name}' cannot be loaded now: {reason}")]
    Busy { name: AdapterName, reason: String, retry_after_ms: u64 },
    #[error("adapter '{name}' could not be read: {reason}")]
    Unreadable { name: String, reason: String },
    #[error("the catalog of adapters could not be read or written: {reason}")]
    Catalog { reason: String },
}

/// One reason why an adapter is not applied. An adapter is applied in full or not at all.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Refusal {
    pub code: RefusalCode,
    /// The key, tensor or file it is about.
    pub subject: String,
    /// One sentence with the figures, fit for an operator; never a path of the server.
    pub reason: String,
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.subject, self.reason)
    }
}

/// The kinds of refusal, for machines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusalCode {
    /// No such folder or file, or not a regular file below the folder.
    MissingFile,
    /// A file is larger than the limit.
    TooLarge,
    /// Pickle, sharded, or not safetensors at all.
    UnsafeFormat,
    /// Not JSON, or not what PEFT writes.
    MalformedConfig,
    /// The safetensors header or its offsets are wrong, or the file is cut short.
    MalformedWeights,
    /// `peft_type` other than LORA.
    NotLora,
    /// A configuration key that is not known, with a value that might mean something.
    UnknownKey,
    /// A known feature that is not applied yet.
    Unsupported,
    /// An initialisation that changed the base it was trained on.
    BaseChanging,
    /// A rank or alpha that is not positive, or above the limit.
    Rank,
    /// A tensor's shape does not fit the base or the configured rank.
    Shape,
    /// A dtype that adapters may not have.
    Dtype,
    /// A or B without its other half, or a target without tensors.
    MissingTensor,
    /// A tensor that nothing claims.
    UnknownTensor,
    /// NaN or infinite values.
    NotFinite,
    /// A pattern that cannot be read as PEFT would.
    Pattern,
    /// A target or layer that the base does not have, or that nothing in the base fits.
    UnknownTarget,
    /// The folder's name is no adapter name, or is taken.
    Name,
    /// It was made for another base.
    Base,
    /// It was run before anything pointed at it, and failed a test or could not be run.
    Trial,
}

impl RefusalCode {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::MissingFile => "missing_file",
            Self::TooLarge => "too_large",
            Self::UnsafeFormat => "unsafe_format",
            Self::MalformedConfig => "malformed_config",
            Self::MalformedWeights => "malformed_weights",
            Self::NotLora => "not_lora",
            Self::UnknownKey => "unknown_key",
            Self::Unsupported => "unsupported",
            Self::BaseChanging => "base_changing",
            Self::Rank => "rank",
            Self::Shape => "shape",
            Self::Dtype => "dtype",
            Self::MissingTensor => "missing_tensor",
            Self::UnknownTensor => "unknown_tensor",
            Self::NotFinite => "not_finite",
            Self::Pattern => "pattern",
            Self::UnknownTarget => "unknown_target",
            Self::Name => "name",
            Self::Base => "base",
            Self::Trial => "trial",
        }
    }
}

/// Where adapters come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceFolder {
    /// Each subfolder with an `adapter_config.json` is one adapter, named by its path below.
    Root(PathBuf),
    /// One adapter under a given name.
    Named { name: AdapterName, path: PathBuf },
}
