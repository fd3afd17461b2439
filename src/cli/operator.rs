//! Asks a running server for the operator: the one that holds a data directory, through the socket that it keeps there for
//! its owner, or one at a URL.

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
};

use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::{
    body::{Bytes, Incoming},
    client::conn::http1,
};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde_json::Value;
use tokio::net::UnixStream;

use super::nobody;
use crate::data_dir;

#[derive(Deserialize)]
struct Refused {
    error: Reason,
}

#[derive(Deserialize)]
struct Reason {
    message: String,
}

/// Where to ask.
pub struct Server(Place);

enum Place {
    DataDir(PathBuf),
    Url { url: String, key: Option<String> },
}

/// A status and a body.
struct Answered {
    fine: bool,
    body: Bytes,
}

impl Server {
    /// The server that holds a data directory.
    pub fn holding(data_dir: &Path) -> Self {
        Self(Place::DataDir(data_dir.to_owned()))
    }

    /// The server at `url`, with or without `/v1`.
    pub fn at(url: &str, key: Option<String>) -> Self {
        let url = url.trim_end_matches('/').trim_end_matches("/v1").to_owned();
        Self(Place::Url { url, key })
    }

    /// What the server answers, however long that takes; `None` if no server holds the directory.
    ///
    /// # Errors
    /// The server's own words, or why it could not be asked.
    pub fn get(&self, path: &str) -> Result<Option<Value>, String> {
        self.json("GET", path, None)
    }

    /// As [`Server::get`].
    pub fn post(&self, path: &str, body: Value) -> Result<Option<Value>, String> {
        self.json("POST", path, Some(body))
    }

    /// Writes what the server answers to `out` as it comes; `None` if no server holds the directory.
    ///
    /// # Errors
    /// As [`Server::get`], also where the answer broke off.
    pub fn download(&self, path: &str, out: &mut dyn Write) -> Result<Option<()>, String> {
        match &self.0 {
            Place::DataDir(data_dir) => download_socket(data_dir, path, out),
            Place::Url { url, key } => download_url(url, key.as_deref(), path, out).map(Some),
        }
    }

    /// As [`Server::get`], whatever text it is.
    ///
    /// # Errors
    /// As [`Server::get`].
    pub fn text(&self, path: &str) -> Result<Option<String>, String> {
        let body = self.ask("GET", path, None)?;
        body.map(|body| String::from_utf8(body.to_vec()).map_err(|error| format!("the server's answer: {error}")))
            .transpose()
    }

    fn json(&self, method: &str, path: &str, body: Option<Value>) -> Result<Option<Value>, String> {
        let Some(body) = self.ask(method, path, body)? else { return Ok(None) };
        serde_json::from_slice(&body).map(Some).map_err(|error| format!("the server's answer: {error}"))
    }

    fn ask(&self, method: &str, path: &str, body: Option<Value>) -> Result<Option<Bytes>, String> {
        let body = body.map(|body| body.to_string());
        let (answered, whose) = match &self.0 {
            Place::DataDir(data_dir) => {
                let Some(answered) = ask_socket(data_dir, method, path, body)? else { return Ok(None) };
                (answered, format!("the server of {}", data_dir.display()))
            }
            Place::Url { url, key } => (ask_url(url, key.as_deref(), method, path, body)?, url.clone()),
        };
        if answered.fine { Ok(Some(answered.body)) } else { Err(refusal(&answered.body, &whose)) }
    }
}

fn refusal(body: &[u8], whose: &str) -> String {
    match serde_json::from_slice::<Refused>(body) {
        Ok(refused) => refused.error.message,
        Err(_) => format!("{whose} answered no words of ours"),
    }
}

/// An adapter's name in a route: its slashes stay, what could mean something else is escaped.
pub fn escaped_name(name: &str) -> String {
    name.split('/').map(escaped).collect::<Vec<_>>().join("/")
}

/// A part of a path or query, each byte that could mean something else escaped.
pub fn escaped(part: &str) -> String {
    let mut text = String::with_capacity(part.len());
    for byte in part.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' => text.push(char::from(byte)),
            other => text.push_str(&format!("%{other:02X}")),
        }
    }
    text
}

