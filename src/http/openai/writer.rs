//! From a reply's events to an answer: one object, or the chunks of a stream.

use std::sync::Arc;

use serde::Serialize;

use super::{
    logprobs::{Offset, TextTokens, chat_tokens},
    params::Form,
    wire::{
        ChatAnswer, ChatChoice, ChatChunk, ChatDelta, ChatLogprobs, ChatMessage, ChatToken, ChunkHead, ChunkTail,
        Delta, TextAnswer, TextChoice, TextChunk, TextLogprobs, UsageBody,
    },
};
use crate::{
    gateway::{Ask, ReplyEvent, ReplyHead},
    journal::CompletionKind,
    terms::{FinishReason, TokenScore, Usage},
    text::Text,
};

/// What the writing of an answer depends on, beside the reply.
#[derive(Clone, Debug)]
pub struct Manner {
    kind: CompletionKind,
    choices: usize,
    logprobs: bool,
    skip_special: bool,
    form: Form,
}

impl Manner {
    pub fn of(ask: &Ask, form: Form) -> Self {
        Self {
            kind: ask.kind,
            choices: ask.prompts.len() * ask.n as usize,
            logprobs: ask.top_logprobs.is_some(),
            skip_special: ask.skip_special_tokens,
            form,
        }
    }
}

/// Writes one answer.
pub struct Writer {
    manner: Manner,
    head: ReplyHead,
    text: Arc<Text>,
    choices: Vec<Choice>,
    usage: Usage,
}

/// One choice as far as it has come; text and scores are gathered only where the answer is written whole.
#[derive(Default)]
struct Choice {
    text: String,
    chat: Vec<ChatToken>,
    lists: TextLogprobs,
    offset: Offset,
    finish: Option<FinishReason>,
}

/// What an event adds to a choice.
struct Part {
    text: String,
    /// Scored tokens; before them, for an echoed prompt, its first, which has no score.
    first: Option<u32>,
    scores: Vec<TokenScore>,
}

impl Writer {
    pub fn new(manner: Manner, head: ReplyHead, text: Arc<Text>) -> Self {
        let choices = (0..manner.choices).map(|_| Choice::default()).collect();
        Self { manner, head, text, choices, usage: Usage::default() }
    }

    /// The chunks before any event: in a chat, who speaks.
    pub fn opening(&self) -> Vec<String> {
        match self.manner.kind {
            CompletionKind::Completions => Vec::new(),
            CompletionKind::Chat => (0..self.manner.choices as u32)
                .map(|index| {
                    let delta = Delta { role: Some("assistant"), content: Some("") };
                    self.chat_chunk(vec![ChatDelta { index, delta, logprobs: None, finish_reason: None }])
                })
                .collect(),
        }
    }

    /// The chunk of one event, if it has one.
    pub fn chunk(&mut self, event: ReplyEvent) -> Option<String> {
        match event {
            ReplyEvent::Echo { choice, text, tokens, scores } => {
                self.part_chunk(choice, Part { text, first: tokens.first().copied(), scores })
            }
            ReplyEvent::Piece { choice, text, scores } => self.part_chunk(choice, Part { text, first: None, scores }),
            ReplyEvent::Finished { choice, reason } => {
                self.finish(choice, reason);
                Some(self.finish_chunk(choice, reason))
            }
            ReplyEvent::Done { usage } => {
                self.usage = usage;
                self.manner.form.include_usage.then(|| self.usage_chunk(usage.into()))
            }
        }
    }

    /// Adds an event to the whole answer.
    pub fn gather(&mut self, event: ReplyEvent) {
        match event {
            ReplyEvent::Echo { choice, text, tokens, scores } => {
                self.gather_part(choice, Part { text, first: tokens.first().copied(), scores });
            }
            ReplyEvent::Piece { choice, text, scores } => {
                self.gather_part(choice, Part { text, first: None, scores });
            }
            ReplyEvent::Finished { choice, reason } => self.finish(choice, reason),
            ReplyEvent::Done { usage } => self.usage = usage,
        }
    }

    /// The whole answer, once `Done` is gathered.
    pub fn whole(&self) -> String {
        match self.manner.kind {
            CompletionKind::Chat => json(&self.whole_chat()),
            CompletionKind::Completions => json(&self.whole_text()),
        }
    }

    /// How the choices ended, each way once: `stop`, `length`, `stop,length`.
    pub fn ending(&self) -> String {
        let mut endings: Vec<&str> = self.choices.iter().filter_map(|c| c.finish.map(FinishReason::as_str)).collect();
        endings.sort_unstable_by(|a, b| b.cmp(a));
        endings.dedup();
        endings.join(",")
    }

    pub fn usage(&self) -> Usage {
        self.usage
    }

    fn finish(&mut self, choice: u32, reason: FinishReason) {
        if let Some(choice) = self.choices.get_mut(choice as usize) {
            choice.finish = Some(reason);
        }
    }

    fn gather_part(&mut self, index: u32, part: Part) {
        let (text, skip) = (&self.text, self.manner.skip_special);
        let Some(choice) = self.choices.get_mut(index as usize) else { return };
        choice.text.push_str(&part.text);
        if !self.manner.logprobs {
            return;
        }
        match self.manner.kind {
            CompletionKind::Chat => choice.chat.extend(chat_tokens(text, &part.scores)),
            CompletionKind::Completions => {
                let more = lists(text, skip, &mut choice.offset, &part);
                choice.lists.tokens.extend(more.tokens);
                choice.lists.token_logprobs.extend(more.token_logprobs);
                choice.lists.top_logprobs.extend(more.top_logprobs);
                choice.lists.text_offset.extend(more.text_offset);
            }
        }
    }

