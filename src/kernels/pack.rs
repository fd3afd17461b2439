//! Weights in the order in which the kernels read them: packed once, at load.

mod layout;

use std::{io, ops::Range};

use super::{
    dequant::{Encoding, decode},
    memory::{Memory, Region},
};
pub use layout::{BLOCK, PANEL};
pub(super) use layout::{Layout, Stretch};

/// Why weights cannot be packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PackFault {
    #[error("{inputs} inputs are no whole number of {} blocks, which hold {}", .encoding.name(), .encoding.block_values())]
    Width { encoding: Encoding, inputs: usize },
    #[error("row {row} has {got} bytes, not {expected}")]
    Row { row: usize, got: usize, expected: usize },
    #[error("{outputs} × {inputs} weights are more than memory can hold")]
    TooLarge { outputs: usize, inputs: usize },
}

/// A weight matrix `[outputs, inputs]` in panels of [`PANEL`] outputs: about the file's bytes, none of the file's memory.
///
/// Nothing is lost: [`row`](Self::row) gives what [`dequant::decode`](super::dequant::decode) gives, bit for bit.
pub struct Packed {
    encoding: Encoding,
    outputs: usize,
    inputs: usize,
    panel_bytes: usize,
    memory: Region,
}

impl Packed {
    /// Outputs in a panel.
    pub const PANEL: usize = PANEL;

    /// Packs all rows. `rows(i)` gives the encoded bytes of output `i`, so that a caller may join and interleave matrices.
    pub fn pack<'r>(
        encoding: Encoding,
        outputs: usize,
        inputs: usize,
        rows: impl Fn(usize) -> &'r [u8],
    ) -> Result<Self, PackFault> {
        let mut packed = Self::zeroed(encoding, outputs, inputs)?;
        packed.slots(usize::MAX).try_for_each(|slot| slot.fill(&rows))?;
        Ok(packed)
    }

    /// A matrix of zeros in memory of its own, to be filled through [`slots`](Self::slots).
    pub fn zeroed(encoding: Encoding, outputs: usize, inputs: usize) -> Result<Self, PackFault> {
        Self::zeroed_by(encoding, outputs, inputs, Region::alone)
    }

    /// The same, in memory that it shares with other matrices.
    pub fn zeroed_in(
        memory: &mut Memory,
        encoding: Encoding,
        outputs: usize,
        inputs: usize,
    ) -> Result<Self, PackFault> {
        Self::zeroed_by(encoding, outputs, inputs, |bytes| memory.take(bytes))
    }

    /// Bytes of memory that a matrix takes; `None` if it cannot be packed.
    pub fn bytes_for(encoding: Encoding, outputs: usize, inputs: usize) -> Option<usize> {
        outputs.div_ceil(PANEL).checked_mul(layout::panel_bytes(encoding, inputs)?)
    }

    fn zeroed_by(
        encoding: Encoding,
        outputs: usize,
        inputs: usize,
        take: impl FnOnce(usize) -> io::Result<Region>,
    ) -> Result<Self, PackFault> {
        let panel_bytes = layout::panel_bytes(encoding, inputs).ok_or(PackFault::Width { encoding, inputs })?;
        let bytes = outputs.div_ceil(PANEL).checked_mul(panel_bytes).filter(|&bytes| bytes < isize::MAX as usize / 2);
        let memory = bytes.and_then(|bytes| take(bytes).ok()).ok_or(PackFault::TooLarge { outputs, inputs })?;
        Ok(Self { encoding, outputs, inputs, panel_bytes, memory })
    }

    /// Runs of at most `panels` panels, each to be filled on any thread.
    pub fn slots(&mut self, panels: usize) -> impl Iterator<Item = Slot<'_>> {
        let (encoding, outputs, inputs, panel_bytes) = (self.encoding, self.outputs, self.inputs, self.panel_bytes);
        let panels = panels.clamp(1, outputs.div_ceil(PANEL).max(1));
        let runs = self.memory.chunks_mut((panels * panel_bytes).max(1));
        runs.enumerate().map(move |(run, bytes)| {
            let first = run * panels * PANEL;
            let outputs = first..(first + panels * PANEL).min(outputs);
            Slot { encoding, inputs, panel_bytes, outputs, bytes }
        })
    }

    pub fn encoding(&self) -> Encoding {
        self.encoding
    }

    pub fn outputs(&self) -> usize {
        self.outputs
    }

    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// The last one may have outputs that are not there: their weights are zero.
    pub fn panels(&self) -> usize {
        self.outputs.div_ceil(PANEL)
    }

    /// Bytes of memory that the weights take.
    pub fn bytes(&self) -> usize {
        self.panels() * self.panel_bytes
    }

    /// Bytes that one panel takes: what a thread reads for a panel's products.
    pub fn panel_bytes(&self) -> usize {
        self.panel_bytes
    }

    /// Whether products with quantized activations exist: for every encoding but the floats.
    pub fn takes_int8(&self) -> bool {
        Layout::of(self.encoding).is_some()
    }

    /// The weights of `output` as numbers: what the packed form means.
    ///
    /// # Panics
    /// If there is no such output, or `out` is not `[inputs]`.
    pub fn row(&self, output: usize, out: &mut [f32]) {
        assert!(output < self.outputs, "output {output} of {}", self.outputs);
        assert_eq!(out.len(), self.inputs, "a row of weights");
        let (panel, place) = (output / PANEL, output % PANEL);
        for (index, out) in out.chunks_mut(BLOCK).enumerate() {
            self.stretch(panel, index, place, out);
        }
    }

    /// The numbers of block `index`: `[inputs, PANEL]`, as many inputs as `out` has room for.
    pub(super) fn decode(&self, panel: usize, index: usize, out: &mut [[f32; PANEL]]) {
        let mut values = [0.0; BLOCK];
        let values = &mut values[..out.len()];
        for place in 0..PANEL {
            self.stretch(panel, index, place, values);
            out.iter_mut().zip(&*values).for_each(|(out, &value)| out[place] = value);
        }
    }

    /// The numbers of block `index` for one output.
    fn stretch(&self, panel: usize, index: usize, place: usize, out: &mut [f32]) {
        if let Some(stretch) = self.integers(panel, index, place) {
            return out.iter_mut().enumerate().for_each(|(i, out)| *out = stretch.value(i));
        }
        let size = self.encoding.block_bytes();
        let mut bytes = [0; BLOCK * size_of::<f32>()];
        let values = self.panel(panel)[index * BLOCK * PANEL * size..].chunks_exact(PANEL * size);
        for (to, values) in bytes.chunks_exact_mut(size).zip(values) {
            to.copy_from_slice(&values[place * size..(place + 1) * size]);
        }
        decode(self.encoding, &bytes[..out.len() * size], out);
    }

    /// Block `index` for one output, if the weights are quantized.
    pub(super) fn integers(&self, panel: usize, index: usize, place: usize) -> Option<Stretch> {
        let layout = Layout::of(self.encoding)?;
        Some(Stretch::read(self.encoding, &layout, self.panel(panel), index, place))
    }

    /// The bytes of a panel, laid out as [`layout`] says, from an address that is a multiple of 32.
    pub(super) fn panel(&self, panel: usize) -> &[u8] {
        &self.memory[panel * self.panel_bytes..(panel + 1) * self.panel_bytes]
    }
}

