//! The catalog's rows, read and written within one transaction each.

use rusqlite::{Connection, OptionalExtension, Row, Transaction, TransactionBehavior, params};

use crate::{
    store::{Changed, ManagedBy, NameChange, NameRow, OldHistory, Operation, Step, StoreError},
    terms::{AdapterName, AdapterVersion, Digest},
};

/// Every name with its steps, oldest first, as they are at one moment.
pub fn names(connection: &mut Connection) -> Result<Vec<(NameRow, Vec<Step>)>, StoreError> {
    let transaction = connection.transaction()?;
    let mut select = transaction.prepare_cached("SELECT * FROM adapter_names ORDER BY name")?;
    let mut rows = select.query([])?;
    let mut names = Vec::new();
    while let Some(row) = rows.next()? {
        let name = name_row(row)?;
        let steps = steps(&transaction, &name.name)?;
        names.push((name, steps));
    }
    Ok(names)
}

pub fn change(connection: &mut Connection, change: &NameChange, base: Digest) -> Result<Changed, StoreError> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let found = current(&transaction, &change.row.name)?;
    if found != change.seen {
        return Ok(Changed::Moved { found });
    }
    let row = &change.row;
    let version = row.version.as_ref().map(|version| version.0.as_bytes().as_slice());
    transaction
        .prepare_cached(
            "INSERT INTO adapter_names VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
             ON CONFLICT (name) DO UPDATE SET version = excluded.version, since_ms = excluded.since_ms,
                managed_by = excluded.managed_by, hold = excluded.hold, pinned = excluded.pinned,
                source = excluded.source",
        )?
        .execute(params![
            row.name.as_str(),
            version,
            row.since_ms,
            row.managed_by.as_str(),
            row.hold,
            row.pinned,
            row.source,
        ])?;
    let mut step = Step {
        seq: 0,
        at_ms: change.at_ms,
        operation: change.operation,
        version: row.version,
        managed_by: row.managed_by,
        who: change.who.clone(),
        why: change.why.clone(),
        source: row.source.clone(),
        base: Some(base),
    };
    step.seq = add_step(&transaction, &row.name, &step)?;
    transaction.commit()?;
    Ok(Changed::Applied(step))
}

/// Adds the names that are not known yet, without a version: whoever manages them now says whether they are served.
pub fn import(connection: &mut Connection, histories: &[OldHistory]) -> Result<(), StoreError> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    for (name, versions) in histories {
        let last_ms = versions.last().map_or(0, |(since, _)| since.saturating_mul(1000));
        let added = transaction
            .prepare_cached("INSERT INTO adapter_names VALUES (?1, NULL, ?2, ?3, 0, 0, NULL) ON CONFLICT DO NOTHING")?
            .execute(params![name.as_str(), last_ms, ManagedBy::Folder.as_str()])?;
        if added == 0 {
            continue;
        }
        for (since, version) in versions {
            let step = Step {
                seq: 0,
                at_ms: since.saturating_mul(1000),
                operation: Operation::Import,
                version: Some(*version),
                managed_by: ManagedBy::Folder,
                who: "tunegate".to_owned(),
                why: None,
                source: None,
                base: None,
            };
            add_step(&transaction, name, &step)?;
        }
    }
    transaction.commit()?;
    Ok(())
}

fn current(transaction: &Transaction<'_>, name: &AdapterName) -> Result<Option<AdapterVersion>, StoreError> {
    let version: Option<Option<[u8; 32]>> = transaction
        .prepare_cached("SELECT version FROM adapter_names WHERE name = ?1")?
        .query_row([name.as_str()], |row| row.get(0))
        .optional()?;
    Ok(version.flatten().map(|bytes| AdapterVersion(Digest::from_bytes(bytes))))
}

fn add_step(transaction: &Transaction<'_>, name: &AdapterName, step: &Step) -> Result<u64, StoreError> {
    let version = step.version.as_ref().map(|version| version.0.as_bytes().as_slice());
    let seq = transaction
        .prepare_cached(
            "INSERT INTO adapter_steps (name, at_ms, operation, version, managed_by, who, why, source, base)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
        )?
        .insert(params![
            name.as_str(),
            step.at_ms,
            step.operation.as_str(),
            version,
            step.managed_by.as_str(),
            step.who,
            step.why,
            step.source,
            step.base.as_ref().map(|base| base.as_bytes().as_slice()),
        ])?;
    Ok(seq as u64)
}

fn steps(transaction: &Transaction<'_>, name: &AdapterName) -> Result<Vec<Step>, StoreError> {
    let mut select = transaction.prepare_cached("SELECT * FROM adapter_steps WHERE name = ?1 ORDER BY seq")?;
    let mut rows = select.query([name.as_str()])?;
    let mut steps = Vec::new();
    while let Some(row) = rows.next()? {
        let operation: String = row.get("operation")?;
        steps.push(Step {
            seq: row.get::<_, i64>("seq")? as u64,
            at_ms: row.get("at_ms")?,
            operation: Operation::parse(&operation).ok_or_else(|| corrupt(name.as_str(), "operation", &operation))?,
            version: version(row)?,
            managed_by: managed_by(row, name.as_str())?,
            who: row.get("who")?,
            why: row.get("why")?,
            source: row.get("source")?,
            base: row.get::<_, Option<[u8; 32]>>("base")?.map(Digest::from_bytes),
        });
    }
    Ok(steps)
}

