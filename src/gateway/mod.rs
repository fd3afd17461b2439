//! One request from question to recorded answer. Used by HTTP, evaluation, probes and replay alike.

mod ask;

pub use ask::{Ask, AskError, Caller, Prompt, ReplyError, ReplyEvent, ReplyHead};
