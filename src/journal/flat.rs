//! Answers as a flat table with typed columns, a row for each choice: what pandas and drift monitors read without work.

use super::shown::mean;
use crate::{
    store::{ChoiceRecord, Completion, Given},
    terms::{Ending, Role, TokenSketch},
};

/// What a column holds; every column may hold nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Text,
    Integer,
    Number,
    Boolean,
    /// Milliseconds since the Unix epoch.
    Time,
}

/// One value.
#[derive(Clone, Debug, PartialEq)]
pub enum Cell {
    Nothing,
    Text(String),
    Integer(i64),
    Number(f64),
    Boolean(bool),
    Time(i64),
}

impl Cell {
    fn text(value: Option<impl Into<String>>) -> Self {
        value.map_or(Self::Nothing, |value| Self::Text(value.into()))
    }

    fn number(value: Option<f64>) -> Self {
        value.map_or(Self::Nothing, Self::Number)
    }
}

/// Which columns are wanted beside the facts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Columns {
    /// `question` and `answer`.
    pub content: bool,
    /// `emb_0` to `emb_63`.
    pub sketch: bool,
}

const FACTS: &[(&str, Kind)] = &[
    ("id", Kind::Text),
    ("choice", Kind::Integer),
    ("timestamp", Kind::Time),
    ("origin", Kind::Text),
    ("kind", Kind::Text),
    ("key", Kind::Text),
    ("model", Kind::Text),
    ("adapter", Kind::Text),
    ("version", Kind::Text),
    ("base", Kind::Text),
    ("build", Kind::Text),
    ("system", Kind::Text),
    ("user", Kind::Text),
    ("conversation", Kind::Text),
    ("split", Kind::Text),
    ("audit_share", Kind::Number),
    ("ending", Kind::Text),
    ("finished", Kind::Boolean),
    ("prompt_tokens", Kind::Integer),
    ("cached_tokens", Kind::Integer),
    ("output_tokens", Kind::Integer),
    ("mean_logprob", Kind::Number),
    ("min_logprob", Kind::Number),
    ("mean_entropy", Kind::Number),
    ("first_entropy", Kind::Number),
    ("adapter_ms", Kind::Number),
    ("read_ms", Kind::Number),
    ("queue_ms", Kind::Number),
    ("first_token_ms", Kind::Number),
    ("latency_ms", Kind::Number),
    ("temperature", Kind::Number),
    ("question_chars", Kind::Integer),
    ("answer_chars", Kind::Integer),
];
const CONTENT: &[(&str, Kind)] = &[("question", Kind::Text), ("answer", Kind::Text)];

impl Columns {
    /// Names and kinds, in order.
    pub fn names(self) -> Vec<(String, Kind)> {
        let content = if self.content { CONTENT } else { &[] };
        let fixed = FACTS.iter().chain(content).map(|&(name, kind)| (name.to_owned(), kind));
        let dimensions = if self.sketch { TokenSketch::DIMS } else { 0 };
        fixed.chain((0..dimensions).map(|at| (format!("emb_{at}"), Kind::Number))).collect()
    }

    /// A row for each choice.
    pub fn rows(self, completion: &Completion) -> Vec<Vec<Cell>> {
        completion.choices.iter().map(|choice| self.row(completion, choice)).collect()
    }

    fn row(self, completion: &Completion, choice: &ChoiceRecord) -> Vec<Cell> {
        let placement = completion.placement.as_ref();
        let adapter = completion.adapter.as_ref();
        let timing = completion.timing;
        let ms = |us: u64| Cell::Number(us as f64 / 1000.0);
        let question = question(completion, choice);
        let least = choice.scores.iter().map(|score| score.logprob).reduce(f32::min);
        let chars = |text: &Option<String>| {
            text.as_ref().map_or(Cell::Nothing, |text| Cell::Integer(text.chars().count() as i64))
        };
        let mut row = vec![
            Cell::Text(completion.id.clone()),
            Cell::Integer(i64::from(choice.index)),
            Cell::Time(completion.created_ms),
            Cell::Text(completion.origin.as_str().to_owned()),
            Cell::Text(completion.kind.as_str().to_owned()),
            Cell::text(completion.key.clone()),
            Cell::Text(completion.model.clone()),
            Cell::text(adapter.map(|(name, _)| name.as_str())),
            Cell::text(adapter.map(|(_, version)| version.short())),
            Cell::Text(completion.base.short()),
            Cell::text(completion.build.clone()),
            Cell::text(completion.system.map(|digest| digest.short())),
            Cell::text(completion.user.clone()),
            Cell::text(placement.map(|placement| placement.conversation.clone())),
            Cell::text(placement.map(|placement| placement.assignment.split.as_str())),
            Cell::number(placement.map(|placement| placement.assignment.audit_share)),
            Cell::Text(choice.ending.as_str().to_owned()),
            Cell::Boolean(matches!(choice.ending, Ending::Finished(_))),
            Cell::Integer(completion.usage.prompt_tokens as i64),
            Cell::Integer(completion.usage.cached_tokens as i64),
            Cell::Integer(choice.tokens as i64),
            Cell::number(mean(choice.scores.iter().map(|score| score.logprob))),
            Cell::number(least.map(f64::from)),
            Cell::number(mean(choice.scores.iter().map(|score| score.entropy))),
            Cell::number(choice.scores.first().map(|score| f64::from(score.entropy))),
            ms(timing.adapter_us),
            ms(timing.read_us),
            ms(timing.queue_us),
            timing.first_token_us.map_or(Cell::Nothing, ms),
            ms(timing.total_us),
            Cell::Number(f64::from(completion.sampling.temperature)),
            chars(&question),
            chars(&choice.text),
        ];
        if self.content {
            row.extend([Cell::text(question), Cell::text(choice.text.clone())]);
        }
        if self.sketch {
            match completion.sketch {
                Some(sketch) => row.extend(sketch.values().map(|value| Cell::Number(f64::from(value)))),
                None => row.extend(std::iter::repeat_n(Cell::Nothing, TokenSketch::DIMS)),
            }
        }
        row
    }
}

/// What the choice answers: the last message of the user, or the prompt.
fn question(completion: &Completion, choice: &ChoiceRecord) -> Option<String> {
    let prompt = choice.index / completion.options.n.max(1);
    match &completion.content.as_ref()?.prompts.get(prompt as usize)?.given {
        Given::Messages(messages) => {
            let asked = messages.iter().rfind(|message| message.role == Role::User).or(messages.last());
            asked.map(|message| message.content.clone())
        }
        Given::Turns(turns) => {
            let asked = turns.iter().rfind(|turn| turn["role"] == "user").or(turns.last())?;
            Some(asked["content"].as_str().map_or_else(|| asked["content"].to_string(), str::to_owned))
        }
        Given::Text(text) => Some(text.clone()),
        Given::Tokens => None,
    }
}
