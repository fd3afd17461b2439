//! Paired comparisons: McNemar's exact test for yes-or-no scores, a bootstrap interval for the rest.

use serde::Serialize;

use crate::stats::{ALPHA, bootstrap, mcnemar};

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::SplitMix;

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
        let mut random = SplitMix::new(7);
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
