//! Flagged answers as lines of JSON: as they are on record, or as training rows made of what people said they should have been.
//!
//! A training row needs a correction by a person, and is never made of an answer that is held out or audited. What cannot be a
//! whole row is left out and counted by its reason; no row is ever written empty.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use serde::Serialize;
use serde_json::{Value, json};

use crate::{
    journal::{
        ChoiceRecord, Completion, FlagQuery, FlagState, Given, Journal, JournalError, KeptFeedback, KeptFlag, Order,
        Standing, View, answer,
    },
    terms::{Message, Role, Split},
};

/// Flags that are read at a time.
const PAGE: usize = 100;
/// The most flags of one request that are looked at.
const OF_ONE: usize = 10_000;

/// What lines look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// The answer as it is on record, with its flags, its correction and its split.
    Plain,
    /// OpenAI's fine-tuning rows: `messages`, of which only the last is trained on.
    OpenAi,
    /// TRL's prompt-completion rows.
    Trl,
}

impl Shape {
    pub const ALL: [Self; 3] = [Self::Plain, Self::OpenAi, Self::Trl];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Plain => "jsonl",
            Self::OpenAi => "openai",
            Self::Trl => "trl",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|shape| shape.as_str() == text)
    }
}

/// Which flags are wanted.
#[derive(Clone, Debug)]
pub struct Wanted {
    pub rule: Option<String>,
    pub adapter: Option<String>,
    pub state: FlagState,
}

impl Wanted {
    fn fits(&self, flag: &KeptFlag) -> bool {
        let state = match (self.state, &flag.resolved) {
            (FlagState::All, _) | (FlagState::Open, None) => true,
            (FlagState::Resolved(verdict), Some(resolved)) => resolved.verdict == verdict,
            (FlagState::Open, Some(_)) | (FlagState::Resolved(_), None) => false,
        };
        let adapter = flag.adapter.as_ref().map(|(name, _)| name.as_str());
        state
            && self.rule.as_ref().is_none_or(|rule| *rule == flag.rule)
            && self.adapter.as_ref().is_none_or(|wanted| adapter == Some(wanted))
    }
}

/// How many lines there are, and how many flagged answers are left out, by reason.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Summary {
    pub lines: u64,
    pub left_out: BTreeMap<&'static str, u64>,
}

/// Lines, the earliest flag first. An answer that several flags fit is one line. Ends with the first error.
pub fn lines(
    journal: &Journal,
    wanted: Wanted,
    shape: Shape,
) -> impl Stream<Item = Result<Bytes, JournalError>> + Send + use<> {
    rows(journal, wanted, shape).filter_map(async |row| match row {
        Ok(Ok(line)) => Some(Ok(line.into())),
        Ok(Err(_)) => None,
        Err(error) => Some(Err(error)),
    })
}

/// What [`lines`] would write.
///
/// # Errors
/// [`JournalError`] if the record cannot be read.
pub async fn summary(journal: &Journal, wanted: Wanted, shape: Shape) -> Result<Summary, JournalError> {
    let mut summary = Summary::default();
    let mut rows = Box::pin(rows(journal, wanted, shape));
    while let Some(row) = rows.next().await {
        match row? {
            Ok(_) => summary.lines += 1,
            Err(reason) => *summary.left_out.entry(reason).or_default() += 1,
        }
    }
    Ok(summary)
}

/// A line, or why there is none.
type Row = Result<String, &'static str>;

fn rows(
    journal: &Journal,
    wanted: Wanted,
    shape: Shape,
) -> impl Stream<Item = Result<Row, JournalError>> + Send + use<> {
    let walk = Walk { journal: journal.clone(), wanted, shape, ready: VecDeque::new(), after: None, more: true };
    stream::unfold(walk, |mut walk| async { walk.next().await.map(|row| (row, walk)) })
}

struct Walk {
    journal: Journal,
    wanted: Wanted,
    shape: Shape,
    ready: VecDeque<KeptFlag>,
    after: Option<u64>,
    more: bool,
}

impl Walk {
    async fn next(&mut self) -> Option<Result<Row, JournalError>> {
        loop {
            let Some(flag) = self.ready.pop_front() else {
                if !self.more {
                    return None;
                }
                match self.page().await {
                    Ok(()) => continue,
                    Err(error) => return self.end(error),
                }
            };
            match self.row(&flag).await {
                Ok(Some(row)) => return Some(Ok(row)),
                Ok(None) => {}
                Err(error) => return self.end(error),
            }
        }
    }

    fn end(&mut self, error: JournalError) -> Option<Result<Row, JournalError>> {
        self.ready.clear();
        self.more = false;
        Some(Err(error))
    }

