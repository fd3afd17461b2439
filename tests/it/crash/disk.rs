//! What a power cut leaves of a folder: what was synced, and by chance some of what was not. `tests/power/power.c` keeps the
//! synced state beside the running program.

use std::{
    collections::HashMap,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::Command,
};

use super::Chance;

/// Is in no path.
pub const NOTHING_FORGOTTEN: &str = "\u{1}";

const PAGE: usize = 4096;

/// What becomes of what was not synced.
#[derive(Clone, Copy, Debug)]
pub enum Cut {
    /// All of it is lost.
    AllLost,
    /// Creations, renames and removals have reached the disk; contents have not.
    NamesSurvive,
    /// The other way round.
    ContentsSurvive,
    /// Each folder, and each page of a file, as chance has it.
    Torn,
}

impl Cut {
    /// One after the other.
    pub fn of(round: usize) -> Self {
        [Self::AllLost, Self::Torn, Self::NamesSurvive, Self::ContentsSurvive][round % 4]
    }

    fn names_survive(self, chance: &mut Chance) -> bool {
        match self {
            Self::AllLost | Self::ContentsSurvive => false,
            Self::NamesSurvive => true,
            Self::Torn => chance.below(2) == 0,
        }
    }
}

/// A folder whose writes may be undone.
pub struct Disk {
    root: PathBuf,
    kept: PathBuf,
}

#[derive(Clone)]
struct Entry {
    name: String,
    inode: u64,
    folder: bool,
}

/// What lies in the folder now, by inode.
#[derive(Default)]
struct Now {
    folders: HashMap<u64, Vec<Entry>>,
    files: HashMap<u64, Vec<u8>>,
}

impl Disk {
    /// `kept` is for what has been synced.
    pub fn of(root: &Path, kept: &Path) -> Self {
        fs::create_dir_all(kept).expect("made");
        Self { root: root.to_owned(), kept: kept.to_owned() }
    }

    /// Runs a program on this disk; syncs of paths with `forgotten` in them do nothing.
    pub fn put_under(&self, command: &mut Command, forgotten: &str) {
        fs::remove_dir_all(&self.kept).expect("an earlier run's");
        fs::create_dir(&self.kept).expect("made");
        command
            .env("LD_PRELOAD", library())
            .env("TUNEGATE_TEST_POWER_ROOT", &self.root)
            .env("TUNEGATE_TEST_POWER_DISK", &self.kept)
            .env("TUNEGATE_TEST_POWER_FORGET", forgotten);
    }

    /// Cuts the power of a program that has ended.
    pub fn cut(&self, cut: Cut, chance: &mut Chance) {
        if !self.kept.join("ready").exists() {
            // It was killed before it could change anything.
            return;
        }
        let mut now = Now::default();
        let inode = now.read(&self.root);
        let after = self.root.with_extension("after");
        self.restore_folder(inode, &now, &after, cut, chance);
        fs::remove_dir_all(&self.root).expect("removed");
        fs::rename(&after, &self.root).expect("in its place");
    }

    fn restore_folder(&self, inode: u64, now: &Now, to: &Path, cut: Cut, chance: &mut Chance) {
        fs::create_dir(to).expect("made");
        let current = now.folders.get(&inode).filter(|_| cut.names_survive(chance)).cloned();
        for entry in current.unwrap_or_else(|| self.synced_entries(inode)) {
            let to = to.join(&entry.name);
            if entry.folder {
                self.restore_folder(entry.inode, now, &to, cut, chance);
            } else if !entry.name.ends_with("-shm") {
                // SQLite's index of its log is never on a disk: it is made anew.
                fs::write(to, self.content(entry.inode, now, cut, chance)).expect("written");
            }
        }
    }

    fn synced_entries(&self, inode: u64) -> Vec<Entry> {
        let Ok(text) = fs::read_to_string(self.kept.join("folders").join(inode.to_string())) else { return Vec::new() };
        let entry = |line: &str| {
            let mut parts = line.splitn(3, ' ');
            let (inode, kind, name) = (parts.next()?, parts.next()?, parts.next()?);
            Some(Entry { name: name.to_owned(), inode: inode.parse().ok()?, folder: kind == "d" })
        };
        text.lines().map(|line| entry(line).expect("an entry")).collect()
    }

    fn content(&self, inode: u64, now: &Now, cut: Cut, chance: &mut Chance) -> Vec<u8> {
        let synced = fs::read(self.kept.join("files").join(inode.to_string())).unwrap_or_default();
        let Some(current) = now.files.get(&inode) else { return synced };
        match cut {
            Cut::AllLost | Cut::NamesSurvive => synced,
            Cut::ContentsSurvive => current.clone(),
            Cut::Torn => torn(synced, current, chance),
        }
    }
}

/// One length or the other, and each page as it was or as it is.
fn torn(synced: Vec<u8>, current: &[u8], chance: &mut Chance) -> Vec<u8> {
    let mut content = if chance.below(2) == 0 { synced.clone() } else { current.to_vec() };
    for (index, page) in content.chunks_mut(PAGE).enumerate() {
        let source = if chance.below(2) == 0 { synced.as_slice() } else { current };
        page.fill(0);
        let from = source.get(index * PAGE..).unwrap_or_default();
        let length = from.len().min(page.len());
        page[..length].copy_from_slice(&from[..length]);
    }
    content
}

impl Now {
    /// Reads what is below `path` and gives its inode.
    fn read(&mut self, path: &Path) -> u64 {
        let inode = fs::metadata(path).expect("a folder").ino();
        let mut entries = Vec::new();
        for entry in fs::read_dir(path).expect("listed") {
            let entry = entry.expect("an entry");
            let (kind, path) = (entry.file_type().expect("its kind"), entry.path());
            let name = entry.file_name().into_string().expect("UTF-8");
            if kind.is_dir() {
                entries.push(Entry { name, inode: self.read(&path), folder: true });
            } else if kind.is_file() {
                let inode = entry.metadata().expect("its inode").ino();
                self.files.insert(inode, fs::read(&path).expect("read"));
                entries.push(Entry { name, inode, folder: false });
            }
        }
        self.folders.insert(inode, entries);
        inode
    }
}

fn library() -> PathBuf {
    let path = std::env::var_os("TUNEGATE_TEST_POWER").map(PathBuf::from).filter(|path| path.is_file());
    path.expect("the disk that forgets: run `make test`, which builds it, or let TUNEGATE_TEST_POWER name it")
}
