//! Panels of quantized weights times int8 rows.

use std::arch::x86_64::*;

use super::{
    CHUNK_BYTES, Fetch,
    formats::{Format, GROUPS, K, Q4, Q5, Q6K, Q8_0},
    share,
};
use crate::kernels::{
    dequant::Encoding,
    pack::{BLOCK, PANEL, Packed},
    quantize::{BlockSum, QuantizedRows},
};

/// [`crate::kernels::matmul::panel_int8`].
///
/// # Safety
/// The machine has AVX2, FMA and F16C; `x` has the weights' inputs, in slices that agree, and `tile` its rows.
pub unsafe fn panel(weights: &Packed, panel: usize, x: &QuantizedRows<'_>, tile: &mut [f32]) {
    let bytes = weights.panel(panel);
    // SAFETY: as demanded of the caller; each format is the encoding's own.
    unsafe {
        match weights.encoding() {
            Encoding::Q8_0 => all_rows::<Q8_0>(bytes, x, tile),
            Encoding::Q4_0 => all_rows::<Q4<false>>(bytes, x, tile),
            Encoding::Q4_1 => all_rows::<Q4<true>>(bytes, x, tile),
            Encoding::Q5_0 => all_rows::<Q5<false>>(bytes, x, tile),
            Encoding::Q5_1 => all_rows::<Q5<true>>(bytes, x, tile),
            Encoding::Q4K => all_rows::<K<false>>(bytes, x, tile),
            Encoding::Q5K => all_rows::<K<true>>(bytes, x, tile),
            Encoding::Q6K => all_rows::<Q6K>(bytes, x, tile),
            Encoding::F32 | Encoding::F16 | Encoding::BF16 => {}
        }
    }
}

/// # Safety
/// As of [`panel`]; `bytes` are a panel of the format.
unsafe fn all_rows<F: Format>(bytes: &[u8], x: &QuantizedRows<'_>, tile: &mut [f32]) {
    let (rows, units) = (tile.len() / PANEL, (CHUNK_BYTES / F::LAYOUT.unit()).max(1));
    let (blocks, distance) = (x.inputs / BLOCK, units * F::LAYOUT.unit());
    tile.fill(0.0);
    for (chunk, bytes) in bytes.chunks(distance).enumerate() {
        let first_block = chunk * units * F::LAYOUT.blocks;
        share(rows, F::ROWS, |pass, first, count| {
            let rows = Rows {
                q: &x.q[first * x.inputs..(first + count) * x.inputs],
                scales: &x.scales[first * blocks..(first + count) * blocks],
                sums: &x.sums[first * blocks..(first + count) * blocks],
                blocks,
                first_block,
            };
            let fetch = Fetch { distance, pass, passes: tile.len().div_ceil(PANEL * F::ROWS) };
            let tile = &mut tile[first * PANEL..(first + count) * PANEL];
            // SAFETY: as demanded of the caller; the rows and `tile` are as many as the constant says.
            unsafe {
                match count {
                    1 => some_rows::<F, 1>(bytes, rows, fetch, tile),
                    2 => some_rows::<F, 2>(bytes, rows, fetch, tile),
                    3 => some_rows::<F, 3>(bytes, rows, fetch, tile),
                    _ => some_rows::<F, 4>(bytes, rows, fetch, tile),
                }
            }
        });
    }
}

/// The rows of a register tile.
struct Rows<'a> {
    q: &'a [i8],
    scales: &'a [f32],
    sums: &'a [BlockSum],
    /// In a row.
    blocks: usize,
    /// Where the chunk begins.
    first_block: usize,
}

