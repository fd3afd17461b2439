//! What a row of logits looks like as a whole, measured in parts that several threads may share out.
//!
//! The parts' boundaries are fixed and they are joined in order of index, so the result does not depend on who measured
//! which.

#[cfg(target_arch = "x86_64")]
use super::x86;
use super::{
    isa::{Isa, Level},
    reference,
    sample::{Candidate, Spread},
};

/// Logits in a part; the last one of a row has what is left.
pub const PART: usize = 1024;

/// One part of a row of logits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Part {
    /// The largest logit and its token (of several, the lowest): what a greedy draw takes. Means nothing unless `finite`.
    pub best: Candidate,
    pub finite: bool,
    /// Of e^(logit - best).
    pub(super) sum: f64,
    /// Of e^(logit - best) · (logit - best).
    pub(super) weighted: f64,
}

impl Part {
    /// How many parts a row of `vocab` logits has.
    pub fn count(vocab: usize) -> usize {
        vocab.div_ceil(PART)
    }

    /// Measures part `index` of a row (`[vocab]`), summing in `f64`; exponentials are right to about 1e-7 of each.
    ///
    /// # Panics
    /// If there is no such part.
    pub fn of(isa: Isa, row: &[f32], index: usize) -> Self {
        assert!(index < Self::count(row.len()), "part {index} of {} logits", row.len());
        let first = index * PART;
        let logits = &row[first..(first + PART).min(row.len())];
        let part = match isa.0 {
            Level::Plain => reference::spread_part(logits),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the level says what the machine has.
            Level::Avx2 => unsafe { x86::spread::part(logits) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: likewise.
            Level::Avx512 => unsafe { x86::avx512::spread::part(logits) },
        };
        Self { best: (part.best.0, part.best.1 + first as u32), ..part }
    }

    /// The same part, where its logits are not a row of their own but follow `first` others.
    pub fn after(self, first: usize) -> Self {
        Self { best: (self.best.0, self.best.1 + first as u32), ..self }
    }

    /// The largest logit of a row and its token, ties by lower id; `None` if a logit is not finite or there are none.
    pub fn best(parts: &[Self]) -> Option<Candidate> {
        let finite = parts.iter().all(|part| part.finite);
        let best = parts.iter().map(|part| part.best).reduce(|best, next| if next.0 > best.0 { next } else { best });
        best.filter(|_| finite)
    }
}

impl Spread {
    /// Joins all parts of a row, in order; `None` if a logit is not finite or there are none. Agrees with [`Spread::of`].
    pub fn join(parts: &[Part]) -> Option<Self> {
        let max = f64::from(Part::best(parts)?.0);
        let (mut sum, mut weighted) = (0.0f64, 0.0f64);
        for part in parts {
            let below = f64::from(part.best.0) - max;
            let weight = below.exp();
            sum += weight * part.sum;
            weighted += weight * (part.weighted + below * part.sum);
        }
        let log = sum.ln();
        Some(Self { log_sum: max + log, entropy: (log - weighted / sum).max(0.0) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::pack::tests::Noise;

    fn parts(isa: Isa, row: &[f32]) -> Vec<Part> {
        (0..Part::count(row.len())).map(|index| Part::of(isa, row, index)).collect()
    }

    #[test]
    fn parts_joined_agree_with_one_pass() {
        for isa in Isa::all() {
            for (vocab, width) in
                [(1, 1.0), (7, 30.0), (8, 0.0), (4096, 5.0), (4097, 20.0), (49_152, 12.0), (50_001, 200.0)]
            {
                let row: Vec<f32> = Noise(7).floats(vocab).iter().map(|x| x * width - 3.0).collect();
                let (joined, whole) = (Spread::join(&parts(isa, &row)).unwrap(), Spread::of(&row).unwrap());
                let what = format!("{} {vocab}: {joined:?} for {whole:?}", isa.name());
                assert!((joined.log_sum - whole.log_sum).abs() <= 2e-7, "{what}");
                assert!((joined.entropy - whole.entropy).abs() <= 2e-6, "{what}");
            }
        }
    }

    #[test]
    fn logits_far_below_the_best_weigh_nothing() {
        for isa in Isa::all() {
            let mut row = vec![f32::MIN; 5000];
            row[4500] = 1e6;
            let spread = Spread::join(&parts(isa, &row)).unwrap();
            assert_eq!((spread.log_sum, spread.entropy), (1e6, 0.0), "{}", isa.name());
        }
    }

    #[test]
    fn the_best_is_the_first_of_the_largest() {
        for isa in Isa::all() {
            for places in [vec![0], vec![3, 12], vec![4095, 4096], vec![4999], vec![100, 4100], vec![4096, 4097]] {
                let mut row: Vec<f32> = Noise(9).floats(5000);
                places.iter().for_each(|&place| row[place] = 2.0);
                assert_eq!(Part::best(&parts(isa, &row)), Some((2.0, places[0] as u32)), "{}", isa.name());
            }
            assert_eq!(Part::best(&parts(isa, &[-0.0, 0.0])).map(|best| best.1), Some(0), "equal zeros");
        }
    }

    #[test]
    fn rows_that_are_not_finite_have_no_spread() {
        for isa in Isa::all() {
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                for place in [0, 5, 4095, 4999] {
                    let mut row = vec![0.5; 5000];
                    row[place] = bad;
                    let parts = parts(isa, &row);
                    assert_eq!((Spread::join(&parts), Part::best(&parts)), (None, None), "{} {bad}", isa.name());
                }
            }
            assert_eq!(Spread::join(&[]), None);
        }
    }
}
