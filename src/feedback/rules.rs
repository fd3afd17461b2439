//! Rules as their owner writes them: TOML, read whole or not at all, each with a version that changes with anything that changes
//! what it finds.

use std::{collections::BTreeMap, fmt::Write, path::Path};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{checks::Check, subject::Subject};
use crate::{
    config::FlagRules,
    journal::{AnswerFact, CompletionKind},
    terms::{AdapterVersion, Digest, Hasher},
};

/// What holds where no file is given.
pub const DEFAULT: &str = include_str!("rules.toml");
const MAX_RULES: usize = 256;
const MAX_NAME: usize = 64;

/// Every rule of a server, in the order of its file.
#[derive(Debug)]
pub struct RuleSet {
    pub rules: Vec<Rule>,
    /// Of all rules together.
    pub digest: Digest,
}

/// What to look for in which answers, and what to do then.
#[derive(Debug)]
pub struct Rule {
    pub name: String,
    /// Digest over everything but the description.
    pub version: Digest,
    pub description: Option<String>,
    pub filter: Filter,
    /// Of the answers that the filter lets through, the share that is looked at: by a hash of their ids, so the same ones whenever
    /// one looks.
    pub sample: f64,
    pub action: Action,
    pub check: Check,
    /// As it was understood, defaults included.
    pub settled: Value,
}

/// What is done about a finding.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// The answer is flagged.
    #[default]
    Flag,
    /// The answer is flagged, and the log says so.
    Log,
    /// It only counts, in the metric.
    Count,
}

/// Which answers a rule looks at: those that fit everything that is given.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Filter {
    /// `model` as answers echo it: an adapter's name or the base's.
    model: OneOrMore,
    /// 6 or more digits of an adapter's version.
    version: OneOrMore,
    /// Names of keys.
    key: OneOrMore,
    /// `chat` or `completions`.
    #[serde(skip_serializing_if = "Option::is_none")]
    kind: Option<CompletionKind>,
    metadata: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(from = "Words", into = "Vec<String>")]
struct OneOrMore(Vec<String>);

#[derive(Deserialize)]
#[serde(untagged, expecting = "it has to be a string or a list of strings")]
enum Words {
    One(String),
    More(Vec<String>),
}

impl From<Words> for OneOrMore {
    fn from(words: Words) -> Self {
        match words {
            Words::One(word) => Self(vec![word]),
            Words::More(words) => Self(words),
        }
    }
}

impl From<OneOrMore> for Vec<String> {
    fn from(OneOrMore(words): OneOrMore) -> Self {
        words
    }
}

impl OneOrMore {
    fn allows(&self, fits: impl Fn(&str) -> bool) -> bool {
        self.0.is_empty() || self.0.iter().any(|word| fits(word))
    }
}

/// What a filter asks of an answer.
struct Asked<'a> {
    model: &'a str,
    version: Option<&'a AdapterVersion>,
    key: Option<&'a str>,
    kind: CompletionKind,
}

impl Filter {
    fn allows<'a>(&self, asked: &Asked<'a>, metadata: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.model.allows(|model| model == asked.model)
            && self.version.allows(|prefix| asked.version.is_some_and(|version| version.0.starts_with(prefix)))
            && self.key.allows(|key| asked.key == Some(key))
            && self.kind.is_none_or(|kind| kind == asked.kind)
            && self.metadata.iter().all(|(name, value)| metadata(name) == Some(value.as_str()))
    }

    fn fault(&self) -> Option<String> {
        let short = self.version.0.iter().find(|prefix| {
            prefix.len() < 6 || !prefix.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
        });
        short.map(|prefix| format!("where.version: '{prefix}' is not 6 or more of a version's hex digits"))
    }
}

impl RuleSet {
    /// No rules.
    pub fn none() -> Self {
        Self { rules: Vec::new(), digest: Digest::of(b"") }
    }

    /// The rules that a setting names.
    ///
    /// # Errors
    /// As [`RuleSet::parse`].
    pub fn of(source: &FlagRules) -> Result<Self, Vec<String>> {
        match source {
            FlagRules::Default => Self::parse(DEFAULT, None),
            FlagRules::None => Ok(Self::none()),
            FlagRules::File(path) => Self::read(path),
        }
    }

