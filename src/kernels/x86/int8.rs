//! Panels of quantized weights times int8 rows.

use std::arch::x86_64::*;

use super::{
    formats::{Format, GROUPS, Q4, Q4K, Q5, Q5K, Q6K, Q8_0},
    share,
};
use crate::kernels::{
    dequant::Encoding,
    pack::{BLOCK, PANEL, Packed},
    quantize::QuantizedRows,
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
            Encoding::Q4K => all_rows::<Q4K>(bytes, x, tile),
            Encoding::Q5K => all_rows::<Q5K>(bytes, x, tile),
            Encoding::Q6K => all_rows::<Q6K>(bytes, x, tile),
            Encoding::F32 | Encoding::F16 | Encoding::BF16 => {}
        }
    }
}

/// # Safety
/// As of [`panel`]; `bytes` are a panel of the format.
unsafe fn all_rows<F: Format>(bytes: &[u8], x: &QuantizedRows<'_>, tile: &mut [f32]) {
    share(tile.len() / PANEL, F::ROWS, |first, count| {
        let blocks = x.inputs / BLOCK;
        let x = QuantizedRows {
            inputs: x.inputs,
            q: &x.q[first * x.inputs..(first + count) * x.inputs],
            scales: &x.scales[first * blocks..(first + count) * blocks],
            sums: &x.sums[first * blocks..(first + count) * blocks],
        };
        let tile = &mut tile[first * PANEL..(first + count) * PANEL];
        // SAFETY: as demanded of the caller; `x` and `tile` have as many rows as the constant says.
        unsafe {
            match count {
                1 => some_rows::<F, 1>(bytes, x, tile),
                2 => some_rows::<F, 2>(bytes, x, tile),
                3 => some_rows::<F, 3>(bytes, x, tile),
                4 => some_rows::<F, 4>(bytes, x, tile),
                _ => unreachable!("no format has larger tiles"),
            }
        }
    });
}

/// # Safety
/// As of [`all_rows`], for exactly `R` rows.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn some_rows<F: Format, const R: usize>(bytes: &[u8], x: QuantizedRows<'_>, tile: &mut [f32]) {
    let blocks = x.inputs / BLOCK;
    let (q, scales, sums) = (x.q.as_ptr(), x.scales.as_ptr(), x.sums.as_ptr());
    // SAFETY: `bytes` are `blocks` blocks in whole units, and every offset below is of a part that the layout has or of
    // one of `R` rows.
    unsafe {
        let mut totals = [[_mm256_setzero_ps(); 2]; R];
        let mut index = 0;
        for unit in bytes.chunks_exact(F::LAYOUT.unit()) {
            let head = F::head(unit.as_ptr());
            for block in 0..F::LAYOUT.blocks {
                let block = unit.as_ptr().add(F::LAYOUT.head + block * F::LAYOUT.block());
                let dots = dots::<F, R>(block, q.add(index * BLOCK), x.inputs);
                let of_weights = F::scales(head, block);
                let mins = if F::MINS {
                    F::mins(head, block)
                } else {
                    let offset = _mm256_set1_ps(-f32::from(F::OFFSET));
                    [_mm256_mul_ps(of_weights[0], offset), _mm256_mul_ps(of_weights[1], offset)]
                };
                for row in 0..R {
                    let scale = _mm256_set1_ps(*scales.add(row * blocks + index));
                    for half in 0..2 {
                        let scale = _mm256_mul_ps(of_weights[half], scale);
                        totals[row][half] =
                            _mm256_fmadd_ps(_mm256_cvtepi32_ps(dots[row][half]), scale, totals[row][half]);
                        if !F::SIGNED {
                            let sum = _mm256_set1_ps(*sums.add(row * blocks + index));
                            totals[row][half] = _mm256_fmadd_ps(mins[half], sum, totals[row][half]);
                        }
                    }
                }
                index += 1;
            }
        }
        for (total, tile) in totals.iter().zip(tile.chunks_exact_mut(PANEL)) {
            _mm256_storeu_ps(tile.as_mut_ptr(), total[0]);
            _mm256_storeu_ps(tile.as_mut_ptr().add(8), total[1]);
        }
    }
}

/// The integer dot products of a block with the same block of `R` rows, which are `stride` apart.
///
/// # Safety
/// `block` is one of the format's, `q` has 32 values in each row; the machine has AVX2.
#[inline(always)]
unsafe fn dots<F: Format, const R: usize>(block: *const u8, q: *const i8, stride: usize) -> [[__m256i; 2]; R] {
    // SAFETY: as demanded of the caller.
    unsafe {
        let mut dots = [[_mm256_setzero_si256(); 2]; R];
        for run in 0..GROUPS / F::RUN {
            let mut narrow = [[_mm256_setzero_si256(); 2]; R];
            for group in run * F::RUN..(run + 1) * F::RUN {
                let mut weights = F::integers(block, group);
                if F::SIGNED && F::OFFSET != 0 {
                    let offset = _mm256_set1_epi8(F::OFFSET);
                    weights = [_mm256_sub_epi8(weights[0], offset), _mm256_sub_epi8(weights[1], offset)];
                }
                for (row, narrow) in narrow.iter_mut().enumerate() {
                    let four = _mm256_set1_epi32(q.add(row * stride + 4 * group).cast::<i32>().read_unaligned());
                    for half in 0..2 {
                        // Signs move over to the activations, which are never -128; as unsigned, a weight's 128 is right.
                        let products = if F::SIGNED {
                            _mm256_maddubs_epi16(_mm256_abs_epi8(weights[half]), _mm256_sign_epi8(four, weights[half]))
                        } else {
                            _mm256_maddubs_epi16(weights[half], four)
                        };
                        narrow[half] = _mm256_add_epi16(narrow[half], products);
                    }
                }
            }
            let widening = F::widening(block, run);
            for (dots, narrow) in dots.iter_mut().zip(narrow) {
                for half in 0..2 {
                    dots[half] = _mm256_add_epi32(dots[half], _mm256_madd_epi16(narrow[half], widening[half]));
                }
            }
        }
        dots
    }
}
