//! Attention of some rows of one sequence over one head's paged keys and values.
//!
//! A row's context is taken in splits of [`SPLIT`] positions, counted from the sequence's start. Each split has its own
//! softmax, and splits are joined in order of position: so a row's result does not depend on the rows beside it, on where its
//! prompt was cut into chunks, or on which thread took which split.

#[cfg(target_arch = "x86_64")]
mod avx2;

use std::ops::Range;

use half::{f16, slice::HalfFloatSliceExt as _};

use super::{
    activation::exp,
    isa::{Isa, Level},
};

/// Positions whose softmax is taken together.
pub const SPLIT: usize = 128;

/// Queries that share each key and value read.
const TILE: usize = 6;

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

/// How one head's keys and values lie in memory, each `[blocks, block_tokens · head_dim]`.
///
/// Values lie by rows, one for each position. Keys lie in groups of 8 positions, dimension by dimension, the 8 positions side by
/// side: a query's 8 scores are then sums over vectors, without sums across one. Blocks that are no multiple of 8 positions
/// have their keys by rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvLayout {
    pub block_tokens: usize,
    pub head_dim: usize,
}

impl KvLayout {
    /// Numbers in one block, of keys or of values.
    pub fn block_values(self) -> usize {
        self.block_tokens * self.head_dim
    }

    fn lanes(self) -> usize {
        if self.block_tokens.is_multiple_of(8) { 8 } else { 1 }
    }

    /// Where a position's row of values begins; where the group of keys begins for the first position of a group.
    fn row(self, blocks: &[u32], position: usize) -> usize {
        let block = blocks[position / self.block_tokens] as usize;
        (block * self.block_tokens + position % self.block_tokens) * self.head_dim
    }

    /// Stores the key and the value (`[head_dim]`) of a position.
    ///
    /// # Panics
    /// If the position lies outside the memory.
    pub fn write<T: Stored>(
        self,
        blocks: &[u32],
        position: usize,
        (key, value): (&[f32], &[f32]),
        (keys, values): (&mut [T], &mut [T]),
    ) {
        let (row, lanes) = (self.row(blocks, position), self.lanes());
        T::store(value, &mut values[row..row + self.head_dim]);
        let lane = position % self.block_tokens % lanes;
        if lanes == 1 {
            return T::store(key, &mut keys[row..row + self.head_dim]);
        }
        let group = row - lane * self.head_dim;
        let group = &mut keys[group..group + lanes * self.head_dim];
        let mut rounded = [T::default(); 64];
        for (key, group) in key.chunks(64).zip(group.chunks_mut(64 * lanes)) {
            let rounded = &mut rounded[..key.len()];
            T::store(key, rounded);
            rounded.iter().zip(group.chunks_exact_mut(lanes)).for_each(|(&key, group)| group[lane] = key);
        }
    }
}

/// One head's stored keys and values.
#[derive(Clone, Copy, Debug)]
pub struct Stock<'a, T> {
    pub layout: KvLayout,
    /// `[blocks, block_tokens · head_dim]`
    pub keys: &'a [T],
    /// `[blocks, block_tokens · head_dim]`
    pub values: &'a [T],
}

impl<T> Stock<'_, T> {
    /// Where the values of each of `positions` begin, block by block; where a group's keys begin, for its first position.
    fn rows(&self, blocks: &[u32], positions: Range<usize>, rows: &mut [usize; SPLIT]) {
        let (tokens, dim) = (self.layout.block_tokens, self.layout.head_dim);
        let (mut position, mut rest) = (positions.start, &mut rows[..positions.len()]);
        while !rest.is_empty() {
            let count = (tokens - position % tokens).min(rest.len());
            let first = self.layout.row(blocks, position);
            assert!(first + count * dim <= self.keys.len().min(self.values.len()), "a block outside the memory");
            let (run, after) = rest.split_at_mut(count);
            run.iter_mut().enumerate().for_each(|(place, row)| *row = first + place * dim);
            (position, rest) = (position + count, after);
        }
    }
}

