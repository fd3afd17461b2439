//! Stored keys and values: how they lie in memory, and how rows are written there.

use std::{marker::PhantomData, ops::Range};

use half::{f16, slice::HalfFloatSliceExt as _};

use super::SPLIT;
use crate::kernels::{
    fetch::{fetch, fetch_to_write},
    share::Share,
};

/// A number as keys and values are stored.
pub trait Stored: Copy + Default + Send + Sync + 'static {
    fn load(self) -> f32;

    /// Rounds `from` into `to`, of the same length.
    fn store(from: &[f32], to: &mut [Self]);
}

impl Stored for f32 {
    fn load(self) -> f32 {
        self
    }

    fn store(from: &[f32], to: &mut [Self]) {
        to.copy_from_slice(from);
    }
}

impl Stored for f16 {
    fn load(self) -> f32 {
        self.to_f32()
    }

    fn store(from: &[f32], to: &mut [Self]) {
        to.convert_from_f32_slice(from);
    }
}

/// How keys and values lie in memory: `[blocks, heads, 2, block_tokens · head_dim]`, for all heads of all layers, keys before values.
/// What a sequence holds of a layer lies close together, and memory is used block by block.
///
/// Values lie by rows, one for each position. Keys lie in groups of 16 positions, dimension by dimension, the positions side by side:
/// a query's 16 scores are then sums over vectors, without sums across one. Blocks that are no multiple of 16 positions have
/// groups of 8; if they are no multiple of that either, their keys lie by rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvLayout {
    pub block_tokens: usize,
    pub head_dim: usize,
    /// Key heads of all layers.
    pub heads: usize,
}

impl KvLayout {
    /// Numbers in one block of one head, of keys or of values.
    pub fn part_values(self) -> usize {
        self.block_tokens * self.head_dim
    }

    /// Numbers in one block.
    pub fn block_values(self) -> usize {
        2 * self.heads * self.part_values()
    }

    /// Positions in a group of keys.
    pub(super) fn lanes(self) -> usize {
        [16, 8].into_iter().find(|&lanes| self.block_tokens.is_multiple_of(lanes)).unwrap_or(1)
    }

    /// Where the row of a position begins in its head's values, counted from the head's first block.
    fn row(self, block: usize, offset: usize) -> usize {
        block * self.block_values() + offset * self.head_dim
    }
}

/// One head's stored keys and values.
#[derive(Clone, Copy, Debug)]
pub struct Stock<'a, T> {
    layout: KvLayout,
    /// From the head's keys in block 0 on.
    keys: &'a [T],
    /// From the head's values in block 0 on.
    values: &'a [T],
}

impl<'a, T> Stock<'a, T> {
    /// Head `head` of `memory`, which holds whole blocks.
    ///
    /// # Panics
    /// If there is no such head.
    pub fn new(layout: KvLayout, memory: &'a [T], head: usize) -> Self {
        assert!(head < layout.heads, "head {head} of {}", layout.heads);
        let first = (2 * head * layout.part_values()).min(memory.len());
        let (keys, values) = (&memory[first..], &memory[(first + layout.part_values()).min(memory.len())..]);
        Self { layout, keys, values }
    }

    pub fn layout(&self) -> KvLayout {
        self.layout
    }

    pub(super) fn values(&self) -> &'a [T] {
        self.values
    }

    /// A group of keys that begins with the position whose row is `row`: `[head_dim, lanes]`.
    pub(super) fn keys(&self, row: usize) -> &'a [T] {
        &self.keys[row..row + self.layout.lanes() * self.layout.head_dim]
    }

    /// Where the values of each of `positions` begin, block by block; where a group's keys begin, for its first position.
    pub(super) fn rows(&self, blocks: &[u32], positions: Range<usize>, rows: &mut [usize; SPLIT]) {
        let (tokens, dim) = (self.layout.block_tokens, self.layout.head_dim);
        let (mut position, mut rest) = (positions.start, &mut rows[..positions.len()]);
        while !rest.is_empty() {
            let count = (tokens - position % tokens).min(rest.len());
            let first = self.layout.row(blocks[position / tokens] as usize, position % tokens);
            assert!(first + count * dim <= self.values.len(), "a block outside the memory");
            let (run, after) = rest.split_at_mut(count);
            run.iter_mut().enumerate().for_each(|(place, row)| *row = first + place * dim);
            (position, rest) = (position + count, after);
        }
    }

    /// Asks for the keys of the group that `position` lies in, before they are needed.
    pub(super) fn fetch_keys(&self, blocks: &[u32], position: usize) {
        let (tokens, lanes) = (self.layout.block_tokens, self.layout.lanes());
        let offset = position % tokens / lanes * lanes;
        if let Some(&block) = blocks.get(position / tokens) {
            let first = self.layout.row(block as usize, offset);
            fetch(self.keys.get(first..first + lanes * self.layout.head_dim).unwrap_or_default());
        }
    }
}

