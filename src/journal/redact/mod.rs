//! The one door before storage: what the policy does not keep never reaches the store, and what the rules find is replaced
//! first, in everything that is written.

mod detect;
mod rules;

use std::{borrow::Cow, ops::Range, path::Path, sync::Arc};

use prometheus::IntCounterVec;
use serde_json::{Map, Value};

use self::rules::Rules;
pub use self::{detect::Detector, rules::Place};
use super::secret::Key;
use crate::{
    store::{ChoiceRecord, Completion, Content, Feedback, Given, Judgement, PromptContent, Search, Target},
    terms::{ConversationBy, Digest, Message, RecordPolicy},
};

/// Replaces what the rules find. Every writer of the record passes its texts through one; without rules it changes nothing.
/// Cheap to clone.
#[derive(Clone)]
pub struct Redactor(Arc<Inner>);

struct Inner {
    rules: Option<Rules>,
    key: Key,
    /// By rule.
    replaced: IntCounterVec,
}

/// A find, and the rule that it is of.
struct Span {
    at: Range<usize>,
    rule: usize,
}

impl Redactor {
    /// `replaced` counts by rule.
    ///
    /// # Errors
    /// What is wrong with the file of rules, in words.
    pub fn open(file: Option<&Path>, key: Key, replaced: IntCounterVec) -> Result<Self, String> {
        let rules = file.map(Rules::read).transpose()?;
        for rule in rules.iter().flat_map(|rules| &rules.rules) {
            // So that a rule that has found nothing shows.
            replaced.with_label_values(&[&rule.name]);
        }
        Ok(Self(Arc::new(Inner { rules, key, replaced })))
    }

    /// Reads a file of rules only to say what is wrong with it.
    ///
    /// # Errors
    /// As [`Redactor::open`].
    pub fn check(file: &Path) -> Result<(), String> {
        Rules::read(file).map(drop)
    }

    /// Which rules these are; `None` where there are none.
    pub fn version(&self) -> Option<Digest> {
        self.0.rules.as_ref().map(|rules| rules.version)
    }

    /// Whether a text would not be stored as it is. Counts nothing.
    pub fn finds(&self, place: Place, text: &str) -> bool {
        let rules = self.0.rules.iter().flat_map(|rules| &rules.rules);
        rules.filter(|rule| rule.holds_in(place)).any(|rule| !rule.find(text).is_empty())
    }

