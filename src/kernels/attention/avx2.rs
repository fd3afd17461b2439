//! The inner products of attention in vectors of 8.

use std::arch::x86_64::{
    __m256, _mm_loadu_si128, _mm256_add_ps, _mm256_cvtph_ps, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_set1_ps,
    _mm256_setzero_ps, _mm256_storeu_ps,
};

use super::{SPLIT, Stored, TILE, partial_len};

/// Eight stored numbers as `f32`.
///
/// # Safety
/// 8 values can be read at `from`, and `T` is `f32` or `f16`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn load<T: Stored>(from: *const T) -> __m256 {
    const { assert!(size_of::<T>() == 4 || size_of::<T>() == 2) };
    // SAFETY: the caller's promise.
    unsafe {
        if size_of::<T>() == 4 { _mm256_loadu_ps(from.cast()) } else { _mm256_cvtph_ps(_mm_loadu_si128(from.cast())) }
    }
}

/// The products of each query with a group of `lanes` keys (`[head_dim, lanes]`, a multiple of 8) go to
/// `scores[query][at..at + lanes]`.
#[target_feature(enable = "avx2,fma,f16c")]
pub fn score<T: Stored>(keys: &[T], lanes: usize, queries: &[&[f32]], at: usize, scores: &mut [[f32; SPLIT]; TILE]) {
    for first in (0..lanes).step_by(8) {
        let keys = Keys { values: &keys[first..], lanes, dim: keys.len() / lanes };
        match queries.len() {
            1 => score_tile::<1, T>(keys, queries, at + first, scores),
            2 => score_tile::<2, T>(keys, queries, at + first, scores),
            3 => score_tile::<3, T>(keys, queries, at + first, scores),
            4 => score_tile::<4, T>(keys, queries, at + first, scores),
            5 => score_tile::<5, T>(keys, queries, at + first, scores),
            _ => score_tile::<6, T>(keys, queries, at + first, scores),
        }
    }
}

/// Eight keys of a group, from the first one's first number on.
#[derive(Clone, Copy)]
struct Keys<'a, T> {
    values: &'a [T],
    /// From one dimension to the next.
    lanes: usize,
    dim: usize,
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn score_tile<const N: usize, T: Stored>(
    keys: Keys<'_, T>,
    queries: &[&[f32]],
    at: usize,
    scores: &mut [[f32; SPLIT]; TILE],
) {
    let Keys { values: keys, lanes, dim } = keys;
    assert!(dim > 0 && keys.len() >= (dim - 1) * lanes + 8, "eight keys");
    let queries: [&[f32]; N] = std::array::from_fn(|query| &queries[query][..dim]);
    // Even and odd dimensions apart: twice as many sums under way.
    let mut sums = [[_mm256_setzero_ps(); N]; 2];
    for pair in 0..dim / 2 {
        for (odd, sums) in sums.iter_mut().enumerate() {
            let d = 2 * pair + odd;
            // SAFETY: `d` is below `dim`; there are 8 keys `lanes · d` on, as asserted, and `dim` numbers in each query.
            unsafe {
                let key = load(keys.as_ptr().add(lanes * d));
                for (sum, query) in sums.iter_mut().zip(queries) {
                    *sum = _mm256_fmadd_ps(_mm256_set1_ps(*query.get_unchecked(d)), key, *sum);
                }
            }
        }
    }
    for (place, (even, odd)) in sums[0].into_iter().zip(sums[1]).enumerate() {
        let mut sum = _mm256_add_ps(even, odd);
        if dim % 2 == 1 {
            // SAFETY: as above, for the last dimension.
            let key = unsafe { load(keys.as_ptr().add(lanes * (dim - 1))) };
            sum = _mm256_fmadd_ps(_mm256_set1_ps(queries[place][dim - 1]), key, sum);
        }
        let to = &mut scores[place][at..at + 8];
        // SAFETY: `to` has room for 8.
        unsafe { _mm256_storeu_ps(to.as_mut_ptr(), sum) };
    }
}

/// Adds the values at `rows`, each times its weight (`weights[query][at..]`), to the second `[head_dim]` of each partial result.
///
/// # Safety
/// `dim` is a multiple of 8, and every row with its `dim` numbers lies in `values`.
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn add<T: Stored>(
    values: &[T],
    rows: &[usize],
    weights: &[[f32; SPLIT]],
    at: usize,
    dim: usize,
    partials: &mut [f32],
) {
    // SAFETY: the caller's promise.
    unsafe {
        match weights.len() {
            1 => add_tile::<1, T>(values, rows, weights, at, dim, partials),
            2 => add_tile::<2, T>(values, rows, weights, at, dim, partials),
            3 => add_tile::<3, T>(values, rows, weights, at, dim, partials),
            4 => add_tile::<4, T>(values, rows, weights, at, dim, partials),
            5 => add_tile::<5, T>(values, rows, weights, at, dim, partials),
            _ => add_tile::<6, T>(values, rows, weights, at, dim, partials),
        }
    }
}

/// # Safety
/// As [`add`].
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn add_tile<const N: usize, T: Stored>(
    values: &[T],
    rows: &[usize],
    weights: &[[f32; SPLIT]],
    at: usize,
    dim: usize,
    partials: &mut [f32],
) {
    let length = partial_len(dim);
    assert!(rows.len() + at <= SPLIT && partials.len() >= N * length && weights.len() >= N, "a tile of {N} queries");
    let mut first = 0;
    while first + 16 <= dim {
        // SAFETY: as the caller promises, and the assertion above; `first + 16` is at most `dim`.
        unsafe { add_columns::<N, 2, T>(values, rows, weights, at, first, partials.as_mut_ptr().add(dim), length) };
        first += 16;
    }
    if first < dim {
        // SAFETY: as above; 8 columns are left, since `dim` is a multiple of 8.
        unsafe { add_columns::<N, 1, T>(values, rows, weights, at, first, partials.as_mut_ptr().add(dim), length) };
    }
}

/// `W` vectors of columns from `first`; sums are `stride` apart at `sums`.
///
/// # Safety
/// Every row has `first + 8 · W` numbers in `values`; there are `N` weights and sums, and a weight for every row from `at`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn add_columns<const N: usize, const W: usize, T: Stored>(
    values: &[T],
    rows: &[usize],
    weights: &[[f32; SPLIT]],
    at: usize,
    first: usize,
    sums: *mut f32,
    stride: usize,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut held: [[__m256; W]; N] = std::array::from_fn(|query| {
            std::array::from_fn(|column| _mm256_loadu_ps(sums.add(query * stride + first + 8 * column)))
        });
        for (place, &row) in rows.iter().enumerate() {
            let value: [__m256; W] = std::array::from_fn(|column| load(values.as_ptr().add(row + first + 8 * column)));
            for (query, held) in held.iter_mut().enumerate() {
                let weight = _mm256_set1_ps(*weights.get_unchecked(query).get_unchecked(at + place));
                for (held, value) in held.iter_mut().zip(value) {
                    *held = _mm256_fmadd_ps(weight, value, *held);
                }
            }
        }
        for (query, held) in held.iter().enumerate() {
            for (column, &held) in held.iter().enumerate() {
                _mm256_storeu_ps(sums.add(query * stride + first + 8 * column), held);
            }
        }
    }
}
