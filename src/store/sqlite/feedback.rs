//! What was said of answers, read and written.

use rusqlite::{
    Connection, OptionalExtension, Row, Transaction, params, params_from_iter,
    types::{Value as Sql, Value::Integer},
};
use serde_json::{Map, Value};

use crate::{
    store::{
        Accepted, Feedback, FeedbackPage, FeedbackQuery, JudgedAnswer, Judgement, KeptFeedback, Options, Order,
        Outcome, Source, Standing, StoreError, Target, TargetKind,
    },
    terms::{AdapterName, AdapterVersion, Digest},
};

/// Feedback `f` with the answer that it is about, where that is on record and whoever gave it may judge it.
const JOINED: &str = "
    SELECT f.*, c.created_ms, c.model, c.adapter, c.adapter_version,
        CASE f.target_kind
            WHEN 'user' THEN EXISTS (
                SELECT 1 FROM completions AS o WHERE o.user = f.target AND (f.any_key OR o.key IS f.key)
            )
            WHEN 'conversation' THEN EXISTS (
                SELECT 1 FROM completions AS o WHERE o.conversation = f.target AND (f.any_key OR o.key IS f.key)
            )
            ELSE 0
        END AS known_otherwise
    FROM feedback AS f LEFT JOIN completions AS c ON c.seq = f.completion
    WHERE true";

/// Takes all of `given`, or none where an id is known with other words.
pub fn add(transaction: &Transaction<'_>, given: &[Feedback]) -> Result<Outcome, StoreError> {
    let mut fresh = Vec::with_capacity(given.len());
    for (at, feedback) in given.iter().enumerate() {
        let known: Option<Option<[u8; 32]>> = transaction
            .prepare_cached("SELECT digest FROM feedback WHERE id = ?1")?
            .query_row([&feedback.id], |row| row.get(0))
            .optional()?;
        match known {
            None => fresh.push(feedback),
            // What was erased cannot be compared any more.
            Some(None) => {}
            Some(Some(digest)) if Some(Digest::from_bytes(digest)) == feedback.digest => {}
            Some(Some(_)) => return Ok(Outcome::Conflict { at }),
        }
    }
    let mut accepted = Accepted { repeated: given.len() - fresh.len(), ..Accepted::default() };
    for feedback in fresh {
        insert(transaction, feedback)?;
        if let Target::Answer { completion, .. } = &feedback.target {
            join(transaction, completion)?;
        }
        let standing = one(transaction, &feedback.id)?.map_or(Standing::Aside, |kept| kept.standing);
        match standing {
            Standing::Joined => {
                transaction
                    .prepare_cached("UPDATE feedback SET arrived = 'joined' WHERE id = ?1")?
                    .execute([&feedback.id])?;
                accepted.joined += 1;
            }
            Standing::InFlight => accepted.in_flight += 1,
            Standing::Aside => accepted.aside += 1,
        }
    }
    Ok(Outcome::Accepted(accepted))
}

/// Joins what waits for the completion `id`, if that is on record, has the choice, and may be judged by whoever judged it.
/// Called for every completion that is recorded, so what finds nothing has to be quick.
pub fn join(transaction: &Transaction<'_>, id: &str) -> Result<(), StoreError> {
    let mut select = transaction.prepare_cached(
        "SELECT seq, choice, any_key, key FROM feedback
         WHERE target = ?1 AND completion IS NULL AND target_kind = 'answer'",
    )?;
    let waiting = select
        .query_map([id], |row| {
            Ok((row.get::<_, i64>(0)?, row.get::<_, Option<u32>>(1)?, row.get::<_, bool>(2)?, row.get(3)?))
        })?
        .collect::<Result<Vec<(_, _, _, Option<String>)>, _>>()?;
    if waiting.is_empty() {
        return Ok(());
    }
    let found = transaction
        .prepare_cached(
            "SELECT c.seq, c.key, c.options, CASE c.origin WHEN 'served' THEN s.served END AS served FROM completions AS c
             LEFT JOIN served AS s ON s.base = c.base AND s.adapter IS c.adapter AND s.version IS c.adapter_version
             WHERE c.id = ?1",
        )?
        .query_row([id], |row| {
            Ok((
                row.get::<_, i64>(0)?,
                row.get::<_, Option<String>>(1)?,
                row.get::<_, String>(2)?,
                row.get::<_, Option<i64>>(3)?,
            ))
        })
        .optional()?;
    let Some((completion, owner, options, served)) = found else { return Ok(()) };
    let options: Options = serde_json::from_str(&options)
        .map_err(|error| StoreError::Corrupt { id: id.to_owned(), reason: error.to_string() })?;
    let choices = u64::from(options.n) * options.max_tokens.len() as u64;
    for (seq, choice, any_key, key) in waiting {
        if (any_key || key == owner) && choice.is_none_or(|choice| u64::from(choice) < choices) {
            transaction
                .prepare_cached("UPDATE feedback SET completion = ?2, served = ?3 WHERE seq = ?1")?
                .execute(params![seq, completion, served])?;
        }
    }
    Ok(())
}

