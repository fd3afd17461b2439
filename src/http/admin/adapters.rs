//! `/v1/adapters` and vLLM's load and unload: what is served, how it came to be, and changing it.

use axum::{
    Extension, Json,
    extract::{
        Path, Query, State,
        rejection::{PathRejection, QueryRejection},
    },
    response::{IntoResponse, Response},
};
use http::{HeaderMap, StatusCode};
use serde_json::{Value, json};

use super::{
    report, suites,
    view::{AdapterBody, TimesBody},
    vllm,
};
use crate::{
    adapters::{
        AdapterError, ManagedBy, Refusal,
        source::{Place, SourceError},
    },
    gateway::publish::{Candidate, Expected, Load, Origin, PublishError, Published, Rollback, Unload},
    http::{
        AppState,
        auth::Identity,
        body::JsonBody,
        error::ApiError,
        openai::fields::{Fields, shown},
    },
    terms::AdapterName,
};

/// The longest path of a load.
const MAX_PATH_BYTES: usize = 4096;
/// The longest reason for a change.
const MAX_WHY_BYTES: usize = 1024;
/// What vLLM's callers send and what means nothing here.
const WITHOUT_EFFECT: &[&str] = &["base_model_name", "lora_int_id", "lora_path"];

/// POST /v1/load_lora_adapter
pub async fn load(
    State(app): State<AppState>,
    Extension(identity): Extension<Identity>,
    headers: HeaderMap,
    body: Result<JsonBody, ApiError>,
) -> Response {
    match load_now(&app, &identity, body).await {
        Ok((published, compared)) => {
            let name = &published.row.name;
            let sentence = format!("Success: LoRA adapter '{name}' added successfully.");
            let mut value = shown_as(&app, &published);
            if let Some(compared) = compared {
                value["suite"] = compared;
            }
            vllm::success(&headers, sentence, published.version(), value)
        }
        Err(error) => vllm::refusal(error),
    }
}

/// With what the comparison found, where a suite was named.
async fn load_now(
    app: &AppState,
    identity: &Identity,
    body: Result<JsonBody, ApiError>,
) -> Result<(Published, Option<Value>), ApiError> {
    let mut fields = admitted(app, identity, body)?;
    let name = name(&mut fields)?;
    let path = path(&mut fields)?;
    let replace = fields.boolean("load_inplace")?.unwrap_or(false);
    let expected = expected(&mut fields)?;
    let pinned = fields.boolean("pinned")?;
    let suite = fields.string("suite", AdapterName::MAX_BYTES)?;
    if fields.boolean("is_3d_lora_weight")? == Some(true) {
        return Err(ApiError::unsupported("is_3d_lora_weight", "no model with experts is served"));
    }
    let why = fields.string("why", MAX_WHY_BYTES)?;
    rest(app, fields)?;
    let (candidate, source) = candidate(app, &path).await?;
    let gateway = app.gateway();
    let (gate, found) = match suite {
        Some(suite) => {
            let (gate, found) = suites::gate(gateway, app.suites(), &suite).await?;
            (Some(gate), Some(found))
        }
        None => (None, None),
    };
    let origin = Origin { managed_by: ManagedBy::Api, who: identity.who(), why, source: Some(source) };
    let load = Load { name, candidate, replace, expected, pinned, warm: true, origin };
    let published = gateway.publisher().load_if(load, gate).await?;
    Ok((published, found.map(|found| found.take())))
}

/// POST /v1/unload_lora_adapter
pub async fn unload(
    State(app): State<AppState>,
    Extension(identity): Extension<Identity>,
    headers: HeaderMap,
    body: Result<JsonBody, ApiError>,
) -> Response {
    match unload_now(&app, &identity, body).await {
        Ok((name, version)) => {
            let sentence = format!("Success: LoRA adapter '{name}' removed successfully.");
            let value = json!({"id": name, "object": "adapter", "status": "unloaded", "was": version});
            vllm::success(&headers, sentence, version, value)
        }
        Err(error) => vllm::refusal(error),
    }
}

async fn unload_now(
    app: &AppState,
    identity: &Identity,
    body: Result<JsonBody, ApiError>,
) -> Result<(AdapterName, crate::terms::AdapterVersion), ApiError> {
    let mut fields = admitted(app, identity, body)?;
    let name = name(&mut fields)?;
    let expected = expected(&mut fields)?;
    let why = fields.string("why", MAX_WHY_BYTES)?;
    rest(app, fields)?;
    let origin = Origin { managed_by: ManagedBy::Api, who: identity.who(), why, source: None };
    match app.gateway().publisher().unload(Unload { name: name.clone(), expected, origin }).await {
        Ok(version) => Ok((name, version)),
        // KubeAI takes an adapter for gone at this status and these words; nobody else looks.
        Err(error @ PublishError::NotLoaded { .. }) => {
            Err(ApiError::new(StatusCode::BAD_REQUEST, "adapter_not_found", error).about("lora_name"))
        }
        Err(error) => Err(error.into()),
    }
}

