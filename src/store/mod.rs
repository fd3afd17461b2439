//! The database: typed operations and migrations. The only room with SQL.

mod record;

pub use record::{ChoiceRecord, Completion, CompletionKind, Content, Given, Options, PromptContent, Timing};
