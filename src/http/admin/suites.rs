//! The suites that a load may name: files below the configured folders, and nothing else.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use futures_util::FutureExt;
use http::StatusCode;
use serde_json::{Value, json};

use crate::{
    eval::{Suite, SuiteError, gate},
    gateway::{
        Gateway,
        publish::{Gate, PublishError},
    },
    http::{error::ApiError, openai::fields::shown},
    terms::AdapterName,
};

/// What a comparison found, once it is over; null before, and where there was nothing to compare with.
#[derive(Clone, Default)]
pub struct Found(Arc<Mutex<Value>>);

impl Found {
    pub fn take(&self) -> Value {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn put(&self, value: Value) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = value;
    }
}

/// A gate that asks the suite of this name.
///
/// # Errors
/// 400 if the name is none or the suite is malformed, 404 if there is no such suite.
pub async fn gate(gateway: &Gateway, folders: &[PathBuf], name: &str) -> Result<(Gate, Found), ApiError> {
    if folders.is_empty() {
        return Err(ApiError::unsupported("suite", "this server has no suites; --suite-dir names their folders"));
    }
    // The same letters as an adapter's name: nothing in it leads anywhere else.
    if AdapterName::parse(name).is_err() {
        return Err(ApiError::invalid("suite", format!("'{}' is no suite's name", shown(name))));
    }
    let (folders, file) = (folders.to_vec(), format!("{name}.jsonl"));
    let found = tokio::task::spawn_blocking(move || find(&folders, &file).map(|path| Suite::read(&path)));
    let suite = match found.await {
        Ok(Some(Ok(suite))) => Arc::new(suite),
        Ok(Some(Err(error))) => {
            let message = format!("the suite '{}' cannot be used: {}", shown(name), reason(&error));
            return Err(ApiError::new(StatusCode::BAD_REQUEST, "suite_malformed", message).about("suite"));
        }
        Ok(None) => {
            let message = format!("there is no suite '{}'", shown(name));
            return Err(ApiError::new(StatusCode::NOT_FOUND, "suite_not_found", message).about("suite"));
        }
        Err(_) => return Err(ApiError::unguarded()),
    };
    let (gateway, found) = (gateway.clone(), Found::default());
    let told = found.clone();
    let gate: Gate = Arc::new(move |current, candidate| {
        let (gateway, suite, told) = (gateway.clone(), Arc::clone(&suite), told.clone());
        async move {
            let name = candidate.name.clone();
            let report = gate::compare(&gateway, &suite, &current, &candidate).await;
            let report = report.map_err(|reason| PublishError::Uncompared { name: name.clone(), reason })?;
            if let Some(reason) = gate::objection(&report) {
                let unanswered = report.contenders.iter().any(|contender| contender.failed > 0);
                return Err(match unanswered {
                    true => PublishError::Uncompared { name, reason },
                    false => PublishError::Worse { name, reason },
                });
            }
            tracing::info!(adapter = %name, figures = gate::figures(&report), "a candidate stands the comparison");
            let pair = report.comparisons.first();
            told.put(json!({"suite": report.suite, "primary": report.primary, "comparison": pair}));
            Ok(())
        }
        .boxed()
    });
    Ok((gate, found))
}

fn find(folders: &[PathBuf], file: &str) -> Option<PathBuf> {
    let inside = |folder: &PathBuf| {
        let folder = folder.canonicalize().ok()?;
        let path = folder.join(file).canonicalize().ok()?;
        (path.starts_with(&folder) && path.is_file()).then_some(path)
    };
    folders.iter().find_map(inside)
}

/// The fault without the place on the server's disk.
fn reason(error: &SuiteError) -> String {
    let strip = |path: &Path| error.to_string().replace(&path.display().to_string(), "it");
    match error {
        SuiteError::Io { path, .. } | SuiteError::Line { path, .. } | SuiteError::Malformed { path, .. } => strip(path),
        SuiteError::Preset { .. } | SuiteError::Contender(_) => error.to_string(),
    }
}
