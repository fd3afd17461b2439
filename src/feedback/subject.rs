//! An answer as rules look at it.

use serde_json::Value;

use crate::{
    journal::{ChoiceRecord, Completion, Given, PromptContent},
    terms::{Ending, Role},
};

/// One choice of a completion.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    pub completion: &'a Completion,
    pub choice: &'a ChoiceRecord,
}

impl<'a> Subject<'a> {
    /// What the client got, where it was kept.
    pub fn answer(&self) -> Option<&'a str> {
        self.choice.text.as_deref()
    }

    /// Whether it came to its own end.
    pub fn has_ended(&self) -> bool {
        matches!(self.choice.ending, Ending::Finished(_))
    }

    /// The last thing that the user said, or the whole of a prompt without roles.
    pub fn question(&self) -> Option<String> {
        question(self.prompt()?)
    }

    /// Everything that was in the prompt.
    pub fn whole_question(&self) -> Option<String> {
        match &self.prompt()?.given {
            Given::Messages(messages) => {
                Some(messages.iter().map(|message| message.content.as_str()).collect::<Vec<_>>().join("\n"))
            }
            Given::Turns(turns) => Some(turns.iter().filter_map(said).collect::<Vec<_>>().join("\n")),
            Given::Text(text) => Some(text.clone()),
            Given::Tokens => None,
        }
    }

    /// Tokens and their mean log-probability, where scores were kept.
    pub fn confidence(&self) -> Option<(usize, f64)> {
        let scores = &self.choice.scores;
        let sum: f64 = scores.iter().map(|score| f64::from(score.logprob)).sum();
        (!scores.is_empty() && sum.is_finite()).then(|| (scores.len(), sum / scores.len() as f64))
    }

    fn prompt(&self) -> Option<&'a PromptContent> {
        let prompts = &self.completion.content.as_ref()?.prompts;
        prompts.get(self.choice.index as usize / self.completion.options.n.max(1) as usize)
    }
}

/// The text of a message in OpenAI's form, whether it is one or in parts.
fn said(turn: &Value) -> Option<String> {
    match &turn["content"] {
        Value::String(text) => Some(text.clone()),
        Value::Array(parts) => {
            let texts: Vec<&str> = parts.iter().filter_map(|part| part["text"].as_str()).collect();
            (!texts.is_empty()).then(|| texts.join("\n"))
        }
        _ => None,
    }
}

/// The last thing that the user said in a prompt.
pub fn question(prompt: &PromptContent) -> Option<String> {
    match &prompt.given {
        Given::Messages(messages) => {
            let last = messages.iter().rev().find(|message| message.role == Role::User)?;
            Some(last.content.clone())
        }
        Given::Turns(turns) => turns.iter().rev().find(|turn| turn["role"] == "user").and_then(said),
        Given::Text(text) => Some(text.clone()),
        Given::Tokens => None,
    }
}
