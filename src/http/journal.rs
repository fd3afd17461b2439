//! `/v1/journal`: everything on record, for people who review and administer. Whoever reads content here is put on record
//! first.

mod asked;

use std::time::Duration;

use axum::{
    Extension, Json,
    body::Body,
    extract::{
        Path, Query, State,
        rejection::{PathRejection, QueryRejection},
    },
    response::{IntoResponse, Response},
};
use http::{HeaderValue, StatusCode, header};
use serde_json::{Value, json};

pub use self::asked::{Asked, page};
use super::{
    AppState,
    admin::flags::flags_of,
    auth::{Identity, Role},
    body::JsonBody,
    error::ApiError,
    feedback::shown_feedback,
    openai::{
        fields::{Fields, shown},
        params,
    },
};
use crate::{
    journal::{Access, AccessQuery, Cursor, Deed, Format, Journal, Mapping, View, answer},
    terms::Moment,
};

/// Rows of one import.
const MAX_ROWS: usize = 1000;
const MAX_NAME_BYTES: usize = 512;
/// The longest that a request waits for new answers.
const MOST_WAIT_MS: u64 = 30_000;

type Pairs = Result<Query<Vec<(String, String)>>, QueryRejection>;

fn pairs(query: Pairs) -> Result<Vec<(String, String)>, ApiError> {
    let Query(pairs) = query.map_err(|_| ApiError::invalid("query", "the query string cannot be read"))?;
    Ok(pairs)
}

/// Reviewers and administrators, where a key tells them.
fn reader(identity: &Identity) -> Result<(), ApiError> {
    identity.reads_records()?;
    identity.has_role(Role::Reviewer)
}

fn administrator(identity: &Identity) -> Result<(), ApiError> {
    identity.reads_records()?;
    identity.has_role(Role::Admin)
}

async fn note(journal: &Journal, identity: &Identity, deed: Deed, what: Value) -> Result<(), ApiError> {
    Ok(journal.note(Access::once(Moment::unix_ms(), &identity.who(), deed, what)).await?)
}

/// GET /v1/journal
pub async fn search(
    State(app): State<AppState>,
    Extension(identity): Extension<Identity>,
    query: Pairs,
) -> Result<Response, ApiError> {
    reader(&identity)?;
    let journal = app.gateway().journal();
    let asked = Asked::read(pairs(query)?, &[])?;
    note(journal, &identity, Deed::Search, asked.what(journal)).await?;
    Ok(Json(page(&journal.search(asked.search).await?, asked.view)).into_response())
}

/// GET /v1/journal/{id}
pub async fn get(
    State(app): State<AppState>,
    Extension(identity): Extension<Identity>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Response, ApiError> {
    reader(&identity)?;
    let Path(id) = id.map_err(|_| ApiError::invalid("id", "the id in the path is not UTF-8"))?;
    let journal = app.gateway().journal();
    let missing = || {
        let message = format!("there is no completion '{}' on record", shown(&id));
        ApiError::new(StatusCode::NOT_FOUND, "completion_not_found", message).about("id")
    };
    let completion = journal.get(&id).await?.ok_or_else(missing)?;
    note(journal, &identity, Deed::Show, json!({"id": id})).await?;
    let mut shown = answer(&completion, View { content: true, scores: true });
    let said = journal.feedback_on(vec![completion.id.clone()]).await?;
    shown["feedback"] = said.iter().map(shown_feedback).collect();
    shown["flags"] = flags_of(journal, &completion.id).await?;
    Ok(Json(shown).into_response())
}

/// GET /v1/journal/tail: choices as they become durable.
pub async fn tail(
    State(app): State<AppState>,
    Extension(identity): Extension<Identity>,
    query: Pairs,
) -> Result<Response, ApiError> {
    reader(&identity)?;
    let journal = app.gateway().journal();
    let mut asked = Asked::only(pairs(query)?, &["cursor", "wait_ms"], &["limit", "content", "scores"])?;
    let number = |name: &'static str, text: String| {
        text.parse::<u64>()
            .map_err(|_| ApiError::invalid(name, format!("{name} must be a number; it is '{}'", shown(&text))))
    };
    let cursor = asked.extra("cursor").map(|text| number("cursor", text)).transpose()?.map(Cursor);
    let wait = asked.extra("wait_ms").map(|text| number("wait_ms", text)).transpose()?.unwrap_or(0).min(MOST_WAIT_MS);
    let mut durable = journal.watch_durable();
    let after = cursor.unwrap_or_else(|| *durable.borrow());
    // Nobody waits longer than they said, also where nothing comes.
    let _ = tokio::time::timeout(Duration::from_millis(wait), durable.wait_for(|last| *last > after)).await;
    note(journal, &identity, Deed::Search, json!({"tail": true})).await?;
    let rows = journal.follow(after, asked.search.limit).await?;
    let last = rows.last().map_or(after, |row| row.cursor);
    let data: Vec<Value> = rows.iter().map(|row| answer(&row.completion, asked.view)).collect();
    Ok(Json(json!({"object": "list", "data": data, "cursor": last.0})).into_response())
}

