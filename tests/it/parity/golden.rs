//! The oracle's answers, and what it means to agree with them.

use std::path::PathBuf;

use serde::Deserialize;

/// Log-probabilities and entropies may differ by this much.
pub const TOLERANCE: f32 = 1e-3;

/// Where the oracle's two best are this close, greedy continuations may part.
const NEAR_TIE: f32 = 1e-3;

#[derive(Deserialize)]
pub struct Scores {
    pub model: String,
    pub prompts: Vec<Prompt>,
    pub cases: Vec<Case>,
}

#[derive(Deserialize)]
pub struct Prompt {
    pub name: String,
    pub tokens: Vec<u32>,
}

#[derive(Deserialize)]
pub struct Case {
    /// A path below `tests/golden`; `None` is the base.
    pub adapter: Option<String>,
    /// One for each prompt.
    pub answers: Vec<Answer>,
}

/// What a model says to one prompt: the oracle's form, which ours is brought into.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Answer {
    pub logprobs: Vec<f32>,
    pub entropies: Vec<(usize, f32)>,
    pub top: Vec<(u32, f32)>,
    pub greedy: Greedy,
}

#[derive(Clone, Debug, Default, Deserialize)]
pub struct Greedy {
    pub tokens: Vec<u32>,
    pub logprobs: Vec<f32>,
    /// How far the oracle's best is ahead of its second; empty in ours.
    #[serde(default)]
    pub margins: Vec<f32>,
}

pub fn path(below: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(below)
}

impl Scores {
    pub fn read(name: &str) -> Self {
        let path = path(name);
        let text = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        serde_json::from_slice(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    pub fn case(&self, adapter: Option<&str>) -> &Case {
        let named =
            |case: &&Case| case.adapter.as_deref().map(|path| path.rsplit('/').next().unwrap_or(path)) == adapter;
        self.cases.iter().find(named).unwrap_or_else(|| panic!("the scores have no case {adapter:?}"))
    }
}

impl Answer {
    /// The first way in which `ours` is not what the oracle says; `None` if they agree.
    pub fn difference(&self, ours: &Self) -> Option<String> {
        let apart = |one: f32, other: f32| (one - other).abs() > TOLERANCE || one.is_nan() || other.is_nan();
        if self.logprobs.len() != ours.logprobs.len() {
            return Some(format!("{} log-probabilities, expected {}", ours.logprobs.len(), self.logprobs.len()));
        }
        for (index, (&expected, &got)) in self.logprobs.iter().zip(&ours.logprobs).enumerate() {
            if apart(expected, got) {
                return Some(format!("log-probability {index} is {got}, expected {expected}"));
            }
        }
        for &(index, expected) in &self.entropies {
            let got = ours.entropies.iter().find(|(other, _)| *other == index);
            if got.is_none_or(|(_, got)| apart(expected, *got)) {
                return Some(format!("entropy {index} is {got:?}, expected {expected}"));
            }
        }
        for (place, (expected, got)) in self.top.iter().zip(&ours.top).enumerate() {
            if apart(expected.1, got.1) {
                return Some(format!("the token in place {place} is {got:?}, expected {expected:?}"));
            }
        }
        self.greedy.difference(&ours.greedy)
    }
}

impl Greedy {
    fn difference(&self, ours: &Self) -> Option<String> {
        if ours.tokens.len() != self.tokens.len() {
            return Some(format!("{} greedy tokens, expected {}", ours.tokens.len(), self.tokens.len()));
        }
        for step in 0..self.tokens.len() {
            if (self.logprobs[step] - ours.logprobs[step]).abs() > TOLERANCE || ours.logprobs[step].is_nan() {
                let (expected, got) = (self.logprobs[step], ours.logprobs[step]);
                return Some(format!("greedy log-probability {step} is {got}, expected {expected}"));
            }
            if self.tokens[step] == ours.tokens[step] {
                continue;
            }
            if self.margins.get(step).is_some_and(|margin| *margin <= NEAR_TIE) {
                return None;
            }
            let (expected, got) = (self.tokens[step], ours.tokens[step]);
            return Some(format!("greedy token {step} is {got}, expected {expected}"));
        }
        None
    }
}