    async fn page(&mut self) -> Result<(), JournalError> {
        let query = FlagQuery {
            rule: self.wanted.rule.clone(),
            adapter: self.wanted.adapter.clone(),
            completion: None,
            state: self.wanted.state,
            after: self.after,
            limit: PAGE,
            order: Order::OldestFirst,
        };
        let page = self.journal.flags(query).await?;
        self.after = page.flags.last().map(|flag| flag.id).or(self.after);
        self.more = page.more;
        self.ready.extend(page.flags);
        Ok(())
    }

    /// `None` if the answer has its line by an earlier flag.
    async fn row(&self, flag: &KeptFlag) -> Result<Option<Row>, JournalError> {
        let query = FlagQuery {
            rule: None,
            adapter: None,
            completion: Some(flag.completion.clone()),
            state: FlagState::All,
            after: None,
            limit: OF_ONE,
            order: Order::OldestFirst,
        };
        let mut flags = self.journal.flags(query).await?.flags;
        flags.retain(|other| other.position == flag.position && self.wanted.fits(other));
        if flags.first().is_some_and(|first| first.id < flag.id) {
            return Ok(None);
        }
        let Some(completion) = self.journal.get(&flag.completion).await? else { return Ok(None) };
        let said = self.journal.feedback_on(vec![completion.id.clone()]).await?;
        Ok(Some(line(&completion, flag.position, &flags, &said, self.shape)))
    }
}

fn line(completion: &Completion, position: u32, flags: &[KeptFlag], said: &[KeptFeedback], shape: Shape) -> Row {
    let choice = completion.choices.iter().find(|choice| choice.index == position).ok_or("not_on_record")?;
    let correction = correction(completion, position, said);
    let row = match shape {
        Shape::Plain => return Ok(plain(completion, choice, flags, correction) + "\n"),
        Shape::OpenAi | Shape::Trl => {
            let split = completion.placement.as_ref().map(|placement| placement.assignment.split);
            match split {
                Some(Split::Train) => {}
                Some(Split::HeldOut) => return Err("held_out"),
                Some(Split::Audit) => return Err("audit"),
                None => return Err("without_a_split"),
            }
            let prompt = prompt(completion, position)?;
            let correction = correction.ok_or("without_a_correction_by_a_person")?;
            if correction.trim().is_empty() {
                return Err("empty_correction");
            }
            match shape {
                Shape::Trl => trl(prompt, correction)?,
                Shape::OpenAi | Shape::Plain => openai(prompt, correction)?,
            }
        }
    };
    let text = row.to_string();
    valid(&text, shape)?;
    Ok(text + "\n")
}

/// The last correction of this choice by a person that counts.
fn correction<'a>(completion: &Completion, position: u32, said: &'a [KeptFeedback]) -> Option<&'a str> {
    let counts = |kept: &&KeptFeedback| {
        let feedback = &kept.feedback;
        let of_choice = match feedback.target.choice() {
            Some(choice) => choice == position,
            // Said of the whole request, it is clear what it corrects only where there is one answer.
            None => completion.options.n == 1 && completion.options.max_tokens.len() == 1,
        };
        of_choice && feedback.source.is_person() && feedback.retracted_ms.is_none() && kept.standing == Standing::Joined
    };
    said.iter().rev().filter(counts).find_map(|kept| kept.feedback.correction.as_deref())
}

fn plain(completion: &Completion, choice: &ChoiceRecord, flags: &[KeptFlag], correction: Option<&str>) -> String {
    let one = Completion { choices: vec![choice.clone()], ..completion.clone() };
    let mut value = answer(&one, View { content: true, scores: false });
    value["flags"] = flags
        .iter()
        .map(|flag| {
            json!({
                "id": format!("flag-{}", flag.id), "rule": flag.rule, "rule_version": flag.rule_version, "reason": flag.reason,
                "value": flag.value, "state": flag.resolved.as_ref().map_or("open", |resolved| resolved.verdict.as_str()),
            })
        })
        .collect();
    value["correction"] = json!(correction);
    value.to_string()
}

fn prompt(completion: &Completion, position: u32) -> Result<&Given, &'static str> {
    let content = completion.content.as_ref().ok_or("without_words")?;
    let at = position as usize / completion.options.n.max(1) as usize;
    content.prompts.get(at).map(|prompt| &prompt.given).ok_or("without_words")
}

