//! Where adapters come from. A source finds adapters, fetches them and reports changes; it gives no names and reads no
//! weights.
//!
//! What a request or a file says is a path under a configured folder or an object of a configured source, never an
//! address of its own: [`Sources::place`] is where that is decided.

mod client;
pub mod directory;
mod fetch;
mod hub;
mod objects;
mod remote;
mod roles;
mod roots;
mod watch;
mod whole;

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
};

use client::{Client, ClientError, Reach};
use fetch::{Fetched, Fetcher};
use hub::Hub;
use objects::Objects;
pub use roots::{Roots, RootsError};
pub use watch::{Seen, Settled, Watch, WatchSettings};
pub use whole::Stamp;

use super::{
    AdapterError, AdapterLimits, ManagedBy, Refusal, RefusalCode, SourceFolder, faults::shown, folder::AdapterFiles,
};
use crate::{
    config::{AdapterConfig, S3Credentials, SourceConfig, SourcePlace},
    terms::AdapterName,
};

/// A folder that should be an adapter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    pub name: AdapterName,
    /// Links in the folder may not lead out of here.
    pub root: PathBuf,
    pub path: PathBuf,
    /// Whether a flag named it, or its folder did.
    pub managed_by: ManagedBy,
}

/// What sources give: folders with their names, and those whose names cannot be used.
#[derive(Debug, Default)]
pub struct Findings {
    pub found: Vec<Found>,
    pub refused: Vec<(String, Refusal)>,
}

impl Findings {
    fn extend(&mut self, more: Self) {
        self.found.extend(more.found);
        self.refused.extend(more.refused);
    }
}

/// Asks every configured source. A name given with a path comes before the same name in a folder.
///
/// # Errors
/// [`AdapterError::Unreadable`] for a folder of adapters that is not there.
pub fn configured(config: &AdapterConfig) -> Result<Findings, AdapterError> {
    let mut findings = Findings::default();
    for (name, path) in &config.modules {
        match AdapterName::parse(name) {
            Ok(name) => {
                let source = SourceFolder::Named { name, path: path.clone() };
                findings.extend(directory::find(&source).map_err(|error| not_listed(path, &error))?);
            }
            Err(error) => {
                let name = shown(name);
                let refusal = Refusal { code: RefusalCode::Name, subject: name.clone(), reason: error.to_string() };
                findings.refused.push((name, refusal));
            }
        }
    }
    for root in &config.dirs {
        let source = SourceFolder::Root(root.clone());
        findings.extend(directory::find(&source).map_err(|error| not_listed(root, &error))?);
    }
    Ok(findings)
}

/// For the operator who named the folder; it is not shown to clients.
fn not_listed(path: &Path, error: &std::io::Error) -> AdapterError {
    AdapterError::Unreadable { name: path.display().to_string(), reason: error.to_string() }
}

/// Why a source gives no adapter. The words are fit for whoever asked; they hold no path and no secret.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum SourceError {
    /// What was said is no path under a configured folder and no object of a configured source.
    #[error("{0}")]
    Unnamed(String),
    /// What was said is a path, and no folder below a configured one.
    #[error(transparent)]
    Path(#[from] RootsError),
    /// There is no adapter there.
    #[error("{0}")]
    NotThere(String),
    /// The source does not let us, or it leads where this server does not go.
    #[error("{0}")]
    Denied(String),
    #[error("{0}")]
    TooLarge(String),
    /// What came is not whole, or not what the source says it is.
    #[error("{0}")]
    Spoilt(String),
    /// It changed while it was read; the next try sees it as it is now.
    #[error("{0}")]
    Changed(String),
    /// It cannot be had now.
    #[error("{0}")]
    Unavailable(String),
    /// The source is set up wrongly.
    #[error("{0}")]
    Settings(String),
    /// The folder holds no adapter that can be read.
    #[error("{}", .0.first().map_or_else(|| "no reason".to_owned(), ToString::to_string))]
    Refused(Vec<Refusal>),
}

impl SourceError {
    /// Whether going on with the same fetch may help.
    fn may_pass(&self) -> bool {
        match self {
            Self::Unavailable(_) => true,
            Self::Unnamed(_)
            | Self::Path(_)
            | Self::NotThere(_)
            | Self::Denied(_)
            | Self::TooLarge(_)
            | Self::Spoilt(_)
            | Self::Changed(_)
            | Self::Settings(_)
            | Self::Refused(_) => false,
        }
    }

