//! What is not served says so, and names what is.

use axum::{
    extract::Request,
    response::{IntoResponse, Response},
};
use http::StatusCode;

use super::{error::ApiError, openai::fields::shown, route::Route};

/// The rest of OpenAI's API, by the first segment after `/v1/`.
const OPENAI: &[&str] = &[
    "assistants",
    "audio",
    "batches",
    "chatkit",
    "containers",
    "conversations",
    "edits",
    "embeddings",
    "evals",
    "files",
    "fine-tunes",
    "fine_tuning",
    "images",
    "moderations",
    "organization",
    "projects",
    "realtime",
    "responses",
    "skills",
    "threads",
    "uploads",
    "vector_stores",
    "videos",
];

/// For every path without a route.
pub async fn not_found(request: Request) -> Response {
    let path = request.uri().path();
    let known = path.strip_prefix("/v1/").and_then(|rest| rest.split('/').next());
    let what = match known {
        Some(segment) if OPENAI.contains(&segment) => {
            format!("/v1/{segment} is part of OpenAI's API, but it is not served here")
        }
        Some(_) | None => format!("there is no route {} {}", request.method(), shown(path)),
    };
    let error = ApiError::new(StatusCode::NOT_FOUND, "route_not_found", format!("{what}; served are {}", served()));
    error.into_response()
}

/// For a path that has a route, but not with this method.
pub async fn method_not_allowed(request: Request) -> Response {
    let message = format!("{} is not a method of {}", request.method(), shown(request.uri().path()));
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message).into_response()
}

fn served() -> String {
    let name = |route: &Route| format!("{} {}", route.method(), route.path().replace("{*id}", "{id}"));
    Route::ALL.iter().map(name).collect::<Vec<_>>().join(", ")
}
