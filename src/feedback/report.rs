//! Two versions of an adapter side by side: each figure with the interval of its difference, and what that allows one to say.
//!
//! Intervals share one error: with m comparisons each is made at 5 % / m (Bonferroni), so that of two versions that are the same,
//! 19 reports of 20 find no difference at all. They take answers for independent of each other; many answers to one user make them
//! narrower than they should be.

mod gather;
mod html;
mod metrics;

use serde::Serialize;

pub use gather::{Asked, ReportError};
pub use metrics::Ways;

use crate::{
    stats::{ALPHA, Moments, newcombe, welch},
    terms::{AdapterVersion, Digest},
};

/// Answers of each version, below which nothing is said.
pub const ENOUGH: usize = 200;
/// Values of each version, below which a mean is not compared.
const ENOUGH_VALUES: u64 = 30;
/// Points of a line.
const POINTS: usize = 24;

/// Two versions, or two halves of one, side by side. Differences are second − first.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub object: &'static str,
    pub adapter: String,
    /// Unix seconds.
    pub at: i64,
    pub first: Side,
    pub second: Side,
    /// Of the second beside the first.
    pub verdict: Verdict,
    /// The same in a sentence.
    pub summary: String,
    /// Answers that each version needs.
    pub needed: usize,
    pub comparisons: usize,
    /// The error that each interval allows itself.
    pub alpha: f64,
    pub metrics: Vec<Metric>,
    pub notes: Vec<String>,
}

/// One of two versions.
#[derive(Clone, Debug, Serialize)]
pub struct Side {
    pub version: Option<AdapterVersion>,
    pub base: Digest,
    /// `first half` and `second half`, where a version is held against itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub part: Option<&'static str>,
    /// Choices in the window.
    pub answers: usize,
    /// When the first and the last of them were asked for, in Unix seconds.
    pub from: Option<i64>,
    pub to: Option<i64>,
}

impl Side {
    pub fn label(&self) -> String {
        let version = self.version.as_ref().map_or_else(|| "base".to_owned(), AdapterVersion::short);
        self.part.map_or(version.clone(), |part| format!("{version}, {part}"))
    }
}

/// What may be said of the second beside the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    Better,
    Worse,
    /// Better in one thing and worse in another.
    Mixed,
    /// There is a difference, which is neither good nor bad by itself.
    Differs,
    CannotTell,
    NotEnough,
}

impl Verdict {
    pub const fn words(self) -> &'static str {
        match self {
            Self::Better => "better",
            Self::Worse => "worse",
            Self::Mixed => "mixed",
            Self::Differs => "differs",
            Self::CannotTell => "cannot tell",
            Self::NotEnough => "not enough",
        }
    }
}

/// Which way is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Good {
    Higher,
    Lower,
}

/// How a figure is to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// A share of answers, from 0 to 1; the difference is in points.
    Share,
    Tokens,
    /// Nats for each token.
    Nats,
    /// Seconds, as a geometric mean; the difference is the ratio second / first, and so is its interval.
    Seconds,
    /// Of feedback in numbers.
    Number,
}

/// One figure of both.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Metric {
    /// `endings/length`, `flags/loop`, `feedback/thumbs`, ….
    pub name: String,
    pub unit: Unit,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub good: Option<Good>,
    /// Whether it counts for the whole report's verdict.
    pub counts: bool,
    pub first: Figure,
    pub second: Figure,
    pub difference: Option<f64>,
    pub interval: Option<[f64; 2]>,
    pub verdict: Verdict,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<&'static str>,
}

/// A figure of one version.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Figure {
    pub value: Option<f64>,
    /// Answers that it is made of.
    pub of: u64,
    /// The same in the course of the window, the earliest first.
    pub course: Vec<Option<f64>>,
}

/// A metric before it is known how many there are.
#[derive(Clone, Debug)]
struct Drawn {
    name: String,
    unit: Unit,
    good: Option<Good>,
    counts: bool,
    values: [Vec<f64>; 2],
    note: Option<&'static str>,
}