/// GET /v1/adapters
pub async fn list(State(app): State<AppState>, Extension(identity): Extension<Identity>) -> Result<Response, ApiError> {
    identity.administers()?;
    let adapters = app.gateway().adapters();
    let refused = adapters.refused();
    let names = adapters.names();
    let mut data: Vec<AdapterBody> = Vec::new();
    for named in names.iter().filter(|named| named.row.version.is_some()) {
        data.push(AdapterBody::of(named, adapters, reasons(&refused, named.row.name.as_str()), false));
    }
    for (name, confined) in adapters.confined() {
        let listed = |known: &str| known == name.as_str();
        if !data.iter().any(|body| listed(body.id())) && !refused.iter().any(|(refused, _)| listed(refused)) {
            data.push(AdapterBody::quarantined(name.as_str(), confined));
        }
    }
    for (name, refusals) in &refused {
        if !names.iter().any(|named| named.row.name.as_str() == name && named.row.version.is_some()) {
            data.push(AdapterBody::refused(name, refusals, adapters));
        }
    }
    let memory = json!({"bytes": adapters.resident().bytes, "limit_bytes": app.max_adapter_bytes()});
    let followed = app.gateway().reports().borrow().clone();
    let base = json!({"id": app.gateway().base_name(), "digest": adapters.base()});
    let list = json!({"object": "list", "data": data, "memory": memory, "followed": followed, "base": base});
    Ok(Json(list).into_response())
}

/// GET /v1/adapters/{id}, and GET /v1/adapters/{id}/report; the name may hold slashes.
pub async fn get(
    State(app): State<AppState>,
    Extension(identity): Extension<Identity>,
    id: Result<Path<String>, PathRejection>,
    query: Result<Query<Vec<(String, String)>>, QueryRejection>,
) -> Result<Response, ApiError> {
    identity.administers()?;
    let Path(id) = id.map_err(|_| ApiError::invalid("id", "the adapter's name in the path is not UTF-8"))?;
    let adapters = app.gateway().adapters();
    if let Some(name) = id.strip_suffix("/report")
        && adapters.named(&id).is_none()
    {
        identity.reads_records()?;
        let Query(query) = query.map_err(|_| ApiError::invalid("query", "the query string cannot be read"))?;
        return report::answer(&app, name, query).await;
    }
    let refused = adapters.refused();
    let reasons = reasons(&refused, &id);
    let body = match (adapters.named(&id), reasons) {
        (Some(named), reasons) => AdapterBody::of(&named, adapters, reasons, true),
        (None, Some(reasons)) => AdapterBody::refused(&id, reasons, adapters),
        (None, None) => match adapters.confined_as(&id, None) {
            Some(confined) => AdapterBody::quarantined(&id, confined),
            None => return Err(unknown(&id)),
        },
    };
    Ok(Json(body).into_response())
}

/// POST /v1/adapters/{id}/rollback: one step back, or to a named version.
pub async fn rollback(
    State(app): State<AppState>,
    Extension(identity): Extension<Identity>,
    id: Result<Path<String>, PathRejection>,
    body: Result<JsonBody, ApiError>,
) -> Result<Response, ApiError> {
    let mut fields = admitted(&app, &identity, body)?;
    let Path(id) = id.map_err(|_| ApiError::invalid("id", "the adapter's name in the path is not UTF-8"))?;
    let Some(name) = id.strip_suffix("/rollback") else {
        let message =
            format!("there is no route POST /v1/adapters/{}; there is /v1/adapters/NAME/rollback", shown(&id));
        return Err(ApiError::new(StatusCode::NOT_FOUND, "route_not_found", message));
    };
    let name = AdapterName::parse(name).map_err(|_| unknown(name))?;
    let to = fields.string("version", 64)?;
    let expected = expected(&mut fields)?;
    let why = fields.string("why", MAX_WHY_BYTES)?;
    rest(&app, fields)?;
    let source = app.gateway().adapters().named(name.as_str()).and_then(|named| named.row.source);
    let origin = Origin { managed_by: ManagedBy::Api, who: identity.who(), why, source };
    let rollback = Rollback { name, to, expected, origin };
    let published = app.gateway().publisher().rollback(rollback).await.map_err(|error| match error {
        PublishError::Adapter(AdapterError::UnknownVersion { .. } | AdapterError::AmbiguousVersion { .. }) => {
            ApiError::from(error).about("version")
        }
        error => error.into(),
    })?;
    Ok(Json(shown_as(&app, &published)).into_response())
}

