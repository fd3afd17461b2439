//! Keys and values of every layer, head by head.

use half::{f16, vec::HalfBitsVecExt};

use crate::{
    kernels::attention::{KvLayout, Stock, Stored},
    model::{KvShape, ModelShape},
};

/// Numbers whose memory the system gives as zeros, page by page as they are first written: a budget costs nothing before it
/// is used.
pub trait Zeros: Stored {
    fn zeros(count: usize) -> Vec<Self>;
}

impl Zeros for f32 {
    fn zeros(count: usize) -> Vec<Self> {
        vec![0.0; count]
    }
}

impl Zeros for f16 {
    /// `vec!` knows of integers that they are zero, of `f16` it does not and would write every one.
    fn zeros(count: usize) -> Vec<Self> {
        vec![0u16; count].reinterpret_into()
    }
}

/// Stored keys and values; every head of a layer has its own blocks, so that threads may write different heads at once.
pub struct KvStore<T> {
    pub layout: KvLayout,
    /// Numbers of one head: `blocks · block_tokens · head_dim`.
    pub head_values: usize,
    layers: Vec<LayerKv<T>>,
}

/// One layer's, each `[kv_heads, blocks, block_tokens · head_dim]`.
pub struct LayerKv<T> {
    pub keys: Vec<T>,
    pub values: Vec<T>,
}

impl<T: Zeros> KvStore<T> {
    pub fn new(shape: &ModelShape, kv: KvShape) -> Self {
        let layout = KvLayout { block_tokens: kv.block_tokens, head_dim: shape.head_dim };
        let head_values = kv.blocks * layout.block_values();
        let zeros = || T::zeros(shape.kv_heads * head_values);
        let layers = (0..shape.layers).map(|_| LayerKv { keys: zeros(), values: zeros() }).collect();
        Self { layout, head_values, layers }
    }
}

impl<T: Stored> KvStore<T> {
    pub fn layer_mut(&mut self, layer: usize) -> &mut LayerKv<T> {
        &mut self.layers[layer]
    }

    pub fn head(&self, layer: usize, head: usize) -> Stock<'_, T> {
        let part = head * self.head_values..(head + 1) * self.head_values;
        let LayerKv { keys, values } = &self.layers[layer];
        Stock { layout: self.layout, keys: &keys[part.clone()], values: &values[part] }
    }

    /// Copies whole blocks, in order.
    pub fn copy(&mut self, copies: &[(u32, u32)]) {
        let length = self.layout.block_values();
        for &(from, to) in copies.iter().filter(|(from, to)| from != to) {
            for numbers in self.layers.iter_mut().flat_map(|layer| [&mut layer.keys, &mut layer.values]) {
                for head in numbers.chunks_exact_mut(self.head_values) {
                    let start = from as usize * length;
                    head.copy_within(start..start + length, to as usize * length);
                }
            }
        }
    }
}
