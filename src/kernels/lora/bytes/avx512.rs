//! Factors in 8 bits, in vectors of 16 with VNNI.

use std::arch::x86_64::*;

use super::{BLOCK, PANEL, QUAD, RANKS, RUN, Row, Scales};

/// Rows that share each number read.
pub const ROWS: usize = 8;

/// Quads in a block.
const QUADS: usize = BLOCK / QUAD;

/// Added to every activation, since VNNI takes one side without sign; its products are taken off again.
const SHIFT: i32 = 0x8080_8080_u32 as i32;

/// Calls `$name::<N>` for a number of rows from 1 to 8.
macro_rules! by_rows {
    ($rows:expr, $name:ident($($argument:expr),*)) => {
        match $rows {
            1 => $name::<1>($($argument),*),
            2 => $name::<2>($($argument),*),
            3 => $name::<3>($($argument),*),
            4 => $name::<4>($($argument),*),
            5 => $name::<5>($($argument),*),
            6 => $name::<6>($($argument),*),
            7 => $name::<7>($($argument),*),
            _ => $name::<8>($($argument),*),
        }
    };
}

/// Sixteen scales as `f32`.
///
/// # Safety
/// 16 values can be read at `from`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn load_scales(from: *const [u8; 2]) -> __m512 {
    // SAFETY: the caller's promise.
    let bits = unsafe { _mm256_loadu_si256(from.cast()) };
    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(bits)))
}

/// Four activations of a block of 32, shifted.
///
/// # Safety
/// The row has block `index`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn quad(row: Row<'_>, index: usize, quad: usize) -> i32 {
    // SAFETY: the caller's promise.
    unsafe { row.q.as_ptr().add(index * BLOCK + quad * QUAD).cast::<i32>().read_unaligned() }
}

/// Products of `rows` with 16 ranks go to each row's place in `out`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub fn shrink_wide(q: &[u8], scales: Scales<'_>, rows: &[Row<'_>], out: &mut [f32]) {
    by_rows!(rows.len(), wide(q, scales, rows, out))
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn wide<const N: usize>(q: &[u8], scales: Scales<'_>, rows: &[Row<'_>], out: &mut [f32]) {
    let blocks = scales.len() / RUN;
    assert!(q.len() == blocks * BLOCK * RUN && rows.len() == N, "a run of 16 ranks");
    assert!(rows.iter().all(|row| row.q.len() == blocks * BLOCK && row.scales.len() == blocks), "rows of its inputs");
    let rows: [Row<'_>; N] = std::array::from_fn(|row| rows[row]);
    let shift = _mm512_set1_epi32(SHIFT);
    let mut sums = [_mm512_setzero_ps(); N];
    for index in 0..blocks {
        let (mut products, mut shifted) = ([_mm512_setzero_si512(); N], _mm512_setzero_si512());
        // SAFETY: block `index` has 8 quads of 16 ranks, as many scales, and a place in every row.
        unsafe {
            for at in 0..QUADS {
                let a = _mm512_loadu_si512(q.as_ptr().add((index * QUADS + at) * RUN * QUAD).cast());
                shifted = _mm512_dpbusd_epi32(shifted, shift, a);
                for (product, row) in products.iter_mut().zip(rows) {
                    let x = _mm512_xor_si512(_mm512_set1_epi32(quad(row, index, at)), shift);
                    *product = _mm512_dpbusd_epi32(*product, x, a);
                }
            }
            let scale = load_scales(scales.as_ptr().add(index * RUN));
            for ((sum, product), row) in sums.iter_mut().zip(products).zip(rows) {
                let product = _mm512_cvtepi32_ps(_mm512_sub_epi32(product, shifted));
                let x_scale = _mm512_set1_ps(*row.scales.get_unchecked(index));
                *sum = _mm512_fmadd_ps(_mm512_mul_ps(product, scale), x_scale, *sum);
            }
        }
    }
    for (sum, row) in sums.into_iter().zip(rows) {
        let out = &mut out[row.to..][..RUN];
        // SAFETY: `out` has room for 16.
        unsafe { _mm512_storeu_ps(out.as_mut_ptr(), sum) };
    }
}

/// Products of `rows` with 8 ranks go to each row's place in `out`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub fn shrink_narrow(q: &[u8], scales: Scales<'_>, rows: &[Row<'_>], out: &mut [f32]) {
    by_rows!(rows.len(), narrow(q, scales, rows, out))
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn narrow<const N: usize>(q: &[u8], scales: Scales<'_>, rows: &[Row<'_>], out: &mut [f32]) {
    let blocks = scales.len() / RANKS;
    assert!(q.len() == blocks * BLOCK * RANKS && rows.len() == N, "a run of 8 ranks");
    assert!(rows.iter().all(|row| row.q.len() == blocks * BLOCK && row.scales.len() == blocks), "rows of its inputs");
    let rows: [Row<'_>; N] = std::array::from_fn(|row| rows[row]);
    let shift = _mm256_set1_epi32(SHIFT);
    let mut sums = [_mm256_setzero_ps(); N];
    for index in 0..blocks {
        let (mut products, mut shifted) = ([_mm256_setzero_si256(); N], _mm256_setzero_si256());
        // SAFETY: block `index` has 8 quads of 8 ranks, as many scales, and a place in every row.
        unsafe {
            for at in 0..QUADS {
                let a = _mm256_loadu_si256(q.as_ptr().add((index * QUADS + at) * RANKS * QUAD).cast());
                shifted = _mm256_dpbusd_epi32(shifted, shift, a);
                for (product, row) in products.iter_mut().zip(rows) {
                    let x = _mm256_xor_si256(_mm256_set1_epi32(quad(row, index, at)), shift);
                    *product = _mm256_dpbusd_epi32(*product, x, a);
                }
            }
            let bits = _mm_loadu_si128(scales.as_ptr().add(index * RANKS).cast());
            let scale = _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(bits)));
            for ((sum, product), row) in sums.iter_mut().zip(products).zip(rows) {
                let product = _mm256_cvtepi32_ps(_mm256_sub_epi32(product, shifted));
                let x_scale = _mm256_set1_ps(*row.scales.get_unchecked(index));
                *sum = _mm256_fmadd_ps(_mm256_mul_ps(product, scale), x_scale, *sum);
            }
        }
    }
    for (sum, row) in sums.into_iter().zip(rows) {
        let out = &mut out[row.to..][..RANKS];
        // SAFETY: `out` has room for 8.
        unsafe { _mm256_storeu_ps(out.as_mut_ptr(), sum) };
    }
}

