//! The store in one SQLite file.

mod backup;
mod catalog;
mod feedback;
mod flags;
mod keep;
mod measures;
mod place;
mod read;
mod report;
mod search;
mod trial;
mod write;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::Duration,
};

pub use backup::{Named, back_up, check};
use rusqlite::{Connection, OpenFlags};

use super::{
    Access, AccessQuery, AnswerFact, Changed, Committed, Completion, Cursor, Durable, EarlierTurn, Erased,
    FeedbackPage, FeedbackQuery, FlagMark, FlagPage, FlagQuery, Followed, Found, KeptFeedback, KeptFlag, KeptRule,
    ListQuery, Matched, Measure, NameChange, NameRow, OldHistory, Page, ReferenceAnswer, Retained, Retention, Said,
    Search, Served, Step, Store, StoreError, TrialRow, Write,
    migrations::{migrate, recognise},
};
use crate::terms::{Digest, Placement};

/// How long a statement waits for another process's lock.
const BUSY: Duration = Duration::from_secs(5);
/// Idle connections for reading that are kept open.
const IDLE_READERS: usize = 4;
/// The write-ahead log is cut to this many bytes after a checkpoint.
const LOG_BYTES: i64 = 64 << 20;

/// One SQLite database in WAL mode: a commit returns after the log is on disk (`synchronous = FULL`). One connection
/// writes, others read beside it. Erased content is overwritten, not only unlinked.
pub struct SqliteStore {
    path: PathBuf,
    /// Device and number of the file that was opened.
    file: (u64, u64),
    /// Closed before the writer: the last connection to go merges the log into the database, which a reader cannot.
    readers: Mutex<Vec<Connection>>,
    /// Absent after a write failed: what an I/O error leaves behind is not trusted, the next write opens anew.
    writer: Mutex<Option<Connection>>,
}

impl SqliteStore {
    /// Opens the database at `path`, creating it (readable by its owner only) or bringing its schema up to date.
    ///
    /// # Errors
    /// [`StoreError`] where the file is not a database, not ours, newer than this build, or not writable.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        create_private(path).map_err(|error| StoreError::Open { path: path.to_owned(), reason: error.to_string() })?;
        let mut writer = connect_writer(path)?;
        migrate(&mut writer, path)?;
        let file = identity(path)?;
        Ok(Self { path: path.to_owned(), file, readers: Mutex::default(), writer: Mutex::new(Some(writer)) })
    }

    /// A database that was removed takes writes as before, and nobody ever finds them.
    fn is_there(&self) -> Result<(), StoreError> {
        if identity(&self.path)? == self.file {
            return Ok(());
        }
        let reason = "another file has taken its place since the server started".to_owned();
        Err(StoreError::Open { path: self.path.clone(), reason })
    }

    fn write<T>(&self, work: impl FnOnce(&mut Connection) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        self.is_there()?;
        let mut connection = match writer.take() {
            Some(connection) => connection,
            None => {
                let mut connection = connect_writer(&self.path)?;
                migrate(&mut connection, &self.path)?;
                connection
            }
        };
        let done = work(&mut connection)?;
        *writer = Some(connection);
        Ok(done)
    }

    fn read<T>(&self, work: impl FnOnce(&mut Connection) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let idle = self.readers.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut connection = match idle {
            Some(connection) => connection,
            None => connect(&self.path, OpenFlags::SQLITE_OPEN_READ_ONLY)?,
        };
        let done = work(&mut connection)?;
        let mut idle = self.readers.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < IDLE_READERS {
            idle.push(connection);
        }
        Ok(done)
    }
}

impl Store for SqliteStore {
    fn commit(&self, writes: &[&Write], durable: Durable) -> Result<Committed, StoreError> {
        self.write(|connection| {
            let committed = match durable {
                Durable::Now => write::commit(connection, writes)?,
                Durable::Later => {
                    // A connection that fails in between is not used again.
                    connection.pragma_update(None, "synchronous", "NORMAL")?;
                    let committed = write::commit(connection, writes)?;
                    connection.pragma_update(None, "synchronous", "FULL")?;
                    committed
                }
            };
            if writes.iter().any(|write| matches!(write, Write::Erase { .. })) {
                empty_log(connection)?;
            }
            Ok(committed)
        })
    }

