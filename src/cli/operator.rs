//! Asks the server that holds a data directory, through the socket that it keeps there for its owner.

use std::{io, path::Path};

use http::Request;
use http_body_util::{BodyExt, Empty};
use hyper::{body::Bytes, client::conn::http1};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::net::UnixStream;

use crate::data_dir;

#[derive(Deserialize)]
struct Refused {
    error: Reason,
}

#[derive(Deserialize)]
struct Reason {
    message: String,
}

/// The body that the server answers to a POST of `path`, however long that takes; `None` if no server holds the
/// directory.
///
/// # Errors
/// The server's own words, or why it could not be asked.
pub fn post(data_dir: &Path, path: &str) -> Result<Option<Bytes>, String> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_io().build().map_err(|error| error.to_string())?;
    runtime.block_on(async {
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
        let carried = tokio::spawn(connection);
        let request = Request::post(path)
            .header("host", "localhost")
            .body(Empty::<Bytes>::new())
            .map_err(|error| error.to_string())?;
        let response = sender.send_request(request).await.map_err(broke)?;
        let done = response.status().is_success();
        let body = response.into_body().collect().await.map_err(broke)?.to_bytes();
        carried.abort();
        if done {
            return Ok(Some(body));
        }
        match serde_json::from_slice::<Refused>(&body) {
            Ok(refused) => Err(refused.error.message),
            Err(_) => Err(format!("the server of {} answered no words of ours", data_dir.display())),
        }
    })
}