/// Rows of one sequence, and what they see of it.
#[derive(Clone, Debug)]
pub struct Reach<'a> {
    /// The sequence's blocks, in order of position.
    pub blocks: &'a [u32],
    /// The first row's position; the others follow.
    pub first_position: usize,
    /// How many positions back a row sees, itself included.
    pub window: Option<usize>,
    /// Which splits of the context are taken.
    pub splits: Range<usize>,
}

impl Reach<'_> {
    /// The positions that row `row` sees.
    fn seen(&self, row: usize) -> Range<usize> {
        let end = self.first_position + row + 1;
        self.window.map_or(0, |window| end.saturating_sub(window))..end
    }
}

/// The splits that rows at `positions` see something of.
pub fn splits(positions: Range<usize>, window: Option<usize>) -> Range<usize> {
    let first = window.map_or(0, |window| (positions.start + 1).saturating_sub(window));
    first / SPLIT..positions.end.div_ceil(SPLIT)
}

/// Where queries are read.
#[derive(Clone, Copy, Debug)]
pub struct Queries<'a> {
    /// Query `h` of row `r` is at `r · row_stride + h · head_dim`; already divided by `√head_dim`.
    pub values: &'a [f32],
    pub row_stride: usize,
    pub rows: usize,
    /// Query heads that share this key head.
    pub shared: usize,
}

/// Numbers that one query's result takes until it is joined: the weighted sum of values, room for the next split's, the
/// largest score, the sum of weights, and whether there is anything yet.
pub const fn partial_len(head_dim: usize) -> usize {
    2 * head_dim + 8
}

/// Attends with every query over `reach.splits`; `out` is `[rows · shared, partial_len]`, for [`join`].
///
/// # Panics
/// If a slice is too short for what it is said to hold.
pub fn attend<T: Stored>(isa: Isa, stock: &Stock<T>, reach: &Reach, queries: &Queries, out: &mut [f32]) {
    let (dim, length) = (stock.layout.head_dim, partial_len(stock.layout.head_dim));
    let count = queries.rows * queries.shared;
    assert_eq!(out.len(), count * length, "partial results");
    let last = reach.first_position + queries.rows;
    assert!(last <= reach.blocks.len() * stock.layout.block_tokens, "positions without blocks");
    for partial in out.chunks_exact_mut(length) {
        partial[2 * dim..].fill(0.0);
    }
    let mut rows = [0usize; SPLIT];
    let mut scores = [[0.0f32; SPLIT]; TILE];
    for split in reach.splits.clone() {
        let start = split * SPLIT;
        let positions = start..last.min(start + SPLIT);
        let held = positions.len();
        stock.rows(reach.blocks, positions, &mut rows);
        let rows = &rows[..held];
        for first in (0..count).step_by(TILE) {
            let mut tile = Tile::new(first..count.min(first + TILE), start..start + held, reach, queries, dim);
            if tile.all.is_empty() {
                continue;
            }
            tile.score(isa, stock, rows, &mut scores);
            let partials = &mut out[first * length..][..tile.count * length];
            for (query, partial) in partials.chunks_exact_mut(length).enumerate() {
                partial[dim..2 * dim].fill(0.0);
                let seen = tile.seen[query].clone();
                tile.spread[query] = if seen.is_empty() { (0.0, 0.0) } else { softmax(isa, &mut scores[query], seen) };
            }
            tile.weigh(isa, stock, rows, &scores, partials);
            for (query, partial) in partials.chunks_exact_mut(length).enumerate() {
                if !tile.seen[query].is_empty() {
                    let (sums, state) = partial.split_at_mut(2 * dim);
                    let (sum, fresh) = sums.split_at_mut(dim);
                    merge(sum, state, fresh, tile.spread[query]);
                }
            }
        }
    }
}

/// Some queries that are worked on together, and what they see of one split.
struct Tile<'a> {
    count: usize,
    /// `[head_dim]` each
    queries: [&'a [f32]; TILE],
    /// What each query sees, counted from the split's start.
    seen: [Range<usize>; TILE],
    /// From the first that one of them sees to the last.
    all: Range<usize>,
    /// Each query's largest score and sum of weights.
    spread: [(f32, f32); TILE],
}

