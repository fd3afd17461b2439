//! The schema, step by step. Steps are added at the end and never changed; there is no way back.

use std::path::Path;

use rusqlite::{Connection, TransactionBehavior};

use super::StoreError;

/// Marks a file as ours ("tung"), so that another program's database is left alone.
const APPLICATION_ID: i64 = 0x7475_6e67;

/// Version `i + 1` is reached by `STEPS[i]`.
const STEPS: &[&str] = &[FACTS_AND_CONTENT, CATALOG, TRIALS, BASES, RECORD, KEEPING, FEEDBACK, FLAGS];

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

/// The base on which each step was done; nothing where earlier builds did it.
const BASES: &str = "ALTER TABLE adapter_steps ADD COLUMN base BLOB";

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

/// `served` numbers what has answered: a base with a version of an adapter, or alone. `measures` has the figures of each choice
/// again, one version's together, so that a report reads one run of pages. Choices from before this step have no
/// log-probabilities there.
///
/// `feedback` has one row for each judgement, in the order in which they were accepted. `target` is the id of a completion, a
/// conversation or a user, which may not be on record (yet); `arrived` is how it stood when the judgement came; `completion`
/// and `served` are set when its answer is on record. Erasure empties words, tags, author and digest; that there was a
/// correction stays.
const FEEDBACK: &str = "
CREATE TABLE served (
    served INTEGER PRIMARY KEY,
    base BLOB NOT NULL,
    adapter TEXT,
    version BLOB
) STRICT;
CREATE UNIQUE INDEX served_by_version ON served (coalesce(version, x''), coalesce(adapter, ''), base);
CREATE INDEX served_by_adapter ON served (adapter);

CREATE TABLE measures (
    served INTEGER NOT NULL REFERENCES served,
    choice INTEGER NOT NULL,
    completion INTEGER NOT NULL,
    position INTEGER NOT NULL,
    at_ms INTEGER NOT NULL,
    ending TEXT NOT NULL,
    prompt_tokens INTEGER NOT NULL,
    tokens INTEGER NOT NULL,
    mean_logprob REAL,
    min_logprob REAL,
    first_token_us INTEGER,
    total_us INTEGER NOT NULL,
    PRIMARY KEY (served, choice)
) STRICT, WITHOUT ROWID;

INSERT INTO served (base, adapter, version) SELECT DISTINCT base, adapter, adapter_version FROM completions;
INSERT INTO measures
    SELECT s.served, x.seq, c.seq, x.position, c.created_ms, x.ending, c.prompt_tokens, x.tokens, NULL, NULL,
        c.first_token_us, c.total_us
    FROM choices AS x
    JOIN completions AS c ON c.seq = x.completion
    JOIN served AS s ON s.base = c.base AND s.adapter IS c.adapter AND s.version IS c.adapter_version
    WHERE c.origin = 'served';

CREATE TABLE feedback (
    seq INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    client_id TEXT,
    at_ms INTEGER NOT NULL,
    target_kind TEXT NOT NULL,
    target TEXT NOT NULL,
    choice INTEGER,
    completion INTEGER REFERENCES completions,
    served INTEGER REFERENCES served,
    name TEXT NOT NULL,
    number REAL,
    category TEXT,
    is_boolean INTEGER NOT NULL,
    comment TEXT,
    correction TEXT,
    corrects INTEGER NOT NULL,
    source TEXT NOT NULL,
    author TEXT,
    key TEXT,
    any_key INTEGER NOT NULL,
    tags TEXT NOT NULL,
    digest BLOB,
    arrived TEXT NOT NULL,
    retracted_ms INTEGER,
    erased_ms INTEGER
) STRICT;
CREATE INDEX feedback_by_target ON feedback (target, target_kind, seq);
CREATE INDEX feedback_by_name ON feedback (name, seq);
CREATE INDEX feedback_by_key ON feedback (key, seq);
CREATE INDEX feedback_by_answer ON feedback (completion) WHERE completion IS NOT NULL;
CREATE INDEX feedback_by_version ON feedback (served, completion) WHERE served IS NOT NULL;
CREATE INDEX feedback_without_answer ON feedback (arrived, seq) WHERE completion IS NULL;
CREATE INDEX feedback_that_waits ON feedback (target) WHERE completion IS NULL AND target_kind = 'answer';
CREATE INDEX completions_by_user_and_time ON completions (user, created_ms) WHERE user IS NOT NULL;
";

