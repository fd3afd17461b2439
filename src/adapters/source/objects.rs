//! Adapters in S3-compatible stores and on web servers. An object is a prefix (or a path) with PEFT's files below it.
//!
//! A file is checked against `SHA256SUMS` beside it where there is one (`sha256sum adapter* > SHA256SUMS`), else against
//! what an S3 store gives as its MD5, else by its length and its own header.

use std::{collections::BTreeMap, sync::Arc};

use async_trait::async_trait;
use futures_util::{StreamExt, TryStreamExt};
use http_body_util::BodyExt;
use object_store::{
    ClientOptions, GetOptions, GetRange, ObjectMeta, ObjectStore, RetryConfig,
    aws::AmazonS3Builder,
    client::{
        HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpResponseBody, HttpService,
    },
    http::HttpBuilder,
    path::Path,
};

use super::{
    ObjectPath, SourceError,
    client::{Client, ClientError},
    remote::{Pieces, Proof, Reader, Remote, RemoteFile, hex},
    roles,
};
use crate::{
    adapters::folder::{CONFIG_FILE, MANIFEST_FILE, WEIGHTS_FILE},
    config::{S3Credentials, S3Place},
    terms::Digest,
};

/// Digests of an object's files, as `sha256sum` writes them.
const SUMS_FILE: &str = "SHA256SUMS";
const MAX_SUMS_BYTES: u64 = 64 << 10;

/// A store that is configured.
#[derive(Clone)]
pub struct Objects {
    name: String,
    store: Arc<dyn ObjectStore>,
    prefix: String,
}

/// Reads one object's files.
pub struct ObjectFiles(Objects);

impl Objects {
    /// # Errors
    /// If the place cannot be one.
    pub fn s3(
        name: &str,
        place: &S3Place,
        credentials: &S3Credentials,
        client: Client,
        desk: Option<(String, Client)>,
    ) -> Result<Self, SourceError> {
        let connector = Connector { client, desk };
        let mut builder = AmazonS3Builder::new()
            .with_bucket_name(&place.bucket)
            .with_region(&place.region)
            .with_virtual_hosted_style_request(place.virtual_host)
            .with_allow_http(true)
            .with_retry(NO_RETRIES)
            .with_client_options(ClientOptions::new())
            .with_http_connector(connector);
        if let Some(endpoint) = &place.endpoint {
            builder = builder.with_endpoint(s3_endpoint(endpoint, place));
        }
        let store =
            roles::signing(builder, credentials).build().map_err(|error| SourceError::Settings(error.to_string()))?;
        Ok(Self { name: name.to_owned(), store: Arc::new(store), prefix: place.prefix.clone() })
    }

    /// # Errors
    /// If the URL cannot be one.
    pub fn web(name: &str, url: &str, client: Client) -> Result<Self, SourceError> {
        let store = HttpBuilder::new()
            .with_url(url)
            .with_retry(NO_RETRIES)
            .with_client_options(ClientOptions::new().with_allow_http(true))
            .with_http_connector(Connector { client, desk: None })
            .build()
            .map_err(|error| SourceError::Settings(error.to_string()))?;
        Ok(Self { name: name.to_owned(), store: Arc::new(store), prefix: String::new() })
    }

    /// What stands under an object's name now.
    ///
    /// # Errors
    /// [`SourceError::NotThere`] where there is no adapter; others if the store cannot be asked.
    pub async fn look(&self, object: &ObjectPath) -> Result<Remote, SourceError> {
        let address = format!("{}:{object}", self.name);
        let mut files = Vec::new();
        for (name, needed) in [(CONFIG_FILE, true), (WEIGHTS_FILE, true), (MANIFEST_FILE, false)] {
            let at = self.at(object, name);
            match self.head(&at).await {
                Ok((meta, proof)) => {
                    let tag = meta.e_tag.or_else(|| Some(meta.last_modified.to_rfc3339()));
                    files.push(RemoteFile { name, at, size: meta.size, tag, proof });
                }
                Err(SourceError::NotThere(_)) if !needed => {}
                Err(SourceError::NotThere(_)) => {
                    return Err(SourceError::NotThere(format!("there is no {name} at {address}")));
                }
                Err(error) => return Err(error),
            }
        }
        for (name, digest) in self.sums(object).await? {
            if let Some(file) = files.iter_mut().find(|file| file.name == name) {
                file.proof = Proof::Sha256(digest);
            }
        }
        let described: String =
            files.iter().map(|file| format!("{} {} {:?} {:?}\n", file.name, file.size, file.tag, file.proof)).collect();
        let state = Some(Digest::of(described.as_bytes()).short());
        Ok(Remote { address, state, files, reader: Reader::Objects(ObjectFiles(self.clone())) })
    }

