//! Factors in 8 bits, in vectors of 8.

use std::arch::x86_64::*;

use super::{BLOCK, PANEL, QUAD, RANKS, RUN, Row, Scales};

/// Rows that share each number read.
pub const ROWS: usize = 3;

/// Calls `$name::<N>` for a number of rows from 1 to 3.
macro_rules! by_rows {
    ($rows:expr, $name:ident($($argument:expr),*)) => {
        match $rows {
            1 => $name::<1>($($argument),*),
            2 => $name::<2>($($argument),*),
            _ => $name::<3>($($argument),*),
        }
    };
}

/// Eight scales as `f32`.
///
/// # Safety
/// 8 values can be read at `from`.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn load_scales(from: *const [u8; 2]) -> __m256 {
    // SAFETY: the caller's promise.
    let bits = unsafe { _mm_loadu_si128(from.cast()) };
    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(bits)))
}

/// Products of `rows` with 8 ranks, the `half`-th of the `width` that lie side by side, go to the row's place in `out`, and the half's in that.
#[target_feature(enable = "avx2,fma")]
pub fn shrink(q: &[u8], scales: Scales<'_>, place: (usize, usize), rows: &[Row<'_>], out: &mut [f32]) {
    by_rows!(rows.len(), shrink_rows(q, scales, place, rows, out))
}

#[inline]
#[target_feature(enable = "avx2,fma")]
fn shrink_rows<const N: usize>(
    q: &[u8],
    scales: Scales<'_>,
    (half, width): (usize, usize),
    rows: &[Row<'_>],
    out: &mut [f32],
) {
    let blocks = scales.len() / width;
    assert!(q.len() == blocks * BLOCK * width && rows.len() == N, "a run of ranks");
    assert!((half + 1) * RANKS <= width, "half {half} of {width} ranks");
    assert!(rows.iter().all(|row| row.q.len() == blocks * BLOCK && row.scales.len() == blocks), "rows of its inputs");
    let rows: [Row<'_>; N] = std::array::from_fn(|row| rows[row]);
    let mut sums = [_mm256_setzero_ps(); N];
    for index in 0..blocks {
        // Four ranks in each, a rank's two sums side by side.
        let mut products = [[_mm256_setzero_si256(); 2]; N];
        // SAFETY: block `index` has 8 quads of these ranks, as many scales, and a place in every row.
        unsafe {
            for at in 0..BLOCK / QUAD {
                let a = q.as_ptr().add(((index * BLOCK / QUAD + at) * width + half * RANKS) * QUAD);
                let a = [0, 16].map(|skip| _mm256_cvtepi8_epi16(_mm_loadu_si128(a.add(skip).cast())));
                for (products, row) in products.iter_mut().zip(rows) {
                    let x = row.q.as_ptr().add(index * BLOCK + at * QUAD).cast::<i32>().read_unaligned();
                    let x = _mm256_broadcastq_epi64(_mm_cvtepi8_epi16(_mm_cvtsi32_si128(x)));
                    for (product, a) in products.iter_mut().zip(a) {
                        *product = _mm256_add_epi32(*product, _mm256_madd_epi16(a, x));
                    }
                }
            }
            let scale = load_scales(scales.as_ptr().add(index * width + half * RANKS));
            for ((sum, products), row) in sums.iter_mut().zip(products).zip(rows) {
                let joined = _mm256_hadd_epi32(products[0], products[1]);
                let product = _mm256_cvtepi32_ps(_mm256_permute4x64_epi64::<0b1101_1000>(joined));
                let x_scale = _mm256_set1_ps(*row.scales.get_unchecked(index));
                *sum = _mm256_fmadd_ps(_mm256_mul_ps(product, scale), x_scale, *sum);
            }
        }
    }
    for (sum, row) in sums.into_iter().zip(rows) {
        let out = &mut out[row.to + half * RANKS..][..RANKS];
        // SAFETY: `out` has room for 8.
        unsafe { _mm256_storeu_ps(out.as_mut_ptr(), sum) };
    }
}

/// Adds to the rows `rows` of `tile` (`[_, 16]`) their products with `q` (`[rank, 16]`), times `scales` and `scale`; `at` says where
/// the shrunk number of a rank is for row 0.
///
/// # Safety
/// `shrunk` holds what `at` says for every rank and row.
#[target_feature(enable = "avx2,fma")]
pub unsafe fn expand(
    q: &[u8],
    scales: Scales<'_>,
    shrunk: &[f32],
    at: impl Fn(usize) -> usize,
    rows: &[u32],
    scale: f32,
    tile: &mut [f32],
) {
    assert!(scales.len() == PANEL && rows.len() <= ROWS, "one panel, and rows that share it");
    // SAFETY: the caller's promise, and 16 scales.
    unsafe {
        let scale = [0, 8].map(|skip| _mm256_mul_ps(load_scales(scales.as_ptr().add(skip)), _mm256_set1_ps(scale)));
        by_rows!(rows.len(), expand_rows(q, scale, shrunk, at, rows, tile))
    }
}

/// # Safety
/// As [`expand`].
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn expand_rows<const N: usize>(
    q: &[u8],
    scale: [__m256; 2],
    shrunk: &[f32],
    at: impl Fn(usize) -> usize,
    rows: &[u32],
    tile: &mut [f32],
) {
    let mut sums = [[_mm256_setzero_ps(); 2]; N];
    // SAFETY: the caller's promise.
    let shrunk: [*const f32; N] =
        std::array::from_fn(|place| unsafe { shrunk.as_ptr().add(rows[place] as usize * RUN) });
    for (rank, values) in q.chunks_exact(PANEL).enumerate() {
        // SAFETY: a rank has 16 values; the caller's promise for `shrunk`.
        unsafe {
            let values = _mm_loadu_si128(values.as_ptr().cast());
            let values = [values, _mm_unpackhi_epi64(values, values)];
            let values = values.map(|values| _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(values)));
            let at = at(rank);
            for (shrunk, sums) in shrunk.iter().zip(&mut sums) {
                let t = _mm256_set1_ps(*shrunk.add(at));
                sums.iter_mut().zip(values).for_each(|(sum, value)| *sum = _mm256_fmadd_ps(t, value, *sum));
            }
        }
    }
    for (&row, sums) in rows.iter().zip(sums) {
        let to = &mut tile[row as usize * PANEL..][..PANEL];
        for ((to, sum), scale) in to.chunks_exact_mut(8).zip(sums).zip(scale) {
            // SAFETY: `to` has room for 8.
            unsafe { _mm256_storeu_ps(to.as_mut_ptr(), _mm256_fmadd_ps(sum, scale, _mm256_loadu_ps(to.as_ptr()))) };
        }
    }
}
