//! How each quantized encoding's blocks become registers of 16 outputs.

mod k;

use std::arch::x86_64::*;

pub(in super::super) use k::{K, Q6K};

use super::{
    super::formats::{GROUPS, layout},
    Fetch,
};
use crate::kernels::{
    dequant::Encoding,
    pack::{Layout, PANEL},
};

/// One quantized encoding.
///
/// # Safety
/// All functions: `unit` begins a unit of the encoding's panel and `block` one of its blocks, past the head; the machine
/// has AVX-512 F, BW, DQ, VL and VNNI.
pub(in super::super) trait Format {
    const LAYOUT: Layout;
    /// What the integers are, as unsigned bytes, more than what is meant.
    const OFFSET: u8;
    /// Whether the offset is taken off integer sums; if not, it is part of the [`mins`](Self::mins).
    const EXACT: bool;
    /// Whether the file has mins.
    const MINS: bool;
    /// Whether each half of a block has its own integer scale.
    const HALVES: bool;
    /// What a unit's head means for all of its blocks.
    type Head: Copy;

    unsafe fn head(unit: *const u8) -> Self::Head;

    /// A block's scales, without its halves' own.
    unsafe fn scales(head: Self::Head, block: *const u8) -> __m512;

    /// What is added to each integer's product with the scale; asked for only if not [`EXACT`](Self::EXACT).
    unsafe fn mins(head: Self::Head, block: *const u8) -> __m512;

    /// The halves' own scales; asked for only if there are [`HALVES`](Self::HALVES).
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn half_scales(_block: *const u8, _half: usize) -> __m512 {
        _mm512_set1_ps(1.0)
    }

    /// The integers of group `group`, as unsigned bytes.
    unsafe fn integers(block: *const u8, group: usize) -> __m512i;
}

pub(in super::super) struct Q8_0;
pub(in super::super) struct Q4<const MIN: bool>;
pub(in super::super) struct Q5<const MIN: bool>;

/// 16 × f16.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn halves(at: *const u8) -> __m512 {
    // SAFETY: the caller has 32 bytes there.
    unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(at.cast())) }
}

/// 16 × u8.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn bytes(at: *const u8) -> __m512 {
    // SAFETY: the caller has 16 bytes there.
    unsafe { _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(at.cast()))) }
}

/// The nibbles of group `group`, whose bytes begin at `body`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn nibbles(body: *const u8, group: usize) -> __m512i {
    // SAFETY: the caller has a block's body there, of 8 times 32 bytes.
    unsafe {
        let both = _mm512_broadcast_i64x4(_mm256_loadu_si256(body.add(32 * group).cast()));
        let shifts = _mm512_setr_epi64(0, 0, 0, 0, 4, 4, 4, 4);
        _mm512_and_si512(_mm512_srlv_epi64(both, shifts), _mm512_set1_epi8(15))
    }
}

/// `bits << 4 - at` or `bits >> at - 4`: what is at bit `at` of each byte comes to bit 4. Other bits are left as they fall.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn to_bit_4(bits: __m512i, at: usize) -> __m512i {
    match at {
        0 => _mm512_slli_epi16::<4>(bits),
        1 => _mm512_slli_epi16::<3>(bits),
        2 => _mm512_slli_epi16::<2>(bits),
        3 => _mm512_slli_epi16::<1>(bits),
        4 => bits,
        5 => _mm512_srli_epi16::<1>(bits),
        6 => _mm512_srli_epi16::<2>(bits),
        _ => _mm512_srli_epi16::<3>(bits),
    }
}

/// Nibbles with the bits above them: those under `mask` once they begin at bit 4.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn joined(nibbles: __m512i, high: *const u8, at: usize, mask: i8) -> __m512i {
    /// `a | b & c`
    const OR_AND: i32 = 0b1111_1000;
    // SAFETY: the caller has 64 bytes of high bits there.
    let high = to_bit_4(unsafe { _mm512_loadu_si512(high.cast()) }, at);
    _mm512_ternarylogic_epi32::<OR_AND>(nibbles, high, _mm512_set1_epi8(mask))
}