    fn at(&self, object: &ObjectPath, file: &str) -> String {
        let parts = [self.prefix.as_str(), object.as_str(), file];
        parts.iter().copied().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("/")
    }

    async fn head(&self, at: &str) -> Result<(ObjectMeta, Proof), SourceError> {
        let options = GetOptions { head: true, ..GetOptions::default() };
        let found = self.store.get_opts(&Path::from(at), options).await.map_err(|error| failed(&self.name, error))?;
        let opaque = found.extensions.get::<OpaqueTag>().is_some();
        let md5 = found.meta.e_tag.as_deref().filter(|_| !opaque).and_then(|tag| hex(tag.trim_matches('"')));
        let s3 = self.is_s3();
        Ok((found.meta, md5.filter(|_| s3).map_or(Proof::Length, Proof::Md5)))
    }

    /// A web server's tags are its own affair, even where they look like an MD5.
    fn is_s3(&self) -> bool {
        self.store.to_string().contains("AmazonS3")
    }

    async fn sums(&self, object: &ObjectPath) -> Result<BTreeMap<String, Digest>, SourceError> {
        let at = self.at(object, SUMS_FILE);
        let found = match self.store.get_opts(&Path::from(at), GetOptions::default()).await {
            Ok(found) => found,
            Err(error) => {
                return match failed(&self.name, error) {
                    SourceError::NotThere(_) => Ok(BTreeMap::new()),
                    error => Err(error),
                };
            }
        };
        let mut text = Vec::new();
        let mut pieces = found.into_stream();
        while let Some(piece) = pieces.try_next().await.map_err(|error| failed(&self.name, error))? {
            text.extend_from_slice(&piece);
            if text.len() as u64 > MAX_SUMS_BYTES {
                return Err(SourceError::TooLarge(format!("{SUMS_FILE} has more than {MAX_SUMS_BYTES} bytes")));
            }
        }
        sums_in(&String::from_utf8_lossy(&text))
    }
}

/// Lines of a digest and a name, as `sha256sum` writes them.
fn sums_in(text: &str) -> Result<BTreeMap<String, Digest>, SourceError> {
    let mut sums = BTreeMap::new();
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        let read = line.split_once(char::is_whitespace).and_then(|(digest, name)| {
            let name = name.trim_start().trim_start_matches('*');
            Some((name.trim_start_matches("./").to_owned(), Digest::parse(&digest.to_ascii_lowercase()).ok()?))
        });
        let (name, digest) = read.ok_or_else(|| {
            SourceError::Spoilt(format!(
                "{SUMS_FILE} has a line that is no digest and a name, as sha256sum writes them"
            ))
        })?;
        sums.insert(name, digest);
    }
    Ok(sums)
}

impl ObjectFiles {
    pub async fn pieces(&self, file: &RemoteFile, offset: u64) -> Result<Pieces, SourceError> {
        let Self(objects) = self;
        let range = (offset > 0).then_some(GetRange::Offset(offset));
        // Only a tag that the store gave as one can be asked for again.
        let if_match = file.tag.clone().filter(|tag| tag.contains('"'));
        let options = GetOptions { range, if_match, ..GetOptions::default() };
        let name = objects.name.clone();
        let found = objects.store.get_opts(&Path::from(file.at.as_str()), options).await;
        let found = found.map_err(|error| failed(&name, error))?;
        if found.meta.size != file.size || found.meta.e_tag.as_ref().is_some_and(|tag| Some(tag) != file.tag.as_ref()) {
            return Err(SourceError::Changed(format!("{} changed at '{name}' while it was fetched", file.name)));
        }
        Ok(found.into_stream().map_err(move |error| failed(&name, error)).boxed())
    }
}

/// Fetching goes on where it was cut by itself, within its own bounds.
const NO_RETRIES: RetryConfig = RetryConfig {
    backoff: object_store::BackoffConfig {
        init_backoff: std::time::Duration::ZERO,
        max_backoff: std::time::Duration::ZERO,
        base: 1.0,
    },
    max_retries: 0,
    retry_timeout: std::time::Duration::ZERO,
};

/// The host of a bucket that is a part of the host's name stands in the endpoint.
fn s3_endpoint(endpoint: &str, place: &S3Place) -> String {
    match endpoint.split_once("://") {
        Some((scheme, host)) if place.virtual_host => format!("{scheme}://{}.{host}", place.bucket),
        Some(_) | None => endpoint.to_owned(),
    }
}

