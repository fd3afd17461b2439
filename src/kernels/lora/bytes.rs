//! Factors in 8 bits, with a scale for each block: half the memory of 16 bits, which is what many adapters in one step cost.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;

use std::ops::Range;

use half::bf16;

use super::{Delta, Expand, Listed, RANKS, RUN, Shrink};
use crate::kernels::{
    blob::Blob,
    isa::{Isa, Level},
    pack::{BLOCK, PANEL},
    quantize::QuantizedRows,
    round::{largest, round},
};

/// Inputs that lie side by side for each rank.
const QUAD: usize = 4;

/// A factor's numbers, each `q · scale` of its block.
///
/// A lies in runs of 16 ranks, the last perhaps of 8: `[runs, inputs / 4, 16, 4]`, with scales `[runs, inputs / 32, 16]`. B lies as
/// `[panels, rank, PANEL]`, with scales `[panels, PANEL]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Bytes {
    /// The numbers, then the scales.
    blob: Blob,
    numbers: usize,
}

/// Scales as they lie in memory, in the machine's order of bytes.
type Scales<'a> = &'a [[u8; 2]];

/// One row of activations, quantized.
#[derive(Clone, Copy, Default)]
struct Row<'a> {
    /// `[inputs]`
    q: &'a [i8],
    /// `[inputs / 32]`
    scales: &'a [f32],
    /// Where its products go.
    to: usize,
}

/// The smallest scale with which all of `values` fit, and its inverse.
fn scale(values: &[f32]) -> (bf16, f32) {
    let largest = largest(values);
    let mut scale = bf16::from_f32(largest / 127.0);
    if scale.to_f32() * 127.0 < largest {
        scale = bf16::from_bits(scale.to_bits() + 1);
    }
    let kept = scale.to_f32();
    (scale, if kept >= f32::MIN_POSITIVE { 1.0 / kept } else { 0.0 })
}

impl Bytes {
    fn q(&self) -> &[u8] {
        &self.blob[..self.numbers]
    }

    fn scales(&self) -> Scales<'_> {
        self.blob[self.numbers..].as_chunks().0
    }

    /// Where the bytes lie.
    pub fn blob(&mut self) -> &mut Blob {
        &mut self.blob
    }

    /// A, `[ranks, inputs]`, row-major.
    pub fn shrink(ranks: usize, inputs: usize, values: &[f32]) -> Self {
        assert!(inputs.is_multiple_of(BLOCK), "{inputs} inputs are no whole blocks");
        let (padded, blocks) = (ranks.next_multiple_of(RANKS), inputs / BLOCK);
        let numbers = padded * inputs;
        let mut blob = vec![0; numbers + padded * blocks * size_of::<bf16>()];
        let (q_all, scales_all) = blob.split_at_mut(numbers);
        let scales_all = scales_all.as_chunks_mut().0;
        for (rank, row) in values.chunks_exact(inputs).enumerate() {
            let (first, place) = (rank / RUN * RUN, rank % RUN);
            let width = RUN.min(padded - first);
            let (q, scales) = (&mut q_all[first * inputs..][..width * inputs], &mut scales_all[first * blocks..]);
            let blocks = row.as_chunks::<BLOCK>().0.iter().zip(q.chunks_exact_mut(width * BLOCK));
            for ((block, q), scales) in blocks.zip(scales.chunks_exact_mut(width)) {
                let (scale, inverse) = scale(block);
                scales[place] = scale.to_ne_bytes();
                let mut bytes = [0; BLOCK];
                round(block, inverse, &mut bytes);
                for (quads, quad) in q.chunks_exact_mut(width * QUAD).zip(bytes.as_chunks::<QUAD>().0) {
                    quads[place * QUAD..][..QUAD].copy_from_slice(quad);
                }
            }
        }
        Self { blob: blob.into(), numbers }
    }

    /// B, `[outputs, rank]`, row-major.
    pub fn expand(rank: usize, values: &[f32]) -> Self {
        let outputs = (values.len() / rank).next_multiple_of(PANEL);
        let numbers = outputs * rank;
        let mut blob = vec![0; numbers + outputs * size_of::<bf16>()];
        let (q, scales) = blob.split_at_mut(numbers);
        let scales = scales.as_chunks_mut().0;
        // A panel's bytes as they come, output by output.
        let mut rows = vec![0; PANEL * rank];
        let panels = values.chunks(PANEL * rank).zip(q.chunks_exact_mut(PANEL * rank));
        for ((values, q), scales) in panels.zip(scales.chunks_exact_mut(PANEL)) {
            rows.fill(0);
            for ((row, bytes), to) in values.chunks_exact(rank).zip(rows.chunks_exact_mut(rank)).zip(scales) {
                let (scale, inverse) = scale(row);
                *to = scale.to_ne_bytes();
                round(row, inverse, bytes);
            }
            for (place, row) in rows.chunks_exact(rank).enumerate() {
                q.chunks_exact_mut(PANEL).zip(row).for_each(|(outputs, byte)| outputs[place] = *byte);
            }
        }
        Self { blob: blob.into(), numbers }
    }

    /// Bytes that packing takes, for so many numbers in blocks of `block`.
    pub const fn size(numbers: usize, block: usize) -> usize {
        numbers + numbers.div_ceil(block) * size_of::<bf16>()
    }

    /// The memory of the numbers from `from` to `to`, and of their scales, one for each `block`.
    pub fn memory(&self, from: usize, to: usize, block: usize) -> (&[u8], Scales<'_>) {
        (&self.q()[from..to], &self.scales()[from / block..to / block])
    }
}

