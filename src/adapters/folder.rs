//! The files of one adapter: opened once below a root, capped, read into memory, hashed there and parsed from there.
//! Never mapped, never opened again by name.

use std::{
    fs::{File, OpenOptions},
    io::Read,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::Instant,
};

use super::{Refusal, RefusalCode, faults::Faults};
use crate::terms::{AdapterVersion, Hasher};

pub const CONFIG_FILE: &str = "adapter_config.json";
pub const WEIGHTS_FILE: &str = "adapter_model.safetensors";
pub const MANIFEST_FILE: &str = "adapter.toml";

const MAX_CONFIG_BYTES: u64 = 1 << 20;
const MAX_MANIFEST_BYTES: u64 = 256 << 10;
/// Bytes read at a time; between two reads others may run.
const SLICE_BYTES: usize = 1 << 20;

/// Weights in formats that are not read, by the names that PEFT and its relatives give them.
const FOREIGN_WEIGHTS: &[&str] = &[
    "adapter_model.bin",
    "adapter_model.pt",
    "adapter_model.pth",
    "adapter_model.pkl",
    "adapter_model.ckpt",
    "pytorch_model.bin",
];

/// Ends of names of archives, which are never unpacked.
const ARCHIVES: &[&str] = &[".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".7z"];

/// How large a file of an adapter may be.
pub fn max_bytes(name: &str, max_weight_bytes: u64) -> u64 {
    match name {
        WEIGHTS_FILE => max_weight_bytes,
        CONFIG_FILE => MAX_CONFIG_BYTES,
        _ => MAX_MANIFEST_BYTES,
    }
}

/// What one adapter's files held when they were read.
#[derive(Clone)]
pub struct AdapterFiles {
    config: Vec<u8>,
    weights: Vec<u8>,
    manifest: Option<Vec<u8>>,
    version: AdapterVersion,
    hash_us: u64,
}

impl AdapterFiles {
    /// Takes the contents as they are; the version follows from them.
    pub fn new(config: Vec<u8>, weights: Vec<u8>, manifest: Option<Vec<u8>>) -> Self {
        let begun = Instant::now();
        let mut hasher = Hasher::new().part(CONFIG_FILE, &config).part(WEIGHTS_FILE, &weights);
        if let Some(manifest) = &manifest {
            hasher = hasher.part(MANIFEST_FILE, manifest);
        }
        let version = AdapterVersion(hasher.finish());
        Self { version, config, weights, manifest, hash_us: begun.elapsed().as_micros() as u64 }
    }

    /// Reads `folder`, which lies in or is `root`; links may not lead out of `root`.
    ///
    /// # Errors
    /// Every file that is missing, too large, no regular file, outside the root, or of a format that is not read.
    pub fn read(root: &Path, folder: &Path, max_weight_bytes: u64) -> Result<Self, Vec<Refusal>> {
        let mut faults = Faults::default();
        let Some(root) = root.canonicalize().ok().filter(|root| root.is_dir()) else {
            faults.add(RefusalCode::MissingFile, "folder", "does not exist or is no folder");
            return Err(faults.into_list());
        };
        let folder = FolderBelow { root: &root, path: folder };
        let config = folder.read(CONFIG_FILE, MAX_CONFIG_BYTES, &mut faults);
        let weights = folder.read(WEIGHTS_FILE, max_weight_bytes, &mut faults);
        let manifest = folder.read(MANIFEST_FILE, MAX_MANIFEST_BYTES, &mut faults);
        if config == Content::Absent {
            faults.add(RefusalCode::MissingFile, CONFIG_FILE, "is not in the folder");
        }
        if weights == Content::Absent {
            let (code, subject, reason) = folder.why_no_weights();
            faults.add(code, subject, reason);
        }
        match (config, weights, faults.is_empty()) {
            (Content::Read(config), Content::Read(weights), true) => Ok(Self::new(
                config,
                weights,
                match manifest {
                    Content::Read(bytes) => Some(bytes),
                    Content::Absent | Content::Refused => None,
                },
            )),
            _ => Err(faults.into_list()),
        }
    }

    pub fn config(&self) -> &[u8] {
        &self.config
    }

    pub fn weights(&self) -> &[u8] {
        &self.weights
    }

    pub fn manifest(&self) -> Option<&[u8]> {
        self.manifest.as_deref()
    }

    pub fn version(&self) -> AdapterVersion {
        self.version
    }

    /// How long hashing them took, in microseconds.
    pub fn hash_us(&self) -> u64 {
        self.hash_us
    }

    /// Name and content of each file.
    pub fn parts(&self) -> impl Iterator<Item = (&'static str, &[u8])> {
        let manifest = self.manifest().map(|bytes| (MANIFEST_FILE, bytes));
        [(CONFIG_FILE, self.config()), (WEIGHTS_FILE, self.weights())].into_iter().chain(manifest)
    }
}

#[derive(PartialEq, Eq)]
enum Content {
    Read(Vec<u8>),
    Absent,
    Refused,
}

struct FolderBelow<'a> {
    /// Canonical.
    root: &'a Path,
    path: &'a Path,
}

