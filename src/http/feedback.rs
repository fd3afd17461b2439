//! `/v1/feedback`: what people and programs say of answers. A key judges its own answers only; reviewers and admins judge all.

mod view;
mod wire;

use axum::{
    Extension, Json,
    extract::{
        Path, Query, State,
        rejection::{PathRejection, QueryRejection},
    },
    response::{IntoResponse, Response},
};
use http::StatusCode;
use serde_json::{Value, json};

use super::{
    AppState,
    auth::{Identity, Role},
    body::JsonAny,
    error::ApiError,
    openai::fields::shown,
};
use crate::{
    http::openai::fields::wrong_type,
    journal::{Feedback, FeedbackError, FeedbackQuery, KeptFeedback, Order, Source, Standing, TargetKind},
    terms::Moment,
};

pub use view::shown_feedback;

/// Judgements in one request.
const MAX_BATCH: usize = 1000;
const PAGE: usize = 20;
const MAX_PAGE: usize = 100;

/// POST /v1/feedback: one object, or an array of which all are taken or none.
pub async fn give(
    State(app): State<AppState>,
    Extension(identity): Extension<Identity>,
    JsonAny(body): JsonAny,
) -> Result<Response, ApiError> {
    let bulk = body.is_array();
    let read = read(body, &identity)?;
    if read.iter().any(|given| given.dryrun) {
        let data: Vec<Value> = read.iter().map(|given| view::untaken(&given.feedback)).collect();
        return Ok(answer(data, bulk));
    }
    let mut given: Vec<Feedback> = read.into_iter().map(|given| given.feedback).collect();
    let key = given.first().filter(|first| !first.any_key).and_then(|first| first.key.clone());
    for feedback in &mut given {
        // Asked before it is sent: an answer that ends meanwhile is on its way to the record ahead of this.
        if app.gateway().is_in_flight(feedback.target.id(), key.as_deref()) {
            feedback.arrived = Standing::InFlight;
        }
    }
    let ids: Vec<String> = given.iter().map(|feedback| feedback.id.clone()).collect();
    let journal = app.gateway().journal();
    journal.give(given, identity.caller.record).await.map_err(|error| refused(error, bulk))?;
    let kept = journal.feedback_by_id(ids).await?;
    let data = kept.iter().map(view::taken).collect();
    Ok(answer(data, bulk))
}

/// GET /v1/feedback
pub async fn list(
    State(app): State<AppState>,
    Extension(identity): Extension<Identity>,
    query: Result<Query<Vec<(String, String)>>, QueryRejection>,
) -> Result<Response, ApiError> {
    identity.reads_records()?;
    let Query(pairs) = query.map_err(|_| ApiError::invalid("query", "the query string cannot be read"))?;
    let mut query = list_query(pairs)?;
    query.key = own_key(&identity);
    query.after = query.after.map(|after| id_of(&identity, &after));
    let page = app.gateway().journal().feedback(query).await?;
    let data: Vec<Value> = page.feedback.iter().map(shown_feedback).collect();
    let ends = [page.feedback.first(), page.feedback.last()].map(|kept| kept.map(|kept| &kept.feedback.id));
    let list = json!({
        "object": "list", "data": data, "first_id": ends[0], "last_id": ends[1], "has_more": page.more,
    });
    Ok(Json(list).into_response())
}

