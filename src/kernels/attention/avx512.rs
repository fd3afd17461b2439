//! The inner products of attention in vectors of 16.

use std::arch::x86_64::*;

use super::{SPLIT, Stored, TILE, partial_len};

/// Sixteen stored numbers as `f32`.
///
/// # Safety
/// 16 values can be read at `from`, and `T` is `f32` or `f16`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn load<T: Stored>(from: *const T) -> __m512 {
    const { assert!(size_of::<T>() == 4 || size_of::<T>() == 2) };
    // SAFETY: the caller's promise.
    unsafe {
        if size_of::<T>() == 4 {
            _mm512_loadu_ps(from.cast())
        } else {
            _mm512_cvtph_ps(_mm256_loadu_si256(from.cast()))
        }
    }
}

/// The products of each query with a group of 16 keys (`[head_dim, 16]`) go to `scores[query][at..at + 16]`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub fn score<T: Stored>(keys: &[T], queries: &[&[f32]], at: usize, scores: &mut [[f32; SPLIT]; TILE]) {
    match queries.len() {
        1 => score_tile::<1, T>(keys, queries, at, scores),
        2 => score_tile::<2, T>(keys, queries, at, scores),
        3 => score_tile::<3, T>(keys, queries, at, scores),
        4 => score_tile::<4, T>(keys, queries, at, scores),
        5 => score_tile::<5, T>(keys, queries, at, scores),
        _ => score_tile::<6, T>(keys, queries, at, scores),
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn score_tile<const N: usize, T: Stored>(keys: &[T], queries: &[&[f32]], at: usize, scores: &mut [[f32; SPLIT]; TILE]) {
    let dim = keys.len() / 16;
    let queries: [&[f32]; N] = std::array::from_fn(|query| &queries[query][..dim]);
    // Even and odd dimensions apart: twice as many sums under way. The order is that of the vectors of 8.
    let mut sums = [[_mm512_setzero_ps(); N]; 2];
    for pair in 0..dim / 2 {
        for (odd, sums) in sums.iter_mut().enumerate() {
            let d = 2 * pair + odd;
            // SAFETY: `d` is below `dim`, and there are `16 · dim` keys and `dim` numbers in each query.
            unsafe {
                let key = load(keys.as_ptr().add(16 * d));
                for (sum, query) in sums.iter_mut().zip(queries) {
                    *sum = _mm512_fmadd_ps(_mm512_set1_ps(*query.get_unchecked(d)), key, *sum);
                }
            }
        }
    }
    for (place, (even, odd)) in sums[0].into_iter().zip(sums[1]).enumerate() {
        let mut sum = _mm512_add_ps(even, odd);
        if dim % 2 == 1 {
            // SAFETY: the last dimension's keys end at `16 · dim`.
            let key = unsafe { load(keys.as_ptr().add(16 * (dim - 1))) };
            sum = _mm512_fmadd_ps(_mm512_set1_ps(queries[place][dim - 1]), key, sum);
        }
        let to = &mut scores[place][at..at + 16];
        // SAFETY: `to` has room for 16.
        unsafe { _mm512_storeu_ps(to.as_mut_ptr(), sum) };
    }
}

/// Adds the values at `rows`, each times its weight (`weights[query][at..]`), to the second `[head_dim]` of each partial result.
///
/// # Safety
/// `dim` is a multiple of 16, and every row with its `dim` numbers lies in `values`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
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
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
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
    while first + 64 <= dim {
        // SAFETY: as the caller promises, and the assertion above; `first + 64` is at most `dim`.
        unsafe { add_columns::<N, 4, T>(values, rows, weights, at, first, partials.as_mut_ptr().add(dim), length) };
        first += 64;
    }
    while first < dim {
        // SAFETY: as above; 16 columns are left, since `dim` is a multiple of 16.
        unsafe { add_columns::<N, 1, T>(values, rows, weights, at, first, partials.as_mut_ptr().add(dim), length) };
        first += 16;
    }
}

/// `W` vectors of columns from `first`; sums are `stride` apart at `sums`.
///
/// # Safety
/// Every row has `first + 16 · W` numbers in `values`; there are `N` weights and sums, and a weight for every row from `at`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
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
        let mut held: [[__m512; W]; N] = std::array::from_fn(|query| {
            std::array::from_fn(|column| _mm512_loadu_ps(sums.add(query * stride + first + 16 * column)))
        });
        for (place, &row) in rows.iter().enumerate() {
            let value: [__m512; W] = std::array::from_fn(|column| load(values.as_ptr().add(row + first + 16 * column)));
            for (query, held) in held.iter_mut().enumerate() {
                let weight = _mm512_set1_ps(*weights.get_unchecked(query).get_unchecked(at + place));
                for (held, value) in held.iter_mut().zip(value) {
                    *held = _mm512_fmadd_ps(weight, value, *held);
                }
            }
        }
        for (query, held) in held.iter().enumerate() {
            for (column, &held) in held.iter().enumerate() {
                _mm512_storeu_ps(sums.add(query * stride + first + 16 * column), held);
            }
        }
    }
}
