//! The data directory: one server at a time holds it, and listens on a socket inside it.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io::{self, Read, Seek, Write},
    os::unix::{
        fs::{DirBuilderExt, PermissionsExt},
        net::UnixListener,
    },
    path::{Path, PathBuf},
};

use crate::terms::Moment;

/// A data directory that this process holds until the value is dropped, however the process ends.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    /// Locked; the lock goes with the process.
    _lock: File,
    socket: Option<PathBuf>,
}

/// Why a data directory cannot be held.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    #[error("the data directory {path} is held by {holder}; stop it, or choose another with --data-dir")]
    Held { path: PathBuf, holder: String },
    #[error("the data directory {path} cannot be used: {error}")]
    Io { path: PathBuf, error: io::Error },
}

const LOCK: &str = "tunegate.lock";
const SOCKET: &str = "tunegate.sock";

/// Where the server of a data directory listens for the operator's commands.
pub fn socket(data_dir: &Path) -> PathBuf {
    data_dir.join(SOCKET)
}

/// Stands in the directory while a backup is put into its place.
const RESTORING: &str = "restore.unfinished";

/// Whether a restore was interrupted: then what is there is neither the old nor the new.
pub fn is_restoring(data_dir: &Path) -> bool {
    data_dir.join(RESTORING).exists()
}

/// From now on nothing opens what is there. Durable when this returns.
pub fn begin_restoring(data_dir: &Path) -> io::Result<()> {
    File::create(data_dir.join(RESTORING))?.sync_all()?;
    File::open(data_dir)?.sync_all()
}

/// What is there is whole again. Durable when this returns.
pub fn end_restoring(data_dir: &Path) -> io::Result<()> {
    fs::remove_file(data_dir.join(RESTORING))?;
    File::open(data_dir)?.sync_all()
}

impl DataDir {
    /// Makes the directory if it is not there (readable by its owner alone) and takes it for `holder`, one line that
    /// tells others who has it.
    ///
    /// # Errors
    /// [`DataDirError::Held`] with the holder's line if another process has it.
    pub fn hold(path: &Path, holder: &str) -> Result<Self, DataDirError> {
        let failed = |error| DataDirError::Io { path: path.to_owned(), error };
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)?;
        let file = path.join(LOCK);
        let mut lock =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(file).map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                // A holder that has not yet written its line is a holder all the same.
                let _ = lock.read_to_string(&mut holder);
                let holder = if holder.is_empty() { "another process".to_owned() } else { holder.trim().to_owned() };
                return Err(DataDirError::Held { path: path.to_owned(), holder });
            }
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        lock.set_len(0)
            .and_then(|()| lock.rewind())
            .and_then(|()| writeln!(lock, "process {}, {holder}, since {}", std::process::id(), Moment::now()))
            .map_err(failed)?;
        Ok(Self { path: path.to_owned(), _lock: lock, socket: None })
    }

    /// Binds the socket in the directory, for its owner alone. A path too long for a socket is an error of the system's.
    pub fn listen(&mut self) -> io::Result<UnixListener> {
        // Bound where nobody else can reach it, closed to others, and only then moved to its place.
        let closed = self.path.join(format!(".socket-{}", std::process::id()));
        DirBuilder::new().mode(0o700).create(&closed)?;
        let bound = bind_in(&closed, &self.path.join(SOCKET));
        fs::remove_dir(&closed)?;
        let listener = bound?;
        self.socket = Some(self.path.join(SOCKET));
        Ok(listener)
    }
}

fn bind_in(closed: &Path, place: &Path) -> io::Result<UnixListener> {
    let inside = closed.join("s");
    let listener = UnixListener::bind(&inside)?;
    let moved =
        fs::set_permissions(&inside, fs::Permissions::from_mode(0o600)).and_then(|()| fs::rename(&inside, place));
    if let Err(error) = moved {
        fs::remove_file(&inside)?;
        return Err(error);
    }
    Ok(listener)
}

impl Drop for DataDir {
    fn drop(&mut self) {
        if let Some(socket) = &self.socket {
            // Left behind it only misleads: whoever holds the directory next replaces it.
            let _ = fs::remove_file(socket);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_holder_is_refused_and_told_of_the_first() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("data");
        let first = DataDir::hold(&path, "serving on 127.0.0.1:1").expect("held");
        let error = DataDir::hold(&path, "second").expect_err("refused").to_string();
        assert!(error.contains("serving on 127.0.0.1:1") && error.contains(&std::process::id().to_string()), "{error}");
        let since = error.split(" since ").nth(1).expect("a time");
        assert!(since.starts_with("20") && since.contains(" UTC;"), "a time that people can read: {error}");
        drop(first);
        DataDir::hold(&path, "third").expect("free again");
    }

    #[test]
    fn the_socket_is_for_its_owner_alone_and_goes_with_the_holder() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut held = DataDir::hold(folder.path(), "test").expect("held");
        // One that a killed server left is replaced.
        fs::write(folder.path().join(SOCKET), "").expect("written");
        let _listener = held.listen().expect("listening");
        let mode = fs::metadata(folder.path().join(SOCKET)).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        drop(held);
        assert!(!folder.path().join(SOCKET).exists());
    }
}
