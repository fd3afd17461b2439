//! Answers on record for a person. Texts are quoted and escaped: what a model said may not drive a terminal.

use std::fmt;

use serde_json::{Value, json};

use crate::terms::Moment;

/// Characters of a text on one line.
const SNIPPET: usize = 60;

/// One request on one line: when, how long, which weights, how it ended, what was asked and said.
pub fn line(answer: &Value) -> String {
    let first = &answer["choices"][0];
    let model = match (answer["model"].as_str(), answer["version"].as_str()) {
        (Some(model), Some(version)) => format!("{model}@{}", short(version)),
        (model, _) => model.unwrap_or_default().to_owned(),
    };
    let split = answer["split"].as_str().unwrap_or("-");
    let ending = first["ending"].as_str().unwrap_or("-");
    let tokens = answer["usage"]["completion_tokens"].as_u64().unwrap_or(0);
    let asked = snippet(question(answer).as_deref());
    let said = snippet(first["text"].as_str());
    format!(
        "{}  {}  {model}  {split}  {ending}  {tokens} tokens  {asked} → {said}\n",
        time(&answer["created_ms"]),
        answer["id"].as_str().unwrap_or_default(),
    )
}

/// One request with everything that is known of it.
pub fn whole(answer: &Value) -> String {
    let mut text = String::new();
    for (name, value) in answer.as_object().into_iter().flatten() {
        let inside = matches!(name.as_str(), "object" | "prompts" | "choices" | "sketch");
        if inside || value.is_null() || value.as_object().is_some_and(serde_json::Map::is_empty) {
            continue;
        }
        let value = if name == "created_ms" { time(value) } else { plain(value) };
        text.push_str(&format!("{name:<18} {value}\n"));
    }
    for prompt in answer["prompts"].as_array().into_iter().flatten() {
        for message in prompt["messages"].as_array().into_iter().flatten() {
            let said =
                message["content"].as_str().map_or_else(|| message.to_string(), |content| format!("{content:?}"));
            text.push_str(&format!("{:<18} {said}\n", message["role"].as_str().unwrap_or("message")));
        }
        if let Some(words) = prompt["text"].as_str() {
            text.push_str(&format!("{:<18} {words:?}\n", "prompt"));
        }
    }
    for choice in answer["choices"].as_array().into_iter().flatten() {
        text.push_str(&format!(
            "choice {} ({}, {} tokens",
            choice["index"],
            plain(&choice["ending"]),
            choice["tokens"]
        ));
        if let Some(mean) = choice["mean_logprob"].as_f64() {
            text.push_str(&format!(", mean log-probability {mean:.3}"));
        }
        text.push_str(")\n");
        if let Some(fault) = choice["fault"].as_str() {
            text.push_str(&format!("  fault: {fault:?}\n"));
        }
        if let Some(said) = choice["text"].as_str() {
            text.push_str(&format!("  {said:?}\n"));
        }
        if !choice["tool_calls"].is_null() {
            text.push_str(&format!("  calls {}\n", choice["tool_calls"]));
        }
    }
    text
}

/// One access on one line.
pub fn access(access: &Value) -> String {
    let times = match access["times"].as_u64() {
        Some(times @ 2..) => format!(" ({times} times, until {})", time(&access["last_ms"])),
        _ => String::new(),
    };
    format!(
        "{}  {}  {}  {}{times}\n",
        time(&access["at_ms"]),
        plain(&access["who"]),
        plain(&access["deed"]),
        access["what"]
    )
}

/// What an erasure reached and what it could not.
/// How many lines a flagged export has, and what is left out of it.
pub fn left_out(summary: &Value) -> String {
    let reasons = summary["left_out"].as_object().into_iter().flatten();
    let reasons: Vec<String> = reasons.map(|(reason, count)| format!("{count} {}", reason.replace('_', " "))).collect();
    let lines = &summary["lines"];
    if reasons.is_empty() {
        format!("{lines} lines")
    } else {
        format!("{lines} lines; left out: {}", reasons.join(", "))
    }
}

pub fn erasure(erasure: &Value) -> String {
    let mut text = format!("{} answers erased; their facts stay\n", erasure["completions"]);
    for holder in erasure["held_by"].as_array().into_iter().flatten() {
        text.push_str(&format!(
            "{} held {} of them: make again what was made of them\n",
            plain(&holder["holder"]),
            holder["completions"]
        ));
    }
    let beyond = erasure["beyond_reach"].as_array().map_or(&[][..], Vec::as_slice);
    if !beyond.is_empty() {
        text.push_str("beyond reach, made since the user's first answer; they may hold it:\n");
        beyond.iter().for_each(|access_row| text.push_str(&format!("  {}", access(access_row))));
    }
    text
}