/// `followers` says how far each follower of the record has come; answers from before this step are flagged when somebody asks for
/// that. A version of a rule is one row of `flag_rules`, with counts of
/// its flags; `flag_spans` are the stretches of `choices.seq` that it has looked at. A choice has one flag of each version at most.
const FLAGS: &str = "
CREATE TABLE followers (
    name TEXT PRIMARY KEY,
    cursor INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
INSERT INTO followers SELECT 'flags', coalesce(max(seq), 0) FROM choices;

CREATE TABLE flag_rules (
    rule INTEGER PRIMARY KEY,
    version BLOB NOT NULL UNIQUE,
    name TEXT NOT NULL,
    definition TEXT NOT NULL,
    since_ms INTEGER NOT NULL,
    flags INTEGER NOT NULL DEFAULT 0,
    confirmed INTEGER NOT NULL DEFAULT 0,
    dismissed INTEGER NOT NULL DEFAULT 0
) STRICT;

CREATE TABLE flag_spans (
    rule INTEGER NOT NULL REFERENCES flag_rules,
    first INTEGER NOT NULL,
    last INTEGER NOT NULL,
    PRIMARY KEY (rule, first, last)
) STRICT, WITHOUT ROWID;

CREATE TABLE flags (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    choice INTEGER NOT NULL REFERENCES choices,
    completion INTEGER NOT NULL REFERENCES completions,
    rule INTEGER NOT NULL REFERENCES flag_rules,
    served INTEGER NOT NULL REFERENCES served,
    adapter TEXT,
    name TEXT NOT NULL,
    at_ms INTEGER NOT NULL,
    reason TEXT NOT NULL,
    value REAL,
    verdict TEXT,
    resolved_ms INTEGER,
    resolved_by TEXT,
    note TEXT,
    UNIQUE (choice, rule)
) STRICT;
CREATE INDEX flags_by_completion ON flags (completion, seq);
CREATE INDEX flags_by_rule ON flags (name, seq);
CREATE INDEX flags_by_adapter ON flags (adapter, seq);
CREATE INDEX flags_by_version ON flags (served, rule, choice);
CREATE INDEX open_flags ON flags (seq) WHERE verdict IS NULL;
CREATE INDEX open_flags_by_rule ON flags (name, seq) WHERE verdict IS NULL;
CREATE INDEX open_flags_by_adapter ON flags (adapter, seq) WHERE verdict IS NULL;
CREATE INDEX resolved_flags ON flags (verdict, seq) WHERE verdict IS NOT NULL;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_from_before_flags_is_followed_from_its_end_and_measured_from_its_beginning() {
        let mut connection = Connection::open_in_memory().unwrap();
        connection.pragma_update(None, "application_id", APPLICATION_ID).unwrap();
        connection
            .execute_batch("CREATE TABLE schema (version INTEGER PRIMARY KEY, applied_at TEXT NOT NULL) STRICT")
            .unwrap();
        for (version, step) in (1..).zip(&STEPS[..3]) {
            connection.execute_batch(step).unwrap();
            connection.execute("INSERT INTO schema VALUES (?1, 'then')", [version]).unwrap();
        }
        connection
            .execute_batch(
                "INSERT INTO completions VALUES
                    (1, 'a', 5, 'r', NULL, 'chat', 'm', x'00', 'poet', x'01', NULL, x'02', '{}', 0, '{}', 7, 2, 0, 1, 3, 9, 'full', 0, NULL, NULL),
                    (2, 'b', 6, 'r', NULL, 'chat', 'm', x'00', NULL, NULL, NULL, x'02', '{}', 0, '{}', 8, 2, 0, 1, 3, 9, 'full', 0, NULL, NULL);
                 INSERT INTO choices VALUES (1, 1, 0, 'stop', 2, NULL), (2, 1, 1, 'length', 3, NULL), (3, 2, 0, 'stop', 4, NULL);",
            )
            .unwrap();
        migrate(&mut connection, "memory".as_ref()).unwrap();
        let number = |sql: &str| connection.query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap();
        assert_eq!(number("SELECT cursor FROM followers WHERE name = 'flags'"), 3);
        assert_eq!((number("SELECT count(*) FROM served"), number("SELECT count(*) FROM measures")), (2, 3));
        assert_eq!(number("SELECT tokens FROM measures JOIN served USING (served) WHERE adapter IS NULL"), 4);
    }
}
