//! Reading memory as fast as it goes, for nothing but to know how fast that is.

#[cfg(target_arch = "x86_64")]
mod avx2;

use super::isa::{Isa, Level};

/// A cache line.
pub type Line = [u8; 64];

/// One way to keep the memory busy: which is the best depends on the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gait {
    /// Places that are read in turns; 1, 2, 4 or 8.
    pub streams: usize,
    /// Bytes from what is read to what is asked for; 0 leaves that to the processor.
    pub ahead: usize,
    /// Whether what is asked for comes into the second nearest cache, and not into the nearest.
    pub second: bool,
}

impl Gait {
    /// The processor's own prefetch, on one place and on several; then as the kernels of each level ask for weights, and in
    /// between.
    pub const ALL: [Self; 10] = [
        Self::new(1, 0, false),
        Self::new(2, 0, false),
        Self::new(4, 0, false),
        Self::new(8, 0, false),
        Self::new(1, 2 << 10, false),
        Self::new(1, 8 << 10, false),
        Self::new(4, 2 << 10, false),
        Self::new(1, 8 << 10, true),
        Self::new(1, 32 << 10, true),
        Self::new(4, 8 << 10, true),
    ];

    const fn new(streams: usize, ahead: usize, second: bool) -> Self {
        Self { streams, ahead, second }
    }
}

/// The sum of all 64-bit words of `lines`, round about: what shows that every one has been read.
pub fn scan(isa: Isa, gait: Gait, lines: &[Line]) -> u64 {
    match isa.0 {
        Level::Plain => plain(gait.streams, lines),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: these levels say that the machine has AVX2.
        Level::Avx2 | Level::Avx512 => unsafe { avx2::scan(gait, lines) },
    }
}

/// Without vector instructions; the processor's prefetch follows the streams.
fn plain(streams: usize, lines: &[Line]) -> u64 {
    let part = lines.len() / streams;
    let mut sums = [0u64; size_of::<Line>() / 8];
    let mut add = |line: &Line| {
        let words = line.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word));
        sums.iter_mut().zip(words).for_each(|(sum, word)| *sum = sum.wrapping_add(word));
    };
    for at in 0..part {
        (0..streams).for_each(|stream| add(&lines[stream * part + at]));
    }
    lines[streams * part..].iter().for_each(add);
    sums.into_iter().fold(0, u64::wrapping_add)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_is_read_once_in_every_gait_at_every_level() {
        for count in [0usize, 1, 7, 8, 64, 1003] {
            let word = |at: usize| (at as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let bytes: Vec<u8> = (0..8 * count).flat_map(|at| word(at).to_le_bytes()).collect();
            let lines = bytes.as_chunks().0;
            let expected = (0..8 * count).map(word).fold(0, u64::wrapping_add);
            for (isa, gait) in Isa::all().into_iter().flat_map(|isa| Gait::ALL.map(|gait| (isa, gait))) {
                assert_eq!(scan(isa, gait, lines), expected, "{count} lines, {gait:?}, {}", isa.name());
            }
        }
    }
}
