//! The API over real sockets, with the tiny real model behind it.

mod access;
mod adapters;
mod admin;
mod answers;
mod bad;
mod endings;
mod journal;
mod limits;
mod lists;
mod parameters;
mod protocol;
mod record;
mod trials;
