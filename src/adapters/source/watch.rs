//! Follows folders of adapters while the server runs: file events say when to look, a look from time to time finds what
//! events do not tell (they are lost on network and overlay file systems), and what is found is compared with what was.
//!
//! A folder counts once it is whole and has stayed the same for the settling time.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{self, RecvTimeoutError, SyncSender},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::watch;

use super::{
    Found, directory,
    whole::{self, Stamp},
};
use crate::{
    adapters::{Refusal, SourceFolder},
    terms::AdapterName,
};

/// What stands in the watched folders.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Whole and settled, by name. Of two folders with one name the one in the first root counts.
    pub settled: BTreeMap<AdapterName, Settled>,
    /// Not whole, or still changing: why.
    pub waiting: BTreeMap<AdapterName, String>,
    /// Folders whose names cannot be used, and roots that cannot be listed.
    pub refused: Vec<(String, Refusal)>,
    pub unlisted: Vec<(PathBuf, String)>,
}

/// A folder that may be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settled {
    pub found: Found,
    pub stamp: Stamp,
}

/// What is watched, and how.
#[derive(Clone, Debug)]
pub struct WatchSettings {
    pub roots: Vec<PathBuf>,
    /// Single files whose changes are told as well.
    pub files: Vec<PathBuf>,
    /// The longest time between two looks.
    pub interval: Duration,
    pub settle: Duration,
}

/// A thread that looks. It ends when this is dropped.
pub struct Watch {
    seen: Arc<Mutex<Seen>>,
    changes: watch::Receiver<u64>,
    wake: SyncSender<Wake>,
    thread: Option<JoinHandle<()>>,
    /// Held for its events.
    _events: Option<RecommendedWatcher>,
}

enum Wake {
    Look,
    End,
}

impl Watch {
    /// Looks once at everything before it returns: a folder that is whole then counts as settled.
    ///
    /// # Errors
    /// If there is no thread to be had.
    pub fn start(settings: WatchSettings) -> std::io::Result<Self> {
        let (wake, wakes) = mpsc::sync_channel(1);
        let events = events(&settings, wake.clone());
        let mut looker = Looker { settings, known: BTreeMap::new(), fresh: false };
        let first = looker.look(Instant::now(), true);
        let files = looker.files();
        let seen = Arc::new(Mutex::new(first.clone()));
        let (told, changes) = watch::channel(0);
        let shared = Arc::clone(&seen);
        let thread = std::thread::Builder::new().name("adapter-folders".to_owned()).spawn(move || {
            let (mut last, mut last_files) = (first, files);
            loop {
                let pause = if looker.fresh { looker.soon() } else { looker.settings.interval };
                match wakes.recv_timeout(pause) {
                    Ok(Wake::Look) | Err(RecvTimeoutError::Timeout) => {}
                    Ok(Wake::End) | Err(RecvTimeoutError::Disconnected) => return,
                }
                let now = looker.look(Instant::now(), false);
                let now_files = looker.files();
                if now != last || now_files != last_files {
                    (last, last_files) = (now.clone(), now_files);
                    *shared.lock().unwrap_or_else(PoisonError::into_inner) = now;
                    told.send_modify(|count| *count += 1);
                }
            }
        })?;
        Ok(Self { seen, changes, wake, thread: Some(thread), _events: events })
    }

    pub fn seen(&self) -> Seen {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Counts what changed since the start: in folders and in single files.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.clone()
    }

    /// Looks now.
    pub fn look(&self) {
        // One that is waiting already is as good.
        let _ = self.wake.try_send(Wake::Look);
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self._events = None;
        // A thread that is gone needs no end.
        let _ = self.wake.send(Wake::End);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that follows adapter folders ended by a panic");
        }
    }
}

