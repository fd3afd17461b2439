//! One choice's tokens on their way to text: whole characters, stop strings held back, scores beside the text they made.

use std::collections::VecDeque;

use crate::{
    terms::TokenScore,
    text::{Detokenizer, StopStrings},
};

/// The text of one choice as it grows.
pub(super) struct ChoiceText {
    detokenizer: Detokenizer,
    stops: StopStrings,
    /// Tokens whose text is not shown yet, with its bytes.
    waiting: VecDeque<(usize, TokenScore)>,
    /// Bytes shown of the token at the front of `waiting`.
    ahead: usize,
    /// Everything shown so far.
    shown: String,
    /// Every token of the answer, shown or not.
    scores: Vec<TokenScore>,
}

/// What may be shown now.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Shown {
    pub text: String,
    pub scores: Vec<TokenScore>,
    /// A stop string came: the answer ends here.
    pub stopped: bool,
}

impl ChoiceText {
    pub fn new(detokenizer: Detokenizer, stops: StopStrings) -> Self {
        Self { detokenizer, stops, waiting: VecDeque::new(), ahead: 0, shown: String::new(), scores: Vec::new() }
    }

    /// The next token. A silent one (the stop token itself) is kept on record but leaves no text.
    pub fn push(&mut self, score: TokenScore, silent: bool) -> Shown {
        self.scores.push(score.clone());
        if silent {
            return Shown::default();
        }
        let piece = self.detokenizer.push(score.token);
        self.waiting.push_back((piece.len(), score));
        let outcome = self.stops.push(&piece);
        self.show(outcome.text, outcome.stopped)
    }

    /// The rest, once no more tokens come.
    pub fn finish(&mut self) -> Shown {
        let tail = self.detokenizer.finish();
        let outcome = self.stops.push(&tail);
        let mut text = outcome.text;
        if !outcome.stopped {
            text.push_str(&self.stops.finish());
        }
        let mut shown = self.show(text, outcome.stopped);
        if !outcome.stopped {
            shown.scores.extend(self.waiting.drain(..).map(|(_, score)| score));
        }
        shown
    }

    fn show(&mut self, text: String, stopped: bool) -> Shown {
        self.shown.push_str(&text);
        self.ahead += text.len();
        let mut scores = Vec::new();
        // After a stop, a token shown in part still counts; those behind it were never shown.
        while let Some(&(bytes, _)) = self.waiting.front()
            && if stopped { self.ahead > 0 } else { bytes <= self.ahead }
        {
            self.ahead = self.ahead.saturating_sub(bytes);
            scores.extend(self.waiting.pop_front().map(|(_, score)| score));
        }
        Shown { text, scores, stopped }
    }

    /// Everything shown so far.
    pub fn text(&self) -> &str {
        &self.shown
    }

    /// Every token so far, hidden and held-back ones included.
    pub fn take_scores(&mut self) -> Vec<TokenScore> {
        std::mem::take(&mut self.scores)
    }

    pub fn tokens(&self) -> usize {
        self.scores.len()
    }
}
