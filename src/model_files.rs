//! Where a base model's files are: on disk already, or on a model hub, from where they are fetched once.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use hf_hub::{
    Repo, RepoType,
    api::sync::{ApiBuilder, ApiError, ApiRepo},
};

use crate::config::Settings;

/// Why a model's files are not there.
#[derive(Debug, thiserror::Error)]
pub enum ModelFilesError {
    #[error(
        "there is no '{model}' here, and it is no hub id (org/name); `make run` fetches a small model to begin with"
    )]
    NotFound { model: String },
    #[error("the hub has no model '{model}' at revision {revision}, or it needs a token (--hf-token)")]
    NotOnHub { model: String, revision: String },
    #[error("the hub cannot be reached: {reason}; check the network, or give a model that is on disk")]
    Unreachable { reason: String },
    #[error("'{model}' has neither safetensors nor exactly one GGUF file; it has: {files}")]
    NoWeights { model: String, files: String },
    #[error("{path}: {error}")]
    Io { path: PathBuf, error: io::Error },
}

/// Where and how models are fetched.
#[derive(Clone, Debug)]
pub struct Hub {
    pub endpoint: String,
    pub token: Option<String>,
    /// Fetched files are kept here, as the hub's own clients keep them.
    pub folder: PathBuf,
    pub progress: bool,
}

/// The path of `model`: a folder or file as given, or what the hub has under `org/name` or `org/name@revision`. With
/// `check_only` nothing is fetched.
///
/// # Errors
/// [`ModelFilesError`].
pub fn locate(model: &str, settings: &Settings, check_only: bool) -> Result<PathBuf, ModelFilesError> {
    let path = Path::new(model);
    if path.exists() {
        return Ok(path.to_owned());
    }
    let Some((id, named)) = hub_id(model) else {
        return Err(ModelFilesError::NotFound { model: model.to_owned() });
    };
    let said = &settings.said;
    let revision = named.or(said.revision.as_deref()).unwrap_or("main");
    let hub = Hub {
        endpoint: said.hub_endpoint.clone().unwrap_or_else(|| "https://huggingface.co".to_owned()),
        token: said.hf_token.clone(),
        folder: said.download_dir.clone().unwrap_or_else(|| "models".into()),
        progress: true,
    };
    if check_only { Ok(hub.folder.join(id)) } else { hub.fetch(id, revision) }
}

/// `org/name`, or `org/name@revision`.
fn hub_id(model: &str) -> Option<(&str, Option<&str>)> {
    let (id, revision) = model.split_once('@').map_or((model, None), |(id, revision)| (id, Some(revision)));
    let part_ok = |part: &str| {
        !part.is_empty()
            && !part.starts_with(['.', '-'])
            && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))
    };
    let (org, name) = id.split_once('/')?;
    (part_ok(org) && part_ok(name) && revision.is_none_or(|revision| !revision.is_empty())).then_some((id, revision))
}

impl Hub {
    /// The folder (or the one GGUF file) of a model, fetched if it is not here. What was fetched once needs no network.
    ///
    /// # Errors
    /// [`ModelFilesError`]; files that did arrive are kept, and a later try goes on from there.
    pub fn fetch(&self, id: &str, revision: &str) -> Result<PathBuf, ModelFilesError> {
        let done = self.folder.join(format!("{}@{}.fetched", id.replace('/', "--"), revision.replace('/', "--")));
        if let Ok(path) = fs::read_to_string(&done)
            && Path::new(path.trim()).exists()
        {
            return Ok(PathBuf::from(path.trim()));
        }
        let io = |error| ModelFilesError::Io { path: self.folder.clone(), error };
        fs::create_dir_all(&self.folder).map_err(io)?;
        let api = ApiBuilder::new()
            .with_endpoint(self.endpoint.trim_end_matches('/').to_owned())
            .with_token(self.token.clone())
            .with_cache_dir(self.folder.clone())
            .with_progress(self.progress)
            .with_retries(3)
            .build()
            .map_err(|error| self.failed(id, revision, error))?;
        let repo = api.repo(Repo::with_revision(id.to_owned(), RepoType::Model, revision.to_owned()));
        let path = self.fetch_all(&repo, id, revision)?;
        // Written last and moved into place: a model that is half there has no such file.
        let draft = done.with_extension("draft");
        fs::write(&draft, path.to_string_lossy().as_bytes()).and_then(|()| fs::rename(&draft, &done)).map_err(io)?;
        Ok(path)
    }