/// Where each row of a step is stored; no two rows in one place.
pub struct Slots {
    /// Block, and offset in it.
    places: Vec<(usize, usize)>,
}

impl Slots {
    /// `None` if two rows have one place.
    pub fn new(places: Vec<(usize, usize)>) -> Option<Self> {
        let mut sorted = places.clone();
        sorted.sort_unstable();
        sorted.windows(2).all(|pair| pair[0] != pair[1]).then_some(Self { places })
    }
}

/// Rows to be written, in pieces of some rows each.
pub struct KvRows<'a, T> {
    layout: KvLayout,
    memory: *mut T,
    slots: &'a Slots,
    piece: usize,
    slice: PhantomData<&'a mut [T]>,
}

// SAFETY: stands for an exclusive slice of which threads write different numbers: no two slots are one.
unsafe impl<T: Send> Sync for KvRows<'_, T> {}

impl<'a, T> KvRows<'a, T> {
    /// The rows of `slots` in `memory`, `piece` rows to a piece.
    ///
    /// # Panics
    /// If a slot lies outside the memory, or `piece` is 0.
    pub fn new(layout: KvLayout, memory: &'a mut [T], slots: &'a Slots, piece: usize) -> Self {
        assert!(piece > 0, "pieces of nothing");
        let blocks = memory.len() / layout.block_values();
        let within = |&(block, offset): &(usize, usize)| block < blocks && offset < layout.block_tokens;
        assert!(slots.places.iter().all(within), "a slot outside the memory");
        Self { layout, memory: memory.as_mut_ptr(), slots, piece, slice: PhantomData }
    }
}

// SAFETY: a piece writes the slots of its own rows alone, and no two rows have one slot.
unsafe impl<'a, T: Stored> Share for KvRows<'a, T> {
    type Piece = KvPiece<'a, T>;

    fn pieces(&self) -> usize {
        self.slots.places.len().div_ceil(self.piece)
    }

    unsafe fn piece(&self, index: usize) -> KvPiece<'a, T> {
        let slots = &self.slots.places;
        let slots = &slots[index * self.piece..slots.len().min((index + 1) * self.piece)];
        KvPiece { layout: self.layout, memory: self.memory, slots, slice: PhantomData }
    }
}

/// Some rows, to be written by one thread.
pub struct KvPiece<'a, T> {
    layout: KvLayout,
    memory: *mut T,
    slots: &'a [(usize, usize)],
    slice: PhantomData<&'a mut [T]>,
}

impl<T: Stored> KvPiece<'_, T> {
    /// Asks for the memory that [`write`](Self::write) goes to: a key's numbers lie a line apart, or nearly.
    pub fn fetch(&self, row: usize, head: usize) {
        let (layout, (block, offset)) = (self.layout, self.slots[row]);
        let (dim, lanes) = (layout.head_dim, layout.lanes());
        let group = layout.row(block, offset - offset % lanes) + 2 * head * layout.part_values();
        fetch_to_write(self.memory.wrapping_add(group), lanes * dim);
        fetch_to_write(self.memory.wrapping_add(group + layout.part_values() + offset % lanes * dim), dim);
    }

    /// Stores the key and the value (`[head_dim]`) of row `row` of the piece for one head.
    ///
    /// # Panics
    /// If there is no such row or head, or the sizes do not fit.
    pub fn write(&mut self, row: usize, head: usize, key: &[f32], value: &[f32]) {
        let (layout, (block, offset)) = (self.layout, self.slots[row]);
        let (dim, lanes) = (layout.head_dim, layout.lanes());
        assert!(head < layout.heads && key.len() == dim && value.len() == dim, "a key and a value of a head");
        let lane = offset % lanes;
        let first = layout.row(block, offset - lane) + 2 * head * layout.part_values();
        // SAFETY: `KvRows::new` has checked that every slot lies in the memory, and the head is one of the block's. Each number
        // of this row's key and value is its slot's alone, and this piece alone has the slot.
        unsafe {
            let value_row = self.memory.add(first + layout.part_values() + lane * dim);
            T::store(value, std::slice::from_raw_parts_mut(value_row, dim));
            let group = self.memory.add(first);
            let mut rounded = [T::default(); 64];
            for (part, key) in key.chunks(64).enumerate() {
                let rounded = &mut rounded[..key.len()];
                T::store(key, rounded);
                for (d, &key) in (part * 64..).zip(&*rounded) {
                    group.add(d * lanes + lane).write(key);
                }
            }
        }
    }
}
