//! Sums over logits.

use std::arch::x86_64::*;

use crate::kernels::spread::Part;

/// Below this a weight is taken for nothing: e^-87 is about 1e-38, the smallest normal number.
pub(super) const LEAST: f32 = -87.0;

/// [`crate::kernels::spread::Part::of`], with the token counted from the first of `logits`, which are not empty.
///
/// # Safety
/// The machine has AVX2 and FMA.
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn part(logits: &[f32]) -> Part {
    let (eights, rest) = logits.as_chunks::<8>();
    let mut last = [logits[0]; 8];
    last[..rest.len()].copy_from_slice(rest);
    let (mut max, mut size) = (_mm256_set1_ps(f32::NEG_INFINITY), _mm256_setzero_si256());
    for eight in eights.iter().chain([&last]) {
        // SAFETY: eight floats are there.
        let x = unsafe { _mm256_loadu_ps(eight.as_ptr()) };
        max = _mm256_max_ps(max, x);
        size = _mm256_max_epi32(size, _mm256_and_si256(_mm256_castps_si256(x), _mm256_set1_epi32(0x7fff_ffff)));
    }
    let mut lanes = [0.0f32; 8];
    // SAFETY: eight floats are there.
    unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), max) };
    let best = lanes.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let broken = _mm256_cmpgt_epi32(size, _mm256_set1_epi32(0x7f7f_ffff));
    if _mm256_movemask_epi8(broken) != 0 {
        return Part { best: (best, 0), finite: false, sum: 0.0, weighted: 0.0 };
    }
    let token = first_of(eights, rest, best);
    // What is added beside the rest weighs nothing.
    last[rest.len()..].fill(f32::MIN);
    let (mut sums, mut weighted) = ([_mm256_setzero_pd(); 2], [_mm256_setzero_pd(); 2]);
    for eight in eights.iter().chain([&last]) {
        // SAFETY: eight floats are there.
        let below = _mm256_sub_ps(unsafe { _mm256_loadu_ps(eight.as_ptr()) }, _mm256_set1_ps(best));
        let weight = exp(below);
        let below = _mm256_max_ps(below, _mm256_set1_ps(LEAST));
        for (half, (weight, below)) in [
            (_mm256_castps256_ps128(weight), _mm256_castps256_ps128(below)),
            (_mm256_extractf128_ps::<1>(weight), _mm256_extractf128_ps::<1>(below)),
        ]
        .into_iter()
        .enumerate()
        {
            let (weight, below) = (_mm256_cvtps_pd(weight), _mm256_cvtps_pd(below));
            sums[half] = _mm256_add_pd(sums[half], weight);
            weighted[half] = _mm256_fmadd_pd(weight, below, weighted[half]);
        }
    }
    Part { best: (best, token), finite: true, sum: across(sums), weighted: across(weighted) }
}

/// The first place of `best`.
#[inline]
#[target_feature(enable = "avx2")]
fn first_of(eights: &[[f32; 8]], rest: &[f32], best: f32) -> u32 {
    for (at, eight) in eights.iter().enumerate() {
        // SAFETY: eight floats are there.
        let equal = _mm256_cmp_ps::<_CMP_EQ_OQ>(unsafe { _mm256_loadu_ps(eight.as_ptr()) }, _mm256_set1_ps(best));
        let places = _mm256_movemask_ps(equal);
        if places != 0 {
            return 8 * at as u32 + places.trailing_zeros();
        }
    }
    let place = rest.iter().position(|&logit| logit == best).unwrap_or(0);
    (8 * eights.len() + place) as u32
}

/// The exponential of numbers that are not above zero: 2^n · e^r, where |r| is at most half of ln 2, by the power series to
/// the seventh power, which leaves out less than 6e-9.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn exp(x: __m256) -> __m256 {
    const SERIES: [f32; 8] = [1.0 / 5040.0, 1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0];
    // The leading bits of ln 2, few enough that a product with n is exact, and what they leave out.
    const LEADING: f32 = 355.0 / 512.0;
    const REST: f32 = (std::f64::consts::LN_2 - 355.0 / 512.0) as f32;
    let felt = _mm256_cmp_ps::<_CMP_GE_OQ>(x, _mm256_set1_ps(LEAST));
    let x = _mm256_max_ps(x, _mm256_set1_ps(LEAST));
    let n = _mm256_mul_ps(x, _mm256_set1_ps(std::f32::consts::LOG2_E));
    let n = _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(n);
    let r = _mm256_fnmadd_ps(n, _mm256_set1_ps(LEADING), x);
    let r = _mm256_fnmadd_ps(n, _mm256_set1_ps(REST), r);
    let mut power = _mm256_set1_ps(SERIES[0]);
    for coefficient in &SERIES[1..] {
        power = _mm256_fmadd_ps(power, r, _mm256_set1_ps(*coefficient));
    }
    let exponent = _mm256_slli_epi32::<23>(_mm256_cvtps_epi32(n));
    let scaled = _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(power), exponent));
    _mm256_and_ps(scaled, felt)
}

#[inline]
#[target_feature(enable = "avx2")]
fn across(sums: [__m256d; 2]) -> f64 {
    let four = _mm256_add_pd(sums[0], sums[1]);
    let two = _mm_add_pd(_mm256_castpd256_pd128(four), _mm256_extractf128_pd::<1>(four));
    _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)))
}