    fn of_client(source: &str, error: &ClientError) -> Self {
        match error {
            ClientError::Forbidden(_) => Self::Denied(format!("'{source}': {error}")),
            ClientError::Stalled(_) | ClientError::Broken(_) => Self::Unavailable(format!("'{source}': {error}")),
        }
    }
}

/// An object's name within a source: segments joined by `/`, and perhaps `@revision`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectPath(String);

impl ObjectPath {
    const MAX_BYTES: usize = 512;

    fn parse(text: &str) -> Result<Self, SourceError> {
        let (path, revision) = text.split_once('@').map_or((text, None), |(path, revision)| (path, Some(revision)));
        let fine = |segment: &str| {
            !segment.is_empty()
                && !segment.starts_with('.')
                && segment.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '='))
        };
        let path_ok = path == "." || path.split('/').all(fine);
        if text.len() <= Self::MAX_BYTES && path_ok && revision.is_none_or(|revision| revision.split('/').all(fine)) {
            return Ok(Self(text.to_owned()));
        }
        Err(SourceError::Unnamed(format!(
            "'{}' is no object of a source: segments of letters, digits, '.', '_', '-' and '=' joined by '/', and on a hub perhaps @revision",
            shown(text)
        )))
    }

    fn as_str(&self) -> &str {
        &self.0
    }

    fn path(&self) -> &str {
        self.0.split_once('@').map_or(&self.0, |(path, _)| path)
    }

    fn revision(&self) -> Option<&str> {
        self.0.split_once('@').map(|(_, revision)| revision)
    }
}

impl fmt::Display for ObjectPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a text names: a place where an adapter is, or may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A folder of this machine. Links may not lead out of `root`.
    Folder { root: PathBuf, path: PathBuf },
    /// An object of a configured source.
    Object { source: String, object: ObjectPath },
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder { path, .. } => write!(f, "{}", path.display()),
            Self::Object { source, object } => write!(f, "{source}:{object}"),
        }
    }
}

/// An adapter's files as they were read, and where from.
pub struct Delivery {
    pub files: AdapterFiles,
    /// Where they came from and in which state it was then: see [`Sources::stands`].
    pub origin: String,
}

/// Every configured source.
pub struct Sources {
    roots: Roots,
    /// By name.
    named: BTreeMap<String, Source>,
    fetcher: Fetcher,
    limits: AdapterLimits,
}

enum Source {
    Folder(Roots),
    Objects { objects: Objects, url: String },
    Hub(Hub),
}

impl Sources {
    /// `folder` is where fetched files are kept until they are read.
    ///
    /// # Errors
    /// [`SourceError::Settings`] for what cannot be a source, or a folder that cannot be written.
    pub fn open(config: &AdapterConfig, folder: PathBuf) -> Result<Self, SourceError> {
        let fetcher = Fetcher::new(folder, config.fetch, config.max_file_bytes)
            .map_err(|error| SourceError::Settings(format!("the folder for what is fetched: {error}")))?;
        let tls = client::trust(config.ca_file.as_deref()).map_err(SourceError::Settings)?;
        let client = |reach| Client::new(reach, config.fetch.stall, tls.clone());
        let mut named = BTreeMap::new();
        for SourceConfig { name, place } in &config.sources {
            let source = match place {
                SourcePlace::Folder(path) => Source::Folder(Roots::new(vec![path.clone()])),
                SourcePlace::S3(place) => {
                    let unsigned = S3Credentials::Unsigned;
                    let credentials = if place.unsigned { &unsigned } else { &config.s3 };
                    let desk = roles::desk(credentials, &place.region).map(|desk| {
                        let reach = Reach { credentials: true, ..reach(&desk.url, desk.private, false) };
                        (desk.url, client(reach))
                    });
                    let reach = reach(&objects::s3_url(place), place.private, false);
                    let prefix = if place.prefix.is_empty() { String::new() } else { format!("/{}", place.prefix) };
                    Source::Objects {
                        objects: Objects::s3(name, place, credentials, client(reach), desk)?,
                        url: format!("s3://{}{prefix}", place.bucket),
                    }
                }
                SourcePlace::Web { url, private } => {
                    let reach = reach(url, *private, false);
                    Source::Objects { objects: Objects::web(name, url, client(reach))?, url: url.clone() }
                }
                SourcePlace::Hub { owner, repository } => {
                    // A hub of one's own may be anywhere: its address is a setting of this server.
                    let reach = reach(&config.hub.endpoint, true, true);
                    Source::Hub(Hub::new(name, owner, repository.as_deref(), &config.hub, client(reach)))
                }
            };
            named.insert(name.clone(), source);
        }
        Ok(Self { roots: Roots::new(config.roots.clone()), named, fetcher, limits: AdapterLimits::from(config) })
    }

