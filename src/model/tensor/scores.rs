//! Scores and draws on the device: what leaves it is each row's token, log-probability, entropy and alternatives.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Result, Tensor};

use super::{
    candidates::Candidates,
    draw::{Drawn, Rules, draw, total},
    ops,
};
use crate::{
    model::{Adjustments, RowAnswer, SampleAsk},
    terms::TokenScore,
};

/// What stands in the place of a token that there is not.
const NOT_FINITE: f32 = -1.0;
const UNDECIDED: f32 = -2.0;

/// What is asked of one row whose logits stay on the device.
pub struct Judgement<'a> {
    kind: Kind<'a>,
    /// How many of the most likely tokens to report.
    top: usize,
}

enum Kind<'a> {
    Draw { rules: Rules, adjustments: &'a Adjustments },
    Score { token: u32 },
}

impl<'a> Judgement<'a> {
    /// `None` if the device cannot draw by these rules.
    pub fn draw(ask: &'a SampleAsk, vocab: usize) -> Option<Self> {
        let (rules, top) = (Rules::of(ask, vocab)?, usize::from(ask.top).min(vocab));
        let kind = Kind::Draw { rules, adjustments: &ask.adjustments };
        Some(Self { kind, top })
    }

    /// `None` if there is no such token.
    pub fn score(token: u32, top: u8, vocab: usize) -> Option<Self> {
        let top = usize::from(top).min(vocab);
        ((token as usize) < vocab).then_some(Self { kind: Kind::Score { token }, top })
    }

    fn rules(&self) -> Rules {
        match &self.kind {
            Kind::Draw { rules, .. } => *rules,
            Kind::Score { .. } => Rules::GREEDY,
        }
    }

    /// The token of a row that draws none.
    fn given(&self) -> Option<u32> {
        match &self.kind {
            Kind::Draw { .. } => None,
            Kind::Score { token } => Some(*token),
        }
    }
}

/// Values that leave the device for a row with `top` alternatives: token, log-probability, entropy, ids, log-probabilities.
fn width(top: usize) -> usize {
    3 + 2 * top
}

/// Judges each row of `logits` (`[rows, vocab]`, `f32`); `None` for a row that could not be decided.
pub fn judge(logits: &Tensor, asks: &[Judgement]) -> Result<Vec<Option<RowAnswer>>> {
    let device = logits.device();
    // 0 for a finite value, NaN for any other.
    let zeros = ops::affine(logits, 0.0, 0.0)?;
    let spoiled = ops::sum(&zeros)?;
    let finite = ops::equal(&spoiled, &spoiled)?;
    let nothing = ops::filled(0.0, (1, 1), device)?;
    let logits = ops::choose(&ops::equal(&zeros, &zeros)?, logits, &nothing)?;

    let best = ops::max(&logits)?;
    let below = ops::sub(&logits, &best)?;
    let weights = ops::exp(&below)?;
    let mass = total(&weights)?;
    let log_mass = ops::log(&mass)?;
    let entropy = ops::sub(&log_mass, &ops::div(&total(&ops::mul(&weights, &below)?)?, &mass)?)?;
    let log_sum = ops::add(&best, &log_mass)?;

    let most = asks.iter().map(|ask| ask.top).max().unwrap_or(0);
    let draws = asks.iter().any(|ask| ask.given().is_none());
    let few = asks.iter().map(|ask| ask.rules().candidates()).max().unwrap_or(1);
    let count = if draws { few.max(most + 1) } else { most + 1 };
    let adjusted = adjusted(&logits, asks, device)?;
    let own = match most > 0 || (draws && adjusted.is_none()) {
        true => Some(Candidates::of(&logits, count)?),
        false => None,
    };
    let mut undecided = Vec::new();
    let mut sound = finite;
    let mut tokens = tokens_given(asks, device)?;
    if draws {
        let fresh;
        let (logits, candidates) = match (&adjusted, &own) {
            (None, Some(own)) => (&logits, own),
            (Some(adjusted), _) => {
                fresh = Candidates::of(adjusted, count)?;
                (adjusted, &fresh)
            }
            (None, None) => candle_core::bail!("a draw needs candidates"),
        };
        let rules: Vec<Rules> = asks.iter().map(Judgement::rules).collect();
        let Drawn { tokens: drawn, undecided: doubtful, sound: any } = draw(logits, candidates, &rules)?;
        let is_given = ops::less_equal(&nothing, &tokens)?;
        let not_given = ops::less(&tokens, &nothing)?;
        tokens = ops::choose(&is_given, &tokens, &ops::cast(&drawn, DType::F32)?)?;
        undecided.push(ops::mul(&not_given, &doubtful)?);
        // A row that draws nothing is sound whatever was adjusted.
        let any = ops::less_equal(&not_given, &any)?;
        sound = ops::mul(&sound, &any)?;
    }
    let mut columns = Vec::new();
    if most > 0
        && let Some(Candidates { values, ids, floor }) = &own
    {
        if let Some(floor) = floor {
            let last: Vec<u32> = asks.iter().map(|ask| ask.top.saturating_sub(1) as u32).collect();
            let last = ops::gather(values, &ops::upload(&last, (asks.len(), 1), device)?)?;
            undecided.push(ops::less_equal(&last, floor)?);
        }
        columns.push(ops::cast(&ops::contiguous(&ids.narrow(1, 0, most)?)?, DType::F32)?);
        columns.push(ops::sub(&values.narrow(1, 0, most)?, &log_sum)?);
    }
    for doubtful in undecided {
        tokens = ops::choose(&doubtful, &ops::filled(UNDECIDED, (1, 1), device)?, &tokens)?;
    }
    tokens = ops::choose(&sound, &tokens, &ops::filled(NOT_FINITE, (1, 1), device)?)?;
    let index = ops::choose(&ops::less(&tokens, &nothing)?, &nothing, &tokens)?;
    let logit = ops::gather(&logits, &ops::cast(&index, DType::U32)?)?;
    columns.splice(0..0, [tokens, ops::sub(&logit, &log_sum)?, entropy]);
    read(&ops::join(&columns, 1)?, asks, most)
}

