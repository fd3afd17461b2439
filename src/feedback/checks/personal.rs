//! Personal data in an answer: e-mail addresses, phone numbers, card numbers, account numbers.

use std::sync::LazyLock;

use regex::Regex;
use serde::{Deserialize, Serialize};

use super::Finding;

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

    fn found(self, text: &str) -> impl Iterator<Item = &str> {
        let pattern: &Regex = match self {
            Self::Email => &EMAIL,
            Self::Phone => &PHONE,
            Self::Card => &CARD,
            Self::Iban => &ACCOUNT,
        };
        pattern.find_iter(text).map(|found| found.as_str()).filter(move |found| match self {
            Self::Email => true,
            Self::Phone => is_phone(found),
            Self::Card => is_card(found),
            Self::Iban => is_account(found),
        })
    }
}

static EMAIL: LazyLock<Regex> =
    LazyLock::new(|| pattern(r"(?i)\b[a-z0-9._%+-]+@[a-z0-9-]+(?:\.[a-z0-9-]+)*\.[a-z]{2,}\b"));
static PHONE: LazyLock<Regex> = LazyLock::new(|| pattern(r"(?:\+|\(|\b)\d[\d ()/.-]{6,18}\d\b"));
static CARD: LazyLock<Regex> = LazyLock::new(|| pattern(r"\b\d(?:[ -]?\d){12,18}\b"));
static ACCOUNT: LazyLock<Regex> = LazyLock::new(|| pattern(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]){11,30}\b"));

fn pattern(pattern: &str) -> Regex {
    Regex::new(pattern).expect("a pattern of ours")
}

impl Personal {
    pub fn look(&self, answer: &str, question: &str) -> Option<Finding> {
        let mut words = Vec::new();
        let mut count = 0;
        for &kind in &self.kinds {
            let bare = |text: &str| text.chars().filter(|c| c.is_alphanumeric()).collect::<String>();
            let asked = if self.unless_asked { bare(question) } else { String::new() };
            let found = kind.found(answer).filter(|found| !self.unless_asked || !asked.contains(&bare(found))).count();
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

fn digits(text: &str) -> Vec<u32> {
    text.chars().filter_map(|c| c.to_digit(10)).collect()
}

/// With a `+`, a leading 0 or brackets, as people write numbers that can be called: a row of digits alone is more often a
/// serial number, a date or an amount.
fn is_phone(found: &str) -> bool {
    let count = digits(found).len();
    let looks = found.starts_with('+')
        || found.starts_with('(')
        || (found.starts_with('0') && found.contains([' ', '/', '-']) && !found.contains('.'));
    looks && (7..=15).contains(&count) && !is_card(found)
}

/// By Luhn's sum, and not one digit only.
fn is_card(found: &str) -> bool {
    let digits = digits(found);
    let sum: u32 = digits
        .iter()
        .rev()
        .enumerate()
        .map(|(at, digit)| match (at % 2, digit * 2) {
            (0, _) => *digit,
            (_, double) if double > 9 => double - 9,
            (_, double) => double,
        })
        .sum();
    (13..=19).contains(&digits.len()) && sum % 10 == 0 && digits.iter().any(|digit| *digit != digits[0])
}

/// By the remainder of ISO 13616.
fn is_account(found: &str) -> bool {
    let bare: Vec<char> = found.chars().filter(|c| !c.is_whitespace()).collect();
    if !(15..=34).contains(&bare.len()) {
        return false;
    }
    let rotated = bare[4..].iter().chain(&bare[..4]);
    let remainder = rotated.fold(0u32, |sum, c| match c.to_digit(36) {
        Some(digit) if digit > 9 => (sum * 100 + digit) % 97,
        Some(digit) => (sum * 10 + digit) % 97,
        None => sum,
    });
    remainder == 1
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
    fn figures_serial_numbers_and_dates_are_none() {
        for fine in [
            "Norvik HX-310, order 2024-11-26, 1234567890 pieces",
            "4111 1111 1111 1112",
            "0000 0000 0000 0000",
            "version 10.2.0.1234, at 12:30, 3.14159265358979",
            "DE00 3704 0044 0532 0130 00",
            "{\"id\": 20241126123456}",
            "name@host without a dot",
        ] {
            assert_eq!(reason(fine, ""), None, "{fine}");
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
