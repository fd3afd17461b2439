//! What a step costs: a line fitted to the steps that have been measured.

use std::time::Duration;

/// What the time of a step depends on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StepLoad {
    pub rows: usize,
    /// Rows that are asked something: these go through the head.
    pub asks: usize,
    /// Positions that the rows attend to, all together.
    pub positions: usize,
    /// Sequences with more than one row.
    pub prompts: usize,
    /// Different adapters.
    pub adapters: usize,
}

impl StepLoad {
    /// `rows` more rows of one sequence, of which `computed` positions are there already.
    pub fn add(&mut self, computed: usize, rows: usize) {
        self.rows += rows;
        // Each row attends to all before it and to itself.
        self.positions += rows * computed + rows * (rows + 1) / 2;
        self.prompts += usize::from(rows > 1);
    }

    fn parts(self) -> Parts {
        let counts = [1, self.rows, self.asks, self.positions, self.prompts, self.adapters];
        counts.map(|count| count as f64)
    }
}

const PARTS: usize = 6;

/// By what a step consists of: the step as such, its rows, asks, positions, prompts and adapters.
type Parts = [f64; PARTS];

/// A price for each part of a step, and how sure each is: a Kalman filter, in which prices drift: each on its own, and
/// all together, as they do where somebody else takes the machine's time or its clock changes.
///
/// A step that took several times what was foreseen moves the prices no further than one at the edge of what is usual: a
/// noisy machine has many such. Where they become usual, they count.
#[derive(Debug)]
pub struct StepCost {
    /// Seconds for one of each part. Before the first step they stand for proportions alone.
    prices: Parts,
    /// Their covariance; none before the first step.
    doubts: Option<[Parts; PARTS]>,
    /// The usual error, as a share of what was foreseen.
    noise: f64,
}

impl StepCost {
    /// Multiplying eight rows takes about as long as reading the weights once; the head costs half as much as the layers;
    /// attention doubles a row's cost at about 1,000 positions; a prompt's first row makes all rows multiply where answers
    /// alone would wait for memory; an adapter's weights are read like a row.
    const PROPORTIONS: Parts = [8.0, 1.0, 0.5, 1.0 / 1024.0, 2.0, 1.0];
    /// How unsure prices are at first, how much each may drift in one step, and all together: as shares of themselves.
    const UNSURE: f64 = 0.5;
    const DRIFT: f64 = 0.02;
    const COMMON_DRIFT: f64 = 0.01;
    /// An error counts up to this many times the usual one.
    const USUAL: f64 = 3.0;
    /// Clocks and schedulers are never surer than this.
    const LEAST_NOISE: f64 = 0.02;
    /// In seconds.
    const LEAST_PRICE: f64 = 1e-12;

    pub fn new() -> Self {
        Self { prices: Self::PROPORTIONS, doubts: None, noise: 0.1 }
    }

    /// Whether a step has been measured.
    pub fn is_known(&self) -> bool {
        self.doubts.is_some()
    }

    /// What a step should take, in seconds; without meaning before the first has been measured.
    pub fn seconds(&self, load: StepLoad) -> f64 {
        dot(&self.prices, &load.parts())
    }

    /// Takes in what a step took.
    pub fn learn(&mut self, load: StepLoad, took: Duration) {
        let (took, foreseen) = (took.as_secs_f64(), self.seconds(load));
        // A step that took no time at all would make every price zero, for ever.
        if took <= 0.0 {
            return;
        }
        let Some(doubts) = &mut self.doubts else {
            self.prices = self.prices.map(|price| price * took / foreseen);
            let mut doubts = [[0.0; PARTS]; PARTS];
            (0..PARTS).for_each(|i| doubts[i][i] = (Self::UNSURE * self.prices[i]).powi(2));
            self.doubts = Some(doubts);
            return;
        };
        drift(doubts, &self.prices);
        let error = took / foreseen - 1.0;
        let usual = Self::USUAL * self.noise;
        let heeded = error.clamp(-usual, usual) * foreseen;
        let parts = load.parts();
        let lean = doubts.map(|row| dot(&row, &parts));
        let spread = dot(&lean, &parts) + (self.noise * foreseen).powi(2);
        for i in 0..PARTS {
            // No part is ever free, nor pays for others.
            let least = (self.prices[i] / 8.0).max(Self::LEAST_PRICE);
            self.prices[i] = (self.prices[i] + lean[i] / spread * heeded).max(least);
            (0..PARTS).for_each(|j| doubts[i][j] -= lean[i] * lean[j] / spread);
        }
        self.noise += 0.1 * (error.abs().min(4.0 * self.noise) - self.noise);
        self.noise = self.noise.max(Self::LEAST_NOISE);
    }
}

