//! Patterns that answers must or must not match, and lists of words that they must not have.

use std::path::Path;

use regex::{Regex, RegexBuilder};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Finding, parsed, settled};
use crate::feedback::{
    rules::{file, lines},
    subject::Subject,
};

/// What is looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum On {
    #[default]
    Answer,
    Question,
}

impl On {
    fn of(self, subject: &Subject<'_>) -> Option<String> {
        match self {
            Self::Answer => subject.answer().map(str::to_owned),
            Self::Question => subject.question(),
        }
    }

    const fn word(self) -> &'static str {
        match self {
            Self::Answer => "the answer",
            Self::Question => "the question",
        }
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Given {
    pattern: String,
    /// Whether a match is right, rather than wrong.
    #[serde(default)]
    must_match: bool,
    #[serde(default)]
    ignore_case: bool,
    #[serde(default)]
    on: On,
}

/// A regular expression.
#[derive(Debug)]
pub struct Pattern {
    regex: Regex,
    must_match: bool,
    on: On,
}

impl Pattern {
    /// # Errors
    /// A pattern that cannot be read.
    pub fn read(parameters: toml::Table) -> Result<(Self, Value), String> {
        let given: Given = parsed(parameters)?;
        let regex = RegexBuilder::new(&given.pattern)
            .case_insensitive(given.ignore_case)
            .build()
            .map_err(|error| format!("pattern: {error}"))?;
        Ok((Self { regex, must_match: given.must_match, on: given.on }, settled(&given)))
    }

    pub fn look(&self, subject: &Subject<'_>) -> Option<Finding> {
        let text = self.on.of(subject)?;
        let (matches, what) = (self.regex.is_match(&text), self.on.word());
        match (matches, self.must_match) {
            (true, false) => Some(Finding::plain(&format!("{what} matches {}", self.regex))),
            // What was broken off may have been about to match.
            (false, true) if subject.has_ended() => {
                Some(Finding::plain(&format!("{what} does not match {}", self.regex)))
            }
            (false, _) | (true, true) => None,
        }
    }
}

/// A list of words that must not appear, whatever their case.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Listed {
    words: Vec<String>,
    /// A file with more, one a line; empty lines and those that begin with `#` say nothing.
    #[serde(skip_serializing)]
    file: Option<String>,
    on: On,
}

/// The longest list.
const MAX_WORDS: usize = 20_000;

impl Listed {
    /// # Errors
    /// A file that cannot be read, a list without words.
    pub fn read(parameters: toml::Table, folder: Option<&Path>) -> Result<Self, String> {
        let mut listed: Self = parsed(parameters)?;
        if let Some(name) = &listed.file {
            let text = file(folder, name)?;
            listed.words.extend(lines(&text).map(str::to_owned));
        }
        listed.words.retain(|word| !word.trim().is_empty());
        match listed.words.len() {
            0 => Err("a block list needs words, or a file with some".to_owned()),
            count if count > MAX_WORDS => Err(format!("a block list has at most {MAX_WORDS} words; this has {count}")),
            _ => Ok(listed),
        }
    }

    /// # Errors
    /// A list that is too large to be looked for.
    pub fn understood(&self) -> Result<Words, String> {
        let bounded = |word: &String| {
            let edge = |c: Option<char>| if c.is_some_and(char::is_alphanumeric) { r"\b" } else { "" };
            let word = word.trim();
            format!("{}{}{}", edge(word.chars().next()), regex::escape(word), edge(word.chars().next_back()))
        };
        let pattern = self.words.iter().map(bounded).collect::<Vec<_>>().join("|");
        let regex = RegexBuilder::new(&pattern)
            .case_insensitive(true)
            .size_limit(64 << 20)
            .build()
            .map_err(|error| format!("words: {error}"))?;
        Ok(Words { regex, on: self.on })
    }
}

/// A list that was understood.
#[derive(Debug)]
pub struct Words {
    regex: Regex,
    on: On,
}

impl Words {
    pub fn look(&self, subject: &Subject<'_>) -> Option<Finding> {
        let text = self.on.of(subject)?;
        let mut found: Vec<String> = self.regex.find_iter(&text).map(|found| found.as_str().to_lowercase()).collect();
        let count = found.len();
        found.sort();
        found.dedup();
        found.truncate(5);
        // The owner's own words, so they may be repeated.
        (count > 0).then(|| Finding {
            reason: format!("{} has {}, which is on the block list", self.on.word(), found.join(", ")),
            value: Some(count as f64),
        })
    }
}