/// Tells of events; where that is not to be had, looking from time to time has to do.
fn events(settings: &WatchSettings, wake: SyncSender<Wake>) -> Option<RecommendedWatcher> {
    let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // Reading is an event too, and our own looks read.
        if event.as_ref().is_ok_and(|event| matches!(event.kind, EventKind::Access(_))) {
            return;
        }
        // A look that is waiting already sees this as well.
        let _ = wake.try_send(Wake::Look);
    });
    let told = |error: notify::Error, path: &Path| {
        tracing::warn!(%error, path = %path.display(), "no file events: it is looked at from time to time");
    };
    let mut watcher = watcher.map_err(|error| told(error, Path::new("."))).ok()?;
    for root in &settings.roots {
        if let Err(error) = watcher.watch(root, RecursiveMode::Recursive) {
            told(error, root);
        }
    }
    // The folder, not the file: a file that is replaced is another one.
    for folder in settings.files.iter().filter_map(|file| file.parent()) {
        let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        if let Err(error) = watcher.watch(folder, RecursiveMode::NonRecursive) {
            told(error, folder);
        }
    }
    Some(watcher)
}

struct Looker {
    settings: WatchSettings,
    /// Each folder's stamp, and since when it has been that.
    known: BTreeMap<PathBuf, (Stamp, Instant)>,
    /// Something has not been the same for the settling time yet.
    fresh: bool,
}

impl Looker {
    fn look(&mut self, now: Instant, first: bool) -> Seen {
        let mut seen = Seen::default();
        let mut known = BTreeMap::new();
        self.fresh = false;
        for root in &self.settings.roots {
            let findings = match directory::find(&SourceFolder::Root(root.clone())) {
                Ok(findings) => findings,
                Err(error) => {
                    seen.unlisted.push((root.clone(), error.kind().to_string()));
                    continue;
                }
            };
            seen.refused.extend(findings.refused);
            for found in findings.found {
                if seen.settled.contains_key(&found.name) || seen.waiting.contains_key(&found.name) {
                    continue;
                }
                let name = found.name.clone();
                let stamp = match Stamp::of(&found.path) {
                    Ok(stamp) => stamp,
                    Err(error) => {
                        seen.waiting.insert(name, error.kind().to_string());
                        continue;
                    }
                };
                let since = match self.known.get(&found.path) {
                    Some((last, since)) if *last == stamp => *since,
                    Some(_) | None => now,
                };
                let settled = first || now.duration_since(since) >= self.settings.settle;
                self.fresh |= !settled;
                known.insert(found.path.clone(), (stamp.clone(), since));
                if let Some(missing) = whole::what_is_missing(&found.path) {
                    seen.waiting.insert(name, missing);
                } else if settled {
                    seen.settled.insert(name, Settled { found, stamp });
                } else {
                    seen.waiting.insert(name, "it was changed a moment ago".to_owned());
                }
            }
        }
        if first {
            // What was whole at the start stays settled for as long as it stays the same.
            let before = now.checked_sub(self.settings.settle).unwrap_or(now);
            known.values_mut().for_each(|(_, since)| *since = before);
        }
        self.known = known;
        seen
    }

    /// When to look again at what is not settled.
    fn soon(&self) -> Duration {
        self.settings.settle.clamp(Duration::from_millis(10), self.settings.interval.max(Duration::from_millis(10)))
    }

