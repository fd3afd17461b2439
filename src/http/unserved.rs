//! What is not served says so, and names what is.

use axum::{
    extract::{MatchedPath, Request},
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
        Some(_) | None => format!("there is no route {} {}{}", request.method(), shown(path), hint(path)),
    };
    let error = ApiError::new(StatusCode::NOT_FOUND, "route_not_found", format!("{what}; served are {}", served()));
    error.into_response()
}

/// For a path that has a route, but not with this method.
pub async fn method_not_allowed(request: Request) -> Response {
    let methods = request.extensions().get::<MatchedPath>().map_or_else(String::new, |path| methods(path.as_str()));
    let message = format!("{} is not a method of {}{methods}", request.method(), shown(request.uri().path()));
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message).into_response()
}

/// What those who forgot `/v1`, said it twice, or added a slash were looking for.
fn hint(path: &str) -> String {
    let bare = path.trim_end_matches('/');
    let guesses = [bare.to_owned(), format!("/v1{bare}"), bare.replacen("/v1/v1/", "/v1/", 1)];
    let known = guesses.into_iter().find(|guess| guess != path && Route::ALL.iter().any(|route| route.path() == guess));
    match known {
        Some(known) if known.starts_with("/v1/") && !path.starts_with(&known) => {
            format!(", but there is {known} (the base URL of OpenAI's clients ends with /v1, once)")
        }
        Some(known) => format!(", but there is {known}"),
        None => String::new(),
    }
}

/// The methods of a path that has a route.
fn methods(path: &str) -> String {
    let has = |route: &&Route| route.path() == path;
    let methods: Vec<String> = Route::ALL.iter().filter(has).map(|route| route.method().to_string()).collect();
    if methods.is_empty() { String::new() } else { format!("; it has {}", methods.join(", ")) }
}

fn served() -> String {
    let name = |route: &Route| format!("{} {}", route.method(), route.shown_path());
    Route::ALL.iter().map(name).collect::<Vec<_>>().join(", ")
}
