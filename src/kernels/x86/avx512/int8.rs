//! Panels of quantized weights times int8 rows: four products and their sum in one instruction for each output.
//!
//! Bit for bit what AVX2 gives: integer sums are exact, and the floats meet in the same order.

use std::{arch::x86_64::*, mem::MaybeUninit};

use super::{
    super::{CHUNK_BYTES, amx, share},
    Fetch,
    formats::{Format, K, Q4, Q5, Q6K, Q8_0, Ready, prepare},
};
use crate::kernels::{
    dequant::Encoding,
    pack::{BLOCK, PANEL, Packed},
    quantize::{BlockSum, QuantizedRows},
};

/// Rows in a register tile: with two registers each, enough that the multiplier never waits for its own results.
const ROWS: usize = 8;

/// Blocks that are prepared at a time: little enough to stay in the nearest cache.
pub(in super::super) const READY_BLOCKS: usize = 24;

/// [`crate::kernels::matmul::panel_int8`]; with `tiles`, by AMX for many rows.
///
/// # Safety
/// The machine has AVX-512 F, BW, DQ, VL and VNNI, and AMX as [`amx::available`] says if there shall be `tiles`; `x` has the
/// weights' inputs, in slices that agree, and `tile` its rows.
pub unsafe fn panel(weights: &Packed, panel: usize, x: &QuantizedRows<'_>, tiles: bool, tile: &mut [f32]) {
    let bytes = weights.panel(panel);
    tile.fill(0.0);
    // SAFETY: as demanded of the caller; each format is the encoding's own, and each kind of ready block the format's.
    unsafe {
        match weights.encoding() {
            Encoding::Q8_0 => whole::<Q8_0, Ready<128, false>>(bytes, x, tiles, tile),
            Encoding::Q4_0 => whole::<Q4<false>, Ready<0, false>>(bytes, x, tiles, tile),
            Encoding::Q4_1 => whole::<Q4<true>, Ready<0, false>>(bytes, x, tiles, tile),
            Encoding::Q5_0 => whole::<Q5<false>, Ready<0, false>>(bytes, x, tiles, tile),
            Encoding::Q5_1 => whole::<Q5<true>, Ready<0, false>>(bytes, x, tiles, tile),
            Encoding::Q4K => whole::<K<false>, Ready<0, false>>(bytes, x, tiles, tile),
            Encoding::Q5K => whole::<K<true>, Ready<0, false>>(bytes, x, tiles, tile),
            Encoding::Q6K => whole::<Q6K, Ready<32, true>>(bytes, x, tiles, tile),
            Encoding::F32 | Encoding::F16 | Encoding::BF16 => {}
        }
    }
}

/// # Safety
/// As of [`panel`]; `bytes` are a panel of the format `F`, which [`prepare`] makes blocks of the kind `P` of.
unsafe fn whole<F: Format, P: Format>(bytes: &[u8], x: &QuantizedRows<'_>, tiles: bool, tile: &mut [f32]) {
    let rows = tile.len() / PANEL;
    // SAFETY: as demanded of the caller.
    unsafe {
        if tiles && rows >= amx::ROWS {
            let done = amx::whole_tiles::<F, P>(bytes, x, tile);
            return by_registers::<F, P>(bytes, &x.rest(done), &mut tile[done * PANEL..]);
        }
        by_registers::<F, P>(bytes, x, tile);
    }
}

/// # Safety
/// As of [`whole`].
unsafe fn by_registers<F: Format, P: Format>(bytes: &[u8], x: &QuantizedRows<'_>, tile: &mut [f32]) {
    // SAFETY: as demanded of the caller.
    unsafe {
        if tile.len() > ROWS * PANEL {
            return prepared::<F, P>(bytes, x, tile);
        }
        let units = (CHUNK_BYTES / F::LAYOUT.unit()).max(1);
        for (chunk, bytes) in bytes.chunks(units * F::LAYOUT.unit()).enumerate() {
            all_rows::<F>(bytes, chunk * units * F::LAYOUT.blocks, Fetch::AHEAD, x, tile);
        }
    }
}

/// Several tiles of rows: they share what is made of the weights' bytes.
///
/// # Safety
/// As of [`whole`].
unsafe fn prepared<F: Format, P: Format>(bytes: &[u8], x: &QuantizedRows<'_>, tile: &mut [f32]) {
    let mut room = Room(MaybeUninit::uninit());
    let units = READY_BLOCKS / F::LAYOUT.blocks;
    for (chunk, bytes) in bytes.chunks(units * F::LAYOUT.unit()).enumerate() {
        let blocks = bytes.len() / F::LAYOUT.unit() * F::LAYOUT.blocks;
        // SAFETY: as demanded of the caller; a chunk has at most as many blocks as there is room for, and all that is read
        // of them has been written.
        unsafe {
            prepare::<F, false>(bytes, room.0.as_mut_ptr().cast());
            let ready = std::slice::from_raw_parts(room.0.as_ptr().cast(), blocks * P::LAYOUT.unit());
            all_rows::<P>(ready, chunk * units * F::LAYOUT.blocks, Fetch::NOTHING, x, tile);
        }
    }
}

