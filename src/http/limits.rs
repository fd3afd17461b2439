//! What is wrong with a request before anybody looks at its body: headers, and the host it was sent to.

use std::net::IpAddr;

use axum::{
    extract::{Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
};
use http::{HeaderMap, StatusCode, Uri, header};

use super::{AppState, error::ApiError, serve::Peer};

/// More headers than any client of ours sends.
const MAX_HEADERS: usize = 100;

/// The layer that refuses oversized headers, and names that only DNS rebinding would bring here.
pub async fn check(State(app): State<AppState>, request: Request, next: Next) -> Response {
    let private = app.keys().is_empty() && app.keys().loopback_only();
    let checked = header_size(request.headers(), request.uri(), app.limits().max_header_bytes).and_then(|()| {
        match request.extensions().get::<Peer>() {
            Some(Peer::Unix) => Ok(()),
            Some(Peer::Tcp(_) | Peer::Admin(_)) | None if private => {
                host(request.headers(), request.uri()).and_then(|()| origin(request.headers()))
            }
            Some(Peer::Tcp(_) | Peer::Admin(_)) | None => Ok(()),
        }
    });
    match checked {
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(),
    }
}

fn header_size(headers: &HeaderMap, uri: &Uri, limit: usize) -> Result<(), ApiError> {
    let too_large =
        |message: String| Err(ApiError::new(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "headers_too_large", message));
    let count = headers.len();
    if count > MAX_HEADERS {
        return too_large(format!("the request has {count} headers; the limit is {MAX_HEADERS}"));
    }
    // As on the wire: a colon, a space and a line's end for each.
    let fields: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
    let path = uri.path_and_query().map_or(0, |path| path.as_str().len());
    if fields + path > limit {
        return too_large(format!("path and headers have {} bytes; the limit is {limit}", fields + path));
    }
    Ok(())
}

/// A page that made its own name point here must not be able to use a server that trusts this machine: without keys
/// only this machine's own names are answered.
fn host(headers: &HeaderMap, uri: &Uri) -> Result<(), ApiError> {
    let refuse = |message: &str| Err(ApiError::new(StatusCode::FORBIDDEN, "host_not_allowed", message).about("host"));
    let mut given = headers.get_all(header::HOST).iter();
    let host = match (uri.authority(), given.next()) {
        (Some(authority), _) => authority.as_str(),
        (None, Some(host)) => host.to_str().unwrap_or_default(),
        (None, None) => return refuse("the request names no host"),
    };
    if given.next().is_some() {
        return refuse("the request names more than one host");
    }
    if is_this_machine(host) {
        return Ok(());
    }
    refuse("without keys this server answers only to localhost, 127.0.0.1 and [::1]; set --api-key to use other names")
}

/// A page of elsewhere may send simple requests here without asking; a browser says where it comes from.
fn origin(headers: &HeaderMap) -> Result<(), ApiError> {
    let foreign = headers.get_all(header::ORIGIN).iter().any(|origin| {
        let host = origin.to_str().ok().and_then(|origin| origin.split_once("://")).map(|(_, host)| host);
        !host.is_some_and(is_this_machine)
    });
    if foreign {
        let message = "without keys this server takes no requests from pages of elsewhere; set --api-key";
        return Err(ApiError::new(StatusCode::FORBIDDEN, "origin_not_allowed", message).about("origin"));
    }
    Ok(())
}

fn is_this_machine(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_this_machine_are_its_own() {
        for good in ["localhost", "localhost:8000", "LOCALHOST", "127.0.0.1:1", "127.8.8.8", "[::1]:8000", "[::1]"] {
            assert!(is_this_machine(good), "{good}");
        }
        for bad in ["", "evil.example", "localhost.evil.example", "10.0.0.1:8000", "[::2]", "127.0.0.1.evil.example"] {
            assert!(!is_this_machine(bad), "{bad}");
        }
    }

    #[test]
    fn pages_of_elsewhere_are_turned_away() {
        let check = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::ORIGIN, value.parse().unwrap());
            origin(&headers).map_err(|error| error.status.as_u16())
        };
        assert_eq!(origin(&HeaderMap::new()).map_err(|error| error.code), Ok(()));
        assert_eq!(check("http://localhost:3000"), Ok(()));
        for bad in ["null", "https://evil.example", "http://localhost.evil.example", ""] {
            assert_eq!(check(bad), Err(403), "{bad}");
        }
    }

    #[test]
    fn headers_are_counted_and_weighed() {
        let uri = Uri::from_static("/v1/models");
        let mut headers = HeaderMap::new();
        headers.insert("x-long", "a".repeat(200).parse().unwrap());
        assert!(header_size(&headers, &uri, 400).is_ok());
        assert_eq!(header_size(&headers, &uri, 200).unwrap_err().status, 431);
        for index in 0..=MAX_HEADERS {
            headers.append("x-many", index.into());
        }
        assert_eq!(header_size(&headers, &uri, 1 << 20).unwrap_err().status, 431);
    }
}
