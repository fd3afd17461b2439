//! Routes for those who may change what is served.

pub mod adapters;
mod suites;
mod view;
mod vllm;
