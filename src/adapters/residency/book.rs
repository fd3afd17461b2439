//! The book of what is in memory.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Weak},
};

use tokio::sync::watch;

use super::{Outcome, Ready, usage::Usage};
use crate::{adapters::AdapterCard, model::LoraAdapter, terms::AdapterVersion};

/// The truth: every adapter alive, and the loads under way.
#[derive(Default)]
pub struct Book {
    /// Versions in memory; dead references are those on their way to the graveyard.
    pub live: HashMap<AdapterVersion, Resident>,
    /// Bytes of all of them, of those being freed, and reserved by loads.
    pub bytes: u64,
    /// Their number, likewise.
    pub count: usize,
    /// The number reserved by loads.
    pub reserved: usize,
    /// Loads under way, until they have let go of what they brought.
    pub running: usize,
    pub loading: HashMap<AdapterVersion, watch::Receiver<Outcome>>,
    pub pinned: HashMap<AdapterVersion, Ready>,
    /// Versions that lost their name: loaded for as long as somebody uses them, and not kept beyond.
    pub passing: HashSet<AdapterVersion>,
    /// Of every version that was loaded in this run.
    pub usage: HashMap<AdapterVersion, Arc<Usage>>,
}

pub struct Resident {
    pub weights: Weak<LoraAdapter>,
    pub card: Arc<AdapterCard>,
    pub bytes: u64,
    pub usage: Arc<Usage>,
}

impl Book {
    pub fn ready(&self, version: AdapterVersion) -> Option<Ready> {
        let resident = self.live.get(&version)?;
        Some(Ready {
            weights: resident.weights.upgrade()?,
            card: Arc::clone(&resident.card),
            usage: Arc::clone(&resident.usage),
        })
    }

    /// Adapters that nobody holds any more and whose memory is not freed yet.
    pub fn leaving(&self) -> usize {
        let alive = self.live.values().filter(|resident| resident.weights.strong_count() > 0).count();
        self.count.saturating_sub(alive + self.reserved)
    }
}
