//! Adapters of one rank side by side in one tensor for each site, so that one product serves all of them; and likewise the vectors
//! of those that turn outputs, which one look-up serves.
//!
//! A stack is a second copy, and holds only adapters that lately shared a step with others of their kind: as many as one
//! step has had of it. An adapter is copied in at its first such step, some copies for each of its sites, and stays
//! until its place is wanted by another. The memory is counted as the adapter's ([`TensorAdapter::PLACES`]): where more than
//! a quarter of the places are those of adapters that are gone, the bank is let go of, and filled anew by those that live.

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
};

use candle_core::{DType, Device, Result, Tensor};

use super::{
    lora::{LowRank, TensorAdapter, Turn},
    ops,
};
use crate::model::{LoraAdapter, Projection};

/// A layer and what is changed there.
type Site = (usize, Projection);

/// An adapter, and its tensors.
pub type Owner<'a> = (&'a Arc<LoraAdapter>, &'a TensorAdapter);

/// One site's low ranks of all places.
pub struct Stack {
    /// `[places, r, in]`
    pub a: Tensor,
    /// `[places, out, r]`
    pub b: Tensor,
    /// `[places, 1, 1]`
    pub scale: Tensor,
}

/// One site's turns of all places.
pub struct TurnStack {
    /// `[places, out]`
    pub more: Tensor,
    /// `[places, out]`
    pub shift: Tensor,
}

/// The stacks of every rank, and of turns.
#[derive(Default)]
pub struct Stacks {
    ranks: HashMap<usize, Bank<Stack>>,
    turns: Bank<TurnStack>,
    /// Counts the steps, to tell which adapter was used longest ago.
    step: u64,
}

/// Adapters that have something in common. One whose ranks differ from site to site has a place in the bank of each.
struct Bank<S> {
    places: Vec<Place>,
    sites: HashMap<Site, S>,
}

struct Place {
    owner: Weak<LoraAdapter>,
    last_step: u64,
}

/// What lies in a bank, site by site.
trait Stacked: Sized {
    /// What one adapter has of it at a site; the first dimension of each tensor is 1.
    type Own;

    fn tensors(&mut self) -> impl Iterator<Item = &mut Tensor>;

    /// Room for `places` of the kind of `own`.
    fn room(places: usize, own: &Self::Own, device: &Device) -> Result<Self>;

    fn fill(&self, place: usize, own: &Self::Own) -> Result<()>;
}

impl Stacked for Stack {
    type Own = LowRank;

    fn tensors(&mut self) -> impl Iterator<Item = &mut Tensor> {
        [&mut self.a, &mut self.b, &mut self.scale].into_iter()
    }

    fn room(places: usize, own: &LowRank, device: &Device) -> Result<Self> {
        let room = |own: &Tensor| room(places, own, device);
        Ok(Self { a: room(&own.a)?, b: room(&own.b)?, scale: room(&own.scale)? })
    }

    fn fill(&self, place: usize, own: &LowRank) -> Result<()> {
        ops::overwrite(&self.a, &own.a, place)?;
        ops::overwrite(&self.b, &own.b, place)?;
        ops::overwrite(&self.scale, &own.scale, place)
    }
}

impl Stacked for TurnStack {
    type Own = Turn;

    fn tensors(&mut self) -> impl Iterator<Item = &mut Tensor> {
        [&mut self.more, &mut self.shift].into_iter()
    }

    fn room(places: usize, own: &Turn, device: &Device) -> Result<Self> {
        Ok(Self { more: room(places, &own.more, device)?, shift: room(places, &own.shift, device)? })
    }

    fn fill(&self, place: usize, own: &Turn) -> Result<()> {
        ops::overwrite(&self.more, &own.more, place)?;
        ops::overwrite(&self.shift, &own.shift, place)
    }
}

/// As many of `own`, whose first dimension is 1, all zeros.
fn room(places: usize, own: &Tensor, device: &Device) -> Result<Tensor> {
    let mut dims = own.dims().to_vec();
    dims[0] = places;
    ops::zeros(dims, DType::F32, device)
}