fn insert(transaction: &Transaction<'_>, feedback: &Feedback) -> Result<(), StoreError> {
    let (number, category) = match &feedback.value {
        Some(Judgement::Boolean(value)) => (Some(f64::from(u8::from(*value))), None),
        Some(Judgement::Number(value)) => (Some(*value), None),
        Some(Judgement::Category(value)) => (None, Some(value)),
        None => (None, None),
    };
    let tags = Value::Object(feedback.tags.clone()).to_string();
    transaction
        .prepare_cached(
            "INSERT INTO feedback (
                id, client_id, at_ms, target_kind, target, choice, name, number, category, is_boolean, comment,
                correction, source, author, key, any_key, tags, digest, arrived, retracted_ms, erased_ms, corrects
             ) VALUES (
                ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20, ?21,
                ?12 IS NOT NULL
             )",
        )?
        .execute(params![
            feedback.id,
            feedback.client_id,
            feedback.at_ms,
            feedback.target.kind().as_str(),
            feedback.target.id(),
            feedback.target.choice(),
            feedback.name,
            number,
            category,
            matches!(feedback.value, Some(Judgement::Boolean(_))),
            feedback.comment,
            feedback.correction,
            feedback.source.as_str(),
            feedback.author,
            feedback.key,
            feedback.any_key,
            tags,
            feedback.digest.as_ref().map(Digest::as_bytes),
            feedback.arrived.as_str(),
            feedback.retracted_ms,
            feedback.erased_ms,
        ])?;
    Ok(())
}

/// Says that feedback counts no more; the first time stands.
pub fn retract(transaction: &Transaction<'_>, id: &str, at_ms: i64) -> Result<Outcome, StoreError> {
    let changed = transaction
        .prepare_cached("UPDATE feedback SET retracted_ms = coalesce(retracted_ms, ?2) WHERE id = ?1")?
        .execute(params![id, at_ms])?;
    Ok(if changed == 0 { Outcome::Missing } else { Outcome::Applied })
}

/// Takes words, tags and author of all that was said of a completion.
pub fn erase_on(transaction: &Transaction<'_>, completion: i64, at_ms: i64) -> Result<(), StoreError> {
    transaction
        .prepare_cached(
            "UPDATE feedback SET comment = NULL, correction = NULL, author = NULL, tags = '{}', digest = NULL,
                erased_ms = coalesce(erased_ms, ?2)
             WHERE target_kind = 'answer' AND target = (SELECT id FROM completions WHERE seq = ?1)",
        )?
        .execute([completion, at_ms])?;
    Ok(())
}

/// Takes the same of what was said of a user, and the name.
pub fn erase_of(transaction: &Transaction<'_>, user: &str, at_ms: i64) -> Result<(), StoreError> {
    transaction
        .prepare_cached(
            "UPDATE feedback SET target = id, comment = NULL, correction = NULL, author = NULL, tags = '{}', digest = NULL,
                erased_ms = coalesce(erased_ms, ?2)
             WHERE target_kind = 'user' AND target = ?1",
        )?
        .execute(params![user, at_ms])?;
    Ok(())
}

fn one(transaction: &Transaction<'_>, id: &str) -> Result<Option<KeptFeedback>, StoreError> {
    let sql = format!("{JOINED} AND f.id = ?1");
    transaction.prepare_cached(&sql)?.query_row([id], |row| Ok(kept(row))).optional()?.transpose()
}