/// GET /v1/feedback/{id}
pub async fn get(
    State(app): State<AppState>,
    Extension(identity): Extension<Identity>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Response, ApiError> {
    Ok(Json(shown_feedback(&find(&app, &identity, id).await?)).into_response())
}

/// DELETE /v1/feedback/{id}: it stays on record, and counts no more.
pub async fn retract(
    State(app): State<AppState>,
    Extension(identity): Extension<Identity>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Response, ApiError> {
    let kept = find(&app, &identity, id).await?;
    let id = &kept.feedback.id;
    if !app.gateway().journal().retract(id).await? {
        return Err(missing(id));
    }
    Ok(Json(json!({"object": "feedback.retracted", "id": id, "feedback_id": id, "retracted": true})).into_response())
}

fn read(body: Value, identity: &Identity) -> Result<Vec<wire::Given>, ApiError> {
    let giver = wire::Giver {
        key: identity.caller.key.clone(),
        any_key: own_key(identity).is_none(),
        now_ms: Moment::unix_ms(),
    };
    let given = match body {
        Value::Array(items) => {
            if items.is_empty() || items.len() > MAX_BATCH {
                let message = format!("between 1 and {MAX_BATCH} at a time; there are {}", items.len());
                return Err(ApiError::new(StatusCode::BAD_REQUEST, "invalid_value", message));
            }
            let read = |(at, item)| wire::read(&format!("[{at}]"), item, &giver);
            items.into_iter().enumerate().map(read).collect::<Result<Vec<_>, _>>()?
        }
        item @ Value::Object(_) => vec![wire::read("", item, &giver)?],
        other => {
            let mut error = wrong_type("body", "an object or an array", &other);
            error.param = None;
            return Err(error);
        }
    };
    for (at, later) in given.iter().enumerate() {
        if let Some(first) = given[..at].iter().position(|earlier| earlier.feedback.id == later.feedback.id) {
            return Err(ApiError::invalid(format!("[{at}].id"), format!("it is also the id of [{first}]")));
        }
        if later.dryrun != given[0].dryrun {
            return Err(ApiError::invalid(format!("[{at}].dryrun"), "it has to be the same for all"));
        }
    }
    Ok(given)
}

/// In an array, the field is that of one of its items.
fn refused(error: FeedbackError, bulk: bool) -> ApiError {
    let at = match &error {
        FeedbackError::Conflict { at } | FeedbackError::NotKept { at, .. } => Some(*at).filter(|_| bulk),
        FeedbackError::Journal(_) => None,
    };
    let error = ApiError::from(error);
    match (at, error.param.clone()) {
        (Some(at), Some(field)) => error.about(format!("[{at}].{field}")),
        _ => error,
    }
}

fn answer(mut data: Vec<Value>, bulk: bool) -> Response {
    match data.pop() {
        Some(one) if !bulk => Json(one).into_response(),
        last => {
            data.extend(last);
            Json(json!({"object": "list", "data": data})).into_response()
        }
    }
}

/// The key whose feedback alone is shown; `None` for reviewers and admins, and where there are no keys.
fn own_key(identity: &Identity) -> Option<String> {
    identity.caller.key.clone().filter(|_| identity.role < Role::Reviewer)
}

/// The id in a path or a cursor: ours, or the client's own.
fn id_of(identity: &Identity, given: &str) -> String {
    if given.starts_with(wire::PREFIX) { given.to_owned() } else { wire::id_of(identity.caller.key.as_deref(), given) }
}

/// Feedback that the caller may see; anybody else's is not there.
async fn find(
    app: &AppState,
    identity: &Identity,
    id: Result<Path<String>, PathRejection>,
) -> Result<KeptFeedback, ApiError> {
    identity.reads_records()?;
    let Path(id) = id.map_err(|_| ApiError::invalid("id", "the id in the path is not UTF-8"))?;
    let found = app.gateway().journal().feedback_by_id(vec![id_of(identity, &id)]).await?;
    let own = own_key(identity);
    let seen = |kept: &KeptFeedback| own.is_none() || own == kept.feedback.key;
    found.into_iter().find(seen).ok_or_else(|| missing(&id))
}

fn missing(id: &str) -> ApiError {
    let message = format!("there is no feedback '{}'", shown(id));
    ApiError::new(StatusCode::NOT_FOUND, "feedback_not_found", message).about("id")
}

fn list_query(pairs: Vec<(String, String)>) -> Result<FeedbackQuery, ApiError> {
    let mut query = FeedbackQuery {
        key: None,
        target: None,
        name: None,
        source: None,
        standing: None,
        retracted: None,
        after: None,
        limit: PAGE,
        order: Order::OldestFirst,
    };
    for (name, value) in pairs {
        let one_of = |words: &str| {
            ApiError::invalid(name.clone(), format!("{name} must be one of {words}; it is '{}'", shown(&value)))
        };
        let target = match name.as_str() {
            "completion_id" | "inference_id" => Some(TargetKind::Answer),
            "conversation_id" | "episode_id" => Some(TargetKind::Conversation),
            "user" => Some(TargetKind::User),
            _ => None,
        };
        match name.as_str() {
            _ if target.is_some() => query.target = target.map(|kind| (kind, value)),
            "metric_name" | "name" => query.name = Some(value),
            "source" => query.source = Some(Source::parse(&value).ok_or_else(|| one_of(&words(Source::ALL)))?),
            "standing" => query.standing = Some(Standing::parse(&value).ok_or_else(|| one_of(&words(Standing::ALL)))?),
            "retracted" => query.retracted = Some(value.parse().map_err(|_| one_of("true, false"))?),
            "after" => query.after = Some(value),
            "order" => {
                query.order = match value.as_str() {
                    "asc" => Order::OldestFirst,
                    "desc" => Order::NewestFirst,
                    _ => return Err(one_of("asc, desc")),
                }
            }
            "limit" => {
                query.limit = value.parse().ok().filter(|limit| (1..=MAX_PAGE).contains(limit)).ok_or_else(|| {
                    let message = format!("limit must be between 1 and {MAX_PAGE}; it is '{}'", shown(&value));
                    ApiError::invalid("limit", message)
                })?;
            }
            unknown => {
                let message = format!("{} is no parameter of this route", shown(unknown));
                return Err(ApiError::new(StatusCode::BAD_REQUEST, "unknown_parameter", message).about(shown(unknown)));
            }
        }
    }
    Ok(query)
}

/// How words are spelt in messages.
trait Word {
    fn word(self) -> &'static str;
}

impl Word for Source {
    fn word(self) -> &'static str {
        self.as_str()
    }
}

impl Word for Standing {
    fn word(self) -> &'static str {
        self.as_str()
    }
}

fn words<W: Word, const N: usize>(all: [W; N]) -> String {
    all.map(W::word).join(", ")
}
