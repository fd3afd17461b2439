//! The record: every admitted answer ends as a row here, whatever ended it.

pub use crate::store::{ChoiceRecord, Completion, CompletionKind, Content, Given, Options, PromptContent, Timing};