    fn part_chunk(&mut self, index: u32, part: Part) -> Option<String> {
        let (logprobs, skip) = (self.manner.logprobs, self.manner.skip_special);
        match self.manner.kind {
            CompletionKind::Chat => {
                let logprobs =
                    logprobs.then(|| ChatLogprobs { content: chat_tokens(&self.text, &part.scores), refusal: None });
                let delta = Delta { role: None, content: Some(&part.text) };
                Some(self.chat_chunk(vec![ChatDelta { index, delta, logprobs, finish_reason: None }]))
            }
            CompletionKind::Completions => {
                let choice = self.choices.get_mut(index as usize)?;
                let logprobs = logprobs.then(|| lists(&self.text, skip, &mut choice.offset, &part));
                let choice = TextChoice { index, text: &part.text, logprobs, finish_reason: None };
                Some(self.text_chunk(vec![choice]))
            }
        }
    }

    fn finish_chunk(&self, index: u32, reason: FinishReason) -> String {
        let finish_reason = Some(reason.as_str());
        match self.manner.kind {
            CompletionKind::Chat => {
                self.chat_chunk(vec![ChatDelta { index, delta: Delta::default(), logprobs: None, finish_reason }])
            }
            CompletionKind::Completions => {
                self.text_chunk(vec![TextChoice { index, text: "", logprobs: None, finish_reason }])
            }
        }
    }

    fn usage_chunk(&self, usage: UsageBody) -> String {
        let tail = ChunkTail { usage: Some(Some(usage)), ..self.tail() };
        match self.manner.kind {
            CompletionKind::Chat => json(&ChatChunk { head: self.chunk_head(), choices: Vec::new(), tail }),
            CompletionKind::Completions => json(&TextChunk { head: self.chunk_head(), choices: Vec::new(), tail }),
        }
    }

    fn chat_chunk(&self, choices: Vec<ChatDelta<'_>>) -> String {
        json(&ChatChunk { head: self.chunk_head(), choices, tail: self.tail() })
    }

    fn text_chunk(&self, choices: Vec<TextChoice<'_>>) -> String {
        json(&TextChunk { head: self.chunk_head(), choices, tail: self.tail() })
    }

    fn chunk_head(&self) -> ChunkHead<'_> {
        ChunkHead {
            id: &self.head.id,
            object: match self.manner.kind {
                CompletionKind::Chat => "chat.completion.chunk",
                CompletionKind::Completions => "text_completion",
            },
            created: self.head.created,
            model: &self.head.model,
            service_tier: self.service_tier(),
            system_fingerprint: &self.head.fingerprint,
        }
    }

    fn tail(&self) -> ChunkTail {
        ChunkTail {
            usage: self.manner.form.include_usage.then_some(None),
            obfuscation: self.manner.form.obfuscate.then(padding),
        }
    }

    fn service_tier(&self) -> Option<&'static str> {
        self.manner.form.service_tier.then_some("default")
    }

    fn whole_chat(&self) -> ChatAnswer<'_> {
        let choices = self.choices.iter().enumerate().map(|(index, choice)| ChatChoice {
            index: index as u32,
            message: ChatMessage { role: "assistant", content: Some(&choice.text), refusal: None },
            logprobs: self.manner.logprobs.then(|| ChatLogprobs { content: choice.chat.clone(), refusal: None }),
            finish_reason: choice.finish.map_or("stop", FinishReason::as_str),
        });
        ChatAnswer {
            id: &self.head.id,
            object: "chat.completion",
            created: self.head.created,
            model: &self.head.model,
            choices: choices.collect(),
            usage: self.usage.into(),
            service_tier: self.service_tier(),
            system_fingerprint: &self.head.fingerprint,
        }
    }

    fn whole_text(&self) -> TextAnswer<'_> {
        let choices = self.choices.iter().enumerate().map(|(index, choice)| TextChoice {
            index: index as u32,
            text: &choice.text,
            logprobs: self.manner.logprobs.then(|| choice.lists.clone()),
            finish_reason: choice.finish.map(FinishReason::as_str),
        });
        TextAnswer {
            id: &self.head.id,
            object: "text_completion",
            created: self.head.created,
            model: &self.head.model,
            choices: choices.collect(),
            usage: self.usage.into(),
            service_tier: self.service_tier(),
            system_fingerprint: &self.head.fingerprint,
        }
    }
}

fn lists(text: &Text, skip_special: bool, offset: &mut Offset, part: &Part) -> TextLogprobs {
    let mut tokens = TextTokens::new(text, skip_special, offset);
    if let Some(first) = part.first {
        tokens.unscored(first);
    }
    part.scores.iter().for_each(|score| tokens.scored(score));
    tokens.finish()
}

/// Strings, numbers and lists of them: nothing here can fail to be JSON.
fn json(body: &impl Serialize) -> String {
    serde_json::to_string(body).unwrap_or_default()
}

/// 1 to 32 random characters. Without random numbers there is no hiding, so then nothing is hidden.
fn padding() -> String {
    let mut bytes = [0u8; 33];
    if getrandom::fill(&mut bytes).is_err() {
        return String::new();
    }
    let length = 1 + usize::from(bytes[32] % 32);
    bytes[..length].iter().map(|byte| char::from(b'a' + byte % 26)).collect()
}