    fn fetch_all(&self, repo: &ApiRepo, id: &str, revision: &str) -> Result<PathBuf, ModelFilesError> {
        let info = repo.info().map_err(|error| self.failed(id, revision, error))?;
        let files: Vec<String> = info.siblings.into_iter().map(|sibling| sibling.rfilename).collect();
        let wanted = wanted(&files).ok_or_else(|| ModelFilesError::NoWeights {
            model: id.to_owned(),
            files: files.iter().take(20).cloned().collect::<Vec<_>>().join(", "),
        })?;
        let mut path = PathBuf::new();
        for file in &wanted {
            let fetched = repo.get(file).map_err(|error| self.failed(id, revision, error))?;
            path = match fetched.parent() {
                Some(folder) if !file.ends_with(".gguf") => folder.to_owned(),
                Some(_) | None => fetched,
            };
        }
        Ok(path)
    }

    fn failed(&self, id: &str, revision: &str, error: ApiError) -> ModelFilesError {
        if let ApiError::RequestError(request) = &error
            && let ureq::Error::StatusCode(401 | 403 | 404) = **request
        {
            return ModelFilesError::NotOnHub { model: id.to_owned(), revision: revision.to_owned() };
        }
        ModelFilesError::Unreachable { reason: error.to_string() }
    }
}

/// The files that serving needs: safetensors with their configuration and tokenizer, or else the one GGUF file.
fn wanted(files: &[String]) -> Option<Vec<String>> {
    const BESIDE: [&str; 7] = [
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "chat_template.jinja",
        "model.safetensors.index.json",
    ];
    let weights = |file: &&String| !file.contains('/') && file.ends_with(".safetensors");
    if files.iter().any(|file| weights(&file)) {
        let needed = files.iter().filter(|file| weights(file) || BESIDE.contains(&file.as_str()));
        return Some(needed.cloned().collect());
    }
    let mut ggufs = files.iter().filter(|file| file.ends_with(".gguf"));
    let gguf = ggufs.next()?;
    ggufs.next().is_none().then(|| vec![gguf.clone()])
}