impl Drawn {
    fn compare(self, alpha: f64, enough: bool) -> Metric {
        let [first, second] = &self.values;
        let (moments1, moments2): (Moments, Moments) =
            (first.iter().copied().collect(), second.iter().copied().collect());
        let interval = match self.unit {
            Unit::Share => newcombe(hits(first), hits(second), alpha),
            Unit::Tokens | Unit::Nats | Unit::Seconds | Unit::Number => Some((&moments1, &moments2))
                .filter(|(one, other)| one.count.min(other.count) >= ENOUGH_VALUES)
                .and_then(|(one, other)| welch(one, other, alpha)),
        };
        let difference = (moments1.count > 0 && moments2.count > 0).then_some(moments2.mean - moments1.mean);
        let verdict = match interval {
            _ if !enough => Verdict::NotEnough,
            Some((low, high)) if low > 0.0 || high < 0.0 => match self.good {
                None => Verdict::Differs,
                Some(Good::Higher) if low > 0.0 => Verdict::Better,
                Some(Good::Lower) if high < 0.0 => Verdict::Better,
                Some(_) => Verdict::Worse,
            },
            Some(_) => Verdict::CannotTell,
            None => Verdict::NotEnough,
        };
        // Times are compared by their logarithms: a ratio of geometric means, which one slow answer does not move.
        let shown = |value: f64| if self.unit == Unit::Seconds { value.exp() } else { value };
        Metric {
            first: figure(first, &moments1, shown),
            second: figure(second, &moments2, shown),
            difference: difference.map(shown),
            interval: interval.map(|(low, high)| [shown(low), shown(high)]),
            verdict,
            name: self.name,
            unit: self.unit,
            good: self.good,
            counts: self.counts,
            note: self.note,
        }
    }
}

/// Values of a share are 0 and 1.
fn hits(values: &[f64]) -> (u64, u64) {
    (values.iter().filter(|value| **value > 0.5).count() as u64, values.len() as u64)
}

fn figure(values: &[f64], moments: &Moments, shown: impl Fn(f64) -> f64) -> Figure {
    let course = (0..POINTS)
        .map(|at| {
            let (from, to) = (at * values.len() / POINTS, (at + 1) * values.len() / POINTS);
            let part: Moments = values[from..to].iter().copied().collect();
            (part.count > 0).then(|| shown(part.mean))
        })
        .collect();
    Figure { value: (moments.count > 0).then(|| shown(moments.mean)), of: moments.count, course }
}

impl Report {
    /// Puts two windows side by side.
    fn of(adapter: String, at: i64, sides: [Side; 2], drawn: Vec<Drawn>, mut notes: Vec<String>) -> Self {
        let [first, second] = sides;
        let enough = first.answers.min(second.answers) >= ENOUGH;
        let comparisons = drawn.len();
        let alpha = ALPHA / comparisons.max(1) as f64;
        let metrics: Vec<Metric> = drawn.into_iter().map(|drawn| drawn.compare(alpha, enough)).collect();
        let told = |verdict: Verdict| metrics.iter().filter(move |metric| metric.counts && metric.verdict == verdict);
        let verdict = match (enough, told(Verdict::Better).count(), told(Verdict::Worse).count()) {
            (false, _, _) => Verdict::NotEnough,
            (true, 0, 0) => Verdict::CannotTell,
            (true, _, 0) => Verdict::Better,
            (true, 0, _) => Verdict::Worse,
            (true, _, _) => Verdict::Mixed,
        };
        let names = |verdict: Verdict| told(verdict).map(|metric| metric.name.as_str()).collect::<Vec<_>>().join(", ");
        let (one, other) = (first.label(), second.label());
        let summary = match verdict {
            Verdict::NotEnough => format!(
                "not enough: {ENOUGH} answers of each are needed; {one} has {}, {other} has {}",
                first.answers, second.answers
            ),
            Verdict::Better => format!("{other} is better than {one} in {}", names(Verdict::Better)),
            Verdict::Worse => format!("{other} is worse than {one} in {}", names(Verdict::Worse)),
            Verdict::Mixed => format!(
                "{other} is better than {one} in {}, and worse in {}",
                names(Verdict::Better),
                names(Verdict::Worse)
            ),
            Verdict::CannotTell | Verdict::Differs => {
                format!("cannot tell {other} from {one}, after {} and {} answers", second.answers, first.answers)
            }
        };
        notes.push(format!(
            "each interval is at {:.2} %, so that {comparisons} of them together err once in twenty reports; log-probability says how \
             sure a version was, not whether it was right; times hang on the server's load as well",
            100.0 * (1.0 - alpha)
        ));
        Self {
            object: "adapter.report",
            adapter,
            at,
            first,
            second,
            verdict,
            summary,
            needed: ENOUGH,
            comparisons,
            alpha,
            metrics,
            notes,
        }
    }