#[repr(align(64))]
pub(in super::super) struct Room(pub MaybeUninit<[u8; READY_BLOCKS * Ready::<0, false>::LAYOUT.unit()]>);

/// Adds the products of the units in `bytes`, which begin at block `first_block` of the panel, with all rows to `tile`; on the
/// way, weights that follow are asked for.
///
/// # Safety
/// As of [`panel`]; `bytes` are units of the format.
unsafe fn all_rows<F: Format>(bytes: &[u8], first_block: usize, fetch: Fetch, x: &QuantizedRows<'_>, tile: &mut [f32]) {
    let blocks = x.inputs / BLOCK;
    share(tile.len() / PANEL, ROWS, |_, first, count| {
        let rows = Rows {
            q: &x.q[first * x.inputs..(first + count) * x.inputs],
            scales: &x.scales[first * blocks..(first + count) * blocks],
            sums: &x.sums[first * blocks..(first + count) * blocks],
            blocks,
            first_block,
        };
        let tile = &mut tile[first * PANEL..(first + count) * PANEL];
        // SAFETY: as demanded of the caller; the rows and `tile` are as many as the constant says.
        unsafe {
            match count {
                1 => some_rows::<F, 1>(bytes, rows, fetch, tile),
                2 => some_rows::<F, 2>(bytes, rows, fetch, tile),
                3 => some_rows::<F, 3>(bytes, rows, fetch, tile),
                4 => some_rows::<F, 4>(bytes, rows, fetch, tile),
                5 => some_rows::<F, 5>(bytes, rows, fetch, tile),
                6 => some_rows::<F, 6>(bytes, rows, fetch, tile),
                7 => some_rows::<F, 7>(bytes, rows, fetch, tile),
                _ => some_rows::<F, ROWS>(bytes, rows, fetch, tile),
            }
        }
    });
}

/// The rows of a register tile.
struct Rows<'a> {
    q: &'a [i8],
    scales: &'a [f32],
    sums: &'a [BlockSum],
    /// In a row.
    blocks: usize,
    /// Where the chunk begins.
    first_block: usize,
}

/// Places at the same distance from each other: of two pointers and two distances an instruction makes the address of any of
/// eight rows by itself.
struct Strided<T> {
    first: *const T,
    fifth: *const T,
    /// In bytes, once and three times.
    stride: [usize; 2],
}

impl<T> Clone for Strided<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Strided<T> {}

impl<T> Strided<T> {
    fn new(first: &[T], stride: usize) -> Self {
        let bytes = stride * size_of::<T>();
        let first = first.as_ptr();
        Self { first, fifth: hidden(first.wrapping_byte_add(4 * bytes)), stride: [bytes, hidden(3 * bytes)] }
    }

    #[inline]
    fn row(self, row: usize) -> *const T {
        let [once, thrice] = self.stride;
        let base = if row < 4 { self.first } else { self.fifth };
        base.wrapping_byte_add([0, once, 2 * once, thrice][row % 4])
    }

    #[inline]
    fn after(self, count: usize) -> Self {
        Self { first: self.first.wrapping_add(count), fifth: self.fifth.wrapping_add(count), ..self }
    }
}

/// A value that the compiler does not know to follow from others, so that it keeps it.
#[inline]
fn hidden<T: Copy>(mut value: T) -> T {
    const { assert!(size_of::<T>() == size_of::<usize>()) };
    // SAFETY: no instruction at all; the value is one machine word.
    unsafe {
        let word = (&raw mut value).cast::<usize>();
        std::arch::asm!("/* {0} */", inout(reg) * word, options(nomem, nostack, preserves_flags));
    }
    value
}

