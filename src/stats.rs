//! Intervals and tests for figures that are compared: pure functions of counts and numbers.

/// The level of tests and intervals that stand alone.
pub const ALPHA: f64 = 0.05;
const RESAMPLES: usize = 10_000;

/// The standard normal quantile of `p`, between 0 and 1 (Acklam's rational approximation; relative error below 1.2e-9).
pub fn normal_quantile(p: f64) -> f64 {
    const A: [f64; 6] = [
        -3.969_683_028_665_376e1,
        2.209_460_984_245_205e2,
        -2.759_285_104_469_687e2,
        1.383_577_518_672_69e2,
        -3.066_479_806_614_716e1,
        2.506_628_277_459_239,
    ];
    const B: [f64; 6] = [
        -5.447_609_879_822_406e1,
        1.615_858_368_580_409e2,
        -1.556_989_798_598_866e2,
        6.680_131_188_771_972e1,
        -1.328_068_155_288_572e1,
        1.0,
    ];
    const C: [f64; 6] = [
        -7.784_894_002_430_293e-3,
        -3.223_964_580_411_365e-1,
        -2.400_758_277_161_838,
        -2.549_732_539_343_734,
        4.374_664_141_464_968,
        2.938_163_982_698_783,
    ];
    const D: [f64; 5] =
        [7.784_695_709_041_462e-3, 3.224_671_290_700_398e-1, 2.445_134_137_142_996, 3.754_408_661_907_416, 1.0];
    const LOW: f64 = 0.024_25;
    let horner = |coefficients: &[f64], x: f64| coefficients.iter().fold(0.0, |sum, c| sum * x + c);
    let tail = |p: f64| {
        let q = (-2.0 * p.ln()).sqrt();
        horner(&C, q) / horner(&D, q)
    };
    match p {
        p if p < LOW => tail(p),
        p if p > 1.0 - LOW => -tail(1.0 - p),
        p => {
            let q = p - 0.5;
            q * horner(&A, q * q) / horner(&B, q * q)
        }
    }
}

/// Student's quantile of `p` with `freedom` degrees, by Fisher and Cornish's expansion: from 10 degrees on to within 1 % at the levels
/// that are used here.
pub fn student_quantile(p: f64, freedom: f64) -> f64 {
    let z = normal_quantile(p);
    let (z3, z5, z7) = (z.powi(3), z.powi(5), z.powi(7));
    z + (z3 + z) / (4.0 * freedom)
        + (5.0 * z5 + 16.0 * z3 + 3.0 * z) / (96.0 * freedom.powi(2))
        + (3.0 * z7 + 19.0 * z5 + 17.0 * z3 - 15.0 * z) / (384.0 * freedom.powi(3))
}

/// Wilson's score interval of a share; `None` without any.
pub fn wilson(hits: u64, all: u64, alpha: f64) -> Option<(f64, f64)> {
    if all == 0 {
        return None;
    }
    let (n, p, z) = (all as f64, hits as f64 / all as f64, normal_quantile(1.0 - alpha / 2.0));
    let middle = p + z * z / (2.0 * n);
    let half = z * (p * (1.0 - p) / n + z * z / (4.0 * n * n)).sqrt();
    let scale = 1.0 + z * z / n;
    Some((((middle - half) / scale).max(0.0), ((middle + half) / scale).min(1.0)))
}

/// Newcombe's interval of the difference of two shares, second − first, from Wilson's of each (1998, method 10). `None` where one has
/// nothing.
pub fn newcombe(first: (u64, u64), second: (u64, u64), alpha: f64) -> Option<(f64, f64)> {
    let share = |(hits, all): (u64, u64)| hits as f64 / all as f64;
    let (low1, high1) = wilson(first.0, first.1, alpha)?;
    let (low2, high2) = wilson(second.0, second.1, alpha)?;
    let (p1, p2) = (share(first), share(second));
    let difference = p2 - p1;
    let below = ((p2 - low2).powi(2) + (high1 - p1).powi(2)).sqrt();
    let above = ((high2 - p2).powi(2) + (p1 - low1).powi(2)).sqrt();
    Some((difference - below, difference + above))
}

/// Count, mean and scatter of numbers that come one by one (Welford).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Moments {
    pub count: u64,
    pub mean: f64,
    squares: f64,
}

impl Moments {
    pub fn push(&mut self, value: f64) {
        self.count += 1;
        let step = value - self.mean;
        self.mean += step / self.count as f64;
        self.squares += step * (value - self.mean);
    }

    /// Of the values, not of their mean; 0 for fewer than two.
    pub fn variance(&self) -> f64 {
        if self.count < 2 { 0.0 } else { self.squares / (self.count - 1) as f64 }
    }
}

impl FromIterator<f64> for Moments {
    fn from_iter<I: IntoIterator<Item = f64>>(values: I) -> Self {
        let mut moments = Self::default();
        values.into_iter().for_each(|value| moments.push(value));
        moments
    }
}

