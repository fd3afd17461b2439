//! Final rows to answers.

use candle_core::{DType, Result, Tensor};

use super::linear::product;
use crate::model::{
    RowAnswer, RowAsk, Want,
    judge::{Judged, Scratch},
};

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
            Want::Sample(_) | Want::Score { .. } | Want::Logits => Judged::of(row()?).answer(&ask.want, scratch),
        });
    }
    Ok(answers)
}