    /// The rules of a TOML text. Files that it names are looked for in `folder`; without one they are refused.
    ///
    /// # Errors
    /// Every fault, at least one: the rule and what is wrong with it.
    pub fn parse(text: &str, folder: Option<&Path>) -> Result<Self, Vec<String>> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct File {
            #[serde(default)]
            rule: Vec<toml::Table>,
        }
        let file: File = toml::from_str(text).map_err(|error| vec![error.to_string().trim_end().to_owned()])?;
        let mut faults = Vec::new();
        if file.rule.len() > MAX_RULES {
            faults.push(format!("there are {} rules, more than {MAX_RULES}", file.rule.len()));
        }
        let mut rules: Vec<Rule> = Vec::new();
        for (at, table) in (1..).zip(file.rule) {
            let named = table.get("name").and_then(toml::Value::as_str).map(|name| format!("rule '{name}'"));
            match Rule::read(table, folder) {
                Ok(rule) if rules.iter().any(|known| known.name == rule.name) => {
                    faults.push(format!("rule '{}': another has this name", rule.name));
                }
                Ok(rule) => rules.push(rule),
                Err(reason) => faults.push(format!("{}: {reason}", named.unwrap_or_else(|| format!("rule {at}")))),
            }
        }
        if !faults.is_empty() {
            return Err(faults);
        }
        let all = rules.iter().fold(Hasher::new(), |all, rule| all.part(&rule.name, rule.version.as_bytes()));
        Ok(Self { digest: all.finish(), rules })
    }

    /// The rules of a file.
    ///
    /// # Errors
    /// As [`RuleSet::parse`].
    pub fn read(path: &Path) -> Result<Self, Vec<String>> {
        let text = std::fs::read_to_string(path).map_err(|error| vec![format!("{}: {error}", path.display())])?;
        Self::parse(&text, Some(path.parent().unwrap_or(Path::new(""))))
    }
}

impl Rule {
    fn read(mut table: toml::Table, folder: Option<&Path>) -> Result<Self, String> {
        let name: String = taken(&mut table, "name")?.ok_or("it needs a name")?;
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || byte == b'_';
        if name.is_empty() || name.len() > MAX_NAME || !name.bytes().all(plain) {
            return Err(format!("a name has 1 to {MAX_NAME} lower-case letters, digits, '-' and '_'"));
        }
        let kind: String = taken(&mut table, "kind")?.ok_or("it needs a kind")?;
        let description = taken(&mut table, "description")?;
        let filter: Filter = taken(&mut table, "where")?.unwrap_or_default();
        if let Some(fault) = filter.fault() {
            return Err(fault);
        }
        let sample: f64 = taken(&mut table, "sample")?.unwrap_or(1.0);
        if !(sample > 0.0 && sample <= 1.0) {
            return Err("sample is a share of answers above 0, up to 1".to_owned());
        }
        let action: Action = taken(&mut table, "action")?.unwrap_or_default();
        let (check, revision, parameters) = Check::read(&kind, table, folder)?;
        let settled = json!({
            "name": name, "kind": kind, "revision": revision, "where": filter, "sample": sample, "action": action,
            "parameters": parameters,
        });
        let version = Hasher::new().part("rule", sorted(&settled).to_string().as_bytes()).finish();
        Ok(Self { name, version, description, filter, sample, action, check, settled })
    }

    /// Whether it looks at an answer at all.
    pub fn concerns(&self, subject: &Subject<'_>) -> bool {
        let completion = subject.completion;
        let asked = Asked {
            model: &completion.model,
            version: completion.adapter.as_ref().map(|(_, version)| version),
            key: completion.key.as_deref(),
            kind: completion.kind,
        };
        self.filter.allows(&asked, |name| completion.metadata.get(name)?.as_str()) && self.samples(&completion.id)
    }

    /// The same by an answer's facts.
    pub fn concerns_fact(&self, fact: &AnswerFact, version: Option<&AdapterVersion>) -> bool {
        let asked = Asked { model: &fact.model, version, key: fact.key.as_deref(), kind: fact.kind };
        let metadata =
            |name: &str| fact.metadata.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str());
        self.filter.allows(&asked, metadata) && self.samples(&fact.id)
    }

    /// Whether it looks at every answer.
    pub fn takes_all(&self) -> bool {
        self.sample >= 1.0 && self.filter == Filter::default()
    }

    /// Whether a completion is in its sample.
    pub fn samples(&self, id: &str) -> bool {
        if self.sample >= 1.0 {
            return true;
        }
        let digest = Hasher::new().part("sample", self.name.as_bytes()).part("id", id.as_bytes()).finish();
        let [a, b, c, d, e, f, g, h, ..] = *digest.as_bytes();
        (u64::from_le_bytes([a, b, c, d, e, f, g, h]) as f64) < self.sample * 2f64.powi(64)
    }
}

fn taken<T: serde::de::DeserializeOwned>(table: &mut toml::Table, key: &str) -> Result<Option<T>, String> {
    let Some(value) = table.remove(key) else { return Ok(None) };
    value.try_into().map(Some).map_err(|error: toml::de::Error| format!("{key}: {}", error.message().trim()))
}

/// With keys in order, whatever order they were given in.
fn sorted(value: &Value) -> Value {
    let mut value = value.clone();
    value.sort_all_objects();
    value
}