impl FolderBelow<'_> {
    fn read(&self, name: &'static str, limit: u64, faults: &mut Faults) -> Content {
        match self.try_read(name, limit) {
            Ok(Some(bytes)) => Content::Read(bytes),
            Ok(None) => Content::Absent,
            Err((code, reason)) => {
                faults.add(code, name, reason);
                Content::Refused
            }
        }
    }

    fn try_read(&self, name: &str, limit: u64) -> Result<Option<Vec<u8>>, (RefusalCode, String)> {
        let unreadable =
            |error: std::io::Error| (RefusalCode::MissingFile, format!("cannot be read: {}", error.kind()));
        let named = self.path.join(name);
        match named.symlink_metadata() {
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(unreadable(error)),
        }
        let outside = || (RefusalCode::MissingFile, "is a link that leads out of the adapter folder".to_owned());
        let path = named.canonicalize().map_err(unreadable)?;
        if !path.starts_with(self.root) {
            return Err(outside());
        }
        // O_NONBLOCK: a pipe put there would otherwise hold up the open for ever.
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_CLOEXEC;
        let file = OpenOptions::new().read(true).custom_flags(flags).open(&path).map_err(unreadable)?;
        // From here on only the open file counts: what the name means may change meanwhile.
        if opened_path(&file).is_some_and(|opened| !opened.starts_with(self.root)) {
            return Err(outside());
        }
        let metadata = file.metadata().map_err(unreadable)?;
        if !metadata.is_file() {
            return Err((RefusalCode::MissingFile, "is not a regular file".to_owned()));
        }
        if metadata.len() > limit {
            let reason = format!("has {} bytes; {limit} are allowed", metadata.len());
            return Err((RefusalCode::TooLarge, reason));
        }
        let bytes = read_in_slices(file, metadata.len(), limit).map_err(unreadable)?;
        if bytes.len() as u64 > limit {
            return Err((RefusalCode::TooLarge, format!("has more than {limit} bytes, and that is what is allowed")));
        }
        Ok(Some(bytes))
    }

    /// Tells an adapter in another format from one without weights.
    fn why_no_weights(&self) -> (RefusalCode, &'static str, String) {
        if let Some(name) = FOREIGN_WEIGHTS.iter().find(|name| self.path.join(name).symlink_metadata().is_ok()) {
            let reason =
                format!("is there and {WEIGHTS_FILE} is not; only safetensors is read: save the adapter again with it");
            return (RefusalCode::UnsafeFormat, name, reason);
        }
        let names: Vec<String> = std::fs::read_dir(self.path)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().to_lowercase())
            .collect();
        let any = |fits: &dyn Fn(&str) -> bool| names.iter().any(|name| fits(name));
        let is_shard =
            |name: &str| name.starts_with("adapter_model") && (name.ends_with(".index.json") || name.contains("-of-"));
        if any(&is_shard) {
            let reason = "is split into several files; one file is read";
            return (RefusalCode::UnsafeFormat, WEIGHTS_FILE, reason.to_owned());
        }
        if any(&|name| name.ends_with(".gguf")) {
            let reason = "is not in the folder, a GGUF LoRA file is, and those are not supported yet";
            return (RefusalCode::Unsupported, WEIGHTS_FILE, reason.to_owned());
        }
        if any(&|name| ARCHIVES.iter().any(|end| name.ends_with(end))) {
            let reason = "is not in the folder, an archive is; archives are not unpacked";
            return (RefusalCode::UnsafeFormat, WEIGHTS_FILE, reason.to_owned());
        }
        (RefusalCode::MissingFile, WEIGHTS_FILE, "is not in the folder".to_owned())
    }
}

/// Where the open file really is, where the system tells.
fn opened_path(file: &File) -> Option<PathBuf> {
    use std::os::fd::AsRawFd;
    std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).ok()
}

/// Reads to the end, or to one byte past the limit.
fn read_in_slices(file: File, expected: u64, limit: u64) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(usize::try_from(expected).unwrap_or(usize::MAX))?;
    let mut file = file.take(limit.saturating_add(1));
    loop {
        if (&mut file).take(SLICE_BYTES as u64).read_to_end(&mut bytes)? == 0 {
            return Ok(bytes);
        }
        std::thread::yield_now();
    }
}
