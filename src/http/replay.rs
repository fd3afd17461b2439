//! A recorded request, run again, for the operator.

use axum::{
    Extension, Json,
    extract::{Path, State, rejection::PathRejection},
    response::{IntoResponse, Response},
};

use serde_json::json;

use super::{
    AppState,
    auth::{Identity, Role},
    error::ApiError,
};
use crate::{
    journal::{Access, Deed},
    terms::Moment,
};

/// POST /admin/replay/{id}: then and now, choice by choice. Any key's completion, so only for admins.
pub async fn create(
    State(app): State<AppState>,
    Extension(identity): Extension<Identity>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Response, ApiError> {
    identity.reads_records()?;
    identity.has_role(Role::Admin)?;
    let Path(id) = id.map_err(|_| ApiError::invalid("id", "the id in the path is not UTF-8"))?;
    let access = Access::once(Moment::unix_ms(), &identity.who(), Deed::Replay, json!({"id": id}));
    app.gateway().journal().note(access).await?;
    Ok(Json(app.gateway().replay(&id).await?).into_response())
}
