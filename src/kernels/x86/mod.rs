//! The kernels in AVX2, FMA and F16C. Everything here may run only where [`Level::Avx2`](super::isa::Level) says so.
//!
//! Every function names these features, so that the small ones are inlined into the kernels that are built of them.

mod formats;

pub(super) mod amx;
pub(super) mod avx512;
pub(super) mod float;
pub(super) mod int8;
pub(super) mod quantize;
pub(super) mod spread;

use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};

/// Bytes of a panel that all rows meet before the next ones are read, and so how far ahead those are asked for: enough for
/// the memory's latency at its full speed, little enough for the nearest cache.
const CHUNK_BYTES: usize = 8192;

/// Which lines a pass over a chunk asks for: of the bytes that follow by `distance`, one line in every `passes`, so that the
/// memory is as busy in the last pass as in the first. Without it the processor's own prefetch leaves a quarter of the
/// memory's speed unused for one row, and a third for four.
#[derive(Clone, Copy)]
struct Fetch {
    distance: usize,
    pass: usize,
    passes: usize,
}

impl Fetch {
    /// For weights that are near already.
    const NOTHING: Self = Self { distance: 0, pass: usize::MAX / 64, passes: 1 };

    #[inline]
    fn ahead(self, at: *const u8, bytes: usize) {
        for line in (64 * self.pass..bytes).step_by(64 * self.passes) {
            // SAFETY: a prefetch is no access: any address will do.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(self.distance + line).cast()) };
        }
    }
}

/// Calls `run(pass, first, count)` for passes over at most `most` rows each, as even as they can be.
fn share(rows: usize, most: usize, mut run: impl FnMut(usize, usize, usize)) {
    let passes = rows.div_ceil(most);
    (0..passes).for_each(|i| run(i, i * rows / passes, (i + 1) * rows / passes - i * rows / passes));
}

#[cfg(test)]
mod tests {
    #[test]
    fn rows_are_shared_evenly_and_all_of_them() {
        for rows in 0..100 {
            let mut next = 0;
            super::share(rows, 6, |pass, first, count| {
                assert!(
                    pass <= first && first == next && (1..=6).contains(&count) && (rows < 7 || count >= 3),
                    "{rows}"
                );
                next += count;
            });
            assert_eq!(next, rows);
        }
    }
}
