//! Adapters on the Hugging Face hub. A revision is resolved to its commit first; everything is read at that commit.
//!
//! `hf-hub`'s own client has no limits of time and size, follows every redirect and compares no digest, so that only its
//! addresses are used here.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use hf_hub::{Repo, RepoType};
use http::{Request, Response, header};
use http_body_util::{BodyExt, Empty};
use serde::Deserialize;

use super::{
    ObjectPath, SourceError,
    client::{Arriving, Client},
    remote::{Pieces, Proof, Reader, Remote, RemoteFile, hex},
};
use crate::{
    adapters::folder::{CONFIG_FILE, MANIFEST_FILE, WEIGHTS_FILE},
    config::HubConfig,
    terms::{AdapterName, Digest},
};

/// The list of a repository's files may be this long.
const MAX_LIST_BYTES: usize = 8 << 20;
/// Large files stand on other hosts: one redirect, two where the repository was renamed.
const MAX_REDIRECTS: usize = 3;

/// An owner of repositories, or one repository, on a hub.
#[derive(Clone)]
pub struct Hub(Arc<HubPlace>);

struct HubPlace {
    name: String,
    owner: String,
    repository: Option<String>,
    config: HubConfig,
    client: Client,
}

/// Reads one commit's files.
pub struct HubFiles(Hub);

/// What the hub tells of a revision.
#[derive(Deserialize)]
struct RevisionAnswer {
    sha: String,
    siblings: Vec<FileAnswer>,
}

#[derive(Deserialize)]
struct FileAnswer {
    rfilename: String,
    size: Option<u64>,
    #[serde(rename = "blobId")]
    blob: Option<String>,
    lfs: Option<LargeFileAnswer>,
}

/// A file that git keeps by reference.
#[derive(Deserialize)]
struct LargeFileAnswer {
    sha256: String,
    size: u64,
}

/// An object of a hub: a repository, perhaps a folder in it, and perhaps a revision.
#[derive(Clone, Debug, PartialEq, Eq)]
struct HubObject {
    repository: String,
    folder: String,
    revision: String,
}

impl Hub {
    pub fn new(name: &str, owner: &str, repository: Option<&str>, config: &HubConfig, client: Client) -> Self {
        Self(Arc::new(HubPlace {
            name: name.to_owned(),
            owner: owner.to_owned(),
            repository: repository.map(str::to_owned),
            config: config.clone(),
            client,
        }))
    }

    pub fn owner(&self) -> &str {
        &self.0.owner
    }

    /// `owner/repository[/folder][@revision]` as an object of this source, where it is one.
    pub fn object_of(&self, text: &str) -> Option<String> {
        let rest = text.strip_prefix(self.owner())?.strip_prefix('/')?;
        let Some(repository) = &self.0.repository else { return Some(rest.to_owned()) };
        match rest.strip_prefix(repository.as_str())? {
            "" => Some(".".to_owned()),
            revision if revision.starts_with('@') => Some(format!(".{revision}")),
            below => below.strip_prefix('/').map(str::to_owned),
        }
    }

    /// What an object is at this moment. A branch or tag may be another commit the next time.
    ///
    /// # Errors
    /// [`SourceError::NotThere`] if there is no such repository, revision or adapter; others if the hub cannot be asked.
    pub async fn look(&self, object: &ObjectPath) -> Result<Remote, SourceError> {
        let place = &self.0;
        let object = self.object(object)?;
        let id = format!("{}/{}", place.owner, object.repository);
        let repo = Repo::with_revision(id.clone(), RepoType::Model, object.revision.clone());
        let url = format!("{}/api/{}?blobs=true", place.config.endpoint, repo.api_url());
        let answer = self.get(&url, None).await?;
        let body = http_body_util::Limited::new(answer.into_body(), MAX_LIST_BYTES).collect().await;
        let body = body.map_err(|error| SourceError::Unavailable(format!("'{}': {error}", place.name)))?.to_bytes();
        let answer: RevisionAnswer = serde_json::from_slice(&body)
            .map_err(|error| SourceError::Spoilt(format!("'{}' answers no list of files: {error}", place.name)))?;
        let commit = hex::<20>(&answer.sha)
            .ok_or_else(|| SourceError::Spoilt(format!("'{}' names no commit for {id}", place.name)))?;
        let commit: String = commit.iter().map(|byte| format!("{byte:02x}")).collect();
        let folder = if object.folder.is_empty() { String::new() } else { format!("{}/", object.folder) };
        let address = format!("{}:{}@{commit}", place.name, object.path(place.repository.is_some()));
        let mut files = Vec::new();
        for (name, needed) in [(CONFIG_FILE, true), (WEIGHTS_FILE, true), (MANIFEST_FILE, false)] {
            let path = format!("{folder}{name}");
            match answer.siblings.iter().find(|file| file.rfilename == path) {
                Some(found) => files.push(RemoteFile {
                    name,
                    at: format!("{}/{id}/resolve/{commit}/{path}", place.config.endpoint),
                    ..found.described(&place.name)?
                }),
                None if needed => return Err(SourceError::NotThere(format!("there is no {name} at {address}"))),
                None => {}
            }
        }
        Ok(Remote { address, state: None, files, reader: Reader::Hub(HubFiles(self.clone())) })
    }

    /// `repository[/folder][@revision]`, or `folder[@revision]` where the source is one repository; that one's own root
    /// is `.`.
    fn object(&self, object: &ObjectPath) -> Result<HubObject, SourceError> {
        let revision = object.revision().unwrap_or("main").to_owned();
        let path = object.path();
        let (repository, folder) = match &self.0.repository {
            Some(repository) if path == "." => (repository.as_str(), ""),
            Some(repository) => (repository.as_str(), path),
            None => path.split_once('/').unwrap_or((path, "")),
        };
        if AdapterName::parse(repository).is_err() {
            return Err(SourceError::Unnamed(format!("'{object}' names no repository")));
        }
        Ok(HubObject { repository: repository.to_owned(), folder: folder.to_owned(), revision })
    }

