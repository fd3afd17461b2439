//! Attention of some rows of one sequence over one head's paged keys and values.
//!
//! A row's context is taken in splits of [`SPLIT`] positions, counted from the sequence's start. Each split has its own
//! softmax, and splits are joined in order of position: so a row's result does not depend on the rows beside it, on where its
//! prompt was cut into chunks, or on which thread took which split.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod kv;

use std::ops::Range;

pub use self::kv::{KvLayout, KvPiece, KvRows, Slots, Stock, Stored};
use super::{
    activation::exp,
    fetch::fetch,
    isa::{Isa, Level},
};

/// Positions whose softmax is taken together.
pub const SPLIT: usize = 128;

/// Queries that share each key and value read.
const TILE: usize = 6;

/// Positions whose values are added between two looks ahead.
const STRETCH: usize = 16;

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

/// What is attended to next on this thread, as far as it is known: its keys are asked for while this work's values are read.
#[derive(Clone, Debug)]
pub struct Ahead<'a, T> {
    pub stock: Stock<'a, T>,
    pub blocks: &'a [u32],
    pub splits: Range<usize>,
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
pub fn attend<T: Stored>(
    isa: Isa,
    stock: &Stock<T>,
    reach: &Reach,
    queries: &Queries,
    ahead: Option<&Ahead<T>>,
    out: &mut [f32],
) {
    let (layout, dim) = (stock.layout(), stock.layout().head_dim);
    let length = partial_len(dim);
    let count = queries.rows * queries.shared;
    assert_eq!(out.len(), count * length, "partial results");
    let last = reach.first_position + queries.rows;
    assert!(last <= reach.blocks.len() * layout.block_tokens, "positions without blocks");
    for partial in out.chunks_exact_mut(length) {
        partial[2 * dim..].fill(0.0);
    }
    let mut rows = [0usize; SPLIT];
    let mut scores = [[0.0f32; SPLIT]; TILE];
    for (place, split) in reach.splits.clone().enumerate() {
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
            // The first tile brings values, and the next work's keys, near; the others find them there.
            let brings = first == 0;
            tile.score(isa, stock, rows, brings, &mut scores);
            let partials = &mut out[first * length..][..tile.count * length];
            for (query, partial) in partials.chunks_exact_mut(length).enumerate() {
                partial[dim..2 * dim].fill(0.0);
                let seen = tile.seen[query].clone();
                tile.spread[query] = if seen.is_empty() { (0.0, 0.0) } else { softmax(isa, &mut scores[query], seen) };
            }
            let next = ahead.filter(|ahead| brings && place < ahead.splits.len());
            let look = |at: usize| {
                if let Some(Ahead { stock, blocks, splits }) = next {
                    stock.fetch_keys(blocks, (splits.start + place) * SPLIT + at);
                }
            };
            tile.weigh(isa, stock, rows, (&scores, look), partials);
            for (query, partial) in partials.chunks_exact_mut(length).enumerate() {
                if !tile.seen[query].is_empty() {
                    let (sums, state) = partial.split_at_mut(2 * dim);
                    let (sum, fresh) = sums.split_at_mut(dim);
                    merge(isa, sum, state, fresh, tile.spread[query]);
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
        let (mut row, mut head) = (members.start / queries.shared, members.start % queries.shared);
        for place in 0..members.len() {
            tile.queries[place] = &queries.values[row * queries.row_stride + head * dim..][..dim];
            let seen = reach.seen(row);
            let (from, to) = (seen.start.max(split.start), seen.end.min(split.end));
            if from < to {
                let seen = from - split.start..to - split.start;
                let all = if tile.all.is_empty() { seen.clone() } else { tile.all.clone() };
                tile.all = all.start.min(seen.start)..all.end.max(seen.end);
                tile.seen[place] = seen;
            }
            head += 1;
            if head == queries.shared {
                (row, head) = (row + 1, 0);
            }
        }
        tile
    }

    /// Every query's product with every key that one of them sees; `brings` the values that belong to them.
    fn score<T: Stored>(
        &self,
        isa: Isa,
        stock: &Stock<T>,
        rows: &[usize],
        brings: bool,
        scores: &mut [[f32; SPLIT]; TILE],
    ) {
        let (lanes, queries) = (stock.layout().lanes(), &self.queries[..self.count]);
        for group in self.all.start / lanes..self.all.end.div_ceil(lanes) {
            let at = group * lanes;
            let keys = stock.keys(rows[at]);
            if brings {
                fetch(&stock.values()[rows[at]..][..(rows.len() - at).min(lanes) * stock.layout().head_dim]);
            }
            #[cfg(target_arch = "x86_64")]
            {
                if isa.0 >= Level::Avx512 && lanes == 16 {
                    // SAFETY: this level says that the machine has AVX-512.
                    unsafe { avx512::score(keys, queries, at, scores) };
                    continue;
                }
                if isa.0 >= Level::Avx2 && lanes >= 8 {
                    // SAFETY: this level says that the machine has AVX2, FMA and F16C.
                    unsafe { avx2::score(keys, lanes, queries, at, scores) };
                    continue;
                }
            }
            for (query, scores) in queries.iter().zip(scores.iter_mut()) {
                let scores = &mut scores[at..][..lanes];
                scores.fill(0.0);
                for (query, keys) in query.iter().zip(keys.chunks_exact(lanes)) {
                    scores.iter_mut().zip(keys).for_each(|(score, key)| *score += query * key.load());
                }
            }
        }
    }

    /// Adds the values that each query sees, by its weights, to the second part of its partial result. What a query does not see
    /// is not touched: a weight of zero would not hide a value that is no number. Calls `look` now and then with a position.
    fn weigh<T: Stored>(
        &self,
        isa: Isa,
        stock: &Stock<T>,
        rows: &[usize],
        (weights, look): (&[[f32; SPLIT]; TILE], impl Fn(usize)),
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
        for at in common.clone().step_by(STRETCH) {
            look(at);
            let part = at..common.end.min(at + STRETCH);
            self.add(isa, stock, &rows[part], weights, (0..self.count, at), partials);
        }
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
        let dim = stock.layout().head_dim;
        let length = partial_len(dim);
        #[cfg(target_arch = "x86_64")]
        if isa.0 >= Level::Avx2 && dim.is_multiple_of(8) {
            let partials = &mut partials[members.start * length..members.end * length];
            let weights = &weights[members];
            // SAFETY: the level says what the machine has; `Stock::rows` has checked that every row lies in the values.
            return unsafe {
                if isa.0 >= Level::Avx512 && dim.is_multiple_of(16) {
                    avx512::add(stock.values(), rows, weights, at, dim, partials)
                } else {
                    avx2::add(stock.values(), rows, weights, at, dim, partials)
                }
            };
        }
        for query in members {
            let sum = &mut partials[query * length + dim..][..dim];
            for (&row, weight) in rows.iter().zip(&weights[query][at..]) {
                let values = &stock.values()[row..row + dim];
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
        Level::Avx2 => unsafe { softmax_avx2(scores, seen) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: this level says that the machine has AVX-512.
        Level::Avx512 => unsafe { softmax_avx512(scores, seen) },
    }
}

/// The same, in wider vectors: the same bits.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn softmax_avx2(scores: &mut [f32; SPLIT], seen: Range<usize>) -> (f32, f32) {
    softmax_plain(scores, seen)
}

/// The same again.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn softmax_avx512(scores: &mut [f32; SPLIT], seen: Range<usize>) -> (f32, f32) {
    softmax_plain(scores, seen)
}

/// Scores whose weights are summed up apart, by position.
const LANES: usize = 16;

#[inline(always)]
fn softmax_plain(scores: &mut [f32; SPLIT], seen: Range<usize>) -> (f32, f32) {
    // Whole lanes, counted from the split's start, so that the order of the sum does not depend on what is seen.
    let whole = seen.start / LANES * LANES..seen.end.next_multiple_of(LANES);
    scores[whole.start..seen.start].fill(f32::NEG_INFINITY);
    scores[seen.end..whole.end].fill(f32::NEG_INFINITY);
    let (scores, _) = scores[whole].as_chunks_mut::<LANES>();
    let (mut largest, mut sums) = ([f32::NEG_INFINITY; LANES], [0.0f32; LANES]);
    for scores in scores.iter() {
        for (largest, &score) in largest.iter_mut().zip(scores) {
            *largest = if score > *largest { score } else { *largest };
        }
    }
    let max = largest.into_iter().fold(f32::NEG_INFINITY, |max, score| if score > max { score } else { max });
    for scores in scores {
        for (score, sum) in scores.iter_mut().zip(&mut sums) {
            let weight = exp(*score - max);
            *score = if *score == f32::NEG_INFINITY { 0.0 } else { weight };
            *sum += *score;
        }
    }
    for width in [8, 4, 2, 1] {
        (0..width).for_each(|lane| sums[lane] += sums[lane + width]);
    }
    (max, sums[0])
}

/// Joins the next split's `fresh` sum of values to `sum`; `state` is the largest score so far, the sum of weights, and 1 if there
/// is anything yet.
fn merge(isa: Isa, sum: &mut [f32], state: &mut [f32], fresh: &[f32], spread: (f32, f32)) {
    match isa.0 {
        Level::Plain => merge_plain(sum, state, fresh, spread),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: these levels say that the machine has AVX2.
        Level::Avx2 | Level::Avx512 => unsafe { merge_avx2(sum, state, fresh, spread) },
    }
}

/// The same, in wider vectors: the same bits.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn merge_avx2(sum: &mut [f32], state: &mut [f32], fresh: &[f32], spread: (f32, f32)) {
    merge_plain(sum, state, fresh, spread);
}

#[inline(always)]
fn merge_plain(sum: &mut [f32], state: &mut [f32], fresh: &[f32], (max, weights): (f32, f32)) {
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
pub fn join(isa: Isa, partials: &[f32], parts: usize, stride: usize, out: &mut [f32]) {
    let (dim, mut state) = (out.len(), [0.0; 3]);
    for part in 0..parts {
        let partial = &partials[part * stride..][..partial_len(dim)];
        if partial[2 * dim + 2] != 0.0 {
            merge(isa, out, &mut state, &partial[..dim], (partial[2 * dim], partial[2 * dim + 1]));
        }
    }
    let inverse = 1.0 / state[1];
    out.iter_mut().for_each(|out| *out *= inverse);
}

#[cfg(test)]
mod tests;
