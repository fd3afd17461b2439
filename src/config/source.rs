//! Places that adapters are fetched from, as the settings name them: `NAME=PLACE`, where the place is a folder,
//! `s3://bucket/prefix`, `https://host/prefix` or `hf://owner[/repository]`. What a place needs beyond its address stands
//! behind a `?`. A request only ever names an object of a place, never an address.

use std::{
    fmt,
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::terms::AdapterName;

/// A place that adapters are fetched from, and the name that requests and files use for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceConfig {
    pub name: String,
    pub place: SourcePlace,
}

/// What kind of place it is, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourcePlace {
    /// A folder of this machine; each object is a folder below it.
    Folder(PathBuf),
    S3(S3Place),
    /// A web server that answers range requests; each object is a path below this URL, which ends without `/`.
    Web {
        url: String,
        private: bool,
    },
    /// A model hub. With a repository an object is a folder in it, without one it is `repository[/folder]`.
    Hub {
        owner: String,
        repository: Option<String>,
    },
}

/// A bucket of an S3-compatible store, and the prefix that objects stand under (without `/` at its ends; it may be empty).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct S3Place {
    pub bucket: String,
    pub prefix: String,
    pub region: String,
    /// The store's URL; `None` is AWS in that region.
    pub endpoint: Option<String>,
    /// The bucket is a part of the host's name instead of the path's.
    pub virtual_host: bool,
    /// The host may resolve to a private address.
    pub private: bool,
    /// Requests are not signed, whatever credentials there are.
    pub unsigned: bool,
}

/// A word that no log, error or page shows.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(not shown)")
    }
}

/// The model hub, as for base models.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubConfig {
    /// Without `/` at its end.
    pub endpoint: String,
    pub token: Option<Secret>,
}

impl Default for HubConfig {
    fn default() -> Self {
        Self { endpoint: "https://huggingface.co".to_owned(), token: None }
    }
}

/// Where a bucket is taken to be if nothing says.
pub const DEFAULT_REGION: &str = "us-east-1";

/// How long fetching may take, and how much of it may happen at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FetchConfig {
    /// One adapter, from the first request to its last byte.
    pub timeout: Duration,
    /// A connection that gives nothing for this long has stalled, and is opened again.
    pub stall: Duration,
    /// Adapters that are fetched at the same time.
    pub at_once: usize,
}

impl Default for FetchConfig {
    fn default() -> Self {
        Self { timeout: Duration::from_secs(600), stall: Duration::from_secs(20), at_once: 4 }
    }
}

/// How the folders and the file of desired adapters are followed while the server runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FollowConfig {
    /// Which adapters there shall be: a TOML, YAML or JSON file.
    pub desired: Option<PathBuf>,
    /// How often folders, file and sources are looked at when nothing tells of a change; zero follows nothing.
    pub interval: Duration,
    /// A folder has to stay the same for this long before it is read.
    pub settle: Duration,
    /// A name that is not known is looked for in the sources when it is first asked for.
    pub on_first_use: bool,
}

impl Default for FollowConfig {
    fn default() -> Self {
        Self { desired: None, interval: Duration::from_secs(30), settle: Duration::from_secs(1), on_first_use: false }
    }
}

/// Reads `NAME=PLACE`. `region` is where S3 buckets are that do not say.
///
/// # Errors
/// What is wrong with it, in words.
pub fn parse(given: &str, region: &str) -> Result<SourceConfig, String> {
    let (name, place) = given.split_once('=').ok_or("it has to be NAME=PLACE")?;
    let name_ok = name.starts_with(|c: char| c.is_ascii_alphabetic())
        && name.len() <= 64
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-'));
    if !name_ok || matches!(name, "hf" | "s3" | "http" | "https" | "file") {
        return Err(format!(
            "'{name}' is no name for a source: a letter, then letters, digits, '_' and '-', and not the name of a kind of URL"
        ));
    }
    Ok(SourceConfig { name: name.to_owned(), place: place_of(place, region)? })
}

