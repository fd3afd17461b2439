//! Answers that go round and round.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::Finding;

/// When a repetition is a loop. A unit is a word, or a character that belongs to none.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Loop {
    /// The same units this many times in a row …
    repeats: usize,
    /// … and this many units in all.
    units: usize,
    /// Or this share of the answer are runs of eight units that stood in it before, where the answer is long enough.
    share: f64,
}

impl Default for Loop {
    fn default() -> Self {
        Self { repeats: 4, units: 24, share: 0.5 }
    }
}

/// The longest period that is looked for, in units.
const MAX_PERIOD: usize = 96;
/// Units of one run, for the share.
const RUN: usize = 8;
/// Letters that a word has at most.
const LONG_WORD: usize = 32;
/// An answer shorter than this repeats nothing by its share.
const LONG: usize = 64;

impl Loop {
    pub fn fault(&self) -> Option<String> {
        if self.repeats < 2 || self.units < 2 {
            return Some("repeats and units have to be at least 2".to_owned());
        }
        (!(0.0..=1.0).contains(&self.share) || self.share == 0.0).then(|| "share has to be above 0, up to 1".to_owned())
    }

    pub fn look(&self, answer: &str) -> Option<Finding> {
        let units = Units::of(answer);
        if let Some((period, length)) = units.longest_run(self.repeats)
            && length >= self.units
        {
            let times = length / period;
            let what = if period == 1 { "the same word".to_owned() } else { format!("the same {period} words") };
            let reason = format!("{what} {times} times in a row");
            return Some(Finding { reason, value: Some(times as f64) });
        }
        let share = units.repeated_share();
        (share >= self.share).then(|| Finding {
            reason: format!("{:.0} % of the answer is text that stood in it before", share * 100.0),
            value: Some(share),
        })
    }
}

/// A text as numbers, equal for equal words.
struct Units {
    units: Vec<u32>,
    /// Whether a unit is a word.
    words: Vec<bool>,
}

impl Units {
    fn of(text: &str) -> Self {
        let mut numbers: HashMap<&str, u32> = HashMap::new();
        let (mut units, mut words) = (Vec::new(), Vec::new());
        let mut rest = text;
        while let Some(first) = rest.chars().next() {
            // Scripts without spaces have a unit for each character.
            let joins = |c: char| c.is_alphanumeric() && !is_ideograph(c);
            let end =
                if joins(first) { rest.find(|c: char| !joins(c)).unwrap_or(rest.len()) } else { first.len_utf8() };
            let (unit, after) = rest.split_at(end);
            rest = after;
            if first.is_whitespace() && first != '\n' {
                continue;
            }
            // What is longer than a word is looked at letter by letter: it may go round within itself.
            let step = if unit.chars().nth(LONG_WORD).is_some() { 1 } else { usize::MAX };
            let mut letters = unit;
            while !letters.is_empty() {
                let end = letters.char_indices().nth(step).map_or(letters.len(), |(end, _)| end);
                let (part, after) = letters.split_at(end);
                letters = after;
                let next = numbers.len() as u32;
                units.push(*numbers.entry(part).or_insert(next));
                words.push(first.is_alphabetic());
            }
        }
        Self { units, words }
    }

    /// The longest stretch of units with one period at least `repeats` times: its period and its length. Lines of a table, rules
    /// and rows of figures have no word in them, and are no loop.
    fn longest_run(&self, repeats: usize) -> Option<(usize, usize)> {
        let units = &self.units;
        let mut longest: Option<(usize, usize)> = None;
        for period in 1..=MAX_PERIOD.min(units.len() / repeats) {
            let mut same = 0;
            for at in period..units.len() {
                same = if units[at] == units[at - period] { same + 1 } else { 0 };
                let length = same + period;
                // A shorter period says the same of a stretch, and was looked at first.
                if length >= repeats * period
                    && longest.is_none_or(|(_, known)| length > known)
                    && self.words[at + 1 - period..=at].contains(&true)
                {
                    longest = Some((period, length));
                }
            }
        }
        longest
    }

    /// Which share of the units ends a run that stood in the text before.
    fn repeated_share(&self) -> f64 {
        if self.units.len() < LONG {
            return 0.0;
        }
        let mut seen = std::collections::HashSet::new();
        let runs = self.units.windows(RUN).zip(self.words.windows(RUN));
        let (mut all, mut repeated) = (0usize, 0usize);
        for (run, _) in runs.filter(|(_, words)| words.contains(&true)) {
            all += 1;
            repeated += usize::from(!seen.insert(run));
        }
        if all == 0 { 0.0 } else { repeated as f64 / all as f64 }
    }
}

fn is_ideograph(c: char) -> bool {
    matches!(c, '\u{0e00}'..='\u{0eff}' | '\u{1000}'..='\u{109f}' | '\u{1780}'..='\u{17ff}' | '\u{2e80}'..='\u{9fff}' | '\u{f900}'..='\u{faff}' | '\u{20000}'..='\u{3ffff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(answer: &str) -> Option<String> {
        Loop::default().look(answer).map(|finding| finding.reason)
    }

    #[test]
    fn a_word_without_end_goes_round_and_a_long_word_does_not() {
        for looped in ["a".repeat(60), format!("It is {}", "hahaha".repeat(20))] {
            assert!(reason(&looped).is_some(), "{looped}");
        }
        assert_eq!(reason("Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft"), None);
    }

    #[test]
    fn a_loop_is_found_whatever_its_period_and_wherever_it_stands() {
        assert_eq!(reason(&"rain ".repeat(30)).unwrap(), "the same word 30 times in a row");
        assert_eq!(reason(&"the rain falls, ".repeat(9)).unwrap(), "the same 4 words 9 times in a row");
        let sentence = "The pump has to be checked by the service team before the line is started again.\n";
        assert!(reason(&sentence.repeat(5)).is_some());
        assert!(reason(&format!("Well. {} And so it ended.", "no more of it ".repeat(12))).is_some());
        assert!(reason(&"雨が降る。".repeat(12)).is_some());
    }

    #[test]
    fn text_that_comes_back_with_small_changes_is_found_by_its_share() {
        let mut answer = String::new();
        for number in 0..12 {
            answer += &format!("{number}. Check the oil level and call the service team if it is too low.\n");
        }
        assert!(reason(&answer).unwrap().contains("stood in it before"));
    }

    #[test]
    fn ordinary_text_lists_tables_and_figures_are_no_loops() {
        let list =
            "1. Open the valve.\n2. Check the pressure.\n3. Call the service team.\n4. Close the valve.\n".to_owned();
        let table = format!("| name | value |\n{}\n| a | 1 |\n| b | 2 |\n", "| --- ".repeat(40));
        let zeros = "0, ".repeat(60);
        let json = r#"{"category": "mechanical", "urgency": "high", "machine": "Norvik HX-310"}"#.to_owned();
        let laugh = "ha ha ha ha ha".to_owned();
        let prose = include_str!("../../../benches/reading.txt").chars().take(6000).collect::<String>();
        for fine in [list, table, zeros, json, laugh, String::new(), prose] {
            assert_eq!(reason(&fine), None, "{fine}");
        }
    }

    #[test]
    fn bounds_that_find_everything_are_refused() {
        assert!(Loop { repeats: 1, ..Loop::default() }.fault().is_some());
        assert!(Loop { share: 0.0, ..Loop::default() }.fault().is_some());
        assert!(Loop::default().fault().is_none());
    }
}
