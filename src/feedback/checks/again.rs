//! Questions that come again: whoever was helped does not ask twice.

use std::{collections::HashMap, time::Duration};

use serde::{Deserialize, Serialize};

use super::Finding;

/// When a user asks again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AskedAgain {
    /// Within this long.
    seconds: u64,
    /// How alike the two questions are, from 0 to 1.
    alike: f64,
}

impl Default for AskedAgain {
    fn default() -> Self {
        Self { seconds: 120, alike: 0.8 }
    }
}

/// Longer ones are looked for in vain: they would not be read as the same answer's doing.
const MOST_SECONDS: u64 = 24 * 3600;

impl AskedAgain {
    pub fn fault(&self) -> Option<String> {
        if !(1..=MOST_SECONDS).contains(&self.seconds) {
            return Some(format!("seconds is between 1 and {MOST_SECONDS}"));
        }
        (!(0.0..=1.0).contains(&self.alike) || self.alike < 0.3).then(|| "alike is between 0.3 and 1".to_owned())
    }

    pub fn window(&self) -> Duration {
        Duration::from_secs(self.seconds)
    }

    /// A finding for the first of two answers, where the second's question is the first's again. Times in milliseconds.
    pub fn look(&self, (first, first_ms): (&str, i64), (second, second_ms): (&str, i64)) -> Option<Finding> {
        let after = second_ms.checked_sub(first_ms).filter(|after| (0..=self.seconds as i64 * 1000).contains(after))?;
        let alike = likeness(first, second);
        (alike >= self.alike).then(|| Finding {
            reason: format!(
                "the same user asked again {:.0} s later, {:.0} % alike",
                after as f64 / 1000.0,
                alike * 100.0
            ),
            value: Some(alike),
        })
    }
}

/// Dice's coefficient of the trigrams of two texts, whatever their case and spaces.
fn likeness(one: &str, other: &str) -> f64 {
    let (one, other) = (normal(one), normal(other));
    if one == other {
        return if one.is_empty() { 0.0 } else { 1.0 };
    }
    let mut counts: HashMap<&[char], i64> = HashMap::new();
    let trigrams = one.windows(3).count() + other.windows(3).count();
    one.windows(3).for_each(|gram| *counts.entry(gram).or_default() += 1);
    let shared = other.windows(3).filter(|gram| {
        counts.get_mut(gram).is_some_and(|left| {
            *left -= 1;
            *left >= 0
        })
    });
    if trigrams == 0 { 0.0 } else { 2.0 * shared.count() as f64 / trigrams as f64 }
}

fn normal(text: &str) -> Vec<char> {
    text.split_whitespace().collect::<Vec<_>>().join(" ").to_lowercase().chars().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(first: &str, second: &str, after_ms: i64) -> Option<String> {
        AskedAgain::default().look((first, 1000), (second, 1000 + after_ms)).map(|finding| finding.reason)
    }

    #[test]
    fn the_same_question_soon_after_is_found_with_small_changes_too() {
        let question = "The drive belt of Norvik HX-310 has snapped, what now?";
        assert_eq!(found(question, question, 40_000).unwrap(), "the same user asked again 40 s later, 100 % alike");
        assert!(found(question, "the drive belt of norvik HX-310 has snapped.  What now??", 5000).is_some());
        assert!(found(question, "Please: the drive belt of Norvik HX-310 has snapped, what now?", 5000).is_some());
    }

    #[test]
    fn another_question_or_the_same_one_much_later_is_not() {
        let question = "The drive belt of Norvik HX-310 has snapped, what now?";
        assert_eq!(found(question, "How do I order a new drive belt?", 5000), None);
        assert_eq!(found(question, question, 121_000), None);
        assert_eq!(found(question, question, -1), None);
        assert_eq!(found("", "", 5), None);
    }
}
