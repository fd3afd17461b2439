//! Keys and values of every layer.

use half::{f16, vec::HalfBitsVecExt};

use crate::{
    kernels::{
        attention::{KvLayout, KvRows, Slots, Stock, Stored},
        memory::ask_for_large_pages,
    },
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

/// Stored keys and values, block by block: memory is touched as blocks are used.
pub struct KvStore<T> {
    layout: KvLayout,
    /// Of each layer.
    kv_heads: usize,
    /// `[blocks, layers · kv_heads, 2, block_tokens · head_dim]`
    memory: Vec<T>,
}

impl<T: Zeros> KvStore<T> {
    pub fn new(shape: &ModelShape, kv: KvShape) -> Self {
        let heads = shape.layers * shape.kv_heads;
        let layout = KvLayout { block_tokens: kv.block_tokens, head_dim: shape.head_dim, heads };
        let mut memory = T::zeros(kv.blocks * layout.block_values());
        ask_for_large_pages(&mut memory);
        Self { layout, kv_heads: shape.kv_heads, memory }
    }
}

impl<T: Stored> KvStore<T> {
    pub fn head(&self, layer: usize, head: usize) -> Stock<'_, T> {
        Stock::new(self.layout, &self.memory, layer * self.kv_heads + head)
    }

    /// Where the rows of a step are written, in pieces of some rows.
    pub fn rows<'a>(&'a mut self, slots: &'a Slots, at_once: usize) -> KvRows<'a, T> {
        KvRows::new(self.layout, &mut self.memory, slots, at_once)
    }

    /// Copies whole blocks, in order.
    pub fn copy(&mut self, copies: &[(u32, u32)]) {
        let length = self.layout.block_values();
        for &(from, to) in copies.iter().filter(|(from, to)| from != to) {
            let start = from as usize * length;
            self.memory.copy_within(start..start + length, to as usize * length);
        }
    }
}