/// Some panels of a matrix that is being packed.
pub struct Slot<'a> {
    encoding: Encoding,
    inputs: usize,
    panel_bytes: usize,
    outputs: Range<usize>,
    bytes: &'a mut [u8],
}

impl Slot<'_> {
    /// The outputs whose rows are wanted.
    pub fn outputs(&self) -> Range<usize> {
        self.outputs.clone()
    }

    /// Packs the rows; `rows(i)` gives the encoded bytes of output `i` of the whole matrix.
    pub fn fill<'r>(self, rows: impl Fn(usize) -> &'r [u8]) -> Result<(), PackFault> {
        let expected = self.encoding.bytes_for(self.inputs).unwrap_or(0);
        let (first, end) = (self.outputs.start, self.outputs.end);
        for (start, panel) in (first..end).step_by(PANEL).zip(self.bytes.chunks_exact_mut(self.panel_bytes.max(1))) {
            let mut sources: [&[u8]; PANEL] = [&[]; PANEL];
            let sources = &mut sources[..PANEL.min(end - start)];
            for (place, source) in sources.iter_mut().enumerate() {
                *source = rows(start + place);
                if source.len() != expected {
                    return Err(PackFault::Row { row: start + place, got: source.len(), expected });
                }
            }
            layout::put_rows(self.encoding, sources, panel);
        }
        Ok(())
    }
}

#[cfg(test)]
pub(in crate::kernels) mod tests;
