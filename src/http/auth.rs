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
    /// Whether routes that change what is served may answer.
    admin: Admin,
    peer: Option<Peer>,
}

/// Whether somebody may change what is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Admin {
    Allowed,
    /// Not with this key.
    Role,
    /// Not without the key of `--admin-key`.
    Key,
    /// Not on this port.
    Port,
    /// Nobody can: others can connect, and nothing says who of them may.
    Off,
}

impl Identity {
    /// The operator on the server's own socket, or anybody where no keys are set and only this machine can connect.
    fn operator() -> Self {
        Self {
            caller: Caller::default(),
            role: Role::Admin,
            may_read_records: true,
            admin: Admin::Allowed,
            peer: Some(Peer::Unix),
        }
    }

    /// Anybody, on a server that others can reach and that has no keys.
    fn stranger() -> Self {
        Self { role: Role::App, may_read_records: false, admin: Admin::Off, ..Self::operator() }
    }

    fn of(key: &Key) -> Self {
        let admin = if key.role >= Role::Admin { Admin::Allowed } else { Admin::Role };
        Self { caller: key.caller(), role: key.role, may_read_records: true, admin, peer: None }
    }

    /// # Errors
    /// 403 with the way to turn it on, or what is missing.
    pub fn administers(&self) -> Result<(), ApiError> {
        let forbidden = |code, message: &str| Err(ApiError::new(StatusCode::FORBIDDEN, code, message));
        match self.admin {
            Admin::Allowed => Ok(()),
            Admin::Role => self.has_role(Role::Admin),
            Admin::Key => forbidden(
                "admin_key_needed",
                "this changes what is served and needs the admin key: 'Authorization: Bearer KEY' (--admin-key)",
            ),
            Admin::Port => {
                forbidden("admin_elsewhere", "this changes what is served and has a port of its own (--admin-port)")
            }
            Admin::Off => forbidden(
                "admin_off",
                "this changes what is served and is off, since others than this machine can connect: give an --admin-key, \
                 an --admin-port that only admins reach, or --admin-unauthenticated; the server's own socket is always open",
            ),
        }
    }

    /// Who acts, for histories.
    pub fn who(&self) -> String {
        match (&self.caller.key, self.peer) {
            (Some(key), _) => key.clone(),
            (None, Some(Peer::Unix)) => "operator".to_owned(),
            (None, Some(Peer::Tcp(address) | Peer::Admin(address))) => address.ip().to_string(),
            (None, None) => "unknown".to_owned(),
        }
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
    let route = Route::of(&request);
    let open = route.is_some_and(Route::is_open);
    let peer = request.extensions().get::<Peer>().copied();
    let identity = identify(app.keys(), peer, request.headers(), route.is_some_and(Route::is_admin));
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

fn identify(keys: &Keys, peer: Option<Peer>, headers: &HeaderMap, admin_route: bool) -> Result<Identity, ApiError> {
    if peer == Some(Peer::Unix) {
        return Ok(Identity::operator());
    }
    let on_its_port = matches!(peer, Some(Peer::Admin(_)));
    // Nobody is asked for a key who is let in without one.
    let without_key = keys.admin_unauthenticated() || (on_its_port && !keys.has_admin_key());
    let mut identity = match key(keys, headers) {
        Ok(key) => Identity::of(key),
        Err(_) if keys.is_empty() && keys.loopback_only() => Identity::operator(),
        Err(_) if keys.is_empty() || (admin_route && without_key) => Identity::stranger(),
        Err(error) => return Err(error),
    };
    let by_key = identity.caller.key.is_some();
    if keys.has_admin_port() && !on_its_port {
        identity.admin = Admin::Port;
    } else if without_key {
        identity.admin = Admin::Allowed;
    } else if !by_key && keys.has_admin_key() {
        identity.admin = Admin::Key;
    }
    identity.peer = peer;
    Ok(identity)
}

/// The key that a request brings.
fn key<'a>(keys: &'a Keys, headers: &HeaderMap) -> Result<&'a Key, ApiError> {
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
        Some(key) => Ok(key),
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
