//! Adapters of one rank side by side in one tensor for each site, so that one product serves all of them.
//!
//! A stack is a second copy, and holds only adapters that lately shared a step with others of their rank: as many as one
//! step has had of that rank. An adapter is copied in at its first such step, three copies for each of its sites, and stays
//! until its place is wanted by another. The memory is counted as the adapter's ([`TensorAdapter::PLACES`]): where more than
//! a quarter of the places are those of adapters that are gone, the bank is let go of, and filled anew by those that live.

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
};

use candle_core::{DType, Device, Result, Tensor};

use super::{
    lora::{LowRank, TensorAdapter},
    ops,
};
use crate::model::{LoraAdapter, Projection};

/// The stacks of every rank.
#[derive(Default)]
pub struct Stacks {
    ranks: HashMap<usize, Bank>,
    /// Counts the steps, to tell which adapter was used longest ago.
    step: u64,
}

/// The adapters of one rank. An adapter whose ranks differ from site to site has a place in the bank of each.
#[derive(Default)]
struct Bank {
    places: Vec<Place>,
    sites: HashMap<(usize, Projection), Stack>,
}

struct Place {
    owner: Weak<LoraAdapter>,
    last_step: u64,
}

/// One site's matrices of all places.
pub struct Stack {
    /// `[places, r, in]`
    pub a: Tensor,
    /// `[places, out, r]`
    pub b: Tensor,
    /// `[places, 1, 1]`
    pub scale: Tensor,
}

impl Stacks {
    pub fn start_step(&mut self) {
        self.step += 1;
        self.ranks.retain(|_, bank| 4 * bank.left() <= bank.places.len());
    }

    /// Sees to it that all `adapters` have a place in the bank of `rank`, and gives their places.
    pub fn place(
        &mut self,
        rank: usize,
        adapters: &[(&Arc<LoraAdapter>, &TensorAdapter)],
        device: &Device,
    ) -> Result<Vec<u32>> {
        let step = self.step;
        let bank = self.ranks.entry(rank).or_default();
        // All are marked before any newcomer takes a place, so that none of this step loses its own.
        let mut places: Vec<Option<usize>> = adapters.iter().map(|(adapter, _)| bank.find(adapter, step)).collect();
        for (place, (owner, weights)) in places.iter_mut().zip(adapters) {
            if place.is_none() {
                // The same adapter may be listed twice.
                *place = bank.find(owner, step);
            }
            if place.is_none() {
                let free = bank.free(step, adapters.len())?;
                // If the device fails half-way, nobody must be found here.
                bank.places[free].owner = Weak::new();
                bank.fill(free, rank, weights, device)?;
                bank.places[free] = Place { owner: Arc::downgrade(owner), last_step: step };
                *place = Some(free);
            }
        }
        Ok(places.into_iter().flatten().map(|place| place as u32).collect())
    }

    pub fn get(&self, rank: usize, layer: usize, projection: Projection) -> Option<&Stack> {
        self.ranks.get(&rank)?.sites.get(&(layer, projection))
    }
}

impl Bank {
    /// Places of adapters that are gone.
    fn left(&self) -> usize {
        self.places.iter().filter(|place| place.owner.strong_count() == 0).count()
    }

    fn find(&mut self, adapter: &Arc<LoraAdapter>, step: u64) -> Option<usize> {
        // A weak reference keeps the address from being used again.
        let found = self.places.iter().position(|place| place.owner.as_ptr() == Arc::as_ptr(adapter))?;
        self.places[found].last_step = step;
        Some(found)
    }

    /// A place that nobody of this step has: of a dropped adapter, else of the one used longest ago, else a new one.
    fn free(&mut self, step: u64, wanted: usize) -> Result<usize> {
        let idle = self.places.iter().enumerate().filter(|(_, place)| place.last_step < step);
        let oldest = idle.min_by_key(|(_, place)| (place.owner.strong_count() > 0, place.last_step));
        let enough = self.places.len() >= wanted;
        match oldest {
            Some((index, place)) if enough || place.owner.strong_count() == 0 => Ok(index),
            _ => self.grow((self.places.len() + 1).max(wanted)),
        }
    }

    /// Makes room for `capacity` places and gives the first new one.
    fn grow(&mut self, capacity: usize) -> Result<usize> {
        let first = self.places.len();
        for stack in self.sites.values_mut() {
            for tensor in [&mut stack.a, &mut stack.b, &mut stack.scale] {
                let (_, rows, cols) = tensor.dims3()?;
                let larger = ops::zeros((capacity, rows, cols), DType::F32, tensor.device())?;
                ops::overwrite(&larger, tensor, 0)?;
                *tensor = larger;
            }
        }
        self.places.resize_with(capacity, || Place { owner: Weak::new(), last_step: 0 });
        Ok(first)
    }

    /// Copies one adapter's sites of this rank to `place`.
    fn fill(&mut self, place: usize, rank: usize, weights: &TensorAdapter, device: &Device) -> Result<()> {
        let capacity = self.places.len();
        for (layer, sites) in weights.layers.iter().enumerate() {
            for (projection, low_rank) in Projection::ALL.into_iter().zip(sites) {
                let Some(LowRank { a, b, scale, .. }) = low_rank.as_ref().filter(|low_rank| low_rank.rank() == rank)
                else {
                    continue;
                };
                let stack = match self.sites.entry((layer, projection)) {
                    std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
                    std::collections::hash_map::Entry::Vacant(entry) => {
                        let zeros = |rows, cols| ops::zeros((capacity, rows, cols), DType::F32, device);
                        entry.insert(Stack {
                            a: zeros(rank, a.dim(2)?)?,
                            b: zeros(b.dim(1)?, rank)?,
                            scale: zeros(1, 1)?,
                        })
                    }
                };
                ops::overwrite(&stack.a, a, place)?;
                ops::overwrite(&stack.b, b, place)?;
                ops::overwrite(&stack.scale, scale, place)?;
            }
        }
        Ok(())
    }
}