    fn files(&self) -> Vec<Option<Vec<u8>>> {
        self.settings.files.iter().map(|file| std::fs::read(file).ok()).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::adapters::folder::{CONFIG_FILE, WEIGHTS_FILE};

    fn settings(root: &Path) -> WatchSettings {
        WatchSettings {
            roots: vec![root.to_owned()],
            files: Vec::new(),
            interval: Duration::from_secs(3600),
            settle: Duration::from_millis(20),
        }
    }

    fn weights(byte: u8) -> Vec<u8> {
        let header = br#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
        [&(header.len() as u64).to_le_bytes()[..], header, &[byte; 8]].concat()
    }

    fn put(folder: &Path, byte: u8) {
        fs::create_dir_all(folder).unwrap();
        fs::write(folder.join(CONFIG_FILE), "{}").unwrap();
        fs::write(folder.join(WEIGHTS_FILE), weights(byte)).unwrap();
    }

    /// Waits until what is seen is as wanted.
    async fn until(watch: &Watch, wanted: impl Fn(&Seen) -> bool) -> Seen {
        let mut changes = watch.changes();
        loop {
            changes.borrow_and_update();
            let seen = watch.seen();
            if wanted(&seen) {
                return seen;
            }
            changes.changed().await.unwrap();
        }
    }

    fn name(text: &str) -> AdapterName {
        AdapterName::parse(text).unwrap()
    }

    #[tokio::test]
    async fn folders_appear_change_and_go_without_being_asked_for() {
        let root = tempfile::tempdir().unwrap();
        put(&root.path().join("old"), 1);
        let watch = Watch::start(settings(root.path())).unwrap();
        assert!(watch.seen().settled.contains_key("old"), "at the start");
        put(&root.path().join("new"), 1);
        let seen = until(&watch, |seen| seen.settled.contains_key("new")).await;
        let stamp = seen.settled[&name("new")].stamp.clone();
        assert!(seen.settled.contains_key("old"));
        put(&root.path().join("new"), 2);
        until(&watch, |seen| seen.settled.get("new").is_some_and(|settled| settled.stamp != stamp)).await;
        fs::remove_dir_all(root.path().join("new")).unwrap();
        until(&watch, |seen| !seen.settled.contains_key("new") && seen.waiting.is_empty()).await;
    }

    #[tokio::test]
    async fn a_half_copied_folder_waits_until_it_is_whole() {
        let root = tempfile::tempdir().unwrap();
        let watch = Watch::start(settings(root.path())).unwrap();
        let folder = root.path().join("half");
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join(CONFIG_FILE), "{}").unwrap();
        let (whole, path) = (weights(1), folder.join(WEIGHTS_FILE));
        fs::write(&path, &whole[..whole.len() - 1]).unwrap();
        let seen =
            until(&watch, |seen| seen.waiting.get("half").is_some_and(|reason| reason.contains("its header tells of")))
                .await;
        assert!(seen.settled.is_empty());
        fs::write(&path, &whole).unwrap();
        until(&watch, |seen| seen.settled.contains_key("half")).await;
    }

    #[tokio::test]
    async fn a_swap_of_links_as_kubernetes_does_it_is_a_change() {
        let root = tempfile::tempdir().unwrap();
        let mount = root.path().join("sql");
        fs::create_dir(&mount).unwrap();
        put(&mount.join("..v1"), 1);
        put(&mount.join("..v2"), 2);
        let link = |to: &str, name: &str| std::os::unix::fs::symlink(to, mount.join(name)).unwrap();
        link("..v1", "..data");
        link("..data/adapter_config.json", CONFIG_FILE);
        link("..data/adapter_model.safetensors", WEIGHTS_FILE);
        let watch = Watch::start(settings(root.path())).unwrap();
        let before = watch.seen();
        assert_eq!(before.settled.len(), 1, "the folders behind the links are no adapters of their own");
        let stamp = before.settled[&name("sql")].stamp.clone();
        link("..v2", "..data_tmp");
        fs::rename(mount.join("..data_tmp"), mount.join("..data")).unwrap();
        until(&watch, |seen| seen.settled.get("sql").is_some_and(|settled| settled.stamp != stamp)).await;
    }

    #[tokio::test]
    async fn a_change_that_no_event_tells_of_is_found_by_looking_again() {
        let place = tempfile::tempdir().unwrap();
        let root = place.path().join("root");
        put(&root.join("sql"), 1);
        // Who writes through another name of the file is not seen by whoever watches its folder.
        let other = place.path().join("other");
        fs::hard_link(root.join("sql").join(WEIGHTS_FILE), &other).unwrap();
        let watch = Watch::start(WatchSettings { interval: Duration::from_millis(50), ..settings(&root) }).unwrap();
        let stamp = watch.seen().settled[&name("sql")].stamp.clone();
        fs::write(other, weights(2)).unwrap();
        until(&watch, |seen| seen.settled.get("sql").is_some_and(|settled| settled.stamp != stamp)).await;
    }

    #[tokio::test]
    async fn a_file_that_is_replaced_is_told_of() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("desired.toml");
        fs::write(&file, "one").unwrap();
        let settings = WatchSettings { files: vec![file.clone()], roots: Vec::new(), ..settings(folder.path()) };
        let watch = Watch::start(settings).unwrap();
        let mut changes = watch.changes();
        fs::write(folder.path().join("next"), "two").unwrap();
        fs::rename(folder.path().join("next"), &file).unwrap();
        changes.changed().await.unwrap();
    }
}
