//! Low-rank deltas, `y += s · B (A x)`: shrink by A, once for all projections of one input; expand by B onto a panel's tile.
//!
//! A row's delta depends on that row alone, bit for bit, whatever rows share its adapter.

#[cfg(target_arch = "x86_64")]
mod avx2;

use half::{bf16, f16};

use super::{
    isa::{Isa, Level},
    pack::PANEL,
};

/// Ranks that lie side by side.
pub const RANKS: usize = 8;

/// A factor's numbers in the form they are kept in.
#[derive(Clone, Debug, PartialEq)]
pub enum Factor {
    F32(Vec<f32>),
    F16(Vec<f16>),
    BF16(Vec<bf16>),
}

/// The form in which a factor's numbers are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    F32,
    F16,
    BF16,
}

impl Precision {
    pub const fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
        }
    }
}

impl Factor {
    fn pack(precision: Precision, values: Vec<f32>) -> Self {
        match precision {
            Precision::F32 => Self::F32(values),
            Precision::F16 => Self::F16(values.into_iter().map(f16::from_f32).collect()),
            Precision::BF16 => Self::BF16(values.into_iter().map(bf16::from_f32).collect()),
        }
    }
}

/// A factor's number as it is kept.
trait Kept: Copy {
    const PRECISION: Precision;

    fn number(self) -> f32;
}

impl Kept for f32 {
    const PRECISION: Precision = Precision::F32;

    fn number(self) -> f32 {
        self
    }
}

impl Kept for f16 {
    const PRECISION: Precision = Precision::F16;

    fn number(self) -> f32 {
        self.to_f32()
    }
}

impl Kept for bf16 {
    const PRECISION: Precision = Precision::BF16;

    fn number(self) -> f32 {
        self.to_f32()
    }
}

/// One or more A matrices of one input, stacked: `[ranks, inputs]`, kept as `[⌈ranks / 8⌉, inputs, 8]`.
#[derive(Clone, Debug)]
pub struct Shrink {
    inputs: usize,
    ranks: usize,
    values: Factor,
}

impl Shrink {
    /// `values` is `[ranks, inputs]`, row-major.
    ///
    /// # Panics
    /// If it has another size.
    pub fn pack(precision: Precision, ranks: usize, inputs: usize, values: &[f32]) -> Self {
        assert_eq!(values.len(), ranks * inputs, "a stack of {ranks} ranks");
        let mut packed = vec![0.0; ranks.div_ceil(RANKS) * inputs * RANKS];
        for (rank, row) in values.chunks_exact(inputs).enumerate() {
            let group = &mut packed[rank / RANKS * inputs * RANKS..];
            row.iter().enumerate().for_each(|(input, &value)| group[input * RANKS + rank % RANKS] = value);
        }
        Self { inputs, ranks, values: Factor::pack(precision, packed) }
    }

    /// Bytes that packing takes.
    pub const fn bytes(precision: Precision, ranks: usize, inputs: usize) -> usize {
        ranks.div_ceil(RANKS) * RANKS * inputs * precision.bytes()
    }

    /// Groups of [`RANKS`] ranks: what is shared out among threads.
    pub fn groups(&self) -> usize {
        self.ranks.div_ceil(RANKS)
    }
}

/// `A x` for one group of ranks: `out` is `[rows.len(), RANKS]`, from rows `rows` of `x` (`[_, inputs]`).
///
/// # Panics
/// If there is no such group or row, or `out` has another size.
pub fn shrink(isa: Isa, a: &Shrink, group: usize, x: &[f32], rows: &[u32], out: &mut [f32]) {
    match &a.values {
        Factor::F32(values) => shrink_from(isa, a, values, group, x, rows, out),
        Factor::F16(values) => shrink_from(isa, a, values, group, x, rows, out),
        Factor::BF16(values) => shrink_from(isa, a, values, group, x, rows, out),
    }
}

fn shrink_from<T: Kept>(isa: Isa, a: &Shrink, values: &[T], group: usize, x: &[f32], rows: &[u32], out: &mut [f32]) {
    assert_eq!(out.len(), rows.len() * RANKS, "shrunk rows");
    let size = a.inputs * RANKS;
    let values = &values[group * size..(group + 1) * size];
    let row = |index: u32| &x[index as usize * a.inputs..][..a.inputs];
    match isa.0 {
        Level::Plain => {
            for (&index, out) in rows.iter().zip(out.chunks_exact_mut(RANKS)) {
                out.fill(0.0);
                for (x, values) in row(index).iter().zip(values.chunks_exact(RANKS)) {
                    out.iter_mut().zip(values).for_each(|(out, value)| *out += x * value.number());
                }
            }
        }
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 | Level::Avx512 => {
            for (rows, out) in rows.chunks(avx2::SHRINK_ROWS).zip(out.chunks_mut(avx2::SHRINK_ROWS * RANKS)) {
                let mut tile: [&[f32]; avx2::SHRINK_ROWS] = [&[]; avx2::SHRINK_ROWS];
                tile.iter_mut().zip(rows).for_each(|(tile, &index)| *tile = row(index));
                // SAFETY: this level says that the machine has AVX2, FMA and F16C.
                unsafe { avx2::shrink(values, &tile[..rows.len()], out) };
            }
        }
    }
}

