//! `tunegate backup` and `tunegate restore`: record, catalog and adapters of a data directory, as one folder whose every
//! file is named with its digest.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::operator::Server;
use crate::{
    app,
    config::{Layer, RecordConfig, RetentionConfig, Settings},
    data_dir::{self, DataDir},
    journal::{Access, Deed, Journal},
    metrics::Metrics,
    store,
    terms::{Digest, Moment},
};

/// Copy record, catalog and adapters of a data directory into a folder, also while its server runs
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The database is copied as it is at one moment, then the adapters that it names, then the record's own secret. The folder
may lie on another disk; it holds recorded content and is readable by its owner alone.

Example:
  tunegate backup /backups/2026-09-21")]
pub struct BackupArgs {
    /// A folder that is not there yet
    folder: PathBuf,
    /// The data directory (default: data)
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Settings from a TOML file, as for `serve`; the environment counts too
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// Put a backup in the place of a data directory that no server holds
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Every file is held against its digest first. What a crash interrupts is finished by the same command; until then no server
starts on the directory.

Example:
  tunegate restore /backups/2026-09-21 --data-dir data")]
pub struct RestoreArgs {
    /// What `tunegate backup` made
    folder: PathBuf,
    /// The data directory (default: data)
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Settings from a TOML file, as for `serve`; the environment counts too
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Give up the record and the adapters that are there; they are moved aside, not removed
    #[arg(long)]
    replace: bool,
}

const MANIFEST: &str = "backup.json";
const FORMAT: u32 = 1;
const DATABASE: &str = "tunegate.db";
const VAULT: &str = "vault";
const SECRET: &str = "record.secret";
/// What belongs to the database while it is open, and goes with it.
const BESIDE: [&str; 2] = ["tunegate.db-wal", "tunegate.db-shm"];

/// What a backup says of itself.
#[derive(Debug, Serialize, Deserialize)]
struct Manifest {
    format: u32,
    /// Milliseconds since the Unix epoch.
    made_ms: i64,
    build: String,
    files: Vec<Entry>,
}

/// One file, its path below the folder with `/`.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct Entry {
    path: String,
    bytes: u64,
    sha256: Digest,
}

fn named(path: &Path, error: impl std::fmt::Display) -> String {
    format!("{}: {error}", path.display())
}

/// Makes the backup and says what is in it.
pub fn backup(args: BackupArgs) -> Result<(), String> {
    let flags = Layer { data_dir: args.data_dir, ..Layer::default() };
    let settings = Settings::gather_here(args.config.as_deref(), flags);
    let (data_dir, folder) = (settings.data_dir(), args.folder);
    if !app::record_file(&data_dir).is_file() {
        return Err(format!("there is no record in {} (--data-dir)", data_dir.display()));
    }
    if folder.symlink_metadata().is_ok() {
        return Err(format!("{} is there already; a backup makes a folder of its own", folder.display()));
    }
    let _held = note(&settings, &folder)?;
    let part = beside(&folder, ".part");
    if part.is_dir() {
        // Of a backup that broke off.
        fs::remove_dir_all(&part).map_err(|error| named(&part, error))?;
    }
    let manifest = copy_all(&data_dir, &part)?;
    fs::rename(&part, &folder).map_err(|error| named(&folder, error))?;
    sync_parent(&folder)?;
    let bytes: u64 = manifest.files.iter().map(|entry| entry.bytes).sum();
    println!("{}: {} files, {} bytes", folder.display(), manifest.files.len(), bytes);
    Ok(())
}

/// Puts the backup on record before it is made: what it holds is beyond the reach of later erasures. Without a server the
/// directory is held meanwhile.
fn note(settings: &Settings, folder: &Path) -> Result<Option<DataDir>, String> {
    let data_dir = settings.data_dir();
    let what = json!({"folder": folder.display().to_string()});
    let server = Server::holding(&data_dir);
    if server.post("/v1/journal/access", json!({"deed": "backup", "what": what}))?.is_some() {
        return Ok(None);
    }
    let faults = |faults: Vec<crate::config::Fault>| {
        faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("\ntunegate: ")
    };
    let config = settings.settle(PathBuf::new()).map_err(faults)?;
    let held = DataDir::hold(&data_dir, "making a backup").map_err(|error| error.to_string())?;
    let store = app::open_store(&config).map_err(|error| error.to_string())?;
    let record = RecordConfig { retention: RetentionConfig::default(), ..config.record };
    let journal = Journal::open(store, &record, Arc::new(Metrics::new())).map_err(|error| error.to_string())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let access = Access::once(Moment::unix_ms(), "operator", Deed::Backup, what);
    let noted = runtime.map_err(|error| error.to_string())?.block_on(journal.note(access));
    noted.map_err(|error| error.to_string())?;
    Ok(Some(held))
}

