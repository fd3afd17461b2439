//! Quantization and norms of rows.

use std::arch::x86_64::*;

use crate::kernels::{
    pack::BLOCK,
    quantize::{BlockSum, QuantizedRow},
};

/// [`crate::kernels::quantize::quantize_row`].
///
/// # Safety
/// The machine has AVX2; the sizes fit.
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn row(x: &[f32], to: QuantizedRow<'_>) {
    let blocks = x.chunks_exact(BLOCK).zip(to.q.chunks_exact_mut(BLOCK));
    for ((x, q), (scale, sum)) in blocks.zip(to.scales.iter_mut().zip(to.sums)) {
        // SAFETY: 32 floats are read and 32 bytes written.
        unsafe {
            let x = [0, 8, 16, 24].map(|skip| _mm256_loadu_ps(x.as_ptr().add(skip)));
            let sizes = x.map(|x| _mm256_and_si256(_mm256_castps_si256(x), _mm256_set1_epi32(0x7fff_ffff)));
            let largest = _mm256_max_epi32(_mm256_max_epi32(sizes[0], sizes[1]), _mm256_max_epi32(sizes[2], sizes[3]));
            let largest = _mm_max_epi32(_mm256_castsi256_si128(largest), _mm256_extracti128_si256::<1>(largest));
            let largest = _mm_max_epi32(largest, _mm_shuffle_epi32::<0b0100_1110>(largest));
            let largest = _mm_max_epi32(largest, _mm_shuffle_epi32::<0b1011_0001>(largest));
            *scale = f32::from_bits(_mm_cvtsi128_si32(largest) as u32) / 127.0;
            let inverse = _mm256_set1_ps(if *scale >= f32::MIN_POSITIVE { 1.0 / *scale } else { 0.0 });
            let integers = x.map(|x| _mm256_cvtps_epi32(_mm256_mul_ps(x, inverse)));
            let (first, last) =
                (_mm256_packs_epi32(integers[0], integers[1]), _mm256_packs_epi32(integers[2], integers[3]));
            let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
            let bytes = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(first, last), order);
            _mm256_storeu_si256(q.as_mut_ptr().cast(), bytes);
            let pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), bytes);
            let fours = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
            let twos = _mm_hadd_epi32(_mm256_castsi256_si128(fours), _mm256_extracti128_si256::<1>(fours));
            let halves = _mm_hadd_epi32(twos, twos);
            let halves = [_mm_cvtsi128_si32(halves), _mm_extract_epi32::<1>(halves)];
            *sum = BlockSum {
                value: *scale * (halves[0] + halves[1]) as f32,
                // 16 integers of at most 127 each.
                halves: halves.map(|half| half as i16),
            };
        }
    }
}

/// [`crate::kernels::quantize::norm_row`]: squares are summed in 32 lanes, and these from the outermost halves inwards.
///
/// # Safety
/// The machine has AVX2 and FMA; the sizes fit.
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn norm_row(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let mut last = [0.0; BLOCK];
    let whole = x.chunks_exact(BLOCK);
    last[..whole.remainder().len()].copy_from_slice(whole.remainder());
    // SAFETY: 32 floats are read from each block; what is written lies within the slices, which are equally long.
    unsafe {
        let mut sums = [_mm256_setzero_ps(); 4];
        for block in whole.chain([last.as_slice()]) {
            for (lane, sum) in sums.iter_mut().enumerate() {
                let x = _mm256_loadu_ps(block.as_ptr().add(8 * lane));
                *sum = _mm256_fmadd_ps(x, x, *sum);
            }
        }
        let sum = _mm256_add_ps(_mm256_add_ps(sums[0], sums[2]), _mm256_add_ps(sums[1], sums[3]));
        let sum = _mm_add_ps(_mm256_castps256_ps128(sum), _mm256_extractf128_ps::<1>(sum));
        let sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
        let sum = _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
        let inverse = 1.0 / (sum / x.len() as f32 + eps).sqrt();
        let wide = x.len() / 8 * 8;
        for at in (0..wide).step_by(8) {
            let (x, weight) = (_mm256_loadu_ps(x.as_ptr().add(at)), _mm256_loadu_ps(weight.as_ptr().add(at)));
            let value = _mm256_mul_ps(_mm256_mul_ps(x, _mm256_set1_ps(inverse)), weight);
            _mm256_storeu_ps(out.as_mut_ptr().add(at), value);
        }
        for at in wide..x.len() {
            out[at] = x[at] * inverse * weight[at];
        }
    }
}
