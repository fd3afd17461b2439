//! What a report is asked for, and the rows that answer it.

use std::collections::{BTreeMap, HashSet};

use super::{
    super::{
        Flags,
        checks::Check,
        rules::{Rule, RuleSet},
    },
    Report, Side,
    metrics::{Compared, Looked, Rows, Ways, draw},
};
use crate::{
    journal::{Cursor, Journal, JournalError, KeptRule, Measure, Served},
    terms::{AdapterVersion, Moment},
};

/// The most answers of each version in a window, unless more are asked for.
const WINDOW: usize = 20_000;

/// What a report is asked for.
#[derive(Clone, Debug, Default)]
pub struct Asked {
    /// The adapter's name; `None` is the base alone.
    pub adapter: Option<String>,
    /// As people and the report name it.
    pub label: String,
    /// Beginnings of two versions, the earlier first; `None` is the version in force and the one that answered before it.
    pub versions: Option<[String; 2]>,
    /// The version that the name points at.
    pub current: Option<AdapterVersion>,
    /// Only answers since then, in Unix milliseconds.
    pub since_ms: Option<i64>,
    /// The last answers of each version; 20,000 if absent.
    pub last: Option<usize>,
    /// Names of feedback of which more, or less, is better.
    pub ways: Ways,
}

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    #[error("'{adapter}' has given no answer that is on record")]
    Nothing { adapter: String },
    #[error(
        "only version {only} of '{adapter}' has answers on record; name a second one, or the same twice to see what chance does"
    )]
    One { adapter: String, only: String },
    #[error("no version of '{adapter}' that begins with '{prefix}' has answers on record; there are {known}")]
    Unknown { adapter: String, prefix: String, known: String },
    #[error("several versions of '{adapter}' begin with '{prefix}': {known}")]
    Ambiguous { adapter: String, prefix: String, known: String },
    #[error(transparent)]
    Journal(#[from] JournalError),
}

impl Flags {
    /// Two versions side by side.
    ///
    /// # Errors
    /// [`ReportError`].
    pub async fn report(&self, asked: Asked) -> Result<Report, ReportError> {
        let journal = &self.0.journal;
        let served = journal.served(asked.adapter.clone()).await?;
        let [first, second] = choose(&asked, &served)?;
        let same = first.number == second.number;
        let rules = self.loaded().rules;
        let kept = journal.flag_rules().await?;
        let window = (asked.since_ms.unwrap_or(i64::MIN), asked.last.unwrap_or(WINDOW).max(1));
        let mut sides = Vec::with_capacity(2);
        for version in [&first, &second] {
            // Both halves of one version come from one reading.
            let rows = match sides.first() {
                Some(rows) if same => Rows::clone(rows),
                _ => gather(journal, version, window, &rules, &kept).await?,
            };
            sides.push(rows);
        }
        if same {
            for (half, rows) in sides.iter_mut().enumerate() {
                rows.measures.retain(|measure| half_of(measure) == half);
                let completions: HashSet<u64> = rows.measures.iter().map(|measure| measure.completion).collect();
                rows.said.retain(|said| completions.contains(&said.completion));
            }
        }
        let mut notes = Vec::new();
        if same {
            notes.push(
                "one version against itself, its answers divided by chance: what differs here is chance".to_owned(),
            );
        }
        if first.base != second.base {
            notes.push("the two ran on different bases".to_owned());
        }
        let compared: Vec<Compared> = rules
            .rules
            .iter()
            .map(|rule| Compared {
                name: rule.name.clone(),
                version: rule.version,
                by_budget: matches!(rule.check, Check::LowConfidence(_)),
            })
            .collect();
        // A report takes some milliseconds of computing; the runtime has others to serve.
        let made = tokio::task::spawn_blocking(move || {
            let described = [(&first, 0), (&second, 1)].map(|(version, at)| describe(version, &sides[at], at, same));
            let drawn = draw([&sides[0], &sides[1]], &compared, &asked.ways);
            Report::of(asked.label, Moment::unix_ms() / 1000, described, drawn, notes)
        });
        made.await.map_err(|error| JournalError::Read { reason: error.to_string() }.into())
    }
}

/// By a hash of the completion, so that choices of one request stay together.
fn half_of(measure: &Measure) -> usize {
    let mixed = measure.completion.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 63) as usize
}

