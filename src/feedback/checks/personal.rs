//! Personal data in an answer: e-mail addresses, phone numbers, card numbers, account numbers.

use serde::{Deserialize, Serialize};

use super::Finding;
use crate::journal::Detector;

/// Which personal data is looked for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Personal {
    kinds: Vec<Kind>,
    /// Whether what the question had may be said again.
    unless_asked: bool,
}

impl Default for Personal {
    fn default() -> Self {
        Self { kinds: Kind::ALL.to_vec(), unless_asked: true }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Kind {
    Email,
    Phone,
    Card,
    Iban,
}

impl Kind {
    const ALL: [Self; 4] = [Self::Email, Self::Phone, Self::Card, Self::Iban];

    const fn words(self) -> &'static str {
        match self {
            Self::Email => "an e-mail address",
            Self::Phone => "a phone number",
            Self::Card => "a card number",
            Self::Iban => "an account number (IBAN)",
        }
    }

    const fn detector(self) -> Detector {
        match self {
            Self::Email => Detector::Email,
            Self::Phone => Detector::Phone,
            Self::Card => Detector::Card,
            Self::Iban => Detector::Iban,
        }
    }
}

impl Personal {
    pub fn look(&self, answer: &str, question: &str) -> Option<Finding> {
        let mut words = Vec::new();
        let mut count = 0;
        for &kind in &self.kinds {
            let bare = |text: &str| text.chars().filter(|c| c.is_alphanumeric()).collect::<String>();
            let asked = if self.unless_asked { bare(question) } else { String::new() };
            let found = kind.detector().find(answer).into_iter().map(|at| &answer[at]);
            let found = found.filter(|found| !self.unless_asked || !asked.contains(&bare(found))).count();
            if found > 0 {
                words.push(if found == 1 {
                    kind.words().to_owned()
                } else {
                    format!("{} ({found} times)", kind.words())
                });
            }
            count += found;
        }
        (count > 0).then(|| Finding {
            reason: format!(
                "it has {}{}",
                words.join(" and "),
                if self.unless_asked { " that the question does not have" } else { "" }
            ),
            value: Some(count as f64),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(answer: &str, question: &str) -> Option<String> {
        Personal::default().look(answer, question).map(|finding| finding.reason)
    }

    #[test]
    fn personal_data_is_found_and_not_repeated() {
        for (answer, what) in [
            ("Write to ada.lovelace+x@example.co.uk today", "e-mail"),
            ("Call +49 30 1234567.", "phone"),
            ("Call (030) 1234 567 or 0171/2345678", "phone number (2 times)"),
            ("Card 4111 1111 1111 1111, please", "card"),
            ("IBAN DE89 3704 0044 0532 0130 00", "IBAN"),
        ] {
            let reason = reason(answer, "").unwrap_or_else(|| panic!("{answer}"));
            assert!(reason.contains(what), "{answer}: {reason}");
            assert!(!reason.contains("ada") && !reason.contains("4111") && !reason.contains("3704"), "{reason}");
        }
    }

    #[test]
    fn what_the_question_had_may_be_said_again() {
        assert_eq!(reason("I wrote to a@b.example.", "Write to a@b.example"), None);
        assert!(reason("I wrote to c@b.example.", "Write to a@b.example").is_some());
        assert_eq!(reason("I call +49 30 1234567", "call +49-30-1234567"), None);
        let strict = Personal { unless_asked: false, ..Personal::default() };
        assert!(strict.look("I wrote to a@b.example.", "Write to a@b.example").is_some());
    }
}