fn place_of(place: &str, region: &str) -> Result<SourcePlace, String> {
    let Some((scheme, rest)) = place.split_once("://") else {
        return match Path::new(place) {
            folder if folder.is_dir() => Ok(SourcePlace::Folder(folder.to_owned())),
            folder => Err(format!("there is no folder '{}'", folder.display())),
        };
    };
    let (address, query) = rest.split_once('?').unwrap_or((rest, ""));
    let address = address.trim_end_matches('/');
    let mut options = Options::read(query)?;
    let place = match scheme {
        "s3" => {
            let (bucket, prefix) = address.split_once('/').unwrap_or((address, ""));
            let bucket_ok = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
            if !(3..=63).contains(&bucket.len()) || !bucket.chars().all(bucket_ok) {
                return Err(format!("'{bucket}' is no name of a bucket"));
            }
            let endpoint = options.take("endpoint").map(|url| web_address(&url, true)).transpose()?;
            SourcePlace::S3(S3Place {
                bucket: bucket.to_owned(),
                prefix: path_below(prefix)?,
                region: options.take("region").unwrap_or_else(|| region.to_owned()),
                virtual_host: options.switch("virtual-host")?.unwrap_or(endpoint.is_none()),
                endpoint,
                private: options.switch("private")?.unwrap_or(false),
                unsigned: options.switch("unsigned")?.unwrap_or(false),
            })
        }
        "https" | "http" => SourcePlace::Web {
            url: web_address(&format!("{scheme}://{address}"), false)?,
            private: options.switch("private")?.unwrap_or(false),
        },
        "hf" => {
            let mut parts = address.split('/');
            let owner = parts.next().unwrap_or_default();
            let repository = parts.next();
            let fine = |part: &str| AdapterName::parse(part).is_ok() && !part.contains('/');
            if parts.next().is_some() || !fine(owner) || !repository.is_none_or(fine) {
                return Err("it has to be hf://OWNER or hf://OWNER/REPOSITORY".to_owned());
            }
            SourcePlace::Hub { owner: owner.to_owned(), repository: repository.map(str::to_owned) }
        }
        _ => return Err(format!("'{scheme}' is no kind of source: a folder, s3://, https:// or hf://")),
    };
    options.none_left()?;
    Ok(place)
}

/// A URL of a host, perhaps a port and a path, and nothing that a reader could take for another host. `http` is for this
/// machine alone, unless the operator says so by naming an S3 endpoint.
pub(super) fn web_address(url: &str, plain_allowed: bool) -> Result<String, String> {
    let url = url.trim_end_matches('/');
    let (scheme, rest) = url.split_once("://").ok_or_else(|| format!("'{url}' is no URL"))?;
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let uri: http::Uri = url.parse().map_err(|_| format!("'{url}' is no URL"))?;
    let host = uri.host().unwrap_or_default();
    if host.is_empty() || uri.query().is_some() || authority.contains(['@', '\\']) {
        return Err(format!("'{url}' has to be a host, and perhaps a port and a path"));
    }
    let loopback = host == "localhost" || ip_of(host).is_some_and(|ip| ip.is_loopback());
    match scheme {
        "https" => {}
        "http" if plain_allowed || loopback => {}
        "http" => return Err(format!("'{url}' is not encrypted: give https://")),
        _ => return Err(format!("'{url}' is neither https:// nor http://")),
    }
    path_below(path)?;
    Ok(url.to_owned())
}

/// The address that a host is written as, if it is one.
pub fn ip_of(host: &str) -> Option<IpAddr> {
    host.trim_start_matches('[').trim_end_matches(']').parse().ok()
}

/// A path of plain segments; it may be empty.
fn path_below(path: &str) -> Result<String, String> {
    let fine = |segment: &str| {
        !segment.is_empty()
            && !segment.starts_with('.')
            && segment.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '='))
    };
    if path.is_empty() || path.split('/').all(fine) {
        Ok(path.to_owned())
    } else {
        Err(format!("'{path}' is no path: segments of letters, digits, '.', '_', '-' and '=' that begin without '.'"))
    }
}

