//! The scan in AVX2: two loads a line, of several streams in turns. Memory that comes 64 bytes at a time gains nothing by wider
//! loads.

use std::arch::x86_64::*;

use super::{Gait, Line};

/// See [`super::scan`].
///
/// # Safety
/// The machine has AVX2.
#[target_feature(enable = "avx2")]
pub unsafe fn scan(gait: Gait, lines: &[Line]) -> u64 {
    match (gait.streams, gait.ahead, gait.second) {
        (1, 0, _) => streams::<1, NOTHING>(lines, 0),
        (1, ahead, false) => streams::<1, NEAREST>(lines, ahead),
        (1, ahead, true) => streams::<1, SECOND>(lines, ahead),
        (2, 0, _) => streams::<2, NOTHING>(lines, 0),
        (2, ahead, false) => streams::<2, NEAREST>(lines, ahead),
        (2, ahead, true) => streams::<2, SECOND>(lines, ahead),
        (4, 0, _) => streams::<4, NOTHING>(lines, 0),
        (4, ahead, false) => streams::<4, NEAREST>(lines, ahead),
        (4, ahead, true) => streams::<4, SECOND>(lines, ahead),
        (_, 0, _) => streams::<8, NOTHING>(lines, 0),
        (_, ahead, false) => streams::<8, NEAREST>(lines, ahead),
        (_, ahead, true) => streams::<8, SECOND>(lines, ahead),
    }
}

/// What is asked for ahead, and into which cache.
const NOTHING: u8 = 0;
const NEAREST: u8 = 1;
const SECOND: u8 = 2;

#[target_feature(enable = "avx2")]
fn streams<const STREAMS: usize, const FETCH: u8>(lines: &[Line], ahead: usize) -> u64 {
    let part = lines.len() / STREAMS;
    let parts: [&[Line]; STREAMS] = std::array::from_fn(|stream| &lines[stream * part..(stream + 1) * part]);
    let mut sums = [[_mm256_setzero_si256(); 2]; STREAMS];
    for at in 0..part {
        for (sums, lines) in sums.iter_mut().zip(parts) {
            let line = lines[at].as_ptr();
            let wanted = line.wrapping_byte_add(ahead).cast();
            match FETCH {
                // A prefetch is no access: any address will do.
                NEAREST => _mm_prefetch::<_MM_HINT_T0>(wanted),
                SECOND => _mm_prefetch::<_MM_HINT_T1>(wanted),
                _ => {}
            }
            add(sums, &lines[at]);
        }
    }
    let (first, others) = sums.split_first_mut().expect("a stream");
    for line in &lines[STREAMS * part..] {
        add(first, line);
    }
    let mut words = [0u64; 4];
    for sum in first.iter().chain(others.iter().flatten()) {
        let mut four = [0u64; 4];
        // SAFETY: four words are there.
        unsafe { _mm256_storeu_si256(four.as_mut_ptr().cast(), *sum) };
        words.iter_mut().zip(four).for_each(|(word, more)| *word = word.wrapping_add(more));
    }
    words.into_iter().fold(0, u64::wrapping_add)
}

#[inline]
#[target_feature(enable = "avx2")]
fn add(sums: &mut [__m256i; 2], line: &Line) {
    for (sum, half) in sums.iter_mut().zip(line.as_chunks::<32>().0) {
        // SAFETY: four words are there.
        *sum = _mm256_add_epi64(*sum, unsafe { _mm256_loadu_si256(half.as_ptr().cast()) });
    }
}
