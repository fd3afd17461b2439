//! OpenAI's API: wire types and handlers.

pub mod create;
pub mod fields;
pub mod logprobs;
pub mod messages;
pub mod models;
pub mod params;
pub mod question;
pub mod refused;
pub mod stored;
pub mod stream;
pub mod tokens;
pub mod wire;
pub mod writer;

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{SystemTime, UNIX_EPOCH},
};

use crate::terms::{Digest, Hasher};

/// A new id: `prefix-` and 24 hex digits.
pub fn fresh_id(prefix: &str) -> String {
    let mut bytes = [0; 32];
    let digest = match getrandom::fill(&mut bytes) {
        Ok(()) => Digest::from_bytes(bytes),
        Err(_) => counted(),
    };
    format!("{prefix}-{:.24}", digest.to_string())
}

/// Ids must differ, not be secret: without random numbers, time and a count will do.
fn counted() -> Digest {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos());
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    Hasher::new().part("now", &now.to_le_bytes()).part("count", &count.to_le_bytes()).finish()
}
