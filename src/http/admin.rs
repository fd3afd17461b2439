//! Routes for those who may change what is served.

pub mod adapters;
pub mod flags;
mod report;
mod suites;
mod view;
mod vllm;
