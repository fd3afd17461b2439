//! Scorers: from an answer to a number between 0 and 1.

use std::{
    io::{Read, Write},
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use regex::Regex;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::json::{need, nothing_left, take};

/// One way to score an answer.
#[derive(Debug)]
pub struct Scorer {
    pub name: String,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Exact { expected: Vec<String>, ignore_case: bool },
    Json { keys: Option<Vec<String>>, allowed: Map<String, Value> },
    JsonField { field: String, expected: Vec<Value>, ignore_case: bool },
    Pattern { regex: Regex, absent: bool },
    Program { run: Vec<String>, timeout: Duration },
    All { of: Vec<String> },
}

/// One score: its name (`NAME` or `NAME/PART`), its value from 0 to 1, and a program's reason.
#[derive(Clone, Debug, PartialEq)]
pub struct Scored {
    pub name: String,
    pub score: f64,
    pub why: Option<String>,
}

impl Scorer {
    /// Reads an item's scorers and settles what each compares with; `all` may name only those before it.
    pub fn read_all(scorers: Vec<Value>, expect: &Value) -> Result<Vec<Self>, String> {
        let mut read: Vec<Self> = Vec::with_capacity(scorers.len());
        for value in scorers {
            let scorer = Self::read(value, expect)?;
            if read.iter().any(|other| other.name == scorer.name) {
                return Err(format!("two scorers are named '{}'", scorer.name));
            }
            if let Kind::All { of } = &scorer.kind
                && let Some(missing) = of.iter().find(|name| !read.iter().any(|other| other.name == **name))
            {
                return Err(format!("scorer '{}' names '{missing}', which is no scorer before it", scorer.name));
            }
            read.push(scorer);
        }
        if read.is_empty() { Err("the list of scorers is empty".to_owned()) } else { Ok(read) }
    }

    fn read(value: Value, expect: &Value) -> Result<Self, String> {
        let Value::Object(mut object) = value else { return Err("a scorer is a JSON object".to_owned()) };
        let kind: String = need(&mut object, "kind")?;
        let name: String = take(&mut object, "name")?.unwrap_or_else(|| kind.clone());
        let read = match kind.as_str() {
            "exact" => Ok(Kind::Exact {
                expected: strings(expected(&mut object, expect, None)?)?,
                ignore_case: take(&mut object, "ignore_case")?.unwrap_or(false),
            }),
            "json" => Ok(Kind::Json {
                keys: take(&mut object, "keys")?,
                allowed: take(&mut object, "allowed")?.unwrap_or_default(),
            }),
            "json_field" => {
                let field: String = need(&mut object, "field")?;
                let expected = match expected(&mut object, expect, Some(&field))? {
                    Value::Array(any) => any,
                    one => vec![one],
                };
                let ignore_case = take(&mut object, "ignore_case")?.unwrap_or(false);
                Ok(Kind::JsonField { field, expected, ignore_case })
            }
            "regex" => {
                let pattern: Option<String> = take(&mut object, "pattern")?;
                let pattern = match pattern {
                    Some(pattern) => pattern,
                    None => match expected(&mut object, expect, None)? {
                        Value::String(pattern) => pattern,
                        other => return Err(format!("a regex needs a string, not {other}")),
                    },
                };
                let regex = Regex::new(&pattern).map_err(|error| error.to_string())?;
                Ok(Kind::Pattern { regex, absent: take(&mut object, "absent")?.unwrap_or(false) })
            }
            "command" => {
                let run: Vec<String> = need(&mut object, "run")?;
                if run.is_empty() {
                    return Err("run is empty".to_owned());
                }
                let timeout: f64 = take(&mut object, "timeout_s")?.unwrap_or(10.0);
                if !(timeout > 0.0 && timeout <= 3600.0) {
                    return Err(format!("timeout_s must be above 0 and at most 3600; it is {timeout}"));
                }
                Ok(Kind::Program { run, timeout: Duration::from_secs_f64(timeout) })
            }
            "all" => Ok(Kind::All { of: need(&mut object, "of")? }),
            _ => Err(format!("there is no kind '{kind}'; there are exact, json, json_field, regex, command and all")),
        };
        let kind = read.map_err(|reason: String| format!("scorer '{name}': {reason}"))?;
        nothing_left(&object).map_err(|reason| format!("scorer '{name}': {reason}"))?;
        Ok(Self { name, kind })
    }

    /// Scores one answer. Programs run in `folder` and get `item`; `before` holds the scores of the scorers before this.
    ///
    /// # Errors
    /// A program that failed: an error of the evaluation, never a score.
    pub fn score(&self, answer: &str, item: &Value, folder: &Path, before: &[Scored]) -> Result<Vec<Scored>, String> {
        let yes = match &self.kind {
            Kind::Exact { expected, ignore_case } => {
                expected.iter().any(|expected| same_text(answer.trim(), expected.trim(), *ignore_case))
            }
            Kind::Json { keys, allowed } => object(answer).is_some_and(|object| {
                let has_keys = keys
                    .as_ref()
                    .is_none_or(|keys| keys.len() == object.len() && keys.iter().all(|key| object.contains_key(key)));
                has_keys
                    && allowed.iter().all(|(field, values)| {
                        let value = object.get(field);
                        values.as_array().is_some_and(|values| value.is_some_and(|value| values.contains(value)))
                    })
            }),
            Kind::JsonField { field, expected, ignore_case } => object(answer)
                .and_then(|object| object.get(field).cloned())
                .is_some_and(|value| expected.iter().any(|expected| same_value(&value, expected, *ignore_case))),
            Kind::Pattern { regex, absent } => regex.is_match(answer) != *absent,
            Kind::Program { run, timeout } => {
                let input = json!({"item": item, "answer": answer}).to_string();
                let told = run_program(run, folder, &input, *timeout)
                    .map_err(|reason| format!("scorer '{}': {reason}", self.name))?;
                return told.scored(&self.name);
            }
            Kind::All { of } => of.iter().all(|name| before.iter().any(|s| s.name == *name && s.score == 1.0)),
        };
        Ok(vec![Scored { name: self.name.clone(), score: f64::from(u8::from(yes)), why: None }])
    }
}

/// What a scorer compares with: `at` points into `expect`; without it `field` of `expect`, or all of it.
fn expected(object: &mut Map<String, Value>, expect: &Value, field: Option<&str>) -> Result<Value, String> {
    let at: Option<String> = take(object, "at")?;
    let found = match (&at, field) {
        (Some(at), _) => expect.pointer(at),
        (None, Some(field)) => expect.get(field),
        (None, None) => Some(expect).filter(|expect| !expect.is_null()),
    };
    found.cloned().ok_or_else(|| match (at, field) {
        (Some(at), _) => format!("the item expects nothing at '{at}'"),
        (None, Some(field)) => format!("the item's expect has no '{field}'"),
        (None, None) => "the item has no expect".to_owned(),
    })
}

fn strings(value: Value) -> Result<Vec<String>, String> {
    let any = match value {
        Value::Array(any) => any,
        one => vec![one],
    };
    any.into_iter()
        .map(|value| match value {
            Value::String(text) => Ok(text),
            other => Err(format!("a string is expected, not {other}")),
        })
        .collect()
}

fn object(answer: &str) -> Option<Map<String, Value>> {
    serde_json::from_str(answer.trim()).ok()
}

fn same_text(a: &str, b: &str, ignore_case: bool) -> bool {
    if ignore_case { a.to_lowercase() == b.to_lowercase() } else { a == b }
}

fn same_value(a: &Value, b: &Value, ignore_case: bool) -> bool {
    match (a, b) {
        (Value::String(a), Value::String(b)) => {
            let joined = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
            same_text(&joined(a), &joined(b), ignore_case)
        }
        (Value::Number(a), Value::Number(b)) => a.as_f64() == b.as_f64(),
        (a, b) => a == b,
    }
}

/// What a scoring program prints.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Told {
    score: f64,
    #[serde(default)]
    parts: Map<String, Value>,
    #[serde(default)]
    why: Option<String>,
}

