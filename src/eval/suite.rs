//! A suite and its contenders, read and checked before anything is asked.

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
};

use serde_json::{Map, Value};

use super::{
    json::{need, nothing_left, take},
    scorer::Scorer,
};
use crate::terms::{Message, Role};

/// The questions of one file.
#[derive(Debug)]
pub struct Suite {
    pub name: String,
    pub about: Option<String>,
    /// The score that the verdict is about: a scorer's name, or `NAME/PART`.
    pub primary: String,
    pub items: Vec<Item>,
    /// Where scorers' programs run and the prompts file is found.
    pub folder: PathBuf,
    /// From the header, or `prompts.json` beside the suite.
    pub prompts: Option<PathBuf>,
}

/// One question.
#[derive(Debug)]
pub struct Item {
    pub id: String,
    pub messages: Vec<Message>,
    pub expect: Value,
    pub tags: Vec<String>,
    /// Sent with the request: header's and item's, the item's laid over.
    pub sampling: Map<String, Value>,
    pub scorers: Vec<Scorer>,
    /// The item as it stands in the file, for scorers that are programs.
    pub source: Value,
}

/// A suite, a prompts file or a contender that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SuiteError {
    #[error("{path}: {error}")]
    Io { path: PathBuf, error: std::io::Error },
    #[error("{path}, line {line}: {reason}")]
    Line { path: PathBuf, line: usize, reason: String },
    #[error("{path}: {reason}")]
    Malformed { path: PathBuf, reason: String },
    #[error("there is no prompt preset '{preset}'; there are: {known}")]
    Preset { preset: String, known: String },
    #[error("{0}")]
    Contender(String),
}

/// Header values that items fall back to.
struct Header {
    name: String,
    about: Option<String>,
    sampling: Map<String, Value>,
    scorers: Option<Vec<Value>>,
    primary: Option<String>,
    prompts: Option<String>,
}

const SAMPLING_KEYS: [&str; 5] = ["max_tokens", "temperature", "top_p", "stop", "seed"];

impl Suite {
    pub fn read(path: &Path) -> Result<Self, SuiteError> {
        let text = std::fs::read_to_string(path).map_err(|error| SuiteError::Io { path: path.to_owned(), error })?;
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_owned();
        let fault = |line: usize, reason: String| SuiteError::Line { path: path.to_owned(), line: line + 1, reason };
        let name = path.file_stem().map_or_else(String::new, |stem| stem.to_string_lossy().into_owned());
        let mut header = Header::silent(name);
        let (mut items, mut ids, mut first) = (Vec::<Item>::new(), HashSet::new(), true);
        for (line, text) in text.lines().enumerate().filter(|(_, text)| !text.trim().is_empty()) {
            let value: Value = serde_json::from_str(text).map_err(|error| fault(line, error.to_string()))?;
            let Value::Object(object) = value.clone() else {
                return Err(fault(line, "not a JSON object".to_owned()));
            };
            if object.contains_key("suite") {
                if !first {
                    return Err(fault(line, "a header may only stand first, and once".to_owned()));
                }
                header = Header::read(object).map_err(|reason| fault(line, reason))?;
            } else {
                let item = Item::read(object, value, &header).map_err(|reason| fault(line, reason))?;
                if !ids.insert(item.id.clone()) {
                    return Err(fault(line, format!("the id '{}' stands twice", item.id)));
                }
                items.push(item);
            }
            first = false;
        }
        let malformed = |reason: &str| SuiteError::Malformed { path: path.to_owned(), reason: reason.to_owned() };
        let first = items.first().ok_or_else(|| malformed("it has no items"))?;
        let primary = header.primary.or_else(|| first.scorers.first().map(|scorer| scorer.name.clone()));
        let beside = folder.join("prompts.json");
        Ok(Self {
            name: header.name,
            about: header.about,
            primary: primary.ok_or_else(|| malformed("it has no scorers"))?,
            prompts: header.prompts.map(|file| folder.join(file)).or_else(|| beside.exists().then_some(beside)),
            items,
            folder,
        })
    }
}

impl Header {
    fn silent(name: String) -> Self {
        let sampling = Map::from_iter([("temperature".to_owned(), Value::from(0))]);
        Self { name, about: None, sampling, scorers: None, primary: None, prompts: None }
    }

    fn read(mut object: Map<String, Value>) -> Result<Self, String> {
        let silent = Self::silent(need(&mut object, "suite")?);
        let header = Self {
            about: take(&mut object, "about")?,
            sampling: sampling(&mut object)?.unwrap_or_else(|| silent.sampling.clone()),
            scorers: take(&mut object, "scorers")?,
            primary: take(&mut object, "primary")?,
            prompts: take(&mut object, "prompts")?,
            ..silent
        };
        nothing_left(&object)?;
        Ok(header)
    }
}

fn sampling(object: &mut Map<String, Value>) -> Result<Option<Map<String, Value>>, String> {
    let sampling: Option<Map<String, Value>> = take(object, "sampling")?;
    if let Some(key) = sampling.iter().flat_map(Map::keys).find(|key| !SAMPLING_KEYS.contains(&key.as_str())) {
        return Err(format!("sampling has no key '{key}'; it has {}", SAMPLING_KEYS.join(", ")));
    }
    Ok(sampling)
}