/// The text of a file that a rule names.
///
/// # Errors
/// A sentence with its name.
pub(super) fn file(folder: Option<&Path>, name: &str) -> Result<String, String> {
    let path = folder.ok_or("files cannot be named here; give what is in them instead")?.join(name);
    std::fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))
}

/// Rules with what is in the files that they name in these files' place, so that somebody else can read them.
///
/// # Errors
/// A sentence. What else is wrong with the rules is for whoever reads them to say.
pub fn inlined(text: &str, folder: &Path) -> Result<String, String> {
    let mut file: toml::Table = toml::from_str(text).map_err(|error| error.to_string().trim_end().to_owned())?;
    for rule in file.get_mut("rule").and_then(toml::Value::as_array_mut).into_iter().flatten() {
        let Some(rule) = rule.as_table_mut() else { continue };
        let Some(name) = rule.get("file").and_then(toml::Value::as_str).map(str::to_owned) else { continue };
        let content = self::file(Some(folder), &name)?;
        let kind = rule.get("kind").and_then(toml::Value::as_str).unwrap_or_default();
        let (key, value) = match kind {
            "block_list" => {
                let mut words = rule.get("words").and_then(toml::Value::as_array).cloned().unwrap_or_default();
                words.extend(lines(&content).map(toml::Value::from));
                ("words", words.into())
            }
            "schema" if !rule.contains_key("schema") => ("schema", content.into()),
            _ => continue,
        };
        rule.remove("file");
        rule.insert(key.to_owned(), value);
    }
    toml::to_string(&file).map_err(|error| error.to_string())
}

/// Over the text of a file of rules and of the files that it names, read but not understood: rules are only compiled again when this
/// changes. `None` where the file cannot be read.
pub fn stamp(path: &Path) -> Option<Digest> {
    let text = std::fs::read_to_string(path).ok()?;
    let mut stamp = Hasher::new().part("rules", text.as_bytes());
    let table: toml::Table = toml::from_str(&text).unwrap_or_default();
    for rule in table.get("rule").and_then(toml::Value::as_array).into_iter().flatten() {
        let Some(name) = rule.get("file").and_then(toml::Value::as_str) else { continue };
        let content = file(path.parent(), name).unwrap_or_default();
        stamp = stamp.part(name, content.as_bytes());
    }
    Some(stamp.finish())
}

/// What a list in a file says: empty lines and those that begin with `#` say nothing.
pub(super) fn lines(text: &str) -> impl Iterator<Item = &str> {
    text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'))
}