impl<'a> Tile<'a> {
    fn new(members: Range<usize>, split: Range<usize>, reach: &Reach, queries: &Queries<'a>, dim: usize) -> Self {
        let mut tile = Self {
            count: members.len(),
            queries: [&[]; TILE],
            seen: [const { 0..0 }; TILE],
            all: 0..0,
            spread: [(0.0, 0.0); TILE],
        };
        for (place, member) in members.enumerate() {
            let (row, head) = (member / queries.shared, member % queries.shared);
            tile.queries[place] = &queries.values[row * queries.row_stride + head * dim..][..dim];
            let seen = reach.seen(row);
            let (from, to) = (seen.start.max(split.start), seen.end.min(split.end));
            if from < to {
                let seen = from - split.start..to - split.start;
                let all = if tile.all.is_empty() { seen.clone() } else { tile.all.clone() };
                tile.all = all.start.min(seen.start)..all.end.max(seen.end);
                tile.seen[place] = seen;
            }
        }
        tile
    }

    /// Every query's product with every key that one of them sees.
    fn score<T: Stored>(&self, isa: Isa, stock: &Stock<T>, rows: &[usize], scores: &mut [[f32; SPLIT]; TILE]) {
        let lanes = stock.layout.lanes();
        let groups = self.all.start / lanes..self.all.end.div_ceil(lanes);
        #[cfg(target_arch = "x86_64")]
        if isa.0 >= Level::Avx2 && lanes == 8 {
            for group in groups {
                let keys = &stock.keys[rows[group * lanes]..][..lanes * stock.layout.head_dim];
                // SAFETY: this level says that the machine has AVX2, FMA and F16C.
                unsafe { avx2::score(keys, &self.queries[..self.count], group * lanes, scores) };
            }
            return;
        }
        for group in groups {
            let keys = &stock.keys[rows[group * lanes]..][..lanes * stock.layout.head_dim];
            for (query, scores) in self.queries[..self.count].iter().zip(scores.iter_mut()) {
                let scores = &mut scores[group * lanes..][..lanes];
                scores.fill(0.0);
                for (query, keys) in query.iter().zip(keys.chunks_exact(lanes)) {
                    scores.iter_mut().zip(keys).for_each(|(score, key)| *score += query * key.load());
                }
            }
        }
    }

    /// Adds the values that each query sees, by its weights, to the second part of its partial result. What a query does not see
    /// is not touched: a weight of zero would not hide a value that is no number.
    fn weigh<T: Stored>(
        &self,
        isa: Isa,
        stock: &Stock<T>,
        rows: &[usize],
        weights: &[[f32; SPLIT]; TILE],
        partials: &mut [f32],
    ) {
        let seen = &self.seen[..self.count];
        let common =
            seen.iter().map(|seen| seen.start).max().unwrap_or(0)..seen.iter().map(|seen| seen.end).min().unwrap_or(0);
        let alone = |query: usize, part: Range<usize>, partials: &mut [f32]| {
            self.add(isa, stock, &rows[part.clone()], weights, (query..query + 1, part.start), partials);
        };
        if common.is_empty() {
            return (0..self.count).for_each(|query| alone(query, seen[query].clone(), partials));
        }
        for (query, seen) in seen.iter().enumerate().filter(|(_, seen)| seen.start < common.start) {
            alone(query, seen.start..common.start, partials);
        }
        self.add(isa, stock, &rows[common.clone()], weights, (0..self.count, common.start), partials);
        for (query, seen) in seen.iter().enumerate().filter(|(_, seen)| seen.end > common.end) {
            alone(query, common.end..seen.end, partials);
        }
    }

    /// Adds the values at `rows`, whose first is position `at` of the split, for `members` of the tile.
    fn add<T: Stored>(
        &self,
        isa: Isa,
        stock: &Stock<T>,
        rows: &[usize],
        weights: &[[f32; SPLIT]; TILE],
        (members, at): (Range<usize>, usize),
        partials: &mut [f32],
    ) {
        let dim = stock.layout.head_dim;
        let length = partial_len(dim);
        #[cfg(target_arch = "x86_64")]
        if isa.0 >= Level::Avx2 && dim.is_multiple_of(8) {
            let partials = &mut partials[members.start * length..members.end * length];
            // SAFETY: this level says that the machine has AVX2, FMA and F16C; `attend` has checked that every row lies in the
            // values.
            return unsafe { avx2::add(stock.values, rows, &weights[members], at, dim, partials) };
        }
        for query in members {
            let sum = &mut partials[query * length + dim..][..dim];
            for (&row, weight) in rows.iter().zip(&weights[query][at..]) {
                let values = &stock.values[row..row + dim];
                sum.iter_mut().zip(values).for_each(|(sum, value)| *sum += weight * value.load());
            }
        }
    }
}