pub fn by_id(connection: &mut Connection, ids: &[String]) -> Result<Vec<KeptFeedback>, StoreError> {
    let transaction = connection.transaction()?;
    let mut found = Vec::with_capacity(ids.len());
    for id in ids {
        found.extend(one(&transaction, id)?);
    }
    Ok(found)
}

pub fn on(connection: &mut Connection, completions: &[&str]) -> Result<Vec<KeptFeedback>, StoreError> {
    let transaction = connection.transaction()?;
    let sql = format!(
        "{JOINED} AND f.completion IS NOT NULL AND f.completion = (SELECT seq FROM completions WHERE id = ?1)
         ORDER BY f.seq"
    );
    let mut select = transaction.prepare_cached(&sql)?;
    let mut found = Vec::new();
    for id in completions {
        let mut rows = select.query([id])?;
        while let Some(row) = rows.next()? {
            found.push(kept(row)?);
        }
    }
    Ok(found)
}

pub fn page(connection: &mut Connection, query: &FeedbackQuery) -> Result<FeedbackPage, StoreError> {
    let transaction = connection.transaction()?;
    let after: Option<i64> = match &query.after {
        Some(after) => Some(
            transaction
                .prepare_cached("SELECT seq FROM feedback WHERE id = ?1")?
                .query_row([after], |row| row.get(0))
                .optional()?
                .ok_or_else(|| StoreError::UnknownCursor(after.clone()))?,
        ),
        None => None,
    };
    let (sql, values) = page_sql(query, after);
    let mut select = transaction.prepare_cached(&sql)?;
    let mut rows = select.query(params_from_iter(values))?;
    let mut feedback = Vec::new();
    while let Some(row) = rows.next()? {
        feedback.push(kept(row)?);
    }
    let more = feedback.len() > query.limit;
    feedback.truncate(query.limit);
    Ok(FeedbackPage { feedback, more })
}

/// Selects the rows of a page, and one more.
fn page_sql(query: &FeedbackQuery, after: Option<i64>) -> (String, Vec<Sql>) {
    let (comparison, direction) = match query.order {
        Order::OldestFirst => (">", "ASC"),
        Order::NewestFirst => ("<", "DESC"),
    };
    let mut sql = JOINED.to_owned();
    let mut values: Vec<Sql> = Vec::new();
    let mut only = |condition: &str, value: Sql| {
        sql.push_str(" AND ");
        sql.push_str(condition);
        values.push(value);
    };
    if let Some((kind, id)) = &query.target {
        only("f.target = ?", id.clone().into());
        only("f.target_kind = ?", kind.as_str().to_owned().into());
    }
    if let Some(key) = &query.key {
        only("f.key = ?", key.clone().into());
    }
    if let Some(name) = &query.name {
        only("f.name = ?", name.clone().into());
    }
    if let Some(source) = query.source {
        only("f.source = ?", source.as_str().to_owned().into());
    }
    if let Some(retracted) = query.retracted {
        only("(f.retracted_ms IS NOT NULL) = ?", Integer(retracted.into()));
    }
    if let Some(after) = after {
        only(&format!("f.seq {comparison} ?"), Integer(after));
    }
    match query.standing {
        None => {}
        Some(Standing::Joined) => sql += " AND (f.completion IS NOT NULL OR known_otherwise)",
        Some(early) => {
            // Of what is not joined to an answer, users and conversations may be known.
            sql += " AND f.completion IS NULL AND NOT known_otherwise AND f.arrived = ?";
            values.push(early.as_str().to_owned().into());
        }
    }
    sql += &format!(" ORDER BY f.seq {direction} LIMIT ?");
    values.push(Integer(i64::try_from(query.limit.saturating_add(1)).unwrap_or(i64::MAX)));
    (sql, values)
}

