//! Writes, each within the transaction that it is given.

use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior, params};
use serde::Serialize;
use serde_json::{Map, Value};

use super::{feedback, flags, keep, measures};
use crate::{
    store::{
        ChoiceRecord, Committed, Completion, Content, Cursor, Outcome, StoreError, Write,
        scores::{FORM, pack, pack_tokens},
    },
    terms::Origin,
};

/// As much room as a long answer takes in the log.
const PROBE_BYTES: i64 = 64 << 10;

pub fn commit(connection: &mut Connection, writes: &[&Write]) -> Result<Committed, StoreError> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let outcomes = writes.iter().map(|write| apply(&transaction, write)).collect::<Result<_, _>>()?;
    let last: i64 =
        transaction.prepare_cached("SELECT coalesce(max(seq), 0) FROM choices")?.query_row([], |row| row.get(0))?;
    transaction.commit()?;
    Ok(Committed { outcomes, last: Cursor(last as u64) })
}

pub fn probe(connection: &mut Connection) -> Result<(), StoreError> {
    connection.execute("INSERT OR REPLACE INTO probe VALUES (1, zeroblob(?1))", [PROBE_BYTES])?;
    Ok(())
}

fn apply(transaction: &Transaction<'_>, write: &Write) -> Result<Outcome, StoreError> {
    match write {
        Write::Choices(completion) => record(transaction, completion),
        Write::Metadata { id, metadata } => replace_metadata(transaction, id, metadata),
        Write::Erase { id, at_ms } => erase(transaction, id, *at_ms),
        Write::Hold { ids, holder } => keep::hold(transaction, ids, holder),
        Write::Release { holder } => keep::release(transaction, holder),
        Write::Access(access) => keep::note_access(transaction, access),
        Write::Feedback(given) => feedback::add(transaction, given),
        Write::FollowUp(followup) => flags::follow_up(transaction, followup),
        Write::Resolve { flag, resolved } => flags::resolve(transaction, *flag, resolved.as_ref()),
        Write::Retract { id, at_ms } => feedback::retract(transaction, id, *at_ms),
    }
}

fn record(transaction: &Transaction<'_>, completion: &Completion) -> Result<Outcome, StoreError> {
    // What other programs said, or a version said once more, is no evidence about versions.
    let served = match completion.origin {
        Origin::Served => Some(measures::served(transaction, completion)?),
        Origin::Replayed | Origin::Evaluated | Origin::Imported => None,
    };
    // What the client said may have been erased while other choices were still running.
    let (seq, kept) = match known(transaction, &completion.id)? {
        Some((seq, kept)) => {
            update_fact(transaction, seq, completion)?;
            (seq, kept)
        }
        None => {
            let seq = insert_fact(transaction, completion)?;
            insert_metadata(transaction, seq, &completion.metadata)?;
            if let Some(content) = &completion.content {
                insert_prompts(transaction, seq, content)?;
            }
            feedback::join(transaction, &completion.id)?;
            (seq, true)
        }
    };
    let mut outcome = Outcome::Applied;
    for choice in &completion.choices {
        let added = transaction
            .prepare_cached(
                "INSERT INTO choices (completion, position, ending, tokens, fault, thread)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6) ON CONFLICT DO NOTHING",
            )?
            .execute(params![
                seq,
                choice.index,
                choice.ending.as_str(),
                choice.tokens as i64,
                choice.fault,
                choice.thread.filter(|_| kept).map(|thread| thread.0),
            ])?;
        if added == 0 {
            outcome = Outcome::Duplicate;
            continue;
        }
        if let Some(served) = served {
            let row = transaction.last_insert_rowid();
            measures::insert(transaction, (served, row, seq), completion, choice)?;
        }
        if kept {
            insert_answer(transaction, seq, choice)?;
        }
    }
    Ok(outcome)
}

fn insert_answer(transaction: &Transaction<'_>, seq: i64, choice: &ChoiceRecord) -> Result<(), StoreError> {
    if choice.text.is_some() || !choice.scores.is_empty() {
        let scores = pack(&choice.scores);
        insert_content(transaction, seq, Role::Answer, choice.index, choice.text.as_deref(), &scores)?;
    }
    if let Some(calls) = &choice.tool_calls {
        insert_content(transaction, seq, Role::Calls, choice.index, Some(&json(calls)?), &[])?;
    }
    Ok(())
}

