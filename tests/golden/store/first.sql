PRAGMA application_id = 1953853031;
CREATE TABLE schema (version INTEGER PRIMARY KEY, applied_at TEXT NOT NULL) STRICT;
INSERT INTO schema VALUES (1, '2025-01-01 00:00:00');
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
INSERT INTO completions VALUES (
    1, 'chatcmpl-old', 1750000000000, 'req-1', 'shop', 'chat', 'ticket-triage', zeroblob(32), 'ticket-triage', zeroblob(32), zeroblob(32),
    zeroblob(32), '{"temperature":0.7,"top_p":0.9,"top_k":0,"min_p":0.0,"repetition_penalty":1.0,"frequency_penalty":0.0,"presence_penalty":0.0}',
    -8, '{"n":1,"max_tokens":[32]}', 2, 1, 0, 12, 3400, 9000, 'full', 1, 'customer-9', NULL
);
INSERT INTO metadata VALUES (1, 'team', 0, '"blue"');
INSERT INTO choices VALUES (1, 1, 0, 'stop', 1, NULL);
INSERT INTO content VALUES (1, 0, 0, '{"messages":[{"role":"user","content":"The press leaks."}]}', x'01000000ffffffff');
INSERT INTO content VALUES (1, 1, 0, 'hydraulics', x'47000000ead6fcbd0000a03f0109000000000060c0');
