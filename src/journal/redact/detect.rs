//! Finds what no single pattern describes well: addresses, telephone, card and account numbers. Each gives byte ranges that
//! do not overlap, in order. A number counts only if it could be real: its checksum fits, its length and marks are usual.

use std::{ops::Range, sync::LazyLock};

use regex::Regex;
use serde::Deserialize;

/// What a rule may look for by name. Part of a rule set's version: raise `VERSION` when one finds something else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Detector {
    Email,
    Phone,
    Card,
    Iban,
}

/// Of what the detectors find.
pub const VERSION: u32 = 1;

impl Detector {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Email => "email",
            Self::Phone => "phone",
            Self::Card => "card",
            Self::Iban => "iban",
        }
    }

    pub fn find(self, text: &str) -> Vec<Range<usize>> {
        match self {
            Self::Email => EMAIL.find_iter(text).map(|found| found.range()).collect(),
            Self::Phone => PHONE.find_iter(text).filter_map(|found| phone(text, found.range())).collect(),
            Self::Card => CARD.find_iter(text).flat_map(|found| cards(text, found.range())).collect(),
            Self::Iban => IBAN.find_iter(text).filter_map(|found| iban(text, found.start())).collect(),
        }
    }
}

static EMAIL: LazyLock<Regex> = LazyLock::new(|| {
    let local = r"[\p{L}\p{N}](?:[\p{L}\p{N}._%+'\-]*[\p{L}\p{N}_%+\-])?";
    pattern(&format!(r"{local}@[\p{{L}}\p{{N}}](?:[\p{{L}}\p{{N}}.\-]*[\p{{L}}\p{{N}}])?\.\p{{L}}{{2,}}"))
});
/// Digits with what people write between them. Which of these are telephone numbers, [`phone`] says.
static PHONE: LazyLock<Regex> = LazyLock::new(|| pattern(r"\+?\(?[0-9](?:[0-9]|[ ()./\-\u{a0}]{1,3}[0-9])+"));
static CARD: LazyLock<Regex> = LazyLock::new(|| pattern(r"[0-9](?:[ \-\u{a0}]?[0-9]){12,}"));
static IBAN: LazyLock<Regex> = LazyLock::new(|| pattern(r"(?i)\b[a-z]{2}[0-9]{2}[ \u{a0}]?[a-z0-9]{4}"));
static DATE: LazyLock<Regex> = LazyLock::new(|| {
    pattern(r"^(?:[0-9]{1,2}[./\-] ?[0-9]{1,2}[./\-] ?[0-9]{2,4}|[0-9]{4}[./\-][0-9]{1,2}[./\-][0-9]{1,2})(?:[^0-9]|$)")
});
static AMERICAN: LazyLock<Regex> =
    LazyLock::new(|| pattern(r"^(?:\([0-9]{3}\) ?|[0-9]{3}[.\- ])[0-9]{3}[.\- ][0-9]{4}$"));

/// # Panics
/// Never: the patterns above are constant, and the tests compile each.
fn pattern(pattern: &str) -> Regex {
    Regex::new(pattern).expect("a valid pattern")
}

fn digits(text: &str) -> impl Iterator<Item = u8> {
    text.bytes().filter(u8::is_ascii_digit).map(|digit| digit - b'0')
}

/// Whether the range is not a part of a longer word or number.
fn stands_alone(text: &str, range: &Range<usize>) -> bool {
    let before = text[..range.start].chars().next_back();
    let after = text[range.end..].chars().next();
    let joined = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    !joined(before) && !joined(after)
}

/// An international number (`+` or `00`), a national one with its leading zero, or one as Americans write it.
fn phone(text: &str, range: Range<usize>) -> Option<Range<usize>> {
    let number = &text[range.clone()];
    let count = digits(number).count();
    let bare = number.trim_start_matches('(');
    let separate = number.bytes().any(|byte| !byte.is_ascii_digit());
    let real = match () {
        () if DATE.is_match(bare) => false,
        // `0.123456789` is a number.
        () if bare.strip_prefix("0.").is_some_and(|rest| rest.bytes().all(|byte| byte.is_ascii_digit())) => false,
        () if number.starts_with('+') || bare.starts_with("00") => (8..=15).contains(&count),
        () if bare.starts_with('0') => (9..=13).contains(&count) && (separate || count <= 12),
        () => AMERICAN.is_match(number),
    };
    // `1.0123456789` is a number, `x0123` a name.
    (real && stands_alone(text, &range) && !text[..range.start].ends_with(['.', ','])).then_some(range)
}

