//! Sums over logits.

use std::arch::x86_64::*;

use crate::kernels::{spread::Part, x86::spread::LEAST};

/// [`crate::kernels::spread::Part::of`], with the token counted from the first of `logits`, which are not empty.
///
/// # Safety
/// The machine has AVX-512 F, BW, DQ, VL and VNNI.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub unsafe fn part(logits: &[f32]) -> Part {
    let (all, rest) = logits.as_chunks::<16>();
    let mut last = [logits[0]; 16];
    last[..rest.len()].copy_from_slice(rest);
    let (mut max, mut size) = (_mm512_set1_ps(f32::NEG_INFINITY), _mm512_setzero_si512());
    for sixteen in all.iter().chain([&last]) {
        // SAFETY: sixteen floats are there.
        let x = unsafe { _mm512_loadu_ps(sixteen.as_ptr()) };
        max = _mm512_max_ps(max, x);
        size = _mm512_max_epi32(size, _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(0x7fff_ffff)));
    }
    let best = _mm512_reduce_max_ps(max);
    if _mm512_cmpgt_epi32_mask(size, _mm512_set1_epi32(0x7f7f_ffff)) != 0 {
        return Part { best: (best, 0), finite: false, sum: 0.0, weighted: 0.0 };
    }
    let token = first_of(all, rest, best);
    // What is added beside the rest weighs nothing.
    last[rest.len()..].fill(f32::MIN);
    let (mut sums, mut weighted) = ([_mm512_setzero_pd(); 2], [_mm512_setzero_pd(); 2]);
    for sixteen in all.iter().chain([&last]) {
        // SAFETY: sixteen floats are there.
        let below = _mm512_sub_ps(unsafe { _mm512_loadu_ps(sixteen.as_ptr()) }, _mm512_set1_ps(best));
        let weight = exp(below);
        let below = _mm512_max_ps(below, _mm512_set1_ps(LEAST));
        for (half, (weight, below)) in [
            (_mm512_castps512_ps256(weight), _mm512_castps512_ps256(below)),
            (_mm512_extractf32x8_ps::<1>(weight), _mm512_extractf32x8_ps::<1>(below)),
        ]
        .into_iter()
        .enumerate()
        {
            let (weight, below) = (_mm512_cvtps_pd(weight), _mm512_cvtps_pd(below));
            sums[half] = _mm512_add_pd(sums[half], weight);
            weighted[half] = _mm512_fmadd_pd(weight, below, weighted[half]);
        }
    }
    let across = |sums: [__m512d; 2]| _mm512_reduce_add_pd(_mm512_add_pd(sums[0], sums[1]));
    Part { best: (best, token), finite: true, sum: across(sums), weighted: across(weighted) }
}

/// The first place of `best`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn first_of(all: &[[f32; 16]], rest: &[f32], best: f32) -> u32 {
    for (at, sixteen) in all.iter().enumerate() {
        // SAFETY: sixteen floats are there.
        let x = unsafe { _mm512_loadu_ps(sixteen.as_ptr()) };
        let places = _mm512_cmp_ps_mask::<_CMP_EQ_OQ>(x, _mm512_set1_ps(best));
        if places != 0 {
            return 16 * at as u32 + places.trailing_zeros();
        }
    }
    let place = rest.iter().position(|&logit| logit == best).unwrap_or(0);
    (16 * all.len() + place) as u32
}

/// The exponential of numbers that are not above zero: 2^n · e^r, where |r| is at most half of ln 2, by the power series to
/// the seventh power, which leaves out less than 6e-9.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn exp(x: __m512) -> __m512 {
    const SERIES: [f32; 8] = [1.0 / 5040.0, 1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0];
    // The leading bits of ln 2, few enough that a product with n is exact, and what they leave out.
    const LEADING: f32 = 355.0 / 512.0;
    const REST: f32 = (std::f64::consts::LN_2 - 355.0 / 512.0) as f32;
    let felt = _mm512_cmp_ps_mask::<_CMP_GE_OQ>(x, _mm512_set1_ps(LEAST));
    let x = _mm512_max_ps(x, _mm512_set1_ps(LEAST));
    let n = _mm512_mul_ps(x, _mm512_set1_ps(std::f32::consts::LOG2_E));
    let n = _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(n);
    let r = _mm512_fnmadd_ps(n, _mm512_set1_ps(LEADING), x);
    let r = _mm512_fnmadd_ps(n, _mm512_set1_ps(REST), r);
    let mut power = _mm512_set1_ps(SERIES[0]);
    for coefficient in &SERIES[1..] {
        power = _mm512_fmadd_ps(power, r, _mm512_set1_ps(*coefficient));
    }
    _mm512_maskz_scalef_ps(felt, power, n)
}
