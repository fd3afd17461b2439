//! The row of one trial.

use crate::terms::{AdapterVersion, Digest};

/// What a trial of an adapter version found. Another base, or another suite, is another trial.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrialRow {
    pub version: AdapterVersion,
    /// The base that it ran on.
    pub base: Digest,
    /// The prompts, bounds and words that it was judged by.
    pub suite: Digest,
    /// Milliseconds since the Unix epoch.
    pub at_ms: i64,
    /// The test that failed and what it found; `None`: passed.
    pub failed: Option<(String, String)>,
    /// As JSON.
    pub figures: String,
}
