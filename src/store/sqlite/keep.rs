//! Takes what is too old or too much, or what a user wants gone; and keeps who has looked.

use rusqlite::{Connection, Transaction, TransactionBehavior, params, params_from_iter, types::Value as Sql};

use super::{feedback, flags, measures, write::json};
use crate::store::{Access, AccessQuery, Deed, Erased, Outcome, Retained, Retention, StoreError};

const NOT_HELD: &str = "NOT EXISTS (SELECT 1 FROM holds WHERE holds.completion = completions.seq)";

/// Answers whose content is taken between two looks at how much is left.
const FEW: usize = 16;

pub fn retain(connection: &mut Connection, retention: &Retention) -> Result<Retained, StoreError> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let mut retained = Retained::default();
    if let Some(before) = retention.facts_before_ms {
        let old = oldest(&transaction, "TRUE", Some(before), retention.limit)?;
        retained.more |= old.len() == retention.limit;
        retained.held = held(&transaction, before)?;
        for seq in old {
            retained.facts += u64::from(take_fact(&transaction, seq)?);
        }
    }
    if let Some(before) = retention.content_before_ms {
        let old = oldest(&transaction, "kept = 1", Some(before), retention.limit)?;
        retained.more |= old.len() == retention.limit;
        retained.held = retained.held.max(held(&transaction, before)?);
        retained.content += take_contents(&transaction, &old, retention.at_ms)?;
    }
    if let Some(limit) = retention.max_bytes
        && used_bytes(&transaction)? > limit
    {
        let old = oldest(&transaction, "kept = 1", None, retention.limit)?;
        // A few at a time: no more than is needed.
        for few in old.chunks(FEW) {
            if used_bytes(&transaction)? <= limit {
                break;
            }
            retained.content += take_contents(&transaction, few, retention.at_ms)?;
        }
        retained.more |= !old.is_empty() && used_bytes(&transaction)? > limit;
    }
    retained.bytes = used_bytes(&transaction)?;
    transaction.commit()?;
    Ok(retained)
}

/// Pages that hold something.
fn used_bytes(transaction: &Transaction<'_>) -> Result<u64, StoreError> {
    let pragma = |name: &str| transaction.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    let used = pragma("page_count")? - pragma("freelist_count")?;
    Ok((used * pragma("page_size")?) as u64)
}

