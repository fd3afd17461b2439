//! The record as a file: JSON lines, or a flat table as CSV or Parquet, page by page, in the order of admission.

mod parquet;

use std::{collections::VecDeque, fmt::Write};

use bytes::Bytes;
use futures_util::{Stream, stream};

use self::parquet::Parquet;
use super::{
    Journal, JournalError,
    flat::{Cell, Columns, Kind},
    shown::{View, answer},
};
use crate::{
    store::{Completion, Search},
    terms::Moment,
};

/// Answers that are read at a time.
const PAGE: usize = 500;
/// Rows of a table that stand together in a Parquet file.
const GROUP: usize = 5000;
/// Text that may stand together there.
const GROUP_BYTES: usize = 32 << 20;

/// What kind of file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Jsonl,
    Csv,
    Parquet,
}

impl Format {
    pub fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "jsonl" => Self::Jsonl,
            "csv" => Self::Csv,
            "parquet" => Self::Parquet,
            _ => return None,
        })
    }

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Jsonl => "jsonl",
            Self::Csv => "csv",
            Self::Parquet => "parquet",
        }
    }

    pub const fn media_type(self) -> &'static str {
        match self {
            Self::Jsonl => "application/x-ndjson",
            Self::Csv => "text/csv; charset=utf-8",
            Self::Parquet => "application/vnd.apache.parquet",
        }
    }
}

impl Journal {
    /// All that the search finds, whatever its page and limit are, in its order. Ends with the first error.
    pub fn export(
        &self,
        search: Search,
        format: Format,
        view: View,
    ) -> impl Stream<Item = Result<Bytes, JournalError>> + Send + use<> {
        let search = Search { limit: PAGE, after: None, ..search };
        let (writer, head) = Writer::begin(format, view);
        let ready = VecDeque::from([head]);
        let export = Export { journal: self.clone(), search, writer: Some(writer), ready };
        stream::unfold(export, |mut export| async { export.next().await.map(|item| (item, export)) })
    }
}

struct Export {
    journal: Journal,
    search: Search,
    /// Gone when all is written, or failed.
    writer: Option<Writer>,
    ready: VecDeque<Bytes>,
}

impl Export {
    async fn next(&mut self) -> Option<Result<Bytes, JournalError>> {
        loop {
            if let Some(bytes) = self.ready.pop_front() {
                if bytes.is_empty() {
                    continue;
                }
                return Some(Ok(bytes));
            }
            let mut writer = self.writer.take()?;
            let page = match self.journal.search(self.search.clone()).await {
                Ok(page) => page,
                Err(error) => return Some(Err(error)),
            };
            self.ready.push_back(writer.page(&page.completions));
            match page.next {
                Some(next) => {
                    self.search.after = Some(next);
                    self.writer = Some(writer);
                }
                None => self.ready.push_back(writer.end()),
            }
        }
    }
}

enum Writer {
    Jsonl(View),
    Csv(Columns),
    Parquet { columns: Columns, file: Parquet, rows: Vec<Vec<Cell>>, bytes: usize },
}

impl Writer {
    fn begin(format: Format, view: View) -> (Self, Bytes) {
        let columns = Columns { content: view.content, sketch: view.scores };
        match format {
            Format::Jsonl => (Self::Jsonl(view), Bytes::new()),
            Format::Csv => (Self::Csv(columns), csv_head(&columns.names()).into()),
            Format::Parquet => {
                let (file, head) = Parquet::begin(columns.names());
                (Self::Parquet { columns, file, rows: Vec::new(), bytes: 0 }, head.into())
            }
        }
    }

    fn page(&mut self, completions: &[Completion]) -> Bytes {
        match self {
            Self::Jsonl(view) => completions
                .iter()
                .map(|completion| format!("{}\n", answer(completion, *view)))
                .collect::<String>()
                .into(),
            Self::Csv(columns) => {
                let mut text = String::new();
                for row in completions.iter().flat_map(|completion| columns.rows(completion)) {
                    csv_row(&mut text, &row);
                }
                text.into()
            }
            Self::Parquet { columns, file, rows, bytes } => {
                for row in completions.iter().flat_map(|completion| columns.rows(completion)) {
                    *bytes +=
                        row.iter().map(|cell| if let Cell::Text(text) = cell { text.len() } else { 8 }).sum::<usize>();
                    rows.push(row);
                }
                if rows.len() < GROUP && *bytes < GROUP_BYTES {
                    return Bytes::new();
                }
                *bytes = 0;
                file.group(&std::mem::take(rows)).into()
            }
        }
    }

    fn end(self) -> Bytes {
        match self {
            Self::Jsonl(_) | Self::Csv(_) => Bytes::new(),
            Self::Parquet { mut file, rows, .. } => {
                let mut last = if rows.is_empty() { Vec::new() } else { file.group(&rows) };
                last.extend(file.end());
                last.into()
            }
        }
    }
}

fn csv_head(columns: &[(String, Kind)]) -> String {
    let names: Vec<&str> = columns.iter().map(|(name, _)| name.as_str()).collect();
    names.join(",") + "\r\n"
}

/// As RFC 4180 has it; times as ISO 8601 in UTC.
fn csv_row(text: &mut String, row: &[Cell]) {
    for (at, cell) in row.iter().enumerate() {
        if at > 0 {
            text.push(',');
        }
        // Writing to a `String` cannot fail.
        let _ = match cell {
            Cell::Nothing => Ok(()),
            Cell::Integer(value) => write!(text, "{value}"),
            Cell::Number(value) => write!(text, "{value}"),
            Cell::Boolean(value) => write!(text, "{value}"),
            Cell::Time(ms) => write!(text, "{}", iso(*ms)),
            Cell::Text(value) if value.contains(['"', ',', '\n', '\r']) => {
                write!(text, "\"{}\"", value.replace('"', "\"\""))
            }
            // Empty text is not nothing.
            Cell::Text(value) if value.is_empty() => write!(text, "\"\""),
            Cell::Text(value) => write!(text, "{value}"),
        };
    }
    text.push_str("\r\n");
}

fn iso(ms: i64) -> String {
    let seconds = Moment::from_unix(ms.div_euclid(1000)).format("%Y-%m-%dT%H:%M:%S").unwrap_or_default();
    format!("{seconds}.{:03}Z", ms.rem_euclid(1000))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_a_table_is_what_every_reader_of_csv_expects() {
        let mut text = String::new();
        csv_row(
            &mut text,
            &[
                Cell::Text("a \"quoted\", long\nline".to_owned()),
                Cell::Nothing,
                Cell::Text(String::new()),
                Cell::Integer(-3),
                Cell::Number(0.5),
                Cell::Boolean(true),
                Cell::Time(1_790_000_000_123),
            ],
        );
        let expected = "\"a \"\"quoted\"\", long\nline\",,\"\",-3,0.5,true,2026-09-21T14:13:20.123Z\r\n";
        assert_eq!(text, expected);
    }
}
