use half::f16;

use super::*;
use crate::kernels::share::Share as _;

struct Noise(u32);

impl Noise {
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (self.0 >> 8) as f32 / (1 << 23) as f32 - 1.0
    }

    fn floats(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.next()).collect()
    }
}

/// Heads in the memory, and the one that holds the context; the others hold poison.
const HEADS: usize = 3;
const HEAD: usize = 1;

/// Stores the key and the value of a position.
fn write<T: Stored>(
    layout: KvLayout,
    blocks: &[u32],
    position: usize,
    (key, value): (&[f32], &[f32]),
    memory: &mut [T],
) {
    let block = blocks[position / layout.block_tokens] as usize;
    let slots = Slots::new(vec![(block, position % layout.block_tokens)]).unwrap();
    let rows = KvRows::new(layout, memory, &slots, 1);
    // SAFETY: the only piece, taken once.
    unsafe { rows.piece(0) }.write(0, HEAD, key, value);
}

/// One head's stored context, and the rounded numbers in it.
struct Context<T> {
    layout: KvLayout,
    blocks: Vec<u32>,
    memory: Vec<T>,
    /// `[positions, head_dim]` each
    plain: (Vec<f32>, Vec<f32>),
}

impl<T: Stored> Context<T> {
    fn new(block_tokens: usize, head_dim: usize, positions: usize) -> Self {
        let layout = KvLayout { block_tokens, head_dim, heads: HEADS };
        let count = positions.div_ceil(block_tokens);
        // Round about, so that blocks do not lie in order; one block belongs to nobody and holds poison.
        let blocks: Vec<u32> = (0..count as u32).rev().map(|block| block + 1).collect();
        let poison = {
            let mut poison = [T::default()];
            T::store(&[f32::NAN], &mut poison);
            poison[0]
        };
        let mut memory = vec![poison; (count + 1) * layout.block_values()];
        let mut noise = Noise(positions as u32);
        let (mut plain_keys, mut plain_values) = (Vec::new(), Vec::new());
        for position in 0..positions {
            let (key, value) = (noise.floats(head_dim), noise.floats(head_dim));
            write(layout, &blocks, position, (&key, &value), &mut memory);
            let rounded = |values: &[f32]| {
                let mut stored = vec![T::default(); values.len()];
                T::store(values, &mut stored);
                stored.iter().map(|value| value.load()).collect::<Vec<_>>()
            };
            plain_keys.extend(rounded(&key));
            plain_values.extend(rounded(&value));
        }
        Self { layout, blocks, memory, plain: (plain_keys, plain_values) }
    }

    fn stock(&self) -> Stock<'_, T> {
        Stock::new(self.layout, &self.memory, HEAD)
    }

    fn reach(&self, first_position: usize, rows: usize, window: Option<usize>) -> Reach<'_> {
        let splits = splits(first_position..first_position + rows, window);
        Reach { blocks: &self.blocks, first_position, window, splits }
    }

    /// `[rows, shared, head_dim]`, all splits in one part.
    fn ours(&self, isa: Isa, queries: &Queries, reach: &Reach) -> Vec<f32> {
        let (dim, count) = (self.layout.head_dim, queries.rows * queries.shared);
        let length = partial_len(dim);
        let mut partials = vec![f32::NAN; count * length];
        let ahead = Ahead { stock: self.stock(), blocks: reach.blocks, splits: reach.splits.clone() };
        attend(isa, &self.stock(), reach, queries, Some(&ahead), &mut partials);
        let mut out = vec![0.0; count * dim];
        for (partial, out) in partials.chunks_exact(length).zip(out.chunks_exact_mut(dim)) {
            join(isa, partial, 1, length, out);
        }
        out
    }

    /// The definition, in `f64`.
    fn exact(&self, query: &[f32], position: usize, window: Option<usize>) -> Vec<f64> {
        let dim = self.layout.head_dim;
        let first = window.map_or(0, |window| (position + 1).saturating_sub(window));
        let of = |plain: &[f32], position: usize| plain[position * dim..(position + 1) * dim].to_vec();
        let scores: Vec<f64> = (first..=position)
            .map(|other| of(&self.plain.0, other).iter().zip(query).map(|(k, q)| f64::from(*k) * f64::from(*q)).sum())
            .collect();
        let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let total: f64 = scores.iter().map(|score| (score - max).exp()).sum();
        let mut out = vec![0.0; dim];
        for (score, other) in scores.iter().zip(first..) {
            let weight = (score - max).exp() / total;
            out.iter_mut().zip(of(&self.plain.1, other)).for_each(|(out, value)| *out += weight * f64::from(value));
        }
        out
    }
}

/// Positions in a block, dimensions of a head, queries that share it.
const SHAPES: [(usize, usize, usize); 6] = [(16, 32, 3), (8, 16, 2), (4, 16, 1), (1, 7, 5), (24, 40, 8), (16, 12, 7)];

fn agrees<T: Stored>(isa: Isa) {
    for (block_tokens, head_dim, shared) in SHAPES {
        let context = Context::<T>::new(block_tokens, head_dim, 270);
        let mut noise = Noise(7);
        for (first, rows) in [(0, 9), (125, 6), (128, 1), (255, 3), (269, 1)] {
            let mut values = noise.floats(rows * (shared * head_dim + 3));
            values.iter_mut().for_each(|value| *value *= 2.0 / (head_dim as f32).sqrt());
            let queries = Queries { values: &values, row_stride: shared * head_dim + 3, rows, shared };
            for window in [None, Some(5), Some(130)] {
                let ours = context.ours(isa, &queries, &context.reach(first, rows, window));
                for (index, ours) in ours.chunks_exact(head_dim).enumerate() {
                    let (row, head) = (index / shared, index % shared);
                    let query = &values[row * queries.row_stride + head * head_dim..][..head_dim];
                    let exact = context.exact(query, first + row, window);
                    for (ours, exact) in ours.iter().zip(exact) {
                        let what = (block_tokens, head_dim, first, row, window);
                        assert!((f64::from(*ours) - exact).abs() < 2e-6, "{what:?}: {ours}, not {exact}");
                    }
                }
            }
        }
    }
}

