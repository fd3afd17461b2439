//! Paired comparisons: McNemar's exact test for yes-or-no scores, a bootstrap interval for the rest.

use serde::Serialize;

/// How two contenders differ on the items that both answered.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    pub items: usize,
    /// Mean of (second − first).
    pub difference: f64,
    /// 95 % bootstrap interval of that mean.
    pub low: f64,
    pub high: f64,
    /// McNemar's exact two-sided p, where every score is 0 or 1.
    pub p: Option<f64>,
    pub verdict: Verdict,
}

/// What the figures allow one to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    FirstIsBetter,
    SecondIsBetter,
    CannotTell,
}

/// The level of both tests.
pub const ALPHA: f64 = 0.05;
const RESAMPLES: usize = 10_000;

/// Compares paired scores, (first, second) for each item. `None` if there are no pairs.
pub fn compare(pairs: &[(f64, f64)]) -> Option<Comparison> {
    if pairs.is_empty() {
        return None;
    }
    let differences: Vec<f64> = pairs.iter().map(|(first, second)| second - first).collect();
    let difference = differences.iter().sum::<f64>() / differences.len() as f64;
    let (low, high) = bootstrap(&differences);
    let binary = pairs.iter().all(|(a, b)| [a, b].into_iter().all(|x| *x == 0.0 || *x == 1.0));
    let p = binary.then(|| {
        let gains = differences.iter().filter(|d| **d > 0.0).count();
        let losses = differences.iter().filter(|d| **d < 0.0).count();
        mcnemar(gains, losses)
    });
    let told = p.map_or(low > 0.0 || high < 0.0, |p| p <= ALPHA);
    let verdict = match (told, difference > 0.0) {
        (false, _) => Verdict::CannotTell,
        (true, true) => Verdict::SecondIsBetter,
        (true, false) => Verdict::FirstIsBetter,
    };
    Some(Comparison { items: pairs.len(), difference, low, high, p, verdict })
}

/// McNemar's exact test: the two-sided binomial p of `gains` against `losses`, each as likely as the other
/// (Dixon and Mood's sign test on the discordant pairs).
pub fn mcnemar(gains: usize, losses: usize) -> f64 {
    let (few, all) = (gains.min(losses), gains + losses);
    // log C(all, k) is built up step by step, so that thousands of pairs do not overflow.
    let mut log_choose = 0.0f64;
    let mut tail = 0.0;
    for k in 0..=few {
        if k > 0 {
            log_choose += ((all - k + 1) as f64 / k as f64).ln();
        }
        tail += (log_choose - all as f64 * std::f64::consts::LN_2).exp();
    }
    (2.0 * tail).min(1.0)
}

/// 95 % percentile interval of the mean over resampled items. The resampling is seeded: the same scores give the same interval.
fn bootstrap(differences: &[f64]) -> (f64, f64) {
    let mut random = SplitMix(0x7475_6e65_6761_7465);
    let count = differences.len();
    let mut means: Vec<f64> = (0..RESAMPLES)
        .map(|_| (0..count).map(|_| differences[random.below(count)]).sum::<f64>() / count as f64)
        .collect();
    means.sort_by(f64::total_cmp);
    let at = |share: f64| means[((share * RESAMPLES as f64) as usize).min(RESAMPLES - 1)];
    (at(ALPHA / 2.0), at(1.0 - ALPHA / 2.0))
}

/// SplitMix64 (Steele, Lea and Flood, 2014).
struct SplitMix(u64);

impl SplitMix {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        // The high product is uniform to within 2⁻⁶⁴ · bound.
        ((u128::from(z) * bound as u128) >> 64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mcnemar_agrees_with_the_binomial_by_hand() {
        // Two-sided binomial test of k in n at 1/2: 2·P(X ≤ min).
        assert!((mcnemar(0, 5) - 0.0625).abs() < 1e-12);
        assert!((mcnemar(1, 9) - 0.021_484_375).abs() < 1e-12);
        assert_eq!(mcnemar(3, 3), 1.0);
        assert_eq!(mcnemar(0, 0), 1.0);
        assert!(mcnemar(2000, 3000) < 1e-30);
    }

    #[test]
    fn a_clear_difference_is_told_and_a_small_one_is_not() {
        let clear: Vec<(f64, f64)> = (0..20).map(|i| (0.0, f64::from(u8::from(i % 4 != 0)))).collect();
        let clear = compare(&clear).expect("pairs");
        assert_eq!(clear.verdict, Verdict::SecondIsBetter);
        let small: Vec<(f64, f64)> = (0..20).map(|i| (0.5, if i % 2 == 0 { 0.55 } else { 0.46 })).collect();
        let small = compare(&small).expect("pairs");
        assert_eq!((small.verdict, small.p), (Verdict::CannotTell, None));
        assert!(small.low < small.difference && small.difference < small.high);
        assert_eq!(compare(&[]), None);
    }

    #[test]
    fn the_interval_covers_the_truth_about_as_often_as_it_says() {
        let mut random = SplitMix(7);
        let uniform = |random: &mut SplitMix| random.below(1 << 30) as f64 / f64::from(1 << 30);
        let covered = (0..100)
            .filter(|_| {
                let pairs: Vec<(f64, f64)> =
                    (0..60).map(|_| (uniform(&mut random), 0.1 + uniform(&mut random))).collect();
                let found = compare(&pairs).expect("pairs");
                found.low <= 0.1 && 0.1 <= found.high
            })
            .count();
        assert!((86..=100).contains(&covered), "{covered} of 100 intervals hold the truth");
    }
}
