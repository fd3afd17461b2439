//! What rules found, and how far they have come.

use rusqlite::{
    Connection, OptionalExtension, Row, Transaction, params, params_from_iter,
    types::{Value as Sql, Value::Integer},
};

use super::read;
use crate::{
    store::{
        Completion, Cursor, FlagPage, FlagQuery, FlagState, Followed, Followup, KeptFlag, KeptRule, Order, Outcome,
        ReferenceAnswer, Resolved, RuleRow, StoreError, Verdict,
    },
    terms::{AdapterName, AdapterVersion, Digest},
};

/// Applies what a follower did, if it stands where it thinks.
pub fn follow_up(transaction: &Transaction<'_>, followup: &Followup) -> Result<Outcome, StoreError> {
    if let Some((follower, stood)) = &followup.follower {
        if cursor(transaction, follower)? != *stood {
            return Ok(Outcome::Missing);
        }
        transaction
            .prepare_cached("INSERT INTO followers VALUES (?1, ?2) ON CONFLICT DO UPDATE SET cursor = excluded.cursor")?
            .execute(params![follower, place(followup.to)])?;
    }
    let mut numbers = Vec::with_capacity(followup.rules.len());
    for rule in &followup.rules {
        let number = rule_number(transaction, rule, followup.at_ms)?;
        if followup.to > followup.from {
            look(transaction, number, followup.from, followup.to)?;
        }
        numbers.push((rule.version, number));
    }
    for flag in &followup.flags {
        let Some((_, rule)) = numbers.iter().find(|(version, _)| *version == flag.rule) else {
            let reason = "its rule is not among those that looked".to_owned();
            return Err(StoreError::Corrupt { id: format!("flag of choice {}", flag.choice.0), reason });
        };
        let added = transaction
            .prepare_cached(
                "INSERT INTO flags (choice, completion, rule, served, adapter, name, at_ms, reason, value)
                 SELECT x.seq, c.seq, r.rule, s.served, c.adapter, r.name, ?3, ?4, ?5
                 FROM choices AS x
                 JOIN completions AS c ON c.seq = x.completion
                 JOIN served AS s ON s.base = c.base AND s.adapter IS c.adapter AND s.version IS c.adapter_version
                 JOIN flag_rules AS r ON r.rule = ?2
                 WHERE x.seq = ?1
                 ON CONFLICT DO NOTHING",
            )?
            .execute(params![place(flag.choice), rule, followup.at_ms, flag.reason, flag.value])?;
        transaction
            .prepare_cached("UPDATE flag_rules SET flags = flags + ?2 WHERE rule = ?1")?
            .execute(params![rule, added as i64])?;
    }
    Ok(Outcome::Applied)
}

fn rule_number(transaction: &Transaction<'_>, rule: &RuleRow, at_ms: i64) -> Result<i64, StoreError> {
    let version = rule.version.as_bytes().as_slice();
    let known = transaction
        .prepare_cached("SELECT rule FROM flag_rules WHERE version = ?1")?
        .query_row([version], |row| row.get(0))
        .optional()?;
    match known {
        Some(number) => Ok(number),
        None => Ok(transaction
            .prepare_cached("INSERT INTO flag_rules (version, name, definition, since_ms) VALUES (?1, ?2, ?3, ?4)")?
            .insert(params![version, rule.name, rule.definition, at_ms])?),
    }
}

/// Says that a rule has looked at a stretch, which lengthens the one that ends where it begins.
fn look(transaction: &Transaction<'_>, rule: i64, from: Cursor, to: Cursor) -> Result<(), StoreError> {
    let longer = transaction
        .prepare_cached("UPDATE flag_spans SET last = ?3 WHERE rule = ?1 AND last = ?2")?
        .execute([rule, place(from), place(to)])?;
    if longer == 0 {
        transaction.prepare_cached("INSERT INTO flag_spans VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING")?.execute([
            rule,
            place(from),
            place(to),
        ])?;
    }
    Ok(())
}

