//! Logits to scores and tokens, without sorting a whole vocabulary. [`super::reference`] says the same plainly.

mod sift;

use std::cmp::Ordering;

use super::isa::Isa;
use crate::terms::TokenScore;

/// What a distribution over the vocabulary looks like as a whole.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// Logarithm of the sum of exponentials: a token's log-probability is its logit less this.
    pub log_sum: f64,
    /// In nats.
    pub entropy: f64,
}

impl Spread {
    /// Measures `[vocab]` logits, summing in `f64` in order of id; `None` if one of them is not finite or there are none.
    pub fn of(logits: &[f32]) -> Option<Self> {
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        if !logits.iter().all(|logit| logit.is_finite()) || logits.is_empty() {
            return None;
        }
        let (mut sum, mut weighted) = (0.0f64, 0.0f64);
        for &logit in logits {
            let below = f64::from(logit) - f64::from(max);
            let weight = below.exp();
            sum += weight;
            weighted += weight * below;
        }
        let log = sum.ln();
        Some(Self { log_sum: f64::from(max) + log, entropy: (log - weighted / sum).max(0.0) })
    }

    pub fn logprob(&self, logit: f32) -> f32 {
        (f64::from(logit) - self.log_sum) as f32
    }
}

/// Scores `token` by the softmax of `logits` (`[vocab]`), with the `top` most likely tokens (ties by lower id).
/// `None` if the logits are not finite or the token is outside the vocabulary.
pub fn score(logits: &[f32], token: u32, top: usize) -> Option<TokenScore> {
    Spread::of(logits)?.score(logits, token, top)
}

impl Spread {
    /// [`score`], of logits that have been measured.
    pub fn score(&self, logits: &[f32], token: u32, top: usize) -> Option<TokenScore> {
        let (logit, spread) = (*logits.get(token as usize)?, self);
        let top = best(logits, top).into_iter().map(|(logit, id)| (id, spread.logprob(logit))).collect();
        Some(TokenScore { token, logprob: spread.logprob(logit), entropy: spread.entropy as f32, top })
    }
}

/// The `count` largest logits with their ids, best first, ties by lower id.
pub fn best(logits: &[f32], count: usize) -> Vec<(f32, u32)> {
    let mut best: Vec<(f32, u32)> = Vec::with_capacity(count + 1);
    if count == 0 {
        return best;
    }
    for (id, &logit) in logits.iter().enumerate() {
        if best.len() == count && best[count - 1].0 >= logit {
            continue;
        }
        let place = best.partition_point(|&(other, _)| other >= logit);
        best.insert(place, (logit, id as u32));
        best.truncate(count);
    }
    best
}

/// Changes to single logits before a draw.
#[derive(Clone, Copy, Debug)]
pub struct Changes<'a> {
    /// Divides positive logits of seen tokens, multiplies negative ones.
    pub repetition: f32,
    /// Taken off for each time a token is in the answer.
    pub frequency: f32,
    /// Taken off once for a token in the answer.
    pub presence: f32,
    pub bias: &'a [(u32, f32)],
    /// Never drawn.
    pub banned: &'a [u32],
}

impl Changes<'_> {
    /// Applies the penalties to every `(token, times in the answer)`, then bias, then bans. Tokens outside are passed over.
    pub fn apply(&self, logits: &mut [f32], seen: impl Iterator<Item = (u32, u32)>) {
        for (token, in_answer) in seen {
            let Some(logit) = logits.get_mut(token as usize) else { continue };
            *logit = if *logit > 0.0 { *logit / self.repetition } else { *logit * self.repetition };
            if in_answer > 0 {
                *logit -= self.frequency * in_answer as f32 + self.presence;
            }
        }
        for &(token, bias) in self.bias {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit += bias;
            }
        }
        for &token in self.banned {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit = f32::NEG_INFINITY;
            }
        }
    }
}

/// How a token is drawn from adjusted logits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Draw {
    /// 0 takes the largest logit (ties by lower id).
    pub temperature: f32,
    /// Keeps this many of the most likely tokens; 0 keeps all.
    pub top_k: usize,
    /// Then keeps the shortest run of the most likely ones that holds this share of what is left; 1 keeps all.
    pub top_p: f32,
    /// Then drops those less likely than this share of the most likely one; 0 keeps all.
    pub min_p: f32,
    /// Uniform in `[0, 1)`.
    pub u: f64,
}

/// A logit and its id, while they are being put in order.
pub type Candidate = (f32, u32);