impl Item {
    fn read(mut object: Map<String, Value>, source: Value, header: &Header) -> Result<Self, String> {
        let id: String = need(&mut object, "id")?;
        let messages: Vec<Message> = need(&mut object, "messages")?;
        if messages.is_empty() {
            return Err("messages is empty".to_owned());
        }
        let expect = object.remove("expect").unwrap_or_default();
        let scorers: Option<Vec<Value>> = take(&mut object, "scorers")?;
        let scorers = scorers.or_else(|| header.scorers.clone()).ok_or("there are no scorers, here or in a header")?;
        let tags = take(&mut object, "tags")?.unwrap_or_default();
        let own = sampling(&mut object)?.unwrap_or_default();
        nothing_left(&object)?;
        let mut sampling = header.sampling.clone();
        sampling.extend(own);
        let scorers = Scorer::read_all(scorers, &expect)?;
        Ok(Self { id, messages, expect, tags, sampling, scorers, source })
    }
}

/// Who is asked: a model, and what is put around the questions.
#[derive(Debug)]
pub struct Contender {
    /// As given: `MODEL` or `MODEL+PRESET`.
    pub label: String,
    pub model: String,
    preset: Preset,
}

#[derive(Debug, Default)]
struct Preset {
    system: Option<String>,
    messages: Vec<Message>,
    wrap: Option<String>,
}

impl Contender {
    /// Reads `MODEL` or `MODEL+PRESET`; presets come from `prompts`.
    pub fn read(label: &str, prompts: Option<&Path>) -> Result<Self, SuiteError> {
        let Some((model, preset)) = label.rsplit_once('+') else {
            return Ok(Self { label: label.to_owned(), model: label.to_owned(), preset: Preset::default() });
        };
        let path = prompts.ok_or_else(|| {
            SuiteError::Contender(format!("'{label}' names a prompt preset, but there is no prompts file (--prompts)"))
        })?;
        let text = std::fs::read_to_string(path).map_err(|error| SuiteError::Io { path: path.to_owned(), error })?;
        let malformed = |reason: String| SuiteError::Malformed { path: path.to_owned(), reason };
        let mut presets: Map<String, Value> =
            serde_json::from_str(&text).map_err(|error| malformed(error.to_string()))?;
        let known = presets.keys().cloned().collect::<Vec<_>>().join(", ");
        let found = presets.remove(preset);
        let found = found.ok_or_else(|| SuiteError::Preset { preset: preset.to_owned(), known })?;
        let preset = Preset::read(found).map_err(|reason| malformed(format!("{preset}: {reason}")))?;
        Ok(Self { label: label.to_owned(), model: model.to_owned(), preset })
    }

    /// The item's messages with the preset around them.
    pub fn messages(&self, item: &Item) -> Result<Vec<Message>, SuiteError> {
        let own_system = item.messages.first().is_some_and(|message| message.role == Role::System);
        if self.preset.system.is_some() && own_system {
            return Err(SuiteError::Contender(format!(
                "item '{}' begins with a system message of its own, as does the preset of '{}'",
                item.id, self.label
            )));
        }
        let system = self.preset.system.iter().map(|content| Message {
            role: Role::System,
            content: content.clone(),
            name: None,
        });
        let wrapped = item.messages.iter().map(|message| match (&self.preset.wrap, message.role) {
            (Some(wrap), Role::User) => {
                Message { content: wrap.replacen("{message}", &message.content, 1), ..message.clone() }
            }
            _ => message.clone(),
        });
        Ok(system.chain(self.preset.messages.iter().cloned()).chain(wrapped).collect())
    }
}

impl Preset {
    fn read(value: Value) -> Result<Self, String> {
        let Value::Object(mut object) = value else { return Err("not a JSON object".to_owned()) };
        let preset = Self {
            system: take(&mut object, "system")?,
            messages: take(&mut object, "messages")?.unwrap_or_default(),
            wrap: take(&mut object, "wrap")?,
        };
        nothing_left(&object)?;
        match &preset.wrap {
            Some(wrap) if wrap.matches("{message}").count() != 1 => {
                Err("wrap has to hold {message} exactly once".to_owned())
            }
            Some(_) | None => Ok(preset),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn suite(text: &str) -> Result<Suite, SuiteError> {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("s.jsonl");
        std::fs::write(&path, text).expect("written");
        Suite::read(&path)
    }

    const HEADER: &str = r#"{"suite":"s","sampling":{"temperature":0,"max_tokens":9},"scorers":[{"kind":"exact"}]}"#;

    #[test]
    fn items_fall_back_to_the_header_key_by_key() {
        let suite = suite(&format!(
            "{HEADER}\n\n{}",
            r#"{"id":"a","messages":[{"role":"user","content":"hi"}],"expect":"x","sampling":{"max_tokens":3}}"#
        ))
        .expect("a suite");
        assert_eq!(suite.primary, "exact");
        assert_eq!(suite.items[0].sampling["temperature"], 0);
        assert_eq!(suite.items[0].sampling["max_tokens"], 3);
    }

    #[test]
    fn every_fault_names_its_line() {
        let item = r#"{"id":"a","messages":[{"role":"user","content":"hi"}],"expect":"x"}"#;
        for (text, what) in [
            (format!("{HEADER}\n{item}\n{item}"), "line 3: the id 'a' stands twice"),
            (format!("{HEADER}\n{item}\n{HEADER}"), "line 3: a header may only stand first"),
            (format!("{HEADER}\n{}", item.replace("\"expect\"", "\"expected\"")), "line 2"),
            (item.to_owned(), "line 1: there are no scorers"),
            (HEADER.to_owned(), "it has no items"),
            (format!("{HEADER}\n[]"), "line 2: not a JSON object"),
        ] {
            let error = suite(&text).expect_err(what).to_string();
            assert!(error.contains(what), "{error} should say: {what}");
        }
    }
}
