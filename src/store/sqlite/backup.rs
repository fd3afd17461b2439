//! A copy of the database as it is at one moment, while others go on writing.

use std::{collections::BTreeSet, path::Path};

use rusqlite::{Connection, OpenFlags, backup::Backup};

use super::{connect, create_private, recognise};
use crate::{
    store::StoreError,
    terms::{AdapterVersion, Digest},
};

/// Which adapters a database names.
#[derive(Debug, Default)]
pub struct Named {
    /// What names point at.
    pub in_force: BTreeSet<AdapterVersion>,
    /// What only histories name; it may be gone from disk.
    pub earlier: BTreeSet<AdapterVersion>,
}

/// Copies the database at `from` to the new file `to`, synced, and gives the adapter versions that it names.
///
/// # Errors
/// [`StoreError`], also where the copy is not whole.
pub fn back_up(from: &Path, to: &Path) -> Result<Named, StoreError> {
    let source = connect(from, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    recognise(&source, from)?;
    let failed = |error: std::io::Error| StoreError::Open { path: to.to_owned(), reason: error.to_string() };
    create_private(to).map_err(failed)?;
    let mut copy = connect(to, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    // All pages in one step: one moment, however long it takes. Writers go on in their log meanwhile.
    Backup::new(&source, &mut copy)?.step(-1)?;
    // A copy is one file: what is restored brings no log along.
    copy.pragma_update_and_check(None, "journal_mode", "delete", |_| Ok(()))?;
    let versions = versions(&copy)?;
    copy.close().map_err(|(_, error)| error)?;
    check(to)?;
    std::fs::File::open(to).and_then(|file| file.sync_all()).map_err(failed)?;
    Ok(versions)
}

fn versions(copy: &Connection) -> Result<Named, StoreError> {
    let all = |table: &str| -> Result<BTreeSet<AdapterVersion>, StoreError> {
        let mut select = copy.prepare(&format!("SELECT DISTINCT version FROM {table} WHERE version IS NOT NULL"))?;
        let versions = select.query_map([], |row| Ok(AdapterVersion(Digest::from_bytes(row.get(0)?))))?;
        Ok(versions.collect::<Result<_, _>>()?)
    };
    let in_force = all("adapter_names")?;
    let earlier = all("adapter_steps")?.difference(&in_force).copied().collect();
    Ok(Named { in_force, earlier })
}

/// Whether a file is a database of ours that this build can read, with every page in its place.
///
/// # Errors
/// [`StoreError`] if it is not.
pub fn check(path: &Path) -> Result<(), StoreError> {
    let connection = connect(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    recognise(&connection, path)?;
    let verdict: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    match verdict.as_str() {
        "ok" => Ok(()),
        _ => Err(StoreError::Open { path: path.to_owned(), reason: verdict }),
    }
}