    fn probe(&self) -> Result<(), StoreError> {
        self.write(write::probe)
    }

    fn completion(&self, id: &str) -> Result<Option<Completion>, StoreError> {
        self.read(|connection| read::completion(connection, id))
    }

    fn list(&self, query: &ListQuery) -> Result<Page, StoreError> {
        self.read(|connection| read::list(connection, query))
    }

    fn search(&self, search: &Search) -> Result<Found, StoreError> {
        self.read(|connection| search::search(connection, search))
    }

    fn follow(&self, after: Cursor, limit: usize) -> Result<Vec<Followed>, StoreError> {
        self.read(|connection| read::follow(connection, after, limit))
    }

    fn placement(&self, of: &EarlierTurn<'_>) -> Result<Option<(Matched, Placement)>, StoreError> {
        self.read(|connection| place::find(connection, of))
    }

    fn retain(&self, retention: &Retention) -> Result<Retained, StoreError> {
        self.write(|connection| {
            let retained = keep::retain(connection, retention)?;
            if !retained.more && retained.content + retained.facts > 0 {
                empty_log(connection)?;
            }
            Ok(retained)
        })
    }

    fn erase_user(&self, names: &[String], at_ms: i64, limit: usize) -> Result<Erased, StoreError> {
        self.write(|connection| {
            let erased = keep::erase_user(connection, names, at_ms, limit)?;
            if !erased.more {
                empty_log(connection)?;
            }
            Ok(erased)
        })
    }

    fn accesses(&self, query: &AccessQuery) -> Result<Vec<Access>, StoreError> {
        self.read(|connection| keep::accesses(connection, query))
    }

    fn feedback(&self, query: &FeedbackQuery) -> Result<FeedbackPage, StoreError> {
        self.read(|connection| feedback::page(connection, query))
    }

    fn feedback_by_id(&self, ids: &[String]) -> Result<Vec<KeptFeedback>, StoreError> {
        self.read(|connection| feedback::by_id(connection, ids))
    }

    fn feedback_on(&self, completions: &[&str]) -> Result<Vec<KeptFeedback>, StoreError> {
        self.read(|connection| feedback::on(connection, completions))
    }

    fn follower(&self, name: &str) -> Result<Option<Cursor>, StoreError> {
        self.read(|connection| flags::follower(connection, name))
    }

    fn flags(&self, query: &FlagQuery) -> Result<FlagPage, StoreError> {
        self.read(|connection| flags::page(connection, query))
    }

    fn flag(&self, id: u64) -> Result<Option<KeptFlag>, StoreError> {
        self.read(|connection| flags::one(connection, id))
    }

    fn flag_rules(&self) -> Result<Vec<KeptRule>, StoreError> {
        self.read(flags::rules)
    }

    fn reference(&self, like: &Completion, limit: usize) -> Result<Vec<ReferenceAnswer>, StoreError> {
        self.read(|connection| flags::reference(connection, like, limit))
    }

    fn asked_near(&self, like: &Completion, around_ms: i64, limit: usize) -> Result<Vec<Followed>, StoreError> {
        self.read(|connection| flags::asked_near(connection, like, around_ms, limit))
    }

    fn served(&self, adapter: Option<&str>) -> Result<Vec<Served>, StoreError> {
        self.read(|connection| report::served(connection, adapter))
    }

    fn measures(&self, served: u64, since_ms: i64, limit: usize) -> Result<Vec<Measure>, StoreError> {
        self.read(|connection| report::measures(connection, served, since_ms, limit))
    }

    fn marks(&self, served: u64, from: Cursor) -> Result<Vec<FlagMark>, StoreError> {
        self.read(|connection| report::marks(connection, served, from))
    }

    fn said(&self, served: u64, from: u64) -> Result<Vec<Said>, StoreError> {
        self.read(|connection| report::said(connection, served, from))
    }

    fn answer_facts(&self, served: u64, from: Cursor) -> Result<Vec<AnswerFact>, StoreError> {
        self.read(|connection| report::facts(connection, served, from))
    }

    fn names(&self) -> Result<Vec<(NameRow, Vec<Step>)>, StoreError> {
        self.read(catalog::names)
    }

    fn change_name(&self, change: &NameChange, base: Digest) -> Result<Changed, StoreError> {
        self.write(|connection| catalog::change(connection, change, base))
    }

