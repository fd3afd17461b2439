//! Two decoders read the same tokens; what their distributions differ by, token for token.

use std::{fmt, num::NonZero, sync::Arc, thread};

use serde::Serialize;

use crate::model::{AdapterRows, Batch, LanguageModel, LoraAdapter, RowAnswer, RowAsk, SequenceRows, StepOutput, Want};

/// What the fast class may cost on a trained model.
#[derive(Clone, Copy, Debug)]
pub struct Gates {
    /// Mean Kullback-Leibler divergence of the fast distribution from the exact one, in nats.
    pub mean_kl: f64,
    /// 99th percentile of the absolute difference in the next token's log-probability.
    pub p99: f64,
    /// Ratio of the two perplexities, either way.
    pub perplexity: f64,
    /// The exact class's lead of its best token over its second, in nats, where the fast class prefers another: greedy answers may
    /// part at ties as near as that.
    pub parting: f64,
}

/// Set once, on the first measurement (the demo model in Q4_1, 902 tokens: mean KL 3.8e-3, 99th percentile 0.34, perplexity
/// 1.0066), and not to be loosened. The parting was planned as 0.1 and first measured over 10,000 tokens of every format and
/// adapter: up to 0.8, as two logits lie apart that int8 activations move past each other by the 99th percentile each.
pub const GATES: Gates = Gates { mean_kl: 5e-3, p99: 0.4, perplexity: 1.01, parting: 1.0 };

/// Tokens that it takes to judge a percentile and a perplexity; with fewer the mean and the widest parting alone are judged.
pub const ENOUGH: usize = 10_000;

/// Rows of a step; each has a distribution over the whole vocabulary from either decoder.
const ROWS: usize = 64;

/// A decoder and the adapter that its rows run on.
pub struct Side<'a> {
    pub decoder: &'a mut dyn LanguageModel,
    pub adapter: Option<&'a Arc<LoraAdapter>>,
}

/// The differences so far.
#[derive(Default)]
pub struct Comparison {
    rows: Vec<RowDifference>,
}

/// What one row says of the next token.
#[derive(Clone, Copy)]
struct RowDifference {
    kl: f64,
    /// Log-probability of the text's next token.
    exact: f64,
    fast: f64,
    /// How far the exact class's best token is ahead of its second, where the fast class prefers another than the best.
    parted: Option<f64>,
    /// Whether the row is in the second half of its window.
    late: bool,
}

impl Comparison {
    /// Reads `tokens` with both decoders, as one sequence from position 0 on, and adds a row for each token but the last.
    ///
    /// # Errors
    /// What a decoder says, or that one gave no distribution.
    pub fn read(&mut self, tokens: &[u32], exact: &mut Side, fast: &mut Side) -> Result<(), String> {
        let rows = tokens.len().saturating_sub(1);
        for first in (0..rows).step_by(ROWS) {
            let end = rows.min(first + ROWS);
            let (exact, fast) = (exact.logits(tokens, first..end)?, fast.logits(tokens, first..end)?);
            let pairs: Vec<(usize, &[f32], &[f32])> = (first..end)
                .zip(exact.iter().zip(&fast))
                .map(|(row, (exact, fast))| (row, exact.as_slice(), fast.as_slice()))
                .collect();
            let judge = |&(row, exact, fast): &(usize, &[f32], &[f32])| {
                RowDifference::of(exact, fast, tokens[row + 1] as usize, 2 * row >= tokens.len())
            };
            // A distribution has as many exponentials as the vocabulary has tokens: half of the time, on one thread.
            let each = pairs.len().div_ceil(thread::available_parallelism().map_or(1, NonZero::get));
            thread::scope(|scope| {
                let parts: Vec<_> = pairs
                    .chunks(each)
                    .map(|part| scope.spawn(move || part.iter().map(judge).collect::<Vec<_>>()))
                    .collect();
                for part in parts {
                    self.rows.extend(part.join().map_err(|_| "a comparison panicked".to_owned())?);
                }
                Ok::<_, String>(())
            })?;
        }
        Ok(())
    }