fn role(role: Role) -> Result<&'static str, &'static str> {
    match role {
        Role::Developer | Role::System => Ok("system"),
        Role::User => Ok("user"),
        Role::Assistant => Ok("assistant"),
        // Which call it answers is not on record.
        Role::Tool => Err("with_a_tool_s_message"),
    }
}

fn messages(given: &[Message]) -> Result<Vec<(&'static str, &str)>, &'static str> {
    given.iter().map(|message| Ok((role(message.role)?, message.content.as_str()))).collect()
}

/// Earlier turns of the assistant were not looked at: they are not trained on.
fn openai(prompt: &Given, correction: &str) -> Result<Value, &'static str> {
    let Given::Messages(given) = prompt else { return Err("without_messages") };
    let mut rows: Vec<Value> = messages(given)?
        .into_iter()
        .map(|(role, content)| match role {
            "assistant" => json!({"role": role, "content": content, "weight": 0}),
            _ => json!({"role": role, "content": content}),
        })
        .collect();
    rows.push(json!({"role": "assistant", "content": correction, "weight": 1}));
    Ok(json!({"messages": rows}))
}

fn trl(prompt: &Given, correction: &str) -> Result<Value, &'static str> {
    match prompt {
        Given::Messages(given) => {
            let message = |(role, content): (&'static str, &str)| json!({"role": role, "content": content});
            let prompt: Vec<Value> = messages(given)?.into_iter().map(message).collect();
            Ok(json!({"prompt": prompt, "completion": [{"role": "assistant", "content": correction}]}))
        }
        Given::Text(text) => Ok(json!({"prompt": text, "completion": correction})),
        Given::Turns(_) | Given::Tokens => Err("without_messages"),
    }
}

/// Reads a line back as a trainer would: what is not a whole row of its shape is not written.
fn valid(line: &str, shape: Shape) -> Result<(), &'static str> {
    const INVALID: &str = "not_a_valid_row";
    let row: Value = serde_json::from_str(line).map_err(|_| INVALID)?;
    let spoken = |message: &Value, roles: &[&str]| {
        let content = message["content"].as_str().is_some_and(|content| !content.is_empty());
        content && message["role"].as_str().is_some_and(|role| roles.contains(&role))
    };
    let any = ["system", "user", "assistant"];
    let fine = match shape {
        Shape::Plain => row.is_object(),
        Shape::OpenAi => {
            row["messages"].as_array().and_then(|messages| messages.split_last()).is_some_and(|(last, before)| {
                spoken(last, &["assistant"])
                    && before.iter().all(|message| spoken(message, &any))
                    && before.iter().any(|message| message["role"] == "user")
            })
        }
        Shape::Trl => match (&row["prompt"], &row["completion"]) {
            (Value::String(prompt), Value::String(completion)) => !prompt.is_empty() && !completion.is_empty(),
            (Value::Array(prompt), Value::Array(completion)) => {
                !prompt.is_empty()
                    && prompt.iter().all(|message| spoken(message, &any))
                    && completion.len() == 1
                    && completion.iter().all(|message| spoken(message, &["assistant"]))
            }
            _ => false,
        },
    };
    if fine { Ok(()) } else { Err(INVALID) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_valid_only_whole() {
        let user = json!({"role": "user", "content": "x"});
        let assistant = |content: &str| json!({"role": "assistant", "content": content});
        for (row, shape, fine) in [
            (json!({"messages": [user, assistant("y")]}), Shape::OpenAi, true),
            (json!({"messages": [user, assistant("")]}), Shape::OpenAi, false),
            (json!({"messages": [assistant("y")]}), Shape::OpenAi, false),
            (json!({"messages": [assistant("y"), user]}), Shape::OpenAi, false),
            (json!({"messages": [{"role": "tool", "content": "t"}, user, assistant("y")]}), Shape::OpenAi, false),
            (json!({"messages": []}), Shape::OpenAi, false),
            (json!({"prompt": [user], "completion": [assistant("y")]}), Shape::Trl, true),
            (json!({"prompt": [], "completion": [assistant("y")]}), Shape::Trl, false),
            (json!({"prompt": [user], "completion": [user]}), Shape::Trl, false),
            (json!({"prompt": "x", "completion": "y"}), Shape::Trl, true),
            (json!({"prompt": "x", "completion": [assistant("y")]}), Shape::Trl, false),
        ] {
            assert_eq!(valid(&row.to_string(), shape).is_ok(), fine, "{row}");
        }
    }

    #[test]
    fn the_names_of_shapes_are_read_back() {
        for shape in Shape::ALL {
            assert_eq!(Shape::parse(shape.as_str()), Some(shape));
        }
        assert_eq!(Shape::parse("csv"), None);
    }
}
