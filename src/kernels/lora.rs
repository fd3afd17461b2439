//! Low-rank deltas, `y += s · B (A x)`: shrink by A, once for all projections of one input; expand by B onto a panel's tile.
//!
//! A row's delta depends on that row alone, bit for bit, whatever rows share its adapter.

#[cfg(target_arch = "x86_64")]
mod avx2;
mod bytes;

use std::ops::Range;

use half::{bf16, f16};

use self::bytes::Bytes;
use super::{
    blob::Blob,
    fetch::fetch,
    isa::{Isa, Level},
    pack::{BLOCK, PANEL},
    quantize::QuantizedRows,
};

/// Ranks that lie side by side in a factor of numbers: a group.
const RANKS: usize = 8;

/// Ranks that one run of shrinking takes, and that lie side by side in what is shrunk; the last run takes what is left.
pub const RUN: usize = 2 * RANKS;

/// A factor's numbers in the form they are kept in.
#[derive(Clone, Debug, PartialEq)]
enum Factor {
    F32(Vec<f32>),
    F16(Vec<f16>),
    BF16(Vec<bf16>),
    I8(Bytes),
}

impl Factor {
    const fn precision(&self) -> Precision {
        match self {
            Self::F32(_) => Precision::F32,
            Self::F16(_) => Precision::F16,
            Self::BF16(_) => Precision::BF16,
            Self::I8(_) => Precision::I8,
        }
    }

    fn blob(&mut self) -> Option<&mut Blob> {
        match self {
            Self::F32(_) | Self::F16(_) | Self::BF16(_) => None,
            Self::I8(kept) => Some(kept.blob()),
        }
    }
}

/// The form in which a factor's numbers are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    F32,
    F16,
    BF16,
    /// In blocks with a scale each: 32 inputs of a rank of A, all ranks of an output of B. A multiplies quantized activations.
    I8,
}

impl Precision {
    /// Bytes of `numbers` in blocks of `block`.
    const fn bytes(self, numbers: usize, block: usize) -> usize {
        match self {
            Self::F32 => 4 * numbers,
            Self::F16 | Self::BF16 => 2 * numbers,
            Self::I8 => Bytes::size(numbers, block),
        }
    }
}

/// Rows of activations, as numbers and, where a factor wants them so, quantized.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// `[rows, inputs]`
    pub floats: &'a [f32],
    pub quantized: Option<QuantizedRows<'a>>,
}

impl Inputs<'_> {
    /// The rows from `row` on, of `inputs` numbers each.
    pub fn rest(&self, inputs: usize, row: usize) -> Self {
        Self { floats: &self.floats[row * inputs..], quantized: self.quantized.as_ref().map(|rows| rows.rest(row)) }
    }
}

/// How a number is kept by itself.
#[derive(Clone, Copy)]
enum Form {
    F32,
    F16,
    BF16,
}

/// A factor's number as it is kept.
trait Kept: Copy {
    const FORM: Form;

    fn number(self) -> f32;
}

impl Kept for f32 {
    const FORM: Form = Form::F32;

    fn number(self) -> f32 {
        self
    }
}

impl Kept for f16 {
    const FORM: Form = Form::F16;

    fn number(self) -> f32 {
        self.to_f32()
    }
}

impl Kept for bf16 {
    const FORM: Form = Form::BF16;

    fn number(self) -> f32 {
        self.to_f32()
    }
}