/// Sets or takes back a verdict; the rule's counts follow.
pub fn resolve(transaction: &Transaction<'_>, id: u64, resolved: Option<&Resolved>) -> Result<Outcome, StoreError> {
    let before: Option<(i64, Option<String>)> = transaction
        .prepare_cached("SELECT rule, verdict FROM flags WHERE seq = ?1")?
        .query_row([place(Cursor(id))], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    let Some((rule, before)) = before else { return Ok(Outcome::Missing) };
    let after = resolved.map(|resolved| resolved.verdict.as_str());
    transaction
        .prepare_cached("UPDATE flags SET verdict = ?2, resolved_ms = ?3, resolved_by = ?4, note = ?5 WHERE seq = ?1")?
        .execute(params![
            place(Cursor(id)),
            after,
            resolved.map(|resolved| resolved.at_ms),
            resolved.map(|resolved| &resolved.by),
            resolved.and_then(|resolved| resolved.note.as_ref()),
        ])?;
    transaction
        .prepare_cached(
            "UPDATE flag_rules SET
                confirmed = confirmed + (?2 IS 'confirmed') - (?3 IS 'confirmed'),
                dismissed = dismissed + (?2 IS 'dismissed') - (?3 IS 'dismissed')
             WHERE rule = ?1",
        )?
        .execute(params![rule, after, before])?;
    Ok(Outcome::Applied)
}

/// Takes what people wrote about the flags of a completion; reasons have no word of it.
pub fn erase_notes(transaction: &Transaction<'_>, completion: i64) -> Result<(), StoreError> {
    transaction.prepare_cached("UPDATE flags SET note = NULL WHERE completion = ?1")?.execute([completion])?;
    Ok(())
}

pub fn follower(connection: &mut Connection, name: &str) -> Result<Option<Cursor>, StoreError> {
    let transaction = connection.transaction()?;
    cursor(&transaction, name)
}

fn cursor(transaction: &Transaction<'_>, name: &str) -> Result<Option<Cursor>, StoreError> {
    let cursor: Option<i64> = transaction
        .prepare_cached("SELECT cursor FROM followers WHERE name = ?1")?
        .query_row([name], |row| row.get(0))
        .optional()?;
    Ok(cursor.map(|cursor| Cursor(cursor as u64)))
}

/// A flag with the facts of its answer.
const FLAG: &str = "
    SELECT f.*, r.version AS rule_version, c.id, c.created_ms, c.model, c.adapter_version, c.key, x.position
    FROM flags AS f
    JOIN flag_rules AS r ON r.rule = f.rule
    JOIN choices AS x ON x.seq = f.choice
    JOIN completions AS c ON c.seq = f.completion
    WHERE true";

pub fn one(connection: &mut Connection, id: u64) -> Result<Option<KeptFlag>, StoreError> {
    let sql = format!("{FLAG} AND f.seq = ?1");
    let mut select = connection.prepare_cached(&sql)?;
    select.query_row([place(Cursor(id))], |row| Ok(kept(row))).optional()?.transpose()
}

pub fn page(connection: &mut Connection, query: &FlagQuery) -> Result<FlagPage, StoreError> {
    let (sql, values) = page_sql(query);
    let transaction = connection.transaction()?;
    let mut select = transaction.prepare_cached(&sql)?;
    let mut rows = select.query(params_from_iter(values))?;
    let mut flags = Vec::new();
    while let Some(row) = rows.next()? {
        flags.push(kept(row)?);
    }
    let more = flags.len() > query.limit;
    flags.truncate(query.limit);
    Ok(FlagPage { flags, more })
}

/// Selects the rows of a page, and one more.
fn page_sql(query: &FlagQuery) -> (String, Vec<Sql>) {
    let (comparison, direction) = match query.order {
        Order::OldestFirst => (">", "ASC"),
        Order::NewestFirst => ("<", "DESC"),
    };
    let mut sql = FLAG.to_owned();
    let mut values: Vec<Sql> = Vec::new();
    let mut only = |condition: &str, value: Sql| {
        sql.push_str(" AND ");
        sql.push_str(condition);
        values.push(value);
    };
    if let Some(completion) = &query.completion {
        only("f.completion = (SELECT seq FROM completions WHERE id = ?)", completion.clone().into());
    }
    if let Some(rule) = &query.rule {
        only("f.name = ?", rule.clone().into());
    }
    if let Some(adapter) = &query.adapter {
        only("f.adapter = ?", adapter.clone().into());
    }
    if let Some(after) = query.after {
        only(&format!("f.seq {comparison} ?"), Integer(place(Cursor(after))));
    }
    match query.state {
        FlagState::All => {}
        FlagState::Open => sql += " AND f.verdict IS NULL",
        FlagState::Resolved(verdict) => {
            sql += " AND f.verdict IS NOT NULL AND f.verdict = ?";
            values.push(verdict.as_str().to_owned().into());
        }
    }
    sql += &format!(" ORDER BY f.seq {direction} LIMIT ?");
    values.push(Integer(i64::try_from(query.limit.saturating_add(1)).unwrap_or(i64::MAX)));
    (sql, values)
}

pub fn rules(connection: &mut Connection) -> Result<Vec<KeptRule>, StoreError> {
    let transaction = connection.transaction()?;
    let mut select = transaction.prepare_cached("SELECT * FROM flag_rules ORDER BY name, rule")?;
    let mut rows = select.query([])?;
    let mut rules = Vec::new();
    while let Some(row) = rows.next()? {
        let count = |column: &str| row.get::<_, i64>(column).map(|count| count as u64);
        let number: i64 = row.get("rule")?;
        rules.push(KeptRule {
            rule: RuleRow {
                name: row.get("name")?,
                version: Digest::from_bytes(row.get("version")?),
                definition: row.get("definition")?,
            },
            since_ms: row.get("since_ms")?,
            flags: count("flags")?,
            confirmed: count("confirmed")?,
            dismissed: count("dismissed")?,
            spans: spans(&transaction, number)?,
        });
    }
    Ok(rules)
}

fn spans(transaction: &Transaction<'_>, rule: i64) -> Result<Vec<(Cursor, Cursor)>, StoreError> {
    let mut select = transaction.prepare_cached("SELECT first, last FROM flag_spans WHERE rule = ?1 ORDER BY first")?;
    let mut rows = select.query([rule])?;
    let mut spans: Vec<(Cursor, Cursor)> = Vec::new();
    while let Some(row) = rows.next()? {
        let (first, last) = (Cursor(row.get::<_, i64>(0)? as u64), Cursor(row.get::<_, i64>(1)? as u64));
        match spans.last_mut() {
            Some((_, known)) if first <= *known => *known = last.max(*known),
            Some(_) | None => spans.push((first, last)),
        }
    }
    Ok(spans)
}

/// The first answers of what answered `completion` that came to their end and have scores.
pub fn reference(
    connection: &mut Connection,
    completion: &Completion,
    limit: usize,
) -> Result<Vec<ReferenceAnswer>, StoreError> {
    let adapter = completion.adapter.as_ref().map(|(name, _)| name.as_str());
    let version = completion.adapter.as_ref().map(|(_, version)| version.0.as_bytes().as_slice());
    let mut select = connection.prepare_cached(
        "SELECT m.choice, m.tokens, m.mean_logprob FROM measures AS m
         WHERE m.served = (
                SELECT served FROM served
                WHERE coalesce(version, x'') = coalesce(?1, x'') AND coalesce(adapter, '') = coalesce(?2, '') AND base = ?3
            ) AND m.mean_logprob IS NOT NULL AND m.tokens > 0 AND m.ending IN ('stop', 'length')
         ORDER BY m.choice LIMIT ?4",
    )?;
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let rows = select.query_map(params![version, adapter, completion.base.as_bytes().as_slice(), limit], |row| {
        Ok(ReferenceAnswer {
            choice: Cursor(row.get::<_, i64>(0)? as u64),
            tokens: row.get::<_, i64>(1)? as usize,
            mean_logprob: row.get(2)?,
        })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Other requests of the same user and key, admitted within `around_ms` of this one; their first choices, with the places of these in
/// the record. The nearest `limit` on each side.
pub fn asked_near(
    connection: &mut Connection,
    completion: &Completion,
    around_ms: i64,
    limit: usize,
) -> Result<Vec<Followed>, StoreError> {
    let Some(user) = &completion.user else { return Ok(Vec::new()) };
    let transaction = connection.transaction()?;
    let mut found: Vec<(i64, i64)> = Vec::new();
    let at = completion.created_ms;
    for (sql, from, to) in [
        ("created_ms BETWEEN ?3 AND ?4 ORDER BY created_ms DESC", at.saturating_sub(around_ms), at),
        ("created_ms > ?3 AND created_ms <= ?4 ORDER BY created_ms", at, at.saturating_add(around_ms)),
    ] {
        let sql = format!(
            "SELECT seq, (SELECT min(x.seq) FROM choices AS x WHERE x.completion = c.seq AND x.position = 0) AS first
             FROM completions AS c WHERE user = ?1 AND key IS ?2 AND id <> ?5 AND {sql} LIMIT ?6"
        );
        let mut select = transaction.prepare_cached(&sql)?;
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let rows = select.query_map(params![user, completion.key, from, to, completion.id, limit], |row| {
            Ok((row.get(0)?, row.get::<_, Option<i64>>(1)?))
        })?;
        for row in rows {
            let (seq, first) = row?;
            found.extend(first.map(|first| (seq, first)));
        }
    }
    found
        .into_iter()
        .map(|(seq, first)| {
            Ok(Followed { cursor: Cursor(first as u64), completion: read::load(&transaction, seq, Some(0))? })
        })
        .collect()
}

fn place(cursor: Cursor) -> i64 {
    i64::try_from(cursor.0).unwrap_or(i64::MAX)
}

/// A row of [`FLAG`].
fn kept(row: &Row<'_>) -> Result<KeptFlag, StoreError> {
    let completion: String = row.get("id")?;
    let corrupt =
        |what: &str| StoreError::Corrupt { id: completion.clone(), reason: format!("its {what} cannot be read") };
    let adapter = match row.get::<_, Option<String>>("adapter")? {
        Some(name) => {
            let name = AdapterName::parse(&name).map_err(|_| corrupt("adapter's name"))?;
            Some((name, AdapterVersion(Digest::from_bytes(row.get("adapter_version")?))))
        }
        None => None,
    };
    let resolved = match row.get::<_, Option<String>>("verdict")? {
        Some(word) => Some(Resolved {
            verdict: Verdict::parse(&word).ok_or_else(|| corrupt("verdict"))?,
            at_ms: row.get("resolved_ms")?,
            by: row.get("resolved_by")?,
            note: row.get("note")?,
        }),
        None => None,
    };
    Ok(KeptFlag {
        id: row.get::<_, i64>("seq")? as u64,
        at_ms: row.get("at_ms")?,
        position: row.get("position")?,
        rule: row.get("name")?,
        rule_version: Digest::from_bytes(row.get("rule_version")?),
        reason: row.get("reason")?,
        value: row.get("value")?,
        created_ms: row.get("created_ms")?,
        model: row.get("model")?,
        adapter,
        key: row.get("key")?,
        resolved,
        completion,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::migrations::migrate;

    #[test]
    fn pages_walk_an_index_and_sort_nothing() {
        let mut connection = Connection::open_in_memory().unwrap();
        migrate(&mut connection, "memory".as_ref()).unwrap();
        let all = FlagQuery {
            rule: None,
            adapter: None,
            completion: None,
            state: FlagState::All,
            after: Some(7),
            limit: 20,
            order: Order::NewestFirst,
        };
        let (rule, adapter) = (Some("loop".to_owned()), Some("poet".to_owned()));
        let open = FlagQuery { state: FlagState::Open, ..all.clone() };
        for (query, index) in [
            (all.clone(), "SEARCH f USING INTEGER PRIMARY KEY"),
            (FlagQuery { rule: rule.clone(), ..all.clone() }, "INDEX flags_by_rule"),
            (FlagQuery { adapter: adapter.clone(), ..all.clone() }, "INDEX flags_by_adapter"),
            (FlagQuery { completion: Some("c".to_owned()), ..all.clone() }, "INDEX flags_by_completion"),
            (FlagQuery { rule, ..open.clone() }, "INDEX open_flags_by_rule"),
            (FlagQuery { adapter, ..open.clone() }, "INDEX open_flags_by_adapter"),
            (open, "INDEX open_flags "),
            (FlagQuery { state: FlagState::Resolved(Verdict::Confirmed), ..all }, "INDEX resolved_flags"),
        ] {
            let (sql, values) = page_sql(&query);
            let mut plan = connection.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
            let lines = plan.query_map(params_from_iter(values), |row| row.get::<_, String>(3)).unwrap();
            let plan = lines.collect::<Result<Vec<_>, _>>().unwrap().join("; ");
            assert!(plan.contains(index) && !plan.contains("TEMP B-TREE"), "{query:?}: {plan}");
        }
    }

    #[test]
    fn stretches_that_meet_are_one_and_others_stay_apart() {
        let mut connection = Connection::open_in_memory().unwrap();
        migrate(&mut connection, "memory".as_ref()).unwrap();
        let rule = RuleRow { name: "loop".to_owned(), version: Digest::of(b"1"), definition: "{}".to_owned() };
        let mut step = |follower: Option<&str>, from: Option<u64>, to: u64, looks: bool| {
            let followup = Followup {
                follower: follower.map(|name| (name.to_owned(), from.map(Cursor))),
                from: Cursor(from.unwrap_or(0)),
                to: Cursor(to),
                rules: if looks { vec![rule.clone()] } else { Vec::new() },
                flags: Vec::new(),
                at_ms: 5,
            };
            let transaction = connection.transaction().unwrap();
            let outcome = follow_up(&transaction, &followup).unwrap();
            transaction.commit().unwrap();
            outcome
        };
        assert_eq!(step(Some("live"), None, 10, true), Outcome::Applied);
        assert_eq!(step(Some("live"), None, 10, true), Outcome::Missing, "it stands elsewhere");
        assert_eq!(step(Some("live"), Some(10), 20, true), Outcome::Applied);
        assert_eq!(step(Some("live"), Some(20), 30, false), Outcome::Applied);
        assert_eq!(step(Some("live"), Some(30), 40, true), Outcome::Applied);
        assert_eq!(step(None, None, 15, true), Outcome::Applied);
        assert_eq!(follower(&mut connection, "live").unwrap(), Some(Cursor(40)));
        let kept = rules(&mut connection).unwrap();
        assert_eq!(kept[0].spans, [(Cursor(0), Cursor(20)), (Cursor(30), Cursor(40))]);
        assert_eq!((kept.len(), kept[0].since_ms), (1, 5));
    }
}