    /// The text as it may be stored.
    pub fn text<'a>(&self, place: Place, text: &'a str) -> Cow<'a, str> {
        let found = self.spans(place, text);
        self.count(&found);
        self.replaced(text, found, |replacement, _| Cow::Borrowed(replacement))
    }

    /// A name as it may be stored: what is found is replaced by a pseudonym, so that the same name stays the same and
    /// others stay others.
    pub fn identity<'a>(&self, name: &'a str) -> Cow<'a, str> {
        let found = self.spans(Place::Identity, name);
        self.count(&found);
        self.pseudonym(name, found)
    }

    fn pseudonym<'a>(&self, name: &'a str, found: Vec<Span>) -> Cow<'a, str> {
        self.replaced(name, found, |replacement, found| {
            let hash = Digest::from_bytes(self.0.key.hash("identity", found.as_bytes()));
            Cow::Owned(format!("{replacement}{}", hash.short()))
        })
    }

    /// Every name under which `name` may stand in the record: as it is, and as the rules leave it.
    pub fn names(&self, name: &str) -> Vec<String> {
        let mut names = vec![name.to_owned(), self.pseudonym(name, self.spans(Place::Identity, name)).into_owned()];
        names.dedup();
        names
    }

    /// The question, for users by all their names.
    pub fn search(&self, mut search: Search) -> Search {
        search.user = search.user.iter().flat_map(|user| self.names(user)).collect();
        search
    }

    /// Every string in a JSON value, names of fields included.
    pub fn json(&self, place: Place, value: &mut Value) -> bool {
        match value {
            Value::String(text) => self.string(place, text),
            Value::Array(items) => items.iter_mut().fold(false, |changed, item| self.json(place, item) | changed),
            Value::Object(fields) => self.map(place, fields),
            Value::Null | Value::Bool(_) | Value::Number(_) => false,
        }
    }

    /// As [`Redactor::json`]. Of names that become the same the last stays.
    pub fn map(&self, place: Place, fields: &mut Map<String, Value>) -> bool {
        let mut changed = false;
        for value in fields.values_mut() {
            changed |= self.json(place, value);
        }
        if fields.keys().any(|name| self.finds(place, name)) {
            let renamed = std::mem::take(fields).into_iter();
            *fields = renamed.map(|(name, value)| (self.text(place, &name).into_owned(), value)).collect();
            changed = true;
        }
        changed
    }

    /// Whether anything was replaced.
    pub fn string(&self, place: Place, text: &mut String) -> bool {
        match self.text(place, text) {
            Cow::Owned(redacted) => {
                *text = redacted;
                true
            }
            Cow::Borrowed(_) => false,
        }
    }

    /// What the rules find, in order. Found by an earlier rule, a span is not a later one's.
    fn spans(&self, place: Place, text: &str) -> Vec<Span> {
        let mut found: Vec<Span> = Vec::new();
        let rules = self.0.rules.iter().flat_map(|rules| &rules.rules).enumerate();
        for (rule, finder) in rules.filter(|(_, rule)| rule.holds_in(place)) {
            let mut spans = finder.find(text);
            spans.retain(|span| found.iter().all(|taken| span.end <= taken.at.start || taken.at.end <= span.start));
            found.extend(spans.into_iter().map(|at| Span { at, rule }));
        }
        found.sort_unstable_by_key(|span| span.at.start);
        found
    }

    fn count(&self, found: &[Span]) {
        let rules = self.0.rules.iter().flat_map(|rules| &rules.rules).collect::<Vec<_>>();
        found.iter().for_each(|span| self.0.replaced.with_label_values(&[&rules[span.rule].name]).inc());
    }

    fn replaced<'a, 'r>(
        &'r self,
        text: &'a str,
        found: Vec<Span>,
        with: impl Fn(&'r str, &str) -> Cow<'r, str>,
    ) -> Cow<'a, str> {
        let (Some(rules), false) = (&self.0.rules, found.is_empty()) else { return Cow::Borrowed(text) };
        let (mut redacted, mut kept) = (String::with_capacity(text.len()), 0);
        for Span { at, rule } in found {
            redacted.push_str(&text[kept..at.start]);
            redacted.push_str(&with(&rules.rules[rule].replacement, &text[at.clone()]));
            kept = at.end;
        }
        redacted.push_str(&text[kept..]);
        Cow::Owned(redacted)
    }

    /// The row as it may be stored. `limit` is the server's own policy: a row may ask for less, never for more.
    pub fn admit(&self, mut completion: Completion, limit: RecordPolicy) -> Completion {
        completion.policy = completion.policy.min(limit);
        match completion.policy {
            RecordPolicy::Full => {}
            RecordPolicy::Metadata => drop_content(&mut completion),
            RecordPolicy::None => {
                drop_content(&mut completion);
                drop_names(&mut completion);
            }
        }
        self.redact(&mut completion);
        completion
    }

    /// Replaces what the rules find in every text of the row. Where they find something, ids of tokens say it too, and go.
    pub fn redact(&self, completion: &mut Completion) {
        let Some(version) = self.version() else { return };
        completion.redaction = Some(version);
        self.name(&mut completion.request_id);
        let names = [&mut completion.user, &mut completion.safety_identifier];
        names.into_iter().flatten().for_each(|name| self.name(name));
        if let Some(placement) = &mut completion.placement {
            self.name(&mut placement.conversation);
        }
        self.map(Place::Metadata, &mut completion.metadata);
        completion.options.stop.iter_mut().for_each(|stop| {
            self.string(Place::Prompt, stop);
        });
        if let Some(content) = &completion.content
            && let Some(redacted) = self.content(content)
        {
            completion.content = Some(redacted.into());
        }
        completion.choices.iter_mut().for_each(|choice| self.choice(choice));
    }

    /// Replaces what is found in what people say of answers.
    pub fn feedback(&self, feedback: &mut Feedback) {
        if let Some(Judgement::Category(category)) = &mut feedback.value {
            self.string(Place::Comment, category);
        }
        for text in [&mut feedback.comment, &mut feedback.correction].into_iter().flatten() {
            self.string(Place::Comment, text);
        }
        self.map(Place::Metadata, &mut feedback.tags);
        if let Some(author) = &mut feedback.author {
            self.name(author);
        }
        if let Target::Conversation(name) | Target::User(name) = &mut feedback.target {
            self.name(name);
        }
    }

    fn name(&self, name: &mut String) {
        if let Cow::Owned(pseudonym) = self.identity(name) {
            *name = pseudonym;
        }
    }

    /// `None` if nothing was found.
    fn content(&self, content: &Content) -> Option<Content> {
        let (mut changed, mut redacted) = (false, content.clone());
        for PromptContent { given, tokens } in &mut redacted.prompts {
            let found = match given {
                Given::Messages(messages) => {
                    messages.iter_mut().fold(false, |found, message| self.message(message) | found)
                }
                Given::Turns(turns) => {
                    turns.iter_mut().fold(false, |found, turn| self.json(Place::Prompt, turn) | found)
                }
                Given::Text(text) => self.string(Place::Prompt, text),
                Given::Tokens => false,
            };
            if found {
                tokens.clear();
                changed = true;
            }
        }
        changed.then_some(redacted)
    }

    fn message(&self, message: &mut Message) -> bool {
        let named = message.name.as_mut().is_some_and(|name| self.string(Place::Prompt, name));
        self.string(Place::Prompt, &mut message.content) | named
    }

    fn choice(&self, choice: &mut ChoiceRecord) {
        let said = choice.text.as_mut().is_some_and(|text| self.string(Place::Answer, text));
        let called = choice.tool_calls.as_mut().is_some_and(|calls| self.json(Place::Answer, calls));
        if said || called {
            for score in &mut choice.scores {
                score.token = NOT_KEPT;
                score.top.clear();
            }
        }
    }
}

