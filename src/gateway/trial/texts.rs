//! What a candidate reads: fixed texts of several kinds, and its own golden answers behind their prompts.

use std::sync::Arc;

use crate::{
    adapters::GoldenAnswer,
    terms::{Hasher, Message, Role, TemplateSource},
    text::{ChatOptions, Text, TextError},
};

/// Everyday prose, instructions, facts with numbers, and talk of programs: what a base of any family reads well.
const TEXTS: [&str; 4] = [
    "The river rises in the hills north of the town, turns east below the old mill, and reaches the sea after forty miles \
     of meadows and low woods.",
    "To cook rice for four people, rinse two cups of it under cold water, add three cups of water and a little salt, and \
     let it simmer with the lid on for fifteen minutes.",
    "In 1969 two men walked on the moon while a third stayed in orbit; they came back with twenty kilograms of rock and \
     left a flag, some tools and a mirror.",
    "A function that adds two numbers returns their sum. If either of them is missing, it should raise an error and say \
     which one, rather than guess.",
];

/// Tokens to read, and the first one whose score counts (at least the second: a first token has none).
pub struct Sequence {
    pub tokens: Arc<[u32]>,
    pub judged_from: usize,
}

pub fn hashed(hasher: Hasher) -> Hasher {
    TEXTS.iter().fold(hasher, |hasher, text| hasher.part("text", text.as_bytes()))
}

/// The fixed texts, cut to the context.
pub fn fixed(text: &Text, limit: usize) -> Result<Vec<Sequence>, TextError> {
    let sequence = |words: &&str| {
        let mut tokens = text.encode(words, true)?;
        tokens.truncate(limit);
        Ok::<_, TextError>(Sequence { tokens: tokens.into(), judged_from: 1 })
    };
    TEXTS.iter().map(sequence).collect()
}

/// Each golden answer behind its prompt: a user's message in the adapter's own template, or else the base's; plain text
/// where there is none.
///
/// # Errors
/// What keeps an answer from being read, in a sentence.
pub fn golden(
    text: &Text,
    template: Option<&TemplateSource>,
    golden: &[GoldenAnswer],
    limit: usize,
) -> Result<Vec<Sequence>, String> {
    let read = |(index, golden): (usize, &GoldenAnswer)| {
        let prompt = match template {
            Some(template) => {
                let message = Message { role: Role::User, content: golden.prompt.clone(), name: None };
                let options = ChatOptions { add_generation_prompt: true, continue_final_message: false };
                text.chat(template, &[message], options).map(|prompt| prompt.tokens)
            }
            None => text.encode(&golden.prompt, true),
        };
        let tokens =
            prompt.and_then(|prompt| Ok((prompt.len().max(1), [prompt, text.encode(&golden.answer, false)?].concat())));
        let (judged_from, tokens) = tokens.map_err(|error| format!("golden answer {}: {error}", index + 1))?;
        if tokens.len() > limit {
            let tokens = tokens.len();
            return Err(format!(
                "golden answer {} has {tokens} tokens with its prompt; the context is {limit}",
                index + 1
            ));
        }
        if tokens.len() <= judged_from {
            return Err(format!("golden answer {} is no token of this base's vocabulary", index + 1));
        }
        Ok(Sequence { tokens: tokens.into(), judged_from })
    };
    golden.iter().enumerate().map(read).collect()
}