/// How far below the largest logit candidates are looked for, in temperatures, until there are enough; then all are.
const DEPTHS: [f32; 4] = [5.0, 10.0, 20.0, f32::INFINITY];

impl Draw {
    /// The first candidate, from most to least likely, whose cumulative probability among those kept exceeds `u`.
    /// `None` if a logit is NaN or +∞, or none is above -∞. `scratch` is only memory to be reused.
    pub fn pick(&self, isa: Isa, logits: &[f32], scratch: &mut Vec<Candidate>) -> Option<u32> {
        let max = sift::largest(isa, logits)?;
        if self.temperature <= 0.0 {
            sift::at_least(isa, logits, max, scratch);
            return scratch.first().map(|&(_, id)| id);
        }
        let weight = |logit: f32| ((f64::from(logit) - f64::from(max)) / f64::from(self.temperature)).exp();
        let mut whole_mass = None;
        for depth in DEPTHS {
            let least = max - depth * self.temperature;
            // What is banned weighs nothing.
            sift::at_least(isa, logits, least.max(f32::MIN), scratch);
            let limited = self.top_k > 0 && self.top_k <= scratch.len();
            let complete = limited || least < f32::MIN;
            if self.top_k > 0 && !complete {
                continue;
            }
            let allowed = if limited { self.top_k } else { scratch.len() };
            let mut ordered = if limited { allowed } else { allowed.min(64) };
            put_in_order(scratch, ordered);
            let mass = if limited {
                scratch[..allowed].iter().map(|&(logit, _)| weight(logit)).sum()
            } else if self.top_p < 1.0 || self.min_p <= 0.0 {
                *whole_mass.get_or_insert_with(|| sift::mass(isa, logits, max, self.temperature))
            } else {
                // Only the most likely one's share counts.
                f64::INFINITY
            };
            loop {
                let picked = self.pick_among(&scratch[..ordered], complete && ordered == allowed, mass, weight);
                if picked.is_some() {
                    return picked;
                }
                if ordered == allowed {
                    break;
                }
                ordered = (ordered * 8).min(allowed);
                put_in_order(scratch, ordered);
            }
        }
        None
    }

    /// Filters and draws from the most likely candidates. `None` if more of them are needed to tell, which never happens
    /// when these are `whole`: all that top-k allows, whose weights sum to `mass`.
    fn pick_among(&self, lead: &[Candidate], whole: bool, mass: f64, weight: impl Fn(f32) -> f64) -> Option<u32> {
        let filtered = self.top_p < 1.0 || self.min_p > 0.0;
        let (mut kept, mut sum, mut closed) = (0usize, 0.0f64, whole);
        for &(logit, _) in lead {
            let w = weight(logit);
            if kept > 0 && w < f64::from(self.min_p) {
                closed = true;
                break;
            }
            (kept, sum) = (kept + 1, sum + w);
            if self.top_p < 1.0 && sum >= f64::from(self.top_p) * mass {
                closed = true;
                break;
            }
        }
        let target = self.u * if filtered { sum } else { mass };
        if filtered && !closed {
            return None;
        }
        let mut cumulative = 0.0;
        for &(logit, id) in &lead[..kept] {
            cumulative += weight(logit);
            if cumulative > target {
                return Some(id);
            }
        }
        // Rounding may leave the sum a hair below the target: then the last candidate with any weight is meant.
        let last = lead[..kept].iter().rev().find(|(logit, _)| weight(*logit) > 0.0);
        closed.then_some(last.map(|&(_, id)| id)).flatten()
    }
}

