//! How each quantized encoding's blocks become registers.

mod k;

use std::arch::x86_64::*;

pub(super) use k::{K, Q6K};

use crate::kernels::{
    dequant::Encoding,
    pack::{BLOCK, Layout, PANEL},
};

/// Groups of four inputs in a block.
pub(super) const GROUPS: usize = BLOCK / 4;

/// One quantized encoding. Pairs of registers are outputs 0–7 and 8–15 of a panel.
///
/// # Safety
/// All functions: `unit` begins a unit of the encoding's panel and `block` one of its blocks, past the head; the machine
/// has AVX2, FMA and F16C.
pub(super) trait Format {
    const LAYOUT: Layout;
    /// What is stored is so much more than what is meant.
    const OFFSET: i8;
    /// Whether a block has mins.
    const MINS: bool;
    /// Whether products are of signed integers, so that no offset is left for the activations' sums.
    const SIGNED: bool;
    /// Groups of four inputs whose products, two to a lane, fit in an `i16`: 2 · RUN · largest integer · 127 < 32768.
    const RUN: usize;
    /// Rows of activations in a register tile.
    const ROWS: usize = 4;
    /// What a unit's head means for all of its blocks.
    type Head: Copy;

    unsafe fn head(unit: *const u8) -> Self::Head;

    /// The factors that the `i16` sums of run `run` meet when they are widened, for each output in both halves of its lane.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn widening(_block: *const u8, _run: usize) -> [__m256i; 2] {
        [_mm256_set1_epi16(1); 2]
    }

    /// The scales that are left after [`widening`](Self::widening).
    unsafe fn scales(head: Self::Head, block: *const u8) -> [__m256; 2];

    /// The whole scales of one half of a block.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn whole_scales(head: Self::Head, block: *const u8, _half: usize) -> [__m256; 2] {
        // SAFETY: as the trait demands.
        unsafe { Self::scales(head, block) }
    }

    /// What is added to each weight; asked for only if there are [`MINS`](Self::MINS).
    unsafe fn mins(head: Self::Head, block: *const u8) -> [__m256; 2];

    /// The integers of group `group`, as they are stored.
    unsafe fn integers(block: *const u8, group: usize) -> [__m256i; 2];
}

pub(super) struct Q8_0;
pub(super) struct Q4<const MIN: bool>;
pub(super) struct Q5<const MIN: bool>;

pub(super) const fn layout(encoding: Encoding) -> Layout {
    match Layout::of(encoding) {
        Some(layout) => layout,
        None => panic!("a float encoding has no blocks"),
    }
}

/// 16 × f16.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn halves(at: *const u8) -> [__m256; 2] {
    // SAFETY: the caller has 32 bytes there.
    unsafe { [_mm256_cvtph_ps(_mm_loadu_si128(at.cast())), _mm256_cvtph_ps(_mm_loadu_si128(at.add(16).cast()))] }
}

/// 16 × u8.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn bytes(at: *const u8) -> [__m256; 2] {
    // SAFETY: the caller has 16 bytes there.
    unsafe {
        let (low, high) = (_mm_loadl_epi64(at.cast()), _mm_loadl_epi64(at.add(8).cast()));
        [_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(low)), _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(high))]
    }
}

/// 16 × i8 as `i32`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn signed_bytes(at: *const u8) -> [__m256i; 2] {
    // SAFETY: the caller has 16 bytes there.
    unsafe {
        let (low, high) = (_mm_loadl_epi64(at.cast()), _mm_loadl_epi64(at.add(8).cast()));
        [_mm256_cvtepi8_epi32(low), _mm256_cvtepi8_epi32(high)]
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn product(a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
    [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])]
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn negative(of: [__m256; 2]) -> [__m256; 2] {
    of.map(|of| _mm256_xor_ps(of, _mm256_set1_ps(-0.0)))
}

/// The low and the high nibbles of group `group`, whose bytes begin at `body`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn nibbles(body: *const u8, group: usize) -> [__m256i; 2] {
    // SAFETY: the caller has a block's body there, of 8 times 32 bytes.
    unsafe {
        let both = _mm256_loadu_si256(body.add(32 * group).cast());
        let low = _mm256_set1_epi8(15);
        [_mm256_and_si256(both, low), _mm256_and_si256(_mm256_srli_epi16::<4>(both), low)]
    }
}

