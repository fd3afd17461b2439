//! Where everything is in a packed panel.
//!
//! A panel is the weights of [`PANEL`] outputs, side by side. Floats: for each input, the panel's 16 values. Quantized: *units*
//! of one block (of [`BLOCK`] inputs), or of 8 blocks behind a head for K-quants:
//!
//! - head (K-quants): 16 × scale f16, then 16 × min scale f16 (not Q6_K);
//! - scales: 16 × scale f16 and, where there is one, 16 × min f16; for Q4_K and Q5_K 16 × scale u8 and 16 × min u8; for
//!   Q6_K 16 × scale i8 of the block's first half and 16 × of its second;
//! - high: the bits above the nibble, as one `u32` for each output (two for Q6_K). Byte `i` of it belongs to the inputs
//!   `4g + i`; Q5 has group `g` in bit `g`, Q6_K has groups 0–3 as bit pairs of the first `u32`, 4–7 of the second;
//! - body: for each group `g` of four inputs the outputs' bytes side by side, 4 for each output; with nibbles, outputs 0–7
//!   are the low ones and 8–15 the high ones of the same 32 bytes.
//!
//! So 32 bytes are the same four inputs of 8 outputs: one broadcast of four activations meets them all, and sums of
//! neighbouring products never leave their output's lane.

use half::f16;

use crate::kernels::dequant::Encoding;

/// Outputs in a panel. Two AVX2 registers (or one of AVX-512) of `f32` sums: wide enough that a broadcast activation is
/// used twice for each load, narrow enough that the projections of small models still divide among many threads.
pub const PANEL: usize = 16;

/// Inputs that share a quantized activation's scale, and a weight's in every format but Q6_K.
pub const BLOCK: usize = 32;

/// Sizes in bytes of the parts of a quantized unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::kernels) struct Layout {
    pub head: usize,
    pub scales: usize,
    pub high: usize,
    pub body: usize,
    /// Blocks in a unit.
    pub blocks: usize,
}

impl Layout {
    /// `None` for floats.
    pub const fn of(encoding: Encoding) -> Option<Self> {
        let nibbles = PANEL * BLOCK / 2;
        let (head, scales, high, body, blocks) = match encoding {
            Encoding::F32 | Encoding::F16 | Encoding::BF16 => return None,
            Encoding::Q8_0 => (0, 2 * PANEL, 0, PANEL * BLOCK, 1),
            Encoding::Q4_0 => (0, 2 * PANEL, 0, nibbles, 1),
            Encoding::Q4_1 => (0, 4 * PANEL, 0, nibbles, 1),
            Encoding::Q5_0 => (0, 2 * PANEL, 4 * PANEL, nibbles, 1),
            Encoding::Q5_1 => (0, 4 * PANEL, 4 * PANEL, nibbles, 1),
            Encoding::Q4K => (4 * PANEL, 2 * PANEL, 0, nibbles, 8),
            Encoding::Q5K => (4 * PANEL, 2 * PANEL, 4 * PANEL, nibbles, 8),
            Encoding::Q6K => (2 * PANEL, 2 * PANEL, 8 * PANEL, nibbles, 8),
        };
        Some(Self { head, scales, high, body, blocks })
    }

    /// Bytes of a block without the head.
    pub const fn block(&self) -> usize {
        self.scales + self.high + self.body
    }

    /// Bytes of a unit.
    pub const fn unit(&self) -> usize {
        self.head + self.blocks * self.block()
    }
}

/// Bytes of a panel; `None` if `inputs` are not whole blocks of the file's format, or too many.
pub(super) fn panel_bytes(encoding: Encoding, inputs: usize) -> Option<usize> {
    encoding.bytes_for(inputs)?;
    match Layout::of(encoding) {
        None => inputs.checked_mul(PANEL * encoding.block_bytes()),
        Some(layout) => (inputs / (BLOCK * layout.blocks)).checked_mul(layout.unit()),
    }
}

/// Writes the rows of a panel's outputs, at most [`PANEL`], into a panel of zeros.
pub(super) fn put_rows(encoding: Encoding, sources: &[&[u8]], panel: &mut [u8]) {
    match Layout::of(encoding) {
        None if encoding == Encoding::F32 => put_floats::<4>(sources, panel),
        None => put_floats::<2>(sources, panel),
        Some(layout) => {
            sources.iter().enumerate().for_each(|(place, source)| put_row(encoding, &layout, source, place, panel));
        }
    }
}

/// Values of `SIZE` bytes. Input by input, so that what is written is written in one go.
fn put_floats<const SIZE: usize>(sources: &[&[u8]], panel: &mut [u8]) {
    let (panel, _) = panel.as_chunks_mut::<SIZE>();
    for (input, values) in panel.chunks_exact_mut(PANEL).enumerate() {
        for (to, source) in values.iter_mut().zip(sources) {
            to.copy_from_slice(&source[input * SIZE..(input + 1) * SIZE]);
        }
    }
}