/// One or more A matrices of one input, stacked: `[ranks, inputs]`. Numbers are kept as `[⌈ranks / 8⌉, inputs, 8]`, bytes as
/// `bytes` says.
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
    /// If it has another size, or inputs are no whole blocks of 32 where the precision has such.
    pub fn pack(precision: Precision, ranks: usize, inputs: usize, values: &[f32]) -> Self {
        assert_eq!(values.len(), ranks * inputs, "a stack of {ranks} ranks");
        let in_groups = || {
            let mut packed = vec![0.0; ranks.next_multiple_of(RANKS) * inputs];
            for (rank, row) in values.chunks_exact(inputs).enumerate() {
                let group = &mut packed[rank / RANKS * inputs * RANKS..];
                row.iter().enumerate().for_each(|(input, &value)| group[input * RANKS + rank % RANKS] = value);
            }
            packed
        };
        let values = match precision {
            Precision::F32 => Factor::F32(in_groups()),
            Precision::F16 => Factor::F16(in_groups().into_iter().map(f16::from_f32).collect()),
            Precision::BF16 => Factor::BF16(in_groups().into_iter().map(bf16::from_f32).collect()),
            Precision::I8 => Factor::I8(Bytes::shrink(ranks, inputs, values)),
        };
        Self { inputs, ranks, values }
    }

    /// Bytes that packing takes.
    pub const fn bytes(precision: Precision, ranks: usize, inputs: usize) -> usize {
        precision.bytes(ranks.next_multiple_of(RANKS) * inputs, BLOCK)
    }

    /// Bytes that it takes.
    pub const fn size(&self) -> usize {
        Self::bytes(self.values.precision(), self.ranks, self.inputs)
    }

    /// Its memory, where that can be moved.
    pub fn blob(&mut self) -> Option<&mut Blob> {
        self.values.blob()
    }

    /// Whether it multiplies quantized rows.
    pub fn takes_int8(&self) -> bool {
        matches!(self.values, Factor::I8(_))
    }

    pub fn inputs(&self) -> usize {
        self.inputs
    }

    pub fn ranks(&self) -> usize {
        self.ranks
    }

    /// Runs of ranks: what can be shared out among threads.
    pub fn runs(&self) -> usize {
        self.ranks.div_ceil(RUN)
    }

    /// The groups of a run: one or two.
    fn groups_of(&self, run: usize) -> Range<usize> {
        let first = run * (RUN / RANKS);
        first..self.ranks.div_ceil(RANKS).min(first + RUN / RANKS)
    }

    /// Asks for part `part` of `parts` of a run's memory before it is needed.
    pub fn fetch(&self, run: usize, part: usize, parts: usize) {
        let groups = self.groups_of(run);
        let (first, size) = (groups.start * RANKS * self.inputs, groups.len() * RANKS * self.inputs);
        let share = |size: usize| part * size / parts..(part + 1) * size / parts;
        match &self.values {
            Factor::F32(values) => fetch(&values[first..first + size][share(size)]),
            Factor::F16(values) => fetch(&values[first..first + size][share(size)]),
            Factor::BF16(values) => fetch(&values[first..first + size][share(size)]),
            Factor::I8(kept) => {
                let (values, scales) = kept.memory(first, first + size, BLOCK);
                fetch(&values[share(values.len())]);
                fetch(&scales[share(scales.len())]);
            }
        }
    }
}

/// `A x` for one run of ranks, for rows `rows`; `x` and `out`, `[_, RUN]`, hold the rows from row `first` on. Of a last run with 8
/// ranks or fewer, only the first half of a row's place is written.
///
/// # Panics
/// If there is no such run, row or place, or rows are not quantized that have to be.
pub fn shrink(isa: Isa, a: &Shrink, run: usize, x: &Inputs<'_>, rows: &[u32], first: usize, out: &mut [f32]) {
    let groups = a.groups_of(run);
    let places = out.len() / RUN;
    assert!(
        rows.iter().all(|&row| (first..first + places).contains(&(row as usize))),
        "{places} places from {first} on"
    );
    let rows = Listed { rows, first };
    match &a.values {
        Factor::F32(values) => shrink_from(isa, a, values, groups, x.floats, rows, out),
        Factor::F16(values) => shrink_from(isa, a, values, groups, x.floats, rows, out),
        Factor::BF16(values) => shrink_from(isa, a, values, groups, x.floats, rows, out),
        Factor::I8(kept) => {
            let x = x.quantized.as_ref().expect("quantized rows before a factor in 8 bits");
            bytes::shrink(isa, a, kept, run, x, rows, out);
        }
    }
}

/// Rows by their numbers in a step; what is read and written of them begins with row `first`.
#[derive(Clone, Copy)]
struct Listed<'a> {
    rows: &'a [u32],
    first: usize,
}

