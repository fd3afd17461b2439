//! Panels of weights times `f32` rows.
//!
//! A row's sum is made of the sums of its stretches, each from zero in order of input, added in order. So with few rows several
//! stretches can be on their way at once, where one sum alone would wait for itself, and the result is the same.

use std::{arch::x86_64::*, mem::MaybeUninit};

use super::{
    super::{CHUNK_BYTES, formats::GROUPS, share},
    Fetch,
    formats::{Format, K, Q4, Q5, Q6K, Q8_0},
};
use crate::kernels::{
    dequant::Encoding,
    pack::{BLOCK, PANEL, Packed},
};

/// Rows in a register tile.
const ROWS: usize = 12;

/// Inputs that are summed from zero.
const STRETCH: usize = 64;

/// Inputs that are decoded at a time: a unit of K-quants, and little enough to stay in the nearest cache.
const CHUNK: usize = 256;

/// [`crate::kernels::matmul::panel_f32`].
///
/// # Safety
/// The machine has AVX-512 F, BW, DQ, VL and VNNI; `x` is `[rows, inputs]` and `tile` `[rows, PANEL]`.
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

    /// The 16 weights of an input.
    ///
    /// # Safety
    /// They are there; the machine has AVX-512 F.
    unsafe fn sixteen(at: *const u8) -> __m512;
}

struct Single;
struct Half;
struct Brain;

impl Float for Single {
    const BYTES: usize = 4;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn sixteen(at: *const u8) -> __m512 {
        // SAFETY: as the trait demands.
        unsafe { _mm512_loadu_ps(at.cast()) }
    }
}

impl Float for Half {
    const BYTES: usize = 2;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn sixteen(at: *const u8) -> __m512 {
        // SAFETY: as the trait demands.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(at.cast())) }
    }
}

impl Float for Brain {
    const BYTES: usize = 2;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn sixteen(at: *const u8) -> __m512 {
        // SAFETY: as the trait demands.
        let wide = unsafe { _mm512_cvtepu16_epi32(_mm256_loadu_si256(at.cast())) };
        _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
    }
}

/// Floats as they are stored.
///
/// # Safety
/// As of [`panel`]; `bytes` are `[inputs, PANEL]` weights.
unsafe fn direct<W: Float>(bytes: &[u8], x: &[f32], inputs: usize, tile: &mut [f32]) {
    // Whole groups of the stretches that are on their way together.
    let chunk = CHUNK_BYTES.max(4 * STRETCH * PANEL * W::BYTES);
    for (index, bytes) in bytes.chunks(chunk).enumerate() {
        // SAFETY: as demanded of the caller.
        unsafe { all_rows::<W>(bytes, x, inputs, index * chunk / (PANEL * W::BYTES), Fetch::AHEAD, tile) };
    }
}

/// 16-bit floats: for more rows than one tile they are decoded once.
///
/// # Safety
/// As of [`panel`]; `bytes` are `[inputs, PANEL]` weights.
unsafe fn halves<W: Float>(bytes: &[u8], x: &[f32], inputs: usize, tile: &mut [f32]) {
    // SAFETY: as demanded of the caller; the decoder writes `PANEL` values for each input.
    unsafe {
        if tile.len() <= ROWS * PANEL {
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
    let mut room = Room(MaybeUninit::uninit());
    for (chunk, bytes) in bytes.chunks(chunk_bytes).enumerate() {
        let first = chunk * CHUNK;
        decode(bytes, room.0.as_mut_ptr().cast());
        // SAFETY: as demanded of the caller; what is read has been written.
        unsafe {
            let len = CHUNK.min(inputs - first) * PANEL * size_of::<f32>();
            let weights = std::slice::from_raw_parts(room.0.as_ptr().cast(), len);
            all_rows::<Single>(weights, x, inputs, first, Fetch::NOTHING, tile);
        }
    }
}

#[repr(align(64))]
struct Room(MaybeUninit<[f32; CHUNK * PANEL]>);

/// Writes 16-bit floats as `f32`.
///
/// # Safety
/// The machine has AVX-512 F; `to` has room.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn widen<W: Float>(bytes: &[u8], to: *mut f32) {
    Fetch::AHEAD.of(bytes.as_ptr(), bytes.len());
    for (i, sixteen) in bytes.chunks_exact(PANEL * W::BYTES).enumerate() {
        // SAFETY: as demanded of the caller.
        unsafe { _mm512_storeu_ps(to.add(PANEL * i), W::sixteen(sixteen.as_ptr())) };
    }
}

/// Adds the products of `bytes`, whose first input is `first`, with those inputs of all rows to `tile`; on the way, weights
/// that follow are asked for.
///
/// # Safety
/// As of [`panel`]; `bytes` are `[inputs, PANEL]` weights, from a whole number of stretches on, and the rows have as many inputs
/// from `first` on.
unsafe fn all_rows<W: Float>(bytes: &[u8], x: &[f32], inputs: usize, first: usize, fetch: Fetch, tile: &mut [f32]) {
    share(tile.len() / PANEL, ROWS, |pass, row, count| {
        let fetch = if pass == 0 { fetch } else { Fetch::NOTHING };
        let rows = Rows { x: &x[row * inputs + first..(row + count) * inputs], inputs };
        let tile = &mut tile[row * PANEL..(row + count) * PANEL];
        // SAFETY: as demanded of the caller; the rows and `tile` are as many as the constant says.
        unsafe {
            match count {
                1 => some_rows::<W, 1, 4>(bytes, rows, fetch, tile),
                2 => some_rows::<W, 2, 4>(bytes, rows, fetch, tile),
                3 => some_rows::<W, 3, 4>(bytes, rows, fetch, tile),
                4 => some_rows::<W, 4, 2>(bytes, rows, fetch, tile),
                5 => some_rows::<W, 5, 2>(bytes, rows, fetch, tile),
                6 => some_rows::<W, 6, 2>(bytes, rows, fetch, tile),
                7 => some_rows::<W, 7, 2>(bytes, rows, fetch, tile),
                8 => some_rows::<W, 8, 1>(bytes, rows, fetch, tile),
                9 => some_rows::<W, 9, 1>(bytes, rows, fetch, tile),
                10 => some_rows::<W, 10, 1>(bytes, rows, fetch, tile),
                11 => some_rows::<W, 11, 1>(bytes, rows, fetch, tile),
                _ => some_rows::<W, ROWS, 1>(bytes, rows, fetch, tile),
            }
        }
    });
}

/// The rows of a register tile, from the chunk's first input on.
#[derive(Clone, Copy)]
struct Rows<'a> {
    x: &'a [f32],
    /// From a row to the next.
    inputs: usize,
}