/// Stands for the id of a token that is not kept.
pub const NOT_KEPT: u32 = u32::MAX;

/// The field of feedback that a policy does not keep, if it has one.
pub fn refused(feedback: &Feedback, policy: RecordPolicy) -> Option<&'static str> {
    let words = [("comment", feedback.comment.is_some()), ("correction", feedback.correction.is_some())];
    let persons = [("user", matches!(feedback.target, Target::User(_))), ("tags", !feedback.tags.is_empty())];
    let said = |list: [(&'static str, bool); 2]| list.into_iter().find(|(_, there)| *there).map(|(field, _)| field);
    match policy {
        RecordPolicy::Full => None,
        RecordPolicy::Metadata => said(words),
        RecordPolicy::None => said(words).or_else(|| said(persons)),
    }
}

fn drop_content(completion: &mut Completion) {
    completion.content = None;
    completion.sketch = None;
    completion.options.stop = Vec::new();
    for choice in &mut completion.choices {
        choice.text = None;
        choice.scores = Vec::new();
        choice.tool_calls = None;
        choice.thread = None;
    }
}

fn drop_names(completion: &mut Completion) {
    completion.user = None;
    completion.safety_identifier = None;
    completion.system = None;
    completion.metadata = Map::new();
    completion.stored = false;
    if let Some(placement) = &mut completion.placement
        && placement.conversation_by == ConversationBy::Given
    {
        placement.conversation.clone_from(&completion.id);
        placement.conversation_by = ConversationBy::Own;
    }
}