    fn import_names(&self, histories: &[OldHistory]) -> Result<(), StoreError> {
        self.write(|connection| catalog::import(connection, histories))
    }

    fn trials(&self, base: Digest) -> Result<Vec<TrialRow>, StoreError> {
        self.read(|connection| trial::rows(connection, base))
    }

    fn keep_trial(&self, row: &TrialRow) -> Result<(), StoreError> {
        self.write(|connection| trial::keep(connection, row))
    }
}

fn identity(path: &Path) -> Result<(u64, u64), StoreError> {
    use std::os::unix::fs::MetadataExt;
    let found = fs::metadata(path);
    let found = found.map_err(|error| StoreError::Open { path: path.to_owned(), reason: error.to_string() })?;
    Ok((found.dev(), found.ino()))
}

/// SQLite gives its log the database's own mode, so it is enough to create the database with the right one.
fn create_private(path: &Path) -> std::io::Result<()> {
    let mut options = fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    match options.open(path) {
        Ok(file) => {
            file.sync_all()?;
            match path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
                Some(folder) => fs::File::open(folder)?.sync_all(),
                None => Ok(()),
            }
        }
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    }
}

/// Never creates: a database that vanished under a running server is an error, not a new and empty record.
fn connect(path: &Path, access: OpenFlags) -> Result<Connection, StoreError> {
    let connection = Connection::open_with_flags(path, access | OpenFlags::SQLITE_OPEN_NO_MUTEX)
        .map_err(|error| StoreError::Open { path: path.to_owned(), reason: error.to_string() })?;
    connection.busy_timeout(BUSY)?;
    Ok(connection)
}

/// The log still holds what was erased, until it is merged and cut. Where a reader is using it, a later checkpoint does
/// that.
fn empty_log(connection: &Connection) -> Result<(), StoreError> {
    connection.busy_timeout(Duration::ZERO)?;
    // The commit stands whatever becomes of this.
    if let Err(error) = connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())) {
        tracing::warn!(%error, "erased content stays in the write-ahead log for now");
    }
    connection.busy_timeout(BUSY)?;
    Ok(())
}

