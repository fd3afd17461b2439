//! The record: every admitted answer ends as a row here, whatever ended it.

mod record;

pub use record::{ChoiceRecord, Completion, CompletionKind, Content, Timing};