impl<'a> Listed<'a> {
    /// Their places, up to `most` at once.
    fn tiles(self, most: usize) -> impl Iterator<Item = impl Iterator<Item = usize> + Clone + 'a> {
        let first = self.first;
        self.rows.chunks(most).map(move |rows| rows.iter().map(move |&row| row as usize - first))
    }
}

fn shrink_from<T: Kept>(
    isa: Isa,
    a: &Shrink,
    values: &[T],
    groups: Range<usize>,
    x: &[f32],
    rows: Listed<'_>,
    out: &mut [f32],
) {
    let size = a.inputs * RANKS;
    for (half, group) in groups.enumerate() {
        let values = &values[group * size..(group + 1) * size];
        shrink_group(isa, values, |place| (&x[place * a.inputs..][..a.inputs], place * RUN + half * RANKS), rows, out);
    }
}

/// One group of ranks; `row` says for a place what is read there, and where the products go.
fn shrink_group<'x, T: Kept>(
    isa: Isa,
    values: &[T],
    row: impl Fn(usize) -> (&'x [f32], usize),
    rows: Listed<'_>,
    out: &mut [f32],
) {
    match isa.0 {
        Level::Plain => {
            for (x, to) in rows.tiles(1).flatten().map(row) {
                let out = &mut out[to..][..RANKS];
                out.fill(0.0);
                for (x, values) in x.iter().zip(values.chunks_exact(RANKS)) {
                    out.iter_mut().zip(values).for_each(|(out, value)| *out += x * value.number());
                }
            }
        }
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 | Level::Avx512 => {
            for rows in rows.tiles(avx2::SHRINK_ROWS) {
                let mut tile: [(&[f32], usize); avx2::SHRINK_ROWS] = [(&[], 0); avx2::SHRINK_ROWS];
                let count = tile.iter_mut().zip(rows).map(|(tile, place)| *tile = row(place)).count();
                // SAFETY: this level says that the machine has AVX2, FMA and F16C.
                unsafe { avx2::shrink(values, &tile[..count], out) };
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
        let in_panels = || {
            let mut packed = vec![0.0; (values.len() / rank).next_multiple_of(PANEL) * rank];
            for (output, row) in values.chunks_exact(rank).enumerate() {
                let panel = &mut packed[output / PANEL * rank * PANEL..];
                row.iter().enumerate().for_each(|(rank, &value)| panel[rank * PANEL + output % PANEL] = value);
            }
            packed
        };
        let values = match precision {
            Precision::F32 => Factor::F32(in_panels()),
            Precision::F16 => Factor::F16(in_panels().into_iter().map(f16::from_f32).collect()),
            Precision::BF16 => Factor::BF16(in_panels().into_iter().map(bf16::from_f32).collect()),
            Precision::I8 => Factor::I8(Bytes::expand(rank, values)),
        };
        Self { rank, first, scale, values }
    }

    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Bytes that it takes, for so many outputs.
    pub const fn size(&self, outputs: usize) -> usize {
        Self::bytes(self.values.precision(), outputs, self.rank)
    }

    /// Its memory, where that can be moved.
    pub fn blob(&mut self) -> Option<&mut Blob> {
        self.values.blob()
    }

    /// Asks for the memory of some panels before it is needed.
    pub fn fetch(&self, panels: Range<usize>) {
        let (first, end) = (panels.start * PANEL * self.rank, panels.end * PANEL * self.rank);
        match &self.values {
            Factor::F32(values) => fetch(&values[first..end]),
            Factor::F16(values) => fetch(&values[first..end]),
            Factor::BF16(values) => fetch(&values[first..end]),
            Factor::I8(kept) => {
                let (values, scales) = kept.memory(first, end, self.rank);
                fetch(values);
                fetch(scales);
            }
        }
    }

    /// Bytes that packing takes.
    pub const fn bytes(precision: Precision, outputs: usize, rank: usize) -> usize {
        precision.bytes(outputs.next_multiple_of(PANEL) * rank, rank)
    }
}

/// Shrunk rows, `[runs, rows, RUN]`: a rank's numbers of all rows of a step, by the row's number in it.
#[derive(Clone, Copy, Debug)]
pub struct Shrunk<'a> {
    pub values: &'a [f32],
    pub rows: usize,
}

impl Shrunk<'_> {
    /// Where a stack's rank `rank` of row 0 is; the other rows' follow, [`RUN`] apart.
    #[inline]
    fn at(&self, rank: usize) -> usize {
        rank / RUN * self.rows * RUN + rank % RUN
    }
}

