//! Final rows to answers.

use candle_core::{DType, Result, Tensor};

use super::linear::product;
use crate::{
    kernels::sample::{Candidate, Changes, Draw, score},
    model::{RowAnswer, RowAsk, SampleAsk, Want},
};

/// Memory that answers are worked out in, reused from step to step.
#[derive(Default)]
pub struct Scratch {
    adjusted: Vec<f32>,
    candidates: Vec<Candidate>,
}

/// Answers each ask from `hidden`, the normed rows of the asks in their order (`[asks, hidden]`), and the head
/// (`[vocab, hidden]`).
pub fn answer(asks: &[RowAsk], hidden: &Tensor, head: &Tensor, scratch: &mut Scratch) -> Result<Vec<RowAnswer>> {
    let judged: Vec<u32> = (0u32..)
        .zip(asks)
        .filter(|(_, ask)| match ask.want {
            Want::Sample(_) | Want::Score { .. } | Want::Logits => true,
            Want::Hidden => false,
        })
        .map(|(place, _)| place)
        .collect();
    let mut logits = Vec::new();
    if !judged.is_empty() {
        let rows = match judged.len() == asks.len() {
            true => hidden.clone(),
            false => hidden.index_select(&Tensor::new(judged.as_slice(), hidden.device())?, 0)?,
        };
        logits = product(head, &rows)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
    }
    let mut logits = logits.chunks_exact(head.dim(0)?);
    let mut answers = Vec::with_capacity(asks.len());
    for (place, ask) in asks.iter().enumerate() {
        let mut row = || match logits.next() {
            Some(row) => Ok(row),
            None => candle_core::bail!("the head gave too few rows"),
        };
        answers.push(match &ask.want {
            Want::Hidden => {
                let values = hidden.get(place)?.to_dtype(DType::F32)?.to_vec1::<f32>()?;
                let finite = values.iter().all(|value| value.is_finite());
                if finite { RowAnswer::Hidden(values) } else { RowAnswer::NotFinite }
            }
            Want::Logits => {
                let values = row()?.to_vec();
                let finite = values.iter().all(|value| value.is_finite());
                if finite { RowAnswer::Logits(values) } else { RowAnswer::NotFinite }
            }
            Want::Score { token, top } => scored(row()?, *token, *top),
            Want::Sample(sample) => sampled(row()?, sample, scratch),
        });
    }
    Ok(answers)
}

fn scored(logits: &[f32], token: u32, top: u8) -> RowAnswer {
    score(logits, token, top.into()).map_or(RowAnswer::NotFinite, RowAnswer::Score)
}

fn sampled(logits: &[f32], ask: &SampleAsk, scratch: &mut Scratch) -> RowAnswer {
    let draw =
        Draw { temperature: ask.temperature, top_k: ask.top_k as usize, top_p: ask.top_p, min_p: ask.min_p, u: ask.u };
    let adjusted = if ask.adjustments.is_off() {
        logits
    } else {
        let adjustments = &ask.adjustments;
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
        &scratch.adjusted
    };
    match draw.pick(adjusted, &mut scratch.candidates) {
        Some(token) => scored(logits, token, ask.top),
        None => RowAnswer::NotFinite,
    }
}
