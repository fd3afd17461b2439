//! Queries, each within one read transaction, so that a row and its parts belong together.

use rusqlite::{
    Connection, OptionalExtension, Row, Transaction, params_from_iter,
    types::{Value as Sql, ValueRef},
};
use serde::de::DeserializeOwned;

use super::{place, write::Role};
use crate::{
    store::{
        ChoiceRecord, Completion, CompletionKind, Content, Cursor, Followed, ListQuery, Order, Page, PromptContent,
        StoreError, Thread, Timing,
        scores::{FORM, unpack, unpack_tokens},
    },
    terms::{AdapterName, AdapterVersion, Digest, Ending, Origin, RecordPolicy, Sketch, Usage},
};

pub fn completion(connection: &mut Connection, id: &str) -> Result<Option<Completion>, StoreError> {
    let transaction = connection.transaction()?;
    let seq = transaction
        .prepare_cached("SELECT seq FROM completions WHERE id = ?1")?
        .query_row([id], |row| row.get(0))
        .optional()?;
    seq.map(|seq| load(&transaction, seq, None)).transpose()
}

pub fn list(connection: &mut Connection, query: &ListQuery) -> Result<Page, StoreError> {
    let transaction = connection.transaction()?;
    let after: Option<(i64, i64)> = match &query.after {
        Some(after) => Some(
            transaction
                .prepare_cached("SELECT created_ms, seq FROM completions WHERE id = ?1")?
                .query_row([after], |row| Ok((row.get(0)?, row.get(1)?)))
                .optional()?
                .ok_or_else(|| StoreError::UnknownCursor(after.clone()))?,
        ),
        None => None,
    };
    let (sql, values) = list_sql(query, after);
    let mut rows: Vec<i64> = transaction
        .prepare_cached(&sql)?
        .query_map(params_from_iter(values), |row| row.get(0))?
        .collect::<Result<_, _>>()?;
    let more = rows.len() > query.limit;
    rows.truncate(query.limit);
    let completions = rows.into_iter().map(|seq| load(&transaction, seq, None)).collect::<Result<_, _>>()?;
    Ok(Page { completions, more })
}

/// Selects the rows of a page, and one more, which tells whether there are others behind it. `after` is the time and row
/// of the completion before the page.
fn list_sql(query: &ListQuery, after: Option<(i64, i64)>) -> (String, Vec<Sql>) {
    let (comparison, direction) = match query.order {
        Order::OldestFirst => (">", "ASC"),
        Order::NewestFirst => ("<", "DESC"),
    };
    let mut sql = "SELECT seq FROM completions WHERE stored = 1".to_owned();
    let mut values: Vec<Sql> = Vec::new();
    if let Some(model) = &query.model {
        sql += " AND model = ?";
        values.push(model.clone().into());
    }
    if let Some(key) = &query.key {
        sql += " AND key = ?";
        values.push(key.clone().into());
    }
    for (name, value) in &query.metadata {
        sql += " AND seq IN (SELECT completion FROM metadata WHERE name = ? AND value = ?)";
        values.extend([name.clone().into(), serde_json::Value::from(value.as_str()).to_string().into()]);
    }
    if let Some((created_ms, seq)) = after {
        sql += &format!(" AND (created_ms, seq) {comparison} (?, ?)");
        values.extend([created_ms.into(), seq.into()]);
    }
    sql += &format!(" ORDER BY created_ms {direction}, seq {direction} LIMIT ?");
    values.push(saturated(query.limit.saturating_add(1) as u64).into());
    (sql, values)
}

