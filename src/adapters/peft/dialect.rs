use std::{iter::Peekable, str::Chars};

use super::pattern::PatternError;

/// Refuses what compiles on both sides with another meaning, or compiles here and not in Python
/// (<https://docs.python.org/3/library/re.html#regular-expression-syntax>). What Rust does not compile it need not see.
///
/// `stands_first`: nothing precedes the pattern in Python's expression, so that it may begin with global flags.
pub fn refuse_ambiguous(pattern: &str, stands_first: bool) -> Result<(), PatternError> {
    let flags = pattern.strip_prefix("(?").and_then(|rest| rest.split_once(')')).map(|(flags, _)| flags);
    let skipped = match flags {
        Some(flags) if stands_first && !flags.is_empty() && flags.chars().all(|c| FLAGS.contains(c)) => flags.len() + 3,
        Some(_) | None => 0,
    };
    let mut scan = Scan { chars: pattern[skipped..].chars().peekable(), before: Before::Nothing };
    while let Some(c) = scan.chars.next() {
        scan.step(c)?;
    }
    Ok(())
}

/// Flags that both sides know alike. In `x` they differ on blanks inside brackets.
const FLAGS: &str = "ims";

struct Scan<'a> {
    chars: Peekable<Chars<'a>>,
    before: Before,
}

/// What a repetition sign would repeat.
#[derive(Clone, Copy, PartialEq)]
enum Before {
    Nothing,
    Item,
    /// Repeated already: `?` makes it lazy, everything else is a double repetition or Python's possessive one.
    Repeated(char),
    Lazy,
}

fn ambiguous<T>(construct: impl Into<String>) -> Result<T, PatternError> {
    Err(PatternError::Ambiguous { construct: construct.into() })
}

impl Scan<'_> {
    fn step(&mut self, c: char) -> Result<(), PatternError> {
        self.before = match c {
            '\\' => return self.escape(),
            '[' => return self.brackets(),
            '(' => {
                if self.chars.next_if_eq(&'?').is_some() {
                    self.group()?;
                }
                Before::Nothing
            }
            '|' | '^' | '$' => Before::Nothing,
            '*' | '+' | '?' | '{' => match self.before {
                Before::Item => Before::Repeated(c),
                Before::Repeated(_) if c == '?' => Before::Lazy,
                Before::Repeated(first) if first != '{' => return ambiguous(format!("'{first}{c}'")),
                Before::Repeated(_) | Before::Lazy => return ambiguous(format!("'{c}' after a repetition")),
                Before::Nothing => return ambiguous(format!("'{c}' that repeats nothing")),
            },
            // The figures between the braces of a repetition, and its end.
            '0'..='9' | ',' | '}' if self.before == Before::Repeated('{') => Before::Repeated('{'),
            _ => Before::Item,
        };
        Ok(())
    }

    fn escape(&mut self) -> Result<(), PatternError> {
        let Some(escaped) = self.chars.next() else { return ambiguous("a backslash at the end") };
        let next = self.chars.peek().copied();
        self.before = match escaped {
            'A' | 'b' | 'B' | 'Z' if next == Some('{') => return ambiguous(format!("'\\{escaped}{{'")),
            'A' | 'b' | 'B' | 'Z' => Before::Nothing,
            'x' | 'u' if next == Some('{') => return ambiguous(format!("'\\{escaped}{{'")),
            'd' | 'D' | 's' | 'S' | 'w' | 'W' | 'a' | 'f' | 'n' | 'r' | 't' | 'v' | 'x' | 'u' => Before::Item,
            // A reference to a group; with three digits Python takes it for a character in octal.
            '1'..='9' => {
                let digits = 1 + self.chars.clone().take_while(char::is_ascii_digit).count();
                if digits > 2 {
                    return ambiguous("a backslash and three digits");
                }
                Before::Item
            }
            '<' | '>' => return ambiguous(format!("'\\{escaped}'")),
            _ if escaped.is_ascii_alphanumeric() => return ambiguous(format!("'\\{escaped}'")),
            _ => Before::Item,
        };
        Ok(())
    }

    /// After `(?`.
    fn group(&mut self) -> Result<(), PatternError> {
        match self.chars.next() {
            Some(':' | '=' | '!' | '>' | 'P') => Ok(()),
            // Look-behind; `(?<name>` is Rust's.
            Some('<') => match self.chars.next() {
                Some('=' | '!') => Ok(()),
                Some(_) | None => ambiguous("'(?<'"),
            },
            Some(flag) if FLAGS.contains(flag) => {
                while self.chars.next_if(|c| FLAGS.contains(*c)).is_some() {}
                // `(?i:…)` is alike on both sides; flags for the rest of the pattern are not.
                match self.chars.next() {
                    Some(':') => Ok(()),
                    Some(_) | None => ambiguous("a flag inside the pattern"),
                }
            }
            Some(other) => ambiguous(format!("'(?{}'", other.escape_debug())),
            None => ambiguous("'(?' at the end"),
        }
    }

    /// After `[`, up to the closing bracket.
    fn brackets(&mut self) -> Result<(), PatternError> {
        self.chars.next_if_eq(&'^');
        // On both sides a bracket right after the opening one is a member, not the end.
        let mut any = self.chars.next_if_eq(&']').is_some();
        while let Some(c) = self.chars.next() {
            match c {
                ']' => {
                    self.before = Before::Item;
                    return Ok(());
                }
                '[' => return ambiguous("'[' inside brackets"),
                '&' | '-' | '~' if any && self.chars.peek() == Some(&c) => {
                    return ambiguous(format!("'{c}{c}' inside brackets"));
                }
                '\\' => {
                    let escaped = self.chars.peek().copied();
                    self.escape()?;
                    if self.before == Before::Nothing || escaped.is_some_and(|c| c.is_ascii_digit()) {
                        return ambiguous("an assertion or a group inside brackets");
                    }
                }
                _ => {}
            }
            any = true;
        }
        ambiguous("a bracket that is not closed")
    }
}
