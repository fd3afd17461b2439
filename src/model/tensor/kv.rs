//! Keys and values of every layer, in pools of slots that blocks divide.

use candle_core::{DType, Device, Result, Tensor};

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
        let pool = || Tensor::zeros((kv.blocks * kv.block_tokens, shape.kv_heads * shape.head_dim), dtype, device);
        let layers = (0..shape.layers).map(|_| Ok((pool()?, pool()?))).collect::<Result<_>>()?;
        Ok(Self { layers, block_tokens: kv.block_tokens, head_dim: shape.head_dim })
    }

    /// Copies whole blocks, in order.
    pub fn copy(&self, copies: &[(u32, u32)]) -> Result<()> {
        for &(from, to) in copies.iter().filter(|(from, to)| from != to) {
            for pool in self.layers.iter().flat_map(|(keys, values)| [keys, values]) {
                let block = pool.narrow(0, from as usize * self.block_tokens, self.block_tokens)?.force_contiguous()?;
                pool.slice_set(&block, 0, to as usize * self.block_tokens)?;
            }
        }
        Ok(())
    }

    /// Writes `[rows, kv_heads · head_dim]` keys and values in place; `slots` is each row's slot, repeated over its width.
    pub fn write(&self, layer: usize, slots: &Tensor, keys: &Tensor, values: &Tensor) -> Result<()> {
        let (key_pool, value_pool) = &self.layers[layer];
        key_pool.scatter_set(slots, keys, 0)?;
        value_pool.scatter_set(slots, values, 0)
    }

    /// Keys and values at `places` (`slot · kv_heads + head`), each `[places, head_dim]`.
    pub fn read(&self, layer: usize, places: &Tensor) -> Result<(Tensor, Tensor)> {
        let (keys, values) = &self.layers[layer];
        let read = |pool: &Tensor| pool.reshape(((), self.head_dim))?.index_select(places, 0);
        Ok((read(keys)?, read(values)?))
    }
}