/// Adds the products of some units with `R` rows to `tile`.
///
/// # Safety
/// As of [`all_rows`]; `bytes` are units of a panel, and `x` and `tile` are `R` rows.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn some_rows<F: Format, const R: usize>(bytes: &[u8], x: Rows<'_>, fetch: Fetch, tile: &mut [f32]) {
    let mut totals = [_mm512_setzero_ps(); R];
    for (total, tile) in totals.iter_mut().zip(tile.chunks_exact(PANEL)) {
        // SAFETY: 16 floats are read where 16 are.
        *total = unsafe { _mm512_loadu_ps(tile.as_ptr()) };
    }
    let mut q = Strided::new(&x.q[x.first_block * BLOCK..], x.blocks * BLOCK);
    let mut scales = Strided::new(&x.scales[x.first_block..], x.blocks);
    let mut sums = Strided::new(&x.sums[x.first_block..], x.blocks);
    for unit in bytes.chunks_exact(F::LAYOUT.unit()) {
        // SAFETY: `unit` is a unit of the format, in which `block` is each of its blocks; the pointers into the rows move on
        // with it, by as many blocks as the panel and each of the `R` rows have.
        unsafe {
            let head = F::head(unit.as_ptr());
            for block in 0..F::LAYOUT.blocks {
                let block = unit.as_ptr().add(F::LAYOUT.head + block * F::LAYOUT.block());
                fetch.of(block, F::LAYOUT.block());
                let dots = dots::<F, R>(block, q, sums);
                let weights = F::scales(head, block);
                let mins = F::mins(head, block);
                for row in 0..R {
                    let scale = _mm512_mul_ps(weights, _mm512_set1_ps(*scales.row(row)));
                    totals[row] = _mm512_fmadd_ps(dots[row], scale, totals[row]);
                    if !F::EXACT {
                        let sum = _mm512_set1_ps((*sums.row(row)).value);
                        totals[row] = _mm512_fmadd_ps(mins, sum, totals[row]);
                    }
                }
                (q, scales, sums) = (q.after(BLOCK), scales.after(1), sums.after(1));
            }
        }
    }
    for (total, tile) in totals.iter().zip(tile.chunks_exact_mut(PANEL)) {
        // SAFETY: 16 floats are written where 16 are.
        unsafe { _mm512_storeu_ps(tile.as_mut_ptr(), *total) };
    }
}

/// The dot products of a block's integers with the same block of `R` rows; whole numbers below 2^24.
///
/// # Safety
/// `block` is one of the format's, `q` and `sums` are at that block of the rows; the machine has AVX-512 with VNNI.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn dots<F: Format, const R: usize>(block: *const u8, q: Strided<i8>, sums: Strided<BlockSum>) -> [__m512; R] {
    let mut dots = [_mm512_setzero_si512(); R];
    for (row, dot) in dots.iter_mut().enumerate() {
        // SAFETY: as demanded of the caller.
        *dot = unsafe { start::<F>(0, sums.row(row)) };
    }
    // Written out, since the compiler does not unroll it: only so are offsets part of the instructions.
    macro_rules! groups {
        ($($group:literal)*) => {$(
            // SAFETY: as demanded of the caller.
            let weights = unsafe { F::integers(block, $group) };
            for (row, dot) in dots.iter_mut().enumerate() {
                // SAFETY: as demanded of the caller.
                let four = unsafe { q.row(row).add(4 * $group).cast::<i32>().read_unaligned() };
                *dot = _mm512_dpbusd_epi32(*dot, weights, _mm512_set1_epi32(four));
                stay(dot);
            }
        )*};
    }
    let mut products = [_mm512_setzero_ps(); R];
    groups!(0 1 2 3);
    if F::HALVES {
        for (row, dot) in dots.iter_mut().enumerate() {
            // SAFETY: as demanded of the caller.
            unsafe {
                products[row] = _mm512_mul_ps(_mm512_cvtepi32_ps(*dot), F::half_scales(block, 0));
                *dot = start::<F>(1, sums.row(row));
            }
        }
    }
    groups!(4 5 6 7);
    for (product, dot) in products.iter_mut().zip(dots) {
        let dot = _mm512_cvtepi32_ps(dot);
        *product = match F::HALVES {
            // SAFETY: as demanded of the caller. Exact: two halves of 16 · 32 · 127 · 128 stay below 2^24.
            true => unsafe { _mm512_fmadd_ps(dot, F::half_scales(block, 1), *product) },
            false => dot,
        };
    }
    products
}

/// What takes the offset off the sum of a block, or of its half `part`, that is begun with it.
///
/// # Safety
/// The machine has AVX-512 with VNNI.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn start<F: Format>(part: usize, sum: *const BlockSum) -> __m512i {
    if !F::EXACT {
        return _mm512_setzero_si512();
    }
    let off = (-i16::from(F::OFFSET)) as u16 as i32;
    let factors = match (F::HALVES, part) {
        (false, _) => off << 16 | off,
        (true, 0) => off,
        (true, _) => off << 16,
    };
    // SAFETY: the two halves' sums are one aligned word, a pair of `i16`.
    let halves = unsafe { (&raw const (*sum).halves).cast::<i32>().read_unaligned() };
    _mm512_madd_epi16(_mm512_set1_epi32(factors), _mm512_set1_epi32(halves))
}

/// Has the sum in a register at this point: the compiler may not take the sums of a tile apart and compute one after the
/// other, with the weights of all groups spilled.
#[inline]
#[target_feature(enable = "avx512f")]
fn stay(sum: &mut __m512i) {
    // SAFETY: no instruction at all.
    unsafe { std::arch::asm!("/* {0} */", inout(zmm_reg) * sum, options(nomem, nostack, preserves_flags)) };
}