/// `key=value&…` behind a place.
struct Options(Vec<(String, String)>);

impl Options {
    fn read(query: &str) -> Result<Self, String> {
        let mut options: Vec<(String, String)> = Vec::new();
        for option in query.split('&').filter(|option| !option.is_empty()) {
            let (key, value) = option.split_once('=').unwrap_or((option, "true"));
            if options.iter().any(|(known, _)| known == key) {
                return Err(format!("'{key}' is given twice"));
            }
            options.push((key.to_owned(), value.to_owned()));
        }
        Ok(Self(options))
    }

    fn take(&mut self, key: &str) -> Option<String> {
        let at = self.0.iter().position(|(known, _)| known == key)?;
        Some(self.0.remove(at).1)
    }

    fn switch(&mut self, key: &str) -> Result<Option<bool>, String> {
        match self.take(key).as_deref() {
            None => Ok(None),
            Some("true") => Ok(Some(true)),
            Some("false") => Ok(Some(false)),
            Some(other) => Err(format!("{key} is true or false; it is '{other}'")),
        }
    }

    fn none_left(self) -> Result<(), String> {
        match self.0.first() {
            None => Ok(()),
            Some((key, _)) => Err(format!("'{key}' is no option of this kind of source")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_place_is_read() {
        let place = |text: &str| parse(&format!("models={text}"), DEFAULT_REGION).expect(text).place;
        let aws = place("s3://team-adapters/prod/eu?region=eu-central-1");
        let expected = S3Place {
            bucket: "team-adapters".to_owned(),
            prefix: "prod/eu".to_owned(),
            region: "eu-central-1".to_owned(),
            endpoint: None,
            virtual_host: true,
            private: false,
            unsigned: false,
        };
        assert_eq!(aws, SourcePlace::S3(expected));
        let SourcePlace::S3(minio) = place("s3://bucket?endpoint=http://minio.store.svc:9000&private") else {
            panic!("a bucket");
        };
        assert_eq!(minio.endpoint.as_deref(), Some("http://minio.store.svc:9000"));
        assert!(minio.private && !minio.virtual_host && minio.prefix.is_empty() && !minio.unsigned);
        assert!(matches!(place("s3://bucket?unsigned"), SourcePlace::S3(S3Place { unsigned: true, .. })));
        let web = SourcePlace::Web { url: "https://files.example/adapters".to_owned(), private: false };
        assert_eq!(place("https://files.example/adapters/"), web);
        assert_eq!(
            place("hf://org/all-adapters"),
            SourcePlace::Hub { owner: "org".to_owned(), repository: Some("all-adapters".to_owned()) }
        );
        assert_eq!(place("/"), SourcePlace::Folder("/".into()));
    }

    #[test]
    fn what_is_no_place_is_refused() {
        for bad in [
            "models",
            "=/",
            "s3=/",
            "a b=/",
            "x=/no/such/folder",
            "x=ftp://host/",
            "x=http://files.example/",
            "x=https://user:word@host/",
            "x=https://host\\@other/",
            "x=https:///path",
            "x=https://host/a/../b",
            "x=https://host/a%2e%2e/b",
            "x=https://host/?token=1",
            "x=s3://b",
            "x=s3://bucket/../other",
            "x=s3://bucket?endpoint=gopher://host",
            "x=s3://bucket?private=perhaps",
            "x=s3://bucket?secret=abc",
            "x=s3://bucket?region=a&region=b",
            "x=hf://",
            "x=hf://a/b/c",
            "x=hf://../b",
        ] {
            assert!(parse(bad, DEFAULT_REGION).is_err(), "{bad}");
        }
    }

    #[test]
    fn secrets_are_not_shown() {
        let keys = crate::config::S3Keys {
            access_key_id: "id".into(),
            secret_access_key: Secret("word".into()),
            session_token: None,
        };
        assert!(!format!("{keys:?}").contains("word"));
    }
}
