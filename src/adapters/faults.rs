use std::collections::BTreeMap;

use super::{Refusal, RefusalCode};

/// Collects every fault of one adapter. Of one kind the first few are listed in full and the rest are counted: an
/// adapter made for another base has hundreds of tensors that do not fit.
#[derive(Default)]
pub struct Faults {
    list: Vec<Refusal>,
    counts: BTreeMap<&'static str, usize>,
}

impl Faults {
    const LISTED: usize = 16;

    /// Texts that come out of a file are passed through [`shown`] by the caller.
    pub fn add(&mut self, code: RefusalCode, subject: impl Into<String>, reason: impl Into<String>) {
        let fault = Refusal { code, subject: subject.into(), reason: reason.into() };
        if self.list.contains(&fault) {
            return;
        }
        let count = self.counts.entry(code.as_str()).or_default();
        *count += 1;
        if *count <= Self::LISTED {
            self.list.push(fault);
        }
    }

    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// How many were found so far, listed or not.
    pub fn total(&self) -> usize {
        self.counts.values().sum()
    }

    /// The refusals, the first found first; the last of a kind says how many more there are.
    pub fn into_list(mut self) -> Vec<Refusal> {
        for (code, count) in &self.counts {
            let more = count.saturating_sub(Self::LISTED);
            if more > 0
                && let Some(last) = self.list.iter_mut().rev().find(|fault| fault.code.as_str() == *code)
            {
                last.reason.push_str(&format!("; and {more} more faults of this kind"));
            }
        }
        self.list
    }
}

/// A text from a file as messages may show it: control characters escaped, cut to 120 characters.
pub fn shown(text: &str) -> String {
    const MOST: usize = 120;
    let mut shown = String::new();
    for c in text.chars().take(MOST) {
        match c {
            '"' | '\'' | '\\' => shown.push(c),
            _ => shown.extend(c.escape_debug()),
        }
    }
    if text.chars().nth(MOST).is_some() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thousand_faults_of_one_kind_are_a_short_list_with_a_count() {
        let mut faults = Faults::default();
        for index in 0..1000 {
            faults.add(RefusalCode::Shape, format!("tensor {index}"), "does not fit");
        }
        faults.add(RefusalCode::Rank, "r", "is 0");
        faults.add(RefusalCode::Rank, "r", "is 0");
        let list = faults.into_list();
        assert_eq!(list.len(), Faults::LISTED + 1);
        assert!(list[Faults::LISTED - 1].reason.ends_with("and 984 more faults of this kind"));
    }

    #[test]
    fn texts_from_files_cannot_break_lines_or_fill_the_log() {
        assert_eq!(shown("a\n\u{1b}[31m"), "a\\n\\u{1b}[31m");
        assert_eq!(shown(r#"the key "r" in \d"#), r#"the key "r" in \d"#);
        assert_eq!(shown(&"x".repeat(500)).chars().count(), 121);
    }
}
