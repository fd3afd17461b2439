//! Health, metrics and version: answered from what is known already, never by asking the engine.

use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};
use http::{StatusCode, header};
use serde_json::json;

use super::{AppState, error::ApiError};
use crate::{
    adapters::Residency,
    journal::Health,
    metrics::{LoadedAdapter, VllmView},
};

/// GET /health: whether the engine is alive. Idle is alive; work that does not move is not.
pub async fn health(State(app): State<AppState>) -> Response {
    match engine_fault(&app) {
        Some(error) => error.into_response(),
        None => Json(json!({"status": "ok"})).into_response(),
    }
}

/// GET /health/ready: whether new requests are welcome.
pub async fn ready(State(app): State<AppState>) -> Response {
    let fault = if app.is_draining() { Some(ApiError::draining()) } else { engine_fault(&app) };
    let fault = fault.or_else(|| app.gateway().journal().refusal().map(ApiError::record_unavailable));
    match fault {
        Some(error) => error.into_response(),
        None => Json(json!({"status": "ready"})).into_response(),
    }
}

fn engine_fault(app: &AppState) -> Option<ApiError> {
    let load = app.gateway().engine().load();
    if load.stopped {
        return Some(ApiError::engine_stopped());
    }
    load.stalled.then(|| {
        let message = format!("the engine has work and has not moved for {} ms", load.since_last_step.as_millis());
        ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "engine_stalled", message)
    })
}

/// GET /metrics, in Prometheus' text format.
pub async fn metrics(State(app): State<AppState>) -> Response {
    let load = app.gateway().engine().load();
    let entries = app.gateway().adapters().list();
    let names = |wanted: Residency| {
        let there = entries.iter().filter(move |entry| entry.residency == wanted);
        there.map(|entry| entry.name.to_string()).collect::<Vec<_>>()
    };
    // Without a host memory beside the device's there is no such tier, and no series that says 0.
    let hosted = app.gateway().adapters().resident().host.map(|_| Residency::Host);
    for residency in [Residency::Resident, Residency::Loading, Residency::Cold].into_iter().chain(hosted) {
        let count = entries.iter().filter(|entry| entry.residency == residency).count();
        app.metrics()
            .adapter_names
            .with_label_values(&[residency.tier()])
            .set(i64::try_from(count).unwrap_or(i64::MAX));
    }
    app.metrics().record_up.set(i64::from(app.gateway().journal().health() == Health::Up));
    let leases = app.gateway().adapters().leases();
    app.metrics().adapter_leases.set(i64::try_from(leases).unwrap_or(i64::MAX));
    let at = |residency: Residency| -> Vec<LoadedAdapter> {
        let there = entries.iter().filter(|entry| entry.residency == residency);
        let loaded = there.map(|entry| LoadedAdapter {
            name: entry.name.to_string(),
            rank: entry.card.rank,
            pinned: app.gateway().adapters().is_pinned(entry.version),
        });
        loaded.collect()
    };
    let view = VllmView {
        loaded: at(Residency::Resident),
        hosted: at(Residency::Host),
        model_name: app.gateway().base_name().to_owned(),
        running: load.running,
        waiting: load.waiting,
        max_lora: app.max_loras(),
        resident: names(Residency::Resident),
        loading: names(Residency::Loading),
    };
    let text = app.metrics().render(&view);
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}

/// GET /version.
pub async fn version() -> Response {
    Json(json!({"version": env!("CARGO_PKG_VERSION")})).into_response()
}
