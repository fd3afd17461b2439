//! The one mapping of files in the crate: the base model's weights.

use std::{fs::File, io, ops::Deref, path::Path};

/// A base weight file, mapped read-only.
///
/// Adapter files never come this way: they are replaced while the server runs, and a mapped file that shrinks kills the
/// process. Base files are taken to stand still for as long as the mapping lives, which is until loading has ended.
pub struct Mapping(Option<memmap2::Mmap>);

impl Mapping {
    /// Maps a regular file; an empty one maps to an empty slice.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let about = file.metadata()?;
        if !about.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        if about.len() == 0 {
            return Ok(Self(None));
        }
        // SAFETY: the mapping is read-only and private to this value. That nobody truncates or rewrites a base file while it
        // is being loaded is the operator's part of the contract, stated above.
        let map = unsafe { memmap2::Mmap::map(&file) }?;
        Ok(Self(Some(map)))
    }
}

impl Deref for Mapping {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.0.as_deref().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapping_shows_the_file_and_an_empty_file_is_empty() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weights");
        std::fs::write(&path, b"abc").unwrap();
        assert_eq!(&*Mapping::open(&path).unwrap(), b"abc");
        std::fs::write(&path, b"").unwrap();
        assert!(Mapping::open(&path).unwrap().is_empty());
        assert!(Mapping::open(folder.path()).is_err(), "a folder is no weight file");
    }
}