#[cfg(test)]
mod tests {
    use std::{
        collections::HashMap,
        io::{BufRead, BufReader, Write},
        net::{TcpListener, TcpStream},
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering},
        },
    };

    use super::*;

    const COMMIT: &str = "0123456789012345678901234567890123456789";

    /// A server on loopback that speaks as much of the hub's protocol as its clients use: a model's list of files, and
    /// files by range with their commit and ETag.
    struct FakeHub {
        url: String,
        requests: Arc<AtomicUsize>,
    }

    impl FakeHub {
        fn with(files: &[(&str, &str)]) -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
            let url = format!("http://{}", listener.local_addr().expect("an address"));
            let files: HashMap<String, String> =
                files.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
            let requests = Arc::new(AtomicUsize::new(0));
            let counted = Arc::clone(&requests);
            std::thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    counted.fetch_add(1, Ordering::SeqCst);
                    answer(stream, &files);
                }
            });
            Self { url, requests }
        }

        fn hub(&self, folder: &Path, token: Option<&str>) -> Hub {
            Hub {
                endpoint: self.url.clone(),
                token: token.map(str::to_owned),
                folder: folder.to_owned(),
                progress: false,
            }
        }
    }

    fn answer(mut stream: TcpStream, files: &HashMap<String, String>) {
        let mut lines = BufReader::new(stream.try_clone().expect("a clone")).lines();
        let request = lines.next().and_then(Result::ok).unwrap_or_default();
        let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
        let mut headers = HashMap::new();
        for line in lines.map_while(Result::ok).take_while(|line| !line.is_empty()) {
            if let Some((name, value)) = line.split_once(':') {
                headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
            }
        }
        let allowed = headers.get("authorization").is_some_and(|value| value == "Bearer secret");
        let (status, extra, body) = if !allowed {
            ("401 Unauthorized".to_owned(), String::new(), Vec::new())
        } else if path == "/api/models/org/tiny/revision/v2" {
            let siblings: Vec<_> = files.keys().map(|name| serde_json::json!({"rfilename": name})).collect();
            let info = serde_json::json!({"siblings": siblings, "sha": COMMIT});
            ("200 OK".to_owned(), String::new(), info.to_string().into_bytes())
        } else {
            match path.strip_prefix("/org/tiny/resolve/v2/").and_then(|name| files.get(name)) {
                None => ("404 Not Found".to_owned(), String::new(), Vec::new()),
                Some(text) => ranged(text.as_bytes(), headers.get("range").map(String::as_str)),
            }
        };
        let head = format!("HTTP/1.1 {status}\r\nconnection: close\r\n{extra}content-length: {}\r\n\r\n", body.len());
        // A client that hangs up has what it wanted.
        let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body));
    }

    fn ranged(bytes: &[u8], range: Option<&str>) -> (String, String, Vec<u8>) {
        let (first, last) = range
            .and_then(|range| range.strip_prefix("bytes=")?.split_once('-'))
            .map_or((0, bytes.len() - 1), |(first, last)| {
                (first.parse().unwrap_or(0), last.parse().unwrap_or(bytes.len() - 1))
            });
        let last = last.min(bytes.len() - 1);
        let extra = format!(
            "x-repo-commit: {COMMIT}\r\netag: \"{:x}\"\r\naccept-ranges: bytes\r\ncontent-range: bytes {first}-{last}/{}\r\n",
            bytes.len(),
            bytes.len()
        );
        ("206 Partial Content".to_owned(), extra, bytes[first..=last].to_vec())
    }

    #[test]
    fn a_model_is_fetched_once_and_then_found_without_the_hub() {
        let files =
            [("config.json", "{}"), ("model.safetensors", "weights"), ("tokenizer.json", "tok"), ("README.md", "no")];
        let server = FakeHub::with(&files);
        let folder = tempfile::tempdir().expect("a folder");
        let hub = server.hub(folder.path(), Some("secret"));
        let path = hub.fetch("org/tiny", "v2").expect("fetched");
        assert_eq!(fs::read_to_string(path.join("model.safetensors")).expect("there"), "weights");
        assert_eq!(fs::read_to_string(path.join("tokenizer.json")).expect("there"), "tok");
        assert!(!path.join("README.md").exists());
        let before = server.requests.load(Ordering::SeqCst);
        assert_eq!(hub.fetch("org/tiny", "v2").expect("kept"), path);
        assert_eq!(server.requests.load(Ordering::SeqCst), before, "the second time needs no network");
    }

    #[test]
    fn what_the_hub_does_not_give_is_said_in_words() {
        let server = FakeHub::with(&[("a.gguf", "a"), ("b.gguf", "b")]);
        let folder = tempfile::tempdir().expect("a folder");
        let error = |id: &str, token| server.hub(folder.path(), token).fetch(id, "v2").expect_err("an error");
        assert!(matches!(error("org/tiny", Some("secret")), ModelFilesError::NoWeights { .. }));
        assert!(matches!(error("org/other", Some("secret")), ModelFilesError::NotOnHub { .. }));
        assert!(matches!(error("org/tiny", None), ModelFilesError::NotOnHub { .. }), "without the token");
        let gone = Hub { endpoint: "http://127.0.0.1:9".to_owned(), ..server.hub(folder.path(), None) };
        assert!(matches!(gone.fetch("org/tiny", "v2"), Err(ModelFilesError::Unreachable { .. })));
    }

    #[test]
    fn hub_ids_are_told_from_paths() {
        assert_eq!(hub_id("org/name"), Some(("org/name", None)));
        assert_eq!(hub_id("org/name@v1"), Some(("org/name", Some("v1"))));
        for path in ["name", "./name", "../x/y", "/abs/path", "a/b/c", "org/name@", "a/b c"] {
            assert_eq!(hub_id(path), None, "{path}");
        }
    }
}
