//! GET /openapi.json: every route with its parameters, bodies and answers, for people and generators.

mod adapters;
mod feedback;
mod flags;
mod journal;
mod operations;
mod report;
mod schemas;

use std::sync::LazyLock;

use axum::response::{IntoResponse, Response};
use http::header;
use serde_json::{Map, Value, json};

use super::route::Route;

/// GET /openapi.json
pub async fn document() -> Response {
    static TEXT: LazyLock<String> = LazyLock::new(|| whole().to_string());
    ([(header::CONTENT_TYPE, "application/json")], TEXT.as_str()).into_response()
}

/// The document itself, OpenAPI 3.1.
pub fn whole() -> Value {
    let mut paths = Map::new();
    for &route in Route::ALL {
        let path = paths.entry(route.shown_path()).or_insert_with(|| json!({}));
        path[route.method().as_str().to_ascii_lowercase()] = operations::operation(route);
    }
    // Served by the route of one adapter, whose name may hold slashes.
    paths.insert("/v1/adapters/{id}/report".to_owned(), json!({"get": report::operation()}));
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "tunegate",
            "version": env!("CARGO_PKG_VERSION"),
            "summary": "One base language model, a LoRA adapter chosen by each request, every answer on record.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "security": [{"key": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
            "schemas": schemas::all(),
            "responses": {
                "Error": {
                    "description": "A refusal or failure; `code` says which, `param` what it is about.",
                    "headers": {
                        "retry-after": {"description": "Seconds, where it is known.", "schema": {"type": "integer"}},
                        "x-request-id": {"schema": {"type": "string"}},
                    },
                    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
                },
            },
        },
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::{
        config::LimitsConfig,
        http::openai::question::{Envelope, chat, completions},
    };

    /// Every `$ref` in the document.
    fn references<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
        match value {
            Value::Object(fields) => fields.iter().for_each(|(name, value)| match (name.as_str(), value) {
                ("$ref", Value::String(target)) => found.push(target),
                _ => references(value, found),
            }),
            Value::Array(items) => items.iter().for_each(|item| references(item, found)),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }

    #[test]
    fn every_reference_leads_somewhere() {
        let document = whole();
        let mut found = Vec::new();
        references(&document, &mut found);
        assert!(!found.is_empty());
        for target in found {
            let pointer = target.strip_prefix('#').unwrap();
            assert!(document.pointer(pointer).is_some(), "{target} leads nowhere");
        }
    }

    #[test]
    fn every_schema_is_used() {
        let document = whole();
        let mut found = Vec::new();
        references(&document, &mut found);
        for name in document["components"]["schemas"].as_object().unwrap().keys() {
            assert!(found.contains(&format!("#/components/schemas/{name}").as_str()), "{name} is used nowhere");
        }
    }

    #[test]
    fn every_route_is_described_once_with_answers_and_its_path_parameters() {
        let document = whole();
        let mut ids = HashSet::new();
        for route in Route::ALL {
            let method = route.method().as_str().to_ascii_lowercase();
            let operation = &document["paths"][route.shown_path()][&method];
            assert!(ids.insert(operation["operationId"].as_str().unwrap().to_owned()), "{route:?}");
            assert!(!operation["summary"].as_str().unwrap().is_empty(), "{route:?}");
            let answers = operation["responses"].as_object().unwrap();
            assert!(
                answers.contains_key("200")
                    && answers.values().all(|a| a.get("$ref").is_some() || a.get("description").is_some())
            );
            let declared: Vec<&str> = operation["parameters"].as_array().map_or(Vec::new(), |parameters| {
                parameters.iter().filter(|p| p["in"] == "path").filter_map(|p| p["name"].as_str()).collect()
            });
            assert_eq!(route.path().contains("id}"), declared == ["id"], "{route:?}");
            assert_eq!(operation["security"] == json!([]), route.is_open(), "{route:?}");
        }
        let described: usize =
            document["paths"].as_object().unwrap().values().map(|path| path.as_object().unwrap().len()).sum();
        assert_eq!(described, Route::ALL.len() + 1, "and the report");
    }

    #[test]
    fn the_manual_names_every_route_and_parameter() {
        let manual = include_str!("../../docs/api.md");
        for route in Route::ALL {
            assert!(manual.contains(&route.shown_path()), "{route:?}");
        }
        let document = whole();
        for schema in ["ChatRequest", "CompletionRequest"] {
            for name in document["components"]["schemas"][schema]["properties"].as_object().unwrap().keys() {
                assert!(manual.contains(&format!("`{name}`")), "{name}");
            }
        }
    }

    #[test]
    fn every_described_parameter_is_read() {
        let document = whole();
        let object = |value: Value| value.as_object().cloned().unwrap();
        let known = |schema: &str| object(document["components"]["schemas"][schema]["properties"].clone());
        let limits = LimitsConfig { strict_fields: true, ..LimitsConfig::default() };
        let nonsense = json!({"nonsense": {}});
        for name in known("ChatRequest").keys() {
            let mut map = object(json!({"model": "m", "messages": [{"role": "user", "content": "x"}]}));
            map.insert(name.clone(), nonsense.clone());
            let error = chat(map, Envelope::default(), &limits).unwrap_err();
            assert!(error.param.as_deref().is_some_and(|param| param.starts_with(name.as_str())), "{name}: {error:?}");
        }
        for name in known("CompletionRequest").keys() {
            let mut map = object(json!({"model": "m", "prompt": "x"}));
            map.insert(name.clone(), nonsense.clone());
            let error = completions(map, Envelope::default(), &limits).unwrap_err();
            assert!(error.param.as_deref().is_some_and(|param| param.starts_with(name.as_str())), "{name}: {error:?}");
        }
    }
}