/// What a step without news does to the doubts: they grow, up to the price itself.
fn drift(doubts: &mut [Parts; PARTS], prices: &Parts) {
    for (i, price) in prices.iter().enumerate() {
        let row = &mut doubts[i];
        row.iter_mut().zip(prices).for_each(|(doubt, other)| *doubt += StepCost::COMMON_DRIFT.powi(2) * price * other);
        row[i] += (StepCost::DRIFT * price).powi(2);
        let excess = row[i].sqrt() / price;
        if excess > 1.0 {
            row.iter_mut().for_each(|doubt| *doubt /= excess);
            doubts.iter_mut().for_each(|row| row[i] /= excess);
        }
    }
}

fn dot(one: &Parts, other: &Parts) -> f64 {
    one.iter().zip(other).map(|(one, other)| one * other).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine that reads weights in 4 ms or multiplies in 0.9 ms for each row, whatever takes longer.
    fn truth(load: StepLoad) -> f64 {
        let rows = 0.9 * load.rows as f64 + 0.25 * load.asks as f64;
        1e-3 * (rows.max(4.2) + 0.8 + load.positions as f64 / 7000.0 + 0.6 * load.adapters as f64)
    }

    /// Eight answers, and `prompt` rows of a prompt of which `computed` are done.
    fn load(prompt: usize, computed: usize) -> StepLoad {
        let mut load = StepLoad { asks: 8, ..StepLoad::default() };
        (0..8).for_each(|_| load.add(200, 1));
        load.add(computed, prompt);
        load
    }

    /// Noise that is the same in each run: mostly within a tenth, and each thirtieth step takes three times as long.
    struct Noise(u64);

    impl Noise {
        fn next(&mut self) -> f64 {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let unit = (self.0 >> 11) as f64 / (1u64 << 53) as f64;
            if unit < 1.0 / 30.0 { 3.0 } else { 0.9 + 0.2 * unit }
        }
    }

    fn learn(cost: &mut StepCost, noise: &mut Noise, load: StepLoad, slower: f64) {
        cost.learn(load, Duration::from_secs_f64(truth(load) * slower * noise.next()));
    }

    /// Learns eight answers, then a prompt beside them.
    fn learned(noise: &mut Noise) -> StepCost {
        let mut cost = StepCost::new();
        (0..100).for_each(|_| learn(&mut cost, noise, load(0, 0), 1.0));
        (0..60).for_each(|step| learn(&mut cost, noise, load(16 + step % 9, step * 20), 1.0));
        cost
    }

    fn near(cost: &StepCost, load: StepLoad, slower: f64, within: f64) {
        let (foreseen, real) = (cost.seconds(load), truth(load) * slower);
        assert!((foreseen / real - 1.0).abs() < within, "{load:?}: {foreseen} foreseen, {real} real");
    }

    #[test]
    fn prices_are_found_in_spite_of_noise() {
        let cost = learned(&mut Noise(1));
        for load in [load(0, 0), load(8, 100), load(16, 900), load(30, 0)] {
            near(&cost, load, 1.0, 0.15);
        }
    }

    #[test]
    fn a_slower_machine_is_seen_by_whatever_runs() {
        let mut noise = Noise(2);
        let mut cost = learned(&mut noise);
        (0..60).for_each(|_| learn(&mut cost, &mut noise, load(0, 0), 2.0));
        near(&cost, load(0, 0), 2.0, 0.1);
        // No prompt was read meanwhile.
        near(&cost, load(20, 0), 2.0, 0.2);
    }

    #[test]
    fn one_step_held_up_changes_little() {
        let mut cost = learned(&mut Noise(3));
        let before = cost.seconds(load(20, 0));
        cost.learn(load(20, 0), Duration::from_secs(3));
        assert!(cost.seconds(load(20, 0)) < 1.3 * before);
    }

    #[test]
    fn the_first_step_tells_the_scale_and_one_without_time_nothing() {
        let mut cost = StepCost::new();
        cost.learn(load(16, 0), Duration::ZERO);
        assert!(!cost.is_known());
        cost.learn(load(16, 0), Duration::from_millis(30));
        assert!(cost.is_known());
        assert!((cost.seconds(load(16, 0)) - 0.03).abs() < 1e-9);
        assert!(cost.seconds(load(32, 0)) > 0.035);
    }

    #[test]
    fn no_price_is_lost_however_odd_the_steps_are() {
        let mut cost = StepCost::new();
        for step in 0..5000 {
            let micros = if step % 7 == 0 { 1 } else { 1_000_000 >> (step % 20) };
            cost.learn(load(step % 40, step % 1000), Duration::from_micros(micros));
            assert!(cost.prices.iter().all(|price| price.is_finite() && *price > 0.0), "{cost:?}");
            assert!(cost.seconds(load(1, 0)) < cost.seconds(load(2, 0)));
        }
    }
}
