//! Panels of weights times `f32` rows.

use std::arch::x86_64::*;

use super::{
    CHUNK_BYTES, Fetch,
    formats::{Format, GROUPS, K, Q4, Q5, Q6K, Q8_0},
    share,
};
use crate::kernels::{
    dequant::Encoding,
    pack::{BLOCK, PANEL, Packed},
};

/// Rows in a register tile: with two registers each they leave room for a pair of weights and a broadcast.
const ROWS: usize = 6;

/// Inputs that are decoded at a time: a unit of K-quants, and little enough to stay in the nearest cache.
const CHUNK: usize = 256;

/// Rows from which on it pays to decode 16-bit floats once for all of them.
const MANY: usize = 4 * ROWS;

/// [`crate::kernels::matmul::panel_f32`].
///
/// # Safety
/// The machine has AVX2, FMA and F16C; `x` is `[rows, inputs]` and `tile` `[rows, PANEL]`.
pub unsafe fn panel(weights: &Packed, panel: usize, x: &[f32], tile: &mut [f32]) {
    let (bytes, inputs) = (weights.panel(panel), weights.inputs());
    tile.fill(0.0);
    // SAFETY: as demanded of the caller; each format is the encoding's own.
    unsafe {
        match weights.encoding() {
            Encoding::F32 => direct::<Single>(bytes, x, inputs, tile),
            Encoding::F16 => halves::<Half>(bytes, x, inputs, tile),
            Encoding::BF16 => halves::<Brain>(bytes, x, inputs, tile),
            Encoding::Q8_0 => decoded::<Q8_0>(bytes, x, inputs, tile),
            Encoding::Q4_0 => decoded::<Q4<false>>(bytes, x, inputs, tile),
            Encoding::Q4_1 => decoded::<Q4<true>>(bytes, x, inputs, tile),
            Encoding::Q5_0 => decoded::<Q5<false>>(bytes, x, inputs, tile),
            Encoding::Q5_1 => decoded::<Q5<true>>(bytes, x, inputs, tile),
            Encoding::Q4K => decoded::<K<false>>(bytes, x, inputs, tile),
            Encoding::Q5K => decoded::<K<true>>(bytes, x, inputs, tile),
            Encoding::Q6K => decoded::<Q6K>(bytes, x, inputs, tile),
        }
    }
}

/// How a float encoding is read.
trait Float {
    const BYTES: usize;

    /// 8 weights of an input.
    ///
    /// # Safety
    /// They are there; the machine has AVX2 and F16C.
    unsafe fn eight(at: *const u8) -> __m256;
}

struct Single;
struct Half;
struct Brain;

impl Float for Single {
    const BYTES: usize = 4;

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn eight(at: *const u8) -> __m256 {
        // SAFETY: as the trait demands.
        unsafe { _mm256_loadu_ps(at.cast()) }
    }
}

impl Float for Half {
    const BYTES: usize = 2;

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn eight(at: *const u8) -> __m256 {
        // SAFETY: as the trait demands.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(at.cast())) }
    }
}

