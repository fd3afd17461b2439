//! Who may ask what: API keys, their roles, and what holds where there are none.

mod keys;

use axum::{
    extract::{Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
};
use http::{HeaderMap, HeaderName, StatusCode, header};
pub use keys::{Key, Keys, KeysError, Role};

use super::{AppState, error::ApiError, request::Trace, route::Route, serve::Peer};
use crate::{gateway::Caller, terms::RecordPolicy};

/// How much of this request is recorded, at most.
pub const RECORD: HeaderName = HeaderName::from_static("x-tunegate-record");

/// Who asks, in the extensions of every request that got past [`guard`].
#[derive(Clone, Debug)]
pub struct Identity {
    pub caller: Caller,
    pub role: Role,
    /// Whether routes that return recorded content may answer.
    pub may_read_records: bool,
}

impl Identity {
    /// The operator on the server's own socket, or anybody where no keys are set and only this machine can connect.
    fn operator() -> Self {
        Self { caller: Caller::default(), role: Role::Admin, may_read_records: true }
    }

    /// Anybody, on a server that others can reach and that has no keys.
    fn stranger() -> Self {
        Self { caller: Caller::default(), role: Role::App, may_read_records: false }
    }

    /// # Errors
    /// 403 where anybody could be asking.
    pub fn reads_records(&self) -> Result<(), ApiError> {
        if self.may_read_records {
            return Ok(());
        }
        let message = "recorded content is only shown to a key; this server has none (--api-key, --api-keys-file)";
        Err(ApiError::new(StatusCode::FORBIDDEN, "records_need_a_key", message))
    }

    /// # Errors
    /// 403 for a key whose role is below `role`.
    pub fn has_role(&self, role: Role) -> Result<(), ApiError> {
        if self.role >= role {
            return Ok(());
        }
        let message = format!("this needs a key with the role {}; yours has {}", role.as_str(), self.role.as_str());
        Err(ApiError::new(StatusCode::FORBIDDEN, "role_not_allowed", message))
    }
}

/// The layer around the whole router: only routes that say so answer without a key.
pub async fn guard(State(app): State<AppState>, mut request: Request, next: Next) -> Response {
    let open = Route::of(&request).is_some_and(Route::is_open);
    let identity = match (request.extensions().get::<Peer>(), app.keys().is_empty()) {
        (Some(Peer::Unix), _) => Ok(Identity::operator()),
        (_, true) if app.keys().loopback_only() => Ok(Identity::operator()),
        (_, true) => Ok(Identity::stranger()),
        (_, false) => identify(app.keys(), request.headers()),
    };
    match identity {
        Ok(identity) => {
            if let Some(trace) = request.extensions().get::<Trace>() {
                trace.key(identity.caller.key.as_deref());
            }
            request.extensions_mut().insert(identity);
        }
        Err(error) if !open => return error.into_response(),
        Err(_) => {}
    }
    next.run(request).await
}

fn identify(keys: &Keys, headers: &HeaderMap) -> Result<Identity, ApiError> {
    let refuse =
        |message: &str| Err(ApiError::new(StatusCode::UNAUTHORIZED, "invalid_api_key", message).about("authorization"));
    let mut given = headers.get_all(header::AUTHORIZATION).iter();
    let Some(value) = given.next() else {
        return refuse("this server needs an API key: 'Authorization: Bearer KEY'");
    };
    if given.next().is_some() {
        return refuse("more than one Authorization header was sent");
    }
    let Some(secret) = bearer(value.as_bytes()) else {
        return refuse("the Authorization header must be 'Bearer KEY'");
    };
    match keys.find(secret) {
        Some(key) => Ok(Identity { caller: key.caller(), role: key.role, may_read_records: true }),
        None => refuse("this API key is not known"),
    }
}

/// The secret of `Bearer SECRET`; the scheme's case does not matter (RFC 9110, section 11.1).
fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, rest) = value.split_at_checked(b"bearer ".len())?;
    let secret = rest.trim_ascii();
    (scheme.eq_ignore_ascii_case(b"bearer ") && !secret.is_empty()).then_some(secret)
}

/// `x-tunegate-record`: full, metadata or none.
///
/// # Errors
/// 400 for anything else: a request that asks for less to be recorded is never taken to ask for nothing.
pub fn record_header(headers: &HeaderMap) -> Result<Option<RecordPolicy>, ApiError> {
    let mut strictest = None;
    for value in headers.get_all(RECORD) {
        let policy = value.to_str().ok().and_then(|word| RecordPolicy::parse(word.trim())).ok_or_else(|| {
            ApiError::invalid("x-tunegate-record", "x-tunegate-record must be full, metadata or none")
        })?;
        strictest = Some(strictest.map_or(policy, |known: RecordPolicy| known.min(policy)));
    }
    Ok(strictest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bearer_is_read_as_the_rfc_has_it() {
        assert_eq!(bearer(b"Bearer abc"), Some(b"abc".as_slice()));
        assert_eq!(bearer(b"bearer  abc "), Some(b"abc".as_slice()));
        for bad in [b"".as_slice(), b"Bearer", b"Bearer ", b"Basic abc", b"abc"] {
            assert_eq!(bearer(bad), None);
        }
    }

    #[test]
    fn the_strictest_of_several_record_headers_holds_and_an_unknown_one_is_refused() {
        let read = |values: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(RECORD, value.parse().unwrap());
            }
            record_header(&headers).map_err(|error| error.status.as_u16())
        };
        assert_eq!(read(&[]), Ok(None));
        assert_eq!(read(&["full", "none"]), Ok(Some(RecordPolicy::None)));
        assert_eq!(read(&["nothing"]), Err(400));
    }
}
