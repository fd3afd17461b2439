//! Keys and values of every layer, in pools of slots that blocks divide.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Result, Tensor};

use super::ops;
use crate::model::{KvShape, ModelShape};

/// One pool of keys and one of values for each layer, each `[slots, kv_heads · head_dim]`; slot `block · block_tokens + offset`
/// is one position of whoever holds the block.
pub struct KvPools {
    layers: Vec<(Tensor, Tensor)>,
    block_tokens: usize,
    /// `[slots · kv_heads, head_dim]` is how the pools are read.
    head_dim: usize,
}

impl KvPools {
    pub fn new(shape: &ModelShape, kv: KvShape, dtype: DType, device: &Device) -> Result<Self> {
        let pool = || ops::zeros((kv.blocks * kv.block_tokens, shape.kv_heads * shape.head_dim), dtype, device);
        let layers = (0..shape.layers).map(|_| Ok((pool()?, pool()?))).collect::<Result<_>>()?;
        Ok(Self { layers, block_tokens: kv.block_tokens, head_dim: shape.head_dim })
    }

    /// Copies whole blocks as if one after the other, but in two operations for each pool, however many they are.
    pub fn copy(&self, copies: &[(u32, u32)]) -> Result<()> {
        let moves = resolved(copies);
        let Some((first, _)) = self.layers.first().filter(|_| !moves.is_empty()) else { return Ok(()) };
        let slots = |blocks: Vec<u32>| {
            let length = self.block_tokens as u32;
            blocks.into_iter().flat_map(|block| block * length..(block + 1) * length).collect::<Vec<u32>>()
        };
        let (to, from): (Vec<u32>, Vec<u32>) = moves.into_iter().unzip();
        let (from, to) = (slots(from), slots(to));
        let (rows, width) = (to.len(), first.dim(1)?);
        let from = ops::upload(&from, rows, first.device())?;
        let to = ops::upload(&to, (rows, 1), first.device())?;
        let to = ops::contiguous(&to.broadcast_as((rows, width))?)?;
        for pool in self.layers.iter().flat_map(|(keys, values)| [keys, values]) {
            ops::scatter(pool, &to, &ops::select(pool, &from)?, 0)?;
        }
        Ok(())
    }

    /// Writes `[rows, kv_heads · head_dim]` keys and values in place; `slots` is each row's slot, repeated over its width.
    pub fn write(&self, layer: usize, slots: &Tensor, keys: &Tensor, values: &Tensor) -> Result<()> {
        let (key_pool, value_pool) = &self.layers[layer];
        ops::scatter(key_pool, slots, keys, 0)?;
        ops::scatter(value_pool, slots, values, 0)
    }

    /// The pools as the blocks divide them, `[blocks, block_tokens, kv_heads, head_dim]` each: views.
    pub fn pages(&self, layer: usize) -> Result<(Tensor, Tensor)> {
        let (keys, values) = &self.layers[layer];
        let kv_heads = keys.dim(1)? / self.head_dim;
        let paged = |pool: &Tensor| pool.reshape(((), self.block_tokens, kv_heads, self.head_dim));
        Ok((paged(keys)?, paged(values)?))
    }

    /// Keys and values at `places` (`slot · kv_heads + head`), each `[places, head_dim]`.
    pub fn read(&self, layer: usize, places: &Tensor) -> Result<(Tensor, Tensor)> {
        let (keys, values) = &self.layers[layer];
        let read = |pool: &Tensor| ops::select(&pool.reshape(((), self.head_dim))?, places);
        Ok((read(keys)?, read(values)?))
    }
}

/// Which block holds what which other one held before all `copies`, (to, from), where the two differ.
fn resolved(copies: &[(u32, u32)]) -> BTreeMap<u32, u32> {
    let mut sources = BTreeMap::new();
    for &(from, to) in copies {
        let source = sources.get(&from).copied().unwrap_or(from);
        sources.insert(to, source);
    }
    sources.retain(|to, from| to != from);
    sources
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_in_a_chain_take_what_stood_at_its_head() {
        let moves: Vec<(u32, u32)> =
            resolved(&[(3, 5), (5, 9), (9, 9), (7, 3), (9, 3), (1, 2), (2, 1)]).into_iter().collect();
        assert_eq!(moves, [(2, 1), (5, 3), (9, 3)]);
    }
}
