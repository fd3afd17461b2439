//! The API over real sockets, with the tiny real model behind it.

mod answers;