/// Puts the `count` most likely candidates first, in order (ties by lower id).
fn put_in_order(candidates: &mut [Candidate], count: usize) {
    let order = |a: &Candidate, b: &Candidate| b.0.partial_cmp(&a.0).unwrap_or(Ordering::Equal).then(a.1.cmp(&b.1));
    if count > 0 && count < candidates.len() {
        candidates.select_nth_unstable_by(count - 1, order);
    }
    candidates[..count].sort_unstable_by(order);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::kernels::reference;

    fn draw() -> Draw {
        Draw { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, u: 0.0 }
    }

    #[test]
    fn scores_agree_with_the_plain_version() {
        let logits: Vec<f32> = (0..1000).map(|i| ((i * 37 % 101) as f32).sin() * 8.0).collect();
        let plain = reference::log_softmax(&logits);
        let score = score(&logits, 17, 5).unwrap();
        assert!((f64::from(score.logprob) - plain[17]).abs() < 1e-6);
        assert!((f64::from(score.entropy) - reference::entropy(&plain)).abs() < 1e-6);
        assert_eq!(score.top.len(), 5);
        let mut order: Vec<u32> = (0..1000).collect();
        order.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]).then(a.cmp(&b)));
        assert_eq!(score.top.iter().map(|t| t.0).collect::<Vec<_>>(), order[..5]);
    }

    #[test]
    fn numbers_that_are_not_finite_are_no_distribution() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert_eq!(score(&[0.0, bad, 1.0], 0, 1), None);
        }
        assert_eq!(score(&[], 0, 1), None);
        assert_eq!(score(&[0.0], 1, 1), None, "a token outside the vocabulary");
        for isa in Isa::all() {
            let mut scratch = Vec::new();
            assert_eq!(draw().pick(isa, &[f32::NAN, 1.0], &mut scratch), None);
            assert_eq!(draw().pick(isa, &[f32::NEG_INFINITY; 4], &mut scratch), None, "everything is banned");
        }
    }

    #[test]
    fn the_lower_id_wins_a_tie() {
        let greedy = Draw { temperature: 0.0, ..draw() };
        assert_eq!(greedy.pick(Isa::best(), &[1.0, 3.0, 3.0], &mut Vec::new()), Some(1));
        assert_eq!(best(&[2.0, 5.0, 5.0, 2.0], 3), [(5.0, 1), (5.0, 2), (2.0, 0)]);
    }

    #[test]
    fn changes_apply_in_their_order() {
        let mut logits = [2.0, -2.0, 1.0, 5.0];
        let changes =
            Changes { repetition: 2.0, frequency: 0.5, presence: 0.25, bias: &[(2, 3.0), (99, 1.0)], banned: &[3, 99] };
        changes.apply(&mut logits, [(0, 2), (1, 0), (99, 1)].into_iter());
        assert_eq!(logits, [1.0 - 1.25, -4.0, 4.0, f32::NEG_INFINITY]);
    }

    #[test]
    fn draws_follow_the_distribution() {
        let logits = [0.0f32, 1.0, 2.0, -1.0];
        let expected: Vec<f64> = reference::log_softmax(&logits).iter().map(|l| l.exp()).collect();
        let (steps, mut counts, mut scratch) = (10_000, [0usize; 4], Vec::new());
        for step in 0..steps {
            let u = (step as f64 + 0.5) / steps as f64;
            counts[Draw { u, ..draw() }.pick(Isa::best(), &logits, &mut scratch).unwrap() as usize] += 1;
        }
        for (count, expected) in counts.iter().zip(expected) {
            assert!((*count as f64 / steps as f64 - expected).abs() < 1e-3);
        }
    }

    #[test]
    fn wide_rows_are_drawn_from_as_by_sorting_everything() {
        let noise = |i: usize| ((i * 7919 % 49_157) as f32 / 49_157.0 - 0.5) * 2.0;
        for (spread, temperature) in [(0.1f32, 1.0f32), (4.0, 1.0), (12.0, 0.7), (30.0, 1.5)] {
            let logits: Vec<f32> = (0..49_152).map(|i| noise(i).powi(3) * spread).collect();
            for (top_k, top_p, min_p) in
                [(0, 1.0, 0.0), (40, 1.0, 0.0), (0, 0.9, 0.0), (0, 1.0, 0.05), (5000, 0.99, 0.001), (49_152, 0.5, 0.0)]
            {
                for u in [0.0, 0.3, 0.77, 0.999_99] {
                    let draw = Draw { temperature, top_k, top_p, min_p, u };
                    let expected = reference::pick(&draw, &logits);
                    for isa in Isa::all() {
                        assert_eq!(draw.pick(isa, &logits, &mut Vec::new()), expected, "{draw:?} of {spread}");
                    }
                }
            }
        }
    }

    proptest! {
        #[test]
        fn picking_agrees_with_sorting_everything(
            logits in prop::collection::vec(-12i32..12, 1..600),
            temperature in prop_oneof![Just(0.0f32), 0.05f32..2.0],
            top_k in prop_oneof![Just(0usize), 1usize..700],
            top_p in prop_oneof![Just(1.0f32), 0.01f32..1.0],
            min_p in prop_oneof![Just(0.0f32), 0.0f32..1.0],
            u in 0.0f64..1.0,
        ) {
            let logits: Vec<f32> = logits.into_iter().map(|l| l as f32 / 3.0).collect();
            let draw = Draw { temperature, top_k, top_p, min_p, u };
            for isa in Isa::all() {
                prop_assert_eq!(draw.pick(isa, &logits, &mut Vec::new()), reference::pick(&draw, &logits));
            }
        }
    }
}
