//! Adapter bytes by version, and the versions that each name had: plain files below one folder, each written whole and
//! synced before it gets its name, so that a crash leaves the old state or the new one.
//!
//! ```text
//! <version>/          the adapter's files, copied
//! names/<digest>      a name on the first line, then "seconds version" for each version it had, oldest first
//! ```
//!
//! One process writes here at a time: the one that holds the data directory.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use super::{Refusal, folder::AdapterFiles};
use crate::terms::{AdapterName, AdapterVersion, Digest};

/// The folder of kept adapters.
#[derive(Clone, Debug)]
pub struct Vault {
    root: PathBuf,
}

/// A version that a name had from some time on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NamedVersion {
    /// Seconds since the Unix epoch.
    pub since: i64,
    pub version: AdapterVersion,
}

const NAMES: &str = "names";
/// What is being written begins so, and is cleared away when the vault is opened.
const UNFINISHED: &str = ".unfinished-";

impl Vault {
    /// Opens or makes the folder, and clears away what a crash left half written.
    pub fn open(root: &Path) -> io::Result<Self> {
        fs::create_dir_all(root.join(NAMES))?;
        for folder in [root.to_path_buf(), root.join(NAMES)] {
            for entry in fs::read_dir(&folder)? {
                let entry = entry?;
                if !entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
                    continue;
                }
                if entry.file_type()?.is_dir() {
                    fs::remove_dir_all(entry.path())?;
                } else {
                    fs::remove_file(entry.path())?;
                }
            }
        }
        sync_folder(root)?;
        Ok(Self { root: root.to_path_buf() })
    }

    pub fn holds(&self, version: AdapterVersion) -> bool {
        self.folder(version).is_dir()
    }

    /// Keeps a copy, durable when this returns. A version that is there already is left as it is.
    pub fn keep(&self, files: &AdapterFiles) -> io::Result<()> {
        let kept = self.folder(files.version());
        if kept.is_dir() {
            return Ok(());
        }
        let unfinished = self.root.join(format!("{UNFINISHED}{}", files.version()));
        fs::create_dir_all(&unfinished)?;
        for (name, content) in files.parts() {
            write_synced(&unfinished.join(name), content)?;
        }
        sync_folder(&unfinished)?;
        fs::rename(&unfinished, &kept)?;
        sync_folder(&self.root)
    }

    /// Reads a kept version. The caller compares the version of what was read with the one that was asked for.
    pub fn read(&self, version: AdapterVersion, max_file_bytes: u64) -> Result<AdapterFiles, Vec<Refusal>> {
        AdapterFiles::read(&self.root, &self.folder(version), max_file_bytes)
    }

    /// Bytes of a kept version's weights; 0 if they are not there.
    pub fn weight_bytes(&self, version: AdapterVersion) -> u64 {
        fs::metadata(self.folder(version).join(super::folder::WEIGHTS_FILE)).map_or(0, |metadata| metadata.len())
    }

    /// Every name's versions, oldest first. Lines that are not read are passed over: a name without its history is
    /// better than a server that does not start.
    pub fn histories(&self) -> io::Result<BTreeMap<AdapterName, Vec<NamedVersion>>> {
        let mut histories = BTreeMap::new();
        for entry in fs::read_dir(self.root.join(NAMES))? {
            let text = fs::read_to_string(entry?.path())?;
            let mut lines = text.lines();
            let Some(name) = lines.next().and_then(|line| AdapterName::parse(line).ok()) else { continue };
            let versions = lines.filter_map(|line| {
                let (since, version) = line.split_once(' ')?;
                Some(NamedVersion { since: since.parse().ok()?, version: AdapterVersion(Digest::parse(version).ok()?) })
            });
            histories.insert(name, versions.collect());
        }
        Ok(histories)
    }

    /// Replaces a name's history, durable when this returns.
    pub fn write_history(&self, name: &AdapterName, versions: &[NamedVersion]) -> io::Result<()> {
        let mut text = format!("{name}\n");
        for named in versions {
            text.push_str(&format!("{} {}\n", named.since, named.version));
        }
        // By digest, since names hold '/' and some file systems do not tell 'A' from 'a'.
        let digest = Digest::of(name.as_str().as_bytes());
        let folder = self.root.join(NAMES);
        let unfinished = folder.join(format!("{UNFINISHED}{digest}"));
        write_synced(&unfinished, text.as_bytes())?;
        fs::rename(&unfinished, folder.join(digest.to_string()))?;
        sync_folder(&folder)
    }

    fn folder(&self, version: AdapterVersion) -> PathBuf {
        self.root.join(version.to_string())
    }
}

fn write_synced(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(content)?;
    file.sync_all()
}

fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(weights: &[u8]) -> AdapterFiles {
        AdapterFiles::new(b"{}".to_vec(), weights.to_vec(), None)
    }

    #[test]
    fn what_is_kept_comes_back_with_the_same_version() {
        let folder = tempfile::tempdir().unwrap();
        let vault = Vault::open(folder.path()).unwrap();
        let kept = AdapterFiles::new(b"{}".to_vec(), b"weights".to_vec(), Some(b"description = ''".to_vec()));
        vault.keep(&kept).unwrap();
        vault.keep(&kept).unwrap();
        let read = Vault::open(folder.path()).unwrap().read(kept.version(), 1 << 20).unwrap();
        assert_eq!(read.version(), kept.version());
        assert_eq!((read.weights(), read.manifest()), (kept.weights(), kept.manifest()));
        assert_eq!(vault.weight_bytes(kept.version()), 7);
    }

    #[test]
    fn what_a_crash_left_half_written_is_cleared_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let vault = Vault::open(folder.path()).unwrap();
        let (whole, half) = (files(b"whole"), files(b"half"));
        vault.keep(&whole).unwrap();
        let unfinished = folder.path().join(format!("{UNFINISHED}{}", half.version()));
        fs::create_dir(&unfinished).unwrap();
        fs::write(unfinished.join("adapter_config.json"), b"{").unwrap();
        let vault = Vault::open(folder.path()).unwrap();
        assert!(!unfinished.exists());
        assert!(vault.holds(whole.version()) && !vault.holds(half.version()));
        vault.keep(&half).unwrap();
        assert!(vault.holds(half.version()));
    }

    #[test]
    fn histories_are_read_back_as_they_were_written() {
        let folder = tempfile::tempdir().unwrap();
        let vault = Vault::open(folder.path()).unwrap();
        let name = AdapterName::parse("team/sql-v2").unwrap();
        let versions = [(5, b"one"), (9, b"two")].map(|(since, w)| NamedVersion { since, version: files(w).version() });
        vault.write_history(&name, &versions[..1]).unwrap();
        vault.write_history(&name, &versions).unwrap();
        let other = AdapterName::parse("Team/sql-v2").unwrap();
        vault.write_history(&other, &[]).unwrap();
        let histories = vault.histories().unwrap();
        assert_eq!(histories[&name], versions);
        assert_eq!(histories[&other], []);
    }
}
