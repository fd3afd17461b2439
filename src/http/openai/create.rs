//! `/v1/chat/completions` and `/v1/completions`: the handlers.

use std::time::Duration;

use axum::{
    Extension,
    body::Body,
    extract::{FromRequestParts, State},
    response::Response,
};
use http::{HeaderMap, HeaderName, HeaderValue, header, request::Parts};

use super::{
    params::{Form, MAX_CONVERSATION_BYTES},
    question::{self, Envelope},
    stream,
    writer::{Manner, Writer},
};
use crate::{
    gateway::{Ask, Reply, ReplyEvent},
    http::{
        AppState,
        auth::{Identity, record_header},
        body::JsonBody,
        error::ApiError,
        request::{RequestId, Trace},
    },
};

/// The versions that answered.
const VERSION: HeaderName = HeaderName::from_static("x-tunegate-version");
/// Where the adapter's weights were when the request came.
const ADAPTER_TIER: HeaderName = HeaderName::from_static("x-tunegate-adapter-tier");
/// The conversation that the answer is recorded in.
const CONVERSATION: HeaderName = HeaderName::from_static("x-tunegate-conversation");
/// How long to wait for an adapter that is not in memory.
const ADAPTER_WAIT: &str = "x-tunegate-adapter-wait-ms";
/// An hour.
const MOST_WAIT_MS: u64 = 3_600_000;
/// What was asked for and had no effect.
const IGNORED: HeaderName = HeaderName::from_static("x-tunegate-ignored");
/// Names in [`IGNORED`]; the rest is counted.
const MAX_IGNORED: usize = 16;

/// `x-tunegate-adapter-wait-ms`: milliseconds that this request waits for an adapter that is not in memory; 0 is not at all.
fn adapter_wait(headers: &HeaderMap) -> Result<Option<Duration>, ApiError> {
    let Some(value) = headers.get(ADAPTER_WAIT) else { return Ok(None) };
    let ms = value.to_str().ok().and_then(|text| text.trim().parse().ok()).filter(|ms| *ms <= MOST_WAIT_MS);
    let bad = || {
        let message = format!("{ADAPTER_WAIT} must be a whole number of milliseconds up to {MOST_WAIT_MS}");
        ApiError::invalid(ADAPTER_WAIT, message)
    };
    ms.map(|ms| Some(Duration::from_millis(ms))).ok_or_else(bad)
}

/// `x-tunegate-conversation`: the client's id of the conversation.
fn conversation(headers: &HeaderMap) -> Result<Option<String>, ApiError> {
    let Some(value) = headers.get(CONVERSATION) else { return Ok(None) };
    let fine = |id: &str| (1..=MAX_CONVERSATION_BYTES).contains(&id.len());
    let id = value.to_str().ok().map(str::trim).filter(|id| fine(id)).ok_or_else(|| {
        let message =
            format!("x-tunegate-conversation must be 1 to {MAX_CONVERSATION_BYTES} printable ASCII characters");
        ApiError::invalid("x-tunegate-conversation", message)
    })?;
    Ok(Some(id.to_owned()))
}

impl<S: Send + Sync> FromRequestParts<S> for Envelope {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let (Some(RequestId(id)), Some(identity)) =
            (parts.extensions.get::<RequestId>(), parts.extensions.get::<Identity>())
        else {
            return Err(ApiError::unguarded());
        };
        Ok(Self {
            request_id: id.clone(),
            caller: identity.caller.clone(),
            record: record_header(&parts.headers)?,
            adapter_wait: adapter_wait(&parts.headers)?,
            conversation: conversation(&parts.headers)?,
        })
    }
}

/// POST /v1/chat/completions
pub async fn chat(
    State(app): State<AppState>,
    Extension(trace): Extension<Trace>,
    envelope: Envelope,
    JsonBody(map): JsonBody,
) -> Result<Response, ApiError> {
    let (ask, form) = question::chat(map, envelope, app.limits())?;
    answer(&app, ask, form, trace).await.map_err(ApiError::in_chat)
}

/// POST /v1/completions
pub async fn completions(
    State(app): State<AppState>,
    Extension(trace): Extension<Trace>,
    envelope: Envelope,
    JsonBody(map): JsonBody,
) -> Result<Response, ApiError> {
    let (ask, form) = question::completions(map, envelope, app.limits())?;
    answer(&app, ask, form, trace).await
}

async fn answer(app: &AppState, ask: Ask, form: Form, trace: Trace) -> Result<Response, ApiError> {
    let manner = Manner::of(&ask, form.clone());
    let reply = app.gateway().ask(ask).await?;
    let head = reply.head().clone();
    trace.answered_by(&head.model, &head.version);
    let version = HeaderValue::from_str(&head.version);
    let tier = head.found.map(|found| HeaderValue::from_static(found.tier()));
    // A client's id may be in any script; then the client knows it, and the header is left out.
    let conversation = HeaderValue::from_str(&head.conversation);
    let writer = Writer::new(manner, head, app.gateway().text().clone());
    let mut response =
        if form.stream { stream::response(reply, writer, trace) } else { whole(reply, writer, trace).await? };
    // Digests and names of digests: always a header's value.
    response.headers_mut().extend(version.ok().map(|version| (VERSION, version)));
    response.headers_mut().extend(tier.map(|tier| (ADAPTER_TIER, tier)));
    response.headers_mut().extend(conversation.ok().map(|conversation| (CONVERSATION, conversation)));
    Ok(named(app, &form, response))
}

/// The answer as one object. Dropping this future drops the reply.
async fn whole(mut reply: Reply, mut writer: Writer, trace: Trace) -> Result<Response, ApiError> {
    while let Some(event) = reply.next().await? {
        if matches!(event, ReplyEvent::Piece { .. }) {
            trace.token();
        }
        writer.gather(event);
    }
    trace.finished(writer.ending(), writer.usage());
    let mut response = Response::new(Body::from(writer.whole()));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}

/// The response, with the names of what had no effect.
pub(super) fn named(app: &AppState, form: &Form, mut response: Response) -> Response {
    let ignored: Vec<&str> = form.ignored().collect();
    if ignored.is_empty() {
        return response;
    }
    app.name_ignored(ignored.iter().copied());
    let mut names = ignored[..ignored.len().min(MAX_IGNORED)].join(", ");
    if ignored.len() > MAX_IGNORED {
        names.push_str(&format!(", and {} more", ignored.len() - MAX_IGNORED));
    }
    // Names come escaped to printable ASCII.
    response.headers_mut().extend(HeaderValue::from_str(&names).ok().map(|names| (IGNORED, names)));
    response
}