impl Stacks {
    pub fn start_step(&mut self) {
        self.step += 1;
        self.ranks.retain(|_, bank| !bank.is_idle());
        if self.turns.is_idle() {
            self.turns = Bank::default();
        }
    }

    /// Sees to it that all `adapters` have a place in the bank of `rank`, and gives their places.
    pub fn place(&mut self, rank: usize, adapters: &[Owner], device: &Device) -> Result<Vec<u32>> {
        self.ranks.entry(rank).or_default().place(
            self.step,
            adapters,
            |weights| sites(&weights.layers, |own| own.as_ref().filter(|low| low.rank() == rank)),
            device,
        )
    }

    /// The same in the bank of turns, for adapters that turn something.
    pub fn place_turns(&mut self, adapters: &[Owner], device: &Device) -> Result<Vec<u32>> {
        self.turns.place(self.step, adapters, |weights| sites(&weights.turns, Option::as_ref), device)
    }

    pub fn get(&self, rank: usize, layer: usize, projection: Projection) -> Option<&Stack> {
        self.ranks.get(&rank)?.sites.get(&(layer, projection))
    }

    pub fn turns(&self, layer: usize, projection: Projection) -> Option<&TurnStack> {
        self.turns.sites.get(&(layer, projection))
    }
}

/// What an adapter has in its table of layers and projections, as far as `of` finds it.
fn sites<T>(layers: &[[Option<T>; Projection::ALL.len()]], of: impl Fn(&Option<T>) -> Option<&T>) -> Vec<(Site, &T)> {
    let all = layers.iter().enumerate().flat_map(|(layer, sites)| {
        Projection::ALL.into_iter().zip(sites).map(move |(projection, own)| ((layer, projection), own))
    });
    all.filter_map(|(site, own)| Some((site, of(own)?))).collect()
}

impl<S> Default for Bank<S> {
    fn default() -> Self {
        Self { places: Vec::new(), sites: HashMap::new() }
    }
}

impl<S: Stacked> Bank<S> {
    /// Whether too many places are those of adapters that are gone.
    fn is_idle(&self) -> bool {
        let gone = self.places.iter().filter(|place| place.owner.strong_count() == 0).count();
        4 * gone > self.places.len()
    }

    /// Sees to it that all `adapters` have a place, with what `own` finds of each, and gives their places.
    fn place<'a>(
        &mut self,
        step: u64,
        adapters: &[Owner<'a>],
        own: impl Fn(&'a TensorAdapter) -> Vec<(Site, &'a S::Own)>,
        device: &Device,
    ) -> Result<Vec<u32>>
    where
        S::Own: 'a,
    {
        // All are marked before any newcomer takes a place, so that none of this step loses its own.
        let mut places: Vec<Option<usize>> = adapters.iter().map(|(adapter, _)| self.find(adapter, step)).collect();
        for (place, (owner, weights)) in places.iter_mut().zip(adapters) {
            if place.is_none() {
                // The same adapter may be listed twice.
                *place = self.find(owner, step);
            }
            if place.is_none() {
                let free = self.free(step, adapters.len())?;
                // If the device fails half-way, nobody must be found here.
                self.places[free].owner = Weak::new();
                self.fill(free, own(weights), device)?;
                self.places[free] = Place { owner: Arc::downgrade(owner), last_step: step };
                *place = Some(free);
            }
        }
        Ok(places.into_iter().flatten().map(|place| place as u32).collect())
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
        for tensor in self.sites.values_mut().flat_map(S::tensors) {
            let larger = room(capacity, tensor, tensor.device())?;
            ops::overwrite(&larger, tensor, 0)?;
            *tensor = larger;
        }
        self.places.resize_with(capacity, || Place { owner: Weak::new(), last_step: 0 });
        Ok(first)
    }

    /// Copies what one adapter has to `place`.
    fn fill(&mut self, place: usize, own: Vec<(Site, &S::Own)>, device: &Device) -> Result<()> {
        let capacity = self.places.len();
        for (site, own) in own {
            let stack = match self.sites.entry(site) {
                std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
                std::collections::hash_map::Entry::Vacant(entry) => entry.insert(S::room(capacity, own, device)?),
            };
            stack.fill(place, own)?;
        }
        Ok(())
    }
}