/// The card numbers in a run of digits: whole groups of it, 13 to 19 digits, as an issuer begins them, with Luhn's check
/// digit.
fn cards(text: &str, range: Range<usize>) -> Vec<Range<usize>> {
    if !stands_alone(text, &range) {
        return Vec::new();
    }
    let run = &text[range.clone()];
    let mut groups: Vec<Range<usize>> = Vec::new();
    for (at, byte) in run.bytes().enumerate().filter(|(_, byte)| byte.is_ascii_digit()) {
        let _ = byte;
        match groups.last_mut() {
            Some(group) if group.end == at => group.end += 1,
            _ => groups.push(at..at + 1),
        }
    }
    let (mut found, mut first) = (Vec::new(), 0);
    while first < groups.len() {
        // The longest first: what belongs together is taken together.
        let last = (first..groups.len()).rev().find(|&last| is_card(&run[groups[first].start..groups[last].end]));
        match last {
            Some(last) => {
                found.push(range.start + groups[first].start..range.start + groups[last].end);
                first = last + 1;
            }
            None => first += 1,
        }
    }
    found
}

fn is_card(number: &str) -> bool {
    let digits: Vec<u8> = digits(number).collect();
    let issued = matches!(digits.first(), Some(2..=6));
    (13..=19).contains(&digits.len()) && issued && luhn(&digits)
}

fn luhn(digits: &[u8]) -> bool {
    let sum: u32 = digits
        .iter()
        .rev()
        .enumerate()
        .map(|(place, &digit)| match place % 2 {
            0 => u32::from(digit),
            _ if digit > 4 => u32::from(digit) * 2 - 9,
            _ => u32::from(digit) * 2,
        })
        .sum();
    sum.is_multiple_of(10)
}

/// Characters of an account number, by country (the registry of SWIFT, ISO 13616).
const LENGTHS: &str = "AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BI27 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DJ27 DK18 DO28 \
     EE20 EG29 ES24 FI18 FK18 FO18 FR27 GB22 GE22 GI23 GL18 GR27 GT28 HR21 HU28 IE22 IL23 IQ23 IS26 IT27 JO30 KW30 KZ20 \
     LB28 LC32 LI21 LT20 LU20 LV21 LY25 MC27 MD24 ME22 MK19 MN20 MR27 MT31 MU30 NI28 NL18 NO15 OM23 PK24 PL28 PS29 PT25 \
     QA29 RO24 RS22 RU33 SA24 SC31 SD18 SE24 SI19 SK24 SM27 SO23 ST25 SV28 TL23 TN24 TR26 UA29 VA22 VG24 XK20";

fn length(country: &str) -> Option<usize> {
    let known = |entry: &&str| entry[..2].eq_ignore_ascii_case(country);
    LENGTHS.split_ascii_whitespace().find(known)?[2..].parse().ok()
}

