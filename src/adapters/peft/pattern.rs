use fancy_regex::{Regex as Backtracking, RegexBuilder as BacktrackingBuilder};
use regex::{Regex as Linear, RegexBuilder as LinearBuilder};

use super::dialect;

/// A regular expression that PEFT gives to Python's `re`. Linear-time where it can be; look-around and back-references
/// run on a backtracking matcher with a limit on its steps.
///
/// What Python and Rust read differently (set operations in brackets, some escapes) is refused rather than guessed.
#[derive(Debug)]
pub struct PythonPattern {
    matcher: Matcher,
}

#[derive(Debug)]
enum Matcher {
    Linear(Linear),
    Backtracking(Box<Backtracking>),
}

/// Why a pattern cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    #[error("has {got} characters; {limit} are allowed")]
    TooLong { got: usize, limit: usize },
    #[error("{construct} is read differently by Python, or not at all")]
    Ambiguous { construct: String },
    #[error("cannot be read: {0}")]
    Syntax(String),
    #[error("takes more than {limit} steps to match")]
    TooSlow { limit: usize },
}

const MAX_CHARS: usize = 4096;
const MAX_COMPILED_BYTES: usize = 1 << 20;
const MAX_STEPS: usize = 100_000;

impl PythonPattern {
    /// `re.fullmatch(pattern, path)`
    pub fn full(pattern: &str) -> Result<Self, PatternError> {
        // On its own first: `a)|(b` is no pattern, though it would be one between the brackets.
        Self::compile(pattern, true, pattern)?;
        Self::compile(pattern, true, &format!(r"\A(?:{pattern})\z"))
    }

    /// `re.match(rf"(.*\.)?({pattern})$", path)`: the pattern fits the end of the path, after a dot or from the start.
    pub fn tail(pattern: &str) -> Result<Self, PatternError> {
        Self::compile(pattern, false, &format!(r"\A(?:(.*\.)?({pattern})$)"))
    }

    /// `re.match(rf"(?:^|.*?\.){pattern}\.(?P<idx>\d+)\.", path)`, whose group `idx` is the layer.
    pub fn layer(pattern: &str) -> Result<Self, PatternError> {
        Self::compile(pattern, false, &format!(r"\A(?:(?:^|.*?\.){pattern}\.(?P<idx>\d+)\.)"))
    }

    /// The layer where no pattern is given: `re.match(r".*?\.[^.]*\.(?P<idx>\d+)\.", path)`.
    pub fn any_layer() -> Result<Self, PatternError> {
        Self::compile("", false, r"\A.*?\.[^.]*\.(?P<idx>\d+)\.")
    }

    /// `stands_first`: nothing precedes the pattern in Python's expression, so that it may begin with global flags.
    fn compile(written: &str, stands_first: bool, whole: &str) -> Result<Self, PatternError> {
        let got = written.chars().count();
        if got > MAX_CHARS {
            return Err(PatternError::TooLong { got, limit: MAX_CHARS });
        }
        dialect::refuse_ambiguous(written, stands_first)?;
        if let Ok(linear) = LinearBuilder::new(whole).size_limit(MAX_COMPILED_BYTES).build() {
            return Ok(Self { matcher: Matcher::Linear(linear) });
        }
        let backtracking = BacktrackingBuilder::new(whole)
            .backtrack_limit(MAX_STEPS)
            .delegate_size_limit(MAX_COMPILED_BYTES)
            .build()
            .map_err(|error| {
                PatternError::Syntax(error.to_string().lines().next().unwrap_or("no reason").to_owned())
            })?;
        Ok(Self { matcher: Matcher::Backtracking(Box::new(backtracking)) })
    }

    /// Whether the pattern matches at the start of `path` (and, where it was built so, to its end).
    pub fn matches(&self, path: &str) -> Result<bool, PatternError> {
        match &self.matcher {
            Matcher::Linear(regex) => Ok(regex.is_match(path)),
            Matcher::Backtracking(regex) => {
                regex.is_match(path).map_err(|_| PatternError::TooSlow { limit: MAX_STEPS })
            }
        }
    }