fn put_row(encoding: Encoding, layout: &Layout, source: &[u8], place: usize, panel: &mut [u8]) {
    let mut integers = [0u8; 256];
    let integers = &mut integers[..BLOCK * layout.blocks];
    for (source, unit) in source.chunks_exact(encoding.block_bytes()).zip(panel.chunks_exact_mut(layout.unit())) {
        let (head, blocks) = unit.split_at_mut(layout.head);
        for (at, bytes) in file_head(encoding, source).chunks_exact(2).enumerate() {
            put_pair(head, at, place, bytes);
        }
        file_integers(encoding, source, integers);
        for (index, block) in blocks.chunks_exact_mut(layout.block()).enumerate() {
            let (scales, rest) = block.split_at_mut(layout.scales);
            let (high, body) = rest.split_at_mut(layout.high);
            put_scales(encoding, source, index, place, scales);
            put_integers(encoding, &integers[index * BLOCK..(index + 1) * BLOCK], place, high, body);
        }
    }
}

/// Pair of bytes `place` in the `at`th run of 16 pairs.
fn put_pair(to: &mut [u8], at: usize, place: usize, bytes: &[u8]) {
    let start = (at * PANEL + place) * 2;
    to[start..start + 2].copy_from_slice(bytes);
}

/// The `f16`s of a K-quant block.
fn file_head(encoding: Encoding, source: &[u8]) -> &[u8] {
    match encoding {
        Encoding::Q4K | Encoding::Q5K => &source[..4],
        Encoding::Q6K => &source[208..210],
        Encoding::F32
        | Encoding::F16
        | Encoding::BF16
        | Encoding::Q8_0
        | Encoding::Q4_0
        | Encoding::Q4_1
        | Encoding::Q5_0
        | Encoding::Q5_1 => &[],
    }
}

fn put_scales(encoding: Encoding, source: &[u8], index: usize, place: usize, scales: &mut [u8]) {
    match encoding {
        Encoding::F32 | Encoding::F16 | Encoding::BF16 => {}
        Encoding::Q8_0 | Encoding::Q4_0 | Encoding::Q5_0 => put_pair(scales, 0, place, &source[..2]),
        Encoding::Q4_1 | Encoding::Q5_1 => {
            put_pair(scales, 0, place, &source[..2]);
            put_pair(scales, 1, place, &source[2..4]);
        }
        Encoding::Q4K | Encoding::Q5K => {
            let (scale, min) = crate::kernels::dequant::scale_min(&source[4..16], index);
            (scales[place], scales[PANEL + place]) = (scale, min);
        }
        Encoding::Q6K => {
            let halves = &source[192 + 2 * index..];
            (scales[place], scales[PANEL + place]) = (halves[0], halves[1]);
        }
    }
}

/// The integers of one block of the file, in order, as they are stored: unsigned, but for Q8_0.
fn file_integers(encoding: Encoding, source: &[u8], integers: &mut [u8]) {
    let nibbles = |nibbles: &[u8], run: usize, to: &mut [u8]| {
        for (to, from) in to.chunks_exact_mut(2 * run).zip(nibbles.chunks_exact(run)) {
            let (low, high) = to.split_at_mut(run);
            for ((low, high), &byte) in low.iter_mut().zip(high).zip(from) {
                (*low, *high) = (byte & 15, byte >> 4);
            }
        }
    };
    let fifth = |bits: &[u8], to: &mut [u8]| {
        for (i, to) in to.iter_mut().enumerate() {
            *to |= (bits[i / 8] >> (i % 8) & 1) << 4;
        }
    };
    match encoding {
        Encoding::F32 | Encoding::F16 | Encoding::BF16 => {}
        Encoding::Q8_0 => integers.copy_from_slice(&source[2..]),
        Encoding::Q4_0 => nibbles(&source[2..], 16, integers),
        Encoding::Q4_1 => nibbles(&source[4..], 16, integers),
        Encoding::Q5_0 => {
            nibbles(&source[6..], 16, integers);
            fifth(&source[2..6], integers);
        }
        Encoding::Q5_1 => {
            nibbles(&source[8..], 16, integers);
            fifth(&source[4..8], integers);
        }
        Encoding::Q4K => nibbles(&source[16..], 32, integers),
        Encoding::Q5K => {
            nibbles(&source[48..], 32, integers);
            for (j, block) in integers.chunks_exact_mut(BLOCK).enumerate() {
                for (to, &bits) in block.iter_mut().zip(&source[16..48]) {
                    *to |= (bits >> j & 1) << 4;
                }
            }
        }
        Encoding::Q6K => {
            nibbles(&source[..128], 64, integers);
            for (j, block) in integers.chunks_exact_mut(BLOCK).enumerate() {
                for (to, &bits) in block.iter_mut().zip(&source[128 + j / 4 * 32..]) {
                    *to |= (bits >> (2 * (j % 4)) & 3) << 4;
                }
            }
        }
    }
}

