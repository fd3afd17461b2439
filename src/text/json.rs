//! The `tojson` filter of chat templates, as `transformers` defines it: Python's `json.dumps` without escaping what is not ASCII.

use std::io;

use minijinja::{
    Error, ErrorKind, Value,
    value::{Kwargs, ValueKind},
};
use serde::Serialize;
use serde_json::ser::{Formatter, Serializer};

/// `value | tojson(indent=…, separators=…, sort_keys=…)`.
pub(super) fn tojson(value: &Value, options: Kwargs) -> Result<Value, Error> {
    if options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false) {
        return Err(Error::new(ErrorKind::InvalidOperation, "tojson(ensure_ascii=true) is not supported"));
    }
    let indent: Option<Value> = options.get("indent")?;
    let indent = match indent {
        Some(indent) if indent.kind() == ValueKind::Number => {
            let spaces = usize::try_from(indent).ok().filter(|&spaces| spaces <= 16);
            Some(" ".repeat(spaces.ok_or_else(|| Error::new(ErrorKind::InvalidOperation, "indent must be 0 to 16"))?))
        }
        Some(indent) => indent.as_str().map(str::to_owned),
        None => None,
    };
    let separators: Option<Vec<String>> = options.get("separators")?;
    let (item, key) = match separators.as_deref() {
        Some([item, key]) => (item.clone(), key.clone()),
        Some(_) => return Err(Error::new(ErrorKind::InvalidOperation, "separators must be two strings")),
        None if indent.is_some() => (",".into(), ": ".into()),
        None => (", ".into(), ": ".into()),
    };
    let sort_keys = options.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    options.assert_all_used()?;
    let failed = |error: serde_json::Error| Error::new(ErrorKind::BadSerialization, error.to_string());
    let mut json = serde_json::to_value(value).map_err(failed)?;
    if sort_keys {
        json.sort_all_objects();
    }
    let mut bytes = Vec::new();
    json.serialize(&mut Serializer::with_formatter(
        &mut bytes,
        PythonFormatter { indent, item, key, depth: 0, empty: true },
    ))
    .map_err(failed)?;
    String::from_utf8(bytes)
        .map(Value::from)
        .map_err(|error| Error::new(ErrorKind::BadSerialization, error.to_string()))
}

/// Lays JSON out as Python does.
struct PythonFormatter {
    /// One level's indentation; `None` is everything on one line.
    indent: Option<String>,
    item: String,
    key: String,
    depth: usize,
    /// The innermost list or object has nothing in it yet.
    empty: bool,
}

impl PythonFormatter {
    fn new_line(&self, writer: &mut (impl io::Write + ?Sized)) -> io::Result<()> {
        let Some(indent) = &self.indent else { return Ok(()) };
        writer.write_all(b"\n")?;
        (0..self.depth).try_for_each(|_| writer.write_all(indent.as_bytes()))
    }

    fn open(&mut self, writer: &mut (impl io::Write + ?Sized), bracket: &[u8]) -> io::Result<()> {
        self.depth += 1;
        self.empty = true;
        writer.write_all(bracket)
    }

    fn close(&mut self, writer: &mut (impl io::Write + ?Sized), bracket: &[u8]) -> io::Result<()> {
        self.depth -= 1;
        if !self.empty {
            self.new_line(writer)?;
        }
        self.empty = false;
        writer.write_all(bracket)
    }

    fn next_item(&mut self, writer: &mut (impl io::Write + ?Sized), first: bool) -> io::Result<()> {
        if !first {
            writer.write_all(self.item.as_bytes())?;
        }
        self.empty = false;
        self.new_line(writer)
    }
}

impl Formatter for PythonFormatter {
    fn begin_array<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.open(writer, b"[")
    }

    fn end_array<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.close(writer, b"]")
    }

    fn begin_array_value<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.next_item(writer, first)
    }

    fn begin_object<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.open(writer, b"{")
    }

    fn end_object<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.close(writer, b"}")
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.next_item(writer, first)
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(self.key.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_laid_out_as_python_does() {
        let value = Value::from(minijinja::value::Serde(
            serde_json::json!({"b": [1, 2.5, {}], "a": "é \"x\"\n<tag>", "n": null}),
        ));
        let text = |options: Vec<(&str, Value)>| {
            tojson(&value, options.into_iter().collect()).map(|v| v.to_string()).unwrap_or_else(|e| e.to_string())
        };
        assert_eq!(text(vec![]), r#"{"b": [1, 2.5, {}], "a": "é \"x\"\n<tag>", "n": null}"#);
        assert_eq!(
            text(vec![("indent", 2.into()), ("sort_keys", true.into())]),
            "{\n  \"a\": \"é \\\"x\\\"\\n<tag>\",\n  \"b\": [\n    1,\n    2.5,\n    {}\n  ],\n  \"n\": null\n}"
        );
        assert_eq!(
            text(vec![("separators", vec![",", ":"].into())]),
            r#"{"b":[1,2.5,{}],"a":"é \"x\"\n<tag>","n":null}"#
        );
        assert!(text(vec![("ensure_ascii", true.into())]).contains("not supported"));
        assert!(text(vec![("colour", true.into())]).contains("colour"));
    }
}