/// GET /v1/journal/export
pub async fn export(
    State(app): State<AppState>,
    Extension(identity): Extension<Identity>,
    query: Pairs,
) -> Result<Response, ApiError> {
    reader(&identity)?;
    let journal = app.gateway().journal();
    let mut asked = Asked::read(pairs(query)?, &["format"])?;
    if asked.search.after.is_some() {
        return Err(ApiError::invalid("after", "an export is whole: it has no pages"));
    }
    let format = match asked.extra("format") {
        None => Format::Jsonl,
        Some(word) => Format::parse(&word).ok_or_else(|| {
            ApiError::invalid("format", format!("format must be jsonl, csv or parquet; it is '{}'", shown(&word)))
        })?,
    };
    let mut what = asked.what(journal);
    what["format"] = format.as_str().into();
    note(journal, &identity, Deed::Export, what).await?;
    let view = asked.view;
    let file = journal.export(asked.in_file_order(), format, view);
    let mut response = Response::new(Body::from_stream(file));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(format.media_type()));
    Ok(response)
}

/// POST /v1/journal/import
pub async fn import(
    State(app): State<AppState>,
    Extension(identity): Extension<Identity>,
    JsonBody(map): JsonBody,
) -> Result<Response, ApiError> {
    administrator(&identity)?;
    let mut fields = Fields::new(map);
    let source = fields.string("source", MAX_NAME_BYTES)?.unwrap_or_else(|| "import".to_owned());
    let mapping = match fields.take("mapping") {
        None => Mapping::default(),
        Some(mapping) => serde_json::from_value(mapping).map_err(|error| ApiError::invalid("mapping", error))?,
    };
    let rows =
        fields.list("rows")?.ok_or_else(|| ApiError::invalid("rows", "rows are needed: the lines of the log"))?;
    if rows.len() > MAX_ROWS {
        let message = format!("rows has at most {MAX_ROWS} lines; this has {}", rows.len());
        return Err(ApiError::invalid("rows", message));
    }
    params::leave(fields, app.limits(), &mut params::Form::default())?;
    let journal = app.gateway().journal();
    note(journal, &identity, Deed::Import, json!({"source": source})).await?;
    let imported = journal.import(&source, &rows, &mapping).await?;
    Ok(Json(json!({
        "object": "journal.import", "imported": imported.imported, "known": imported.known, "refused": imported.refused,
    }))
    .into_response())
}

/// POST /v1/journal/erase
pub async fn erase(
    State(app): State<AppState>,
    Extension(identity): Extension<Identity>,
    JsonBody(map): JsonBody,
) -> Result<Response, ApiError> {
    administrator(&identity)?;
    let mut fields = Fields::new(map);
    let user = fields.string("user", MAX_NAME_BYTES)?.filter(|user| !user.is_empty());
    let user = user.ok_or_else(|| ApiError::invalid("user", "user is needed: whose answers shall go"))?;
    params::leave(fields, app.limits(), &mut params::Form::default())?;
    let erasure = app.gateway().journal().erase_user(&user, &identity.who()).await?;
    Ok(Json(json!({
        "object": "journal.erasure", "completions": erasure.completions, "held_by": erasure.held_by,
        "beyond_reach": erasure.beyond_reach,
    }))
    .into_response())
}

/// GET /v1/journal/access: who has looked, the latest first.
pub async fn access(
    State(app): State<AppState>,
    Extension(identity): Extension<Identity>,
    query: Pairs,
) -> Result<Response, ApiError> {
    administrator(&identity)?;
    let asked = Asked::only(pairs(query)?, &[], &["since", "limit"])?;
    let query = AccessQuery {
        deeds: Vec::new(),
        since_ms: asked.search.since_ms.unwrap_or(i64::MIN),
        limit: asked.search.limit,
    };
    let data = app.gateway().journal().accesses(query).await?;
    Ok(Json(json!({"object": "list", "data": data})).into_response())
}

/// POST /v1/journal/access: puts on record that content was taken elsewhere by other means than these routes.
pub async fn note_access(
    State(app): State<AppState>,
    Extension(identity): Extension<Identity>,
    JsonBody(map): JsonBody,
) -> Result<Response, ApiError> {
    administrator(&identity)?;
    let mut fields = Fields::new(map);
    let deed = fields.word("deed", &["backup", "export"])?.and_then(|word| Deed::parse(&word));
    let deed = deed.ok_or_else(|| ApiError::invalid("deed", "deed is needed: backup or export"))?;
    let what = fields.object("what")?.map(Fields::into_map).unwrap_or_default();
    params::leave(fields, app.limits(), &mut params::Form::default())?;
    note(app.gateway().journal(), &identity, deed, what.into()).await?;
    Ok(Json(json!({"object": "journal.access", "noted": true})).into_response())
}