fn put_integers(encoding: Encoding, integers: &[u8], place: usize, high: &mut [u8], body: &mut [u8]) {
    for (group, four) in integers.chunks_exact(4).enumerate() {
        let four = u32::from_le_bytes([four[0], four[1], four[2], four[3]]);
        if encoding == Encoding::Q8_0 {
            or(body, group * PANEL + place, four);
            continue;
        }
        let shift = 4 * (place / 8) as u32;
        or(body, group * 8 + place % 8, (four & 0x0f0f_0f0f) << shift);
        let above = four >> 4;
        match high.len() / (4 * PANEL) {
            0 => {}
            1 => or(high, place, (above & 0x0101_0101) << group),
            _ => or(high, group / 4 * PANEL + place, (above & 0x0303_0303) << (2 * (group % 4))),
        }
    }
}

fn or(words: &mut [u8], at: usize, bits: u32) {
    for (byte, bits) in words[4 * at..4 * at + 4].iter_mut().zip(bits.to_le_bytes()) {
        *byte |= bits;
    }
}

fn word(words: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([words[4 * at], words[4 * at + 1], words[4 * at + 2], words[4 * at + 3]])
}

/// 32 weights of one output, read plainly: a weight is `scale · integer + min`, rounded after each of the two.
pub(in crate::kernels) struct Stretch {
    pub integers: [i8; BLOCK],
    /// Of the first and the last 16 inputs: they differ in Q6_K only.
    pub scales: [f32; 2],
    /// -0.0 where there is none, which no sum feels.
    pub min: f32,
}

impl Stretch {
    /// Block `index` of the output at `place` in a quantized panel.
    pub fn read(encoding: Encoding, layout: &Layout, panel: &[u8], index: usize, place: usize) -> Self {
        let unit = &panel[index / layout.blocks * layout.unit()..][..layout.unit()];
        let (head, blocks) = unit.split_at(layout.head);
        let (scales, rest) = blocks[index % layout.blocks * layout.block()..][..layout.block()].split_at(layout.scales);
        let (high, body) = rest.split_at(layout.high);
        let (scales, min) = read_scales(encoding, head, scales, place);
        let mut integers = [0; BLOCK];
        for (group, four) in integers.chunks_exact_mut(4).enumerate() {
            let stored = read_group(encoding, high, body, group, place).to_le_bytes();
            four.iter_mut().zip(stored).for_each(|(to, from)| *to = from as i8 - offset(encoding));
        }
        Self { integers, scales, min }
    }

    /// The weight of input `i`.
    pub fn value(&self, i: usize) -> f32 {
        self.scales[i / 16] * f32::from(self.integers[i]) + self.min
    }
}

fn read_scales(encoding: Encoding, head: &[u8], scales: &[u8], place: usize) -> ([f32; 2], f32) {
    let half = |from: &[u8], at: usize| {
        let start = (at * PANEL + place) * 2;
        f16::from_le_bytes([from[start], from[start + 1]]).to_f32()
    };
    let byte = |at: usize| scales[at * PANEL + place];
    match encoding {
        Encoding::F32 | Encoding::F16 | Encoding::BF16 => ([1.0; 2], -0.0),
        Encoding::Q8_0 | Encoding::Q4_0 | Encoding::Q5_0 => ([half(scales, 0); 2], -0.0),
        Encoding::Q4_1 | Encoding::Q5_1 => ([half(scales, 0); 2], half(scales, 1)),
        Encoding::Q4K | Encoding::Q5K => {
            ([half(head, 0) * f32::from(byte(0)); 2], -(half(head, 1) * f32::from(byte(1))))
        }
        Encoding::Q6K => ([byte(0), byte(1)].map(|scale| half(head, 0) * f32::from(scale as i8)), -0.0),
    }
}

fn read_group(encoding: Encoding, high: &[u8], body: &[u8], group: usize, place: usize) -> u32 {
    if encoding == Encoding::Q8_0 {
        return word(body, group * PANEL + place);
    }
    let low = word(body, group * 8 + place % 8) >> (4 * (place / 8)) & 0x0f0f_0f0f;
    let above = match high.len() / (4 * PANEL) {
        0 => 0,
        1 => word(high, place) >> group & 0x0101_0101,
        _ => word(high, group / 4 * PANEL + place) >> (2 * (group % 4)) & 0x0303_0303,
    };
    low | above << 4
}

/// What is stored is so much more than what is meant.
fn offset(encoding: Encoding) -> i8 {
    match encoding {
        Encoding::Q4_0 => 8,
        Encoding::Q5_0 => 16,
        Encoding::Q6K => 32,
        Encoding::F32
        | Encoding::F16
        | Encoding::BF16
        | Encoding::Q8_0
        | Encoding::Q4_1
        | Encoding::Q5_1
        | Encoding::Q4K
        | Encoding::Q5K => 0,
    }
}