/// The database first: the adapters that it names are there already and do not change.
fn copy_all(data_dir: &Path, part: &Path) -> Result<Manifest, String> {
    private_folder(part)?;
    let database = part.join(DATABASE);
    let named_there = store::back_up(&app::record_file(data_dir), &database).map_err(|error| error.to_string())?;
    let mut files = vec![entry(part, DATABASE.to_owned())?];
    private_folder(&part.join(VAULT))?;
    for version in named_there.in_force.iter().chain(&named_there.earlier) {
        let from = data_dir.join(VAULT).join(version.to_string());
        if !from.is_dir() && named_there.earlier.contains(version) {
            continue;
        }
        private_folder(&part.join(VAULT).join(version.to_string()))?;
        // A version may be removed meanwhile if nothing names it any more.
        let hint = |reason: String| format!("{reason}; if adapters change just now, try again");
        for file in files_of(&from).map_err(hint)? {
            let path = format!("{VAULT}/{version}/{file}");
            copy(&from.join(&file), &part.join(&path)).map_err(|error| hint(named(&from, error)))?;
            files.push(entry(part, path)?);
        }
        sync_folder(&part.join(VAULT).join(version.to_string()))?;
    }
    sync_folder(&part.join(VAULT))?;
    let secret = data_dir.join(SECRET);
    if secret.is_file() {
        copy(&secret, &part.join(SECRET)).map_err(|error| named(&secret, error))?;
        files.push(entry(part, SECRET.to_owned())?);
    }
    files.sort();
    let build = env!("CARGO_PKG_VERSION").to_owned();
    let manifest = Manifest { format: FORMAT, made_ms: Moment::unix_ms(), build, files };
    let text = serde_json::to_string_pretty(&manifest).map_err(|error| error.to_string())?;
    write_private(&part.join(MANIFEST), |file| file.write_all(text.as_bytes()))
        .map_err(|error| named(&part.join(MANIFEST), error))?;
    sync_folder(part)?;
    Ok(manifest)
}

/// Restores a backup and says what it has put where.
pub fn restore(args: RestoreArgs) -> Result<(), String> {
    let flags = Layer { data_dir: args.data_dir, ..Layer::default() };
    let settings = Settings::gather_here(args.config.as_deref(), flags);
    let (data_dir, folder) = (settings.data_dir(), args.folder);
    let manifest = read(&folder)?;
    let _held = DataDir::hold(&data_dir, "restoring a backup").map_err(|error| error.to_string())?;
    let interrupted = data_dir::is_restoring(&data_dir);
    if app::record_file(&data_dir).is_file() && !args.replace && !interrupted {
        return Err(format!("{} has a record; --replace moves it aside", data_dir.display()));
    }
    // On the same disk, so that putting it into its place is only a matter of names.
    let fresh = data_dir.join(".restored");
    if fresh.is_dir() {
        fs::remove_dir_all(&fresh).map_err(|error| named(&fresh, error))?;
    }
    copy_back(&folder, &fresh, &manifest)?;
    data_dir::begin_restoring(&data_dir).map_err(|error| named(&data_dir, error))?;
    let aside = data_dir.join(format!("before-{}", Moment::unix_ms()));
    for name in [DATABASE, BESIDE[0], BESIDE[1], SECRET, VAULT] {
        let (old, new) = (data_dir.join(name), fresh.join(name));
        if old.exists() {
            private_folder(&aside)?;
            fs::rename(&old, aside.join(name)).map_err(|error| named(&old, error))?;
        }
        if new.exists() {
            fs::rename(&new, &old).map_err(|error| named(&old, error))?;
        }
    }
    sync_folder(&data_dir)?;
    data_dir::end_restoring(&data_dir).map_err(|error| named(&data_dir, error))?;
    fs::remove_dir_all(&fresh).map_err(|error| named(&fresh, error))?;
    println!("{}: restored as of {} UTC", data_dir.display(), made(&manifest));
    if aside.is_dir() {
        println!("what was there before is in {}", aside.display());
    }
    Ok(())
}

