//! The K-quants: eight blocks behind a head.

use std::arch::x86_64::*;

use super::{Format, bytes, halves, joined, layout, negative, nibbles, product, signed_bytes};
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
    scales: [__m256; 2],
    mins: [__m256; 2],
}

impl Pair {
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn read(unit: *const u8) -> Self {
        // SAFETY: the caller has a head of 64 bytes there.
        unsafe { Self { scales: halves(unit), mins: halves(unit.add(2 * PANEL)) } }
    }
}

impl<const FIVE: bool> Format for K<FIVE> {
    const LAYOUT: Layout = layout(if FIVE { Encoding::Q5K } else { Encoding::Q4K });
    const OFFSET: i8 = 0;
    const MINS: bool = true;
    const SIGNED: bool = false;
    const RUN: usize = if FIVE { 4 } else { 8 };
    type Head = Pair;

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn head(unit: *const u8) -> Pair {
        // SAFETY: as the trait demands.
        unsafe { Pair::read(unit) }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn scales(head: Pair, block: *const u8) -> [__m256; 2] {
        // SAFETY: as the trait demands.
        unsafe { product(head.scales, bytes(block)) }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn mins(head: Pair, block: *const u8) -> [__m256; 2] {
        // SAFETY: as the trait demands.
        unsafe { negative(product(head.mins, bytes(block.add(PANEL)))) }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn integers(block: *const u8, group: usize) -> [__m256i; 2] {
        // SAFETY: as the trait demands.
        unsafe {
            let high = block.add(Self::LAYOUT.scales);
            let low = nibbles(high.add(Self::LAYOUT.high), group);
            if FIVE { joined(low, high, group, 0x10) } else { low }
        }
    }
}

/// A run is half a block, and is widened with that half's integer scale: 8 inputs a lane · 32 · 127 fit in `i16`, and two
/// halves of 2 · 32512 · 128 in `i32` and, exactly, in `f32`.
impl Format for Q6K {
    const LAYOUT: Layout = layout(Encoding::Q6K);
    const OFFSET: i8 = 32;
    const MINS: bool = false;
    const SIGNED: bool = true;
    const RUN: usize = 4;
    type Head = [__m256; 2];

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn head(unit: *const u8) -> [__m256; 2] {
        // SAFETY: as the trait demands.
        unsafe { halves(unit) }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn widening(block: *const u8, run: usize) -> [__m256i; 2] {
        // SAFETY: as the trait demands.
        unsafe {
            let [low, high] = signed_bytes(block.add(PANEL * run));
            [
                _mm256_blend_epi16::<0b1010_1010>(low, _mm256_slli_epi32::<16>(low)),
                _mm256_blend_epi16::<0b1010_1010>(high, _mm256_slli_epi32::<16>(high)),
            ]
        }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn scales(head: [__m256; 2], _: *const u8) -> [__m256; 2] {
        head
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn whole_scales(head: [__m256; 2], block: *const u8, half: usize) -> [__m256; 2] {
        // SAFETY: as the trait demands.
        unsafe {
            let [low, high] = signed_bytes(block.add(PANEL * half));
            product(head, [_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(high)])
        }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn mins(_: [__m256; 2], _: *const u8) -> [__m256; 2] {
        [_mm256_set1_ps(-0.0); 2]
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn integers(block: *const u8, group: usize) -> [__m256i; 2] {
        // SAFETY: as the trait demands.
        unsafe {
            let high = block.add(Self::LAYOUT.scales);
            let low = nibbles(high.add(Self::LAYOUT.high), group);
            joined(low, high.add(4 * PANEL * (group / 4)), 2 * (group % 4), 0x30)
        }
    }
}