fn known(transaction: &Transaction<'_>, id: &str) -> Result<Option<(i64, bool)>, StoreError> {
    let row = transaction
        .prepare_cached("SELECT seq, erased_ms IS NULL AND expired_ms IS NULL FROM completions WHERE id = ?1")?
        .query_row([id], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    Ok(row)
}

fn insert_fact(transaction: &Transaction<'_>, completion: &Completion) -> Result<i64, StoreError> {
    let adapter = completion.adapter.as_ref();
    let placement = completion.placement.as_ref();
    Ok(transaction
        .prepare_cached(
            "INSERT INTO completions (
                id, created_ms, request_id, key, kind, model, base, adapter, adapter_version, template, tokenizer,
                sampling, seed, options, prompt_tokens, completion_tokens, cached_tokens, queue_us, first_token_us,
                total_us, policy, stored, user, origin, build, system, adapter_us, read_us, safety_identifier,
                conversation, conversation_by, split, split_by, audit_share, sketch, redaction, kept
             ) VALUES (
                ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11,
                ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19,
                ?20, ?21, ?22, ?23, ?24, ?25, ?26, ?27, ?28, ?29,
                ?30, ?31, ?32, ?33, ?34, ?35, ?36, ?37
             )",
        )?
        .insert(params![
            completion.id,
            completion.created_ms,
            completion.request_id,
            completion.key,
            completion.kind.as_str(),
            completion.model,
            completion.base.as_bytes(),
            adapter.map(|(name, _)| name.as_str()),
            adapter.map(|(_, version)| version.0.as_bytes()),
            completion.template.as_ref().map(|digest| digest.as_bytes()),
            completion.tokenizer.as_bytes(),
            json(&completion.sampling)?,
            completion.seed as i64,
            json(&completion.options)?,
            completion.usage.prompt_tokens as i64,
            completion.usage.completion_tokens as i64,
            completion.usage.cached_tokens as i64,
            completion.timing.queue_us as i64,
            completion.timing.first_token_us.map(|us| us as i64),
            completion.timing.total_us as i64,
            completion.policy.as_str(),
            completion.stored,
            completion.user,
            completion.origin.as_str(),
            completion.build,
            completion.system.as_ref().map(|digest| digest.as_bytes()),
            completion.timing.adapter_us as i64,
            completion.timing.read_us as i64,
            completion.safety_identifier,
            placement.map(|placement| placement.conversation.as_str()),
            placement.map(|placement| placement.conversation_by.as_str()),
            placement.map(|placement| placement.assignment.split.as_str()),
            placement.map(|placement| placement.assignment.by.as_str()),
            placement.map(|placement| placement.assignment.audit_share),
            completion.sketch.map(|sketch| sketch.to_bytes()),
            completion.redaction.as_ref().map(|digest| digest.as_bytes()),
            completion.content.is_some() || completion.choices.iter().any(ChoiceRecord::has_content),
        ])?)
}

fn update_fact(transaction: &Transaction<'_>, seq: i64, completion: &Completion) -> Result<(), StoreError> {
    transaction
        .prepare_cached(
            "UPDATE completions SET prompt_tokens = ?2, completion_tokens = ?3, cached_tokens = ?4, queue_us = ?5,
                first_token_us = ?6, total_us = ?7, kept = kept OR (?8 AND erased_ms IS NULL AND expired_ms IS NULL)
             WHERE seq = ?1",
        )?
        .execute(params![
            seq,
            completion.usage.prompt_tokens as i64,
            completion.usage.completion_tokens as i64,
            completion.usage.cached_tokens as i64,
            completion.timing.queue_us as i64,
            completion.timing.first_token_us.map(|us| us as i64),
            completion.timing.total_us as i64,
            completion.choices.iter().any(ChoiceRecord::has_content),
        ])?;
    Ok(())
}

fn insert_metadata(transaction: &Transaction<'_>, seq: i64, metadata: &Map<String, Value>) -> Result<(), StoreError> {
    let mut insert = transaction
        .prepare_cached("INSERT INTO metadata (completion, name, position, value) VALUES (?1, ?2, ?3, ?4)")?;
    for (position, (name, value)) in metadata.iter().enumerate() {
        insert.execute(params![seq, name, position as i64, json(value)?])?;
    }
    Ok(())
}

fn insert_prompts(transaction: &Transaction<'_>, seq: i64, content: &Content) -> Result<(), StoreError> {
    for (part, prompt) in (0..).zip(&content.prompts) {
        insert_content(
            transaction,
            seq,
            Role::Prompt,
            part,
            Some(&json(&prompt.given)?),
            &pack_tokens(&prompt.tokens),
        )?;
    }
    Ok(())
}

/// What a row of `content` holds, as it stands in its column `role`.
#[derive(Clone, Copy)]
pub enum Role {
    Prompt = 0,
    Answer = 1,
    Calls = 2,
}

fn insert_content(
    transaction: &Transaction<'_>,
    seq: i64,
    role: Role,
    part: u32,
    text: Option<&str>,
    tokens: &[u8],
) -> Result<(), StoreError> {
    transaction
        .prepare_cached(
            "INSERT INTO content (completion, role, part, text, tokens, form) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        )?
        .execute(params![seq, role as i64, part, text, tokens, FORM])?;
    Ok(())
}

fn replace_metadata(
    transaction: &Transaction<'_>,
    id: &str,
    metadata: &Map<String, Value>,
) -> Result<Outcome, StoreError> {
    let Some(seq) = listed(transaction, id)? else { return Ok(Outcome::Missing) };
    transaction.prepare_cached("DELETE FROM metadata WHERE completion = ?1")?.execute([seq])?;
    insert_metadata(transaction, seq, metadata)?;
    Ok(Outcome::Applied)
}

fn erase(transaction: &Transaction<'_>, id: &str, at_ms: i64) -> Result<Outcome, StoreError> {
    let Some(seq) = listed(transaction, id)? else { return Ok(Outcome::Missing) };
    keep::erase_row(transaction, seq, at_ms)?;
    Ok(Outcome::Applied)
}

fn listed(transaction: &Transaction<'_>, id: &str) -> Result<Option<i64>, StoreError> {
    let seq = transaction
        .prepare_cached("SELECT seq FROM completions WHERE id = ?1 AND stored = 1")?
        .query_row([id], |row| row.get(0))
        .optional()?;
    Ok(seq)
}

pub fn json(value: &impl Serialize) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()).into())
}
