//! Follows the record: every answer that became durable is looked at once, by the rules that hold when its turn comes.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::task::JoinHandle;

use super::{
    AgainError, Flags, Inner,
    look::{Hit, Looker},
    rules::{Action, Rule, RuleSet},
};
use crate::{
    journal::{Cursor, Followup, JournalError, NewFlag, RuleRow},
    terms::Moment,
};

/// The follower's name in the record.
const NAME: &str = "flags";
/// Answers that are looked at together.
const BATCH: usize = 64;
/// So that a busy server's answers are looked at in batches, not each alone.
const PAUSE: Duration = Duration::from_millis(50);
/// How often the rules' file is looked at, and a place without flags is written down.
const EVERY: Duration = Duration::from_secs(2);
/// Answers without a flag, after which the place is written down all the same.
const UNWRITTEN: u64 = 1024;
/// Before a record that failed is read or written again.
const AFTER_FAILURE: Duration = Duration::from_secs(1);

/// Follows until it is dropped.
pub struct Following(JoinHandle<()>);

impl Drop for Following {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Flags {
    /// Follows the record from where it was left. Needs a running `tokio`.
    pub fn follow(&self) -> Following {
        let follower = Follower {
            inner: Arc::clone(&self.0),
            flags: self.clone(),
            looker: Looker::new(self.0.journal.clone()),
            stands: None,
            seen: Cursor::default(),
            rules: Arc::clone(&self.0.rules.borrow().rules),
            wrote: Instant::now(),
        };
        Following(tokio::spawn(follower.run()))
    }

    /// Applies rules that hold now to the last `last` answers, in the background; those with these names, or all. What they find is
    /// flagged as if they had found it when it came; what is flagged already is left as it is.
    ///
    /// # Errors
    /// [`AgainError`]; then nothing was begun.
    pub fn again(&self, names: &[String], last: u64) -> Result<(Cursor, Cursor), AgainError> {
        let held = Arc::clone(&self.0.rules.borrow().rules);
        for name in names {
            if !held.rules.iter().any(|rule| rule.name == *name) {
                let known = held.rules.iter().map(|rule| rule.name.as_str()).collect::<Vec<_>>().join(", ");
                return Err(AgainError::Unknown { name: name.clone(), known });
            }
        }
        // What comes after this place is followed anyway.
        let to = *self.0.followed.borrow();
        let from = Cursor(to.0.saturating_sub(last));
        let mut busy = None;
        self.0.again.send_if_modified(|again| match again {
            Some((_, to)) => {
                busy = Some(*to);
                false
            }
            None => {
                *again = Some((from, to));
                true
            }
        });
        if let Some(to) = busy {
            return Err(AgainError::Busy { to });
        }
        let (flags, names) = (self.clone(), names.to_vec());
        tokio::spawn(async move {
            let done = flags.go_through(&held, &names, from, to).await;
            flags.0.again.send_replace(None);
            match done {
                Ok(found) => tracing::info!(from = from.0, to = to.0, found, "rules were applied to the past"),
                Err(error) => tracing::warn!(%error, from = from.0, to = to.0, "applying rules to the past broke off"),
            }
        });
        Ok((from, to))
    }

    async fn go_through(
        &self,
        rules: &Arc<RuleSet>,
        names: &[String],
        from: Cursor,
        to: Cursor,
    ) -> Result<usize, JournalError> {
        let wanted = |rule: &Rule| names.is_empty() || names.contains(&rule.name);
        let mut looker = Looker::new(self.0.journal.clone());
        let (mut at, mut found) = (from, 0);
        while at < to {
            let mut rows = self.0.journal.follow(at, BATCH).await?;
            rows.retain(|row| row.cursor <= to);
            let Some(last) = rows.last().map(|row| row.cursor) else { break };
            let looked = looker.look(rules, rows).await?;
            let flags: Vec<NewFlag> = looked
                .hits
                .iter()
                .filter(|hit| wanted(&rules.rules[hit.rule]))
                .filter_map(|hit| flag(rules, hit))
                .collect();
            found += flags.len();
            let followup = Followup {
                follower: None,
                from: at,
                to: last,
                rules: rules.rules.iter().filter(|rule| wanted(rule)).map(row).collect(),
                flags,
                at_ms: Moment::unix_ms(),
            };
            self.0.journal.follow_up(followup).await?;
            at = last;
            self.0.again.send_replace(Some((at, to)));
        }
        Ok(found)
    }
}

struct Follower {
    inner: Arc<Inner>,
    flags: Flags,
    looker: Looker,
    /// Where the record has this follower; `None` before it was read.
    stands: Option<Cursor>,
    /// How far it has come, which may be further than is written down where nothing was found.
    seen: Cursor,
    /// The rules that looked at everything between.
    rules: Arc<RuleSet>,
    wrote: Instant,
}

impl Follower {
    async fn run(mut self) {
        let mut durable = self.inner.journal.watch_durable();
        let mut ticks = tokio::time::interval(EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            match self.step().await {
                Ok(true) => continue,
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(%error, "answers are not looked at: the record cannot be used");
                    tokio::time::sleep(AFTER_FAILURE).await;
                    continue;
                }
            }
            let more = tokio::select! {
                // The journal lives as long as this does.
                changed = durable.changed() => changed.is_ok(),
                _ = ticks.tick() => {
                    let flags = self.flags.clone();
                    // A folder that hangs stops no runtime; a panic there changes nothing.
                    let _ = tokio::task::spawn_blocking(move || flags.reload()).await;
                    false
                }
            };
            if more {
                tokio::time::sleep(PAUSE).await;
            }
        }
    }

