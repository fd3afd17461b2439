//! The tests of a trial and their bounds. Figures are natural logarithms, for each token.
//!
//! The bounds were set from what `a_planted_fault_is_caught_and_healthy_adapters_are_not_refused` prints, on the demo model:
//! healthy adapters part from the base by 0.36 to 1.04 on the fixed texts (1.86 at most on the tiny model with random
//! weights), one with ten times its scale by 7.3 and 21. Of golden answers that the base misses by 2.4 and 5.9, healthy
//! adapters miss 0.06 and 0.18, and damaged ones, or those of another base, 2.4 to 14.9: about what the base misses, or more.

use serde::{Deserialize, Serialize};

use crate::{adapters::GoldenAnswer, terms::Hasher};

/// A candidate whose scores are all this near the base's changes nothing: rounding on a GPU may move them so far.
const NO_DIFFERENCE: f64 = 1e-4;
/// How far the log-probabilities of the fixed texts' tokens may part from the base's, on average.
pub const MAX_MEAN_GAP: f64 = 3.0;
/// How much less likely, for each token, a golden answer may be than its card says.
pub const GOLDEN_TOLERANCE: f64 = 0.25;
/// Where the card says nothing: the share of what the base misses of certainty that the adapter may still miss.
const GOLDEN_SHARE: f64 = 0.75;
/// Golden answers that are this near certainty are fine whatever the base makes of them.
const GOLDEN_SURE: f64 = -0.25;

/// What a trial found.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// The first test that failed, and what it found.
    pub failed: Option<(String, String)>,
    pub figures: Figures,
}

/// What was measured.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// Tokens of the fixed texts.
    pub tokens: usize,
    /// How far their log-probabilities part from the base's: on average, and at most.
    pub mean_gap: f64,
    pub max_gap: f64,
    pub golden: Vec<AnswerFigures>,
}

/// One golden answer: the mean log-probability of its tokens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AnswerFigures {
    pub base: f64,
    pub candidate: f64,
    /// What the card says.
    pub recorded: Option<f64>,
}

/// Log-probabilities by sequence and token, of the base and of the candidate.
#[derive(Default)]
pub struct Read {
    pub base: Vec<Vec<f32>>,
    pub candidate: Vec<Vec<f32>>,
    pub golden_base: Vec<Vec<f32>>,
    pub golden_candidate: Vec<Vec<f32>>,
}

impl Verdict {
    fn failed(test: &str, reason: String, figures: Figures) -> Self {
        Self { failed: Some((test.to_owned(), reason)), figures }
    }

    pub fn not_finite() -> Self {
        let reason = "its scores are not finite".to_owned();
        Self::failed("finite", reason, Figures::default())
    }

    pub fn unreadable(reason: String) -> Self {
        Self::failed("golden", reason, Figures::default())
    }
}

/// What the figures are judged by, for the suite's digest.
pub fn rules() -> Hasher {
    let rules = [NO_DIFFERENCE, MAX_MEAN_GAP, GOLDEN_TOLERANCE, GOLDEN_SHARE, GOLDEN_SURE];
    rules.iter().fold(Hasher::new().part("rules", b"1"), |hasher, rule| hasher.part("bound", &rule.to_le_bytes()))
}

pub fn judge(read: &Read, golden: &[GoldenAnswer]) -> Verdict {
    let gaps = |base: &[Vec<f32>], candidate: &[Vec<f32>]| -> Vec<f64> {
        let pairs = base.iter().flatten().zip(candidate.iter().flatten());
        pairs.map(|(base, candidate)| (f64::from(*base) - f64::from(*candidate)).abs()).collect()
    };
    let texts = gaps(&read.base, &read.candidate);
    let answers = read.golden_base.iter().zip(&read.golden_candidate).zip(golden);
    let figures = Figures {
        tokens: texts.len(),
        mean_gap: mean(texts.iter().copied()),
        max_gap: texts.iter().copied().fold(0.0, f64::max),
        golden: answers
            .map(|((base, candidate), golden)| AnswerFigures {
                base: mean(base.iter().copied().map(f64::from)),
                candidate: mean(candidate.iter().copied().map(f64::from)),
                recorded: golden.logprob,
            })
            .collect(),
    };
    let most = gaps(&read.golden_base, &read.golden_candidate).into_iter().fold(figures.max_gap, f64::max);
    if most <= NO_DIFFERENCE {
        let reason = format!("it changes nothing: no score parts from the base's by more than {most:.6}");
        return Verdict::failed("no_op", reason, figures);
    }
    if figures.mean_gap > MAX_MEAN_GAP {
        let reason = format!(
            "its log-probabilities of plain text part from the base's by {:.2} for each token; {MAX_MEAN_GAP} are allowed",
            figures.mean_gap
        );
        return Verdict::failed("divergence", reason, figures);
    }
    match golden_fault(&figures.golden) {
        Some(reason) => Verdict::failed("golden", reason, figures),
        None => Verdict { failed: None, figures },
    }
}

