//! `/v1/models`: the base first, then the adapters; to each key its own.

use axum::{
    Extension, Json,
    extract::{Path, State, rejection::PathRejection},
    response::{IntoResponse, Response},
};
use serde::Serialize;

use super::fields::shown;
use crate::{
    gateway::Caller,
    http::{AppState, auth::Identity, error::ApiError},
};

/// One model as OpenAI's and vLLM's clients know it.
#[derive(Debug, Serialize)]
struct ModelBody {
    id: String,
    object: &'static str,
    created: i64,
    owned_by: &'static str,
    /// The base's name, or adapter and version; never a path.
    root: String,
    parent: Option<String>,
    max_model_len: usize,
}

#[derive(Debug, Serialize)]
struct ModelList {
    object: &'static str,
    data: Vec<ModelBody>,
}

/// GET /v1/models
pub async fn list(State(app): State<AppState>, Extension(identity): Extension<Identity>) -> Response {
    Json(ModelList { object: "list", data: models(&app, &identity.caller) }).into_response()
}

/// GET /v1/models/{id}; the id may hold slashes, as they are or percent-encoded.
pub async fn get(
    State(app): State<AppState>,
    Extension(identity): Extension<Identity>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Response, ApiError> {
    let Path(id) = id.map_err(|_| ApiError::invalid("model", "the model's name in the path is not UTF-8"))?;
    if let Some(model) = models(&app, &identity.caller).into_iter().find(|model| model.id == id) {
        return Ok(Json(model).into_response());
    }
    // Asked for like a question would: the same words about what is missing, refused, or not this key's.
    app.gateway().route(&id, &identity.caller).map_err(ApiError::from)?;
    Err(ApiError::no_model(&shown(&id), None))
}

fn models(app: &AppState, caller: &Caller) -> Vec<ModelBody> {
    let gateway = app.gateway();
    let max_model_len = gateway.engine().limits().max_model_len;
    let base = gateway.base_name();
    let own = |name: &str| caller.models.as_ref().is_none_or(|models| models.iter().any(|model| model == name));
    let bases = gateway.settings().base_names.iter().map(|name| ModelBody {
        id: name.clone(),
        object: "model",
        created: app.started(),
        owned_by: "tunegate",
        root: base.to_owned(),
        parent: None,
        max_model_len,
    });
    let adapters = gateway.adapters().list().into_iter().map(|entry| ModelBody {
        id: entry.name.to_string(),
        object: "model",
        created: entry.created,
        owned_by: "tunegate",
        root: format!("{}@{}", entry.name, entry.version.short()),
        parent: Some(base.to_owned()),
        max_model_len,
    });
    bases.chain(adapters).filter(|model| own(&model.id)).collect()
}