/// The account number that begins at `start`, if its country, length and check digits are right.
fn iban(text: &str, start: usize) -> Option<Range<usize>> {
    let wanted = length(text.get(start..start + 2)?)?;
    let (mut count, mut end, mut rest) = (0, start, 0u64);
    let mut head = [0u8; 4];
    let mut feed = |byte: u8| match byte {
        b'0'..=b'9' => rest = (rest * 10 + u64::from(byte - b'0')) % 97,
        _ => rest = (rest * 100 + u64::from(byte.to_ascii_uppercase() - b'A') + 10) % 97,
    };
    for (at, c) in text[start..].char_indices() {
        match c {
            _ if count == wanted => break,
            '0'..='9' | 'a'..='z' | 'A'..='Z' => {
                match head.get_mut(count) {
                    Some(place) => *place = c as u8,
                    None => feed(c as u8),
                }
                count += 1;
                end = start + at + 1;
            }
            ' ' | '\u{a0}' => {}
            _ => return None,
        }
    }
    // ISO 7064: country and check digits count last.
    head.into_iter().for_each(&mut feed);
    let range = start..end;
    (count == wanted && rest == 1 && stands_alone(text, &range)).then_some(range)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(detector: Detector, text: &str) -> Vec<&str> {
        detector.find(text).into_iter().map(|range| &text[range]).collect()
    }

    #[test]
    fn addresses_are_found_in_the_middle_of_sentences() {
        let text = "Write to ann.o'neil+x@mail.example.co.uk, (bob@example.com) or <müller@büro.example>.";
        let addresses = ["ann.o'neil+x@mail.example.co.uk", "bob@example.com", "müller@büro.example"];
        assert_eq!(found(Detector::Email, text), addresses);
        for no in ["a@b", "@handle", "user at example.com", "1@2.3", "x @ y.com", "@example.com"] {
            assert_eq!(found(Detector::Email, no), [""; 0], "{no}");
        }
    }

    #[test]
    fn telephone_numbers_are_found_as_people_write_them() {
        for number in [
            "+49 30 1234567",
            "+1 (415) 555-2671",
            "+44 20 7946 0958",
            "0049 171 2345678",
            "030 12345678",
            "0171/2345678",
            "(030) 1234 5678",
            "01 23 45 67 89",
            "(415) 555-2671",
            "415-555-2671",
            "+14155552671",
            "01712345678",
        ] {
            assert_eq!(found(Detector::Phone, &format!("Call {number}, please")), [number]);
        }
        for no in [
            "2024-01-05 12",
            "01.02.2024",
            "01/02/2024 10",
            "order 4711 0815 2342",
            "10.0.0.138",
            "0.123456789",
            "3,0123456789",
            "v01712345678",
            "1234567890",
            "12 000 000",
            "007",
            "pi 3.14159265358979",
        ] {
            assert_eq!(found(Detector::Phone, no), [""; 0], "{no}");
        }
    }

    #[test]
    fn card_numbers_have_their_check_digit() {
        for number in
            ["4111111111111111", "4111 1111 1111 1111", "5500-0000-0000-0004", "378282246310005", "6011000990139424"]
        {
            assert_eq!(found(Detector::Card, &format!("card {number}.")), [number]);
        }
        assert_eq!(
            found(Detector::Card, "4111 1111 1111 1111 123"),
            ["4111 1111 1111 1111"],
            "with its code behind it"
        );
        assert_eq!(found(Detector::Card, "12 4111 1111 1111 1111"), ["4111 1111 1111 1111"]);
        for no in ["4111111111111112", "0000000000000000", "1234567890123", "41111111111111111111", "x4111111111111111"]
        {
            assert_eq!(found(Detector::Card, no), [""; 0], "{no}");
        }
    }

    #[test]
    fn account_numbers_have_their_countrys_length_and_check_digits() {
        for number in [
            "DE89370400440532013000",
            "DE89 3704 0044 0532 0130 00",
            "gb29 nwbk 6016 1331 9268 19",
            "FR1420041010050500013M02606",
            "NO9386011117947",
            "MT84MALT011000012345MTLCAST001S",
        ] {
            assert_eq!(found(Detector::Iban, &format!("to {number} is fine")), [number]);
        }
        for no in [
            "DE88370400440532013000",
            "DE8937040044053201300",
            "XX89370400440532013000",
            "DE89 3704-0044",
            "aDE89370400440532013000",
            "DE893704004405320130001",
        ] {
            assert_eq!(found(Detector::Iban, no), [""; 0], "{no}");
        }
    }

    #[test]
    fn every_country_has_one_length() {
        let entries: Vec<&str> = LENGTHS.split_ascii_whitespace().collect();
        assert!(entries.is_sorted_by(|one, other| one[..2] < other[..2]));
        assert!(entries.iter().all(|entry| length(&entry[..2]).is_some_and(|length| (15..=34).contains(&length))));
    }
}
