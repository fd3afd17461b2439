//! The kernels in AVX-512 (F, BW, DQ, VL, VNNI). Everything here may run only where [`Level::Avx512`] says so.
//!
//! A register holds the 16 outputs of a panel, so that a weight is one load for all of a tile's rows and each row's activation
//! comes broadcast from memory with the instruction that multiplies it.
//!
//! [`Level::Avx512`]: crate::kernels::isa::Level::Avx512

pub(super) mod formats;

pub(in crate::kernels) mod float;
pub(in crate::kernels) mod int8;
pub(in crate::kernels) mod quantize;
pub(in crate::kernels) mod spread;

use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};

/// Weights that are asked for while others are multiplied.
#[derive(Clone, Copy)]
struct Fetch {
    distance: usize,
}

impl Fetch {
    /// For weights that are near already.
    const NOTHING: Self = Self { distance: 0 };

    /// Far ahead, into the second cache, whose own fetches keep more of the memory busy than those of the first; from there the
    /// processor's prefetch brings them.
    const AHEAD: Self = Self { distance: 32 << 10 };

    /// What follows by the distance on the `bytes` at `at`.
    #[inline]
    fn of(self, at: *const u8, bytes: usize) {
        if self.distance > 0 {
            for line in (0..bytes).step_by(64) {
                // SAFETY: a prefetch is no access: any address will do.
                unsafe { _mm_prefetch::<_MM_HINT_T1>(at.wrapping_add(self.distance + line).cast()) };
            }
        }
    }
}