/// The URL that a bucket is asked at.
pub fn s3_url(place: &S3Place) -> String {
    match &place.endpoint {
        Some(endpoint) => s3_endpoint(endpoint, place),
        None if place.virtual_host => format!("https://{}.s3.{}.amazonaws.com", place.bucket, place.region),
        None => format!("https://s3.{}.amazonaws.com", place.region),
    }
}

fn failed(name: &str, error: object_store::Error) -> SourceError {
    if let Some(client) = cause(&error) {
        return SourceError::of_client(name, client);
    }
    match &error {
        object_store::Error::NotFound { .. } => SourceError::NotThere(format!("'{name}' has no such object")),
        object_store::Error::PermissionDenied { .. } | object_store::Error::Unauthenticated { .. } => {
            SourceError::Denied(format!("'{name}' does not let this server read there"))
        }
        object_store::Error::Precondition { .. } => {
            SourceError::Changed(format!("an object changed at '{name}' while it was fetched"))
        }
        object_store::Error::NotSupported { .. } => {
            SourceError::Spoilt(format!("'{name}' does not answer requests for a range of bytes"))
        }
        other => SourceError::Unavailable(format!("'{name}': {}", first_line(&other.to_string()))),
    }
}

fn cause<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a ClientError> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(client) = error.downcast_ref::<ClientError>() {
            return Some(client);
        }
        next = error.source();
    }
    None
}

/// An error's text may go on with the whole answer of the server.
fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().chars().take(200).collect()
}

/// The tag of an object that is encrypted with a customer's or a managed key is not its MD5.
#[derive(Clone, Copy, Debug)]
struct OpaqueTag;

/// Gives every request to our own clients.
#[derive(Debug)]
struct Connector {
    client: Client,
    /// Where keys are fetched, and who may do that.
    desk: Option<(String, Client)>,
}

impl HttpConnector for Connector {
    fn connect(&self, _options: &ClientOptions) -> object_store::Result<HttpClient> {
        let desk = self.desk.clone().map(|(url, client)| (authority(&url).to_owned(), client));
        Ok(HttpClient::new(Service { client: self.client.clone(), desk }))
    }
}

#[derive(Debug)]
struct Service {
    client: Client,
    desk: Option<(String, Client)>,
}

impl Service {
    fn client_for(&self, uri: &http::Uri) -> &Client {
        match &self.desk {
            Some((desk, client)) if uri.authority().is_some_and(|authority| authority.as_str() == desk) => client,
            Some(_) | None => &self.client,
        }
    }
}

/// Host and port of a URL.
fn authority(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    rest.split('/').next().unwrap_or_default()
}

#[async_trait]
impl HttpService for Service {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let response = self.client_for(request.uri()).send(request).await.map_err(of_http)?;
        let (mut parts, body) = response.into_parts();
        if parts.status.is_redirection() {
            let told = parts.headers.get(http::header::LOCATION).and_then(|to| to.to_str().ok()).unwrap_or("elsewhere");
            let told = crate::adapters::faults::shown(told);
            return Err(of_http(ClientError::Forbidden(format!("a redirect to {told} is not followed"))));
        }
        let encryption = parts.headers.get("x-amz-server-side-encryption").map(http::HeaderValue::as_bytes);
        let own_key = parts.headers.contains_key("x-amz-server-side-encryption-customer-algorithm");
        if own_key || encryption.is_some_and(|kind| kind.starts_with(b"aws:kms")) {
            parts.extensions.insert(OpaqueTag);
        }
        Ok(HttpResponse::from_parts(parts, HttpResponseBody::new(body.map_err(of_http))))
    }
}

fn of_http(error: ClientError) -> HttpError {
    // `Unknown` is not tried again there; here it is decided by what the error is.
    HttpError::new(HttpErrorKind::Unknown, error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_read_as_sha256sum_writes_them() {
        let digest = Digest::of(b"x");
        let sums = sums_in(&format!("{digest}  adapter_config.json\n{digest} *./adapter.toml\n\n")).unwrap();
        assert_eq!(
            sums.into_iter().collect::<Vec<_>>(),
            [("adapter.toml".to_owned(), digest), ("adapter_config.json".to_owned(), digest),]
        );
        assert!(sums_in("adapter_config.json").is_err());
    }

    #[test]
    fn a_bucket_is_asked_at_its_own_host() {
        let mut place = S3Place {
            bucket: "adapters".into(),
            prefix: String::new(),
            region: "eu-central-1".into(),
            endpoint: None,
            virtual_host: true,
            private: false,
            unsigned: false,
        };
        assert_eq!(s3_url(&place), "https://adapters.s3.eu-central-1.amazonaws.com");
        place.endpoint = Some("http://minio.store.svc:9000".into());
        place.virtual_host = false;
        assert_eq!(s3_url(&place), "http://minio.store.svc:9000");
    }
}
