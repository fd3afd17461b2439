//! The K-quants: eight blocks behind a head.

use std::arch::x86_64::*;

use super::{Format, bytes, halves, joined, layout, nibbles};
use crate::kernels::{
    dequant::Encoding,
    pack::{Layout, PANEL},
};

/// Q4_K and Q5_K.
pub struct K<const FIVE: bool>;

pub struct Q6K;

/// Scales and min scales of a Q4_K or Q5_K unit.
#[derive(Clone, Copy)]
pub struct Pair {
    scales: __m512,
    mins: __m512,
}

impl<const FIVE: bool> Format for K<FIVE> {
    const LAYOUT: Layout = layout(if FIVE { Encoding::Q5K } else { Encoding::Q4K });
    const OFFSET: u8 = 0;
    const EXACT: bool = false;
    const MINS: bool = true;
    const HALVES: bool = false;
    type Head = Pair;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn head(unit: *const u8) -> Pair {
        // SAFETY: as the trait demands.
        unsafe { Pair { scales: halves(unit), mins: halves(unit.add(2 * PANEL)) } }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn scales(head: Pair, block: *const u8) -> __m512 {
        // SAFETY: as the trait demands.
        unsafe { _mm512_mul_ps(head.scales, bytes(block)) }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn mins(head: Pair, block: *const u8) -> __m512 {
        // SAFETY: as the trait demands.
        let mins = unsafe { _mm512_mul_ps(head.mins, bytes(block.add(PANEL))) };
        _mm512_xor_ps(mins, _mm512_set1_ps(-0.0))
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn integers(block: *const u8, group: usize) -> __m512i {
        // SAFETY: as the trait demands.
        unsafe {
            let high = block.add(Self::LAYOUT.scales);
            let low = nibbles(high.add(Self::LAYOUT.high), group);
            if FIVE { joined(low, high, group, 0x10) } else { low }
        }
    }
}

impl Format for Q6K {
    const LAYOUT: Layout = layout(Encoding::Q6K);
    const OFFSET: u8 = 32;
    const EXACT: bool = true;
    const MINS: bool = false;
    const HALVES: bool = true;
    type Head = __m512;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn head(unit: *const u8) -> __m512 {
        // SAFETY: as the trait demands.
        unsafe { halves(unit) }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn scales(head: __m512, _: *const u8) -> __m512 {
        head
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn mins(_: __m512, _: *const u8) -> __m512 {
        _mm512_set1_ps(-0.0)
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn half_scales(block: *const u8, half: usize) -> __m512 {
        // SAFETY: as the trait demands.
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(block.add(PANEL * half).cast()))) }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn integers(block: *const u8, group: usize) -> __m512i {
        // SAFETY: as the trait demands.
        unsafe {
            let high = block.add(Self::LAYOUT.scales);
            let low = nibbles(high.add(Self::LAYOUT.high), group);
            joined(low, high.add(4 * PANEL * (group / 4)), 2 * (group % 4), 0x30)
        }
    }
}