impl Float for Brain {
    const BYTES: usize = 2;

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn eight(at: *const u8) -> __m256 {
        // SAFETY: as the trait demands.
        unsafe {
            let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(at.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
        }
    }
}

/// Floats as they are stored.
///
/// # Safety
/// As of [`panel`]; `bytes` are `[inputs, PANEL]` weights.
unsafe fn direct<W: Float>(bytes: &[u8], x: &[f32], inputs: usize, tile: &mut [f32]) {
    let step = CHUNK_BYTES / (PANEL * W::BYTES);
    for (chunk, bytes) in bytes.chunks(CHUNK_BYTES).enumerate() {
        // SAFETY: as demanded of the caller.
        unsafe { all_rows::<W>(bytes, x, inputs, chunk * step, Some(CHUNK_BYTES), tile) };
    }
}

/// 16-bit floats: for many rows they are decoded once.
///
/// # Safety
/// As of [`panel`]; `bytes` are `[inputs, PANEL]` weights.
unsafe fn halves<W: Float>(bytes: &[u8], x: &[f32], inputs: usize, tile: &mut [f32]) {
    // SAFETY: as demanded of the caller; the decoder writes `PANEL` values for each input.
    unsafe {
        if tile.len() < MANY * PANEL {
            direct::<W>(bytes, x, inputs, tile);
        } else {
            by_chunks(bytes, CHUNK * PANEL * W::BYTES, x, inputs, tile, |bytes, to| widen::<W>(bytes, to));
        }
    }
}

/// Quantized weights, decoded once for all rows.
///
/// # Safety
/// As of [`panel`]; `bytes` are a panel of the format.
unsafe fn decoded<F: Format>(bytes: &[u8], x: &[f32], inputs: usize, tile: &mut [f32]) {
    let units = CHUNK / BLOCK / F::LAYOUT.blocks;
    // SAFETY: as demanded of the caller; the decoder writes what a unit holds.
    unsafe { by_chunks(bytes, units * F::LAYOUT.unit(), x, inputs, tile, |bytes, to| decode::<F>(bytes, to)) };
}

/// Decodes [`CHUNK`] inputs, which are `chunk_bytes`, multiplies them with all rows, and goes on to the next.
///
/// # Safety
/// As of [`panel`]; `decode` writes as many values as its bytes hold: `[inputs, PANEL]`.
unsafe fn by_chunks(
    bytes: &[u8],
    chunk_bytes: usize,
    x: &[f32],
    inputs: usize,
    tile: &mut [f32],
    decode: impl Fn(&[u8], *mut f32),
) {
    let mut weights = Chunk([0; CHUNK * PANEL * size_of::<f32>()]);
    for (chunk, bytes) in bytes.chunks(chunk_bytes).enumerate() {
        let first = chunk * CHUNK;
        let weights = &mut weights.0[..CHUNK.min(inputs - first) * PANEL * size_of::<f32>()];
        decode(bytes, weights.as_mut_ptr().cast());
        // SAFETY: as demanded of the caller.
        unsafe { all_rows::<Single>(weights, x, inputs, first, None, tile) };
    }
}

#[repr(align(64))]
struct Chunk([u8; CHUNK * PANEL * size_of::<f32>()]);

/// Writes 16-bit floats as `f32`.
///
/// # Safety
/// The machine has AVX2 and F16C; `to` has room.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn widen<W: Float>(bytes: &[u8], to: *mut f32) {
    Fetch { distance: CHUNK_BYTES, pass: 0, passes: 1 }.ahead(bytes.as_ptr(), bytes.len());
    for (i, eight) in bytes.chunks_exact(8 * W::BYTES).enumerate() {
        // SAFETY: as demanded of the caller.
        unsafe { _mm256_storeu_ps(to.add(8 * i), W::eight(eight.as_ptr())) };
    }
}

/// Adds the products of `bytes`, whose first input is `first`, with those inputs of all rows to `tile`; on the way, weights
/// that follow by the distance `ahead` are asked for.
///
/// # Safety
/// As of [`panel`]; `bytes` are `[inputs, PANEL]` weights, and the rows have as many inputs from `first` on.
unsafe fn all_rows<W: Float>(
    bytes: &[u8],
    x: &[f32],
    inputs: usize,
    first: usize,
    ahead: Option<usize>,
    tile: &mut [f32],
) {
    let passes = tile.len().div_ceil(PANEL * ROWS);
    share(tile.len() / PANEL, ROWS, |pass, row, count| {
        let rows = Rows { x: &x[row * inputs + first..(row + count) * inputs], inputs };
        let tile = &mut tile[row * PANEL..(row + count) * PANEL];
        let fetch = ahead.map_or(Fetch::NOTHING, |distance| Fetch { distance, pass, passes });
        // SAFETY: as demanded of the caller; the rows and `tile` are as many as the constant says.
        unsafe {
            match count {
                1 => some_rows::<W, 1>(bytes, rows, fetch, tile),
                2 => some_rows::<W, 2>(bytes, rows, fetch, tile),
                3 => some_rows::<W, 3>(bytes, rows, fetch, tile),
                4 => some_rows::<W, 4>(bytes, rows, fetch, tile),
                5 => some_rows::<W, 5>(bytes, rows, fetch, tile),
                _ => some_rows::<W, ROWS>(bytes, rows, fetch, tile),
            }
        }
    });
}