    /// One request and the redirects that it leads to. What proves who asks goes to the hub itself alone.
    async fn get(&self, url: &str, offset: Option<u64>) -> Result<Response<Arriving>, SourceError> {
        let place = &self.0;
        let mut url = url.to_owned();
        for _ in 0..=MAX_REDIRECTS {
            let mut request = Request::get(&url).header(header::ACCEPT_ENCODING, "identity");
            if let Some(offset) = offset {
                request = request.header(header::RANGE, format!("bytes={offset}-"));
            }
            if let Some(token) = place.config.token.as_ref().filter(|_| self.is_own(&url)) {
                request = request.header(header::AUTHORIZATION, format!("Bearer {}", token.0));
            }
            let request = request
                .body(Empty::<Bytes>::new())
                .map_err(|_| SourceError::Spoilt(format!("'{}' leads to what is no URL", place.name)))?;
            let answer = place.client.send(request).await;
            let answer = answer.map_err(|error| SourceError::of_client(&place.name, &error))?;
            let status = answer.status();
            if status.is_redirection() {
                url = self.next(&url, &answer)?;
                continue;
            }
            return match status.as_u16() {
                200 | 206 => Ok(answer),
                401 | 403 => Err(SourceError::Denied(format!(
                    "'{}' does not let this server read there (--hf-token)",
                    place.name
                ))),
                404 => Err(SourceError::NotThere(format!("'{}' has no such repository or revision", place.name))),
                code => Err(SourceError::Unavailable(format!("'{}' answers {code}", place.name))),
            };
        }
        Err(SourceError::Denied(format!("'{}' leads from one address to the next", place.name)))
    }

    /// Whether a URL is the hub's own: the same scheme, host and port.
    fn is_own(&self, url: &str) -> bool {
        let endpoint = &self.0.config.endpoint;
        let authority = |url: &str| {
            let uri: Option<http::Uri> = url.parse().ok();
            uri.and_then(|uri| Some((uri.scheme_str()?.to_owned(), uri.authority()?.as_str().to_owned())))
        };
        authority(url).is_some_and(|own| Some(own) == authority(endpoint))
    }

    fn next(&self, url: &str, answer: &Response<Arriving>) -> Result<String, SourceError> {
        let to = answer.headers().get(header::LOCATION).and_then(|to| to.to_str().ok());
        let to = to.ok_or_else(|| SourceError::Spoilt(format!("'{}' redirects to nowhere", self.0.name)))?;
        if to.contains("://") {
            return Ok(to.to_owned());
        }
        // A path on the same host.
        let uri: Option<http::Uri> = url.parse().ok();
        match uri.as_ref().and_then(|uri| Some((uri.scheme_str()?, uri.authority()?))) {
            Some((scheme, authority)) if to.starts_with('/') && !to.starts_with("//") => {
                Ok(format!("{scheme}://{authority}{to}"))
            }
            Some(_) | None => Err(SourceError::Spoilt(format!("'{}' redirects to what is no URL", self.0.name))),
        }
    }
}

impl HubObject {
    fn path(&self, one_repository: bool) -> String {
        match (one_repository, self.folder.as_str()) {
            (true, "") => ".".to_owned(),
            (true, folder) => folder.to_owned(),
            (false, "") => self.repository.clone(),
            (false, folder) => format!("{}/{folder}", self.repository),
        }
    }
}

impl FileAnswer {
    /// Size and digest, as the hub says; name and place are the caller's.
    fn described(&self, source: &str) -> Result<RemoteFile, SourceError> {
        let untold = || SourceError::Spoilt(format!("'{source}' tells no size and digest of {}", self.rfilename));
        let (size, proof) = match (&self.lfs, &self.blob) {
            (Some(large), _) => {
                let digest = Digest::parse(&large.sha256).map_err(|_| untold())?;
                (large.size, Proof::Sha256(digest))
            }
            (None, Some(blob)) => (self.size.ok_or_else(untold)?, Proof::GitBlob(hex(blob).ok_or_else(untold)?)),
            (None, None) => return Err(untold()),
        };
        Ok(RemoteFile { name: "", at: String::new(), size, tag: None, proof })
    }
}

impl HubFiles {
    pub async fn pieces(&self, file: &RemoteFile, offset: u64) -> Result<Pieces, SourceError> {
        let Self(hub) = self;
        let answer = hub.get(&file.at, (offset > 0).then_some(offset)).await?;
        let ranged = answer.status().as_u16() == 206;
        if offset > 0 && !ranged {
            return Err(SourceError::Spoilt(format!("'{}' does not answer requests for a range of bytes", hub.0.name)));
        }
        if let Some(range) = answer.headers().get(header::CONTENT_RANGE).filter(|_| ranged) {
            let expected = format!("bytes {offset}-{}/{}", file.size.saturating_sub(1), file.size);
            if range.as_bytes() != expected.as_bytes() {
                return Err(SourceError::Spoilt(format!("'{}' answers another range than was asked for", hub.0.name)));
            }
        }
        let name = hub.0.name.clone();
        let pieces = stream::try_unfold(answer.into_body(), move |mut body| {
            let name = name.clone();
            async move {
                match body.frame().await {
                    None => Ok(None),
                    Some(Ok(frame)) => Ok(Some((frame.into_data().unwrap_or_default(), body))),
                    Some(Err(error)) => Err(SourceError::of_client(&name, &error)),
                }
            }
        });
        Ok(pieces.into_stream().boxed())
    }
}
