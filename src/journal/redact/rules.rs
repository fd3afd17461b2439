//! A file of rules, read and compiled.

use std::{ops::Range, path::Path};

use regex::{Regex, RegexBuilder};
use serde::Deserialize;

use super::detect::{Detector, VERSION};
use crate::terms::{Digest, Hasher};

/// Bytes that a compiled pattern may take.
const PATTERN_BYTES: usize = 1 << 20;
const MAX_RULES: usize = 256;

/// Where a text stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Place {
    /// Messages, prompts and stop strings.
    Prompt,
    /// Answers and the tools that they call.
    Answer,
    /// Names and values of metadata.
    Metadata,
    /// Users, conversations, ids of requests and the like: names that have to stay distinct.
    Identity,
    /// What people say of answers: comments and corrections.
    Comment,
}

impl Place {
    const ALL: [Self; 5] = [Self::Prompt, Self::Answer, Self::Metadata, Self::Identity, Self::Comment];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Prompt => "prompt",
            Self::Answer => "answer",
            Self::Metadata => "metadata",
            Self::Identity => "identity",
            Self::Comment => "comment",
        }
    }
}

/// One rule.
#[derive(Debug)]
pub struct Rule {
    pub name: String,
    pub replacement: String,
    places: Vec<Place>,
    what: What,
}

#[derive(Debug)]
enum What {
    Detector(Detector),
    Pattern(Regex),
}

impl Rule {
    pub fn holds_in(&self, place: Place) -> bool {
        self.places.contains(&place)
    }

    /// Where it matches, without overlaps, in order; empty matches are passed over.
    pub fn find(&self, text: &str) -> Vec<Range<usize>> {
        match &self.what {
            What::Detector(detector) => detector.find(text),
            What::Pattern(pattern) => {
                pattern.find_iter(text).map(|found| found.range()).filter(|range| !range.is_empty()).collect()
            }
        }
    }
}

/// All rules, in order, and the digest that names them.
#[derive(Debug)]
pub struct Rules {
    pub rules: Vec<Rule>,
    pub version: Digest,
}

/// The file as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    rule: Vec<WrittenRule>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenRule {
    name: String,
    detect: Option<Detector>,
    regex: Option<String>,
    replace: Option<String>,
    r#in: Option<Vec<Place>>,
}

impl Rules {
    /// # Errors
    /// What is wrong with the file, in words.
    pub fn read(path: &Path) -> Result<Self, String> {
        let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
        Self::parse(&text).map_err(|reason| format!("{}: {reason}", path.display()))
    }

    pub fn parse(text: &str) -> Result<Self, String> {
        let written: Written = toml::from_str(text).map_err(|error| error.to_string().trim_end().to_owned())?;
        if written.rule.is_empty() || written.rule.len() > MAX_RULES {
            return Err(format!("there have to be 1 to {MAX_RULES} rules; there are {}", written.rule.len()));
        }
        let mut hasher = Hasher::new().part("detectors", &VERSION.to_le_bytes());
        let mut rules: Vec<Rule> = Vec::new();
        for rule in written.rule {
            let named = |reason: String| format!("rule '{}': {reason}", rule.name);
            let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
            if rule.name.is_empty() || rule.name.len() > 64 || !rule.name.chars().all(fine) {
                return Err(named("a name has 1 to 64 letters, digits, '_' and '-'".to_owned()));
            }
            if rules.iter().any(|known| known.name == rule.name) {
                return Err(named("it is there twice".to_owned()));
            }
            let (what, spelled) = match (rule.detect, &rule.regex) {
                (Some(detector), None) => (What::Detector(detector), detector.as_str().to_owned()),
                (None, Some(pattern)) => (What::Pattern(compiled(pattern).map_err(named)?), pattern.clone()),
                _ => return Err(named("it needs either detect or regex".to_owned())),
            };
            let replacement = rule.replace.clone().unwrap_or_else(|| format!("[{}]", rule.name));
            let places = rule.r#in.clone().unwrap_or_else(|| Place::ALL.to_vec());
            if places.is_empty() {
                return Err(named("'in' names no place".to_owned()));
            }
            hasher = hasher.part("name", rule.name.as_bytes());
            hasher = hasher.part(if rule.detect.is_some() { "detect" } else { "regex" }, spelled.as_bytes());
            hasher = hasher.part("replace", replacement.as_bytes());
            for place in Place::ALL.iter().filter(|place| places.contains(place)) {
                hasher = hasher.part("in", place.as_str().as_bytes());
            }
            rules.push(Rule { name: rule.name, replacement, places, what });
        }
        Ok(Self { rules, version: hasher.finish() })
    }
}

fn compiled(pattern: &str) -> Result<Regex, String> {
    let regex = RegexBuilder::new(pattern).size_limit(PATTERN_BYTES).build().map_err(|error| error.to_string())?;
    if regex.is_match("") {
        return Err("it matches where nothing stands".to_owned());
    }
    Ok(regex)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_read_and_named_by_what_they_do() {
        let rules = Rules::parse(
            "[[rule]]\nname = 'email'\ndetect = 'email'\n\
             [[rule]]\nname = 'ticket'\nregex = '\\bT-\\d+\\b'\nreplace = '[T]'\nin = ['prompt']\n",
        )
        .unwrap();
        assert_eq!(rules.rules.len(), 2);
        assert_eq!(rules.rules[0].replacement, "[email]");
        assert!(rules.rules[1].holds_in(Place::Prompt) && !rules.rules[1].holds_in(Place::Answer));
        assert_eq!(rules.rules[1].find("see T-12 and T-x"), vec![4..8; 1]);
        let other = |text: &str| Rules::parse(text).unwrap().version;
        let one = "[[rule]]\nname = 'a'\nregex = 'b'\n";
        assert_eq!(other(one), other(&one.replace('\'', "\"")), "what is written differently does the same");
        assert_ne!(other(one), other(&one.replace("'b'", "'c'")));
        assert_ne!(other(one), other(&format!("{one}in = ['answer']\n")));
    }

    #[test]
    fn what_is_no_rule_is_refused_by_name() {
        for (text, part) in [
            ("", "missing field"),
            ("rule = []", "1 to 256"),
            ("[[rule]]\nname = 'a b'\ndetect = 'email'", "a name has"),
            ("[[rule]]\nname = 'a'", "either detect or regex"),
            ("[[rule]]\nname = 'a'\ndetect = 'email'\nregex = 'x'", "either detect or regex"),
            ("[[rule]]\nname = 'a'\ndetect = 'shoe'", "unknown variant"),
            ("[[rule]]\nname = 'a'\nregex = '('", "unclosed group"),
            ("[[rule]]\nname = 'a'\nregex = 'x*'", "nothing stands"),
            ("[[rule]]\nname = 'a'\nregex = '(?:\\\\w{1000}){1000}'", "limit"),
            ("[[rule]]\nname = 'a'\nregex = 'x'\nin = []", "no place"),
            ("[[rule]]\nname = 'a'\nregex = 'x'\nwhere = 'prompt'", "unknown field"),
            ("[[rule]]\nname = 'a'\nregex = 'x'\n[[rule]]\nname = 'a'\nregex = 'y'", "twice"),
        ] {
            let refused = Rules::parse(text).unwrap_err();
            assert!(refused.contains(part), "{text}: {refused}");
        }
    }
}