/// POST /v1/adapters/check: the plan that would be applied, or every reason for refusal; loads nothing.
pub async fn check(
    State(app): State<AppState>,
    Extension(identity): Extension<Identity>,
    body: Result<JsonBody, ApiError>,
) -> Result<Response, ApiError> {
    let mut fields = admitted(&app, &identity, body)?;
    let path = path(&mut fields)?;
    rest(&app, fields)?;
    let (candidate, _) = candidate(&app, &path).await?;
    let checked = app.gateway().publisher().check(shown(&path), candidate).await;
    let body = match checked {
        Ok(plan) => json!({"object": "adapter.check", "loadable": true, "plan": plan}),
        Err(PublishError::Adapter(AdapterError::Refused { refusals, .. })) => {
            json!({"object": "adapter.check", "loadable": false, "refused": *refusals})
        }
        Err(error) => return Err(error.into()),
    };
    Ok(Json(body).into_response())
}

/// The fields of somebody who may change what is served, while the server is not on its way down.
fn admitted(app: &AppState, identity: &Identity, body: Result<JsonBody, ApiError>) -> Result<Fields, ApiError> {
    identity.administers()?;
    if app.is_draining() {
        return Err(ApiError::draining());
    }
    body.map(|JsonBody(map)| Fields::new(map))
}

fn name(fields: &mut Fields) -> Result<AdapterName, ApiError> {
    let given = fields.required("lora_name")?;
    let given = crate::http::openai::fields::string_at("lora_name", given, MAX_PATH_BYTES)?;
    AdapterName::parse(&given).map_err(|error| ApiError::invalid("lora_name", error))
}

fn path(fields: &mut Fields) -> Result<String, ApiError> {
    let given = fields.required("lora_path")?;
    crate::http::openai::fields::string_at("lora_path", given, MAX_PATH_BYTES)
}

/// `expected_version`: 6 or more digits, or `none`.
fn expected(fields: &mut Fields) -> Result<Expected, ApiError> {
    let Some(given) = fields.string("expected_version", 64)? else { return Ok(Expected::Anything) };
    if given == "none" {
        return Ok(Expected::Nothing);
    }
    let digits = given.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
    if given.len() < 6 || !digits {
        let message = "expected_version is 6 or more of a version's hex digits, or 'none'";
        return Err(ApiError::invalid("expected_version", message));
    }
    Ok(Expected::Version(given))
}

/// What a `lora_path` means, and where it came from: a folder below a configured root or an object of a configured source,
/// which is fetched, and nothing else.
async fn candidate(app: &AppState, path: &str) -> Result<(Candidate, String), ApiError> {
    let sources = app.gateway().sources();
    match sources.place(path)? {
        Place::Folder { root, path: folder } => Ok((Candidate::Folder { root, path: folder }, path.to_owned())),
        place @ Place::Object { .. } => {
            let delivery = sources.open_place(&place).await.map_err(|error| refused_at(path, error))?;
            Ok((Candidate::Files(delivery.files), delivery.origin))
        }
    }
}

fn refused_at(path: &str, error: SourceError) -> ApiError {
    match error {
        SourceError::Refused(refusals) => AdapterError::Refused { name: shown(path), refusals: refusals.into() }.into(),
        error => error.into(),
    }
}

/// Unknown fields are passed over, as vLLM does, or refused where the server is strict.
fn rest(app: &AppState, mut fields: Fields) -> Result<(), ApiError> {
    for name in WITHOUT_EFFECT {
        fields.take(name);
    }
    let unknown = fields.rest();
    match unknown.first() {
        Some(field) if app.limits().strict_fields => {
            let message = format!("{field} is not known here");
            Err(ApiError::new(StatusCode::BAD_REQUEST, "unknown_parameter", message).about(field.clone()))
        }
        Some(_) | None => {
            app.name_ignored(unknown.iter().map(String::as_str));
            Ok(())
        }
    }
}

fn reasons<'a>(refused: &'a [(String, Vec<Refusal>)], name: &str) -> Option<&'a [Refusal]> {
    refused.iter().find(|(refused, _)| refused == name).map(|(_, refusals)| refusals.as_slice())
}

fn unknown(name: &str) -> ApiError {
    let message = format!("The lora adapter '{}' cannot be found.", shown(name));
    ApiError::new(StatusCode::NOT_FOUND, "adapter_not_found", message).about("id")
}

/// A name after a change, with what it had before.
fn shown_as(app: &AppState, published: &Published) -> Value {
    let adapters = app.gateway().adapters();
    let named = adapters.named(published.row.name.as_str());
    let mut value = named.map_or(Value::Null, |named| json!(AdapterBody::of(&named, adapters, None, false)));
    value["was"] = json!(published.was);
    value["changed"] = json!(published.step.is_some());
    value["times"] = json!(TimesBody::of(published.times));
    value
}
