//! The store in one SQLite file.

mod read;
mod write;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use rusqlite::{Connection, OpenFlags};

use super::{Committed, Completion, Cursor, Followed, ListQuery, Page, Store, StoreError, Write, migrations::migrate};

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
    /// Absent after a write failed: what an I/O error leaves behind is not trusted, the next write opens anew.
    writer: Mutex<Option<Connection>>,
    readers: Mutex<Vec<Connection>>,
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
        Ok(Self { path: path.to_owned(), writer: Mutex::new(Some(writer)), readers: Mutex::default() })
    }

    fn write<T>(&self, work: impl FnOnce(&mut Connection) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
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
    fn commit(&self, writes: &[Write]) -> Result<Committed, StoreError> {
        self.write(|connection| write::commit(connection, writes))
    }

    fn probe(&self) -> Result<(), StoreError> {
        self.write(|connection| write::probe(connection))
    }

    fn completion(&self, id: &str) -> Result<Option<Completion>, StoreError> {
        self.read(|connection| read::completion(connection, id))
    }

    fn list(&self, query: &ListQuery) -> Result<Page, StoreError> {
        self.read(|connection| read::list(connection, query))
    }

    fn follow(&self, after: Cursor, limit: usize) -> Result<Vec<Followed>, StoreError> {
        self.read(|connection| read::follow(connection, after, limit))
    }
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

fn connect_writer(path: &Path) -> Result<Connection, StoreError> {
    let open_fault = |reason: String| StoreError::Open { path: path.to_owned(), reason };
    let connection = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
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
