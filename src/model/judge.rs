//! One row's logits to its answer: the same in both decoders.

use super::{RowAnswer, SampleAsk, Want};
use crate::{
    kernels::{
        isa::Isa,
        sample::{Candidate, Changes, Draw, Spread, best},
        spread::Part,
    },
    terms::TokenScore,
};

/// A row of `[vocab]` logits and what is known of it as a whole.
pub struct Judged<'a> {
    logits: &'a [f32],
    /// With the best logit; `None` if a logit is not finite.
    measured: Option<(Spread, Candidate)>,
}

/// Memory that answers are worked out in, reused from row to row.
pub struct Scratch {
    isa: Isa,
    adjusted: Vec<f32>,
    candidates: Vec<Candidate>,
}

impl Want {
    /// Whether the best token and its score are all that is wanted: what a row's parts tell without the row.
    pub fn takes_the_best_alone(&self) -> bool {
        matches!(self, Self::Sample(ask) if ask.is_greedy() && ask.top == 0)
    }
}

impl SampleAsk {
    /// Whether the best logit is taken as it is.
    fn is_greedy(&self) -> bool {
        self.temperature <= 0.0 && self.adjustments.is_off()
    }
}

/// The answer of a row of which only the parts are at hand, to a want that [takes no more](Want::takes_the_best_alone).
pub fn best_alone(parts: &[Part]) -> RowAnswer {
    let measured = Spread::join(parts).zip(Part::best(parts));
    measured.map_or(RowAnswer::NotFinite, |(spread, (logit, token))| {
        let (logprob, entropy) = (spread.logprob(logit), spread.entropy as f32);
        RowAnswer::Score(TokenScore { token, logprob, entropy, top: Vec::new() })
    })
}

impl Default for Scratch {
    fn default() -> Self {
        Self { isa: Isa::best(), adjusted: Vec::new(), candidates: Vec::new() }
    }
}

impl<'a> Judged<'a> {
    /// Measures the row in one pass.
    pub fn of(logits: &'a [f32]) -> Self {
        let measured = Spread::of(logits).zip(best(logits, 1).pop());
        Self { logits, measured }
    }

    /// A row whose parts have been measured.
    pub fn measured(logits: &'a [f32], parts: &[Part]) -> Self {
        Self { logits, measured: Spread::join(parts).zip(Part::best(parts)) }
    }

    /// Hidden states are not asked here.
    pub fn answer(&self, want: &Want, scratch: &mut Scratch) -> RowAnswer {
        let Some((spread, best)) = &self.measured else { return RowAnswer::NotFinite };
        let scored = |token: u32, top: u8| {
            let score = spread.score(self.logits, token, top.into());
            score.map_or(RowAnswer::NotFinite, RowAnswer::Score)
        };
        match want {
            Want::Score { token, top } => scored(*token, *top),
            Want::Sample(ask) if ask.is_greedy() => scored(best.1, ask.top),
            Want::Sample(ask) => match draw(self.logits, ask, scratch) {
                Some(token) => scored(token, ask.top),
                None => RowAnswer::NotFinite,
            },
            Want::Hidden | Want::Logits => RowAnswer::Logits(self.logits.to_vec()),
        }
    }
}

fn draw(logits: &[f32], ask: &SampleAsk, scratch: &mut Scratch) -> Option<u32> {
    let draw =
        Draw { temperature: ask.temperature, top_k: ask.top_k as usize, top_p: ask.top_p, min_p: ask.min_p, u: ask.u };
    let adjustments = &ask.adjustments;
    if adjustments.is_off() {
        return draw.pick(scratch.isa, logits, &mut scratch.candidates);
    }
    let changes = Changes {
        repetition: adjustments.repetition,
        frequency: adjustments.frequency,
        presence: adjustments.presence,
        bias: &adjustments.bias,
        banned: &adjustments.banned,
    };
    scratch.adjusted.clear();
    scratch.adjusted.extend_from_slice(logits);
    changes.apply(&mut scratch.adjusted, adjustments.seen.iter().map(|seen| (seen.token, seen.in_answer)));
    draw.pick(scratch.isa, &scratch.adjusted, &mut scratch.candidates)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Adjustments;

    #[test]
    fn the_best_alone_is_what_the_whole_row_gives() {
        let ask = SampleAsk {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            u: 0.5,
            adjustments: Adjustments::default(),
            top: 0,
        };
        let want = Want::Sample(Box::new(ask.clone()));
        assert!(want.takes_the_best_alone());
        assert!(!Want::Sample(Box::new(SampleAsk { top: 1, ..ask.clone() })).takes_the_best_alone());
        assert!(!Want::Sample(Box::new(SampleAsk { temperature: 0.1, ..ask })).takes_the_best_alone());
        let mut row: Vec<f32> = (0..9000).map(|i| ((i * 7919 % 1009) as f32).sin() * 9.0).collect();
        for broken in [false, true] {
            if broken {
                row[5000] = f32::NAN;
            }
            let parts: Vec<Part> = (0..Part::count(row.len())).map(|part| Part::of(Isa::best(), &row, part)).collect();
            let whole = Judged::measured(&row, &parts).answer(&want, &mut Scratch::default());
            assert_eq!(best_alone(&parts), whole);
        }
    }
}
