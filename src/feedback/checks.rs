//! What a rule can look for. Each check says in a sentence what it found, without a word of question or answer: reasons outlive
//! what retention and erasure take.

mod again;
mod confidence;
mod language;
mod looped;
mod pattern;
mod personal;
mod refused;
mod schema;
mod shape;
mod slow;

use std::path::Path;

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;

pub use again::AskedAgain;
pub use confidence::Reference;
use language::Language;
use looped::Loop;
use pattern::{Listed, Pattern, Words};
use personal::Personal;
use refused::Refusals;
use shape::Shape;
use slow::Slow;

use super::subject::Subject;
use crate::terms::{Ending, FinishReason};

/// What a check found.
#[derive(Clone, Debug, PartialEq)]
pub struct Finding {
    /// For a person.
    pub reason: String,
    /// What was measured, where something was.
    pub value: Option<f64>,
}

impl Finding {
    fn plain(reason: &str) -> Self {
        Self { reason: reason.to_owned(), value: None }
    }
}

/// What is looked for, ready to look.
#[derive(Debug)]
pub enum Check {
    /// The token limit was reached.
    Truncated(Truncated),
    /// It ended of its own accord without a word.
    Empty,
    Loop(Loop),
    LowConfidence(LowConfidence),
    /// It is not JSON, or not of the given schema or format.
    Shape(Box<Shape>),
    Refusal(Refusals),
    Language(Language),
    Regex(Pattern),
    BlockList(Words),
    Personal(Personal),
    Slow(Slow),
    ClientLeft,
    AskedAgain(AskedAgain),
}

/// Kinds of rules, as files name them, with the version of what each of them does: whoever changes that raises it, so that flags
/// from before and after are told apart.
const KINDS: [(&str, u32); 13] = [
    ("truncated", 1),
    ("empty", 1),
    ("loop", 1),
    ("low_confidence", 1),
    ("schema", 1),
    ("refusal", 1),
    ("language", 1),
    ("regex", 1),
    ("block_list", 1),
    ("pii", 1),
    ("slow", 1),
    ("client_left", 1),
    ("asked_again", 1),
];

/// A kind that needs what no row has.
const WITHOUT_ROWS: (&str, &str) =
    ("far", "no row has an embedding to measure the distance with: answers are recorded without one");

/// An answer that the token limit ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Truncated {
    /// Shorter ones were meant to be cut: one token for a class, say.
    at_least_tokens: usize,
}

impl Default for Truncated {
    fn default() -> Self {
        Self { at_least_tokens: 2 }
    }
}

/// An answer of which a version was less sure than of most of its others.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LowConfidence {
    /// The share of answers that there is time to look at.
    pub budget: f64,
    /// The version's first answers that the others are compared with; fewer until there are so many, by halves.
    pub reference: usize,
    /// Without so many nothing is said.
    pub at_least: usize,
}

impl Default for LowConfidence {
    fn default() -> Self {
        Self { budget: 0.02, reference: 1600, at_least: 200 }
    }
}

impl LowConfidence {
    /// The most answers that a reference may have.
    const MOST: usize = 20_000;

    fn fault(&self) -> Option<String> {
        if !(0.0..=0.5).contains(&self.budget) || self.budget == 0.0 {
            return Some("budget is a share of answers above 0, up to 0.5".to_owned());
        }
        if self.at_least < 50 || self.reference < self.at_least || self.reference > Self::MOST {
            return Some(format!("50 ≤ at_least ≤ reference ≤ {}", Self::MOST));
        }
        let least = (1.0 / self.budget).ceil() as usize;
        (self.at_least + 1 < least)
            .then(|| format!("at_least has to be {least} or more to know the lowest {}", self.budget))
    }

    /// How many of a version's answers an answer is compared with, that came after `before` of them: as many as there were, rounded
    /// down so that nothing hangs on the moment when one looks; `None` if there were too few.
    pub fn size(&self, before: usize) -> Option<usize> {
        let mut size = self.reference;
        while size > before {
            size /= 2;
        }
        (size >= self.at_least).then_some(size)
    }
}

