//! One file for each command.
pub mod bench;
pub mod eval;
mod started;