fn oldest(
    transaction: &Transaction<'_>,
    condition: &str,
    before_ms: Option<i64>,
    limit: usize,
) -> Result<Vec<i64>, StoreError> {
    let sql = format!(
        "SELECT seq FROM completions WHERE {condition} AND created_ms < ?1 AND {NOT_HELD} ORDER BY created_ms, seq LIMIT ?2"
    );
    let mut select = transaction.prepare_cached(&sql)?;
    let rows = select.query_map(params![before_ms.unwrap_or(i64::MAX), limit as i64], |row| row.get(0))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

fn held(transaction: &Transaction<'_>, before_ms: i64) -> Result<u64, StoreError> {
    let sql = "SELECT count(DISTINCT completion) FROM holds JOIN completions ON seq = completion WHERE created_ms < ?1";
    Ok(transaction.prepare_cached(sql)?.query_row([before_ms], |row| row.get::<_, i64>(0))? as u64)
}

fn take_contents(transaction: &Transaction<'_>, rows: &[i64], at_ms: i64) -> Result<u64, StoreError> {
    for seq in rows {
        transaction.prepare_cached("DELETE FROM content WHERE completion = ?1")?.execute([seq])?;
        transaction.prepare_cached("UPDATE choices SET thread = NULL WHERE completion = ?1")?.execute([seq])?;
        transaction
            .prepare_cached(
                "UPDATE completions SET kept = 0, expired_ms = ?2, options = json_remove(options, '$.stop') WHERE seq = ?1",
            )?
            .execute([*seq, at_ms])?;
    }
    Ok(rows.len() as u64)
}

/// False for the answer whose choice is the last of all: its number would be given again, and followers would miss what
/// gets it.
fn take_fact(transaction: &Transaction<'_>, seq: i64) -> Result<bool, StoreError> {
    let last = "SELECT completion = ?1 FROM choices ORDER BY seq DESC LIMIT 1";
    if transaction.prepare_cached(last)?.query_row([seq], |row| row.get(0))? {
        return Ok(false);
    }
    measures::take(transaction, seq)?;
    for table in ["content", "metadata", "flags", "feedback", "choices"] {
        let sql = format!("DELETE FROM {table} WHERE completion = ?1");
        transaction.prepare_cached(&sql)?.execute([seq])?;
    }
    transaction.prepare_cached("DELETE FROM completions WHERE seq = ?1")?.execute([seq])?;
    Ok(true)
}

/// Takes content, user, metadata and whatever else the client said; the fact stays.
pub fn erase_row(transaction: &Transaction<'_>, seq: i64, at_ms: i64) -> Result<(), StoreError> {
    transaction.prepare_cached("DELETE FROM content WHERE completion = ?1")?.execute([seq])?;
    transaction.prepare_cached("DELETE FROM metadata WHERE completion = ?1")?.execute([seq])?;
    transaction.prepare_cached("UPDATE choices SET thread = NULL WHERE completion = ?1")?.execute([seq])?;
    transaction
        .prepare_cached(
            "UPDATE completions SET stored = 0, kept = 0, user = NULL, safety_identifier = NULL, sketch = NULL,
                erased_ms = ?2, options = json_remove(options, '$.stop'), conversation_by = 'own',
                conversation = CASE conversation_by WHEN 'own' THEN conversation ELSE id END
             WHERE seq = ?1",
        )?
        .execute([seq, at_ms])?;
    feedback::erase_on(transaction, seq, at_ms)?;
    flags::erase_notes(transaction, seq)
}

/// One step: up to `limit` answers of these names, and the answers without a name in the same conversations.
pub fn erase_user(
    connection: &mut Connection,
    names: &[String],
    at_ms: i64,
    limit: usize,
) -> Result<Erased, StoreError> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let mut rows: Vec<i64> = Vec::new();
    for (column, name) in ["user", "safety_identifier"].into_iter().flat_map(|c| names.iter().map(move |n| (c, n))) {
        let sql = format!("SELECT seq FROM completions WHERE {column} = ?1 LIMIT ?2");
        let mut select = transaction.prepare_cached(&sql)?;
        let found = select.query_map(params![name, (limit - rows.len()) as i64], |row| row.get(0))?;
        rows.extend(found.collect::<Result<Vec<i64>, _>>()?);
    }
    rows.sort_unstable();
    rows.dedup();
    let more = rows.len() == limit;
    for &seq in &rows.clone() {
        let mut select = transaction.prepare_cached(
            "SELECT other.seq FROM completions AS this JOIN completions AS other USING (conversation)
             WHERE this.seq = ?1 AND other.seq <> this.seq AND other.user IS NULL AND other.safety_identifier IS NULL
                AND other.erased_ms IS NULL",
        )?;
        rows.extend(select.query_map([seq], |row| row.get(0))?.collect::<Result<Vec<i64>, _>>()?);
    }
    rows.sort_unstable();
    rows.dedup();
    let mut erased = Erased { completions: rows.len() as u64, more, ..Erased::default() };
    for seq in rows {
        let created: i64 = transaction
            .prepare_cached("SELECT created_ms FROM completions WHERE seq = ?1")?
            .query_row([seq], |row| row.get(0))?;
        erased.first_ms = Some(erased.first_ms.map_or(created, |first| first.min(created)));
        let mut select = transaction.prepare_cached("SELECT holder FROM holds WHERE completion = ?1")?;
        for holder in select.query_map([seq], |row| row.get::<_, String>(0))? {
            let holder = holder?;
            match erased.held.iter_mut().find(|(known, _)| *known == holder) {
                Some((_, count)) => *count += 1,
                None => erased.held.push((holder, 1)),
            }
        }
        erase_row(&transaction, seq, at_ms)?;
    }
    for name in names {
        feedback::erase_of(&transaction, name, at_ms)?;
    }
    transaction.commit()?;
    Ok(erased)
}

