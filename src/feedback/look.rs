//! Rules at work on a stretch of the record: what they need beside an answer is fetched first, then they look.

use std::{collections::HashMap, sync::Arc};

use super::{
    checks::{AskedAgain, Check, Finding, LowConfidence, Reference},
    rules::{Rule, RuleSet},
    subject::{Subject, question},
};
use crate::{
    journal::{Completion, Cursor, Followed, Journal, JournalError, ReferenceAnswer},
    terms::{AdapterName, AdapterVersion, Digest, Origin},
};

/// Versions whose references are kept at hand.
const KEPT: usize = 256;
/// Requests of a user before one, and after it, that are compared with it.
const NEAR: usize = 4;

/// One thing that a rule found.
#[derive(Clone, Debug, PartialEq)]
pub struct Hit {
    /// The choice that it is about, which may be an earlier one than the one that was looked at.
    pub choice: Cursor,
    pub completion: Arc<Completion>,
    /// Of the rule, in its set.
    pub rule: usize,
    pub finding: Finding,
}

/// What a stretch came to.
#[derive(Debug, Default)]
pub struct Looked {
    pub hits: Vec<Hit>,
    /// For each rule, the answers that it looked at.
    pub counts: Vec<u64>,
    /// Answers of which nothing that was said is on record, so that rules about words find nothing.
    pub wordless: u64,
}

/// Looks at answers; keeps what it learns about versions.
pub struct Looker {
    journal: Journal,
    references: HashMap<Served, Known>,
}

/// What answered.
type Served = (Digest, Option<(AdapterName, AdapterVersion)>);

/// The beginning of a version's answers, and references of several lengths made of it.
#[derive(Default)]
struct Known {
    answers: Vec<ReferenceAnswer>,
    /// All that came up to here are among `answers`, or these are as many as were asked for.
    up_to: Cursor,
    limit: usize,
    made: HashMap<usize, Option<Arc<Reference>>>,
}

/// An answer with what rules need beside it.
struct Ready {
    followed: Cursor,
    completion: Arc<Completion>,
    /// By the size that a rule asks for.
    references: Vec<(usize, Option<Arc<Reference>>)>,
    near: Vec<Followed>,
}

impl Looker {
    pub fn new(journal: Journal) -> Self {
        Self { journal, references: HashMap::new() }
    }

    /// What `rules` find in `rows`. Looking is done off the runtime's threads.
    ///
    /// # Errors
    /// [`JournalError`] if the record cannot be read.
    pub async fn look(&mut self, rules: &Arc<RuleSet>, rows: Vec<Followed>) -> Result<Looked, JournalError> {
        let mut ready = Vec::with_capacity(rows.len());
        // What other programs said, or a version said once more, is no answer of ours.
        for Followed { cursor, completion } in rows.into_iter().filter(|row| row.completion.origin == Origin::Served) {
            let completion = Arc::new(completion);
            let references = self.references(rules, cursor, &completion).await?;
            let near = self.near(rules, &completion).await?;
            ready.push(Ready { followed: cursor, completion, references, near });
        }
        let rules = Arc::clone(rules);
        let looked = tokio::task::spawn_blocking(move || look_at(&rules, &ready)).await;
        looked.map_err(|error| JournalError::Read { reason: error.to_string() })
    }

    /// The reference that each rule about confidence compares this answer with, by the rule's own size.
    async fn references(
        &mut self,
        rules: &RuleSet,
        cursor: Cursor,
        completion: &Arc<Completion>,
    ) -> Result<Vec<(usize, Option<Arc<Reference>>)>, JournalError> {
        let Some(choice) = completion.choices.first() else { return Ok(Vec::new()) };
        let subject = Subject { completion, choice };
        let mut found = Vec::new();
        for (at, rule) in rules.rules.iter().enumerate() {
            let Check::LowConfidence(low) = &rule.check else { continue };
            if subject.confidence().is_some() && rule.concerns(&subject) {
                found.push((at, self.reference(low, cursor, completion).await?));
            }
        }
        Ok(found)
    }