/// `bits << 4 - at` or `bits >> at - 4`: what is at bit `at` of each byte comes to bit 4. Other bits are left as they fall.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn to_bit_4(bits: __m256i, at: usize) -> __m256i {
    match at {
        0 => _mm256_slli_epi16::<4>(bits),
        1 => _mm256_slli_epi16::<3>(bits),
        2 => _mm256_slli_epi16::<2>(bits),
        3 => _mm256_slli_epi16::<1>(bits),
        4 => bits,
        5 => _mm256_srli_epi16::<1>(bits),
        6 => _mm256_srli_epi16::<2>(bits),
        _ => _mm256_srli_epi16::<3>(bits),
    }
}

/// Nibbles with the bits above them: those under `mask` once they begin at bit 4.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn joined(nibbles: [__m256i; 2], high: *const u8, at: usize, mask: i8) -> [__m256i; 2] {
    // SAFETY: the caller has 64 bytes of high bits there.
    unsafe {
        let mask = _mm256_set1_epi8(mask);
        let low = to_bit_4(_mm256_loadu_si256(high.cast()), at);
        let high = to_bit_4(_mm256_loadu_si256(high.add(32).cast()), at);
        [
            _mm256_or_si256(nibbles[0], _mm256_and_si256(low, mask)),
            _mm256_or_si256(nibbles[1], _mm256_and_si256(high, mask)),
        ]
    }
}

impl Format for Q8_0 {
    const LAYOUT: Layout = layout(Encoding::Q8_0);
    const OFFSET: i8 = 0;
    const MINS: bool = false;
    const SIGNED: bool = true;
    const RUN: usize = 1;
    type Head = ();

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn head(_: *const u8) {}

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn scales((): (), block: *const u8) -> [__m256; 2] {
        // SAFETY: as the trait demands.
        unsafe { halves(block) }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn mins((): (), _: *const u8) -> [__m256; 2] {
        [_mm256_set1_ps(-0.0); 2]
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn integers(block: *const u8, group: usize) -> [__m256i; 2] {
        // SAFETY: as the trait demands.
        unsafe {
            let body = block.add(Self::LAYOUT.scales + 64 * group);
            [_mm256_loadu_si256(body.cast()), _mm256_loadu_si256(body.add(32).cast())]
        }
    }
}

impl<const MIN: bool> Format for Q4<MIN> {
    const LAYOUT: Layout = layout(if MIN { Encoding::Q4_1 } else { Encoding::Q4_0 });
    const OFFSET: i8 = if MIN { 0 } else { 8 };
    const MINS: bool = MIN;
    const SIGNED: bool = false;
    const RUN: usize = 8;
    type Head = ();

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn head(_: *const u8) {}

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn scales((): (), block: *const u8) -> [__m256; 2] {
        // SAFETY: as the trait demands.
        unsafe { halves(block) }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn mins((): (), block: *const u8) -> [__m256; 2] {
        // SAFETY: as the trait demands.
        unsafe { halves(block.add(2 * PANEL)) }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn integers(block: *const u8, group: usize) -> [__m256i; 2] {
        // SAFETY: as the trait demands.
        unsafe { nibbles(block.add(Self::LAYOUT.scales), group) }
    }
}

impl<const MIN: bool> Format for Q5<MIN> {
    const LAYOUT: Layout = layout(if MIN { Encoding::Q5_1 } else { Encoding::Q5_0 });
    const OFFSET: i8 = if MIN { 0 } else { 16 };
    const MINS: bool = MIN;
    const SIGNED: bool = false;
    const RUN: usize = 4;
    type Head = ();

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn head(_: *const u8) {}

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn scales((): (), block: *const u8) -> [__m256; 2] {
        // SAFETY: as the trait demands.
        unsafe { halves(block) }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn mins((): (), block: *const u8) -> [__m256; 2] {
        // SAFETY: as the trait demands.
        unsafe { halves(block.add(2 * PANEL)) }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn integers(block: *const u8, group: usize) -> [__m256i; 2] {
        // SAFETY: as the trait demands.
        unsafe {
            let high = block.add(Self::LAYOUT.scales);
            joined(nibbles(high.add(Self::LAYOUT.high), group), high, group, 0x10)
        }
    }
}