    /// The whole as one page that needs nothing else.
    pub fn html(&self) -> String {
        html::page(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::SplitMix;

    fn side(answers: usize) -> Side {
        Side { version: None, base: Digest::of(b"base"), part: None, answers, from: None, to: None }
    }

    /// `of` answers of which about `per_mille` have something.
    fn share(random: &mut SplitMix, of: usize, per_mille: usize) -> Vec<f64> {
        (0..of).map(|_| f64::from(u8::from(random.below(1000) < per_mille))).collect()
    }

    fn drawn(name: &str, good: Option<Good>, values: [Vec<f64>; 2]) -> Drawn {
        Drawn { name: name.to_owned(), unit: Unit::Share, good, counts: good.is_some(), values, note: None }
    }

    fn report(drawn: Vec<Drawn>) -> Report {
        let answers = |at: usize| drawn.iter().map(|one| one.values[at].len()).max().unwrap_or(0);
        let sides = [side(answers(0)), side(answers(1))];
        Report::of("poet".to_owned(), 0, sides, drawn, Vec::new())
    }

    #[test]
    fn a_difference_is_called_by_the_way_that_is_good() {
        let mut random = SplitMix::new(1);
        let mut two = |one: usize, other: usize| [share(&mut random, 600, one), share(&mut random, 600, other)];
        let found = report(vec![
            drawn("flags/loop", Some(Good::Lower), two(20, 150)),
            drawn("feedback/thumbs", Some(Good::Higher), two(700, 690)),
            drawn("endings/odd", None, two(100, 300)),
        ]);
        let verdicts: Vec<Verdict> = found.metrics.iter().map(|metric| metric.verdict).collect();
        assert_eq!(verdicts, [Verdict::Worse, Verdict::CannotTell, Verdict::Differs]);
        assert_eq!(found.verdict, Verdict::Worse);
        assert!(found.summary.ends_with("worse than base in flags/loop"), "{}", found.summary);
        assert!((found.alpha - 0.05 / 3.0).abs() < 1e-12);
        let [low, high] = found.metrics[0].interval.unwrap();
        assert!(0.0 < low && low < 0.13 && 0.13 < high, "{low} {high}");
        let mixed =
            report(vec![drawn("a", Some(Good::Lower), two(20, 150)), drawn("b", Some(Good::Higher), two(300, 700))]);
        assert_eq!(mixed.verdict, Verdict::Mixed);
    }

    #[test]
    fn under_two_hundred_answers_nothing_is_said_however_clear_it_looks() {
        let found = report(vec![drawn("a", Some(Good::Lower), [vec![0.0; 199], vec![1.0; 400]])]);
        assert_eq!((found.verdict, found.metrics[0].verdict), (Verdict::NotEnough, Verdict::NotEnough));
        assert!(found.summary.contains("base has 199"), "{}", found.summary);
    }

    #[test]
    fn of_the_same_beside_itself_about_one_report_in_twenty_errs_at_most() {
        let mut random = SplitMix::new(3);
        let erring = (0..200)
            .filter(|_| {
                let all = (0..12).map(|at| {
                    let rate = [20, 50, 200, 500][at % 4];
                    let values = [share(&mut random, 400, rate), share(&mut random, 400, rate)];
                    drawn(&at.to_string(), Some(Good::Lower), values)
                });
                let all = all.collect();
                report(all).verdict != Verdict::CannotTell
            })
            .count();
        assert!(erring <= 18, "{erring} of 200 reports found a difference where there is none");
    }

    #[test]
    fn times_are_compared_as_ratios_and_their_course_is_kept() {
        let mut random = SplitMix::new(5);
        let mut times = |scale: f64| -> Vec<f64> {
            (0..480).map(|_| (scale * (0.5 + random.below(1000) as f64 / 1000.0)).ln()).collect()
        };
        let values = [times(1.0), times(1.5)];
        let drawn = Drawn {
            name: "times/total".to_owned(),
            unit: Unit::Seconds,
            good: Some(Good::Lower),
            counts: false,
            values,
            note: None,
        };
        let found = report(vec![drawn]);
        let metric = &found.metrics[0];
        let [low, high] = metric.interval.unwrap();
        assert!(low < 1.5 && 1.5 < high && (metric.difference.unwrap() - 1.5).abs() < 0.1, "{metric:?}");
        assert_eq!(
            (metric.verdict, found.verdict),
            (Verdict::Worse, Verdict::CannotTell),
            "load is not the version's fault"
        );
        assert_eq!(metric.first.course.len(), POINTS);
        assert!(metric.first.course.iter().all(|point| point.is_some_and(|point| (0.7..1.3).contains(&point))));
    }
}