/// The body that the server of a data directory answers to a POST of `path` without a body; `None` if no server holds the
/// directory.
///
/// # Errors
/// As [`Server::get`].
pub fn post(data_dir: &Path, path: &str) -> Result<Option<Bytes>, String> {
    Server::holding(data_dir).ask("POST", path, None)
}

fn ask_socket(data_dir: &Path, method: &str, path: &str, body: Option<String>) -> Result<Option<Answered>, String> {
    let whose = || format!("the server of {}", data_dir.display());
    within(async {
        let Some(response) = request_socket(data_dir, method, path, body).await? else { return Ok(None) };
        let fine = response.status().is_success();
        let body = response.into_body().collect().await.map_err(|error| format!("{} broke off: {error}", whose()))?;
        Ok(Some(Answered { fine, body: body.to_bytes() }))
    })
}

fn download_socket(data_dir: &Path, path: &str, out: &mut dyn Write) -> Result<Option<()>, String> {
    let whose = format!("the server of {}", data_dir.display());
    let broke = |error: hyper::Error| format!("{whose} broke off: {error}");
    within(async {
        let Some(response) = request_socket(data_dir, "GET", path, None).await? else { return Ok(None) };
        let fine = response.status().is_success();
        let mut body = response.into_body();
        if !fine {
            return Err(refusal(&body.collect().await.map_err(broke)?.to_bytes(), &whose));
        }
        while let Some(frame) = body.frame().await {
            if let Some(bytes) = frame.map_err(broke)?.data_ref() {
                out.write_all(bytes).map_err(|error| error.to_string())?;
            }
        }
        out.flush().map(Some).map_err(|error| error.to_string())
    })
}

fn within<T>(asked: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build();
    runtime.map_err(|error| error.to_string())?.block_on(asked)
}

/// `None` if nobody listens.
async fn request_socket(
    data_dir: &Path,
    method: &str,
    path: &str,
    body: Option<String>,
) -> Result<Option<Response<Incoming>>, String> {
    let socket = data_dir::socket(data_dir);
    let stream = match UnixStream::connect(&socket).await {
        Ok(stream) => stream,
        // A server that was killed leaves its socket behind.
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            return Ok(None);
        }
        Err(error) => return Err(format!("{}: {error}", socket.display())),
    };
    let broke = |error: hyper::Error| format!("the server of {} did not answer: {error}", data_dir.display());
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broke)?;
    // How the connection ends shows in the answer.
    tokio::spawn(connection);
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "localhost")
        .header("content-type", "application/json")
        .header("accept", "application/json")
        .body(Full::<Bytes>::from(body.unwrap_or_default()))
        .map_err(|error| error.to_string())?;
    sender.send_request(request).await.map(Some).map_err(broke)
}

fn download_url(url: &str, key: Option<&str>, path: &str, out: &mut dyn Write) -> Result<(), String> {
    let mut response = request_url(url, key, "GET", path, None)?;
    let broke = |error: &dyn std::fmt::Display| format!("{url} broke off: {error}");
    if !response.status().is_success() {
        return Err(refusal(&response.body_mut().read_to_vec().map_err(|error| broke(&error))?, url));
    }
    let mut reader = response.body_mut().with_config().limit(u64::MAX).reader();
    io::copy(&mut reader, out).map_err(|error| broke(&error))?;
    out.flush().map_err(|error| error.to_string())
}

fn ask_url(url: &str, key: Option<&str>, method: &str, path: &str, body: Option<String>) -> Result<Answered, String> {
    let mut response = request_url(url, key, method, path, body)?;
    let fine = response.status().is_success();
    let body = response.body_mut().read_to_vec().map_err(|error| format!("{url}: {error}"))?;
    Ok(Answered { fine, body: body.into() })
}

fn request_url(
    url: &str,
    key: Option<&str>,
    method: &str,
    path: &str,
    body: Option<String>,
) -> Result<Response<ureq::Body>, String> {
    let agent = ureq::Agent::config_builder().http_status_as_error(false).build().new_agent();
    let mut request = Request::builder()
        .method(method)
        .uri(format!("{url}{path}"))
        .header("content-type", "application/json")
        .header("accept", "application/json");
    if let Some(key) = key {
        request = request.header("authorization", format!("Bearer {key}"));
    }
    let request = request.body(body.unwrap_or_default()).map_err(|error| format!("{url}: {error}"))?;
    agent.run(request).map_err(|error| nobody(url, &error, "--url"))
}
