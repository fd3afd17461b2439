//! The only room that knows HTTP, status codes and server-sent events.