/// Answers with a figure in the card are held to it, one by one. The others are judged together: the adapter has to make
/// them clearly more likely than the base does.
fn golden_fault(answers: &[AnswerFigures]) -> Option<String> {
    for (index, answer) in answers.iter().enumerate() {
        if let Some(recorded) = answer.recorded
            && answer.candidate < recorded - GOLDEN_TOLERANCE
        {
            return Some(format!(
                "golden answer {} has a log-probability of {:.3} for each token; its card says {recorded:.3}, and \
                 {GOLDEN_TOLERANCE} less are allowed",
                index + 1,
                answer.candidate
            ));
        }
    }
    let silent: Vec<&AnswerFigures> = answers.iter().filter(|answer| answer.recorded.is_none()).collect();
    if silent.is_empty() {
        return None;
    }
    let base = mean(silent.iter().map(|answer| answer.base));
    let candidate = mean(silent.iter().map(|answer| answer.candidate));
    let least = GOLDEN_SURE.min(GOLDEN_SHARE * base);
    (candidate < least).then(|| {
        format!(
            "the golden answers have a log-probability of {candidate:.3} for each token, with the base alone {base:.3}; \
             at least {least:.3} is wanted"
        )
    })
}

fn mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let count = values.len();
    if count == 0 { 0.0 } else { values.sum::<f64>() / count as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(candidate: f32) -> Read {
        Read { base: vec![vec![-2.0; 4]], candidate: vec![vec![candidate; 4]], ..Read::default() }
    }

    fn answered(base: f32, candidate: f32, recorded: Option<f64>) -> Verdict {
        let golden = GoldenAnswer { prompt: "a".to_owned(), answer: "b".to_owned(), logprob: recorded };
        let read = Read { golden_base: vec![vec![base; 3]], golden_candidate: vec![vec![candidate; 3]], ..read(-2.5) };
        judge(&read, &[golden])
    }

    fn test(verdict: &Verdict) -> Option<&str> {
        verdict.failed.as_ref().map(|(test, _)| test.as_str())
    }

    #[test]
    fn plain_text_tells_what_changes_nothing_and_what_changes_all() {
        assert_eq!(test(&judge(&read(-2.0), &[])), Some("no_op"));
        assert_eq!(test(&judge(&read(-2.001), &[])), None);
        assert_eq!(test(&judge(&read(-4.9), &[])), None);
        let far = judge(&read(-5.1), &[]);
        assert_eq!(test(&far), Some("divergence"));
        assert!(far.failed.unwrap().1.contains("3.10"));
    }

    #[test]
    fn an_answer_is_held_to_its_card_or_has_to_gain_on_the_base() {
        for (base, candidate, recorded, fails) in [
            (-3.0, -0.1, Some(-0.1), false),
            (-3.0, -0.34, Some(-0.1), false),
            (-3.0, -0.36, Some(-0.1), true),
            (-3.0, -0.1, Some(-1.0), false),
            (-3.0, -0.1, None, false),
            (-3.0, -2.2, None, false),
            (-3.0, -2.3, None, true),
            (-3.0, -9.0, None, true),
            // What the base knows already can hardly gain.
            (-0.1, -0.2, None, false),
            (-0.1, -0.3, None, true),
        ] {
            let verdict = answered(base, candidate, recorded);
            assert_eq!(test(&verdict).is_some(), fails, "{base} {candidate} {recorded:?}: {verdict:?}");
        }
    }

    #[test]
    fn an_adapter_that_differs_in_its_golden_answers_alone_is_no_no_op() {
        let mut silent = read(-2.0);
        silent.golden_base = vec![vec![-3.0]];
        silent.golden_candidate = vec![vec![-0.1]];
        let golden = GoldenAnswer { prompt: "a".to_owned(), answer: "b".to_owned(), logprob: None };
        assert_eq!(judge(&silent, &[golden]).failed, None);
    }
}