/// One B matrix, `[outputs, rank]`, kept as `[panels, rank, PANEL]`, with its scale and its place in a stack of ranks.
#[derive(Clone, Debug)]
pub struct Expand {
    rank: usize,
    first: usize,
    scale: f32,
    values: Factor,
}

impl Expand {
    /// `values` is `[outputs, rank]`, row-major; its ranks begin at `first` of the stack that its A is part of.
    ///
    /// # Panics
    /// If the size is no multiple of the rank.
    pub fn pack(precision: Precision, rank: usize, first: usize, scale: f32, values: &[f32]) -> Self {
        assert!(values.len().is_multiple_of(rank), "rows of {rank} ranks");
        let mut packed = vec![0.0; (values.len() / rank).next_multiple_of(PANEL) * rank];
        for (output, row) in values.chunks_exact(rank).enumerate() {
            let panel = &mut packed[output / PANEL * rank * PANEL..];
            row.iter().enumerate().for_each(|(rank, &value)| panel[rank * PANEL + output % PANEL] = value);
        }
        Self { rank, first, scale, values: Factor::pack(precision, packed) }
    }

    /// Bytes that packing takes.
    pub const fn bytes(precision: Precision, outputs: usize, rank: usize) -> usize {
        outputs.next_multiple_of(PANEL) * rank * precision.bytes()
    }
}

/// Adds `s · B t` to the rows `rows` of a panel's `tile` (`[_, PANEL]`); `shrunk` is `[groups, rows.len(), RANKS]`, as
/// [`shrink`] gives it group by group.
///
/// # Panics
/// If there is no such panel or row, or `shrunk` is too short.
pub fn expand(isa: Isa, b: &Expand, panel: usize, shrunk: &[f32], rows: &[u32], tile: &mut [f32]) {
    match &b.values {
        Factor::F32(values) => expand_from(isa, b, values, panel, shrunk, rows, tile),
        Factor::F16(values) => expand_from(isa, b, values, panel, shrunk, rows, tile),
        Factor::BF16(values) => expand_from(isa, b, values, panel, shrunk, rows, tile),
    }
}

fn expand_from<T: Kept>(
    isa: Isa,
    b: &Expand,
    values: &[T],
    panel: usize,
    shrunk: &[f32],
    rows: &[u32],
    tile: &mut [f32],
) {
    let size = b.rank * PANEL;
    let values = &values[panel * size..(panel + 1) * size];
    let most = rows.iter().max().map_or(0, |&row| row as usize + 1);
    assert!(tile.len() >= most * PANEL, "a tile of {most} rows");
    assert!(shrunk.len() >= (b.first + b.rank).div_ceil(RANKS) * rows.len() * RANKS, "shrunk rows");
    // Where rank `rank` of the first row is; the other rows' follow, RANKS apart.
    let at = |rank: usize| {
        let stacked = b.first + rank;
        stacked / RANKS * rows.len() * RANKS + stacked % RANKS
    };
    match isa.0 {
        Level::Plain => {
            for (place, &row) in rows.iter().enumerate() {
                let mut delta = [0.0f32; PANEL];
                for (rank, values) in values.chunks_exact(PANEL).enumerate() {
                    let t = shrunk[at(rank) + place * RANKS];
                    delta.iter_mut().zip(values).for_each(|(delta, value)| *delta += t * value.number());
                }
                let tile = &mut tile[row as usize * PANEL..][..PANEL];
                tile.iter_mut().zip(delta).for_each(|(tile, delta)| *tile += delta * b.scale);
            }
        }
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 | Level::Avx512 => {
            for first in (0..rows.len()).step_by(avx2::EXPAND_ROWS) {
                let rows = &rows[first..rows.len().min(first + avx2::EXPAND_ROWS)];
                // SAFETY: this level says that the machine has AVX2, FMA and F16C; what is read of `shrunk` and of the tile has
                // been checked above.
                unsafe { avx2::expand(values, shrunk, |rank| at(rank) + first * RANKS, rows, b.scale, tile) };
            }
        }
    }
}

#[cfg(test)]
mod tests;