/// The rows of a register tile, from the chunk's first input on.
struct Rows<'a> {
    x: &'a [f32],
    /// From a row to the next.
    inputs: usize,
}

/// # Safety
/// As of [`all_rows`], for exactly `R` rows.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn some_rows<W: Float, const R: usize>(bytes: &[u8], rows: Rows<'_>, fetch: Fetch, tile: &mut [f32]) {
    let (mut x, tile) = (rows.x.as_ptr(), tile.as_mut_ptr());
    // SAFETY: offsets are of the `R` rows and of the inputs that both sides have.
    unsafe {
        let mut sums = [[_mm256_setzero_ps(); 2]; R];
        for (row, sums) in sums.iter_mut().enumerate() {
            *sums = [_mm256_loadu_ps(tile.add(row * PANEL)), _mm256_loadu_ps(tile.add(row * PANEL + 8))];
        }
        for block in bytes.chunks(BLOCK * PANEL * W::BYTES) {
            fetch.ahead(block.as_ptr(), block.len());
            for weights in block.chunks_exact(PANEL * W::BYTES) {
                let weights = [W::eight(weights.as_ptr()), W::eight(weights.as_ptr().add(8 * W::BYTES))];
                for (row, sums) in sums.iter_mut().enumerate() {
                    let x = _mm256_set1_ps(*x.add(row * rows.inputs));
                    sums[0] = _mm256_fmadd_ps(weights[0], x, sums[0]);
                    sums[1] = _mm256_fmadd_ps(weights[1], x, sums[1]);
                }
                x = x.add(1);
            }
        }
        for (row, sums) in sums.iter().enumerate() {
            _mm256_storeu_ps(tile.add(row * PANEL), sums[0]);
            _mm256_storeu_ps(tile.add(row * PANEL + 8), sums[1]);
        }
    }
}

/// Writes whole units as `[inputs, PANEL]` numbers, rounded as [`crate::kernels::dequant::decode`] rounds them.
///
/// # Safety
/// The machine has AVX2 and F16C; `to` has room.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn decode<F: Format>(units: &[u8], mut to: *mut f32) {
    let fetch = Fetch { distance: CHUNK_BYTES, pass: 0, passes: 1 };
    // SAFETY: offsets are of parts that the layout has; `to` moves on by the 4 inputs that a group writes.
    unsafe {
        for unit in units.chunks_exact(F::LAYOUT.unit()) {
            let head = F::head(unit.as_ptr());
            for block in 0..F::LAYOUT.blocks {
                let block = unit.as_ptr().add(F::LAYOUT.head + block * F::LAYOUT.block());
                let mins = F::mins(head, block);
                fetch.ahead(block, F::LAYOUT.block());
                for group in 0..GROUPS {
                    let scales = F::whole_scales(head, block, group / (GROUPS / 2));
                    let integers = F::integers(block, group);
                    for half in 0..2 {
                        let (at, four) =
                            (to.add(8 * half), _mm256_sub_epi8(integers[half], _mm256_set1_epi8(F::OFFSET)));
                        let inputs = [
                            _mm256_slli_epi32::<24>(four),
                            _mm256_slli_epi32::<16>(four),
                            _mm256_slli_epi32::<8>(four),
                            four,
                        ];
                        for (i, input) in inputs.into_iter().enumerate() {
                            let integer = _mm256_cvtepi32_ps(_mm256_srai_epi32::<24>(input));
                            let mut value = _mm256_mul_ps(scales[half], integer);
                            if F::MINS {
                                value = _mm256_add_ps(value, mins[half]);
                            }
                            _mm256_storeu_ps(at.add(PANEL * i), value);
                        }
                    }
                    to = to.add(4 * PANEL);
                }
            }
        }
    }
}