/// [`super::shrink`] of a run of ranks, whose sizes have been checked.
pub fn shrink(
    isa: Isa,
    a: &Shrink,
    kept: &Bytes,
    run: usize,
    x: &QuantizedRows<'_>,
    rows: Listed<'_>,
    out: &mut [f32],
) {
    assert_eq!(x.inputs, a.inputs, "inputs of the rows and of the factor");
    let blocks = a.inputs / BLOCK;
    let first = run * RUN;
    let width = RUN.min(a.ranks.next_multiple_of(RANKS) - first);
    let q = &kept.q()[first * a.inputs..(first + width) * a.inputs];
    let scales = &kept.scales()[first * blocks..(first + width) * blocks];
    let row = |place: usize| Row {
        q: &x.q[place * a.inputs..][..a.inputs],
        scales: &x.scales[place * blocks..][..blocks],
        to: place * RUN,
    };
    match isa.0 {
        Level::Plain => {
            for row in rows.tiles(1).flatten().map(row) {
                for (rank, out) in out[row.to..][..width].iter_mut().enumerate() {
                    *out = plain_product(q, scales, (rank, width), row);
                }
            }
        }
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => {
            for half in 0..width / RANKS {
                for rows in rows.tiles(avx2::ROWS) {
                    let mut tile = [Row::default(); avx2::ROWS];
                    let count = tile.iter_mut().zip(rows).map(|(tile, place)| *tile = row(place)).count();
                    // SAFETY: this level says that the machine has AVX2 and FMA.
                    unsafe { avx2::shrink(q, scales, (half, width), &tile[..count], out) };
                }
            }
        }
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => {
            for rows in rows.tiles(avx512::ROWS) {
                let mut tile = [Row::default(); avx512::ROWS];
                let count = tile.iter_mut().zip(rows).map(|(tile, place)| *tile = row(place)).count();
                // SAFETY: this level says that the machine has AVX-512 and VNNI.
                unsafe {
                    match width {
                        RUN => avx512::shrink_wide(q, scales, &tile[..count], out),
                        _ => avx512::shrink_narrow(q, scales, &tile[..count], out),
                    }
                }
            }
        }
    }
}

/// One rank's product with a row.
fn plain_product(q: &[u8], scales: Scales<'_>, (rank, width): (usize, usize), row: Row<'_>) -> f32 {
    let mut sum = 0.0f32;
    for (index, (x, x_scale)) in row.q.chunks_exact(BLOCK).zip(row.scales).enumerate() {
        let mut product = 0i32;
        for (quad, x) in x.chunks_exact(QUAD).enumerate() {
            let a = &q[((index * BLOCK / QUAD + quad) * width + rank) * QUAD..][..QUAD];
            product += a.iter().zip(x).map(|(&a, &x)| i32::from(a.cast_signed()) * i32::from(x)).sum::<i32>();
        }
        sum += product as f32 * bf16::from_ne_bytes(scales[index * width + rank]).to_f32() * x_scale;
    }
    sum
}