/// What became of a log's lines.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Sum {
    pub imported: u64,
    pub known: u64,
    /// Number of the line, from 1, and why.
    pub refused: Vec<(usize, String)>,
}

impl Sum {
    /// Adds an answer to lines of these numbers.
    pub fn add(&mut self, imported: &Value, numbers: &[usize]) {
        self.imported += imported["imported"].as_u64().unwrap_or(0);
        self.known += imported["known"].as_u64().unwrap_or(0);
        for refused in imported["refused"].as_array().into_iter().flatten() {
            let number = refused["row"].as_u64().and_then(|row| numbers.get(row as usize)).copied().unwrap_or(0);
            self.refused.push((number, refused["reason"].as_str().unwrap_or_default().to_owned()));
        }
    }

    pub fn json(&self) -> String {
        let refused: Vec<Value> =
            self.refused.iter().map(|(line, reason)| json!({"line": line, "reason": reason})).collect();
        format!("{}\n", json!({"imported": self.imported, "known": self.known, "refused": refused}))
    }
}

/// Reasons that are shown; the rest is counted.
const REASONS: usize = 20;

impl fmt::Display for Sum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let refused = self.refused.len();
        writeln!(f, "{} imported, {} on record already, {refused} not understood", self.imported, self.known)?;
        let mut lines: Vec<_> = self.refused.iter().collect();
        lines.sort();
        for (line, reason) in lines.iter().take(REASONS) {
            writeln!(f, "line {line}: {reason}")?;
        }
        if refused > REASONS {
            writeln!(f, "and {} more", refused - REASONS)?;
        }
        Ok(())
    }
}

fn question(answer: &Value) -> Option<String> {
    let prompt = &answer["prompts"][0];
    let messages = prompt["messages"].as_array().map_or(&[][..], Vec::as_slice);
    let asked =
        messages.iter().rfind(|message| message["role"] == "user").and_then(|message| message["content"].as_str());
    asked.or(prompt["text"].as_str()).map(str::to_owned)
}

fn snippet(text: Option<&str>) -> String {
    let Some(text) = text else { return "-".to_owned() };
    let mut short: String = text.chars().take(SNIPPET).collect();
    if text.chars().nth(SNIPPET).is_some() {
        short.push('…');
    }
    format!("{short:?}")
}

fn plain(value: &Value) -> String {
    match value {
        // Names come from clients, too.
        Value::String(text) => text.escape_debug().to_string(),
        other => other.to_string(),
    }
}

fn short(digest: &str) -> &str {
    digest.get(..12).unwrap_or(digest)
}

fn time(ms: &Value) -> String {
    let seconds = ms.as_i64().unwrap_or(0).div_euclid(1000);
    Moment::from_unix(seconds).format("%Y-%m-%d %H:%M:%S").unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_tells_what_matters_and_drives_no_terminal() {
        let answer = json!({
            "id": "chatcmpl-1", "created_ms": 1_790_000_000_123_i64, "model": "poet", "version": "0123456789abcdef",
            "split": "train", "usage": {"completion_tokens": 5},
            "prompts": [{"messages": [{"role": "user", "content": "rain?\u{1b}[31m"}]}],
            "choices": [{"ending": "stop", "text": "y".repeat(70)}],
        });
        let expected = format!(
            "2026-09-21 14:13:20  chatcmpl-1  poet@0123456789ab  train  stop  5 tokens  \"rain?\\u{{1b}}[31m\" → \"{}…\"\n",
            "y".repeat(60)
        );
        assert_eq!(line(&answer), expected);
        assert!(line(&json!({"id": "x"})).contains("- → -"));
    }

    #[test]
    fn refused_lines_are_named_by_their_numbers() {
        let mut sum = Sum::default();
        let answer = json!({"imported": 1, "known": 2, "refused": [{"row": 1, "reason": "no answer"}]});
        sum.add(&answer, &[7, 9, 10, 11]);
        assert_eq!(sum.to_string(), "1 imported, 2 on record already, 1 not understood\nline 9: no answer\n");
    }
}