impl Format for Q8_0 {
    const LAYOUT: Layout = layout(Encoding::Q8_0);
    const OFFSET: u8 = 128;
    const EXACT: bool = true;
    const MINS: bool = false;
    const HALVES: bool = false;
    type Head = ();

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn head(_: *const u8) {}

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn scales((): (), block: *const u8) -> __m512 {
        // SAFETY: as the trait demands.
        unsafe { halves(block) }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn mins((): (), _: *const u8) -> __m512 {
        _mm512_set1_ps(-0.0)
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn integers(block: *const u8, group: usize) -> __m512i {
        // SAFETY: as the trait demands.
        let signed = unsafe { _mm512_loadu_si512(block.add(Self::LAYOUT.scales + 4 * PANEL * group).cast()) };
        _mm512_xor_si512(signed, _mm512_set1_epi8(-128))
    }
}

impl<const MIN: bool> Format for Q4<MIN> {
    const LAYOUT: Layout = layout(if MIN { Encoding::Q4_1 } else { Encoding::Q4_0 });
    const OFFSET: u8 = if MIN { 0 } else { 8 };
    const EXACT: bool = false;
    const MINS: bool = MIN;
    const HALVES: bool = false;
    type Head = ();

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn head(_: *const u8) {}

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn scales((): (), block: *const u8) -> __m512 {
        // SAFETY: as the trait demands.
        unsafe { halves(block) }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn mins((): (), block: *const u8) -> __m512 {
        // SAFETY: as the trait demands.
        unsafe { if MIN { halves(block.add(2 * PANEL)) } else { _mm512_mul_ps(halves(block), _mm512_set1_ps(-8.0)) } }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn integers(block: *const u8, group: usize) -> __m512i {
        // SAFETY: as the trait demands.
        unsafe { nibbles(block.add(Self::LAYOUT.scales), group) }
    }
}

impl<const MIN: bool> Format for Q5<MIN> {
    const LAYOUT: Layout = layout(if MIN { Encoding::Q5_1 } else { Encoding::Q5_0 });
    const OFFSET: u8 = if MIN { 0 } else { 16 };
    const EXACT: bool = false;
    const MINS: bool = MIN;
    const HALVES: bool = false;
    type Head = ();

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn head(_: *const u8) {}

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn scales((): (), block: *const u8) -> __m512 {
        // SAFETY: as the trait demands.
        unsafe { halves(block) }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn mins((): (), block: *const u8) -> __m512 {
        // SAFETY: as the trait demands.
        unsafe { if MIN { halves(block.add(2 * PANEL)) } else { _mm512_mul_ps(halves(block), _mm512_set1_ps(-16.0)) } }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn integers(block: *const u8, group: usize) -> __m512i {
        // SAFETY: as the trait demands.
        unsafe {
            let high = block.add(Self::LAYOUT.scales);
            joined(nibbles(high.add(Self::LAYOUT.high), group), high, group, 0x10)
        }
    }
}

/// A block that [`prepare`] has made of another format's, with as much as the constants say.
pub(in super::super) struct Ready<const OFFSET: u8, const HALVES: bool>;

/// Bytes of a [`Ready`] block: its scales, its mins or the first half's scales, the second half's, and its integers.
const READY: Layout = Layout { head: 0, scales: 3 * 4 * PANEL, high: 0, body: 4 * PANEL * GROUPS, blocks: 1 };

impl<const OFFSET: u8, const HALVES: bool> Format for Ready<OFFSET, HALVES> {
    const LAYOUT: Layout = READY;
    const OFFSET: u8 = OFFSET;
    const EXACT: bool = OFFSET > 0;
    const MINS: bool = OFFSET == 0;
    const HALVES: bool = HALVES;
    type Head = ();

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn head(_: *const u8) {}

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn scales((): (), block: *const u8) -> __m512 {
        // SAFETY: as the trait demands.
        unsafe { _mm512_loadu_ps(block.cast()) }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn mins((): (), block: *const u8) -> __m512 {
        // SAFETY: as the trait demands.
        unsafe { _mm512_loadu_ps(block.add(4 * PANEL).cast()) }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn half_scales(block: *const u8, half: usize) -> __m512 {
        // SAFETY: as the trait demands.
        unsafe { _mm512_loadu_ps(block.add(4 * PANEL * (1 + half)).cast()) }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn integers(block: *const u8, group: usize) -> __m512i {
        // SAFETY: as the trait demands.
        unsafe { _mm512_loadu_si512(block.add(READY.scales + 4 * PANEL * group).cast()) }
    }
}

/// Writes whole units as [`Ready`] blocks of the same kind, for rows that meet them more than once. `SIGNED`, an offset that is
/// taken off [`Format::EXACT`]ly is taken off the integers themselves, which then are signed bytes.
///
/// # Safety
/// The machine has AVX-512 F, BW, DQ, VL and VNNI; `to` has room for as many blocks.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(in super::super) unsafe fn prepare<F: Format, const SIGNED: bool>(units: &[u8], mut to: *mut u8) {
    // SAFETY: offsets are of parts that the layouts have.
    unsafe {
        for unit in units.chunks_exact(F::LAYOUT.unit()) {
            let head = F::head(unit.as_ptr());
            for block in 0..F::LAYOUT.blocks {
                let block = unit.as_ptr().add(F::LAYOUT.head + block * F::LAYOUT.block());
                Fetch::AHEAD.of(block, F::LAYOUT.block());
                _mm512_storeu_ps(to.cast(), F::scales(head, block));
                if F::HALVES {
                    _mm512_storeu_ps(to.add(4 * PANEL).cast(), F::half_scales(block, 0));
                    _mm512_storeu_ps(to.add(8 * PANEL).cast(), F::half_scales(block, 1));
                } else if !F::EXACT {
                    _mm512_storeu_ps(to.add(4 * PANEL).cast(), F::mins(head, block));
                }
                for group in 0..GROUPS {
                    let at = to.add(READY.scales + 4 * PANEL * group);
                    let mut integers = F::integers(block, group);
                    if SIGNED && F::EXACT {
                        integers = _mm512_sub_epi8(integers, _mm512_set1_epi8(F::OFFSET as i8));
                    }
                    _mm512_storeu_si512(at.cast(), integers);
                }
                to = to.add(READY.unit());
            }
        }
    }
}