/// Welch's interval of the difference of two means, second − first. `None` for fewer than two of either.
pub fn welch(first: &Moments, second: &Moments, alpha: f64) -> Option<(f64, f64)> {
    if first.count < 2 || second.count < 2 {
        return None;
    }
    let (one, other) = (first.variance() / first.count as f64, second.variance() / second.count as f64);
    let spread = one + other;
    let difference = second.mean - first.mean;
    if spread == 0.0 {
        return Some((difference, difference));
    }
    let freedom = spread.powi(2) / (one.powi(2) / (first.count - 1) as f64 + other.powi(2) / (second.count - 1) as f64);
    let half = student_quantile(1.0 - alpha / 2.0, freedom) * spread.sqrt();
    Some((difference - half, difference + half))
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

/// 95 % percentile interval of the mean over resampled values, of which there is one at least. The resampling is seeded: the same values
/// give the same interval.
pub fn bootstrap(values: &[f64]) -> (f64, f64) {
    let mut random = SplitMix::new(0x7475_6e65_6761_7465);
    let count = values.len();
    let mut means: Vec<f64> =
        (0..RESAMPLES).map(|_| (0..count).map(|_| values[random.below(count)]).sum::<f64>() / count as f64).collect();
    means.sort_by(f64::total_cmp);
    let at = |share: f64| means[((share * RESAMPLES as f64) as usize).min(RESAMPLES - 1)];
    (at(ALPHA / 2.0), at(1.0 - ALPHA / 2.0))
}

/// SplitMix64 (Steele, Lea and Flood, 2014).
pub struct SplitMix(u64);

impl SplitMix {
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: usize) -> usize {
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

    fn close(found: (f64, f64), expected: (f64, f64), within: f64) {
        assert!(
            (found.0 - expected.0).abs() < within && (found.1 - expected.1).abs() < within,
            "{found:?}, not {expected:?}"
        );
    }

    #[test]
    fn quantiles_are_those_of_the_tables() {
        for (p, z) in
            [(0.5, 0.0), (0.975, 1.959_963_985), (0.995, 2.575_829_304), (0.01, -2.326_347_874), (1e-6, -4.753_424_309)]
        {
            assert!((normal_quantile(p) - z).abs() < 1e-7, "{p}");
        }
        for (p, freedom, t) in
            [(0.975, 10.0, 2.2281), (0.975, 30.0, 2.0423), (0.995, 60.0, 2.6603), (0.9995, 200.0, 3.3398)]
        {
            assert!(
                (student_quantile(p, freedom) / t - 1.0).abs() < 0.01,
                "{p} {freedom}: {}",
                student_quantile(p, freedom)
            );
        }
    }

    #[test]
    fn wilson_and_newcombe_are_those_of_the_paper() {
        // Newcombe (1998), Interval estimation for the difference between independent proportions, table II, method 10.
        close(wilson(81, 263, 0.05).unwrap(), (0.2553, 0.3662), 1e-4);
        close(newcombe((48, 80), (56, 70), 0.05).unwrap(), (0.0524, 0.3339), 1e-4);
        close(newcombe((3, 10), (9, 10), 0.05).unwrap(), (0.1705, 0.8090), 1e-4);
        close(newcombe((0, 10), (10, 10), 0.05).unwrap(), (0.6075, 1.0), 1e-4);
        assert_eq!((wilson(0, 0, 0.05), newcombe((0, 0), (1, 2), 0.05)), (None, None));
    }

    #[test]
    fn welch_is_that_of_the_textbook() {
        let first: Moments = [27.5, 21.0, 19.0, 23.6, 17.0, 17.9, 16.9, 20.1, 21.9, 22.6, 23.1, 19.6, 19.0, 21.7, 21.4]
            .into_iter()
            .collect();
        let second: Moments =
            [27.1, 22.0, 20.8, 23.4, 23.4, 23.5, 25.8, 22.0, 24.8, 20.2, 21.9, 22.1, 22.9, 30.5, 24.4]
                .into_iter()
                .collect();
        assert!((first.mean - 20.82).abs() < 1e-9 && (second.variance() - 6.926_95).abs() < 1e-4);
        close(welch(&first, &second, 0.05).unwrap(), (0.7986, 4.8680), 1e-3);
        assert_eq!(welch(&first, &Moments::default(), 0.05), None);
        let even: Moments = [2.0, 2.0].into_iter().collect();
        assert_eq!(welch(&even, &even, 0.05), Some((0.0, 0.0)));
    }

    #[test]
    fn intervals_cover_the_truth_about_as_often_as_they_say() {
        let mut random = SplitMix::new(7);
        let (mut shares, mut means) = (0, 0);
        for _ in 0..400 {
            let mut hits = |per_mille: usize| (0..300).filter(|_| random.below(1000) < per_mille).count() as u64;
            let (one, other) = (hits(50), hits(80));
            let (low, high) = newcombe((one, 300), (other, 300), 0.05).unwrap();
            shares += usize::from(low <= 0.03 && 0.03 <= high);
            let mut draws = |above: f64| -> Moments {
                (0..40).map(|_| above + random.below(1 << 20) as f64 / f64::from(1 << 20)).collect()
            };
            let (low, high) = welch(&draws(0.0), &draws(0.1), 0.05).unwrap();
            means += usize::from(low <= 0.1 && 0.1 <= high);
        }
        assert!((366..=394).contains(&shares), "{shares} of 400");
        assert!((366..=394).contains(&means), "{means} of 400");
    }

    #[test]
    fn mcnemar_agrees_with_the_binomial_by_hand() {
        // Two-sided binomial test of k in n at 1/2: 2·P(X ≤ min).
        assert!((mcnemar(0, 5) - 0.0625).abs() < 1e-12);
        assert!((mcnemar(1, 9) - 0.021_484_375).abs() < 1e-12);
        assert_eq!(mcnemar(3, 3), 1.0);
        assert_eq!(mcnemar(0, 0), 1.0);
        assert!(mcnemar(2000, 3000) < 1e-30);
    }
}
