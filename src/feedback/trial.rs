//! Rules tried on the past: what they would have found, before they are switched on. Nothing is written.

use std::sync::Arc;

use super::{Flags, look::Looker, rules::RuleSet};
use crate::{
    journal::{Cursor, JournalError},
    terms::{AdapterName, AdapterVersion, Digest},
};

/// Answers that are read together.
const BATCH: usize = 64;
/// Examples of each rule.
const EXAMPLES: usize = 5;

/// What rules would have found.
#[derive(Clone, Debug, PartialEq)]
pub struct Tried {
    /// The stretch of the record.
    pub from: Cursor,
    pub to: Cursor,
    /// Choices in it.
    pub answers: u64,
    /// Of those, how many have no words on record.
    pub wordless: u64,
    pub rules: Vec<TriedRule>,
}

/// One of them.
#[derive(Clone, Debug, PartialEq)]
pub struct TriedRule {
    pub name: String,
    pub version: Digest,
    /// Answers that it looked at.
    pub looked: u64,
    /// Answers that it would have flagged, or counted.
    pub found: u64,
    /// Whether it reads words, and so finds nothing where none are kept.
    pub needs_words: bool,
    pub examples: Vec<Example>,
}

/// One answer that would have been flagged.
#[derive(Clone, Debug, PartialEq)]
pub struct Example {
    pub completion: String,
    pub position: u32,
    pub adapter: Option<(AdapterName, AdapterVersion)>,
    pub reason: String,
}

impl Flags {
    /// What `rules` would have found in the last `last` answers. Takes as long as reading them takes.
    ///
    /// # Errors
    /// [`JournalError`] if the record cannot be read.
    pub async fn try_on_the_past(&self, rules: RuleSet, last: u64) -> Result<Tried, JournalError> {
        let rules = Arc::new(rules);
        let mut looker = Looker::new(self.0.journal.clone());
        let to = *self.0.journal.watch_durable().borrow();
        let from = Cursor(to.0.saturating_sub(last));
        let mut tried = Tried {
            from,
            to,
            answers: 0,
            wordless: 0,
            rules: rules
                .rules
                .iter()
                .map(|rule| TriedRule {
                    name: rule.name.clone(),
                    version: rule.version,
                    looked: 0,
                    found: 0,
                    needs_words: rule.check.needs_words(),
                    examples: Vec::new(),
                })
                .collect(),
        };
        // Asking again is found from both sides.
        let mut found = std::collections::HashSet::new();
        let mut at = from;
        while at < to {
            let mut rows = self.0.journal.follow(at, BATCH).await?;
            rows.retain(|row| row.cursor <= to);
            let Some(last) = rows.last().map(|row| row.cursor) else { break };
            tried.answers += rows.len() as u64;
            let looked = looker.look(&rules, rows).await?;
            tried.wordless += looked.wordless;
            for (rule, count) in tried.rules.iter_mut().zip(&looked.counts) {
                rule.looked += count;
            }
            for hit in looked.hits {
                if hit.choice <= from || !found.insert((hit.rule, hit.choice)) {
                    continue;
                }
                let rule = &mut tried.rules[hit.rule];
                rule.found += 1;
                if rule.examples.len() < EXAMPLES {
                    rule.examples.push(Example {
                        completion: hit.completion.id.clone(),
                        position: hit.completion.choices.first().map_or(0, |choice| choice.index),
                        adapter: hit.completion.adapter.clone(),
                        reason: hit.finding.reason,
                    });
                }
            }
            at = last;
        }
        Ok(tried)
    }
}