    /// The figures. NaN where there are no rows.
    pub fn figures(&self) -> Figures {
        let count = self.rows.len();
        let mean = |value: &dyn Fn(&RowDifference) -> f64| self.rows.iter().map(value).sum::<f64>() / count as f64;
        let mut errors: Vec<f64> = self.rows.iter().map(|row| (row.fast - row.exact).abs()).collect();
        errors.sort_by(f64::total_cmp);
        let parted: Vec<f64> = self.rows.iter().filter_map(|row| row.parted).collect();
        let late: Vec<f64> = self.rows.iter().filter(|row| row.late).map(|row| row.fast).collect();
        Figures {
            tokens: count,
            mean_kl: mean(&|row| row.kl),
            p99: errors.get(count * 99 / 100).copied().unwrap_or(f64::NAN),
            perplexity: (-mean(&|row| row.fast)).exp(),
            exact_perplexity: (-mean(&|row| row.exact)).exp(),
            second_half_perplexity: (-late.iter().sum::<f64>() / late.len() as f64).exp(),
            parted: parted.len(),
            widest_parting: parted.into_iter().fold(0.0, f64::max),
        }
    }
}

impl Side<'_> {
    /// Logits after each of the tokens in `range`, whose predecessors have been read.
    fn logits(&mut self, tokens: &[u32], range: std::ops::Range<usize>) -> Result<Vec<Vec<f32>>, String> {
        let block_tokens = self.decoder.kv_shape().block_tokens;
        let rows: Vec<u32> = (0..range.len() as u32).collect();
        let batch = Batch {
            tokens: tokens[range.clone()].to_vec(),
            positions: range.clone().map(|position| position as u32).collect(),
            sequences: vec![SequenceRows {
                first_row: 0,
                rows: range.len() as u32,
                blocks: (0..tokens.len().div_ceil(block_tokens) as u32).collect(),
            }],
            asks: rows.iter().map(|&row| RowAsk { row, want: Want::Logits }).collect(),
            adapters: self
                .adapter
                .map(|weights| AdapterRows { rows: rows.clone(), weights: Arc::clone(weights) })
                .into_iter()
                .collect(),
            ..Batch::default()
        };
        let mut output = StepOutput::default();
        self.decoder.forward(&batch, &mut output).map_err(|error| error.to_string())?;
        let logits = |answer| match answer {
            RowAnswer::Logits(logits) => Ok(logits),
            other => Err(format!("logits were asked for, and {other:?} was the answer")),
        };
        output.answers.into_iter().map(logits).collect()
    }
}

impl RowDifference {
    fn of(exact: &[f32], fast: &[f32], next: usize, late: bool) -> Self {
        let (exact_sum, fast_sum) = (log_sum(exact), log_sum(fast));
        let difference = |(&exact, &fast): (&f32, &f32)| {
            let (p, q) = (f64::from(exact) - exact_sum, f64::from(fast) - fast_sum);
            p.exp() * (p - q)
        };
        let best = |logits: &[f32]| (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b]));
        let parted = best(exact).filter(|first| best(fast) != Some(*first)).map(|first| {
            let others = exact.iter().enumerate().filter(|(token, _)| *token != first);
            f64::from(exact[first]) - f64::from(others.map(|(_, logit)| *logit).fold(f32::NEG_INFINITY, f32::max))
        });
        Self {
            kl: exact.iter().zip(fast).map(difference).sum(),
            exact: f64::from(exact[next]) - exact_sum,
            fast: f64::from(fast[next]) - fast_sum,
            parted,
            late,
        }
    }
}

/// ln Σ exp
fn log_sum(logits: &[f32]) -> f64 {
    let max = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    max + logits.iter().map(|&logit| (f64::from(logit) - max).exp()).sum::<f64>().ln()
}

/// How the fast class compares with the exact one.
#[derive(Clone, Debug, Serialize)]
pub struct Figures {
    pub tokens: usize,
    pub mean_kl: f64,
    pub p99: f64,
    /// The fast class's.
    pub perplexity: f64,
    pub exact_perplexity: f64,
    /// The fast class's, over the second half of each window.
    pub second_half_perplexity: f64,
    /// Rows where the two classes prefer different tokens.
    pub parted: usize,
    /// The exact class's widest lead of its best over its second among those, in nats.
    pub widest_parting: f64,
}

