//! One row's logits to its answer: the same in both decoders.

use super::{RowAnswer, SampleAsk, Want};
use crate::kernels::{
    isa::Isa,
    sample::{Candidate, Changes, Draw, Spread, best},
    spread::Part,
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
            Want::Sample(ask) if ask.temperature <= 0.0 && ask.adjustments.is_off() => scored(best.1, ask.top),
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