/// Panels of a B: what lies at a panel's place, and where the next one begins.
pub struct Panels<'a> {
    pub rank: usize,
    /// `[panels, rank, 16]`
    pub q: &'a [u8],
    /// `[panels, 16]`
    pub scales: Scales<'a>,
    pub scale: f32,
}

/// Adds to the rows `rows` of `tiles` (`[panels, _, 16]`, `stride` numbers from one panel to the next) their products with the
/// panels; `at` says where the shrunk number of a rank is for row 0.
///
/// # Safety
/// `shrunk` holds what `at` says for every rank and row.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub unsafe fn expand(
    b: &Panels<'_>,
    shrunk: &[f32],
    at: impl Fn(usize) -> usize,
    rows: &[u32],
    tiles: &mut [f32],
    stride: usize,
) {
    let count = b.scales.len() / PANEL;
    assert!(b.q.len() == count * b.rank * PANEL && rows.len() <= ROWS, "panels, and rows that share them");
    // One row alone has few sums under way, so more panels go together.
    let most = if rows.len() <= 2 { 4 } else { 2 };
    let mut panel = 0;
    // SAFETY: the caller's promise; panels `panel` to `panel + step` are there.
    unsafe {
        while panel < count {
            let step = if panel + most <= count { most } else { 1 };
            let tiles = &mut tiles[panel * stride..];
            match step {
                4 if rows.len() == 1 => expand_rows::<1, 4>(b, panel, shrunk, &at, rows, tiles, stride),
                4 => expand_rows::<2, 4>(b, panel, shrunk, &at, rows, tiles, stride),
                2 => by_rows!(rows.len(), expand_two(b, panel, shrunk, &at, rows, tiles, stride)),
                _ => by_rows!(rows.len(), expand_one(b, panel, shrunk, &at, rows, tiles, stride)),
            }
            panel += step;
        }
    }
}

/// Names a number of panels of [`expand_rows`].
macro_rules! panels {
    ($($name:ident = $panels:literal),*) => {$(
        /// # Safety
        /// As [`expand_rows`].
        #[inline]
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
        unsafe fn $name<const N: usize>(
            b: &Panels<'_>,
            panel: usize,
            shrunk: &[f32],
            at: &impl Fn(usize) -> usize,
            rows: &[u32],
            tiles: &mut [f32],
            stride: usize,
        ) {
            // SAFETY: the caller's promise.
            unsafe { expand_rows::<N, $panels>(b, panel, shrunk, at, rows, tiles, stride) }
        }
    )*};
}

panels! { expand_one = 1, expand_two = 2 }

/// # Safety
/// As [`expand`], and there are `P` panels from `panel` on.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn expand_rows<const N: usize, const P: usize>(
    b: &Panels<'_>,
    panel: usize,
    shrunk: &[f32],
    at: &impl Fn(usize) -> usize,
    rows: &[u32],
    tiles: &mut [f32],
    stride: usize,
) {
    let size = b.rank * PANEL;
    // SAFETY: the panels are there; a rank has 16 values in each; the caller's promise for `shrunk`.
    unsafe {
        let q = b.q.as_ptr().add(panel * size);
        let shrunk: [*const f32; N] = std::array::from_fn(|place| shrunk.as_ptr().add(rows[place] as usize * RUN));
        let mut sums = [[_mm512_setzero_ps(); P]; N];
        for rank in 0..b.rank {
            let values: [__m512; P] = std::array::from_fn(|place| {
                let bytes = _mm_loadu_si128(q.add(place * size + rank * PANEL).cast());
                _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes))
            });
            let at = at(rank);
            for (shrunk, sums) in shrunk.iter().zip(&mut sums) {
                let t = _mm512_set1_ps(*shrunk.add(at));
                for (sum, value) in sums.iter_mut().zip(values) {
                    *sum = _mm512_fmadd_ps(t, value, *sum);
                }
            }
        }
        for place in 0..P {
            let scales = load_scales(b.scales.as_ptr().add((panel + place) * PANEL));
            let scale = _mm512_mul_ps(scales, _mm512_set1_ps(b.scale));
            for (&row, sums) in rows.iter().zip(&sums) {
                let to = &mut tiles[place * stride + row as usize * PANEL..][..PANEL];
                _mm512_storeu_ps(to.as_mut_ptr(), _mm512_fmadd_ps(sums[place], scale, _mm512_loadu_ps(to.as_ptr())));
            }
        }
    }
}
