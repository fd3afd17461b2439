//! Evaluation: the same questions to several contenders, scored by code, compared pair by pair.
//!
//! The suite format is described in `recipes/SUITES.md`.

pub mod gate;
mod json;
pub mod report;
pub mod scorer;
pub mod stats;
pub mod suite;

pub use report::Report;
pub use suite::{Contender, Item, Suite, SuiteError};
