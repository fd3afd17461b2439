//! Answers that have to be of a form.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Finding, parsed, schema::Schema, settled};
use crate::feedback::rules::file;

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Given {
    /// A JSON schema as a string of JSON or as a table.
    #[serde(default, skip_serializing)]
    schema: Option<toml::Value>,
    /// A file that has it.
    #[serde(default, skip_serializing)]
    file: Option<String>,
    #[serde(default)]
    format: Option<Format>,
    /// Whether the JSON may stand in a Markdown fence.
    #[serde(default)]
    fenced: bool,
}

/// Forms that need no schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Format {
    Json,
    JsonObject,
    Number,
    OneLine,
}

/// The form that answers have to have.
#[derive(Debug)]
pub struct Shape {
    schema: Option<Schema>,
    format: Format,
    fenced: bool,
}

impl Shape {
    /// # Errors
    /// A schema that is not understood whole.
    pub fn read(parameters: toml::Table, folder: Option<&Path>) -> Result<(Self, Value), String> {
        let given: Given = parsed(parameters)?;
        let schema = match (&given.schema, &given.file) {
            (Some(_), Some(_)) => return Err("schema and file are given; one is enough".to_owned()),
            (Some(toml::Value::String(text)), None) => Some(json(text, "schema")?),
            (Some(table), None) => Some(serde_json::to_value(table).map_err(|error| format!("schema: {error}"))?),
            (None, Some(name)) => Some(json(&file(folder, name)?, name)?),
            (None, None) => None,
        };
        let format = match (given.format, &schema) {
            (Some(Format::Number | Format::OneLine), Some(_)) => {
                return Err("a schema is for JSON; leave the format out".to_owned());
            }
            (Some(format), _) => format,
            (None, Some(_)) => Format::Json,
            (None, None) => {
                return Err(
                    "it needs a schema, a file with one, or a format (json, json_object, number, one_line)".to_owned()
                );
            }
        };
        let mut whole = settled(&given);
        whole["schema"] = schema.clone().unwrap_or_default();
        let schema = schema.as_ref().map(Schema::read).transpose()?;
        Ok((Self { schema, format, fenced: given.fenced }, whole))
    }

    pub fn look(&self, answer: &str) -> Option<Finding> {
        let text = answer.trim();
        let text = if self.fenced { unfenced(text) } else { text };
        let wrong = match self.format {
            Format::Number => text.parse::<f64>().is_err().then(|| "it is no number".to_owned()),
            Format::OneLine => text.contains('\n').then(|| "it has more than one line".to_owned()),
            Format::Json | Format::JsonObject => match serde_json::from_str::<Value>(text) {
                // Its own words would repeat the answer's.
                Err(error) => Some(format!("it is no JSON from line {}, column {} on", error.line(), error.column())),
                Ok(value) if self.format == Format::JsonObject && !value.is_object() => {
                    Some("it is JSON, but no object".to_owned())
                }
                Ok(value) => self.schema.as_ref().and_then(|schema| schema.objection(&value)),
            },
        };
        wrong.map(|reason| Finding { reason, value: None })
    }
}

fn json(text: &str, place: &str) -> Result<Value, String> {
    serde_json::from_str(text).map_err(|error| format!("{place} is no JSON: {error}"))
}

fn unfenced(text: &str) -> &str {
    let Some(inner) = text.strip_prefix("```").and_then(|rest| rest.strip_suffix("```")) else { return text };
    // The language stands behind the first fence.
    inner.split_once('\n').map_or(inner, |(_, body)| body).trim()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(parameters: &str) -> Shape {
        Shape::read(toml::from_str(parameters).unwrap(), Some(Path::new("."))).unwrap().0
    }

    fn reason(shape: &Shape, answer: &str) -> Option<String> {
        shape.look(answer).map(|finding| finding.reason)
    }

    #[test]
    fn a_schema_may_be_a_string_or_a_table() {
        for given in
            [r#"schema = '{"type": "object", "required": ["a"]}'"#, "[schema]\ntype = 'object'\nrequired = ['a']"]
        {
            let shape = shape(given);
            assert_eq!(reason(&shape, " {\"a\": 1}\n"), None);
            assert_eq!(reason(&shape, "{}").unwrap(), "the whole: 'a' is missing");
            let broken = reason(&shape, "{\"a\": secret}").unwrap();
            assert!(broken.starts_with("it is no JSON from line 1, column") && !broken.contains("secret"), "{broken}");
        }
    }

    #[test]
    fn formats_without_a_schema_are_held() {
        for (format, fine, bad) in [
            ("json", "[1]", "[1"),
            ("json_object", "{}", "[1]"),
            ("number", " -2.5 ", "two"),
            ("one_line", "one line\n", "two\nlines"),
        ] {
            let shape = shape(&format!("format = '{format}'"));
            assert_eq!((reason(&shape, fine), reason(&shape, bad).is_some()), (None, true), "{format}");
        }
        let fenced = shape("format = 'json'\nfenced = true");
        assert_eq!(reason(&fenced, "```json\n{\"a\": 1}\n```"), None);
        assert!(reason(&shape("format = 'json'"), "```json\n{}\n```").is_some());
    }

    #[test]
    fn what_says_nothing_or_too_much_is_refused() {
        let refused = |text: &str| Shape::read(toml::from_str(text).unwrap(), Some(Path::new("."))).unwrap_err();
        assert!(refused("").contains("needs a schema"));
        assert!(refused("schema = '{'").contains("no JSON"));
        assert!(refused("schema = '{}'\nfile = 'x'").contains("one is enough"));
        assert!(refused("file = 'nowhere.json'").contains("nowhere.json"));
        assert!(refused("schema = '{\"patternProperties\": {}}'").contains("not known"));
        assert!(refused("schema = '{}'\nformat = 'number'").contains("leave the format out"));
        assert!(refused("shema = '{}'").contains("unknown field"));
    }
}