/// Turns the scores that are `seen` into weights `e^(score - max)`; gives the largest score and the sum of weights.
fn softmax(isa: Isa, scores: &mut [f32; SPLIT], seen: Range<usize>) -> (f32, f32) {
    match isa.0 {
        Level::Plain => softmax_plain(scores, seen),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: this level says that the machine has AVX2.
        Level::Avx2 | Level::Avx512 => unsafe { softmax_avx2(scores, seen) },
    }
}

/// The same, in wider vectors: the same bits.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn softmax_avx2(scores: &mut [f32; SPLIT], seen: Range<usize>) -> (f32, f32) {
    softmax_plain(scores, seen)
}

#[inline(always)]
fn softmax_plain(scores: &mut [f32; SPLIT], seen: Range<usize>) -> (f32, f32) {
    // In eights, counted from the split's start, so that the order of the sum does not depend on what is seen.
    let eights = seen.start / 8 * 8..seen.end.next_multiple_of(8);
    scores[eights.start..seen.start].fill(f32::NEG_INFINITY);
    scores[seen.end..eights.end].fill(f32::NEG_INFINITY);
    let scores = &mut scores[eights];
    let (mut largest, mut sums) = ([f32::NEG_INFINITY; 8], [0.0f32; 8]);
    for eight in scores.chunks_exact(8) {
        largest
            .iter_mut()
            .zip(eight)
            .for_each(|(largest, &score)| *largest = if score > *largest { score } else { *largest });
    }
    let max = largest.into_iter().fold(f32::NEG_INFINITY, f32::max);
    for eight in scores.chunks_exact_mut(8) {
        for (score, sum) in eight.iter_mut().zip(&mut sums) {
            let weight = exp(*score - max);
            *score = if *score == f32::NEG_INFINITY { 0.0 } else { weight };
            *sum += *score;
        }
    }
    let [a, b, c, d, e, f, g, h] = sums;
    (max, ((a + b) + (c + d)) + ((e + f) + (g + h)))
}

/// Joins the next split's `fresh` sum of values to `sum`; `state` is the largest score so far, the sum of weights, and 1 if there
/// is anything yet.
fn merge(sum: &mut [f32], state: &mut [f32], fresh: &[f32], (max, weights): (f32, f32)) {
    if state[2] == 0.0 {
        sum.copy_from_slice(fresh);
        (state[0], state[1], state[2]) = (max, weights, 1.0);
        return;
    }
    // Not `f32::max`, which passes over what is not a number.
    let largest = if max > state[0] { max } else { state[0] };
    let (old, new) = (exp(state[0] - largest), exp(max - largest));
    sum.iter_mut().zip(fresh).for_each(|(sum, fresh)| *sum = *sum * old + fresh * new);
    (state[0], state[1]) = (largest, state[1] * old + weights * new);
}

/// Joins one query's partial results, in order of their splits, and divides by the weights: `partials` begins with the first of
/// `parts`, `stride` apart; `out` is `[head_dim]`.
///
/// A part holds either all splits or one: other groupings would round differently.
pub fn join(partials: &[f32], parts: usize, stride: usize, out: &mut [f32]) {
    let (dim, mut state) = (out.len(), [0.0; 3]);
    for part in 0..parts {
        let partial = &partials[part * stride..][..partial_len(dim)];
        if partial[2 * dim + 2] != 0.0 {
            merge(out, &mut state, &partial[..dim], (partial[2 * dim], partial[2 * dim + 1]));
        }
    }
    let inverse = 1.0 / state[1];
    out.iter_mut().for_each(|out| *out *= inverse);
}

#[cfg(test)]
mod tests;