/// Adds the products of some units with `R` rows to `tile`.
///
/// # Safety
/// As of [`all_rows`]; `bytes` are units of a panel, and `x` and `tile` are `R` rows.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn some_rows<F: Format, const R: usize>(bytes: &[u8], x: Rows<'_>, fetch: Fetch, tile: &mut [f32]) {
    let mut totals = [[_mm256_setzero_ps(); 2]; R];
    for (total, tile) in totals.iter_mut().zip(tile.chunks_exact(PANEL)) {
        // SAFETY: 16 floats are read where 16 are.
        *total = unsafe { [_mm256_loadu_ps(tile.as_ptr()), _mm256_loadu_ps(tile.as_ptr().add(8))] };
    }
    let mut index = x.first_block;
    for unit in bytes.chunks_exact(F::LAYOUT.unit()) {
        // SAFETY: `unit` is a unit of the format, in which `block` is each of its blocks; `index` counts them over the
        // panel, which has as many as each of the `R` rows.
        unsafe {
            let head = F::head(unit.as_ptr());
            for block in 0..F::LAYOUT.blocks {
                let block = unit.as_ptr().add(F::LAYOUT.head + block * F::LAYOUT.block());
                fetch.ahead(block, F::LAYOUT.block());
                let dots = dots::<F, R>(block, x.q.as_ptr().add(index * BLOCK), x.blocks * BLOCK);
                let weights = F::scales(head, block);
                let mins = if F::MINS {
                    F::mins(head, block)
                } else {
                    weights.map(|scale| _mm256_mul_ps(scale, _mm256_set1_ps(-f32::from(F::OFFSET))))
                };
                for row in 0..R {
                    let scale = _mm256_set1_ps(*x.scales.as_ptr().add(row * x.blocks + index));
                    let sum = _mm256_set1_ps((*x.sums.as_ptr().add(row * x.blocks + index)).value);
                    for half in 0..2 {
                        let (dot, scale) = (_mm256_cvtepi32_ps(dots[row][half]), _mm256_mul_ps(weights[half], scale));
                        totals[row][half] = _mm256_fmadd_ps(dot, scale, totals[row][half]);
                        if !F::SIGNED {
                            totals[row][half] = _mm256_fmadd_ps(mins[half], sum, totals[row][half]);
                        }
                    }
                }
                index += 1;
            }
        }
    }
    for (total, tile) in totals.iter().zip(tile.chunks_exact_mut(PANEL)) {
        // SAFETY: 16 floats are written where 16 are.
        unsafe {
            _mm256_storeu_ps(tile.as_mut_ptr(), total[0]);
            _mm256_storeu_ps(tile.as_mut_ptr().add(8), total[1]);
        }
    }
}

/// The integer dot products of a block with the same block of `R` rows, which are `stride` apart.
///
/// # Safety
/// `block` is one of the format's, `q` has 32 values in each row; the machine has AVX2.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn dots<F: Format, const R: usize>(block: *const u8, q: *const i8, stride: usize) -> [[__m256i; 2]; R] {
    let mut dots = [[_mm256_setzero_si256(); 2]; R];
    for run in 0..GROUPS / F::RUN {
        let mut narrow = [[_mm256_setzero_si256(); 2]; R];
        for group in run * F::RUN..(run + 1) * F::RUN {
            // SAFETY: as demanded of the caller.
            let mut weights = unsafe { F::integers(block, group) };
            if F::SIGNED && F::OFFSET != 0 {
                weights = weights.map(|w| _mm256_sub_epi8(w, _mm256_set1_epi8(F::OFFSET)));
            }
            let sizes = weights.map(|w| if F::SIGNED { _mm256_abs_epi8(w) } else { w });
            for (row, narrow) in narrow.iter_mut().enumerate() {
                // SAFETY: as demanded of the caller.
                let four = unsafe { q.add(row * stride + 4 * group).cast::<i32>().read_unaligned() };
                let four = _mm256_set1_epi32(four);
                for half in 0..2 {
                    // Signs move over to the activations, which are never -128; as unsigned, a weight's 128 is right.
                    let signed = if F::SIGNED { _mm256_sign_epi8(four, weights[half]) } else { four };
                    let products = _mm256_maddubs_epi16(sizes[half], signed);
                    narrow[half] = if F::RUN == 1 { products } else { _mm256_add_epi16(narrow[half], products) };
                    if F::RUN == 1 {
                        dots[row][half] =
                            _mm256_add_epi32(dots[row][half], _mm256_madd_epi16(products, _mm256_set1_epi16(1)));
                        stay(&mut dots[row][half]);
                    } else {
                        stay(&mut narrow[half]);
                    }
                }
            }
        }
        if F::RUN > 1 {
            // SAFETY: as demanded of the caller.
            let widening = unsafe { F::widening(block, run) };
            for (dots, narrow) in dots.iter_mut().zip(narrow) {
                for half in 0..2 {
                    dots[half] = _mm256_add_epi32(dots[half], _mm256_madd_epi16(narrow[half], widening[half]));
                }
            }
        }
    }
    dots
}

/// Has the sum in a register at this point. Left alone, the compiler takes the sums of a tile apart and computes one after
/// the other, with the weights of all groups spilled: half as fast.
#[inline]
#[target_feature(enable = "avx2")]
fn stay(sum: &mut __m256i) {
    // SAFETY: no instruction at all.
    unsafe { std::arch::asm!("/* {0} */", inout(ymm_reg) * sum, options(nomem, nostack, preserves_flags)) };
}