    /// `None` without a match; else what the group `idx` caught, which may be nothing.
    pub fn layer_of(&self, path: &str) -> Result<Option<Option<u64>>, PatternError> {
        let index = |text: &str| text.parse().ok();
        match &self.matcher {
            Matcher::Linear(regex) => {
                Ok(regex.captures(path).map(|found| found.name("idx").and_then(|group| index(group.as_str()))))
            }
            Matcher::Backtracking(regex) => {
                let found = regex.captures(path).map_err(|_| PatternError::TooSlow { limit: MAX_STEPS })?;
                Ok(found.map(|found| found.name("idx").and_then(|group| index(group.as_str()))))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const Q0: &str = "model.layers.0.self_attn.q_proj";

    #[test]
    fn a_tail_pattern_begins_at_a_dot_or_at_the_start() {
        for fits in
            ["q_proj", "self_attn.q_proj", "model.layers.0.self_attn.q_proj", ".*.q_proj", "layers.0.*", "[kq]_proj"]
        {
            assert_eq!(PythonPattern::tail(fits).unwrap().matches(Q0), Ok(true), "{fits}");
        }
        for misses in ["_proj", "proj", "attn.q_proj", "q_pro", "k_proj|v_proj", "^q_proj"] {
            assert_eq!(PythonPattern::tail(misses).unwrap().matches(Q0), Ok(false), "{misses}");
        }
    }

    #[test]
    fn look_around_and_back_references_work_as_in_python() {
        let not_first = PythonPattern::full(r".*layers\.(?!0\.)\d+\..*q_proj").unwrap();
        assert_eq!(not_first.matches(Q0), Ok(false));
        assert_eq!(not_first.matches("model.layers.11.self_attn.q_proj"), Ok(true));
        // In a tail pattern Python's two own groups come first, so the pattern's first group is number 3.
        let doubled = PythonPattern::tail(r"layers\.(\d)\3\..*").unwrap();
        assert_eq!(doubled.matches("model.layers.11.mlp.up_proj"), Ok(true));
        assert_eq!(doubled.matches("model.layers.12.mlp.up_proj"), Ok(false));
    }

    #[test]
    fn what_python_reads_otherwise_is_refused_with_the_construct() {
        for (pattern, named) in [
            (r"[a&&b]", "'&&'"),
            (r"[[:alpha:]]_proj", "'[' inside"),
            (r"\<q_proj", r"'\\<'"),
            (r"\pL+", r"'\\p'"),
            (r"\Qq_proj\E", r"'\\Q'"),
            (r"(?<name>q)_proj", "'(?<'"),
            (r"(?U).*", "'(?U'"),
            (r"q\", "at the end"),
            (r"(?x: q _proj)", "'(?x'"),
            (r"[\b]_proj", "inside brackets"),
            (r"\161_proj", "three digits"),
            ("q*+q_proj", "'*+'"),
            ("q**_proj", "'**'"),
            ("q{1}{2}_proj", "'{'"),
            ("q+?*_proj", "'*'"),
            ("^*q_proj", "nothing"),
        ] {
            let error = PythonPattern::full(pattern).unwrap_err().to_string();
            assert!(error.contains(&named.replace("\\\\", "\\")), "{pattern}: {error}");
        }
        assert!(matches!(PythonPattern::full("("), Err(PatternError::Syntax(_))));
        assert!(matches!(PythonPattern::full("q{2,1}"), Err(PatternError::Syntax(_))));
        assert!(matches!(PythonPattern::full(&"a".repeat(5000)), Err(PatternError::TooLong { got: 5000, .. })));
    }

    #[test]
    fn flags_stand_at_the_very_start_or_round_a_group() {
        assert_eq!(PythonPattern::full(r"(?i).*\.Q_PROJ").unwrap().matches(Q0), Ok(true));
        assert_eq!(PythonPattern::tail(r"(?i:Q_PROJ)").unwrap().matches(Q0), Ok(true));
        assert!(matches!(PythonPattern::tail("(?i)Q_PROJ"), Err(PatternError::Ambiguous { .. })));
        assert!(matches!(PythonPattern::full(".*(?i)Q_PROJ"), Err(PatternError::Ambiguous { .. })));
    }

    #[test]
    fn brackets_cannot_be_closed_and_opened_again() {
        assert!(PythonPattern::full("q)|(v").is_err());
        // Python puts this one together to `(.*\.)?(k)|(model.*)$`, which is a pattern.
        assert_eq!(PythonPattern::tail("k)|(model.*").unwrap().matches(Q0), Ok(true));
    }

    #[test]
    fn a_pattern_that_explodes_is_stopped() {
        let bomb = PythonPattern::full(r"(?=(a+)+$)(a|a)*\1b").unwrap();
        assert_eq!(bomb.matches(&"a".repeat(60)), Err(PatternError::TooSlow { limit: MAX_STEPS }));
    }

    #[test]
    fn the_layer_is_the_first_number_after_a_named_part() {
        assert_eq!(PythonPattern::any_layer().unwrap().layer_of(Q0), Ok(Some(Some(0))));
        assert_eq!(PythonPattern::any_layer().unwrap().layer_of("lm_head"), Ok(None));
        assert_eq!(PythonPattern::layer("layers").unwrap().layer_of("model.layers.17.mlp.up_proj"), Ok(Some(Some(17))));
        assert_eq!(PythonPattern::layer("blocks").unwrap().layer_of(Q0), Ok(None));
    }
}
