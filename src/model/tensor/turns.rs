//! What adapters do beside their low ranks: to finished outputs of a projection, to the embedding, and to the head.
//!
//! Outputs are turned by vectors that lie side by side ([`super::stacks`]): how many operations that takes does not depend on how
//! many adapters there are. Embedding and head are changed one adapter after the other, a few operations for each that changes them:
//! such an adapter may bring a matrix of the base's own size, and matrices like that are not copied side by side.

use std::collections::HashMap;

use candle_core::{DType, Device, Result, Tensor};

use super::{
    deltas::RowsOfAdapter,
    lora::{EmbedLowRank, Embedding, Head, LowRank, Turn},
    ops,
    stacks::{Owner, Stacks, TurnStack},
};
use crate::model::Projection;

/// Where the step's adapters turn outputs.
#[derive(Default)]
pub struct Turns {
    /// For each layer and projection, the arrangement that serves it; empty if no adapter turns anything.
    sites: Vec<[Option<usize>; Projection::ALL.len()]>,
    arrangements: Vec<Arrangement>,
}

/// Adapters that turn outputs at the same sites.
struct Arrangement {
    /// Places among the step's adapters.
    members: Vec<usize>,
    /// `[n]`: the batch rows of all members, one member after the other.
    rows: Tensor,
    /// `[n]`: where in the stacks each of them has its vectors; `None` if they are all the only member's.
    places: Option<Tensor>,
}

impl Turns {
    pub fn new(adapters: &[RowsOfAdapter], stacks: &mut Stacks, device: &Device) -> Result<Self> {
        let layers = adapters.iter().map(|adapter| adapter.weights.turns.len()).max().unwrap_or(0);
        let mut turns = Self { sites: vec![[None; Projection::ALL.len()]; layers], arrangements: Vec::new() };
        let mut known: HashMap<Vec<usize>, usize> = HashMap::new();
        for (layer, projections) in turns.sites.iter_mut().enumerate() {
            for (projection, site) in projections.iter_mut().enumerate() {
                let turned = |adapter: &RowsOfAdapter| {
                    adapter.weights.turns.get(layer).is_some_and(|layer| layer[projection].is_some())
                };
                let members: Vec<usize> = (0..adapters.len()).filter(|&place| turned(&adapters[place])).collect();
                if members.is_empty() {
                    continue;
                }
                *site = Some(match known.get(&members) {
                    Some(&found) => found,
                    None => {
                        turns.arrangements.push(Arrangement::new(members.clone(), adapters, stacks, device)?);
                        known.insert(members, turns.arrangements.len() - 1);
                        turns.arrangements.len() - 1
                    }
                });
            }
        }
        Ok(turns)
    }

    /// Turns the adapters' rows of `y` (`[rows, out]`).
    pub fn apply(
        &self,
        y: Tensor,
        (adapters, stacks): (&[RowsOfAdapter], &Stacks),
        layer: usize,
        projection: Projection,
    ) -> Result<Tensor> {
        let Some(Some(at)) = self.sites.get(layer).map(|layer| layer[projection as usize]) else { return Ok(y) };
        let Arrangement { members, rows, places } = &self.arrangements[at];
        let missing = || candle_core::Error::Msg(format!("layer {layer} has no turn of {projection:?}"));
        let (more, shift) = match places {
            Some(places) => {
                let TurnStack { more, shift } = stacks.turns(layer, projection).ok_or_else(missing)?;
                (ops::select(more, places)?, ops::select(shift, places)?)
            }
            None => {
                let own = adapters[members[0]].weights.turns[layer][projection as usize].as_ref();
                let Turn { more, shift } = own.ok_or_else(missing)?;
                (more.clone(), shift.clone())
            }
        };
        let own = ops::cast(&ops::select(&y, rows)?, DType::F32)?;
        let added = ops::add(&ops::mul(&own, &more)?, &shift)?;
        ops::index_add(&y, rows, &ops::cast(&added, y.dtype())?)
    }
}

impl Arrangement {
    fn new(members: Vec<usize>, adapters: &[RowsOfAdapter], stacks: &mut Stacks, device: &Device) -> Result<Self> {
        let rows: Vec<u32> = members.iter().flat_map(|&member| adapters[member].rows).copied().collect();
        let places = match members.as_slice() {
            [_] => None,
            _ => {
                let owners: Vec<Owner> = members.iter().map(|&member| adapters[member].owner()).collect();
                let placed = stacks.place_turns(&owners, device)?.into_iter().zip(&members);
                let places: Vec<u32> = placed
                    .flat_map(|(place, &member)| std::iter::repeat_n(place, adapters[member].rows.len()))
                    .collect();
                Some(ops::upload(&places, places.len(), device)?)
            }
        };
        Ok(Self { members, rows: ops::upload(&rows, rows.len(), device)?, places })
    }
}