    /// What `text` names. It may be `NAME:object`; a path below a configured folder, absolute or relative to it; a URL that
    /// lies under a configured one; or a hub's `owner/repository`, where that owner is configured.
    ///
    /// # Errors
    /// [`SourceError::Unnamed`], or [`SourceError::Path`] for what is a path. No source is asked: a place may be empty.
    pub fn place(&self, text: &str) -> Result<Place, SourceError> {
        if text.contains("://") {
            return self.place_of_url(text);
        }
        if let Some((name, object)) = text.split_once(':') {
            let Some((name, source)) = self.named.get_key_value(name) else {
                return Err(SourceError::Unnamed(format!("there is no source '{}' (--adapter-source)", shown(name))));
            };
            let object = ObjectPath::parse(object)?;
            return match source {
                Source::Folder(root) => folder(root, object.as_str()),
                Source::Objects { .. } | Source::Hub(_) => Ok(Place::Object { source: name.clone(), object }),
            };
        }
        match folder(&self.roots, text) {
            Ok(place) => Ok(place),
            // What is no folder here and looks like a repository may be one on a hub.
            Err(error) => match text.split_once('/').and_then(|(owner, _)| self.on_hub(owner, text)) {
                Some((source, object)) => Ok(Place::Object { source, object }),
                None => Err(error),
            },
        }
    }

    /// `owner/repository` as callers of vLLM give it, where exactly that owner is configured.
    fn on_hub(&self, owner: &str, text: &str) -> Option<(String, ObjectPath)> {
        self.named.iter().find_map(|(name, source)| match source {
            Source::Hub(hub) if hub.owner() == owner => {
                Some((name.clone(), ObjectPath::parse(&hub.object_of(text)?).ok()?))
            }
            Source::Hub(_) | Source::Folder(_) | Source::Objects { .. } => None,
        })
    }

    fn place_of_url(&self, text: &str) -> Result<Place, SourceError> {
        let found = self.named.iter().find_map(|(name, source)| {
            let object = match source {
                Source::Objects { url, .. } => text.strip_prefix(url.as_str())?.strip_prefix('/')?.to_owned(),
                Source::Hub(hub) => {
                    let rest = text.strip_prefix("hf://")?;
                    rest.split_once('/').filter(|(owner, _)| *owner == hub.owner())?;
                    hub.object_of(rest)?
                }
                Source::Folder(_) => return None,
            };
            Some(Place::Object { source: name.clone(), object: ObjectPath::parse(object.trim_end_matches('/')).ok()? })
        });
        found.ok_or_else(|| {
            SourceError::Unnamed(format!("'{}' does not lie under a configured source (--adapter-source)", shown(text)))
        })
    }

    /// What stands at a place now, in one text that is another when the content is: a path and what the system says of its
    /// files, `NAME:object` and what a store says of them, or the commit on a hub. Nothing is fetched.
    ///
    /// # Errors
    /// [`SourceError`].
    pub async fn stands(&self, place: &Place) -> Result<String, SourceError> {
        match place {
            Place::Folder { path, .. } => stamped(path).map(|(_, origin)| origin),
            Place::Object { source, object } => Ok(self.look(source, object).await?.origin()),
        }
    }

    /// Reads an adapter, fetching it first where it is not on this machine.
    ///
    /// # Errors
    /// [`SourceError`].
    pub async fn open_place(&self, place: &Place) -> Result<Delivery, SourceError> {
        match place {
            Place::Folder { root, path } => self.read(root.clone(), path.clone(), None).await,
            Place::Object { source, object } => {
                let remote = self.look(source, object).await?;
                let fetched = self.fetcher.fetch(&remote).await?;
                let mut delivery =
                    self.read(fetched.path().to_owned(), fetched.path().to_owned(), Some(fetched)).await?;
                delivery.origin = remote.origin();
                Ok(delivery)
            }
        }
    }

