//! Brings one adapter's files into a folder of this machine: resumed where they were cut, within bounds of size and time,
//! compared with what the source says of them. What is not whole gets no name that anybody reads.

use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use futures_util::TryStreamExt;
use md5::Md5;
use sha1::Sha1;
use sha2::{Digest as _, Sha256};
use tokio::{
    io::{AsyncWriteExt, BufWriter},
    sync::{Mutex as AsyncMutex, OwnedMutexGuard, Semaphore},
    time::{Instant, sleep, timeout_at},
};

use super::{
    SourceError,
    remote::{Proof, Remote, RemoteFile},
    whole,
};
use crate::{
    adapters::folder::{WEIGHTS_FILE, max_bytes},
    config::FetchConfig,
    terms::Digest,
};

/// Fetches into one folder.
pub struct Fetcher {
    folder: PathBuf,
    config: FetchConfig,
    max_weight_bytes: u64,
    slots: Semaphore,
    /// One fetch of the same content at a time.
    under_way: Mutex<HashMap<Digest, Arc<AsyncMutex<()>>>>,
}

/// A folder with an adapter's files, whole and compared. It goes when this is dropped: whoever wants it keeps a copy.
#[derive(Debug)]
pub struct Fetched {
    path: PathBuf,
    _alone: OwnedMutexGuard<()>,
}

impl Fetched {
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Fetched {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            tracing::warn!(%error, folder = %self.path.display(), "a fetched adapter is left behind");
        }
    }
}

/// Attempts in a row that bring nothing before a fetch is given up.
const ATTEMPTS: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// What was begun and not asked for again is cleared away after this long.
const KEPT: Duration = Duration::from_secs(24 * 60 * 60);
const WRITTEN_AT_ONCE: usize = 1 << 20;
/// What is being fetched has this behind its name.
const PART: &str = ".part";

impl Fetcher {
    /// `folder` is made if need be; what an earlier run began in it is gone on with.
    pub fn new(folder: PathBuf, config: FetchConfig, max_weight_bytes: u64) -> io::Result<Self> {
        fs::create_dir_all(&folder)?;
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            let age = entry.metadata()?.modified().ok().and_then(|then| SystemTime::now().duration_since(then).ok());
            if age.is_some_and(|age| age > KEPT) {
                fs::remove_dir_all(entry.path())?;
            }
        }
        Ok(Self {
            folder,
            config,
            max_weight_bytes,
            slots: Semaphore::new(config.at_once.max(1)),
            under_way: Mutex::default(),
        })
    }

    /// # Errors
    /// [`SourceError`]. What did arrive is kept, and the next try goes on from there.
    pub async fn fetch(&self, remote: &Remote) -> Result<Fetched, SourceError> {
        let end = Instant::now() + self.config.timeout;
        timeout_at(end, self.fetch_all(remote)).await.unwrap_or_else(|_| {
            let seconds = self.config.timeout.as_secs();
            Err(SourceError::Unavailable(format!("{} was not there within {seconds} s", remote.address)))
        })
    }

    /// How long looking at a source may take.
    pub fn timeout(&self) -> Duration {
        self.config.timeout
    }

    async fn fetch_all(&self, remote: &Remote) -> Result<Fetched, SourceError> {
        for file in &remote.files {
            let limit = max_bytes(file.name, self.max_weight_bytes);
            if file.size > limit {
                let reason = format!("{} has {} bytes; {limit} are allowed", file.name, file.size);
                return Err(SourceError::TooLarge(reason));
            }
        }
        let key = remote.key();
        let alone = self.alone(key).lock_owned().await;
        // Nobody closes it.
        let _slot = self.slots.acquire().await;
        let path = self.folder.join(key.to_string());
        fs::create_dir_all(&path).map_err(|error| on_disk(&path, &error))?;
        for file in &remote.files {
            self.bring(remote, file, &path).await?;
        }
        if let Some(missing) = whole::what_is_missing(&path) {
            // What the source has is not whole; to fetch it again helps once it has changed there.
            fs::remove_dir_all(&path).map_err(|error| on_disk(&path, &error))?;
            return Err(SourceError::Spoilt(format!("{}: {missing}", remote.address)));
        }
        Ok(Fetched { path, _alone: alone })
    }

    fn alone(&self, key: Digest) -> Arc<AsyncMutex<()>> {
        let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        under_way.retain(|_, lock| Arc::strong_count(lock) > 1);
        Arc::clone(under_way.entry(key).or_default())
    }

    /// One file, compared. A file that was put together from pieces and is wrong is fetched once more in one go.
    async fn bring(&self, remote: &Remote, file: &RemoteFile, folder: &Path) -> Result<(), SourceError> {
        let (whole, part) = (folder.join(file.name), folder.join(format!("{}{PART}", file.name)));
        if whole.exists() {
            return Ok(());
        }
        let mut again = true;
        loop {
            let pieced = self.append(remote, file, &part).await?;
            let (compared, proof) = (part.clone(), file.proof.clone());
            let matches = tokio::task::spawn_blocking(move || matches(&compared, &proof)).await;
            let matches = matches.map_err(|error| SourceError::Unavailable(error.to_string()))?;
            if matches.map_err(|error| on_disk(&part, &error))? {
                return fs::rename(&part, &whole).map_err(|error| on_disk(&part, &error));
            }
            fs::remove_file(&part).map_err(|error| on_disk(&part, &error))?;
            if !(pieced && again) {
                let what = if file.name == WEIGHTS_FILE { "the weights" } else { file.name };
                let reason = format!("{}: {what} are not what the source says they are: wrong digest", remote.address);
                return Err(SourceError::Spoilt(reason));
            }
            again = false;
        }
    }

    /// Fetches what is missing at the end of a part, however often it is cut; true if it is of more than one piece.
    async fn append(&self, remote: &Remote, file: &RemoteFile, part: &Path) -> Result<bool, SourceError> {
        let (mut pieces, mut in_vain) = (0, 0);
        loop {
            let there = fs::metadata(part).map_or(0, |found| found.len());
            pieces += u32::from(there > 0);
            if there == file.size {
                if there == 0 {
                    fs::write(part, []).map_err(|error| on_disk(part, &error))?;
                }
                return Ok(pieces > 1);
            }
            if there > file.size {
                fs::remove_file(part).map_err(|error| on_disk(part, &error))?;
                continue;
            }
            let Err(error) = piece(remote, file, there, part).await else { continue };
            if !error.may_pass() {
                return Err(error);
            }
            let more = fs::metadata(part).map_or(0, |found| found.len()) > there;
            in_vain = if more { 0 } else { in_vain + 1 };
            if in_vain == ATTEMPTS {
                return Err(error);
            }
            tracing::debug!(%error, file = file.name, there, "fetching goes on where it was cut");
            sleep(FIRST_PAUSE * 2u32.pow(in_vain)).await;
        }
    }
}