fn name_row(row: &Row<'_>) -> Result<NameRow, StoreError> {
    let name: String = row.get("name")?;
    Ok(NameRow {
        version: version(row)?,
        since_ms: row.get("since_ms")?,
        managed_by: managed_by(row, &name)?,
        hold: row.get("hold")?,
        pinned: row.get("pinned")?,
        source: row.get("source")?,
        name: AdapterName::parse(&name)
            .map_err(|error| StoreError::Corrupt { id: name.clone(), reason: error.to_string() })?,
    })
}

fn version(row: &Row<'_>) -> Result<Option<AdapterVersion>, StoreError> {
    let bytes: Option<[u8; 32]> = row.get("version")?;
    Ok(bytes.map(|bytes| AdapterVersion(Digest::from_bytes(bytes))))
}

fn managed_by(row: &Row<'_>, name: &str) -> Result<ManagedBy, StoreError> {
    let word: String = row.get("managed_by")?;
    ManagedBy::parse(&word).ok_or_else(|| corrupt(name, "manager", &word))
}

fn corrupt(name: &str, what: &str, word: &str) -> StoreError {
    StoreError::Corrupt { id: name.to_owned(), reason: format!("its {what} '{word}' has an unknown name") }
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

    fn changed(database: &mut Connection, to: &NameChange) -> Result<Changed, StoreError> {
        change(database, to, Digest::of(b"base"))
    }

    fn digest(word: &str) -> AdapterVersion {
        AdapterVersion(Digest::of(word.as_bytes()))
    }

    fn to(name: &str, seen: Option<AdapterVersion>, version: Option<AdapterVersion>, at_ms: i64) -> NameChange {
        NameChange {
            seen,
            row: NameRow {
                name: AdapterName::parse(name).unwrap(),
                version,
                since_ms: at_ms,
                managed_by: ManagedBy::Api,
                hold: false,
                pinned: true,
                source: Some("here".to_owned()),
            },
            operation: if version.is_some() { Operation::Load } else { Operation::Unload },
            at_ms,
            who: "root".to_owned(),
            why: Some("because".to_owned()),
        }
    }

    #[test]
    fn a_change_of_what_the_caller_saw_is_applied_and_any_other_is_not() {
        let mut database = database();
        let (one, two) = (digest("one"), digest("two"));
        let Changed::Applied(step) = changed(&mut database, &to("a", None, Some(one), 5)).unwrap() else { panic!() };
        assert_eq!((step.seq, step.version, step.at_ms, step.who.as_str()), (1, Some(one), 5, "root"));
        assert_eq!(step.base, Some(Digest::of(b"base")));
        for wrong in [None, Some(two)] {
            let moved = changed(&mut database, &to("a", wrong, Some(two), 6)).unwrap();
            assert_eq!(moved, Changed::Moved { found: Some(one) });
        }
        let names = names(&mut database).unwrap();
        assert_eq!(names, [(to("a", None, Some(one), 5).row, vec![step])]);
    }

    #[test]
    fn an_unloaded_name_is_remembered_with_its_history() {
        let mut database = database();
        let one = digest("one");
        changed(&mut database, &to("a", None, Some(one), 5)).unwrap();
        changed(&mut database, &to("a", Some(one), None, 6)).unwrap();
        let moved = changed(&mut database, &to("a", Some(one), Some(one), 7)).unwrap();
        assert_eq!(moved, Changed::Moved { found: None });
        changed(&mut database, &to("a", None, Some(one), 8)).unwrap();
        let names = names(&mut database).unwrap();
        assert_eq!(names[0].0.version, Some(one));
        let versions: Vec<_> = names[0].1.iter().map(|step| (step.operation, step.version)).collect();
        assert_eq!(versions, [(Operation::Load, Some(one)), (Operation::Unload, None), (Operation::Load, Some(one))]);
    }

    #[test]
    fn histories_of_earlier_builds_come_in_once_and_serve_nothing_by_themselves() {
        let mut database = database();
        let name = AdapterName::parse("team/sql").unwrap();
        let old = [(name.clone(), vec![(5, digest("one")), (9, digest("two"))])];
        import(&mut database, &old).unwrap();
        import(&mut database, &old).unwrap();
        let names = names(&mut database).unwrap();
        assert_eq!(names.len(), 1);
        let (row, steps) = &names[0];
        assert_eq!((&row.name, row.version, row.managed_by), (&name, None, ManagedBy::Folder));
        let versions: Vec<_> = steps.iter().map(|step| (step.at_ms, step.version)).collect();
        assert_eq!(versions, [(5000, Some(digest("one"))), (9000, Some(digest("two")))]);
    }
}
