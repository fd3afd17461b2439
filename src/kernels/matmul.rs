//! Products of packed weights with rows of activations, one panel at a time, on the calling thread.
//!
//! A row's result depends on that row and the weights alone, bit for bit: each (output, row) has its own sum, taken in order
//! of input, whatever the number of rows or the register tile that it fell in. So the caller may share panels and rows out
//! among threads as it likes.

#[cfg(target_arch = "x86_64")]
use super::x86;
use super::{
    isa::{Isa, Level},
    pack::{PANEL, Packed},
    quantize::QuantizedRows,
    reference,
};

/// Products with quantized activations: `tile[r * PANEL + o]` is the dot product of row `r` and output
/// `panel * PANEL + o`. `tile` is `[rows, PANEL]` and is overwritten; outputs past the last are zero.
///
/// Integers are multiplied exactly within a block of 32; blocks are summed in `f32`.
///
/// # Panics
/// If the weights are floats ([`Packed::takes_int8`]), there is no such panel, or the sizes do not fit.
pub fn panel_int8(isa: Isa, weights: &Packed, panel: usize, x: &QuantizedRows<'_>, tile: &mut [f32]) {
    assert!(weights.takes_int8(), "{} weights times int8", weights.encoding().name());
    assert_eq!(x.inputs, weights.inputs(), "inputs of the rows and of the weights");
    assert_eq!(tile.len(), x.rows() * PANEL, "a tile of {} rows", x.rows());
    match isa.0 {
        Level::Plain => reference::panel_int8(weights, panel, x, tile),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the level says what the machine has; the sizes were checked.
        Level::Avx2 => unsafe { x86::int8::panel(weights, panel, x, tile) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: likewise.
        Level::Avx512 => unsafe { x86::avx512::int8::panel(weights, panel, x, isa.1, tile) },
    }
}

/// Products with `f32` activations `x` (`[rows, inputs]`) and weights of any encoding, each decoded exactly; otherwise as
/// [`panel_int8`].
///
/// # Panics
/// If there is no such panel, or the sizes do not fit.
pub fn panel_f32(isa: Isa, weights: &Packed, panel: usize, x: &[f32], tile: &mut [f32]) {
    let rows = tile.len() / PANEL;
    assert_eq!((tile.len(), x.len()), (rows * PANEL, rows * weights.inputs()), "a tile and its rows");
    match isa.0 {
        Level::Plain => reference::panel_f32(weights, panel, x, tile),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the level says what the machine has; the sizes were checked.
        Level::Avx2 => unsafe { x86::float::panel(weights, panel, x, tile) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: likewise.
        Level::Avx512 => unsafe { x86::avx512::float::panel(weights, panel, x, tile) },
    }
}

#[cfg(test)]
mod tests;