/// Writes what comes from `offset` on, also if it is cut before the end.
async fn piece(remote: &Remote, file: &RemoteFile, offset: u64, part: &Path) -> Result<(), SourceError> {
    let mut pieces = remote.pieces(file, offset).await?;
    let out = tokio::fs::OpenOptions::new().create(true).append(true).open(part).await;
    let mut out = BufWriter::with_capacity(WRITTEN_AT_ONCE, out.map_err(|error| on_disk(part, &error))?);
    let mut left = file.size - offset;
    let ending = loop {
        match pieces.try_next().await {
            Ok(None) if left == 0 => break Ok(()),
            Ok(None) => {
                break Err(SourceError::Unavailable(format!("{} was cut {left} bytes before its end", file.name)));
            }
            Ok(Some(piece)) if piece.len() as u64 > left => {
                break Err(SourceError::Spoilt(format!("{} goes on after its {} bytes", file.name, file.size)));
            }
            Ok(Some(piece)) => {
                left -= piece.len() as u64;
                out.write_all(&piece).await.map_err(|error| on_disk(part, &error))?;
            }
            Err(error) => break Err(error),
        }
    };
    out.flush().await.map_err(|error| on_disk(part, &error))?;
    ending
}

fn matches(path: &Path, proof: &Proof) -> io::Result<bool> {
    let mut file = fs::File::open(path)?;
    Ok(match proof {
        Proof::Sha256(digest) => {
            let mut hasher = Sha256::new();
            io::copy(&mut file, &mut Into(&mut hasher))?;
            hasher.finalize().as_slice() == digest.as_bytes()
        }
        Proof::Md5(digest) => {
            let mut hasher = Md5::new();
            io::copy(&mut file, &mut Into(&mut hasher))?;
            hasher.finalize().as_slice() == digest
        }
        Proof::GitBlob(digest) => {
            let mut hasher = Sha1::new();
            hasher.update(format!("blob {}\0", file.metadata()?.len()));
            io::copy(&mut file, &mut Into(&mut hasher))?;
            hasher.finalize().as_slice() == digest
        }
        Proof::Length => true,
    })
}

/// Writes into a hasher.
struct Into<'a, H>(&'a mut H);

impl<H: sha2::digest::Update> io::Write for Into<'_, H> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn on_disk(path: &Path, error: &io::Error) -> SourceError {
    tracing::error!(%error, path = %path.display(), "a fetched adapter cannot be written");
    SourceError::Unavailable(format!("what is fetched cannot be written here: {}", error.kind()))
}
