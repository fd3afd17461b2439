//! Adapter bytes by version: plain files below one folder, each written whole and synced before it gets its name, so that
//! a crash leaves the old state or the new one.
//!
//! ```text
//! <version>/          the adapter's files, copied
//! names/<digest>      histories as earlier builds kept them; taken over into the store and removed
//! ```
//!
//! One process writes here at a time: the one that holds the data directory.

use std::{
    collections::{BTreeSet, HashSet},
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use super::{Refusal, folder::AdapterFiles};
use crate::{
    store::OldHistory,
    terms::{AdapterName, AdapterVersion, Digest},
};

/// The folder of kept adapters.
#[derive(Clone, Debug)]
pub struct Vault {
    root: PathBuf,
    /// Held while a version comes or goes: two who keep the same bytes would write into each other's files.
    changing: Arc<Mutex<()>>,
}

const NAMES: &str = "names";
/// What is being written begins so, and is cleared away when the vault is opened.
const UNFINISHED: &str = ".unfinished-";

impl Vault {
    /// Opens or makes the folder, and clears away what a crash left half written.
    pub fn open(root: &Path) -> io::Result<Self> {
        fs::create_dir_all(root)?;
        if let Some(parent) = root.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            sync_folder(parent)?;
        }
        for entry in fs::read_dir(root)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
                fs::remove_dir_all(entry.path())?;
            }
        }
        sync_folder(root)?;
        Ok(Self { root: root.to_path_buf(), changing: Arc::default() })
    }

    pub fn holds(&self, version: AdapterVersion) -> bool {
        self.folder(version).is_dir()
    }

    /// Keeps a copy, durable when this returns. A copy that is there already is left as it is, unless it has been damaged.
    pub fn keep(&self, files: &AdapterFiles) -> io::Result<()> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = self.folder(files.version());
        if kept.is_dir() {
            let limit = files.parts().map(|(_, content)| content.len() as u64).max().unwrap_or(0);
            if self.read(files.version(), limit).is_ok_and(|copy| copy.version() == files.version()) {
                return Ok(());
            }
            self.drop_copy(files.version())?;
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

    /// Every version that is kept, in order.
    pub fn versions(&self) -> io::Result<BTreeSet<AdapterVersion>> {
        let mut versions = BTreeSet::new();
        for entry in fs::read_dir(&self.root)? {
            // Whatever else lies here is not ours to judge.
            if let Ok(digest) = Digest::parse(&entry?.file_name().to_string_lossy()) {
                versions.insert(AdapterVersion(digest));
            }
        }
        Ok(versions)
    }

    /// Bytes of all files of a kept version; 0 if it is not there.
    pub fn bytes(&self, version: AdapterVersion) -> u64 {
        let files = fs::read_dir(self.folder(version)).into_iter().flatten().flatten();
        files.filter_map(|file| Some(file.metadata().ok()?.len())).sum()
    }

    /// Gives up a version's files. A crash leaves them whole, or to be cleared away at the next start.
    pub fn remove(&self, version: AdapterVersion) -> io::Result<()> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        self.drop_copy(version)
    }

    fn drop_copy(&self, version: AdapterVersion) -> io::Result<()> {
        let unfinished = self.root.join(format!("{UNFINISHED}{version}"));
        fs::rename(self.folder(version), &unfinished)?;
        sync_folder(&self.root)?;
        fs::remove_dir_all(&unfinished)
    }

    /// Removes what is in none of `named`: bytes of loads that a crash ended before they got a name. Gives their number.
    pub fn sweep(&self, named: &HashSet<AdapterVersion>) -> io::Result<usize> {
        let lost: Vec<AdapterVersion> =
            self.versions()?.into_iter().filter(|version| !named.contains(version)).collect();
        lost.iter().try_for_each(|version| self.remove(*version))?;
        Ok(lost.len())
    }

    /// The histories that an earlier build left here. Lines that are not read are passed over: a name without its history
    /// is better than a server that does not start.
    pub fn old_histories(&self) -> io::Result<Vec<OldHistory>> {
        let entries = match fs::read_dir(self.root.join(NAMES)) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut histories = Vec::new();
        for entry in entries {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
                continue;
            }
            let text = fs::read_to_string(entry.path())?;
            let mut lines = text.lines();
            let Some(name) = lines.next().and_then(|line| AdapterName::parse(line).ok()) else { continue };
            let versions = lines.filter_map(|line| {
                let (since, version) = line.split_once(' ')?;
                Some((since.parse().ok()?, AdapterVersion(Digest::parse(version).ok()?)))
            });
            histories.push((name, versions.collect()));
        }
        Ok(histories)
    }

    /// Removes the histories that the store has taken over.
    pub fn forget_old_histories(&self) -> io::Result<()> {
        match fs::remove_dir_all(self.root.join(NAMES)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            Ok(()) | Err(_) => sync_folder(&self.root),
        }
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
    fn two_who_keep_the_same_bytes_at_once_keep_them_once() {
        let folder = tempfile::tempdir().unwrap();
        let vault = Vault::open(folder.path()).unwrap();
        std::thread::scope(|scope| {
            let keep = || {
                for index in 0..50u8 {
                    vault.keep(&files(&[index; 1000])).unwrap();
                }
            };
            scope.spawn(keep);
            scope.spawn(keep);
        });
        assert_eq!(vault.versions().unwrap().len(), 50);
    }

    #[test]
    fn a_damaged_copy_is_replaced_when_the_same_bytes_come_again() {
        let folder = tempfile::tempdir().unwrap();
        let vault = Vault::open(folder.path()).unwrap();
        let good = files(b"weights");
        vault.keep(&good).unwrap();
        let copy = folder.path().join(good.version().to_string()).join("adapter_model.safetensors");
        fs::write(&copy, b"rubbish, and more of it").unwrap();
        vault.keep(&good).unwrap();
        assert_eq!(fs::read(&copy).unwrap(), b"weights");
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
    fn histories_of_earlier_builds_are_read_and_then_removed() {
        let folder = tempfile::tempdir().unwrap();
        let vault = Vault::open(folder.path()).unwrap();
        assert_eq!(vault.old_histories().unwrap(), []);
        let (one, two) = (files(b"one").version(), files(b"two").version());
        fs::create_dir(folder.path().join(NAMES)).unwrap();
        let text = format!("team/sql-v2\n5 {one}\nnonsense\n9 {two}\n");
        fs::write(folder.path().join(NAMES).join("x"), text).unwrap();
        fs::write(folder.path().join(NAMES).join("y"), "no name\n").unwrap();
        fs::write(folder.path().join(NAMES).join(format!("{UNFINISHED}z")), "half").unwrap();
        let name = AdapterName::parse("team/sql-v2").unwrap();
        assert_eq!(vault.old_histories().unwrap(), [(name, vec![(5, one), (9, two)])]);
        vault.forget_old_histories().unwrap();
        vault.forget_old_histories().unwrap();
        assert_eq!(vault.old_histories().unwrap(), []);
    }

    #[test]
    fn only_what_nothing_names_is_swept() {
        let folder = tempfile::tempdir().unwrap();
        let vault = Vault::open(folder.path()).unwrap();
        let (one, two) = (files(b"one"), files(b"two"));
        vault.keep(&one).unwrap();
        vault.keep(&two).unwrap();
        fs::create_dir(folder.path().join("somebody-elses")).unwrap();
        assert_eq!(vault.versions().unwrap(), [one.version(), two.version()].into());
        assert_eq!(vault.bytes(one.version()), 5);
        assert_eq!(vault.sweep(&[two.version()].into()).unwrap(), 1);
        assert_eq!(vault.versions().unwrap(), [two.version()].into());
        assert!(folder.path().join("somebody-elses").exists());
        vault.keep(&one).unwrap();
    }
}