fn describe(served: &Served, rows: &Rows, at: usize, same: bool) -> Side {
    let times = rows.measures.iter().map(|measure| measure.at_ms / 1000);
    Side {
        version: served.version,
        base: served.base,
        part: same.then(|| ["first half", "second half"][at]),
        answers: rows.measures.len(),
        from: times.clone().min(),
        to: times.max(),
    }
}

/// The two that are asked for: named, or the one in force and the one that answered last before it.
fn choose(asked: &Asked, served: &[Served]) -> Result<[Served; 2], ReportError> {
    let adapter = asked.label.clone();
    let shown = |served: &Served| served.version.as_ref().map_or_else(|| "base".to_owned(), AdapterVersion::short);
    let known = || served.iter().map(shown).collect::<Vec<_>>().join(", ");
    if served.is_empty() {
        return Err(ReportError::Nothing { adapter });
    }
    if let Some([one, other]) = &asked.versions {
        let find = |prefix: &String| {
            let found: Vec<&Served> = served
                .iter()
                .filter(|served| match &served.version {
                    Some(version) => version.0.starts_with(prefix),
                    None => served.base.starts_with(prefix) || prefix == "base",
                })
                .collect();
            let mut versions: Vec<_> = found.iter().map(|served| served.version).collect();
            versions.dedup();
            match (found.first(), versions.len()) {
                (None, _) => {
                    Err(ReportError::Unknown { adapter: adapter.clone(), prefix: prefix.clone(), known: known() })
                }
                // The same version on several bases: the one that answered last.
                (Some(found), 1) => Ok((*found).clone()),
                (Some(_), _) => {
                    Err(ReportError::Ambiguous { adapter: adapter.clone(), prefix: prefix.clone(), known: known() })
                }
            }
        };
        return Ok([find(one)?, find(other)?]);
    }
    let second = served.iter().find(|served| served.version == asked.current).unwrap_or(&served[0]);
    let first = served.iter().find(|served| (served.base, served.version) != (second.base, second.version));
    match first {
        Some(first) => Ok([first.clone(), second.clone()]),
        None => Err(ReportError::One { adapter, only: shown(second) }),
    }
}

async fn gather(
    journal: &Journal,
    served: &Served,
    (since_ms, last): (i64, usize),
    rules: &RuleSet,
    kept: &[KeptRule],
) -> Result<Rows, JournalError> {
    let measures = journal.measures(served.number, since_ms, last).await?;
    let Some(from) = measures.first().map(|measure| measure.choice) else { return Ok(Rows::default()) };
    let oldest = measures.iter().map(|measure| measure.completion).min().unwrap_or_default();
    let completions: HashSet<u64> = measures.iter().map(|measure| measure.completion).collect();
    let mut said = journal.said(served.number, oldest).await?;
    said.retain(|said| completions.contains(&said.completion));
    let marks = journal.marks(served.number, from).await?;
    let picky = rules.rules.iter().any(|rule| !rule.takes_all());
    let facts = if picky { journal.answer_facts(served.number, from).await? } else { Vec::new() };
    let mut looked = BTreeMap::new();
    for rule in &rules.rules {
        let Some(spans) = kept.iter().find(|kept| kept.rule.version == rule.version).map(|kept| &kept.spans) else {
            continue;
        };
        let within = |choice: Cursor| spans.iter().any(|(first, last)| *first < choice && choice <= *last);
        let ends = [measures.first(), measures.last()].map(|end| end.map(|measure| measure.choice));
        let whole = spans.iter().any(|(first, last)| ends.iter().flatten().all(|end| first < end && end <= last));
        let wanted = match (rule.takes_all(), whole) {
            (true, true) => Looked::All,
            (true, false) => {
                Looked::These(measures.iter().map(|measure| measure.choice).filter(|choice| within(*choice)).collect())
            }
            (false, _) => Looked::These(wanted_by(rule, served, &facts, within)),
        };
        looked.insert(rule.version, wanted);
    }
    Ok(Rows { measures, marks, said, looked })
}

fn wanted_by(
    rule: &Rule,
    served: &Served,
    facts: &[crate::journal::AnswerFact],
    within: impl Fn(Cursor) -> bool,
) -> HashSet<Cursor> {
    let wanted = facts.iter().filter(|fact| within(fact.choice) && rule.concerns_fact(fact, served.version.as_ref()));
    wanted.map(|fact| fact.choice).collect()
}
