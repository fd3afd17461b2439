//! The only room that knows HTTP, status codes and server-sent events.

pub mod admin;
pub mod auth;
pub mod body;
pub mod error;
mod feedback;
pub mod journal;
pub mod limits;
pub mod openai;
pub mod openapi;
pub mod ops;
mod replay;
pub mod request;
pub mod route;
pub mod serve;
pub mod unserved;

use std::{
    any::Any,
    collections::HashSet,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use auth::Keys;
use axum::{
    Router,
    extract::FromRef,
    middleware,
    response::{IntoResponse, Response},
};
use error::ApiError;
use http::StatusCode;
use route::Route;
pub use serve::{Listener, Peer, ServeSettings, serve};
use tokio::sync::Semaphore;
use tower_http::catch_panic::CatchPanicLayer;

use crate::{
    config::{Config, LimitsConfig},
    feedback::Flags,
    gateway::Gateway,
    metrics::Metrics,
};

/// What every handler knows. Cheap to clone.
#[derive(Clone)]
pub struct AppState(Arc<Inner>);

struct Inner {
    gateway: Gateway,
    flags: Flags,
    metrics: Arc<Metrics>,
    limits: Arc<LimitsConfig>,
    keys: Arc<Keys>,
    /// Different adapters that one batch may hold.
    max_loras: usize,
    /// Where load requests may point.
    max_adapter_bytes: u64,
    /// Folders of the suites that a load may name.
    suites: Vec<PathBuf>,
    /// Unix seconds.
    started: i64,
    tokenizing: Arc<Semaphore>,
    /// Unknown fields that the log has named already.
    named: Mutex<HashSet<String>>,
}

/// Unknown field names that are remembered as named; a client that makes up more is not worth remembering.
const NAMED_FIELDS: usize = 1024;

impl AppState {
    pub fn new(gateway: Gateway, flags: Flags, metrics: Arc<Metrics>, config: &Config, keys: Arc<Keys>) -> Self {
        if keys.is_empty() && !keys.loopback_only() {
            tracing::warn!(
                "anybody who can connect may ask: this server listens beyond this machine and has no API key (--api-key)"
            );
        }
        Self(Arc::new(Inner {
            tokenizing: Arc::new(Semaphore::new(gateway.settings().tokenizer_threads.max(1))),
            gateway,
            flags,
            metrics,
            limits: Arc::new(config.limits.clone()),
            keys,
            max_loras: config.engine.max_loras,
            max_adapter_bytes: config.adapters.max_bytes,
            suites: config.adapters.suites.clone(),
            started: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64),
            named: Mutex::default(),
        }))
    }

    pub fn gateway(&self) -> &Gateway {
        &self.0.gateway
    }

    /// The rules that flag answers.
    pub fn flags(&self) -> &Flags {
        &self.0.flags
    }

    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.0.metrics
    }

    pub fn limits(&self) -> &Arc<LimitsConfig> {
        &self.0.limits
    }

    pub fn keys(&self) -> &Keys {
        &self.0.keys
    }

    /// Bytes that adapters may take in memory.
    pub fn max_adapter_bytes(&self) -> u64 {
        self.0.max_adapter_bytes
    }

    /// Folders of the suites that a load may name.
    pub fn suites(&self) -> &[PathBuf] {
        &self.0.suites
    }

    pub fn max_loras(&self) -> usize {
        self.0.max_loras
    }

    /// When this server started, in Unix seconds.
    pub fn started(&self) -> i64 {
        self.0.started
    }

    pub fn is_draining(&self) -> bool {
        self.gateway().is_draining()
    }

    /// Names each ignored field in the log, the first time it comes.
    fn name_ignored<'a>(&self, fields: impl Iterator<Item = &'a str>) {
        let mut named = self.0.named.lock().unwrap_or_else(PoisonError::into_inner);
        for field in fields {
            if named.len() < NAMED_FIELDS && named.insert(field.to_owned()) {
                tracing::info!(field, "a request field has no effect here; this is said once");
            }
        }
    }
}

impl FromRef<AppState> for Arc<LimitsConfig> {
    fn from_ref(app: &AppState) -> Self {
        Arc::clone(app.limits())
    }
}

/// All routes with their layers. From the outside in: the request's log line, panics, oversized headers and foreign
/// hosts, keys.
pub fn router(app: AppState) -> Router {
    Route::ALL
        .iter()
        .fold(Router::new(), |router, route| router.route(route.path(), route.handler()))
        .fallback(unserved::not_found)
        .method_not_allowed_fallback(unserved::method_not_allowed)
        .layer(middleware::from_fn_with_state(app.clone(), auth::guard))
        .layer(middleware::from_fn_with_state(app.clone(), limits::check))
        .layer(CatchPanicLayer::custom(panicked))
        .layer(middleware::from_fn_with_state(app.clone(), request::trace))
        .with_state(app)
}

/// The panic's own words go to the log only.
fn panicked(panic: Box<dyn Any + Send + 'static>) -> Response {
    let words = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    let mut error = ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", "something went wrong here");
    error.detail = Some(format!("panic: {}", words.unwrap_or("without words")));
    error.into_response()
}

#[cfg(test)]
mod tests {
    use axum::{body::Body, routing::get};
    use http::Request;
    use http_body_util::BodyExt;
    use serde_json::{Value, json};
    use tower::ServiceExt;

    use super::*;

    #[tokio::test]
    async fn a_panic_is_an_error_like_any_other_and_keeps_its_words_to_itself() {
        async fn fall() -> &'static str {
            panic!("over a secret")
        }
        let router: Router = Router::new().route("/", get(fall)).layer(CatchPanicLayer::custom(panicked));
        let response = router.oneshot(Request::new(Body::empty())).await.unwrap();
        assert_eq!(response.status(), 500);
        let detail = response.extensions().get::<ApiError>().and_then(|error| error.detail.clone());
        assert_eq!(detail.as_deref(), Some("panic: over a secret"));
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let body: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!((&body["error"]["code"], &body["error"]["param"]), (&json!("internal_error"), &Value::Null));
        assert!(!body.to_string().contains("secret"));
    }
}