/// Adds `s · B t` to the rows `rows` of the tiles of `panels` (`[panels, _, PANEL]`), with what [`shrink`] gave as t.
///
/// # Panics
/// If there is no such panel or row, or `shrunk` is too short.
pub fn expand(isa: Isa, b: &Expand, panels: Range<usize>, shrunk: Shrunk<'_>, rows: &[u32], tiles: &mut [f32]) {
    if panels.is_empty() {
        return;
    }
    let most = rows.iter().max().map_or(0, |&row| row as usize + 1);
    let tile = tiles.len() / panels.len();
    assert!(tile * panels.len() == tiles.len() && tile >= most * PANEL, "tiles of {most} rows");
    let runs = (b.first + b.rank).div_ceil(RUN);
    assert!(most <= shrunk.rows && shrunk.values.len() >= runs * shrunk.rows * RUN, "shrunk rows");
    let delta = Delta { shrunk, first: b.first, rows };
    match &b.values {
        Factor::F32(values) => expand_from(isa, b, values, panels, &delta, tiles),
        Factor::F16(values) => expand_from(isa, b, values, panels, &delta, tiles),
        Factor::BF16(values) => expand_from(isa, b, values, panels, &delta, tiles),
        Factor::I8(kept) => bytes::expand(isa, b, kept, panels, &delta, tiles),
    }
}

/// One panel after the other.
fn expand_from<T: Kept>(
    isa: Isa,
    b: &Expand,
    values: &[T],
    panels: Range<usize>,
    delta: &Delta<'_>,
    tiles: &mut [f32],
) {
    let tile = tiles.len() / panels.len();
    for (panel, tile) in panels.zip(tiles.chunks_exact_mut(tile)) {
        expand_panel(isa, b, values, panel, delta, tile);
    }
}

/// The rows that a B is added to, and their shrunk numbers.
struct Delta<'a> {
    shrunk: Shrunk<'a>,
    /// Of the B's ranks in the stack.
    first: usize,
    rows: &'a [u32],
}

impl Delta<'_> {
    /// Where rank `rank` of the B is for row 0.
    #[inline]
    fn at(&self, rank: usize) -> usize {
        self.shrunk.at(self.first + rank)
    }
}

fn expand_panel<T: Kept>(isa: Isa, b: &Expand, values: &[T], panel: usize, delta: &Delta<'_>, tile: &mut [f32]) {
    let size = b.rank * PANEL;
    let (shrunk, rows) = (delta.shrunk.values, delta.rows);
    let values = &values[panel * size..(panel + 1) * size];
    match isa.0 {
        Level::Plain => {
            for &row in rows {
                let mut sums = [0.0f32; PANEL];
                for (rank, values) in values.chunks_exact(PANEL).enumerate() {
                    let t = shrunk[delta.at(rank) + row as usize * RUN];
                    sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += t * value.number());
                }
                let tile = &mut tile[row as usize * PANEL..][..PANEL];
                tile.iter_mut().zip(sums).for_each(|(tile, sum)| *tile += sum * b.scale);
            }
        }
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 | Level::Avx512 => {
            for rows in rows.chunks(avx2::EXPAND_ROWS) {
                // SAFETY: this level says that the machine has AVX2, FMA and F16C; what is read of `shrunk` and of the tile has
                // been checked above.
                unsafe { avx2::expand(values, shrunk, |rank| delta.at(rank), rows, b.scale, tile) };
            }
        }
    }
}

#[cfg(test)]
mod tests;
