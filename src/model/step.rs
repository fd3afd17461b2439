//! What a row asks for and what it gets.

use crate::terms::TokenScore;

/// One question about one row of a batch.
#[derive(Clone, Debug)]
pub struct RowAsk {
    pub row: u32,
    pub want: Want,
}

/// What is wanted of a row, computed where its logits are.
#[derive(Clone, Debug)]
pub enum Want {
    /// Draw the next token.
    Sample(Box<SampleAsk>),
    /// Score a given next token.
    Score { token: u32, top: u8 },
    /// The last hidden state, after the final norm: `[hidden]`.
    Hidden,
    /// All logits: `[vocab]`. The only way by which they leave the decoder.
    Logits,
}

/// How the next token is drawn. The order is: adjustments, temperature, then top-k, top-p and min-p over the candidates
/// from most to least likely (ties by lower id), then the first candidate whose cumulative probability exceeds `u`.
#[derive(Clone, Debug)]
pub struct SampleAsk {
    /// 0 takes the best score (ties by lower id), after adjustments.
    pub temperature: f32,
    /// 0 keeps all.
    pub top_k: u32,
    pub top_p: f32,
    pub min_p: f32,
    /// Uniform in `[0, 1)`, from the sequence's random stream.
    pub u: f64,
    pub adjustments: Adjustments,
    /// How many of the most likely tokens to report, by the distribution before adjustments and temperature.
    pub top: u8,
}

/// Changes to single logits, in this order: repetition penalty for every seen token; frequency and presence penalties for
/// those in the answer; bias; banned tokens are out.
#[derive(Clone, Debug)]
pub struct Adjustments {
    /// Positive logits are divided by it, negative ones multiplied; 1 is off.
    pub repetition: f32,
    pub frequency: f32,
    pub presence: f32,
    /// Each seen token once; empty when all three penalties are off.
    pub seen: Vec<SeenToken>,
    pub bias: Vec<(u32, f32)>,
    pub banned: Vec<u32>,
}

/// A token that prompt or answer already holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeenToken {
    pub token: u32,
    /// How often it is in the answer; 0 if only in the prompt.
    pub in_answer: u32,
}

impl Default for Adjustments {
    fn default() -> Self {
        Self { repetition: 1.0, frequency: 0.0, presence: 0.0, seen: Vec::new(), bias: Vec::new(), banned: Vec::new() }
    }
}

impl Adjustments {
    pub fn is_off(&self) -> bool {
        self.seen.is_empty() && self.bias.is_empty() && self.banned.is_empty()
    }
}

/// The answers to a batch's asks, in their order.
#[derive(Debug, Default)]
pub struct StepOutput {
    pub answers: Vec<RowAnswer>,
    /// How many of them a device could not decide, so that their rows of logits were fetched. None, where logits are the host's.
    pub fetched: u32,
}

impl StepOutput {
    /// Empties it, keeping its buffers.
    pub fn clear(&mut self) {
        self.answers.clear();
        self.fetched = 0;
    }
}

/// What one ask got.
#[derive(Clone, Debug, PartialEq)]
pub enum RowAnswer {
    /// For `Sample` and `Score`.
    Score(TokenScore),
    Hidden(Vec<f32>),
    Logits(Vec<f32>),
    /// The row's scores are not finite, or nothing may be drawn: the sequence cannot go on.
    NotFinite,
}
