//! From rows of the record to the figures of a report.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::{Drawn, Good, Unit};
use crate::{
    journal::{Cursor, FlagMark, Measure, Said},
    terms::{Digest, Ending, FinishReason},
};

/// One side's rows.
#[derive(Clone, Debug, Default)]
pub struct Rows {
    pub measures: Vec<Measure>,
    pub marks: Vec<FlagMark>,
    pub said: Vec<Said>,
    /// By rule: the choices that it has looked at.
    pub looked: BTreeMap<Digest, Looked>,
}

/// Which of a window's choices a rule has looked at.
#[derive(Clone, Debug)]
pub enum Looked {
    All,
    These(HashSet<Cursor>),
}

impl Looked {
    fn at(&self, choice: Cursor) -> bool {
        match self {
            Self::All => true,
            Self::These(choices) => choices.contains(&choice),
        }
    }
}

/// A rule whose flags are compared.
#[derive(Clone, Debug)]
pub struct Compared {
    pub name: String,
    pub version: Digest,
    /// Whether its flags are few by construction, so that their number says nothing.
    pub by_budget: bool,
}

/// The ways that feedback of a name is good, where its owner says so.
#[derive(Clone, Debug, Default)]
pub struct Ways {
    pub higher: BTreeSet<String>,
    pub lower: BTreeSet<String>,
}

impl Ways {
    fn of(&self, name: &str) -> Option<Good> {
        match (self.higher.contains(name), self.lower.contains(name)) {
            (true, _) => Some(Good::Higher),
            (false, true) => Some(Good::Lower),
            (false, false) if name == THUMBS => Some(Good::Higher),
            (false, false) => None,
        }
    }
}

const THUMBS: &str = "thumbs";
/// Names of feedback that are compared; the rest is left out, and said.
pub const MOST_NAMES: usize = 24;

/// Every figure of both sides.
pub fn draw(sides: [&Rows; 2], rules: &[Compared], ways: &Ways) -> Vec<Drawn> {
    let mut drawn = endings(sides);
    drawn.extend(rules.iter().filter_map(|rule| flags(sides, rule)));
    drawn.extend(judged(sides, ways));
    drawn.push(corrections(sides));
    drawn.extend(figures(sides));
    drawn
}

fn each(sides: [&Rows; 2], value: impl Fn(&Measure) -> Option<f64>) -> [Vec<f64>; 2] {
    sides.map(|rows| rows.measures.iter().filter_map(&value).collect())
}

fn endings(sides: [&Rows; 2]) -> Vec<Drawn> {
    let share = |name: &str, counts: bool, is: fn(Ending) -> bool| Drawn {
        name: format!("endings/{name}"),
        unit: Unit::Share,
        good: Some(Good::Lower),
        counts,
        values: each(sides, |measure| Some(f64::from(u8::from(is(measure.ending))))),
        note: None,
    };
    vec![
        share("length", true, |ending| ending == Ending::Finished(FinishReason::Length)),
        share("client_left", true, |ending| ending == Ending::ClientLeft),
        // A shutdown is not the version's fault.
        share("failed", false, |ending| matches!(ending, Ending::Failed | Ending::CutOff)),
    ]
}

/// `None` where a rule has looked at nothing of one side.
fn flags(sides: [&Rows; 2], rule: &Compared) -> Option<Drawn> {
    let values = sides.map(|rows| {
        let looked = rows.looked.get(&rule.version);
        let flagged: HashSet<Cursor> =
            rows.marks.iter().filter(|mark| mark.rule == rule.version).map(|mark| mark.choice).collect();
        let choices = rows.measures.iter().filter(|measure| looked.is_some_and(|looked| looked.at(measure.choice)));
        choices.map(|measure| f64::from(u8::from(flagged.contains(&measure.choice)))).collect::<Vec<f64>>()
    });
    if values.iter().any(Vec::is_empty) {
        return None;
    }
    let good = (!rule.by_budget).then_some(Good::Lower);
    Some(Drawn {
        name: format!("flags/{}", rule.name),
        unit: Unit::Share,
        good,
        counts: good.is_some(),
        values,
        note: rule.by_budget.then_some("each version is held against its own answers: the share is set by the budget"),
    })
}

/// Feedback by name: of each answer, what was said of it last.
fn judged(sides: [&Rows; 2], ways: &Ways) -> Vec<Drawn> {
    let mut names: BTreeMap<&str, bool> = BTreeMap::new();
    for said in sides.iter().flat_map(|rows| &rows.said).filter(|said| said.number.is_some()) {
        let boolean = names.entry(&said.name).or_insert(true);
        *boolean &= said.is_boolean;
    }
    let drawn = names.into_iter().take(MOST_NAMES).map(|(name, boolean)| {
        let values = sides.map(|rows| {
            let mut last: HashMap<(u64, Option<u32>), (usize, f64)> = HashMap::new();
            for (at, said) in rows.said.iter().enumerate().filter(|(_, said)| said.name == name) {
                if let Some(number) = said.number {
                    last.insert((said.completion, said.choice), (at, number));
                }
            }
            let mut values: Vec<(usize, f64)> = last.into_values().collect();
            values.sort_by_key(|(at, _)| *at);
            values.into_iter().map(|(_, number)| number).collect::<Vec<f64>>()
        });
        let good = ways.of(name);
        Drawn {
            name: format!("feedback/{name}"),
            unit: if boolean { Unit::Share } else { Unit::Number },
            good,
            counts: good.is_some(),
            values,
            note: None,
        }
    });
    drawn.filter(|drawn| drawn.values.iter().all(|values| !values.is_empty())).collect()
}

fn corrections(sides: [&Rows; 2]) -> Drawn {
    let values = sides.map(|rows| {
        let corrected: HashSet<(u64, Option<u32>)> = rows
            .said
            .iter()
            .filter(|said| said.corrects && said.by_person)
            .map(|said| (said.completion, said.choice))
            .collect();
        let of = |measure: &Measure| {
            corrected.contains(&(measure.completion, None))
                || corrected.contains(&(measure.completion, Some(measure.position)))
        };
        rows.measures.iter().map(|measure| f64::from(u8::from(of(measure)))).collect()
    });
    Drawn {
        name: "corrections".to_owned(),
        unit: Unit::Share,
        good: Some(Good::Lower),
        counts: true,
        values,
        note: Some("by people; later answers have had less time to be corrected"),
    }
}

fn figures(sides: [&Rows; 2]) -> Vec<Drawn> {
    let ended = |measure: &Measure| matches!(measure.ending, Ending::Finished(_));
    let plain = |name: &str, unit: Unit, values: [Vec<f64>; 2]| Drawn {
        name: name.to_owned(),
        unit,
        good: None,
        counts: false,
        values,
        note: None,
    };
    let seconds = |us: u64| (us.max(1) as f64 / 1e6).ln();
    let time =
        |name: &str, values: [Vec<f64>; 2]| Drawn { good: Some(Good::Lower), ..plain(name, Unit::Seconds, values) };
    vec![
        plain("mean_logprob", Unit::Nats, each(sides, |measure| measure.mean_logprob.filter(|_| ended(measure)))),
        plain("answer_tokens", Unit::Tokens, each(sides, |measure| ended(measure).then_some(measure.tokens as f64))),
        plain("prompt_tokens", Unit::Tokens, each(sides, |measure| Some(measure.prompt_tokens as f64))),
        time("times/first_token", each(sides, |measure| measure.first_token_us.map(seconds))),
        time("times/total", each(sides, |measure| ended(measure).then(|| seconds(measure.total_us)))),
    ]
}
