//! Answers of other programs, from their logs: OpenAI's shapes, or any other by a mapping of its fields. They are marked
//! `imported` and name no version of ours, so that nothing takes them for evidence about one.

mod row;
mod time;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use self::row::Row;
use super::{Journal, JournalError};
use crate::store::{Durable, Outcome, Write};

/// Where the parts of a row are, as paths of field names with dots: `response.choices.0.text`. What names nothing is looked
/// for in OpenAI's places.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Mapping {
    pub id: Option<String>,
    /// A time: Unix seconds or milliseconds, or RFC 3339.
    pub created: Option<String>,
    pub model: Option<String>,
    pub user: Option<String>,
    pub conversation: Option<String>,
    /// Messages in OpenAI's form.
    pub messages: Option<String>,
    /// A text that was asked, where there are no messages.
    pub prompt: Option<String>,
    /// Instructions before the prompt.
    pub system: Option<String>,
    /// A text, or a message in OpenAI's form.
    pub answer: Option<String>,
    /// stop, length and so on.
    pub ending: Option<String>,
    pub prompt_tokens: Option<String>,
    pub output_tokens: Option<String>,
    pub latency_ms: Option<String>,
    /// An object of names and values.
    pub metadata: Option<String>,
}

/// A time as a person or a log writes it, in milliseconds since the Unix epoch: Unix seconds or milliseconds, or RFC 3339.
pub fn time_ms(text: &str) -> Option<i64> {
    time::read(&Value::from(text))
}

/// What became of imported rows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Imported {
    pub imported: u64,
    /// On record already, by the same id or the same content.
    pub known: u64,
    pub refused: Vec<RefusedRow>,
}

/// A row that is not understood.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedRow {
    /// From 0, among those given.
    pub row: usize,
    pub reason: String,
}

impl Journal {
    /// Puts the rows that are understood on record, in one transaction; the same rows again change nothing. `source` tells
    /// one log from another. Durable when this returns.
    ///
    /// # Errors
    /// [`JournalError`]; then none is on record.
    pub async fn import(&self, source: &str, rows: &[Value], mapping: &Mapping) -> Result<Imported, JournalError> {
        let (mut imported, mut writes) = (Imported::default(), Vec::new());
        for (row, given) in rows.iter().enumerate() {
            match row::read(source, given, mapping) {
                Ok(Row { mut completion, asked }) => {
                    completion.placement = Some(self.place(asked).await);
                    let admitted = self.redactor().admit(completion, self.0.policy);
                    writes.push(Write::Choices(Box::new(admitted)));
                }
                Err(reason) => imported.refused.push(RefusedRow { row, reason }),
            }
        }
        let committed = self.write_beside(move |store| {
            let writes: Vec<&Write> = writes.iter().collect();
            store.commit(&writes, Durable::Now)
        });
        let committed = committed.await?;
        self.0.progress.durable.send_if_modified(|last| {
            let later = committed.last > *last;
            *last = committed.last.max(*last);
            later
        });
        for outcome in committed.outcomes {
            match outcome {
                Outcome::Applied => imported.imported += 1,
                Outcome::Duplicate | Outcome::Missing | Outcome::Accepted(_) | Outcome::Conflict { .. } => {
                    imported.known += 1;
                }
            }
        }
        Ok(imported)
    }
}
