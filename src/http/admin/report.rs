//! GET /v1/adapters/{name}/report: two versions of an adapter side by side.

use std::collections::BTreeSet;

use axum::{
    Json,
    response::{Html, IntoResponse, Response},
};
use http::StatusCode;

use crate::{
    feedback::report::{Asked, Ways},
    http::{AppState, error::ApiError, openai::fields::shown},
};

/// Answers of each version in a window, at most.
const MOST: usize = 100_000_000;

/// The report on `name`, as `query` asks for it.
pub async fn answer(app: &AppState, name: &str, query: Vec<(String, String)>) -> Result<Response, ApiError> {
    let is_base =
        app.gateway().settings().base_names.iter().any(|base| base == name) || name == app.gateway().base_name();
    let mut asked = Asked {
        adapter: (!is_base).then(|| name.to_owned()),
        label: name.to_owned(),
        current: app.gateway().adapters().named(name).and_then(|named| named.row.version),
        ..Asked::default()
    };
    let page = read(&mut asked, query)?;
    let report = app.flags().report(asked).await?;
    Ok(if page { Html(report.html()).into_response() } else { Json(report).into_response() })
}

/// Reads the query; true if a page is wanted.
fn read(asked: &mut Asked, query: Vec<(String, String)>) -> Result<bool, ApiError> {
    let mut page = false;
    for (name, value) in query {
        let bad = |wanted: &str| {
            ApiError::invalid(name.clone(), format!("{name} must be {wanted}; it is '{}'", shown(&value)))
        };
        let names = || -> BTreeSet<String> { value.split(',').map(|name| name.trim().to_owned()).collect() };
        match name.as_str() {
            "versions" => {
                let both: Vec<String> = value.split(',').map(|version| version.trim().to_owned()).collect();
                let named = |version: &String| version.len() >= 6 || version == "base";
                asked.versions = Some(
                    both.try_into()
                        .ok()
                        .filter(|both: &[String; 2]| both.iter().all(named))
                        .ok_or_else(|| bad("two versions by 6 or more digits each, as A,B"))?,
                );
            }
            "since" => {
                let seconds: i64 = value.parse().map_err(|_| bad("Unix seconds"))?;
                asked.since_ms = Some(seconds.saturating_mul(1000));
            }
            "last" => {
                let last = value.parse().ok().filter(|last| (1..=MOST).contains(last));
                asked.last = Some(last.ok_or_else(|| bad(&format!("between 1 and {MOST}")))?);
            }
            "higher" => asked.ways.higher = names(),
            "lower" => asked.ways.lower = names(),
            "format" => {
                page = match value.as_str() {
                    "json" => false,
                    "html" => true,
                    _ => return Err(bad("json or html")),
                }
            }
            unknown => {
                let message = format!("{} is no parameter of this route", shown(unknown));
                return Err(ApiError::new(StatusCode::BAD_REQUEST, "unknown_parameter", message).about(shown(unknown)));
            }
        }
    }
    let Ways { higher, lower } = &asked.ways;
    if let Some(both) = higher.intersection(lower).next() {
        let message = format!("'{}' cannot be better both higher and lower", shown(both));
        return Err(ApiError::invalid("lower", message));
    }
    Ok(page)
}
