//! Quantization and norms of rows.

use std::arch::x86_64::*;

use crate::kernels::{
    pack::BLOCK,
    quantize::{BlockSum, QuantizedRow},
};

/// [`crate::kernels::quantize::quantize_row`].
///
/// # Safety
/// The machine has AVX-512 F, BW, DQ, VL and VNNI; the sizes fit.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub unsafe fn row(x: &[f32], to: QuantizedRow<'_>) {
    let blocks = x.chunks_exact(BLOCK).zip(to.q.chunks_exact_mut(BLOCK));
    for ((x, q), (scale, sum)) in blocks.zip(to.scales.iter_mut().zip(to.sums)) {
        // SAFETY: 32 floats are read and 32 bytes written.
        unsafe {
            let x = [_mm512_loadu_ps(x.as_ptr()), _mm512_loadu_ps(x.as_ptr().add(16))];
            let sizes = x.map(|x| _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(0x7fff_ffff)));
            let largest = _mm512_max_epi32(sizes[0], sizes[1]);
            let largest = _mm256_max_epi32(_mm512_castsi512_si256(largest), _mm512_extracti64x4_epi64::<1>(largest));
            let largest = _mm_max_epi32(_mm256_castsi256_si128(largest), _mm256_extracti128_si256::<1>(largest));
            let largest = _mm_max_epi32(largest, _mm_shuffle_epi32::<0b0100_1110>(largest));
            let largest = _mm_max_epi32(largest, _mm_shuffle_epi32::<0b1011_0001>(largest));
            *scale = f32::from_bits(_mm_cvtsi128_si32(largest) as u32) / 127.0;
            let inverse = _mm512_set1_ps(if *scale >= f32::MIN_POSITIVE { 1.0 / *scale } else { 0.0 });
            let bytes = x.map(|x| _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(x, inverse))));
            _mm_storeu_si128(q.as_mut_ptr().cast(), bytes[0]);
            _mm_storeu_si128(q.as_mut_ptr().add(16).cast(), bytes[1]);
            let fours = bytes.map(|bytes| _mm_dpbusd_epi32(_mm_setzero_si128(), _mm_set1_epi8(1), bytes));
            let twos = _mm_hadd_epi32(fours[0], fours[1]);
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

/// [`crate::kernels::quantize::norm_row`]: squares are summed in 64 lanes, and these from the outermost halves inwards.
///
/// # Safety
/// The machine has AVX-512 F, BW, DQ, VL and VNNI; the sizes fit.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub unsafe fn norm_row(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let (whole, rest) = x.as_chunks::<64>();
    let mut last = [0.0; 64];
    last[..rest.len()].copy_from_slice(rest);
    // SAFETY: 64 floats are read from each block; what is read and written later lies within the slices, which are equally
    // long, since only as many lanes as are left are touched.
    unsafe {
        let mut sums = [_mm512_setzero_ps(); 4];
        for block in whole.iter().chain([&last]) {
            for (lane, sum) in sums.iter_mut().enumerate() {
                let x = _mm512_loadu_ps(block.as_ptr().add(16 * lane));
                *sum = _mm512_fmadd_ps(x, x, *sum);
            }
        }
        let sum = _mm512_add_ps(_mm512_add_ps(sums[0], sums[2]), _mm512_add_ps(sums[1], sums[3]));
        let sum = _mm256_add_ps(_mm512_castps512_ps256(sum), _mm512_extractf32x8_ps::<1>(sum));
        let sum = _mm_add_ps(_mm256_castps256_ps128(sum), _mm256_extractf128_ps::<1>(sum));
        let sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
        let sum = _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
        let inverse = _mm512_set1_ps(1.0 / (sum / x.len() as f32 + eps).sqrt());
        for at in (0..x.len()).step_by(16) {
            let lanes = u16::MAX >> (16 - (x.len() - at).min(16));
            let (x, weight) = (
                _mm512_maskz_loadu_ps(lanes, x.as_ptr().add(at)),
                _mm512_maskz_loadu_ps(lanes, weight.as_ptr().add(at)),
            );
            let value = _mm512_mul_ps(_mm512_mul_ps(x, inverse), weight);
            _mm512_mask_storeu_ps(out.as_mut_ptr().add(at), lanes, value);
        }
    }
}