pub fn follow(connection: &mut Connection, after: Cursor, limit: usize) -> Result<Vec<Followed>, StoreError> {
    let transaction = connection.transaction()?;
    let rows: Vec<(i64, i64, u32)> = transaction
        .prepare_cached("SELECT seq, completion, position FROM choices WHERE seq > ?1 ORDER BY seq LIMIT ?2")?
        .query_map([saturated(after.0), saturated(limit as u64)], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?
        .collect::<Result<_, _>>()?;
    rows.into_iter()
        .map(|(cursor, seq, position)| {
            let completion = load(&transaction, seq, Some(position))?;
            Ok(Followed { cursor: Cursor(cursor as u64), completion })
        })
        .collect()
}

fn saturated(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// The request `seq` with all its choices, or with one.
pub fn load(transaction: &Transaction<'_>, seq: i64, only: Option<u32>) -> Result<Completion, StoreError> {
    let mut completion = transaction
        .prepare_cached("SELECT * FROM completions WHERE seq = ?1")?
        .query_row([seq], |row| Ok(fact(row)))??;
    let corrupt = |reason: &str| StoreError::Corrupt { id: completion.id.clone(), reason: reason.to_owned() };

    let mut select =
        transaction.prepare_cached("SELECT name, value FROM metadata WHERE completion = ?1 ORDER BY position")?;
    let mut rows = select.query([seq])?;
    let mut metadata = serde_json::Map::new();
    while let Some(row) = rows.next()? {
        metadata.insert(row.get("name")?, json(row, "value").map_err(|reason| corrupt(&reason))?);
    }

    let mut select = transaction
        .prepare_cached("SELECT text, tokens, form FROM content WHERE completion = ?1 AND role = ?2 ORDER BY part")?;
    let mut rows = select.query([seq, Role::Prompt as i64])?;
    let mut prompts = Vec::new();
    while let Some(row) = rows.next()? {
        let tokens = row.get_ref("tokens")?.as_blob().map_err(rusqlite::Error::from)?;
        let tokens = unpack_tokens(row.get("form")?, tokens);
        prompts.push(PromptContent {
            given: json(row, "text").map_err(|reason| corrupt(&reason))?,
            tokens: tokens.ok_or_else(|| corrupt("its prompt's tokens are cut short"))?,
        });
    }

    let mut select = transaction.prepare_cached(
        "SELECT position, ending, choices.tokens, fault, thread, answer.text, answer.tokens AS scores, answer.form,
            calls.text AS calls
         FROM choices
         LEFT JOIN content AS answer
            ON answer.completion = choices.completion AND answer.role = ?2 AND answer.part = position
         LEFT JOIN content AS calls
            ON calls.completion = choices.completion AND calls.role = ?3 AND calls.part = position
         WHERE choices.completion = ?1 AND (?4 IS NULL OR position = ?4) ORDER BY position",
    )?;
    let mut rows = select.query(rusqlite::params![seq, Role::Answer as i64, Role::Calls as i64, only])?;
    let mut choices = Vec::new();
    while let Some(row) = rows.next()? {
        let ending = row.get_ref("ending")?.as_str().map_err(rusqlite::Error::from)?;
        let scores = row.get_ref("scores")?.as_blob_or_null().map_err(rusqlite::Error::from)?;
        let form = row.get::<_, Option<i64>>("form")?.unwrap_or(FORM);
        let calls = row.get_ref("calls")?.as_str_or_null().map_err(rusqlite::Error::from)?;
        choices.push(ChoiceRecord {
            index: row.get("position")?,
            ending: Ending::parse(ending).ok_or_else(|| corrupt("its ending has an unknown name"))?,
            tokens: row.get::<_, i64>("tokens")? as usize,
            fault: row.get("fault")?,
            text: row.get("text")?,
            scores: unpack(form, scores.unwrap_or_default()).ok_or_else(|| corrupt("its scores are cut short"))?,
            tool_calls: calls.map(serde_json::from_str).transpose().map_err(|error| corrupt(&error.to_string()))?,
            thread: row.get::<_, Option<[u8; 16]>>("thread")?.map(Thread),
        });
    }
    completion.metadata = metadata;
    completion.content = (!prompts.is_empty()).then(|| Content { prompts }.into());
    completion.choices = choices;
    Ok(completion)
}

/// A row of `completions`; its other parts are empty.
fn fact(row: &Row<'_>) -> Result<Completion, StoreError> {
    let id: String = row.get("id")?;
    let corrupt = |reason: String| StoreError::Corrupt { id: id.clone(), reason };
    let unknown = |what: &str, name: &str| corrupt(format!("its {what} '{name}' has an unknown name"));
    let kind: String = row.get("kind")?;
    let policy: String = row.get("policy")?;
    let origin: String = row.get("origin")?;
    let adapter = match row.get::<_, Option<String>>("adapter")? {
        Some(name) => {
            let name = AdapterName::parse(&name).map_err(|error| corrupt(error.to_string()))?;
            Some((name, AdapterVersion(Digest::from_bytes(row.get("adapter_version")?))))
        }
        None => None,
    };
    Ok(Completion {
        created_ms: row.get("created_ms")?,
        request_id: row.get("request_id")?,
        key: row.get("key")?,
        kind: CompletionKind::parse(&kind).ok_or_else(|| unknown("kind", &kind))?,
        model: row.get("model")?,
        base: Digest::from_bytes(row.get("base")?),
        adapter,
        template: row.get::<_, Option<[u8; 32]>>("template")?.map(Digest::from_bytes),
        tokenizer: Digest::from_bytes(row.get("tokenizer")?),
        build: row.get("build")?,
        origin: Origin::parse(&origin).ok_or_else(|| unknown("origin", &origin))?,
        system: row.get::<_, Option<[u8; 32]>>("system")?.map(Digest::from_bytes),
        sampling: json(row, "sampling").map_err(&corrupt)?,
        seed: row.get::<_, i64>("seed")? as u64,
        options: json(row, "options").map_err(&corrupt)?,
        usage: Usage {
            prompt_tokens: row.get::<_, i64>("prompt_tokens")? as usize,
            completion_tokens: row.get::<_, i64>("completion_tokens")? as usize,
            cached_tokens: row.get::<_, i64>("cached_tokens")? as usize,
        },
        timing: Timing {
            adapter_us: row.get::<_, i64>("adapter_us")? as u64,
            read_us: row.get::<_, i64>("read_us")? as u64,
            queue_us: row.get::<_, i64>("queue_us")? as u64,
            first_token_us: row.get::<_, Option<i64>>("first_token_us")?.map(|us| us as u64),
            total_us: row.get::<_, i64>("total_us")? as u64,
        },
        policy: RecordPolicy::parse(&policy).ok_or_else(|| unknown("policy", &policy))?,
        redaction: row.get::<_, Option<[u8; 32]>>("redaction")?.map(Digest::from_bytes),
        stored: row.get("stored")?,
        user: row.get("user")?,
        safety_identifier: row.get("safety_identifier")?,
        placement: match row.get_ref("split")? {
            ValueRef::Null => None,
            _ => Some(place::read(row)?.ok_or_else(|| corrupt(place::WORDS.to_owned()))?),
        },
        sketch: match row.get_ref("sketch")?.as_blob_or_null().map_err(rusqlite::Error::from)? {
            Some(bytes) => {
                Some(Sketch::from_bytes(bytes).ok_or_else(|| corrupt("its sketch is cut short".to_owned()))?)
            }
            None => None,
        },
        metadata: serde_json::Map::new(),
        content: None,
        choices: Vec::new(),
        erased_ms: row.get("erased_ms")?,
        expired_ms: row.get("expired_ms")?,
        id,
    })
}

fn json<T: DeserializeOwned>(row: &Row<'_>, column: &str) -> Result<T, String> {
    let text = row.get_ref(column).map_err(|error| error.to_string())?;
    let text = text.as_str().map_err(|error| error.to_string())?;
    serde_json::from_str(text).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::migrations::migrate;

    #[test]
    fn lists_walk_an_index() {
        let mut connection = Connection::open_in_memory().unwrap();
        migrate(&mut connection, "memory".as_ref()).unwrap();
        let all = ListQuery {
            model: None,
            key: None,
            metadata: Vec::new(),
            after: None,
            limit: 20,
            order: Order::NewestFirst,
        };
        let model = Some("m".to_owned());
        let metadata = vec![("flag".to_owned(), "retrain".to_owned())];
        for (query, after, index) in [
            (all.clone(), None, "listed_by_time"),
            (all.clone(), Some((1, 2)), "listed_by_time"),
            (ListQuery { model, ..all.clone() }, Some((1, 2)), "listed_by_model"),
            (ListQuery { key: Some("k".to_owned()), ..all.clone() }, Some((1, 2)), "listed_by_key"),
            (ListQuery { metadata, order: Order::OldestFirst, ..all }, None, "metadata_by_value"),
        ] {
            let (sql, values) = list_sql(&query, after);
            let mut plan = connection.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
            let lines = plan.query_map(params_from_iter(values), |row| row.get::<_, String>(3)).unwrap();
            let plan = lines.collect::<Result<Vec<_>, _>>().unwrap().join("; ");
            assert!(plan.contains(index), "{sql}: {plan}");
        }
    }
}
