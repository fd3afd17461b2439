//! tunegate: a gateway for fine-tuned language models. One base model resident, a LoRA adapter chosen by each request,
//! every answer on record.
//!
//! The rooms, in reading order; each may import those after it in its line, and the ground.
//!
//! - ground: [`terms`] (shared words), [`config`] (every setting), [`metrics`] (every collector), [`stats`] (intervals and
//!   tests), [`data_dir`] (one server holds it), [`model_files`] (on disk or on a hub)
//! - [`cli`] (commands) → [`app`] (builds, wires, serves, drains) → [`http`] (wire types, handlers) → [`eval`] (suites, scorers, comparisons), [`feedback`] (flags by rule, reports by version) → [`gateway`] (one request, question to recorded answer) →
//!   [`engine`] (continuous batching), [`adapters`] (names, versions, weights), [`text`] (words and tokens),
//!   [`journal`] (the record)
//! - [`engine`] → [`model`] (rows in, scores out) → [`kernels`] (slices in, slices out)
//! - [`eval`] and [`feedback`] know nothing of each other; [`feedback`] follows the [`journal`], and no answer waits for it
//! - [`adapters`] → [`model`], [`store`]; [`journal`] → [`store`] (the database); [`text`] and [`store`] → ground only

pub mod adapters;
pub mod app;
pub mod cli;
pub mod config;
pub mod data_dir;
pub mod engine;
pub mod eval;
pub mod feedback;
pub mod gateway;
pub mod http;
pub mod journal;
pub mod kernels;
pub mod metrics;
pub mod model;
pub mod model_files;
pub mod stats;
pub mod store;
pub mod terms;
pub mod text;