/// [`super::expand`], whose sizes have been checked.
pub fn expand(isa: Isa, b: &Expand, kept: &Bytes, panels: Range<usize>, delta: &Delta<'_>, tiles: &mut [f32]) {
    let (shrunk, rows) = (delta.shrunk.values, delta.rows);
    let (size, stride) = (b.rank * PANEL, tiles.len() / panels.len());
    let q = &kept.q()[panels.start * size..panels.end * size];
    let scales = &kept.scales()[panels.start * PANEL..panels.end * PANEL];
    #[cfg(target_arch = "x86_64")]
    if isa.0 >= Level::Avx512 {
        let b = avx512::Panels { rank: b.rank, q, scales, scale: b.scale };
        for rows in rows.chunks(avx512::ROWS) {
            // SAFETY: this level says that the machine has AVX-512; what is read of `shrunk` has been checked.
            unsafe { avx512::expand(&b, shrunk, |rank| delta.at(rank), rows, tiles, stride) };
        }
        return;
    }
    let panels = q.chunks_exact(size).zip(scales.chunks_exact(PANEL));
    for ((q, scales), tile) in panels.zip(tiles.chunks_exact_mut(stride)) {
        #[cfg(target_arch = "x86_64")]
        if isa.0 >= Level::Avx2 {
            for rows in rows.chunks(avx2::ROWS) {
                // SAFETY: this level says that the machine has AVX2 and FMA; what is read of `shrunk` has been checked.
                unsafe { avx2::expand(q, scales, shrunk, |rank| delta.at(rank), rows, b.scale, tile) };
            }
            continue;
        }
        for &row in rows {
            let mut sums = [0.0f32; PANEL];
            for (rank, q) in q.chunks_exact(PANEL).enumerate() {
                let t = shrunk[delta.at(rank) + row as usize * RUN];
                sums.iter_mut().zip(q).for_each(|(sum, &q)| *sum += t * f32::from(q.cast_signed()));
            }
            let tile = &mut tile[row as usize * PANEL..][..PANEL];
            for ((tile, sum), scale) in tile.iter_mut().zip(sums).zip(scales) {
                *tile += sum * (bf16::from_ne_bytes(*scale).to_f32() * b.scale);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is kept of block `block` (of `size` numbers) of a row-major matrix: its scale, and its numbers over that.
    fn block(values: &[f32], size: usize, block: usize) -> (u16, Vec<u8>) {
        let values = &values[block * size..(block + 1) * size];
        let (scale, inverse) = scale(values);
        let byte = |value: &f32| ((value * inverse).round_ties_even() as i8).cast_unsigned();
        (scale.to_bits(), values.iter().map(byte).collect())
    }

    fn values(count: usize) -> Vec<f32> {
        (0..count).map(|i| ((i * 7919 + 13) % 1009) as f32 * 1e-3 - 0.5).collect()
    }

    #[test]
    fn every_number_of_a_lies_where_its_rank_and_its_quad_are_looked_for() {
        for (ranks, inputs) in [(1, 32), (8, 64), (9, 96), (16, 32), (19, 64), (32, 32), (40, 64)] {
            let a = values(ranks * inputs);
            let packed = Bytes::shrink(ranks, inputs, &a);
            let (padded, blocks) = (ranks.next_multiple_of(RANKS), inputs / BLOCK);
            assert_eq!((packed.q().len(), packed.scales().len()), (padded * inputs, padded * blocks));
            for rank in 0..padded {
                let (first, place) = (rank / RUN * RUN, rank % RUN);
                let width = RUN.min(padded - first);
                for index in 0..blocks {
                    let none = (0, vec![0; BLOCK]);
                    let (scale, bytes) = if rank < ranks { block(&a, BLOCK, rank * blocks + index) } else { none };
                    assert_eq!(u16::from_ne_bytes(packed.scales()[first * blocks + index * width + place]), scale);
                    for (at, byte) in bytes.iter().enumerate() {
                        let quad = (index * BLOCK + at) / QUAD;
                        let lies = first * inputs + (quad * width + place) * QUAD + at % QUAD;
                        assert_eq!(packed.q()[lies], *byte, "{ranks} ranks, rank {rank}, block {index}, {at}");
                    }
                }
            }
        }
    }

    #[test]
    fn every_number_of_b_lies_in_its_outputs_panel() {
        for (outputs, rank) in [(1, 1), (16, 16), (20, 5), (48, 33), (31, 8)] {
            let b = values(outputs * rank);
            let packed = Bytes::expand(rank, &b);
            let padded = outputs.next_multiple_of(PANEL);
            assert_eq!((packed.q().len(), packed.scales().len()), (padded * rank, padded));
            for output in 0..padded {
                let (scale, bytes) = if output < outputs { block(&b, rank, output) } else { (0, vec![0; rank]) };
                assert_eq!(u16::from_ne_bytes(packed.scales()[output]), scale);
                for (at, byte) in bytes.iter().enumerate() {
                    let lies = (output / PANEL * rank + at) * PANEL + output % PANEL;
                    assert_eq!(packed.q()[lies], *byte, "{outputs} outputs of rank {rank}, output {output}, rank {at}");
                }
            }
        }
    }
}