pub fn hold(transaction: &Transaction<'_>, ids: &[String], holder: &str) -> Result<Outcome, StoreError> {
    let mut insert = transaction.prepare_cached(
        "INSERT INTO holds (completion, holder) SELECT seq, ?2 FROM completions WHERE id = ?1 ON CONFLICT DO NOTHING",
    )?;
    let mut known = transaction.prepare_cached("SELECT 1 FROM completions WHERE id = ?1")?;
    for id in ids {
        if !known.exists([id])? {
            return Ok(Outcome::Missing);
        }
    }
    for id in ids {
        insert.execute([id.as_str(), holder])?;
    }
    Ok(Outcome::Applied)
}

pub fn release(transaction: &Transaction<'_>, holder: &str) -> Result<Outcome, StoreError> {
    let gone = transaction.prepare_cached("DELETE FROM holds WHERE holder = ?1")?.execute([holder])?;
    Ok(if gone > 0 { Outcome::Applied } else { Outcome::Missing })
}

/// Within this time the same deed is one.
const ONE_DEED_MS: i64 = 10 * 60 * 1000;

pub fn note_access(transaction: &Transaction<'_>, access: &Access) -> Result<Outcome, StoreError> {
    let what = json(&access.what)?;
    let again = transaction
        .prepare_cached(
            "UPDATE access SET last_ms = ?1, times = times + 1
             WHERE last_ms > ?1 - ?5 AND who = ?2 AND deed = ?3 AND what = ?4",
        )?
        .execute(params![access.at_ms, access.who, access.deed.as_str(), what, ONE_DEED_MS])?;
    if again == 0 {
        transaction
            .prepare_cached(
                "INSERT INTO access (at_ms, last_ms, times, who, deed, what) VALUES (?1, ?1, 1, ?2, ?3, ?4)",
            )?
            .execute(params![access.at_ms, access.who, access.deed.as_str(), what])?;
    }
    Ok(Outcome::Applied)
}

/// The latest first.
pub fn accesses(connection: &mut Connection, query: &AccessQuery) -> Result<Vec<Access>, StoreError> {
    let mut sql = "SELECT * FROM access WHERE last_ms >= ?".to_owned();
    let mut values: Vec<Sql> = vec![query.since_ms.into()];
    if !query.deeds.is_empty() {
        sql += &format!(" AND deed IN ({})", vec!["?"; query.deeds.len()].join(", "));
        values.extend(query.deeds.iter().map(|deed| deed.as_str().to_owned().into()));
    }
    sql += " ORDER BY last_ms DESC, seq DESC LIMIT ?";
    values.push((query.limit as i64).into());
    let mut select = connection.prepare_cached(&sql)?;
    let mut rows = select.query(params_from_iter(values))?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        let seq: i64 = row.get("seq")?;
        let corrupt = |reason: String| StoreError::Corrupt { id: format!("access {seq}"), reason };
        let (deed, what): (String, String) = (row.get("deed")?, row.get("what")?);
        found.push(Access {
            at_ms: row.get("at_ms")?,
            last_ms: row.get("last_ms")?,
            times: row.get::<_, i64>("times")? as u64,
            who: row.get("who")?,
            deed: Deed::parse(&deed).ok_or_else(|| corrupt(format!("'{deed}' is no deed")))?,
            what: serde_json::from_str(&what).map_err(|error| corrupt(error.to_string()))?,
        });
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::migrations::migrate;

    #[test]
    fn the_oldest_are_found_by_index_whatever_has_gone_before() {
        let mut connection = Connection::open_in_memory().unwrap();
        migrate(&mut connection, "memory".as_ref()).unwrap();
        for (condition, index) in [("TRUE", "completions_by_time"), ("kept = 1", "completions_with_content")] {
            let sql = format!(
                "EXPLAIN QUERY PLAN SELECT seq FROM completions WHERE {condition} AND created_ms < 9 AND {NOT_HELD}
                 ORDER BY created_ms, seq LIMIT 9"
            );
            let mut plan = connection.prepare(&sql).unwrap();
            let lines = plan.query_map([], |row| row.get::<_, String>(3)).unwrap();
            let plan = lines.collect::<Result<Vec<_>, _>>().unwrap().join("; ");
            assert!(plan.contains(index) && !plan.contains("TEMP B-TREE"), "{condition}: {plan}");
        }
    }
}