impl Check {
    /// Reads a kind and its parameters, and gives them back with all defaults, for the rule's version. Files that they name are
    /// looked for in `folder`.
    ///
    /// # Errors
    /// A sentence.
    pub fn read(kind: &str, parameters: toml::Table, folder: Option<&Path>) -> Result<(Self, u32, Value), String> {
        if kind == WITHOUT_ROWS.0 {
            return Err(format!("kind '{kind}' cannot be used: {}", WITHOUT_ROWS.1));
        }
        let Some((_, revision)) = KINDS.iter().find(|(known, _)| *known == kind) else {
            let known: Vec<&str> = KINDS.iter().map(|(kind, _)| *kind).collect();
            return Err(format!("there is no kind '{kind}'; there are {}", known.join(", ")));
        };
        let (check, settled) = match kind {
            "truncated" => plain(parameters, |_| None, Self::Truncated)?,
            "empty" => (Self::Empty, nothing(parameters)?),
            "loop" => plain(parameters, Loop::fault, Self::Loop)?,
            "low_confidence" => plain(parameters, LowConfidence::fault, Self::LowConfidence)?,
            "schema" => {
                let (shape, settled) = Shape::read(parameters, folder)?;
                (Self::Shape(Box::new(shape)), settled)
            }
            "refusal" => {
                let refusal: refused::Refusal = parsed(parameters)?;
                (Self::Refusal(refusal.understood()?), settled(&refusal))
            }
            "language" => plain(parameters, Language::fault, Self::Language)?,
            "regex" => {
                let (pattern, settled) = Pattern::read(parameters)?;
                (Self::Regex(pattern), settled)
            }
            "block_list" => {
                let listed = Listed::read(parameters, folder)?;
                (Self::BlockList(listed.understood()?), settled(&listed))
            }
            "pii" => plain(parameters, |_| None, Self::Personal)?,
            "slow" => plain(parameters, Slow::fault, Self::Slow)?,
            "client_left" => (Self::ClientLeft, nothing(parameters)?),
            _ => plain(parameters, AskedAgain::fault, Self::AskedAgain)?,
        };
        Ok((check, *revision, settled))
    }

    /// Whether it looks at what was said; where nothing is kept of that, it finds nothing.
    pub fn needs_words(&self) -> bool {
        match self {
            Self::Empty
            | Self::Loop(_)
            | Self::Shape(_)
            | Self::Refusal(_)
            | Self::Language(_)
            | Self::Regex(_)
            | Self::BlockList(_)
            | Self::Personal(_)
            | Self::AskedAgain(_) => true,
            Self::Truncated(_) | Self::LowConfidence(_) | Self::Slow(_) | Self::ClientLeft => false,
        }
    }

    /// What it finds in one answer by itself. `reference` is that of the answer's version, where there is one.
    /// [`Check::AskedAgain`] needs two, and finds nothing here.
    pub fn look(&self, subject: &Subject<'_>, reference: Option<&Reference>) -> Option<Finding> {
        let ended = matches!(subject.choice.ending, Ending::Finished(_));
        let answer = || subject.answer();
        match self {
            Self::Truncated(Truncated { at_least_tokens }) => {
                let cut = subject.choice.ending == Ending::Finished(FinishReason::Length);
                let tokens = subject.choice.tokens;
                (cut && tokens >= *at_least_tokens).then(|| Finding {
                    reason: format!("cut off by its limit of {tokens} tokens"),
                    value: Some(tokens as f64),
                })
            }
            Self::Empty => (ended && answer()?.trim().is_empty()).then(|| Finding::plain("the answer is empty")),
            Self::Loop(looped) => looped.look(answer()?),
            Self::LowConfidence(low) => {
                let (tokens, mean) = subject.confidence().filter(|_| ended)?;
                reference?.look(tokens, mean, low.budget)
            }
            // What was broken off is not of any form, and was never meant to be.
            Self::Shape(shape) => ended.then(|| shape.look(answer()?)).flatten(),
            Self::Refusal(refusals) => refusals.look(answer()?),
            Self::Language(language) => language.look(answer()?, &subject.question()?),
            Self::Regex(pattern) => pattern.look(subject),
            Self::BlockList(words) => words.look(subject),
            Self::Personal(personal) => personal.look(answer()?, &subject.whole_question()?),
            Self::Slow(slow) => slow.look(subject),
            Self::ClientLeft => (subject.choice.ending == Ending::ClientLeft).then(|| {
                let tokens = subject.choice.tokens;
                Finding { reason: format!("the client left after {tokens} tokens"), value: Some(tokens as f64) }
            }),
            Self::AskedAgain(_) => None,
        }
    }
}

fn parsed<T: DeserializeOwned>(parameters: toml::Table) -> Result<T, String> {
    parameters.try_into().map_err(|error: toml::de::Error| error.message().trim().to_owned())
}

/// Parameters as JSON, defaults included.
fn settled(parameters: &impl Serialize) -> Value {
    // Numbers, strings and lists of them: nothing here can fail to be JSON.
    serde_json::to_value(parameters).unwrap_or_default()
}

fn plain<T: DeserializeOwned + Serialize>(
    parameters: toml::Table,
    fault: impl FnOnce(&T) -> Option<String>,
    check: impl FnOnce(T) -> Check,
) -> Result<(Check, Value), String> {
    let read: T = parsed(parameters)?;
    match fault(&read) {
        Some(fault) => Err(fault),
        None => {
            let settled = settled(&read);
            Ok((check(read), settled))
        }
    }
}

fn nothing(parameters: toml::Table) -> Result<Value, String> {
    match parameters.keys().next() {
        Some(key) => Err(format!("unknown field `{key}`, this kind has none of its own")),
        None => Ok(Value::Null),
    }
}