    /// One batch; false if there was nothing to do.
    async fn step(&mut self) -> Result<bool, JournalError> {
        let stands = match self.stands {
            Some(stands) => stands,
            None => self.begin().await?,
        };
        let rules = Arc::clone(&self.inner.rules.borrow().rules);
        if rules.digest != self.rules.digest {
            // What was seen was seen by the rules before.
            self.write(stands, Vec::new()).await?;
            self.rules = rules;
        }
        let rows = if self.rules.rules.is_empty() {
            // There is nothing to look for, so nothing has to be read.
            self.seen = self.seen.max(*self.inner.journal.watch_durable().borrow());
            Vec::new()
        } else {
            self.inner.journal.follow(self.seen, BATCH).await?
        };
        let Some(last) = rows.last().map(|row| row.cursor) else {
            if self.seen > self.stands.unwrap_or_default() && self.wrote.elapsed() >= EVERY {
                self.write(self.seen, Vec::new()).await?;
            }
            self.tell();
            return Ok(false);
        };
        let rules = Arc::clone(&self.rules);
        let looked = self.looker.look(&rules, rows).await?;
        let flags: Vec<NewFlag> = looked.hits.iter().filter_map(|hit| flag(&rules, hit)).collect();
        let unwritten = last.0 - self.stands.unwrap_or_default().0;
        if !flags.is_empty() || unwritten >= UNWRITTEN {
            self.write(last, flags).await?;
        }
        self.seen = last;
        self.count(&rules, &looked.hits, &looked.counts);
        self.tell();
        Ok(true)
    }

    /// Reads where it was left. The store has put it at the end of what there was before there were flags.
    async fn begin(&mut self) -> Result<Cursor, JournalError> {
        let stands = self.inner.journal.follower(NAME).await?.unwrap_or_default();
        (self.stands, self.seen) = (Some(stands), stands);
        Ok(stands)
    }

    /// Writes flags and place as one.
    async fn write(&mut self, to: Cursor, flags: Vec<NewFlag>) -> Result<(), JournalError> {
        let from = self.stands.unwrap_or_default();
        let to = to.max(self.seen);
        if to == from && flags.is_empty() {
            return Ok(());
        }
        let followup = Followup {
            follower: Some((NAME.to_owned(), self.stands)),
            from,
            to,
            rules: self.rules.rules.iter().map(row).collect(),
            flags,
            at_ms: Moment::unix_ms(),
        };
        if self.inner.journal.follow_up(followup).await? {
            self.stands = Some(to);
            self.wrote = Instant::now();
            return Ok(());
        }
        // Somebody else follows the same record, or what was acknowledged as failed was written: what stands there counts.
        self.stands = None;
        Err(JournalError::Write { reason: "the flags' place in the record is not where it was left".to_owned() })
    }

    fn tell(&self) {
        self.inner.followed.send_if_modified(|followed| {
            let changed = *followed != self.seen;
            *followed = self.seen;
            changed
        });
        let end = *self.inner.journal.watch_durable().borrow();
        self.inner.metrics.flag_lag.set(end.0.saturating_sub(self.seen.0) as i64);
    }

    fn count(&self, rules: &RuleSet, hits: &[Hit], counts: &[u64]) {
        for (rule, count) in rules.rules.iter().zip(counts) {
            self.inner.metrics.flag_looks.with_label_values(&[&rule.name]).inc_by(*count);
        }
        for hit in hits {
            let rule = &rules.rules[hit.rule];
            self.inner.metrics.flags.with_label_values(&[&rule.name]).inc();
            if rule.action == Action::Log {
                let (completion, reason) = (&hit.completion.id, &hit.finding.reason);
                tracing::warn!(
                    rule = rule.name,
                    completion,
                    model = hit.completion.model,
                    reason,
                    "an answer was flagged"
                );
            }
        }
    }
}

fn row(rule: &Rule) -> RuleRow {
    RuleRow { name: rule.name.clone(), version: rule.version, definition: rule.settled.to_string() }
}

fn flag(rules: &RuleSet, hit: &Hit) -> Option<NewFlag> {
    let rule = &rules.rules[hit.rule];
    match rule.action {
        Action::Flag | Action::Log => Some(NewFlag {
            choice: hit.choice,
            rule: rule.version,
            reason: hit.finding.reason.clone(),
            value: hit.finding.value,
        }),
        Action::Count => None,
    }
}