#[test]
fn rows_get_the_softmax_of_what_they_see_on_every_machine() {
    for isa in Isa::all() {
        agrees::<f32>(isa);
        agrees::<f16>(isa);
    }
}

#[test]
fn a_row_is_the_same_to_the_bit_however_its_chunk_is_cut() {
    for isa in Isa::all() {
        for (block_tokens, head_dim, shared) in SHAPES {
            let context = Context::<f16>::new(block_tokens, head_dim, 150);
            let values = Noise(3).floats(150 * shared * head_dim);
            let queries = |rows: Range<usize>| Queries {
                values: &values[rows.start * shared * head_dim..],
                row_stride: shared * head_dim,
                rows: rows.len(),
                shared,
            };
            for window in [None, Some(9)] {
                let whole = context.ours(isa, &queries(0..150), &context.reach(0, 150, window));
                for cuts in [vec![0, 1, 5, 130, 131, 150], vec![0, 128, 150]] {
                    let mut pieces = Vec::new();
                    for pair in cuts.windows(2) {
                        let reach = context.reach(pair[0], pair[1] - pair[0], window);
                        pieces.extend(context.ours(isa, &queries(pair[0]..pair[1]), &reach));
                    }
                    assert!(whole == pieces, "{block_tokens} positions, {head_dim} dimensions, cut at {cuts:?}");
                }
            }
        }
    }
}

#[test]
fn splits_on_their_own_join_to_the_same_bits() {
    let context = Context::<f16>::new(16, 64, 400);
    let length = partial_len(64);
    let values = Noise(5).floats(3 * 64);
    let queries = Queries { values: &values, row_stride: 192, rows: 1, shared: 3 };
    for window in [None, Some(200)] {
        let reach = context.reach(399, 1, window);
        let whole = context.ours(Isa::best(), &queries, &reach);
        let parts = reach.splits.len();
        assert!(parts > 1);
        let mut partials = vec![0.0; parts * 3 * length];
        for (split, partials) in reach.splits.clone().zip(partials.chunks_exact_mut(3 * length)) {
            let one = Reach { splits: split..split + 1, ..reach.clone() };
            attend(Isa::best(), &context.stock(), &one, &queries, None, partials);
        }
        for head in 0..3 {
            let mut out = vec![0.0; 64];
            join(Isa::best(), &partials[head * length..], parts, 3 * length, &mut out);
            assert_eq!(out, whole[head * 64..(head + 1) * 64]);
        }
    }
}

#[test]
fn what_a_row_does_not_see_cannot_spoil_it() {
    for isa in Isa::all() {
        let mut context = Context::<f32>::new(16, 64, 40);
        let values = Noise(5).floats(8 * 64);
        let queries = Queries { values: &values, row_stride: 64, rows: 8, shared: 1 };
        let clean = context.ours(isa, &queries, &context.reach(10, 8, Some(6)));
        let poison = vec![f32::NAN; 64];
        for position in [4, 17] {
            write(context.layout, &context.blocks, position, (&poison, &poison), &mut context.memory);
        }
        let spoiled = context.ours(isa, &queries, &context.reach(10, 8, Some(6)));
        assert!(clean[..7 * 64] == spoiled[..7 * 64], "rows before the poison, and behind their window");
        assert!(spoiled[7 * 64..].iter().all(|value| value.is_nan()), "the row that sees it");
    }
}

#[test]
fn rows_are_written_apart_and_places_are_not_shared() {
    let layout = KvLayout { block_tokens: 4, head_dim: 3, heads: 2 };
    assert!(Slots::new(vec![(0, 1), (2, 1), (0, 1)]).is_none(), "two rows in one place");
    let slots = Slots::new(vec![(0, 3), (1, 0), (1, 1)]).unwrap();
    let mut memory = vec![0.0f32; 2 * layout.block_values()];
    let rows = KvRows::new(layout, &mut memory, &slots, 2);
    assert_eq!(rows.pieces(), 2);
    for (piece, count) in [(0, 2), (1, 1)] {
        // SAFETY: each piece once.
        let mut piece_rows = unsafe { rows.piece(piece) };
        for row in 0..count {
            for head in 0..2 {
                let number = (100 * (2 * piece + row) + 10 * head) as f32;
                piece_rows.write(row, head, &[number + 1.0; 3], &[number + 2.0; 3]);
            }
        }
    }
    for (row, (block, offset)) in [(0, (0, 3)), (1, (1, 0)), (2, (1, 1))] {
        for head in 0..2 {
            let at = block * layout.block_values() + 2 * head * 12 + offset * 3;
            let number = (100 * row + 10 * head) as f32;
            assert_eq!(memory[at..at + 3], [number + 1.0; 3], "row {row}, head {head}: keys");
            assert_eq!(memory[at + 12..at + 15], [number + 2.0; 3], "row {row}, head {head}: values");
        }
    }
    assert_eq!(memory.iter().filter(|number| **number != 0.0).count(), 3 * 2 * 2 * 3, "nothing else is written");
}

#[test]
#[should_panic(expected = "outside the memory")]
fn rows_outside_the_memory_are_refused() {
    let layout = KvLayout { block_tokens: 4, head_dim: 3, heads: 2 };
    let slots = Slots::new(vec![(1, 0)]).unwrap();
    KvRows::new(layout, &mut vec![0.0f32; layout.block_values()], &slots, 1);
}
