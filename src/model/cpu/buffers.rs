//! A step's memory, kept from step to step; it grows to the largest step.

use super::delta::Deltas;
use crate::kernels::{
    pack::{BLOCK, PANEL},
    quantize::{BlockSum, QuantizedRow, QuantizedRows},
    share::{Cut, cut},
};

/// Everything that lies between a step's phases.
#[derive(Default)]
pub struct Buffers {
    /// `[rows, hidden]`
    pub residual: Vec<f32>,
    /// What the next projections read.
    pub input: Rows,
    /// What the last projections gave.
    pub tiles: Vec<f32>,
    /// `[rows, heads, head_dim]`, normed, rotated, divided by `√head_dim`.
    pub queries: Vec<f32>,
    /// `[rows, kv_heads, head_dim]`, normed and rotated.
    pub keys: Vec<f32>,
    /// `[rows, kv_heads, head_dim]`
    pub values: Vec<f32>,
    pub partials: Vec<f32>,
    pub deltas: Deltas,
}

/// The first `len` values of a buffer, which grows if it has to.
pub fn grown<T: Clone + Default>(buffer: &mut Vec<T>, len: usize) -> &mut [T] {
    if buffer.len() < len {
        buffer.resize(len, T::default());
    }
    &mut buffer[..len]
}

/// Rows of activations: as numbers, and quantized for the projections that take them so.
#[derive(Default)]
pub struct Rows {
    rows: usize,
    width: usize,
    floats: Vec<f32>,
    q: Vec<i8>,
    scales: Vec<f32>,
    sums: Vec<BlockSum>,
}

/// Some rows, where they are written.
pub type RowCuts<'a> = (Cut<'a, f32>, Cut<'a, i8>, Cut<'a, f32>, Cut<'a, BlockSum>);

/// One row, where it is written.
pub struct RowOut<'a> {
    pub floats: &'a mut [f32],
    pub quantized: QuantizedRow<'a>,
}

impl Rows {
    /// Makes room for `rows` of `width`, to be written in pieces of `piece` rows.
    pub fn begin(&mut self, rows: usize, width: usize, piece: usize) -> RowCuts<'_> {
        (self.rows, self.width) = (rows, width);
        let blocks = width.div_ceil(BLOCK);
        (
            cut(grown(&mut self.floats, rows * width), piece * width),
            cut(grown(&mut self.q, rows * width), piece * width),
            cut(grown(&mut self.scales, rows * blocks), piece * blocks),
            cut(grown(&mut self.sums, rows * blocks), piece * blocks),
        )
    }

    /// A copy of some rows, in their order.
    pub fn some(&self, rows: &[u32]) -> Self {
        fn of<T: Copy>(values: &[T], rows: &[u32], width: usize) -> Vec<T> {
            rows.iter().flat_map(|&row| &values[row as usize * width..][..width]).copied().collect()
        }
        let blocks = self.width.div_ceil(BLOCK);
        Self {
            rows: rows.len(),
            width: self.width,
            floats: of(&self.floats, rows, self.width),
            q: of(&self.q, rows, self.width),
            scales: of(&self.scales, rows, blocks),
            sums: of(&self.sums, rows, blocks),
        }
    }

    /// `[rows, width]`
    pub fn floats(&self) -> &[f32] {
        &self.floats[..self.rows * self.width]
    }

    /// The same, quantized, if they have been.
    pub fn quantized(&self) -> QuantizedRows<'_> {
        let blocks = self.width.div_ceil(BLOCK);
        QuantizedRows {
            inputs: self.width,
            q: &self.q[..self.rows * self.width],
            scales: &self.scales[..self.rows * blocks],
            sums: &self.sums[..self.rows * blocks],
        }
    }
}

