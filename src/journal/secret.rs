//! The record's own secret: 32 random bytes beside the database, made once. What is derived from it names conversations and
//! splits without telling what they are about to somebody who has only the database.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use sha2::{Digest as _, Sha256};

use crate::terms::Digest;

/// The file in the data directory.
pub const FILE: &str = "record.secret";

/// A key for keyed hashes. Not shown.
#[derive(Clone)]
pub struct Key([u8; 32]);

impl Key {
    /// Reads the secret of a data directory, or makes it.
    ///
    /// # Errors
    /// The system's, also where the file holds anything but 64 hex digits.
    pub fn open(data_dir: &Path) -> io::Result<Self> {
        let path = data_dir.join(FILE);
        match fs::read_to_string(&path) {
            Ok(text) => Digest::parse(text.trim())
                .map(|digest| Self(*digest.as_bytes()))
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, format!("{}: {error}", path.display()))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Self::make(data_dir, &path),
            Err(error) => Err(error),
        }
    }

    /// Written aside first: a secret that a crash cut short would be another one.
    fn make(data_dir: &Path, path: &Path) -> io::Result<Self> {
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes).map_err(io::Error::other)?;
        let aside = data_dir.join(format!(".{FILE}"));
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&aside)?;
        writeln!(file, "{}", Digest::from_bytes(bytes))?;
        file.sync_all()?;
        fs::rename(&aside, path)?;
        fs::File::open(data_dir)?.sync_all()?;
        Ok(Self(bytes))
    }

    /// A key that an operator chose.
    pub fn said(secret: &str) -> Self {
        Self(Sha256::digest(secret).into())
    }

    /// HMAC-SHA-256 (RFC 2104) of `value`, under a purpose of its own.
    pub fn hash(&self, purpose: &str, value: &[u8]) -> [u8; 32] {
        let pad = |with: u8| {
            let mut block = [with; 64];
            block.iter_mut().zip(self.0).for_each(|(byte, key)| *byte ^= key);
            block
        };
        let inner = Sha256::new().chain_update(pad(0x36)).chain_update(purpose).chain_update([0]).chain_update(value);
        Sha256::new().chain_update(pad(0x5c)).chain_update(inner.finalize()).finalize().into()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_keyed_hash_is_the_standard_one() {
        // Python: hmac.new(bytes(range(32)), b"split\0hello", "sha256").hexdigest()
        let key = Key(std::array::from_fn(|at| at as u8));
        let expected = "811e200bd1af9550d5a121189da4d81d3e448c1eb5dfdd5e4957053d9bbef6ac";
        assert_eq!(Digest::from_bytes(key.hash("split", b"hello")).to_string(), expected);
    }

    #[test]
    fn a_secret_is_made_once_for_its_owner_alone_and_a_damaged_one_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let first = Key::open(folder.path()).unwrap();
        assert_eq!(Key::open(folder.path()).unwrap().0, first.0);
        let path = folder.path().join(FILE);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        fs::write(&path, "short\n").unwrap();
        assert!(Key::open(folder.path()).is_err(), "another secret would move conversations");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
