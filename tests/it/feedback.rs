//! What people and programs say of answers, and what the server itself notices about them.

mod given;