fn connect_writer(path: &Path) -> Result<Connection, StoreError> {
    let open_fault = |reason: String| StoreError::Open { path: path.to_owned(), reason };
    let connection = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    // Before anything is set: a database that is refused stays as it is.
    recognise(&connection, path)?;
    let mode: String = connection
        .pragma_update_and_check(None, "journal_mode", "wal", |row| row.get(0))
        .map_err(|error| open_fault(error.to_string()))?;
    if mode != "wal" {
        return Err(open_fault(format!("the file system allows no write-ahead log (journal mode is '{mode}')")));
    }
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    connection.pragma_update(None, "secure_delete", true)?;
    connection.pragma_update(None, "journal_size_limit", LOG_BYTES)?;
    connection.set_prepared_statement_cache_capacity(32);
    Ok(connection)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tunegate.db");
        (folder, path)
    }

    #[test]
    fn a_commit_waits_for_the_disk() {
        let (_folder, path) = folder();
        let store = SqliteStore::open(&path).unwrap();
        let writer = store.writer.lock().unwrap();
        let setting = |name: &str| {
            let value =
                writer.as_ref().unwrap().pragma_query_value(None, name, |row| row.get::<_, rusqlite::types::Value>(0));
            value.unwrap()
        };
        assert_eq!(setting("journal_mode"), rusqlite::types::Value::Text("wal".to_owned()));
        assert_eq!(setting("synchronous"), rusqlite::types::Value::Integer(2), "2 is FULL");
    }

    #[test]
    fn a_commit_that_need_not_wait_leaves_the_next_one_waiting() {
        let (_folder, path) = folder();
        let store = SqliteStore::open(&path).unwrap();
        store.commit(&[], Durable::Later).unwrap();
        let writer = store.writer.lock().unwrap();
        let level: i64 = writer.as_ref().unwrap().pragma_query_value(None, "synchronous", |row| row.get(0)).unwrap();
        assert_eq!(level, 2, "2 is FULL");
    }

    #[test]
    fn a_full_database_refuses_in_whole_and_works_again_when_there_is_room() {
        let (_folder, path) = folder();
        let store = SqliteStore::open(&path).unwrap();
        let pages: i64 =
            store.write(|writer| Ok(writer.pragma_query_value(None, "page_count", |row| row.get(0))?)).unwrap();
        store.write(|writer| Ok(writer.pragma_update_and_check(None, "max_page_count", pages, |_| Ok(()))?)).unwrap();
        let refused = store.probe().unwrap_err();
        assert_eq!(refused.to_string(), "database or disk is full");
        assert!(store.writer.lock().unwrap().is_none(), "the connection is not trusted any more");
        store.probe().unwrap();
    }

    #[test]
    fn a_database_that_vanished_takes_no_writes_until_it_is_back_and_is_not_replaced_by_an_empty_one() {
        let (folder, path) = folder();
        let store = SqliteStore::open(&path).unwrap();
        let aside = folder.path().join("aside");
        fs::rename(&path, &aside).unwrap();
        assert!(matches!(store.probe(), Err(StoreError::Open { .. })));
        assert!(!path.exists());
        fs::copy(&aside, &path).unwrap();
        let replaced = store.probe().unwrap_err().to_string();
        assert!(replaced.contains("another file"), "{replaced}");
        fs::rename(&aside, &path).unwrap();
        store.probe().unwrap();
    }

    #[test]
    fn a_newer_schema_is_refused_and_left_as_it_is() {
        let (_folder, path) = folder();
        drop(SqliteStore::open(&path).unwrap());
        drop(SqliteStore::open(&path).unwrap());
        let newer = Connection::open(&path).unwrap();
        newer.execute("INSERT INTO schema VALUES (1000, datetime('now'))", []).unwrap();
        drop(newer);
        let before = fs::read(&path).unwrap();
        let refused = SqliteStore::open(&path).err();
        assert!(matches!(refused, Some(StoreError::Newer { found: 1000, known: 8, .. })), "{refused:?}");
        assert_eq!(fs::read(&path).unwrap(), before);
    }

    /// Every statement of the first schema, and a row as its build wrote it.
    #[test]
    fn what_the_first_build_recorded_is_read_after_the_steps() {
        let (_folder, path) = folder();
        let old = Connection::open(&path).unwrap();
        old.execute_batch(include_str!("../../../tests/golden/store/first.sql")).unwrap();
        drop(old);
        let store = SqliteStore::open(&path).unwrap();
        let row = store.completion("chatcmpl-old").unwrap().unwrap();
        assert_eq!((row.origin, row.placement, row.build), (crate::terms::Origin::Served, None, None));
        assert_eq!(row.choices[0].text.as_deref(), Some("hydraulics"));
        assert_eq!(row.choices[0].scores[0].logprob, -0.123_456_79);
        assert_eq!(row.content.unwrap().prompts[0].tokens, [1, u32::MAX]);
        assert_eq!(store.follow(Cursor::default(), 10).unwrap().len(), 1);
    }

    #[test]
    fn the_database_of_another_program_is_refused_and_left_as_it_is() {
        let (_folder, path) = folder();
        Connection::open(&path).unwrap().execute_batch("CREATE TABLE theirs (x)").unwrap();
        let before = fs::read(&path).unwrap();
        assert!(matches!(SqliteStore::open(&path), Err(StoreError::Foreign { .. })));
        assert_eq!(fs::read(&path).unwrap(), before);
    }

    #[test]
    fn a_file_that_is_no_database_is_refused() {
        let (_folder, path) = folder();
        fs::write(&path, "not a database, however long it may be ".repeat(100)).unwrap();
        let refused = SqliteStore::open(&path).err();
        assert!(matches!(refused, Some(StoreError::Sql(_))), "{refused:?}");
        assert!(SqliteStore::open(path.parent().unwrap()).is_err(), "a folder");
        assert!(SqliteStore::open(&path.join("below/a/file")).is_err(), "no folder");
    }

    #[cfg(unix)]
    #[test]
    fn only_the_owner_may_read_the_database_and_its_log() {
        use std::os::unix::fs::MetadataExt;
        let (folder, path) = folder();
        let _store = SqliteStore::open(&path).unwrap();
        let mut files = 0;
        for entry in fs::read_dir(folder.path()).unwrap() {
            assert_eq!(entry.unwrap().metadata().unwrap().mode() & 0o777, 0o600);
            files += 1;
        }
        assert_eq!(files, 3, "the database, its log and the log's index");
    }
}
