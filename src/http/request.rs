//! One request from its id to its line in the log.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Instant,
};

use axum::{
    body::Body,
    extract::{MatchedPath, Request, State},
    middleware::Next,
    response::Response,
};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Version, header};
use http_body::{Body as HttpBody, Frame, SizeHint};

use super::{
    AppState,
    error::ApiError,
    openai::{fields::shown, fresh_id},
    route::Route,
};
use crate::{metrics::Metrics, terms::Usage};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const PROCESSING_MS: HeaderName = HeaderName::from_static("openai-processing-ms");
const MAX_ID_BYTES: usize = 128;

/// The id of a request, echoed or made. In every request's extensions.
#[derive(Clone, Debug)]
pub struct RequestId(pub String);

/// What the log line of a request will say. Handlers note what they learn; the line is written when the answer has
/// ended or is dropped, whatever became of it. Never content.
#[derive(Clone)]
pub struct Trace(Arc<Mutex<Line>>);

struct Line {
    began: Instant,
    id: String,
    method: Method,
    /// The matched route; for anything else the beginning of the path.
    route: String,
    /// A probe or scrape, which nobody wants to read of while all is well.
    routine: bool,
    key: Option<String>,
    model: Option<String>,
    version: Option<String>,
    status: Option<u16>,
    /// How the answer ended: finish reasons, or the code of an error.
    ending: Option<String>,
    code: Option<&'static str>,
    detail: Option<String>,
    first_token_ms: Option<u64>,
    usage: Option<Usage>,
    metrics: Arc<Metrics>,
}

impl Trace {
    fn line(&self) -> MutexGuard<'_, Line> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn key(&self, name: Option<&str>) {
        self.line().key = name.map(str::to_owned);
    }

    /// What answers.
    pub fn answered_by(&self, model: &str, version: &str) {
        let mut line = self.line();
        line.model = Some(model.to_owned());
        line.version = Some(version.to_owned());
    }

    /// Text is there; only the first time counts.
    pub fn token(&self) {
        let mut line = self.line();
        if line.first_token_ms.is_none() {
            line.first_token_ms = Some(line.began.elapsed().as_millis() as u64);
        }
    }

    pub fn finished(&self, ending: String, usage: Usage) {
        let mut line = self.line();
        line.ending = Some(ending);
        line.usage = Some(usage);
    }

    /// An error, before the answer or in it.
    pub fn failed(&self, error: &ApiError) {
        let mut line = self.line();
        line.metrics.refused.with_label_values(&[error.code]).inc();
        line.ending = Some("error".to_owned());
        line.code = Some(error.code);
        line.detail = Some(match &error.detail {
            Some(detail) => detail.clone(),
            // A message to the client may repeat words of the request; server errors do not.
            None if error.status.is_server_error() => error.message.clone(),
            None => error.param.as_deref().unwrap_or_default().to_owned(),
        });
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        let status = self.status.unwrap_or(0);
        let ending = match &self.ending {
            Some(ending) => ending.as_str(),
            None if self.status.is_some_and(|status| status < 400) && self.model.is_none() => "done",
            None => "client_left",
        };
        let total_ms = self.began.elapsed().as_millis() as u64;
        let usage = self.usage.unwrap_or_default();
        self.metrics.http_in_flight.dec();
        macro_rules! write_line {
            ($level:ident) => {
                tracing::$level!(
                    target: "request",
                    id = self.id,
                    key = self.key,
                    method = self.method.as_str(),
                    route = self.route,
                    model = self.model,
                    version = self.version,
                    status,
                    ending,
                    code = self.code,
                    detail = self.detail,
                    first_token_ms = self.first_token_ms,
                    total_ms,
                    prompt_tokens = usage.prompt_tokens,
                    completion_tokens = usage.completion_tokens,
                )
            };
        }
        match status {
            500.. => write_line!(warn),
            // A scraper comes many times a second.
            200..300 if self.routine => write_line!(debug),
            _ => write_line!(info),
        }
    }
}

/// The outermost layer: gives the request its id, the answer its headers, and the log its line.
pub async fn trace(State(app): State<AppState>, mut request: Request, next: Next) -> Response {
    let id = request_id(request.headers());
    let route = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
    let label = route.clone().unwrap_or_else(|| "unmatched".to_owned());
    let routine = Route::of(&request).is_some_and(Route::is_routine);
    let began = Instant::now();
    app.metrics().http_in_flight.inc();
    let trace = Trace(Arc::new(Mutex::new(Line {
        began,
        id: id.clone(),
        method: request.method().clone(),
        route: route.unwrap_or_else(|| shown(request.uri().path())),
        routine,
        key: None,
        model: None,
        version: None,
        status: None,
        ending: None,
        code: None,
        detail: None,
        first_token_ms: None,
        usage: None,
        metrics: Arc::clone(app.metrics()),
    })));
    request.extensions_mut().insert(trace.clone());
    request.extensions_mut().insert(RequestId(id.clone()));
    let http1 = request.version() <= Version::HTTP_11;
    let mut response = next.run(request).await;
    let status = response.status();
    trace.line().status = Some(status.as_u16());
    if let Some(error) = response.extensions().get::<ApiError>() {
        trace.failed(error);
    }
    app.metrics().http_responses.with_label_values(&[&label, status.as_str()]).inc();
    // HTTP/2 has no such header; there the connection is told by itself.
    let draining = http1 && app.is_draining();
    let headers = response.headers_mut();
    // What was checked as a header coming in is one going out.
    if let Ok(id) = HeaderValue::from_str(&id) {
        headers.insert(REQUEST_ID, id);
    }
    headers.insert(PROCESSING_MS, HeaderValue::from(began.elapsed().as_millis() as u64));
    if draining {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response.map(|body| Body::new(Traced { body, _trace: trace }))
}

/// The client's `x-request-id` where it is sane, or a new one.
fn request_id(headers: &HeaderMap) -> String {
    let sane = |id: &str| {
        (1..=MAX_ID_BYTES).contains(&id.len())
            && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.:/+=@".contains(&b))
    };
    match headers.get(REQUEST_ID).and_then(|value| value.to_str().ok()) {
        Some(id) if sane(id) => id.to_owned(),
        Some(_) | None => fresh_id("req"),
    }
}

/// A body that keeps the log line open until it has ended.
struct Traced {
    body: Body,
    _trace: Trace,
}

impl HttpBody for Traced {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sane_request_id_is_echoed_and_any_other_replaced() {
        let read = |id: &[u8]| {
            let mut headers = HeaderMap::new();
            headers.insert(REQUEST_ID, HeaderValue::from_bytes(id).unwrap());
            request_id(&headers)
        };
        assert_eq!(read(b"trace-1/a:b"), "trace-1/a:b");
        for bad in [b"".as_slice(), b"a b", b"a\"b", "é".as_bytes(), &[b'a'; 129]] {
            assert!(read(bad).starts_with("req-"), "{bad:?}");
        }
        assert_ne!(request_id(&HeaderMap::new()), request_id(&HeaderMap::new()));
    }
}
