//! The schema, step by step. Steps are added at the end and never changed; there is no way back.

use std::path::Path;

use rusqlite::{Connection, TransactionBehavior};

use super::StoreError;

/// Marks a file as ours ("tung"), so that another program's database is left alone.
const APPLICATION_ID: i64 = 0x7475_6e67;

/// Version `i + 1` is reached by `STEPS[i]`.
const STEPS: &[&str] = &[FACTS_AND_CONTENT, CATALOG, TRIALS, RECORD, KEEPING];

/// A request is one row of `completions`, each of its choices one row of `choices`. `choices.seq` grows in the order of
/// commits. `content` alone holds what was said: role 0 is the prompt `part`, role 1 the answer of choice `part`.
const FACTS_AND_CONTENT: &str = "
CREATE TABLE completions (
    seq INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    created_ms INTEGER NOT NULL,
    request_id TEXT NOT NULL,
    key TEXT,
    kind TEXT NOT NULL,
    model TEXT NOT NULL,
    base BLOB NOT NULL,
    adapter TEXT,
    adapter_version BLOB,
    template BLOB,
    tokenizer BLOB NOT NULL,
    sampling TEXT NOT NULL,
    seed INTEGER NOT NULL,
    options TEXT NOT NULL,
    prompt_tokens INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL,
    cached_tokens INTEGER NOT NULL,
    queue_us INTEGER NOT NULL,
    first_token_us INTEGER,
    total_us INTEGER NOT NULL,
    policy TEXT NOT NULL,
    stored INTEGER NOT NULL,
    user TEXT,
    erased_ms INTEGER
) STRICT;
CREATE INDEX completions_by_time ON completions (created_ms, seq);
CREATE INDEX listed_by_time ON completions (created_ms, seq) WHERE stored = 1;
CREATE INDEX listed_by_model ON completions (model, created_ms, seq) WHERE stored = 1;
CREATE INDEX listed_by_key ON completions (key, created_ms, seq) WHERE stored = 1;

CREATE TABLE metadata (
    completion INTEGER NOT NULL REFERENCES completions,
    name TEXT NOT NULL,
    position INTEGER NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY (completion, name)
) STRICT, WITHOUT ROWID;
CREATE INDEX metadata_by_value ON metadata (name, value, completion);

CREATE TABLE choices (
    seq INTEGER PRIMARY KEY,
    completion INTEGER NOT NULL REFERENCES completions,
    position INTEGER NOT NULL,
    ending TEXT NOT NULL,
    tokens INTEGER NOT NULL,
    fault TEXT,
    UNIQUE (completion, position)
) STRICT;

CREATE TABLE content (
    completion INTEGER NOT NULL REFERENCES completions,
    role INTEGER NOT NULL,
    part INTEGER NOT NULL,
    text TEXT,
    tokens BLOB NOT NULL,
    PRIMARY KEY (completion, role, part)
) STRICT;

CREATE TABLE probe (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    room BLOB NOT NULL
) STRICT;
";

/// One row of `adapter_names` for each name that was ever served, and one of `adapter_steps` for each thing that was done
/// to it. A name without a version is not served.
const CATALOG: &str = "
CREATE TABLE adapter_names (
    name TEXT PRIMARY KEY,
    version BLOB,
    since_ms INTEGER NOT NULL,
    managed_by TEXT NOT NULL,
    hold INTEGER NOT NULL,
    pinned INTEGER NOT NULL,
    source TEXT
) STRICT, WITHOUT ROWID;

CREATE TABLE adapter_steps (
    seq INTEGER PRIMARY KEY,
    name TEXT NOT NULL REFERENCES adapter_names,
    at_ms INTEGER NOT NULL,
    operation TEXT NOT NULL,
    version BLOB,
    managed_by TEXT NOT NULL,
    who TEXT NOT NULL,
    why TEXT,
    source TEXT
) STRICT;
CREATE INDEX adapter_steps_by_name ON adapter_steps (name, seq);
";

/// What the trial of an adapter version found on a base: `test` and `reason` where it failed, `figures` as JSON.
const TRIALS: &str = "
CREATE TABLE adapter_trials (
    version BLOB NOT NULL,
    base BLOB NOT NULL,
    suite BLOB NOT NULL,
    at_ms INTEGER NOT NULL,
    test TEXT,
    reason TEXT,
    figures TEXT NOT NULL,
    PRIMARY KEY (version, base, suite)
) STRICT, WITHOUT ROWID;
";

