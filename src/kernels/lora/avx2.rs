//! Shrink and expand in vectors of 8.

use std::arch::x86_64::{
    __m256, _mm_loadu_si128, _mm256_add_ps, _mm256_castsi256_ps, _mm256_cvtepu16_epi32, _mm256_cvtph_ps,
    _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_mul_ps, _mm256_set1_ps, _mm256_setzero_ps, _mm256_slli_epi32,
    _mm256_storeu_ps,
};

use super::{Form, Kept, PANEL, RANKS, RUN};

/// Rows that share each number of A read.
pub const SHRINK_ROWS: usize = 3;

/// Rows that share each number of B read.
pub const EXPAND_ROWS: usize = 4;

/// Sums under way for each row and rank, over inputs 0, 4, 8 …, 1, 5, 9 … and so on.
const CHAINS: usize = 4;

/// Eight kept numbers as `f32`.
///
/// # Safety
/// 8 values can be read at `from`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn load<T: Kept>(from: *const T) -> __m256 {
    // SAFETY: the caller's promise; `T::FORM` says what `T` is.
    unsafe {
        match T::FORM {
            Form::F32 => _mm256_loadu_ps(from.cast()),
            Form::F16 => _mm256_cvtph_ps(_mm_loadu_si128(from.cast())),
            Form::BF16 => {
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()))))
            }
        }
    }
}

/// The products of rows `x` with eight ranks' `values` (`[inputs, 8]`) go to each row's place in `out`.
#[target_feature(enable = "avx2,fma,f16c")]
pub fn shrink<T: Kept>(values: &[T], x: &[(&[f32], usize)], out: &mut [f32]) {
    match x.len() {
        1 => shrink_tile::<1, T>(values, x, out),
        2 => shrink_tile::<2, T>(values, x, out),
        _ => shrink_tile::<3, T>(values, x, out),
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn shrink_tile<const N: usize, T: Kept>(values: &[T], rows: &[(&[f32], usize)], out: &mut [f32]) {
    let inputs = values.len() / RANKS;
    let x: [&[f32]; N] = std::array::from_fn(|row| &rows[row].0[..inputs]);
    let mut sums = [[_mm256_setzero_ps(); N]; CHAINS];
    let whole = inputs / CHAINS * CHAINS;
    for first in (0..whole).step_by(CHAINS) {
        for (chain, sums) in sums.iter_mut().enumerate() {
            // SAFETY: `first + chain` is below `inputs`, the length of each row and of `values` in eights.
            unsafe {
                let value = load(values.as_ptr().add((first + chain) * RANKS));
                for (sum, x) in sums.iter_mut().zip(x) {
                    *sum = _mm256_fmadd_ps(_mm256_set1_ps(*x.get_unchecked(first + chain)), value, *sum);
                }
            }
        }
    }
    for (place, values) in values.chunks_exact(RANKS).enumerate().skip(whole) {
        // SAFETY: there are 8 values.
        let value = unsafe { load(values.as_ptr()) };
        for (sum, x) in sums[0].iter_mut().zip(x) {
            *sum = _mm256_fmadd_ps(_mm256_set1_ps(x[place]), value, *sum);
        }
    }
    for (row, &(_, to)) in rows.iter().enumerate().take(N) {
        let out = &mut out[to..][..RANKS];
        let (even, odd) = (_mm256_add_ps(sums[0][row], sums[1][row]), _mm256_add_ps(sums[2][row], sums[3][row]));
        // SAFETY: `out` has room for 8.
        unsafe { _mm256_storeu_ps(out.as_mut_ptr(), _mm256_add_ps(even, odd)) };
    }
}

/// Adds to the rows `rows` of `tile` (`[_, 16]`) their products with `values` (`[rank, 16]`), times `scale`; `at` says where
/// the shrunk number of a rank is for row 0.
///
/// # Safety
/// `shrunk` holds what `at` says for every rank and row, and every row lies in `tile`.
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn expand<T: Kept>(
    values: &[T],
    shrunk: &[f32],
    at: impl Fn(usize) -> usize,
    rows: &[u32],
    scale: f32,
    tile: &mut [f32],
) {
    // SAFETY: the caller's promise.
    unsafe {
        match rows.len() {
            1 => expand_tile::<1, T>(values, shrunk, at, rows, scale, tile),
            2 => expand_tile::<2, T>(values, shrunk, at, rows, scale, tile),
            3 => expand_tile::<3, T>(values, shrunk, at, rows, scale, tile),
            _ => expand_tile::<4, T>(values, shrunk, at, rows, scale, tile),
        }
    }
}

/// # Safety
/// As [`expand`].
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn expand_tile<const N: usize, T: Kept>(
    values: &[T],
    shrunk: &[f32],
    at: impl Fn(usize) -> usize,
    rows: &[u32],
    scale: f32,
    tile: &mut [f32],
) {
    let mut sums = [[_mm256_setzero_ps(); 2]; N];
    // SAFETY: the caller's promise.
    let shrunk: [*const f32; N] =
        std::array::from_fn(|place| unsafe { shrunk.as_ptr().add(rows[place] as usize * RUN) });
    for rank in 0..values.len() / PANEL {
        // SAFETY: rank `rank` has 16 values; the caller's promise for `shrunk`.
        unsafe {
            let low = load(values.as_ptr().add(rank * PANEL));
            let high = load(values.as_ptr().add(rank * PANEL + 8));
            let at = at(rank);
            for (shrunk, sums) in shrunk.iter().zip(&mut sums) {
                let t = _mm256_set1_ps(*shrunk.add(at));
                sums[0] = _mm256_fmadd_ps(t, low, sums[0]);
                sums[1] = _mm256_fmadd_ps(t, high, sums[1]);
            }
        }
    }
    let scale = _mm256_set1_ps(scale);
    for (&row, sums) in rows.iter().zip(sums) {
        let to = &mut tile[row as usize * PANEL..][..PANEL];
        for (to, sum) in to.chunks_exact_mut(8).zip(sums) {
            // SAFETY: `to` has room for 8.
            unsafe {
                let sum = _mm256_add_ps(_mm256_loadu_ps(to.as_ptr()), _mm256_mul_ps(sum, scale));
                _mm256_storeu_ps(to.as_mut_ptr(), sum);
            }
        }
    }
}
