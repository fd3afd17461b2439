//! Stored weights to `f32`: the plain float formats and ggml's block formats.
//!
//! Layouts and formulas: ggml's `ggml-common.h` (blocks) and `ggml-quants.c` (`dequantize_row_*`).

use half::{bf16, f16};

/// How a file stores numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Encoding {
    F32,
    F16,
    BF16,
    Q8_0,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q4K,
    Q5K,
    Q6K,
}

impl Encoding {
    /// Values in one block; a row is a whole number of blocks.
    pub const fn block_values(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::BF16 => 1,
            Self::Q8_0 | Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 => 32,
            Self::Q4K | Self::Q5K | Self::Q6K => 256,
        }
    }

    /// Bytes of one block.
    pub const fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::Q8_0 => 34,
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q4K => 144,
            Self::Q5K => 176,
            Self::Q6K => 210,
        }
    }

    /// Bytes that `values` take, if they are whole blocks and the count is no absurdity.
    pub fn bytes_for(self, values: usize) -> Option<usize> {
        values.is_multiple_of(self.block_values()).then_some(())?;
        (values / self.block_values()).checked_mul(self.block_bytes())
    }

    /// The name that GGUF tools show.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::BF16 => "BF16",
            Self::Q8_0 => "Q8_0",
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q4K => "Q4_K",
            Self::Q5K => "Q5_K",
            Self::Q6K => "Q6_K",
        }
    }
}

/// Decodes `bytes` into `out`.
///
/// # Panics
/// If `bytes` is not exactly what `out.len()` values take ([`Encoding::bytes_for`]).
pub fn decode(encoding: Encoding, bytes: &[u8], out: &mut [f32]) {
    assert_eq!(encoding.bytes_for(out.len()), Some(bytes.len()), "{} bytes for {} values", encoding.name(), out.len());
    let blocks = bytes.chunks_exact(encoding.block_bytes());
    let outs = out.chunks_exact_mut(encoding.block_values());
    match encoding {
        Encoding::F32 => blocks.zip(outs).for_each(|(b, y)| y[0] = f32::from_le_bytes([b[0], b[1], b[2], b[3]])),
        Encoding::F16 => blocks.zip(outs).for_each(|(b, y)| y[0] = half_at(b, 0)),
        Encoding::BF16 => blocks.zip(outs).for_each(|(b, y)| y[0] = bf16::from_le_bytes([b[0], b[1]]).to_f32()),
        Encoding::Q8_0 => blocks.zip(outs).for_each(|(b, y)| q8_0(b, y)),
        Encoding::Q4_0 => blocks.zip(outs).for_each(|(b, y)| q4_0(b, y)),
        Encoding::Q4_1 => blocks.zip(outs).for_each(|(b, y)| q4_1(b, y)),
        Encoding::Q5_0 => blocks.zip(outs).for_each(|(b, y)| q5_0(b, y)),
        Encoding::Q5_1 => blocks.zip(outs).for_each(|(b, y)| q5_1(b, y)),
        Encoding::Q4K => blocks.zip(outs).for_each(|(b, y)| q4_k(b, y)),
        Encoding::Q5K => blocks.zip(outs).for_each(|(b, y)| q5_k(b, y)),
        Encoding::Q6K => blocks.zip(outs).for_each(|(b, y)| q6_k(b, y)),
    }
}

fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// scale f16, 32 × i8
fn q8_0(block: &[u8], y: &mut [f32]) {
    let scale = half_at(block, 0);
    for (y, &q) in y.iter_mut().zip(&block[2..]) {
        *y = f32::from(q as i8) * scale;
    }
}

/// scale f16, 16 bytes: low nibbles are values 0–15, high ones 16–31, offset 8
fn q4_0(block: &[u8], y: &mut [f32]) {
    let scale = half_at(block, 0);
    for (i, &q) in block[2..].iter().enumerate() {
        y[i] = f32::from((q & 15) as i8 - 8) * scale;
        y[i + 16] = f32::from((q >> 4) as i8 - 8) * scale;
    }
}

/// scale f16, min f16, 16 bytes of nibbles as in Q4_0
fn q4_1(block: &[u8], y: &mut [f32]) {
    let (scale, min) = (half_at(block, 0), half_at(block, 2));
    for (i, &q) in block[4..].iter().enumerate() {
        y[i] = f32::from(q & 15) * scale + min;
        y[i + 16] = f32::from(q >> 4) * scale + min;
    }
}

/// The 32 five-bit numbers of a Q5 block: fifth bits in a little-endian `u32`, then 16 bytes of nibbles.
fn five_bits(bytes: &[u8]) -> impl Iterator<Item = (usize, u8)> + '_ {
    let high = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    bytes[4..].iter().enumerate().flat_map(move |(i, &q)| {
        let fifth = |at: usize| ((high >> at & 1) as u8) << 4;
        [(i, q & 15 | fifth(i)), (i + 16, q >> 4 | fifth(i + 16))]
    })
}

/// scale f16, fifth bits, nibbles, offset 16
fn q5_0(block: &[u8], y: &mut [f32]) {
    let scale = half_at(block, 0);
    five_bits(&block[2..]).for_each(|(i, q)| y[i] = f32::from(q as i8 - 16) * scale);
}

/// scale f16, min f16, fifth bits, nibbles
fn q5_1(block: &[u8], y: &mut [f32]) {
    let (scale, min) = (half_at(block, 0), half_at(block, 2));
    five_bits(&block[4..]).for_each(|(i, q)| y[i] = f32::from(q) * scale + min);
}