    async fn reference(
        &mut self,
        low: &LowConfidence,
        cursor: Cursor,
        completion: &Arc<Completion>,
    ) -> Result<Option<Arc<Reference>>, JournalError> {
        let served = (completion.base, completion.adapter.clone());
        if self.references.len() >= KEPT && !self.references.contains_key(&served) {
            self.references.clear();
        }
        let known = self.references.entry(served).or_default();
        let short = known.answers.len() < low.reference && (known.up_to < cursor || known.limit < low.reference);
        if short {
            let limit = low.reference.max(known.limit);
            known.answers = self.journal.reference(completion, limit).await?;
            (known.up_to, known.limit) = (cursor, limit);
        }
        let before = known.answers.partition_point(|answer| answer.choice < cursor);
        let Some(size) = low.size(before) else { return Ok(None) };
        let made = known.made.entry(size).or_insert_with(|| {
            let answers: Vec<(usize, f64)> =
                known.answers[..size].iter().map(|answer| (answer.tokens, answer.mean_logprob)).collect();
            Reference::of(&answers).map(Arc::new)
        });
        Ok(made.clone())
    }

    /// What the same user asked shortly before and after, if a rule wants to know.
    async fn near(&self, rules: &RuleSet, completion: &Arc<Completion>) -> Result<Vec<Followed>, JournalError> {
        let first = completion.choices.first().is_some_and(|choice| choice.index == 0);
        let windows = rules.rules.iter().filter_map(|rule| match &rule.check {
            Check::AskedAgain(again) => Some(again.window().as_millis() as i64),
            _ => None,
        });
        match windows.max() {
            Some(window_ms) if first && completion.user.is_some() => {
                self.journal.asked_near(completion, window_ms, NEAR).await
            }
            Some(_) | None => Ok(Vec::new()),
        }
    }
}

fn look_at(rules: &RuleSet, ready: &[Ready]) -> Looked {
    let mut looked = Looked { counts: vec![0; rules.rules.len()], ..Looked::default() };
    for Ready { followed, completion, references, near } in ready {
        let Some(choice) = completion.choices.first() else { continue };
        let subject = Subject { completion, choice };
        looked.wordless += u64::from(subject.answer().is_none());
        for (at, rule) in rules.rules.iter().enumerate() {
            if !rule.concerns(&subject) {
                continue;
            }
            looked.counts[at] += 1;
            let reference = references.iter().find(|(of, _)| *of == at).and_then(|(_, reference)| reference.as_deref());
            let finding = rule.check.look(&subject, reference);
            looked.hits.extend(finding.map(|finding| Hit {
                choice: *followed,
                completion: Arc::clone(completion),
                rule: at,
                finding,
            }));
            if let Check::AskedAgain(again) = &rule.check {
                looked.hits.extend(asked_again(again, (at, rule), (*followed, completion), near));
            }
        }
    }
    looked
}

/// The pairs of this request with one before or after it, each found from whichever came later onto the record.
fn asked_again(
    again: &AskedAgain,
    (at, rule): (usize, &Rule),
    (cursor, completion): (Cursor, &Arc<Completion>),
    near: &[Followed],
) -> Vec<Hit> {
    let said = |completion: &Completion| completion.content.as_ref()?.prompts.first().and_then(question);
    let Some(own) = said(completion) else { return Vec::new() };
    let mut hits = Vec::new();
    for other in near {
        let Some(others) = said(&other.completion) else { continue };
        let mine = (own.as_str(), completion.created_ms);
        let theirs = (others.as_str(), other.completion.created_ms);
        // Of two in the same millisecond the one that was recorded first is the first.
        let other_first = (theirs.1, other.cursor) < (mine.1, cursor);
        let (first, second) = if other_first { (theirs, mine) } else { (mine, theirs) };
        let Some(finding) = again.look(first, second) else { continue };
        if !other_first {
            hits.push(Hit { choice: cursor, completion: Arc::clone(completion), rule: at, finding });
            continue;
        }
        let concerned = other
            .completion
            .choices
            .first()
            .is_some_and(|choice| rule.concerns(&Subject { completion: &other.completion, choice }));
        if concerned {
            let completion = Arc::new(other.completion.clone());
            hits.push(Hit { choice: other.cursor, completion, rule: at, finding });
        }
    }
    // However often it was asked again, the answer is flagged once.
    hits.dedup_by_key(|hit| hit.choice);
    hits
}
