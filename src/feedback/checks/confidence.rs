//! How sure a version was of an answer, beside how sure it was of its own others.

use super::Finding;

/// Where an answer is among a version's own. Only answers that came to their end count.
///
/// The mean log-probability of short answers scatters more than that of long ones, and has another middle: so an answer is
/// first placed among those of about its length, by how many standard deviations it is from their mean; then among all.
#[derive(Clone, Debug, PartialEq)]
pub struct Reference {
    bands: Vec<Band>,
    /// Places of the reference's own answers, the least sure first.
    places: Vec<f64>,
}

/// Answers of about the same length.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Band {
    /// The longest answer in it, in tokens.
    up_to: usize,
    mean: f64,
    deviation: f64,
}

/// Answers that a band has at least.
const BAND: usize = 25;
/// A band of equal answers would place every other one infinitely far from them; nats.
const LEAST_DEVIATION: f64 = 1e-3;

impl Reference {
    /// Of answers by tokens and mean log-probability; `None` without any.
    pub fn of(answers: &[(usize, f64)]) -> Option<Self> {
        let mut sorted: Vec<(usize, f64)> = answers.iter().copied().filter(|(tokens, _)| *tokens > 0).collect();
        sorted.sort_by(|one, other| one.0.cmp(&other.0).then(one.1.total_cmp(&other.1)));
        let mut bands: Vec<Band> = Vec::new();
        let mut rest = sorted.as_slice();
        while let Some((shortest, _)) = rest.first() {
            // A band spans a doubling of length, and more where there are few answers.
            let doubled = rest.partition_point(|(tokens, _)| *tokens < shortest * 2).max(BAND.min(rest.len()));
            let up_to = rest[doubled - 1].0;
            let mut end = rest.partition_point(|(tokens, _)| *tokens <= up_to);
            if rest.len() - end < BAND {
                end = rest.len();
            }
            let (band, after) = rest.split_at(end);
            rest = after;
            bands.push(Band::of(band));
        }
        let mut reference = Self { bands, places: Vec::new() };
        let mut places: Vec<f64> = sorted.iter().map(|(tokens, mean)| reference.place(*tokens, *mean)).collect();
        places.sort_by(f64::total_cmp);
        reference.places = places;
        (!sorted.is_empty()).then_some(reference)
    }

    /// Answers that it was made of.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    fn place(&self, tokens: usize, mean: f64) -> f64 {
        let at = self.bands.partition_point(|band| band.up_to < tokens).min(self.bands.len().saturating_sub(1));
        self.bands.get(at).map_or(0.0, |band| (mean - band.mean) / band.deviation)
    }

    /// Which share of the reference was less sure, of answers of their lengths, than this one.
    pub fn share_below(&self, tokens: usize, mean: f64) -> f64 {
        let place = self.place(tokens, mean);
        self.places.partition_point(|known| *known < place) as f64 / self.places.len().max(1) as f64
    }

    /// A finding for an answer that is among the least sure, of which there are to be `budget` (a share) in the long run: the
    /// k-th smallest of n places is a bound that a new one of the same kind is below with probability k / (n + 1).
    pub fn look(&self, tokens: usize, mean: f64, budget: f64) -> Option<Finding> {
        let rank = (budget * (self.places.len() + 1) as f64).floor() as usize;
        let bound = rank.checked_sub(1).and_then(|at| self.places.get(at))?;
        (self.place(tokens, mean) < *bound).then(|| {
            let surer = (1.0 - self.share_below(tokens, mean)) * 100.0;
            let reason = format!(
                "mean log-probability {mean:.2} for each of {tokens} tokens: the version was surer of {surer:.1} % of its first {} \
                 answers, length allowed for; a reason to look, no measure of truth",
                self.len(),
            );
            Finding { reason, value: Some(mean) }
        })
    }
}

impl Band {
    /// Of at least one answer, sorted by length.
    fn of(answers: &[(usize, f64)]) -> Self {
        let count = answers.len() as f64;
        let mean = answers.iter().map(|(_, mean)| mean).sum::<f64>() / count;
        let variance = answers.iter().map(|(_, one)| (one - mean).powi(2)).sum::<f64>() / count;
        let up_to = answers.last().map_or(0, |(tokens, _)| *tokens);
        Self { up_to, mean, deviation: variance.sqrt().max(LEAST_DEVIATION) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers as they are: the mean of `tokens` draws, so that short ones scatter more.
    fn answers(count: usize, mut seed: u64) -> Vec<(usize, f64)> {
        let mut uniform = move || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 11) as f64 / (1u64 << 53) as f64
        };
        (0..count)
            .map(|_| {
                let tokens = 2 + (uniform() * 6.0).exp2() as usize * 2;
                let mean = (0..tokens).map(|_| uniform().max(1e-9).ln() * 0.3).sum::<f64>() / tokens as f64;
                (tokens, mean)
            })
            .collect()
    }

    #[test]
    fn as_many_are_flagged_as_the_budget_says_at_every_length() {
        let (mut flagged, mut short, mut all) = (0, 0, 0);
        for seed in 0..20 {
            let reference = Reference::of(&answers(400, seed)).unwrap();
            for (tokens, mean) in answers(2000, seed + 1000) {
                let found = reference.look(tokens, mean, 0.02).is_some();
                all += 1;
                flagged += usize::from(found);
                short += usize::from(found && tokens < 12);
            }
        }
        let rate = flagged as f64 / all as f64;
        assert!((0.012..=0.028).contains(&rate), "{rate} of all");
        // A bound on the bare mean would flag short answers only, which are half of all.
        let share = short as f64 / flagged as f64;
        assert!((0.25..=0.75).contains(&share), "{share} of what is flagged is short");
    }

    #[test]
    fn an_answer_below_all_others_is_flagged_with_words_that_promise_nothing() {
        let reference = Reference::of(&answers(300, 7)).unwrap();
        let finding = reference.look(40, -3.0, 0.02).unwrap();
        assert!(finding.reason.contains("surer of 100.0 %") && finding.reason.contains("no measure of truth"));
        assert_eq!(finding.value, Some(-3.0));
        assert!(reference.look(40, -0.3, 0.02).is_none());
    }

    #[test]
    fn a_small_or_even_reference_flags_nothing_by_chance() {
        assert_eq!(Reference::of(&[]), None);
        let few = Reference::of(&answers(20, 3)).unwrap();
        assert!(few.look(40, -9.0, 0.02).is_none(), "20 answers have no lowest 2 %");
        let even = Reference::of(&[(8, -0.25); 300]).unwrap();
        assert!(even.look(8, -0.25, 0.02).is_none());
        assert!(even.look(8, -0.5, 0.02).is_some());
    }
}
