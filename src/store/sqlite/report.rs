//! The rows that reports by version are made of: each query walks one run of an index.

use rusqlite::{Connection, Row};

use crate::{
    store::{AnswerFact, CompletionKind, Cursor, FlagMark, Measure, Said, Served, Source, StoreError},
    terms::{AdapterVersion, Digest, Ending},
};

/// Every version of `adapter` (or the base alone) that has answered, the one that answered last first.
pub fn served(connection: &mut Connection, adapter: Option<&str>) -> Result<Vec<Served>, StoreError> {
    let mut select = connection.prepare_cached(
        "SELECT s.served, s.base, s.version,
            (SELECT at_ms FROM measures AS m WHERE m.served = s.served ORDER BY m.choice DESC LIMIT 1) AS last_ms
         FROM served AS s WHERE s.adapter IS ?1 AND last_ms IS NOT NULL ORDER BY last_ms DESC, s.served DESC",
    )?;
    let rows = select.query_map([adapter], |row| {
        Ok(Served {
            number: row.get::<_, i64>("served")? as u64,
            base: Digest::from_bytes(row.get("base")?),
            version: row.get::<_, Option<[u8; 32]>>("version")?.map(|bytes| AdapterVersion(Digest::from_bytes(bytes))),
            last_ms: row.get("last_ms")?,
        })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// The last `limit` choices of a version, admitted at `since_ms` or later, in the order of the record.
pub fn measures(
    connection: &mut Connection,
    served: u64,
    since_ms: i64,
    limit: usize,
) -> Result<Vec<Measure>, StoreError> {
    let mut select = connection
        .prepare_cached("SELECT * FROM measures WHERE served = ?1 AND at_ms >= ?2 ORDER BY choice DESC LIMIT ?3")?;
    let mut rows = select.query([number(served), since_ms, i64::try_from(limit).unwrap_or(i64::MAX)])?;
    let mut measures = Vec::new();
    while let Some(row) = rows.next()? {
        measures.push(measure(row)?);
    }
    measures.reverse();
    Ok(measures)
}

fn measure(row: &Row<'_>) -> Result<Measure, StoreError> {
    // By place, since this is read 20,000 times for a report: in the order of the table's columns.
    let choice = row.get::<_, i64>(1)? as u64;
    let ending = row.get_ref(5)?.as_str().map_err(rusqlite::Error::from)?;
    let ending = Ending::parse(ending).ok_or_else(|| StoreError::Corrupt {
        id: format!("choice {choice}"),
        reason: format!("its ending '{ending}' has an unknown name"),
    })?;
    Ok(Measure {
        choice: Cursor(choice),
        completion: row.get::<_, i64>(2)? as u64,
        position: row.get(3)?,
        at_ms: row.get(4)?,
        ending,
        prompt_tokens: row.get::<_, i64>(6)? as usize,
        tokens: row.get::<_, i64>(7)? as usize,
        mean_logprob: row.get(8)?,
        min_logprob: row.get(9)?,
        first_token_us: row.get::<_, Option<i64>>(10)?.map(|us| us as u64),
        total_us: row.get::<_, i64>(11)? as u64,
    })
}

/// The flags of a version's choices from `from` on, one version of a rule after the other.
pub fn marks(connection: &mut Connection, served: u64, from: Cursor) -> Result<Vec<FlagMark>, StoreError> {
    let transaction = connection.transaction()?;
    let mut rules = transaction.prepare_cached("SELECT rule, version FROM flag_rules WHERE flags > 0")?;
    let rules: Vec<(i64, [u8; 32])> =
        rules.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect::<Result<_, _>>()?;
    let mut select = transaction
        .prepare_cached("SELECT choice FROM flags WHERE served = ?1 AND rule = ?2 AND choice >= ?3 ORDER BY choice")?;
    let mut marks = Vec::new();
    for (rule, version) in rules {
        let rows = select.query_map([number(served), rule, number(from.0)], |row| row.get::<_, i64>(0))?;
        for choice in rows {
            marks.push(FlagMark { choice: Cursor(choice? as u64), rule: Digest::from_bytes(version) });
        }
    }
    Ok(marks)
}

/// What was said of a version's completions from the number `from` on and was not retracted, in the order in which it was accepted.
pub fn said(connection: &mut Connection, served: u64, from: u64) -> Result<Vec<Said>, StoreError> {
    let mut select = connection.prepare_cached(
        "SELECT completion, choice, name, number, is_boolean, corrects, source FROM feedback
         WHERE served = ?1 AND completion >= ?2 AND retracted_ms IS NULL ORDER BY seq",
    )?;
    let mut rows = select.query([number(served), number(from)])?;
    let mut said = Vec::new();
    while let Some(row) = rows.next()? {
        let source = row.get_ref("source")?.as_str().map_err(rusqlite::Error::from)?;
        said.push(Said {
            completion: row.get::<_, i64>("completion")? as u64,
            choice: row.get("choice")?,
            name: row.get("name")?,
            number: row.get("number")?,
            is_boolean: row.get("is_boolean")?,
            corrects: row.get("corrects")?,
            by_person: Source::parse(source).is_some_and(Source::is_person),
        });
    }
    Ok(said)
}

/// What rules ask of a version's choices from `from` on.
pub fn facts(connection: &mut Connection, served: u64, from: Cursor) -> Result<Vec<AnswerFact>, StoreError> {
    let transaction = connection.transaction()?;
    let mut select = transaction.prepare_cached(
        "SELECT m.choice, c.seq, c.id, c.key, c.kind, c.model FROM measures AS m JOIN completions AS c ON c.seq = m.completion
         WHERE m.served = ?1 AND m.choice >= ?2 ORDER BY m.choice",
    )?;
    let mut metadata = transaction.prepare_cached("SELECT name, value FROM metadata WHERE completion = ?1")?;
    let mut rows = select.query([number(served), number(from.0)])?;
    let mut facts = Vec::new();
    while let Some(row) = rows.next()? {
        let id: String = row.get("id")?;
        let kind: String = row.get("kind")?;
        let kind = CompletionKind::parse(&kind).ok_or_else(|| StoreError::Corrupt {
            id: id.clone(),
            reason: format!("its kind '{kind}' has an unknown name"),
        })?;
        let pairs =
            metadata.query_map([row.get::<_, i64>("seq")?], |row| Ok((row.get(0)?, row.get::<_, String>(1)?)))?;
        let mut said = Vec::new();
        for pair in pairs {
            let (name, value) = pair?;
            // As a JSON string; what is not one matches no filter.
            said.extend(serde_json::from_str::<String>(&value).ok().map(|value| (name, value)));
        }
        facts.push(AnswerFact {
            choice: Cursor(row.get::<_, i64>("choice")? as u64),
            key: row.get("key")?,
            model: row.get("model")?,
            metadata: said,
            kind,
            id,
        });
    }
    Ok(facts)
}

fn number(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::migrations::migrate;

    #[test]
    fn what_a_report_reads_is_one_run_of_an_index() {
        let mut connection = Connection::open_in_memory().unwrap();
        migrate(&mut connection, "memory".as_ref()).unwrap();
        for (sql, plan) in [
            (
                "SELECT * FROM measures WHERE served = 1 AND at_ms >= 0 ORDER BY choice DESC LIMIT 5",
                "SEARCH measures USING PRIMARY KEY",
            ),
            (
                "SELECT choice FROM flags WHERE served = 1 AND rule = 2 AND choice >= 3 ORDER BY choice",
                "COVERING INDEX flags_by_version",
            ),
            (
                "SELECT * FROM feedback WHERE served = 1 AND completion >= 2 AND retracted_ms IS NULL",
                "INDEX feedback_by_version",
            ),
        ] {
            let mut select = connection.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
            let lines = select.query_map([], |row| row.get::<_, String>(3)).unwrap();
            let found = lines.collect::<Result<Vec<_>, _>>().unwrap().join("; ");
            assert!(found.contains(plan) && !found.contains("TEMP B-TREE"), "{sql}: {found}");
        }
    }
}
