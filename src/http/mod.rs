//! The only room that knows HTTP, status codes and server-sent events.

pub mod body;
pub mod error;
pub mod openai;
