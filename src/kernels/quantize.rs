//! Activations for the kernels: int8 for each 32 values of a row, alone or behind an RMS norm.

#[cfg(target_arch = "x86_64")]
use super::x86;
use super::{
    isa::{Isa, Level},
    pack::BLOCK,
    reference,
};

/// What a block of a quantized row sums up to: what is needed of it where weights are stored with an offset.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[repr(C)]
pub struct BlockSum {
    /// Of the values: `scale · Σq`.
    pub value: f32,
    /// Of the integers of the first and of the last 16 inputs.
    pub halves: [i16; 2],
}

/// Quantized rows: a value is `scales[block] · q`, and `sums[block]` sums a block up.
#[derive(Clone, Copy, Debug)]
pub struct QuantizedRows<'a> {
    pub inputs: usize,
    /// `[rows, inputs]`, from -127 to 127.
    pub q: &'a [i8],
    /// `[rows, inputs / 32]`
    pub scales: &'a [f32],
    /// `[rows, inputs / 32]`
    pub sums: &'a [BlockSum],
}

impl QuantizedRows<'_> {
    /// How many rows there are.
    ///
    /// # Panics
    /// If the slices disagree about it.
    pub fn rows(&self) -> usize {
        let blocks = self.inputs / BLOCK;
        assert!(self.inputs.is_multiple_of(BLOCK) && blocks > 0, "{} inputs are no whole blocks", self.inputs);
        let rows = self.q.len() / self.inputs;
        assert_eq!(
            (self.q.len(), self.scales.len(), self.sums.len()),
            (rows * self.inputs, rows * blocks, rows * blocks),
            "quantized rows of {} inputs",
            self.inputs
        );
        rows
    }

    /// The rows from `row` on; there may be none.
    pub(super) fn rest(&self, row: usize) -> Self {
        let blocks = self.inputs / BLOCK;
        Self {
            inputs: self.inputs,
            q: &self.q[row * self.inputs..],
            scales: &self.scales[row * blocks..],
            sums: &self.sums[row * blocks..],
        }
    }
}

/// Where one quantized row goes.
#[derive(Debug)]
pub struct QuantizedRow<'a> {
    /// `[inputs]`
    pub q: &'a mut [i8],
    /// `[inputs / 32]`
    pub scales: &'a mut [f32],
    /// `[inputs / 32]`
    pub sums: &'a mut [BlockSum],
}

impl QuantizedRow<'_> {
    fn check(&self, inputs: usize) {
        assert!(inputs.is_multiple_of(BLOCK), "{inputs} inputs are no whole blocks");
        let blocks = inputs / BLOCK;
        assert_eq!((self.q.len(), self.scales.len(), self.sums.len()), (inputs, blocks, blocks), "a quantized row");
    }
}

/// Quantizes the row `x` (`[inputs]`, whole blocks): the largest of a block becomes ±127, the rest is rounded to even.
///
/// A block whose largest value is below about 1.5e-36 becomes zero. One with a value that is not finite gets a scale that
/// is not finite, so that no product hides it.
///
/// # Panics
/// If the sizes do not fit.
pub fn quantize_row(isa: Isa, x: &[f32], to: QuantizedRow<'_>) {
    to.check(x.len());
    match isa.0 {
        Level::Plain => reference::quantize_row(x, to),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the level says what the machine has; the sizes were checked.
        Level::Avx2 => unsafe { x86::quantize::row(x, to) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: likewise.
        Level::Avx512 => unsafe { x86::avx512::quantize::row(x, to) },
    }
}

/// RMS norm: `out = x / √(mean(x²) + eps) · weight`, all `[inputs]`.
///
/// # Panics
/// If the sizes differ.
pub fn norm_row(isa: Isa, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    assert_eq!((weight.len(), out.len()), (x.len(), x.len()), "a normed row");
    match isa.0 {
        Level::Plain => reference::norm_row(x, weight, eps, out),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the level says what the machine has; the sizes were checked.
        Level::Avx2 => unsafe { x86::quantize::norm_row(x, weight, eps, out) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: likewise.
        Level::Avx512 => unsafe { x86::avx512::quantize::norm_row(x, weight, eps, out) },
    }
}

/// [`norm_row`], then [`quantize_row`] of what it gave.
///
/// # Panics
/// If the sizes do not fit.
pub fn norm_quantize_row(isa: Isa, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32], to: QuantizedRow<'_>) {
    norm_row(isa, x, weight, eps, out);
    quantize_row(isa, out, to);
}

#[cfg(test)]
mod tests;
