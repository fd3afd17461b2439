//! As much of YAML as files of settings use: mappings, lists and scalars. Anchors, aliases and tags are refused: a few
//! lines of them can stand for more than memory holds.

use saphyr_parser::{Event, Parser, ScalarStyle};
use serde_json::{Map, Value};

/// How deep mappings and lists may stand in each other.
const MAX_DEPTH: usize = 16;

/// Reads one document. A plain scalar is a text, but for `true`, `false`, `null` and nothing: a name may be a number.
///
/// # Errors
/// What is wrong, and in which line.
pub fn parse(text: &str) -> Result<Value, String> {
    let mut reader = Reader { events: Parser::new_from_str(text) };
    loop {
        match reader.next()? {
            (Event::StreamEnd, _) => return Ok(Value::Null),
            (Event::StreamStart | Event::DocumentStart(_) | Event::DocumentEnd | Event::Nothing, _) => {}
            (event, line) => {
                let value = reader.value(event, line, 0)?;
                return reader.end().map(|()| value);
            }
        }
    }
}

struct Reader<'a> {
    events: Parser<'a, saphyr_parser::StrInput<'a>>,
}

impl<'a> Reader<'a> {
    fn next(&mut self) -> Result<(Event<'a>, usize), String> {
        match self.events.next_event() {
            None => Ok((Event::StreamEnd, 0)),
            Some(Ok((event, span))) => Ok((event, span.start.line())),
            Some(Err(error)) => Err(error.to_string()),
        }
    }

    /// After the first document there is nothing.
    fn end(&mut self) -> Result<(), String> {
        loop {
            match self.next()? {
                (Event::StreamEnd, _) => return Ok(()),
                (Event::DocumentEnd | Event::Nothing, _) => {}
                (_, line) => return Err(format!("line {line}: a second document begins")),
            }
        }
    }

    fn value(&mut self, event: Event<'a>, line: usize, depth: usize) -> Result<Value, String> {
        if depth > MAX_DEPTH {
            return Err(format!("line {line}: more than {MAX_DEPTH} levels"));
        }
        let plain = |anchor: usize, tagged: bool| match anchor == 0 && !tagged {
            true => Ok(()),
            false => Err(format!("line {line}: anchors and tags are not read")),
        };
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                plain(anchor, tag.is_some())?;
                Ok(match (style, text.as_ref()) {
                    (ScalarStyle::Plain, "true") => Value::Bool(true),
                    (ScalarStyle::Plain, "false") => Value::Bool(false),
                    (ScalarStyle::Plain, "" | "~" | "null") => Value::Null,
                    _ => Value::String(text.into_owned()),
                })
            }
            Event::SequenceStart(anchor, tag) => {
                plain(anchor, tag.is_some())?;
                let mut list = Vec::new();
                loop {
                    match self.next()? {
                        (Event::SequenceEnd, _) => return Ok(Value::Array(list)),
                        (event, line) => list.push(self.value(event, line, depth + 1)?),
                    }
                }
            }
            Event::MappingStart(anchor, tag) => {
                plain(anchor, tag.is_some())?;
                let mut map = Map::new();
                loop {
                    let key = match self.next()? {
                        (Event::MappingEnd, _) => return Ok(Value::Object(map)),
                        (Event::Scalar(key, _, 0, None), _) => key.into_owned(),
                        (_, line) => return Err(format!("line {line}: a key has to be a word")),
                    };
                    let (event, line) = self.next()?;
                    let value = self.value(event, line, depth + 1)?;
                    if map.insert(key.clone(), value).is_some() {
                        return Err(format!("line {line}: '{key}' stands there twice"));
                    }
                }
            }
            Event::Alias(_) => Err(format!("line {line}: aliases are not read")),
            Event::Nothing
            | Event::StreamStart
            | Event::StreamEnd
            | Event::DocumentStart(_)
            | Event::DocumentEnd
            | Event::SequenceEnd
            | Event::MappingEnd => Err(format!("line {line}: it ends before its end")),
        }
    }
}
