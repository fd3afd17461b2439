//! Verdicts of trials, read and written.

use rusqlite::{Connection, Row, params};

use crate::{
    store::{StoreError, TrialRow},
    terms::{AdapterVersion, Digest},
};

pub fn rows(connection: &mut Connection, base: Digest) -> Result<Vec<TrialRow>, StoreError> {
    let mut select = connection.prepare_cached("SELECT * FROM adapter_trials WHERE base = ?1")?;
    let mut rows = select.query([base.as_bytes().as_slice()])?;
    let mut trials = Vec::new();
    while let Some(row) = rows.next()? {
        trials.push(trial(row)?);
    }
    Ok(trials)
}

pub fn keep(connection: &mut Connection, row: &TrialRow) -> Result<(), StoreError> {
    let (test, reason) = row.failed.clone().unzip();
    connection.prepare_cached("INSERT OR REPLACE INTO adapter_trials VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)")?.execute(
        params![
            row.version.0.as_bytes().as_slice(),
            row.base.as_bytes().as_slice(),
            row.suite.as_bytes().as_slice(),
            row.at_ms,
            test,
            reason,
            row.figures,
        ],
    )?;
    Ok(())
}

fn trial(row: &Row<'_>) -> Result<TrialRow, StoreError> {
    let digest = |column: &str| Ok::<_, StoreError>(Digest::from_bytes(row.get::<_, [u8; 32]>(column)?));
    let test: Option<String> = row.get("test")?;
    let reason: Option<String> = row.get("reason")?;
    Ok(TrialRow {
        version: AdapterVersion(digest("version")?),
        base: digest("base")?,
        suite: digest("suite")?,
        at_ms: row.get("at_ms")?,
        failed: test.map(|test| (test, reason.unwrap_or_default())),
        figures: row.get("figures")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::migrations::migrate;

    #[test]
    fn a_verdict_is_kept_for_each_version_base_and_suite_and_the_latest_stands() {
        let mut database = Connection::open_in_memory().unwrap();
        migrate(&mut database, "memory".as_ref()).unwrap();
        let digest = |word: &str| Digest::of(word.as_bytes());
        let failed = TrialRow {
            version: AdapterVersion(digest("one")),
            base: digest("base"),
            suite: digest("suite"),
            at_ms: 5,
            failed: Some(("no_op".to_owned(), "changes nothing".to_owned())),
            figures: "{}".to_owned(),
        };
        let passed = TrialRow { at_ms: 6, failed: None, ..failed.clone() };
        let elsewhere = TrialRow { base: digest("another"), ..failed.clone() };
        let by_others = TrialRow { suite: digest("another"), ..failed.clone() };
        for row in [&failed, &passed, &elsewhere, &by_others] {
            keep(&mut database, row).unwrap();
        }
        let mut here = rows(&mut database, digest("base")).unwrap();
        here.sort_by_key(|row| row.at_ms);
        assert_eq!(here, [by_others, passed]);
        assert_eq!(rows(&mut database, digest("another")).unwrap(), [elsewhere]);
    }
}