impl Embedding {
    /// The embeddings of `tokens` (`[n]`), for which the base's are `base` (`[n, hidden]`).
    fn of(&self, tokens: &Tensor, base: Tensor) -> Result<Tensor> {
        let dtype = base.dtype();
        let base = match &self.whole {
            Some(whole) => ops::select(whole, tokens)?,
            None => base,
        };
        let Some(EmbedLowRank { a, b, scale, gain }) = &self.low else { return Ok(base) };
        let delta = ops::affine(&ops::product(b, &ops::select(a, tokens)?)?, f64::from(*scale), 0.0)?;
        let sum = ops::add(&ops::cast(&base, DType::F32)?, &delta)?;
        let sum = match gain {
            Some(gain) => ops::mul(&sum, gain)?,
            None => sum,
        };
        ops::cast(&sum, dtype)
    }
}

/// Puts the adapters' own embeddings of `tokens` in the place of their rows of `x` (`[rows, hidden]`), one adapter after the other.
pub fn embed(x: Tensor, tokens: &[u32], adapters: &[RowsOfAdapter]) -> Result<Tensor> {
    let mut parts = Vec::new();
    for RowsOfAdapter { weights, rows, .. } in adapters {
        let Some(embedding) = &weights.embedding else { continue };
        let own: Vec<u32> = rows.iter().map(|&row| tokens[row as usize]).collect();
        let own = ops::upload(&own, own.len(), x.device())?;
        let base = ops::select(&x, &ops::upload(rows, rows.len(), x.device())?)?;
        parts.push((rows.to_vec(), embedding.of(&own, base)?));
    }
    replaced(x, parts)
}

impl Head {
    /// The logits of `hidden` (`[n, hidden]`), for which the base's are `base` (`[n, vocab]`, `f32`).
    fn of(&self, hidden: &Tensor, base: Tensor) -> Result<Tensor> {
        let logits = match &self.whole {
            Some(whole) => ops::cast(&ops::product(whole, hidden)?, DType::F32)?,
            None => base,
        };
        let logits = match &self.low {
            Some(LowRank { a, b, factor, .. }) => {
                let hidden = ops::cast(hidden, DType::F32)?;
                let delta = ops::product(&b.squeeze(0)?, &ops::product(&a.squeeze(0)?, &hidden)?)?;
                ops::add(&logits, &ops::affine(&delta, f64::from(*factor), 0.0)?)?
            }
            None => logits,
        };
        match &self.turn {
            Some(Turn { more, shift }) => ops::add(&logits, &ops::add(&ops::mul(&logits, more)?, shift)?),
            None => Ok(logits),
        }
    }
}

/// Puts the adapters' own logits in the place of the base's, one adapter after the other. `hidden` (`[n, hidden]`) and `logits` (`[n, vocab]`, `f32`) are of the
/// batch rows `rows`.
pub fn heads(logits: Tensor, hidden: &Tensor, rows: &[u32], adapters: &[RowsOfAdapter]) -> Result<Tensor> {
    let mut parts = Vec::new();
    for adapter in adapters {
        let Some(head) = &adapter.weights.head else { continue };
        let owned = (0u32..).zip(rows).filter(|(_, row)| adapter.rows.binary_search(row).is_ok());
        let own: Vec<u32> = owned.map(|(place, _)| place).collect();
        if own.is_empty() {
            continue;
        }
        let places = ops::upload(&own, own.len(), logits.device())?;
        let part = head.of(&ops::select(hidden, &places)?, ops::select(&logits, &places)?)?;
        parts.push((own, part));
    }
    replaced(logits, parts)
}

/// `x` with some rows replaced.
fn replaced(x: Tensor, parts: Vec<(Vec<u32>, Tensor)>) -> Result<Tensor> {
    if parts.is_empty() {
        return Ok(x);
    }
    let count = x.dim(0)?;
    let mut order: Vec<u32> = (0..count as u32).collect();
    let mut joined = vec![x];
    let mut next = count as u32;
    for (rows, part) in parts {
        for row in rows {
            order[row as usize] = next;
            next += 1;
        }
        joined.push(part);
    }
    let order = ops::upload(&order, count, joined[0].device())?;
    ops::select(&ops::join(&joined, 0)?, &order)
}
