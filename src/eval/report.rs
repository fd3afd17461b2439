//! What an evaluation found: means by contender, score and tag, and every pair compared on the primary score.

use std::{collections::BTreeMap, fmt};

use serde::Serialize;

use super::{
    scorer::Scored,
    stats::{Comparison, Verdict, compare},
    suite::Suite,
};

/// One contender's answer to one item.
#[derive(Clone, Debug)]
pub struct Answer {
    pub text: String,
    pub prompt_tokens: u64,
    pub completion_tokens: u64,
    pub scores: Vec<Scored>,
}

/// Everything an evaluation found.
#[derive(Debug, Serialize)]
pub struct Report {
    pub suite: String,
    pub about: Option<String>,
    pub primary: String,
    pub items: usize,
    pub contenders: Vec<ContenderReport>,
    pub comparisons: Vec<Pair>,
}

/// One contender's figures.
#[derive(Debug, Serialize)]
pub struct ContenderReport {
    pub label: String,
    /// The version that answered, as the server named it.
    pub version: Option<String>,
    /// Items without an answer.
    pub failed: usize,
    pub mean_prompt_tokens: f64,
    pub mean_completion_tokens: f64,
    /// By score: its mean and how many items it is over.
    pub means: BTreeMap<String, Mean>,
    /// The primary score by tag.
    pub tags: BTreeMap<String, Mean>,
    pub answers: Vec<AnswerReport>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Mean {
    pub mean: f64,
    pub items: usize,
}

/// One answer in the JSON.
#[derive(Debug, Serialize)]
pub struct AnswerReport {
    pub id: String,
    pub answer: Option<String>,
    pub scores: BTreeMap<String, f64>,
    pub why: Vec<String>,
    pub error: Option<String>,
}

/// Two contenders on the items that both answered.
#[derive(Debug, Serialize)]
pub struct Pair {
    pub first: String,
    pub second: String,
    #[serde(flatten)]
    pub comparison: Comparison,
}

/// One contender's answers in the order of the suite's items; an error where there is none.
pub struct Asked {
    pub label: String,
    pub version: Option<String>,
    pub answers: Vec<Result<Answer, String>>,
}

impl Report {
    pub fn of(suite: &Suite, asked: Vec<Asked>) -> Self {
        let mut comparisons = Vec::new();
        for (index, first) in asked.iter().enumerate() {
            for second in &asked[index + 1..] {
                let both = first.answers.iter().zip(&second.answers);
                let pairs: Vec<(f64, f64)> =
                    both.filter_map(|(a, b)| Some((score(a, &suite.primary)?, score(b, &suite.primary)?))).collect();
                comparisons.extend(compare(&pairs).map(|comparison| Pair {
                    first: first.label.clone(),
                    second: second.label.clone(),
                    comparison,
                }));
            }
        }
        Self {
            suite: suite.name.clone(),
            about: suite.about.clone(),
            primary: suite.primary.clone(),
            items: suite.items.len(),
            contenders: asked.into_iter().map(|asked| ContenderReport::of(suite, asked)).collect(),
            comparisons,
        }
    }
}

fn score(answer: &Result<Answer, String>, name: &str) -> Option<f64> {
    answer.as_ref().ok()?.scores.iter().find(|scored| scored.name == name).map(|scored| scored.score)
}

impl ContenderReport {
    fn of(suite: &Suite, asked: Asked) -> Self {
        let (mut means, mut tags) = (BTreeMap::<String, Vec<f64>>::new(), BTreeMap::<String, Vec<f64>>::new());
        let (mut prompts, mut completions) = (Vec::new(), Vec::new());
        for (item, answer) in suite.items.iter().zip(&asked.answers) {
            let Ok(given) = answer else { continue };
            prompts.push(given.prompt_tokens as f64);
            completions.push(given.completion_tokens as f64);
            for scored in &given.scores {
                means.entry(scored.name.clone()).or_default().push(scored.score);
            }
            if let Some(score) = score(answer, &suite.primary) {
                item.tags.iter().for_each(|tag| tags.entry(tag.clone()).or_default().push(score));
            }
        }
        let summed = |all: BTreeMap<String, Vec<f64>>| {
            all.into_iter().map(|(name, scores)| (name, Mean { mean: mean(&scores), items: scores.len() })).collect()
        };
        let answers = suite.items.iter().zip(&asked.answers).map(|(item, answer)| AnswerReport::of(&item.id, answer));
        Self {
            failed: asked.answers.iter().filter(|answer| answer.is_err()).count(),
            answers: answers.collect(),
            label: asked.label,
            version: asked.version,
            mean_prompt_tokens: mean(&prompts),
            mean_completion_tokens: mean(&completions),
            means: summed(means),
            tags: summed(tags),
        }
    }
}

impl AnswerReport {
    fn of(id: &str, answer: &Result<Answer, String>) -> Self {
        let id = id.to_owned();
        match answer {
            Ok(answer) => Self {
                id,
                answer: Some(answer.text.clone()),
                scores: answer.scores.iter().map(|scored| (scored.name.clone(), scored.score)).collect(),
                why: answer.scores.iter().filter_map(|scored| scored.why.clone()).collect(),
                error: None,
            },
            Err(error) => {
                Self { id, answer: None, scores: BTreeMap::new(), why: Vec::new(), error: Some(error.clone()) }
            }
        }
    }
}

fn mean(values: &[f64]) -> f64 {
    // An empty sum of floats is -0.
    if values.is_empty() { 0.0 } else { values.iter().sum::<f64>() / values.len() as f64 }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: {} items; the verdict is about '{}'", self.suite, self.items, self.primary)?;
        let width = self.contenders.iter().map(|contender| contender.label.len()).max().unwrap_or(0).max(9);
        let mut names: Vec<&str> = self.contenders.iter().flat_map(|c| c.means.keys().map(String::as_str)).collect();
        names.sort_unstable();
        names.dedup();
        write!(f, "\n{:<width$}", "contender")?;
        names.iter().try_for_each(|name| write!(f, "  {:>w$}", name, w = name.len().max(6)))?;
        writeln!(f, "  prompt tokens  answer tokens  failed")?;
        for contender in &self.contenders {
            write!(f, "{:<width$}", contender.label)?;
            for name in &names {
                let w = name.len().max(6);
                match contender.means.get(*name) {
                    Some(mean) => write!(f, "  {:>w$.3}", mean.mean)?,
                    None => write!(f, "  {:>w$}", "-")?,
                }
            }
            let ContenderReport { mean_prompt_tokens, mean_completion_tokens, failed, .. } = contender;
            writeln!(f, "  {mean_prompt_tokens:>13.1}  {mean_completion_tokens:>13.1}  {failed:>6}")?;
        }
        self.write_tags(f, width)?;
        writeln!(f)?;
        for pair in &self.comparisons {
            let Comparison { difference, low, high, p, verdict, items } = pair.comparison;
            let told = match verdict {
                Verdict::SecondIsBetter => format!("{} is better", pair.second),
                Verdict::FirstIsBetter => format!("{} is better", pair.first),
                Verdict::CannotTell => "cannot tell".to_owned(),
            };
            write!(f, "{} − {}: {difference:+.3} [{low:+.3}, {high:+.3}]", pair.second, pair.first)?;
            match p {
                Some(p) => writeln!(f, ", McNemar p = {p:.2e}, n = {items}: {told}")?,
                None => writeln!(f, ", bootstrap 95 %, n = {items}: {told}")?,
            }
        }
        Ok(())
    }
}

impl Report {
    fn write_tags(&self, f: &mut fmt::Formatter<'_>, width: usize) -> fmt::Result {
        let mut tags: Vec<&str> = self.contenders.iter().flat_map(|c| c.tags.keys().map(String::as_str)).collect();
        tags.sort_unstable();
        tags.dedup();
        if tags.is_empty() {
            return Ok(());
        }
        writeln!(f, "\n'{}' by tag", self.primary)?;
        let tag_width = tags.iter().map(|tag| tag.len()).max().unwrap_or(0);
        write!(f, "{:<tag_width$}  items", "")?;
        self.contenders.iter().try_for_each(|c| write!(f, "  {:>width$}", c.label))?;
        writeln!(f)?;
        for tag in tags {
            let items = self.contenders.iter().filter_map(|c| c.tags.get(tag)).map(|m| m.items).max().unwrap_or(0);
            write!(f, "{tag:<tag_width$}  {items:>5}")?;
            for contender in &self.contenders {
                match contender.tags.get(tag) {
                    Some(mean) => write!(f, "  {:>width$.3}", mean.mean)?,
                    None => write!(f, "  {:>width$}", "-")?,
                }
            }
            writeln!(f)?;
        }
        Ok(())
    }
}
