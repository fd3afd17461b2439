//! A conversation to prompt tokens. What users wrote never becomes a special token: before rendering, every place in
//! their text where a special token could be read gets a mark, a character that stands nowhere in conversation or
//! template; after rendering the marks are taken out, and no special token is matched across one.

use std::collections::HashSet;

use minijinja::Value;
use regex::Regex;

use super::{ChatOptions, RenderedPrompt, Text, TextError, encoder::Specials};
use crate::terms::{Message, Role, TemplateSource};

/// The texts of all special tokens.
pub(super) struct SpecialTexts {
    any: Option<Regex>,
    texts: Vec<String>,
    /// Every beginning of a special token that is not a whole one.
    beginnings: HashSet<String>,
    longest: usize,
}

impl SpecialTexts {
    pub(super) fn new(mut texts: Vec<String>) -> Result<Self, regex::Error> {
        texts.retain(|text| !text.is_empty());
        texts.sort_unstable_by(|a, b| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
        let pattern = texts.iter().map(|text| regex::escape(text)).collect::<Vec<_>>().join("|");
        let any = if texts.is_empty() {
            None
        } else {
            Some(regex::RegexBuilder::new(&pattern).size_limit(256 << 20).build()?)
        };
        let beginnings =
            texts.iter().flat_map(|text| text.char_indices().skip(1).map(|(at, _)| text[..at].to_owned())).collect();
        Ok(Self { any, beginnings, longest: texts.first().map_or(0, String::len), texts })
    }

    /// `text` with `mark` wherever a special token could be read in it, or could begin at its end.
    fn marked(&self, text: &str, mark: char) -> String {
        let mut places = Vec::new();
        let mut from = 0;
        while let Some(found) = self.any.as_ref().and_then(|any| any.find_at(text, from)) {
            let first = found.as_str().chars().next().map_or(1, char::len_utf8);
            from = found.start() + first;
            // One character has no inside; its mark goes before it.
            places.push(if found.len() == first { found.start() } else { from });
        }
        for end in [text.trim_end().len(), text.len()] {
            let earliest = end.saturating_sub(self.longest);
            let begins = (earliest..end).any(|at| text.get(at..end).is_some_and(|tail| self.beginnings.contains(tail)));
            if begins {
                places.push(end);
            }
        }
        places.sort_unstable();
        places.dedup();
        let mut marked = String::with_capacity(text.len() + places.len() * mark.len_utf8());
        let mut done = 0;
        for place in places {
            marked.push_str(&text[done..place]);
            marked.push(mark);
            done = place;
        }
        marked.push_str(&text[done..]);
        marked
    }

    /// As [`SpecialTexts::marked`], for a word that a template may put between the brackets of a special token.
    fn marked_word(&self, word: &str, mark: char) -> String {
        let mut marked = self.marked(word, mark);
        if self.texts.iter().any(|text| text.contains(word)) {
            marked.insert(word.chars().next().map_or(0, char::len_utf8), mark);
        }
        marked
    }
}

/// Two characters for private use that stand nowhere in the conversation or the template.
fn unused_characters(template: &str, messages: &[Message]) -> Option<(char, char)> {
    let texts = || {
        let names = messages.iter().filter_map(|message| message.name.as_deref());
        messages.iter().map(|message| message.content.as_str()).chain(names).chain([template])
    };
    let candidates = ('\u{F0000}'..='\u{FFFFD}').chain('\u{100000}'..='\u{10FFFD}');
    let mut unused = candidates.filter(|&candidate| !texts().any(|text| text.contains(candidate)));
    Some((unused.next()?, unused.next()?))
}

impl Text {
    /// The conversation as the template lays it out, and its tokens.
    ///
    /// Errors: the template refuses or fails ([`TextError::Template`]), or renders too much ([`TextError::TooLong`]).
    pub fn chat(
        &self,
        template: &TemplateSource,
        messages: &[Message],
        options: ChatOptions,
    ) -> Result<RenderedPrompt, TextError> {
        let refuse = |reason: &str| Err(TextError::Template(reason.into()));
        if options.add_generation_prompt && options.continue_final_message {
            return refuse("add_generation_prompt and continue_final_message exclude each other");
        }
        if options.continue_final_message && messages.is_empty() {
            return refuse("there is no final message to continue");
        }
        let Some((mark, end)) = unused_characters(&template.text, messages) else {
            return refuse("it holds every character for private use");
        };
        let knows_developer = template.text.contains("developer");
        let turns: Vec<Value> = messages
            .iter()
            .enumerate()
            .map(|(at, message)| {
                let mut content = self.special_texts.marked(&message.content, mark);
                if options.continue_final_message && at + 1 == messages.len() {
                    content.push(end);
                    // Tells whether the template trims the end, as it then does with this space.
                    content.push(' ');
                }
                let role = match message.role {
                    Role::Developer if !knows_developer => Role::System,
                    role => role,
                };
                let mut turn = vec![("role", Value::from(role.as_str())), ("content", Value::from(content))];
                if let Some(name) = &message.name {
                    turn.push(("name", Value::from(self.special_texts.marked_word(name, mark))));
                }
                Value::from_pairs(turn)
            })
            .collect();
        let mut variables = vec![
            ("messages", Value::from(turns)),
            ("tools", Value::from(())),
            ("documents", Value::from(())),
            ("add_generation_prompt", Value::from(options.add_generation_prompt)),
        ];
        variables.extend(self.token_names.iter().map(|(name, token)| (*name, Value::from(token.as_str()))));
        let variables = Value::from_pairs(variables);
        let mut rendered = self.templates.render(template, &variables, messages.len())?;
        if options.continue_final_message {
            let Some(at) = rendered.rfind(end) else { return refuse("it drops the final message") };
            let trims = !rendered[at + end.len_utf8()..].starts_with(' ');
            rendered.truncate(at);
            if trims {
                rendered.truncate(rendered.trim_end().len());
            }
            // A template may show the message more than once.
            rendered = rendered.replace(&format!("{end} "), "").replace(end, "");
        }
        let mut text = String::with_capacity(rendered.len());
        let mut breaks = Vec::new();
        for part in rendered.split(mark) {
            text.push_str(part);
            breaks.push(text.len());
        }
        breaks.pop();
        let tokens = self.tokens_of(&text, Specials::Unless(&breaks))?;
        Ok(RenderedPrompt { text, tokens })
    }
}
