//! How a server's answers are printed. Texts of others are escaped: what they say may not drive a terminal.

use serde_json::Value;

use crate::terms::Moment;

/// A value in one line; `-` where there is none.
pub fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => escaped(text),
        other => other.to_string(),
    }
}

/// A text with its own lines.
pub fn words(value: &Value) -> String {
    match value {
        Value::String(text) => text.lines().map(escaped).collect::<Vec<_>>().join("\n"),
        other => text(other),
    }
}

fn escaped(text: &str) -> String {
    text.chars()
        .flat_map(|c| c.escape_debug().collect::<Vec<_>>())
        .collect::<String>()
        .replace("\\'", "'")
        .replace("\\\"", "\"")
}

/// A version as people see it.
pub fn short(value: &Value) -> String {
    value.as_str().map_or_else(|| "-".to_owned(), |version| version.chars().take(12).collect())
}

/// Seconds since the Unix epoch, as a moment.
pub fn moment(value: &Value) -> String {
    value.as_i64().map_or_else(|| "-".to_owned(), |seconds| Moment::from_unix(seconds).to_string())
}

/// Columns as wide as what stands in them.
pub fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let mut widths = [0; N];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut shown = String::new();
    for row in rows {
        let cells: Vec<String> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        shown.push_str(cells.join("  ").trim_end());
        shown.push('\n');
    }
    shown
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn words_of_others_cannot_drive_a_terminal() {
        let nasty = json!("it's \"red\" \u{1b}[31m\nover");
        assert_eq!(text(&nasty), "it's \"red\" \\u{1b}[31m\\nover");
        assert_eq!(words(&nasty), "it's \"red\" \\u{1b}[31m\nover");
        assert_eq!((text(&json!(null)), words(&json!(7))), ("-".to_owned(), "7".to_owned()));
    }
}
