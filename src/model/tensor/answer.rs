//! Final rows to answers.
//!
//! On a CPU logits are judged by the exact functions in [`crate::kernels::sample`]. On any other device they stay where they
//! are: [`super::scores`] judges them there, and only rows that it leaves undecided, or whose logits are what was asked for,
//! are fetched.

use candle_core::{Device, Result, Tensor};

use super::{
    candidates::MOST,
    ops,
    scores::{Judgement, judge},
};
use crate::model::{
    RowAnswer, RowAsk, Want,
    judge::{Judged, Scratch},
};

/// Logits, or pairs of candidates, held at once, at most: a quarter of a gigabyte in `f32`. More rows are taken in parts.
const MAX_LOGITS: usize = 1 << 26;

/// Where tokens are drawn and scored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scoring {
    /// On the host, in `f64`.
    Host,
    /// On the device, in `f32`.
    Device,
}

impl Scoring {
    pub fn of(device: &Device) -> Self {
        if device.is_cpu() { Self::Host } else { Self::Device }
    }
}

/// The logits of some asks, `[n, vocab]` in `f32`, of their places and normed rows.
type Head<'h> = dyn Fn(&[u32], &Tensor) -> Result<Tensor> + 'h;

/// Answers each ask from `hidden`, the normed rows of the asks in their order (`[asks, hidden]`).
pub fn answer(
    asks: &[RowAsk],
    hidden: &Tensor,
    (vocab, head): (usize, &Head),
    scoring: Scoring,
    scratch: &mut Scratch,
) -> Result<Vec<RowAnswer>> {
    let mut answers: Vec<Option<RowAnswer>> = vec![None; asks.len()];
    let (described, judged): (Vec<u32>, Vec<u32>) =
        (0..asks.len() as u32).partition(|&place| matches!(asks[place as usize].want, Want::Hidden));
    if !described.is_empty() {
        let values = ops::download(&rows_of(hidden, &described)?)?;
        for (place, values) in described.iter().zip(values.chunks_exact(hidden.dim(1)?)) {
            answers[*place as usize] = Some(finite_or_not(RowAnswer::Hidden, values));
        }
    }
    let part = (MAX_LOGITS / vocab.max(MOST * MOST)).max(1);
    for places in judged.chunks(part) {
        let logits = head(places, &rows_of(hidden, places)?)?;
        let wants: Vec<&Want> = places.iter().map(|place| &asks[*place as usize].want).collect();
        for (place, answer) in places.iter().zip(judge_all(&wants, &logits, scoring, scratch)?) {
            answers[*place as usize] = Some(answer);
        }
    }
    match answers.into_iter().collect() {
        Some(answers) => Ok(answers),
        None => candle_core::bail!("an ask was passed over"),
    }
}

/// Answers what is wanted of each row of `logits` (`[rows, vocab]`, `f32`), which is anything but its hidden state.
pub fn judge_all(wants: &[&Want], logits: &Tensor, scoring: Scoring, scratch: &mut Scratch) -> Result<Vec<RowAnswer>> {
    let mut answers: Vec<Option<RowAnswer>> = match scoring {
        Scoring::Host => vec![None; wants.len()],
        Scoring::Device => judge_there(wants, logits)?,
    };
    let left: Vec<u32> = (0u32..).zip(&answers).filter(|(_, answer)| answer.is_none()).map(|(row, _)| row).collect();
    if !left.is_empty() {
        let fetched = ops::download(&rows_of(logits, &left)?)?;
        for (row, logits) in left.iter().zip(fetched.chunks_exact(logits.dim(1)?)) {
            answers[*row as usize] = Some(Judged::of(logits).answer(wants[*row as usize], scratch));
        }
    }
    Ok(answers.into_iter().flatten().collect())
}

/// Judges on the device what can be judged there; `None` for rows whose logits are needed.
fn judge_there(wants: &[&Want], logits: &Tensor) -> Result<Vec<Option<RowAnswer>>> {
    let vocab = logits.dim(1)?;
    let mut answers = vec![None; wants.len()];
    let (mut rows, mut judgements) = (Vec::new(), Vec::new());
    for (row, want) in (0u32..).zip(wants) {
        let judgement = match want {
            Want::Sample(sample) => Judgement::draw(sample, vocab),
            Want::Score { token, top } => Judgement::score(*token, *top, vocab),
            Want::Logits | Want::Hidden => None,
        };
        if let Some(judgement) = judgement {
            rows.push(row);
            judgements.push(judgement);
        }
    }
    if !rows.is_empty() {
        for (row, answer) in rows.iter().zip(judge(&rows_of(logits, &rows)?, &judgements)?) {
            answers[*row as usize] = answer;
        }
    }
    let judged = |(want, answer): &(&&Want, &Option<RowAnswer>)| answer.is_none() && !matches!(want, Want::Logits);
    ops::count_undecided(wants.iter().zip(&answers).filter(judged).count());
    Ok(answers)
}

/// Some rows of a matrix; the matrix itself if that is all of them in order.
fn rows_of(matrix: &Tensor, rows: &[u32]) -> Result<Tensor> {
    let whole = rows.len() == matrix.dim(0)? && (0u32..).zip(rows).all(|(place, row)| place == *row);
    if whole { Ok(matrix.clone()) } else { ops::select(matrix, &ops::upload(rows, rows.len(), matrix.device())?) }
}

fn finite_or_not(answer: fn(Vec<f32>) -> RowAnswer, values: &[f32]) -> RowAnswer {
    let finite = values.iter().all(|value| value.is_finite());
    if finite { answer(values.to_vec()) } else { RowAnswer::NotFinite }
}