/// Rules by name and short version, for a log line.
pub fn listed(rules: &RuleSet) -> String {
    let mut text = String::new();
    for rule in &rules.rules {
        let gap = if text.is_empty() { "" } else { ", " };
        // Writing to a string cannot fail.
        let _ = write!(text, "{gap}{}@{}", rule.name, rule.version.short());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<RuleSet, Vec<String>> {
        RuleSet::parse(text, Some(Path::new(".")))
    }

    #[test]
    fn the_rules_that_hold_by_default_are_sound() {
        let rules = parse(DEFAULT).unwrap();
        let names: Vec<&str> = rules.rules.iter().map(|rule| rule.name.as_str()).collect();
        for name in ["truncated", "empty", "loop", "low-confidence", "refusal", "client-left", "asked-again"] {
            assert!(names.contains(&name), "{names:?}");
        }
        assert!(rules.rules.iter().all(|rule| rule.description.is_some()));
    }

    #[test]
    fn every_kind_is_read_and_one_without_rows_is_refused_by_its_name() {
        let rules = "
            [[rule]]\nname = 'a'\nkind = 'regex'\npattern = 'x'\nmust_match = true\non = 'question'
            [[rule]]\nname = 'b'\nkind = 'block_list'\nwords = ['x']
            [[rule]]\nname = 'c'\nkind = 'schema'\nformat = 'json'
            [[rule]]\nname = 'd'\nkind = 'slow'\ntotal_ms = 5000
            [[rule]]\nname = 'e'\nkind = 'pii'\nkinds = ['email']
            [[rule]]\nname = 'f'\nkind = 'language'\nexpect = 'deu'
        ";
        assert_eq!(parse(rules).unwrap().rules.len(), 6);
        let far = parse("[[rule]]\nname = 'f'\nkind = 'far'").unwrap_err();
        assert!(far[0].contains("kind 'far' cannot be used: no row has an embedding"), "{far:?}");
    }

    #[test]
    fn every_fault_of_a_file_is_told_with_its_rule() {
        let rules = "
            [[rule]]\nname = 'one'\nkind = 'nonsense'
            [[rule]]\nname = 'two'\nkind = 'loop'\nrepeats = 'many'
            [[rule]]\nname = 'three'\nkind = 'loop'\nrepaets = 3
            [[rule]]\nname = 'four'\nkind = 'low_confidence'\nbudget = 2.0
            [[rule]]\nname = 'Five'\nkind = 'empty'
            [[rule]]\nname = 'six'\nkind = 'empty'\nsample = 0
            [[rule]]\nname = 'seven'\nkind = 'empty'\nwhere = {adapter = 'x'}
            [[rule]]\nname = 'eight'\nkind = 'empty'\nwhere = {version = 'xyz'}
            [[rule]]\nname = 'nine'\nkind = 'slow'
            [[rule]]\nname = 'ten'\nkind = 'empty'\naction = 'call'
            [[rule]]\nname = 'ten'\nkind = 'empty'
            [[rule]]\nname = 'ten'\nkind = 'empty'
            [[rule]]\nkind = 'empty'
        ";
        let faults = parse(rules).unwrap_err();
        for (at, part) in [
            "there is no kind 'nonsense'; there are truncated",
            "rule 'two': invalid type",
            "unknown field `repaets`",
            "above 0, up to 0.5",
            "lower-case",
            "sample is a share",
            "unknown field `adapter`",
            "rule 'eight': where.version",
            "rule 'nine': it needs total_ms",
            "rule 'ten': action: unknown variant `call`",
            "rule 'ten': another has this name",
            "rule 13: it needs a name",
        ]
        .into_iter()
        .enumerate()
        {
            assert!(faults[at].contains(part), "{part} is not in {}", faults[at]);
        }
        assert_eq!(faults.len(), 12, "{faults:#?}");
        assert!(parse("[[rules]]").unwrap_err()[0].contains("unknown field"));
    }

    #[test]
    fn a_version_changes_with_what_a_rule_finds_and_with_nothing_else() {
        let version = |text: &str| parse(&format!("[[rule]]\nname = 'a'\n{text}")).unwrap().rules[0].version;
        let one = version("kind = 'loop'");
        assert_eq!(one, version("kind = 'loop'\nrepeats = 4\ndescription = 'x'"), "the default said aloud");
        assert_eq!(
            version("kind = 'empty'\nwhere = {model = 'm'}"),
            version("where = {model = ['m']}\nkind = 'empty'")
        );
        for other in [
            "kind = 'loop'\nrepeats = 5",
            "kind = 'loop'\nsample = 0.5",
            "kind = 'loop'\naction = 'count'",
            "kind = 'empty'",
        ] {
            assert_ne!(one, version(other), "{other}");
        }
    }

    #[test]
    fn a_file_that_a_rule_names_is_part_of_its_version() {
        let folder = tempfile::tempdir().unwrap();
        let rules = "[[rule]]\nname = 'a'\nkind = 'block_list'\nfile = 'words.txt'";
        let version = |words: &str| {
            std::fs::write(folder.path().join("words.txt"), words).unwrap();
            RuleSet::parse(rules, Some(folder.path())).map(|set| set.rules[0].version)
        };
        assert_ne!(version("one\n").unwrap(), version("one\ntwo\n").unwrap());
        assert_eq!(version("one\n").unwrap(), version("# words\n\none").unwrap());
        assert!(version("# none").unwrap_err()[0].contains("needs words"));
        let refused = RuleSet::parse(rules, None).unwrap_err();
        assert!(refused[0].contains("files cannot be named here"), "{refused:?}");
    }

    #[test]
    fn rules_with_their_files_in_place_are_the_same_rules() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("words.txt"), "one\n# no\ntwo").unwrap();
        std::fs::write(folder.path().join("schema.json"), r#"{"type": "object"}"#).unwrap();
        let rules = "
            [[rule]]\nname = 'a'\nkind = 'block_list'\nfile = 'words.txt'\nwords = ['zero']
            [[rule]]\nname = 'b'\nkind = 'schema'\nfile = 'schema.json'
        ";
        let here = RuleSet::parse(rules, Some(folder.path())).unwrap();
        let there = RuleSet::parse(&inlined(rules, folder.path()).unwrap(), None).unwrap();
        assert_eq!(here.digest, there.digest);
        assert!(
            inlined("[[rule]]\nkind = 'schema'\nfile = 'none.json'", folder.path()).unwrap_err().contains("none.json")
        );
    }

    #[test]
    fn a_sample_is_about_as_large_as_it_says_and_the_same_each_time() {
        let rule = &parse("[[rule]]\nname = 'a'\nkind = 'empty'\nsample = 0.25").unwrap().rules[0];
        let ids: Vec<String> = (0..4000).map(|at| format!("chatcmpl-{at}")).collect();
        let sampled = ids.iter().filter(|id| rule.samples(id)).count();
        assert!((850..=1150).contains(&sampled), "{sampled} of 4000");
        assert!(ids.iter().all(|id| rule.samples(id) == rule.samples(id)));
    }
}