impl Figures {
    /// What is beyond `gates`. All of them are judged if there are [`ENOUGH`] tokens, or if `strictly`; else the mean, and the widest
    /// parting, which more tokens could only widen.
    pub fn faults(&self, gates: &Gates, strictly: bool) -> Vec<String> {
        let ratio = self.perplexity / self.exact_perplexity;
        let mut faults = Vec::new();
        // What is not a number is within nothing. Classes that do not differ at all are one class compared with itself.
        let within = |value: f64, limit: f64| value <= limit;
        if self.mean_kl == 0.0 || !within(self.mean_kl, gates.mean_kl) {
            faults.push(format!("mean KL {:.2e}; it may be {:.0e}", self.mean_kl, gates.mean_kl));
        }
        if !within(self.widest_parting, gates.parting) {
            let (widest, most) = (self.widest_parting, gates.parting);
            faults.push(format!("another token is best where the lead is {widest:.3}; it may be {most}"));
        }
        if strictly || self.tokens >= ENOUGH {
            if !within(self.p99, gates.p99) {
                faults.push(format!("99th percentile {:.4}; it may be {}", self.p99, gates.p99));
            }
            if !(1.0 / gates.perplexity..=gates.perplexity).contains(&ratio) {
                faults.push(format!("perplexity ratio {ratio:.5}; it may be {}", gates.perplexity));
            }
        }
        faults
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} tokens: mean KL {:.2e}, p99 {:.3}, perplexity {:.4} / {:.4} = {:.5} (second halves {:.4}), best token differs \
             in {:.2} % (lead up to {:.2})",
            self.tokens,
            self.mean_kl,
            self.p99,
            self.perplexity,
            self.exact_perplexity,
            self.perplexity / self.exact_perplexity,
            self.second_half_perplexity,
            100.0 * self.parted as f64 / self.tokens as f64,
            self.widest_parting,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(exact: &[f32], fast: &[f32], next: usize) -> RowDifference {
        RowDifference::of(exact, fast, next, false)
    }

    #[test]
    fn differences_are_those_of_the_distributions() {
        // p = (1/2, 1/4, 1/4), q = (1/4, 1/2, 1/4); logits may be shifted.
        let ln = |values: [f32; 3], shift: f32| values.map(|value| value.ln() + shift);
        let (exact, fast) = (ln([0.5, 0.25, 0.25], 3.0), ln([0.25, 0.5, 0.25], -7.0));
        let found = row(&exact, &fast, 1);
        assert!((found.kl - 0.25 * 2f64.ln()).abs() < 1e-6, "{}", found.kl);
        assert!((found.exact - 0.25f64.ln()).abs() < 1e-6 && (found.fast - 0.5f64.ln()).abs() < 1e-6);
        assert!((found.parted.expect("another token is best") - 2f64.ln()).abs() < 1e-6);
        let same = row(&exact, &ln([0.5, 0.25, 0.25], 0.0), 0);
        assert!(same.kl.abs() < 1e-6 && same.parted.is_none());
    }

    #[test]
    fn every_gate_can_be_missed_and_tails_need_tokens() {
        let good = Figures {
            tokens: ENOUGH,
            mean_kl: 4e-3,
            p99: 0.3,
            perplexity: 10.0,
            exact_perplexity: 10.0,
            second_half_perplexity: 10.0,
            parted: 9,
            widest_parting: 0.9,
        };
        assert_eq!(good.faults(&GATES, false), [""; 0]);
        let bad = [
            Figures { mean_kl: 6e-3, ..good.clone() },
            Figures { mean_kl: f64::NAN, ..good.clone() },
            Figures { mean_kl: 0.0, ..good.clone() },
            Figures { widest_parting: 1.1, ..good.clone() },
            Figures { widest_parting: f64::NAN, ..good.clone() },
            Figures { p99: 0.5, ..good.clone() },
            Figures { p99: f64::NAN, ..good.clone() },
            Figures { perplexity: 10.2, ..good.clone() },
            Figures { perplexity: 9.8, ..good.clone() },
            Figures { perplexity: f64::NAN, ..good.clone() },
        ];
        for (index, figures) in bad.iter().enumerate() {
            assert_eq!(figures.faults(&GATES, false).len(), 1, "{figures:?}");
            let few = Figures { tokens: ENOUGH - 1, ..figures.clone() };
            assert_eq!(few.faults(&GATES, false).len(), usize::from(index < 5), "{few:?}");
            assert_eq!(few.faults(&GATES, true).len(), 1, "{few:?}");
        }
    }
}