/// The six-bit scale and min of sub-block `j` of 8, packed into 12 bytes.
pub(super) fn scale_min(packed: &[u8], j: usize) -> (u8, u8) {
    if j < 4 {
        (packed[j] & 63, packed[j + 4] & 63)
    } else {
        (packed[j + 4] & 15 | (packed[j - 4] >> 6) << 4, packed[j + 4] >> 4 | (packed[j] >> 6) << 4)
    }
}

fn scale_min_f32(packed: &[u8], j: usize) -> (f32, f32) {
    let (scale, min) = scale_min(packed, j);
    (f32::from(scale), f32::from(min))
}

/// scale f16, min scale f16, 12 bytes of scales and mins, 128 bytes: each 32 hold 64 values, low nibbles first
fn q4_k(block: &[u8], y: &mut [f32]) {
    let (scale, min_scale) = (half_at(block, 0), half_at(block, 2));
    let (scales, nibbles) = (&block[4..16], &block[16..]);
    for (j, (y, q)) in y.chunks_exact_mut(64).zip(nibbles.chunks_exact(32)).enumerate() {
        let (s0, m0) = scale_min_f32(scales, 2 * j);
        let (s1, m1) = scale_min_f32(scales, 2 * j + 1);
        let (s0, m0, s1, m1) = (scale * s0, min_scale * m0, scale * s1, min_scale * m1);
        for (i, &q) in q.iter().enumerate() {
            y[i] = s0 * f32::from(q & 15) - m0;
            y[i + 32] = s1 * f32::from(q >> 4) - m1;
        }
    }
}

/// As Q4_K, with 32 bytes of fifth bits before the nibbles: bit `2j` and `2j + 1` of byte `i` belong to chunk `j`
fn q5_k(block: &[u8], y: &mut [f32]) {
    let (scale, min_scale) = (half_at(block, 0), half_at(block, 2));
    let (scales, high, nibbles) = (&block[4..16], &block[16..48], &block[48..]);
    for (j, (y, q)) in y.chunks_exact_mut(64).zip(nibbles.chunks_exact(32)).enumerate() {
        let (s0, m0) = scale_min_f32(scales, 2 * j);
        let (s1, m1) = scale_min_f32(scales, 2 * j + 1);
        let (s0, m0, s1, m1) = (scale * s0, min_scale * m0, scale * s1, min_scale * m1);
        for (i, (&q, &high)) in q.iter().zip(high).enumerate() {
            y[i] = s0 * f32::from(q & 15 | (high >> (2 * j) & 1) << 4) - m0;
            y[i + 32] = s1 * f32::from(q >> 4 | (high >> (2 * j + 1) & 1) << 4) - m1;
        }
    }
}

/// 128 bytes of low nibbles, 64 of high bit pairs, 16 scales i8, scale f16; offset 32
fn q6_k(block: &[u8], y: &mut [f32]) {
    let (low, high, scales) = (&block[..128], &block[128..192], &block[192..208]);
    let scale = half_at(block, 208);
    let halves = low.chunks_exact(64).zip(high.chunks_exact(32)).zip(scales.chunks_exact(8));
    for (y, ((low, high), scales)) in y.chunks_exact_mut(128).zip(halves) {
        for i in 0..32 {
            let quarter = |part: usize, nibble: u8| {
                let six = (nibble | (high[i] >> (2 * part) & 3) << 4) as i8 - 32;
                scale * f32::from(scales[2 * part + i / 16] as i8) * f32::from(six)
            };
            y[i] = quarter(0, low[i] & 15);
            y[i + 32] = quarter(1, low[i + 32] & 15);
            y[i + 64] = quarter(2, low[i] >> 4);
            y[i + 96] = quarter(3, low[i + 32] >> 4);
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{
        Device, Tensor,
        quantized::{GgmlDType, QTensor},
    };

    use super::*;

    fn noise(len: usize) -> Vec<f32> {
        let mut state = 7u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..len).map(|i| next() * (1.0 + (i / 32) as f32)).collect()
    }

    #[test]
    fn every_block_format_decodes_as_candle_does() {
        for (encoding, theirs) in [
            (Encoding::F32, GgmlDType::F32),
            (Encoding::F16, GgmlDType::F16),
            (Encoding::BF16, GgmlDType::BF16),
            (Encoding::Q8_0, GgmlDType::Q8_0),
            (Encoding::Q4_0, GgmlDType::Q4_0),
            (Encoding::Q4_1, GgmlDType::Q4_1),
            (Encoding::Q5_0, GgmlDType::Q5_0),
            (Encoding::Q5_1, GgmlDType::Q5_1),
            (Encoding::Q4K, GgmlDType::Q4K),
            (Encoding::Q5K, GgmlDType::Q5K),
            (Encoding::Q6K, GgmlDType::Q6K),
        ] {
            let values = Tensor::from_vec(noise(1024), (4, 256), &Device::Cpu).unwrap();
            let stored = QTensor::quantize(&values, theirs).unwrap();
            let expected: Vec<f32> = stored.dequantize(&Device::Cpu).unwrap().flatten_all().unwrap().to_vec1().unwrap();
            let mut ours = vec![0.0; 1024];
            decode(encoding, &stored.data().unwrap(), &mut ours);
            for (i, (ours, expected)) in ours.iter().zip(&expected).enumerate() {
                let close = (ours - expected).abs() <= 1e-6 * expected.abs().max(1.0);
                assert!(close, "{} value {i}: {ours} but candle has {expected}", encoding.name());
            }
        }
    }

    #[test]
    fn sizes_that_are_not_whole_blocks_or_overflow_are_refused() {
        assert_eq!(Encoding::Q4K.bytes_for(512), Some(288));
        assert_eq!(Encoding::Q4K.bytes_for(100), None);
        assert_eq!(Encoding::F32.bytes_for(usize::MAX), None);
    }
}
