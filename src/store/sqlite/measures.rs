//! The figures of each choice, one version's together.

use rusqlite::{OptionalExtension, Transaction, params};

use crate::store::{ChoiceRecord, Completion, StoreError};

/// The number of what answered; given where it is new.
pub fn served(transaction: &Transaction<'_>, completion: &Completion) -> Result<i64, StoreError> {
    let adapter = completion.adapter.as_ref().map(|(name, _)| name.as_str());
    let version = completion.adapter.as_ref().map(|(_, version)| version.0.as_bytes().as_slice());
    let base = completion.base.as_bytes().as_slice();
    let known = transaction
        .prepare_cached(
            "SELECT served FROM served
             WHERE coalesce(version, x'') = coalesce(?1, x'') AND coalesce(adapter, '') = coalesce(?2, '') AND base = ?3",
        )?
        .query_row(params![version, adapter, base], |row| row.get(0))
        .optional()?;
    match known {
        Some(served) => Ok(served),
        None => Ok(transaction
            .prepare_cached("INSERT INTO served (base, adapter, version) VALUES (?1, ?2, ?3)")?
            .insert(params![base, adapter, version])?),
    }
}

/// Adds a choice by the numbers of what answered, of its own row and of its completion's.
pub fn insert(
    transaction: &Transaction<'_>,
    (served, row, completion): (i64, i64, i64),
    fact: &Completion,
    choice: &ChoiceRecord,
) -> Result<(), StoreError> {
    let logprobs = || choice.scores.iter().map(|score| f64::from(score.logprob)).filter(|logprob| logprob.is_finite());
    let count = logprobs().count();
    let mean = (count > 0).then(|| logprobs().sum::<f64>() / count as f64);
    let min = logprobs().reduce(f64::min);
    transaction
        .prepare_cached("INSERT INTO measures VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)")?
        .execute(params![
            served,
            row,
            completion,
            choice.index,
            fact.created_ms,
            choice.ending.as_str(),
            fact.usage.prompt_tokens as i64,
            choice.tokens as i64,
            mean,
            min,
            fact.timing.first_token_us.map(|us| us as i64),
            fact.timing.total_us as i64,
        ])?;
    Ok(())
}

/// Takes the figures of a completion whose fact goes.
pub fn take(transaction: &Transaction<'_>, completion: i64) -> Result<(), StoreError> {
    transaction
        .prepare_cached(
            "DELETE FROM measures WHERE choice IN (SELECT seq FROM choices WHERE completion = ?1) AND served IN (
                SELECT s.served FROM completions AS c
                JOIN served AS s ON s.base = c.base AND s.adapter IS c.adapter AND s.version IS c.adapter_version
                WHERE c.seq = ?1
             )",
        )?
        .execute([completion])?;
    Ok(())
}