/// The tokens to be scored, `[rows, 1]`; -1 in rows that draw.
fn tokens_given(asks: &[Judgement], device: &Device) -> Result<Tensor> {
    let given: Vec<f32> = asks.iter().map(|ask| ask.given().map_or(-1.0, |token| token as f32)).collect();
    ops::upload(&given, (asks.len(), 1), device)
}

/// What one token's logit becomes: `x / repetition` or `x · repetition` by its sign, less `penalty`, plus `bias`.
#[derive(Clone, Copy)]
struct Change {
    repetition: f32,
    penalty: f32,
    /// -∞ for a banned token.
    bias: f32,
}

impl Change {
    const NONE: Self = Self { repetition: 1.0, penalty: 0.0, bias: 0.0 };
}

/// The changes to single tokens, each token once; tokens outside the vocabulary are passed over.
fn changes(adjustments: &Adjustments, vocab: usize) -> BTreeMap<u32, Change> {
    let mut changes = BTreeMap::new();
    for seen in &adjustments.seen {
        let change: &mut Change = changes.entry(seen.token).or_insert(Change::NONE);
        change.repetition = adjustments.repetition;
        if seen.in_answer > 0 {
            change.penalty = adjustments.frequency * seen.in_answer as f32 + adjustments.presence;
        }
    }
    for (token, bias) in &adjustments.bias {
        changes.entry(*token).or_insert(Change::NONE).bias += bias;
    }
    for token in &adjustments.banned {
        changes.entry(*token).or_insert(Change::NONE).bias = f32::NEG_INFINITY;
    }
    changes.retain(|token, _| (*token as usize) < vocab);
    changes
}

/// `logits` with each row's changes; `None` if there are none.
fn adjusted(logits: &Tensor, asks: &[Judgement], device: &Device) -> Result<Option<Tensor>> {
    let (rows, vocab) = logits.dims2()?;
    let (mut places, mut values) = (Vec::new(), [Vec::new(), Vec::new(), Vec::new()]);
    for (row, ask) in asks.iter().enumerate() {
        let Kind::Draw { adjustments, .. } = &ask.kind else { continue };
        for (token, Change { repetition, penalty, bias }) in changes(adjustments, vocab) {
            places.push((row * vocab) as u32 + token);
            values.iter_mut().zip([repetition, penalty, bias]).for_each(|(values, value)| values.push(value));
        }
    }
    if places.is_empty() {
        return Ok(None);
    }
    let changed = places.len();
    let places = ops::upload(&places, changed, device)?;
    let values = ops::upload(&values.concat(), (3, changed), device)?;
    let (repetition, penalty, bias) = (values.get(0)?, values.get(1)?, values.get(2)?);
    let old = ops::select(&logits.flatten_all()?, &places)?;
    let nothing = ops::filled(0.0, 1, device)?;
    let positive = ops::less(&nothing, &old)?;
    let new = ops::choose(&positive, &ops::div(&old, &repetition)?, &ops::mul(&old, &repetition)?)?;
    let new = ops::add(&ops::sub(&new, &penalty)?, &bias)?;
    // NaN must not meet a sort; as +∞ it spoils the row as it should.
    let new = ops::choose(&ops::equal(&new, &new)?, &new, &ops::filled(f32::INFINITY, 1, device)?)?;
    let copy = ops::affine(logits, 1.0, 0.0)?.flatten_all()?;
    ops::scatter(&copy, &places, &new, 0)?;
    Ok(Some(copy.reshape((rows, vocab))?))
}

/// Fetches each row's values (`[rows, width(most)]`), no more than were asked for.
fn read(columns: &Tensor, asks: &[Judgement], most: usize) -> Result<Vec<Option<RowAnswer>>> {
    let all = columns.flatten_all()?;
    let wanted = match asks.iter().all(|ask| ask.top == most) {
        true => all,
        false => {
            let mut places = Vec::new();
            for (row, ask) in asks.iter().enumerate() {
                let first = row * width(most);
                let row = (first..first + 3 + ask.top).chain(first + 3 + most..first + 3 + most + ask.top);
                places.extend(row.map(|place| place as u32));
            }
            ops::select(&all, &ops::upload(&places, places.len(), columns.device())?)?
        }
    };
    let values = ops::download(&wanted)?;
    let mut rest = values.as_slice();
    Ok(asks
        .iter()
        .map(|ask| {
            let (row, others) = rest.split_at(width(ask.top));
            rest = others;
            // Metal's fast arithmetic may compare NaN as it likes, but carries it on: the host looks at such a row itself.
            let whole = row[1].is_finite() && row[2].is_finite();
            if row[0] == UNDECIDED || (row[0] != NOT_FINITE && !whole) {
                return None;
            }
            if row[0] == NOT_FINITE {
                return Some(RowAnswer::NotFinite);
            }
            let (ids, logprobs) = row[3..].split_at(ask.top);
            let top = ids.iter().zip(logprobs).map(|(id, logprob)| (*id as u32, *logprob)).collect();
            // Rounding may leave the entropy of a certain token a hair below 0.
            Some(RowAnswer::Score(TokenScore { token: row[0] as u32, logprob: row[1], entropy: row[2].max(0.0), top }))
        })
        .collect())
}