    /// The first source that has an adapter under this name, folders first, then the others in order of their names.
    ///
    /// # Errors
    /// [`SourceError::NotThere`] if none has it; what went wrong, if one that might have it could not be asked.
    pub async fn find(&self, name: &AdapterName) -> Result<Place, SourceError> {
        let mut failed = None;
        let others = self.named.keys().map(|source| format!("{source}:{name}"));
        for text in std::iter::once(name.to_string()).chain(others) {
            let there = match self.place(&text) {
                Ok(place) => self.stands(&place).await.map(|_| place),
                Err(error) => Err(error),
            };
            match there {
                Ok(place) => return Ok(place),
                Err(SourceError::NotThere(_) | SourceError::Unnamed(_) | SourceError::Path(_)) => {}
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        Err(failed.unwrap_or_else(|| SourceError::NotThere(format!("no source has an adapter '{name}'"))))
    }

    async fn look(&self, source: &str, object: &ObjectPath) -> Result<remote::Remote, SourceError> {
        let looking = async {
            match self.named.get(source) {
                Some(Source::Objects { objects, .. }) => {
                    if object.revision().is_some() {
                        return Err(SourceError::Unnamed(format!("'{source}' is no hub: it has no revisions")));
                    }
                    objects.look(object).await
                }
                Some(Source::Hub(hub)) => hub.look(object).await,
                Some(Source::Folder(_)) | None => Err(SourceError::Unnamed(format!("there is no source '{source}'"))),
            }
        };
        tokio::time::timeout(self.fetcher.timeout(), looking)
            .await
            .unwrap_or_else(|_| Err(SourceError::Unavailable(format!("'{source}' does not answer"))))
    }

    /// Reads on a thread that may wait. What is read is of one moment, or refused as changing.
    async fn read(&self, root: PathBuf, path: PathBuf, fetched: Option<Fetched>) -> Result<Delivery, SourceError> {
        let limit = self.limits.max_file_bytes;
        let reading = tokio::task::spawn_blocking(move || {
            let delivery = read_folder(&root, &path, limit);
            drop(fetched);
            delivery
        });
        reading.await.map_err(|error| SourceError::Unavailable(error.to_string()))?
    }
}

/// Reads a folder of this machine; its stamp is the same before and after.
///
/// # Errors
/// [`SourceError::NotThere`], [`SourceError::Spoilt`] while it is not whole, [`SourceError::Changed`], or
/// [`SourceError::Refused`].
pub fn read_folder(root: &Path, path: &Path, max_weight_bytes: u64) -> Result<Delivery, SourceError> {
    let (before, origin) = stamped(path)?;
    if let Some(missing) = whole::what_is_missing(path) {
        return Err(SourceError::Spoilt(format!("the folder is not whole yet: {missing}")));
    }
    let files = AdapterFiles::read(root, path, max_weight_bytes).map_err(SourceError::Refused)?;
    match Stamp::of(path) {
        Ok(after) if after == before => Ok(Delivery { files, origin }),
        Ok(_) | Err(_) => Err(SourceError::Changed("the folder changed while it was read".to_owned())),
    }
}

fn stamped(path: &Path) -> Result<(Stamp, String), SourceError> {
    let unreadable = |error: std::io::Error| SourceError::Unavailable(format!("the folder: {}", error.kind()));
    let stamp = Stamp::of(path).map_err(unreadable)?;
    if !stamp.is_adapter() {
        return Err(SourceError::NotThere("there is no adapter in that folder".to_owned()));
    }
    let origin = format!("{}#{}", path.display(), stamp.state());
    Ok((stamp, origin))
}

fn folder(roots: &Roots, text: &str) -> Result<Place, SourceError> {
    let (root, path) = roots.resolve(text)?;
    Ok(Place::Folder { root, path })
}

/// What may be connected to for the sake of a URL that the settings have checked.
fn reach(url: &str, private: bool, others: bool) -> Reach {
    let uri: Option<http::Uri> = url.parse().ok();
    let host = uri.and_then(|uri| uri.host().map(str::to_owned)).unwrap_or_default();
    Reach { host, plain: url.starts_with("http://"), private, others, credentials: false }
}

#[cfg(test)]
mod tests;