/// Where an answer comes from, which conversation it belongs to, what it may be used for and which rules its texts have
/// passed. In `content`, `form` is how
/// `tokens` are packed; role 2 holds the calls of tools in the answer of choice `part`.
const RECORD: &str = "
ALTER TABLE completions ADD COLUMN origin TEXT NOT NULL DEFAULT 'served';
ALTER TABLE completions ADD COLUMN build TEXT;
ALTER TABLE completions ADD COLUMN system BLOB;
ALTER TABLE completions ADD COLUMN adapter_us INTEGER NOT NULL DEFAULT 0;
ALTER TABLE completions ADD COLUMN read_us INTEGER NOT NULL DEFAULT 0;
ALTER TABLE completions ADD COLUMN safety_identifier TEXT;
ALTER TABLE completions ADD COLUMN conversation TEXT;
ALTER TABLE completions ADD COLUMN conversation_by TEXT;
ALTER TABLE completions ADD COLUMN split TEXT;
ALTER TABLE completions ADD COLUMN split_by TEXT;
ALTER TABLE completions ADD COLUMN audit_share REAL;
ALTER TABLE completions ADD COLUMN sketch BLOB;
ALTER TABLE completions ADD COLUMN redaction BLOB;
CREATE INDEX completions_by_user ON completions (user, created_ms, seq) WHERE user IS NOT NULL;
CREATE INDEX completions_by_safety ON completions (safety_identifier) WHERE safety_identifier IS NOT NULL;
CREATE INDEX completions_by_conversation ON completions (conversation);
ALTER TABLE choices ADD COLUMN thread BLOB;
CREATE INDEX choices_by_thread ON choices (thread) WHERE thread IS NOT NULL;
ALTER TABLE content ADD COLUMN form INTEGER NOT NULL DEFAULT 0;
";

/// Which answers still have content (`kept`), when retention took it, who holds what against retention, and who has looked.
const KEEPING: &str = "
ALTER TABLE completions ADD COLUMN kept INTEGER NOT NULL DEFAULT 0;
ALTER TABLE completions ADD COLUMN expired_ms INTEGER;
UPDATE completions SET kept = 1 WHERE seq IN (SELECT completion FROM content);
CREATE INDEX completions_with_content ON completions (created_ms, seq) WHERE kept = 1;

CREATE TABLE holds (
    completion INTEGER NOT NULL REFERENCES completions,
    holder TEXT NOT NULL,
    PRIMARY KEY (completion, holder)
) STRICT, WITHOUT ROWID;
CREATE INDEX holds_by_holder ON holds (holder);

CREATE TABLE access (
    seq INTEGER PRIMARY KEY,
    at_ms INTEGER NOT NULL,
    last_ms INTEGER NOT NULL,
    times INTEGER NOT NULL,
    who TEXT NOT NULL,
    deed TEXT NOT NULL,
    what TEXT NOT NULL
) STRICT;
CREATE INDEX access_by_time ON access (last_ms, seq);
CREATE INDEX completions_by_adapter ON completions (adapter, created_ms, seq);
";

/// Refuses a database that is not ours or that a newer build has written. Changes nothing.
///
/// # Errors
/// [`StoreError::Foreign`], [`StoreError::Newer`].
pub fn recognise(connection: &Connection, path: &Path) -> Result<(), StoreError> {
    let tables: i64 = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    if tables == 0 {
        return Ok(());
    }
    let application: i64 = connection.pragma_query_value(None, "application_id", |row| row.get(0))?;
    if application != APPLICATION_ID {
        return Err(StoreError::Foreign { path: path.to_owned() });
    }
    let (found, known) = (version(connection)?, STEPS.len() as i64);
    if found > known {
        return Err(StoreError::Newer { path: path.to_owned(), found, known });
    }
    Ok(())
}

/// Brings the database at `path` to the newest schema, in one transaction.
///
/// # Errors
/// As [`recognise`].
pub fn migrate(connection: &mut Connection, path: &Path) -> Result<(), StoreError> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    // Another process may have been here since the database was opened.
    recognise(&transaction, path)?;
    transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
    transaction.execute_batch(
        "CREATE TABLE IF NOT EXISTS schema (version INTEGER PRIMARY KEY, applied_at TEXT NOT NULL) STRICT",
    )?;
    let found = version(&transaction)?;
    for (version, step) in (1..).zip(STEPS).skip(found.max(0) as usize) {
        transaction.execute_batch(step)?;
        transaction.execute("INSERT INTO schema VALUES (?1, datetime('now'))", [version])?;
    }
    transaction.commit()?;
    Ok(())
}

fn version(connection: &Connection) -> Result<i64, StoreError> {
    Ok(connection.query_row("SELECT coalesce(max(version), 0) FROM schema", [], |row| row.get(0))?)
}
