//! OpenAI's API: wire types and handlers.

pub mod fields;
pub mod params;
pub mod refused;