impl Told {
    fn scored(self, name: &str) -> Result<Vec<Scored>, String> {
        let checked = |name: String, score: Option<f64>, why| match score {
            Some(score) if (0.0..=1.0).contains(&score) => Ok(Scored { name, score, why }),
            Some(_) | None => Err(format!("scorer '{name}' gave a score outside 0 to 1")),
        };
        let mut scored = vec![checked(name.to_owned(), Some(self.score), self.why)?];
        for (part, score) in self.parts {
            scored.push(checked(format!("{name}/{part}"), score.as_f64(), None)?);
        }
        Ok(scored)
    }
}

fn run_program(run: &[String], folder: &Path, input: &str, timeout: Duration) -> Result<Told, String> {
    let mut child = Command::new(&run[0])
        .args(&run[1..])
        .current_dir(folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| format!("{}: {error}", run[0]))?;
    let (mut stdin, mut stdout) = (child.stdin.take(), child.stdout.take());
    let (input, printed) = (input.to_owned(), std::sync::mpsc::channel());
    // Written and read beside each other: a program may print before it has read everything.
    std::thread::spawn(move || stdin.as_mut().map(|stdin| stdin.write_all(input.as_bytes())));
    std::thread::spawn(move || {
        let mut text = String::new();
        let read = stdout.as_mut().map(|stdout| stdout.take(1 << 20).read_to_string(&mut text));
        // The receiver is gone if the program took too long.
        let _ = printed.0.send(read.and_then(Result::ok).map(|_| text));
    });
    let deadline = Instant::now() + timeout;
    let text = printed.1.recv_timeout(timeout).ok().flatten();
    let status = loop {
        match child.try_wait().map_err(|error| error.to_string())? {
            Some(status) => break Some(status),
            None if Instant::now() >= deadline || text.is_none() => break None,
            None => std::thread::sleep(Duration::from_millis(1)),
        }
    };
    let Some((status, text)) = status.zip(text) else {
        // Its own child, by handle; it may have ended meanwhile.
        let _ = child.kill();
        let _ = child.wait();
        return Err(format!("{} said nothing for {} s", run[0], timeout.as_secs_f64()));
    };
    if !status.success() {
        return Err(format!("{} ended with {status}", run[0]));
    }
    serde_json::from_str(&text).map_err(|error| format!("{} printed no score: {error}", run[0]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn score(scorers: Value, expect: &Value, answer: &str) -> Vec<f64> {
        let Value::Array(scorers) = scorers else { panic!("a list") };
        let mut all = Vec::new();
        for scorer in Scorer::read_all(scorers, expect).expect("scorers") {
            all.extend(scorer.score(answer, &json!({}), Path::new("."), &all).expect("a score"));
        }
        all.iter().map(|scored| scored.score).collect()
    }

    #[test]
    fn each_kind_says_yes_and_no() {
        let expect = json!({"category": ["a", "b"], "machine": "Norvik  HX", "n": 2});
        let scorers = json!([
            {"kind": "json", "keys": ["category", "machine", "n"], "allowed": {"category": ["a", "b", "c"]}},
            {"kind": "json_field", "name": "category", "field": "category"},
            {"kind": "json_field", "name": "machine", "field": "machine", "ignore_case": true},
            {"kind": "json_field", "name": "n", "field": "n"},
            {"kind": "all", "of": ["json", "category", "machine", "n"]},
            {"kind": "regex", "pattern": "HX"},
            {"kind": "regex", "name": "clean", "pattern": "sorry", "absent": true},
            {"kind": "exact", "at": "/machine"},
        ]);
        let good = r#" {"category": "b", "machine": "norvik hx", "n": 2.0} "#;
        assert_eq!(score(scorers.clone(), &expect, good), [1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 1.0, 0.0]);
        assert_eq!(score(scorers.clone(), &expect, "Norvik  HX"), [0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0]);
        let odd = r#"{"category": "d", "machine": null, "n": 2, "more": "sorry"}"#;
        assert_eq!(score(scorers, &expect, odd), [0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn a_scorer_that_cannot_work_is_refused_before_anything_is_asked() {
        for (scorer, what) in [
            (json!({"kind": "exact", "at": "/x"}), "expects nothing at '/x'"),
            (json!({"kind": "regex", "pattern": "("}), "regex"),
            (json!({"kind": "json", "key": []}), "unknown key 'key'"),
            (json!({"kind": "vibes"}), "no kind 'vibes'"),
            (json!({"kind": "all", "of": ["x"]}), "no scorer before it"),
            (json!({"kind": "command", "run": []}), "run is empty"),
        ] {
            let error = Scorer::read_all(vec![scorer], &json!({"a": 1})).expect_err(what);
            assert!(error.contains(what), "{error} should say: {what}");
        }
    }

    #[test]
    fn a_program_scores_with_parts_and_its_failures_are_errors() {
        let python = |code: &str| json!([{"kind": "command", "run": ["python3", "-c", code], "timeout_s": 20}]);
        let code = "import json,sys; a=json.load(sys.stdin)['answer']; \
                    print(json.dumps({'score': 0.5, 'parts': {'length': min(1, len(a) / 4)}, 'why': 'so'}))";
        assert_eq!(score(python(code), &json!(null), "ab"), [0.5, 0.5]);
        for code in ["raise SystemExit(1)", "print('no')", "print('{\"score\": 2}')"] {
            let Value::Array(scorers) = python(code) else { panic!("a list") };
            let scorers = Scorer::read_all(scorers, &json!(null)).expect("scorers");
            assert!(scorers[0].score("", &json!({}), Path::new("."), &[]).is_err(), "{code}");
        }
    }
}