/// A row of [`JOINED`].
fn kept(row: &Row<'_>) -> Result<KeptFeedback, StoreError> {
    let id: String = row.get("id")?;
    let corrupt = |what: &str| StoreError::Corrupt { id: id.clone(), reason: format!("its {what} cannot be read") };
    let word = |column: &str| row.get::<_, String>(column);
    let (kind, target) = (word("target_kind")?, word("target")?);
    let target = match TargetKind::parse(&kind).ok_or_else(|| corrupt("kind of target"))? {
        TargetKind::Answer => Target::Answer { completion: target, choice: row.get("choice")? },
        TargetKind::Conversation => Target::Conversation(target),
        TargetKind::User => Target::User(target),
    };
    let value = match (row.get::<_, Option<f64>>("number")?, row.get::<_, Option<String>>("category")?) {
        (Some(number), _) if row.get("is_boolean")? => Some(Judgement::Boolean(number != 0.0)),
        (Some(number), _) => Some(Judgement::Number(number)),
        (None, category) => category.map(Judgement::Category),
    };
    let tags: Map<String, Value> = serde_json::from_str(&word("tags")?).map_err(|_| corrupt("tags"))?;
    let arrived = Standing::parse(&word("arrived")?).ok_or_else(|| corrupt("arrival"))?;
    let answer = match row.get::<_, Option<i64>>("completion")? {
        None => None,
        Some(_) => {
            let adapter = match row.get::<_, Option<String>>("adapter")? {
                Some(name) => {
                    let name = AdapterName::parse(&name).map_err(|_| corrupt("adapter's name"))?;
                    Some((name, AdapterVersion(Digest::from_bytes(row.get("adapter_version")?))))
                }
                None => None,
            };
            Some(JudgedAnswer { created_ms: row.get("created_ms")?, model: row.get("model")?, adapter })
        }
    };
    let known = answer.is_some() || row.get("known_otherwise")?;
    Ok(KeptFeedback {
        standing: if known { Standing::Joined } else { arrived },
        answer,
        feedback: Feedback {
            client_id: row.get("client_id")?,
            at_ms: row.get("at_ms")?,
            target,
            name: row.get("name")?,
            value,
            comment: row.get("comment")?,
            correction: row.get("correction")?,
            source: Source::parse(&word("source")?).ok_or_else(|| corrupt("source"))?,
            author: row.get("author")?,
            key: row.get("key")?,
            any_key: row.get("any_key")?,
            tags,
            digest: row.get::<_, Option<[u8; 32]>>("digest")?.map(Digest::from_bytes),
            arrived,
            retracted_ms: row.get("retracted_ms")?,
            erased_ms: row.get("erased_ms")?,
            id,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::migrations::migrate;

    fn database() -> Connection {
        let mut connection = Connection::open_in_memory().unwrap();
        migrate(&mut connection, "memory".as_ref()).unwrap();
        connection
    }

    fn thumbs(id: &str, completion: &str) -> Feedback {
        Feedback {
            id: id.to_owned(),
            client_id: Some("mine".to_owned()),
            at_ms: 7,
            target: Target::Answer { completion: completion.to_owned(), choice: Some(1) },
            name: "thumbs".to_owned(),
            value: Some(Judgement::Boolean(false)),
            comment: Some("too long".to_owned()),
            correction: Some("short".to_owned()),
            source: Source::Reviewer,
            author: Some("ada".to_owned()),
            key: Some("shop".to_owned()),
            any_key: false,
            tags: Map::from_iter([("b".to_owned(), "1".into()), ("a".to_owned(), "2".into())]),
            digest: Some(Digest::of(id.as_bytes())),
            arrived: Standing::Aside,
            retracted_ms: None,
            erased_ms: None,
        }
    }

    fn give(connection: &mut Connection, given: &[Feedback]) -> Outcome {
        let transaction = connection.transaction().unwrap();
        let outcome = add(&transaction, given).unwrap();
        transaction.commit().unwrap();
        outcome
    }

    #[test]
    fn every_kind_of_feedback_is_read_back_as_it_was_given() {
        let mut database = database();
        let conversation = Target::Conversation("c".to_owned());
        let given = [
            thumbs("fb-1", "x"),
            Feedback { value: Some(Judgement::Number(-0.5)), target: conversation, ..thumbs("fb-2", "") },
            Feedback {
                value: Some(Judgement::Category("rude".to_owned())),
                target: Target::User("u".to_owned()),
                ..thumbs("fb-3", "")
            },
            Feedback { value: None, comment: None, correction: None, tags: Map::new(), ..thumbs("fb-4", "y") },
            Feedback { value: Some(Judgement::Boolean(true)), arrived: Standing::InFlight, ..thumbs("fb-5", "z") },
        ];
        let outcome = give(&mut database, &given);
        assert_eq!(outcome, Outcome::Accepted(Accepted { aside: 4, in_flight: 1, ..Accepted::default() }));
        let ids: Vec<String> = given.iter().map(|feedback| feedback.id.clone()).collect();
        let read: Vec<Feedback> = by_id(&mut database, &ids).unwrap().into_iter().map(|kept| kept.feedback).collect();
        assert_eq!(read, given);
    }

    #[test]
    fn the_same_again_is_the_same_and_other_words_under_its_id_take_nothing() {
        let mut database = database();
        let (one, two) = (thumbs("fb-1", "x"), thumbs("fb-2", "x"));
        give(&mut database, std::slice::from_ref(&one));
        let outcome = give(&mut database, &[one.clone(), two.clone()]);
        assert_eq!(outcome, Outcome::Accepted(Accepted { aside: 1, repeated: 1, ..Accepted::default() }));
        let other = Feedback { digest: Some(Digest::of(b"other")), ..two };
        let outcome = give(&mut database, &[thumbs("fb-3", "x"), other]);
        assert_eq!(outcome, Outcome::Conflict { at: 1 });
        assert_eq!(by_id(&mut database, &["fb-3".to_owned()]).unwrap(), []);
    }

    #[test]
    fn an_erasure_takes_the_words_and_leaves_the_value() {
        let mut database = database();
        give(&mut database, &[thumbs("fb-1", "x"), thumbs("fb-2", "y")]);
        database
            .execute_batch(
                "INSERT INTO completions (id, created_ms, request_id, kind, model, base, tokenizer, sampling, seed, options,
                    prompt_tokens, completion_tokens, cached_tokens, queue_us, total_us, policy, stored)
                 VALUES ('x', 1, 'r', 'chat', 'm', x'00', x'00', '{}', 0, '{}', 1, 1, 0, 1, 1, 'full', 0)",
            )
            .unwrap();
        let transaction = database.transaction().unwrap();
        erase_on(&transaction, 1, 9).unwrap();
        transaction.commit().unwrap();
        let read = by_id(&mut database, &["fb-1".to_owned(), "fb-2".to_owned()]).unwrap();
        let erased = Feedback {
            comment: None,
            correction: None,
            author: None,
            tags: Map::new(),
            digest: None,
            erased_ms: Some(9),
            ..thumbs("fb-1", "x")
        };
        assert_eq!(read[0].feedback, erased);
        assert_eq!(read[1].feedback, thumbs("fb-2", "y"));
        let again = give(&mut database, &[thumbs("fb-1", "x")]);
        assert_eq!(again, Outcome::Accepted(Accepted { repeated: 1, ..Accepted::default() }), "it does not come back");
    }

    #[test]
    fn lists_walk_an_index() {
        let connection = database();
        let all = FeedbackQuery {
            key: None,
            target: None,
            name: None,
            source: None,
            standing: None,
            retracted: None,
            after: None,
            limit: 20,
            order: Order::NewestFirst,
        };
        let target = Some((TargetKind::Answer, "x".to_owned()));
        for (query, index) in [
            (all.clone(), "SCAN f"),
            (FeedbackQuery { target, ..all.clone() }, "feedback_by_target"),
            (FeedbackQuery { name: Some("thumbs".to_owned()), ..all.clone() }, "feedback_by_name"),
            (FeedbackQuery { key: Some("shop".to_owned()), ..all.clone() }, "feedback_by_key"),
            (FeedbackQuery { standing: Some(Standing::Aside), ..all }, "feedback_without_answer"),
        ] {
            let (sql, values) = page_sql(&query, None);
            let mut plan = connection.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
            let lines = plan.query_map(params_from_iter(values), |row| row.get::<_, String>(3)).unwrap();
            let plan = lines.collect::<Result<Vec<_>, _>>().unwrap().join("; ");
            assert!(plan.contains(index) && !plan.contains("TEMP B-TREE"), "{sql}: {plan}");
            assert!(plan.contains("SEARCH c USING INTEGER PRIMARY KEY"), "{sql}: {plan}");
        }
    }
}