/// `S` stretches at once.
///
/// # Safety
/// As of [`all_rows`], for exactly `R` rows.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn some_rows<W: Float, const R: usize, const S: usize>(
    bytes: &[u8],
    rows: Rows<'_>,
    fetch: Fetch,
    tile: &mut [f32],
) {
    let mut x = rows.x.as_ptr();
    let stretch = STRETCH * PANEL * W::BYTES;
    for group in bytes.chunks(S * stretch) {
        // SAFETY: as demanded of the caller: the rows have the inputs of all stretches, of which `x` is the first.
        unsafe {
            if group.len() == S * stretch {
                stretches::<W, R, S>(group, x, rows.inputs, fetch, tile);
            } else {
                for (i, one) in group.chunks(stretch).enumerate() {
                    stretches::<W, R, 1>(one, x.add(i * STRETCH), rows.inputs, fetch, tile);
                }
            }
            x = x.add(group.len() / (PANEL * W::BYTES));
        }
    }
}

/// Adds the sums of `S` stretches, equally long, to `tile`.
///
/// # Safety
/// As of [`all_rows`], for exactly `R` rows, of which the first stretch begins at `x`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn stretches<W: Float, const R: usize, const S: usize>(
    bytes: &[u8],
    x: *const f32,
    stride: usize,
    fetch: Fetch,
    tile: &mut [f32],
) {
    /// Inputs between two looks ahead.
    const STEP: usize = 16;
    let (inputs, length) = (bytes.len() / (S * PANEL * W::BYTES), bytes.len() / S);
    let mut sums = [[_mm512_setzero_ps(); R]; S];
    // SAFETY: offsets are of the `R` rows and of the inputs that both sides have.
    unsafe {
        for step in (0..inputs).step_by(STEP) {
            let count = STEP.min(inputs - step);
            let at = bytes.as_ptr().add(step * PANEL * W::BYTES);
            for part in 0..S {
                fetch.of(at.add(part * length), count * PANEL * W::BYTES);
            }
            for input in 0..count {
                for (part, sums) in sums.iter_mut().enumerate() {
                    let weights = W::sixteen(at.add(part * length + input * PANEL * W::BYTES));
                    for (row, sum) in sums.iter_mut().enumerate() {
                        let x = _mm512_set1_ps(*x.add(row * stride + part * STRETCH + step + input));
                        *sum = _mm512_fmadd_ps(weights, x, *sum);
                    }
                }
            }
        }
    }
    for (row, tile) in tile.chunks_exact_mut(PANEL).enumerate() {
        // SAFETY: 16 floats are read and written where 16 are.
        unsafe {
            let mut total = _mm512_loadu_ps(tile.as_ptr());
            for sums in &sums {
                total = _mm512_add_ps(total, sums[row]);
            }
            _mm512_storeu_ps(tile.as_mut_ptr(), total);
        }
    }
}

/// Writes whole units as `[inputs, PANEL]` numbers, rounded as [`crate::kernels::dequant::decode`] rounds them.
///
/// # Safety
/// The machine has AVX-512 F, BW, DQ, VL and VNNI; `to` has room.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn decode<F: Format>(units: &[u8], mut to: *mut f32) {
    // SAFETY: offsets are of parts that the layout has; `to` moves on by the 4 inputs that a group writes.
    unsafe {
        for unit in units.chunks_exact(F::LAYOUT.unit()) {
            let head = F::head(unit.as_ptr());
            for block in 0..F::LAYOUT.blocks {
                let block = unit.as_ptr().add(F::LAYOUT.head + block * F::LAYOUT.block());
                Fetch::AHEAD.of(block, F::LAYOUT.block());
                let (scales, mins) = (F::scales(head, block), F::mins(head, block));
                for group in 0..GROUPS {
                    let scales = match F::HALVES {
                        true => _mm512_mul_ps(scales, F::half_scales(block, group / (GROUPS / 2))),
                        false => scales,
                    };
                    let four = _mm512_sub_epi8(F::integers(block, group), _mm512_set1_epi8(F::OFFSET as i8));
                    let inputs = [
                        _mm512_slli_epi32::<24>(four),
                        _mm512_slli_epi32::<16>(four),
                        _mm512_slli_epi32::<8>(four),
                        four,
                    ];
                    for (i, input) in inputs.into_iter().enumerate() {
                        let integer = _mm512_cvtepi32_ps(_mm512_srai_epi32::<24>(input));
                        let mut value = _mm512_mul_ps(scales, integer);
                        if F::MINS {
                            value = _mm512_add_ps(value, mins);
                        }
                        _mm512_storeu_ps(to.add(PANEL * i), value);
                    }
                    to = to.add(4 * PANEL);
                }
            }
        }
    }
}