fn made(manifest: &Manifest) -> String {
    Moment::from_unix(manifest.made_ms.div_euclid(1000)).format("%Y-%m-%d %H:%M:%S").unwrap_or_default()
}

/// The manifest, once it is known to be of a whole backup that this build can read.
fn read(folder: &Path) -> Result<Manifest, String> {
    let path = folder.join(MANIFEST);
    let text = fs::read_to_string(&path).map_err(|error| format!("{}: {error}; is it a backup?", path.display()))?;
    let manifest: Manifest = serde_json::from_str(&text).map_err(|error| named(&path, error))?;
    if manifest.format != FORMAT {
        return Err(format!("{} is of format {}; this build reads {FORMAT}", path.display(), manifest.format));
    }
    for entry in &manifest.files {
        let fine = |part: &str| !part.is_empty() && !part.starts_with('.') && !part.contains(['\\', '\0']);
        if !entry.path.split('/').all(fine) {
            return Err(format!("{}: '{}' is no path of a backup", path.display(), entry.path));
        }
    }
    if !manifest.files.iter().any(|entry| entry.path == DATABASE) {
        return Err(format!("{}: there is no database in it", path.display()));
    }
    Ok(manifest)
}

fn copy_back(folder: &Path, fresh: &Path, manifest: &Manifest) -> Result<(), String> {
    private_folder(fresh)?;
    private_folder(&fresh.join(VAULT))?;
    for expected in &manifest.files {
        let to = fresh.join(&expected.path);
        if let Some(parent) = to.parent() {
            private_folder(parent)?;
        }
        let from = folder.join(&expected.path);
        copy(&from, &to).map_err(|error| named(&from, error))?;
        if entry(fresh, expected.path.clone())? != *expected {
            return Err(format!("{} is not what was backed up: its digest is another", from.display()));
        }
        to.parent().map_or(Ok(()), sync_folder)?;
    }
    store::check(&fresh.join(DATABASE)).map_err(|error| error.to_string())?;
    sync_folder(fresh)
}

/// Size and digest of a file that has been copied, read back.
fn entry(root: &Path, path: String) -> Result<Entry, String> {
    let full = root.join(&path);
    let mut file = File::open(&full).map_err(|error| named(&full, error))?;
    let (mut hasher, mut bytes, mut buffer) = (Sha256::new(), 0, vec![0; 1 << 20]);
    loop {
        match file.read(&mut buffer).map_err(|error| named(&full, error))? {
            0 => break,
            count => {
                hasher.update(&buffer[..count]);
                bytes += count as u64;
            }
        }
    }
    Ok(Entry { path, bytes, sha256: Digest::from_bytes(hasher.finalize().into()) })
}

/// Names of the plain files in a folder, in order.
fn files_of(folder: &Path) -> Result<Vec<String>, String> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(|error| named(folder, error))? {
        let entry = entry.map_err(|error| named(folder, error))?;
        if entry.file_type().is_ok_and(|kind| kind.is_file()) {
            names.extend(entry.file_name().into_string().ok());
        }
    }
    names.sort();
    Ok(names)
}

fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let mut source = File::open(from)?;
    write_private(to, |file| io::copy(&mut source, file).map(drop))
}

/// A new file for its owner alone, synced.
fn write_private(path: &Path, write: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    write(&mut file)?;
    file.sync_all()
}

fn private_folder(path: &Path) -> Result<(), String> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|error| named(path, error))
}

fn sync_folder(path: &Path) -> Result<(), String> {
    File::open(path).and_then(|folder| folder.sync_all()).map_err(|error| named(path, error))
}

fn sync_parent(path: &Path) -> Result<(), String> {
    match path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        Some(parent) => sync_folder(parent),
        None => sync_folder(Path::new(".")),
    }
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}