/// The rows of a piece, one by one.
pub fn rows_of<'p>(
    (floats, q, scales, sums): (&'p mut [f32], &'p mut [i8], &'p mut [f32], &'p mut [BlockSum]),
    width: usize,
) -> impl Iterator<Item = RowOut<'p>> {
    let blocks = width.div_ceil(BLOCK);
    let floats = floats.chunks_exact_mut(width).zip(q.chunks_exact_mut(width));
    let scales = scales.chunks_exact_mut(blocks).zip(sums.chunks_exact_mut(blocks));
    floats
        .zip(scales)
        .map(|((floats, q), (scales, sums))| RowOut { floats, quantized: QuantizedRow { q, scales, sums } })
}

/// Tiles side by side, `[panels, rows, PANEL]`: what projections give, read row by row.
#[derive(Clone, Copy)]
pub struct Tiles<'a> {
    pub values: &'a [f32],
    pub rows: usize,
}

impl<'a> Tiles<'a> {
    /// A row's outputs `first..first + width`, panel by panel.
    pub fn parts(self, row: usize, first: usize, width: usize) -> impl Iterator<Item = &'a [f32]> {
        let mut at = first;
        std::iter::from_fn(move || {
            let left = first + width - at;
            (left > 0).then(|| {
                let (panel, place) = (at / PANEL, at % PANEL);
                let count = left.min(PANEL - place);
                at += count;
                &self.values[(panel * self.rows + row) * PANEL + place..][..count]
            })
        })
    }

    /// Copies a row's outputs from `first` into `out`.
    pub fn copy(self, row: usize, first: usize, out: &mut [f32]) {
        let mut rest = out;
        let width = rest.len();
        for part in self.parts(row, first, width) {
            let (to, after) = rest.split_at_mut(part.len());
            to.copy_from_slice(part);
            rest = after;
        }
    }

    /// Copies the outputs from panel `panel` on of the rows from `row` on into `out`, `[_, width]`.
    pub fn copy_rows(self, row: usize, panel: usize, width: usize, out: &mut [f32]) {
        self.with_rows(row, panel, width, out, |to, from| to.copy_from_slice(from));
    }

    /// Adds the first outputs of the rows from `row` on to `to`, `[_, width]`.
    pub fn add_rows(self, row: usize, width: usize, to: &mut [f32]) {
        self.with_rows(row, 0, width, to, |to, from| to.iter_mut().zip(from).for_each(|(to, from)| *to += from));
    }

    /// Panel by panel, since a panel's rows lie side by side and a row's panels far apart.
    fn with_rows(self, row: usize, panel: usize, width: usize, out: &mut [f32], work: impl Fn(&mut [f32], &[f32])) {
        for first in (0..width).step_by(PANEL) {
            let tile = &self.values[((panel + first / PANEL) * self.rows + row) * PANEL..];
            let count = PANEL.min(width - first);
            for (out, tile) in out.chunks_exact_mut(width).zip(tile.chunks_exact(PANEL)) {
                work(&mut out[first..first + count], &tile[..count]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_found_in_tiles_alone_and_together() {
        let (rows, width) = (5, 40);
        let mut values = vec![0.0; 4 * rows * PANEL];
        let number = |row: usize, output: usize| (100 * row + output) as f32;
        for (at, value) in values.iter_mut().enumerate() {
            *value = number(at / PANEL % rows, at / PANEL / rows * PANEL + at % PANEL);
        }
        let tiles = Tiles { values: &values, rows };
        let mut one = [0.0; 13];
        tiles.copy(3, 10, &mut one);
        assert!(one.iter().enumerate().all(|(i, value)| *value == number(3, 10 + i)));
        let mut some = vec![0.0; 2 * width];
        tiles.copy_rows(1, 1, width, &mut some);
        tiles.add_rows(2, width, &mut some);
        for (at, value) in some.iter().enumerate() {
            let (row, output) = (at / width, at % width);
            assert_eq!(*value, number(1 + row, PANEL + output) + number(2 + row, output));
        }
    }
}
