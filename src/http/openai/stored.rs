//! Stored completions: what was asked with `store: true`, to its own key.

use axum::{
    Extension, Json,
    extract::{
        Path, Query, State,
        rejection::{PathRejection, QueryRejection},
    },
    response::{IntoResponse, Response},
};
use http::StatusCode;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::{
    fields::{Fields, shown},
    logprobs::chat_tokens,
    params,
    wire::{ChatChoice, ChatLogprobs, ChatMessage, UsageBody},
};
use crate::{
    http::{AppState, auth::Identity, body::JsonBody, error::ApiError, feedback::shown_feedback},
    journal::{ChoiceRecord, Completion, CompletionKind, Given, ListQuery, NOT_KEPT, Order},
    terms::{Ending, Message},
    text::Text,
};

const PAGE: usize = 20;
const MAX_PAGE: usize = 100;

/// One stored completion, as OpenAI shows it.
#[derive(Debug, Serialize)]
struct StoredBody<'a> {
    id: &'a str,
    object: &'static str,
    created: i64,
    model: &'a str,
    request_id: &'a str,
    choices: Vec<StoredChoice<'a>>,
    usage: UsageBody,
    seed: u64,
    temperature: f32,
    top_p: f32,
    presence_penalty: f32,
    frequency_penalty: f32,
    metadata: &'a Map<String, Value>,
    input_user: Option<&'a str>,
    tools: Option<()>,
    tool_choice: Option<()>,
    response_format: Option<()>,
    service_tier: &'static str,
    /// What the caller said of it.
    feedback: Vec<Value>,
}

#[derive(Debug, Serialize)]
struct StoredChoice<'a> {
    #[serde(flatten)]
    choice: ChatChoice<'a>,
    /// Set where the answer did not end of its own accord.
    #[serde(skip_serializing_if = "Option::is_none")]
    ending: Option<&'static str>,
}

/// GET /v1/chat/completions
pub async fn list(
    State(app): State<AppState>,
    Extension(identity): Extension<Identity>,
    query: Result<Query<Vec<(String, String)>>, QueryRejection>,
) -> Result<Response, ApiError> {
    identity.reads_records()?;
    let Query(pairs) = query.map_err(|_| ApiError::invalid("query", "the query string cannot be read"))?;
    let query = list_query(pairs, identity.caller.key.clone())?;
    let page = app.gateway().journal().list(query).await?;
    let data = shown_completions(&app, &identity, &page.completions).await?;
    let ids = (page.completions.first().map(|c| c.id.as_str()), page.completions.last().map(|c| c.id.as_str()));
    Ok(Json(listed(&data, ids, page.more)).into_response())
}

/// GET /v1/chat/completions/{id}
pub async fn get(
    State(app): State<AppState>,
    Extension(identity): Extension<Identity>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Response, ApiError> {
    let completion = find(&app, &identity, id).await?;
    shown_one(&app, &identity, completion).await
}

/// POST /v1/chat/completions/{id}: replaces the metadata.
pub async fn update(
    State(app): State<AppState>,
    Extension(identity): Extension<Identity>,
    id: Result<Path<String>, PathRejection>,
    JsonBody(map): JsonBody,
) -> Result<Response, ApiError> {
    let mut completion = find(&app, &identity, id).await?;
    let mut fields = Fields::new(map);
    let metadata = match fields.required("metadata")? {
        Value::Object(metadata) => metadata,
        other => return Err(super::fields::wrong_type("metadata", "an object", &other)),
    };
    params::check_metadata(&metadata)?;
    params::leave(fields, app.limits(), &mut params::Form::default())?;
    if !app.gateway().journal().set_metadata(&completion.id, metadata.clone()).await? {
        return Err(missing(&completion.id));
    }
    completion.metadata = metadata;
    shown_one(&app, &identity, completion).await
}

/// DELETE /v1/chat/completions/{id}
pub async fn delete(
    State(app): State<AppState>,
    Extension(identity): Extension<Identity>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Response, ApiError> {
    let completion = find(&app, &identity, id).await?;
    if !app.gateway().journal().delete(&completion.id).await? {
        return Err(missing(&completion.id));
    }
    Ok(Json(json!({"object": "chat.completion.deleted", "id": completion.id, "deleted": true})).into_response())
}

/// GET /v1/chat/completions/{id}/messages
pub async fn messages(
    State(app): State<AppState>,
    Extension(identity): Extension<Identity>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Response, ApiError> {
    let completion = find(&app, &identity, id).await?;
    let messages: Vec<&Message> = match &completion.content {
        Some(content) => content
            .prompts
            .iter()
            .flat_map(|prompt| match &prompt.given {
                Given::Messages(messages) => messages.as_slice(),
                Given::Turns(_) | Given::Text(_) | Given::Tokens => &[],
            })
            .collect(),
        None => Vec::new(),
    };
    let ids: Vec<String> = (0..messages.len()).map(|index| format!("{}-{index}", completion.id)).collect();
    let data: Vec<Value> = messages
        .iter()
        .zip(&ids)
        .map(|(message, id)| {
            let (role, content, name) = (message.role.as_str(), &message.content, &message.name);
            json!({"id": id, "role": role, "content": content, "name": name, "content_parts": null})
        })
        .collect();
    let ends = (ids.first().map(String::as_str), ids.last().map(String::as_str));
    Ok(Json(listed(&data, ends, false)).into_response())
}

/// A stored chat completion of the caller's own; anybody else's is not there.
async fn find(
    app: &AppState,
    identity: &Identity,
    id: Result<Path<String>, PathRejection>,
) -> Result<Completion, ApiError> {
    identity.reads_records()?;
    let Path(id) = id.map_err(|_| ApiError::invalid("id", "the id in the path is not UTF-8"))?;
    let own = |completion: &Completion| {
        completion.stored
            && completion.erased_ms.is_none()
            && completion.kind == CompletionKind::Chat
            && (identity.caller.key.is_none() || identity.caller.key == completion.key)
    };
    app.gateway().journal().get(&id).await?.filter(own).ok_or_else(|| missing(&id))
}

fn missing(id: &str) -> ApiError {
    let message = format!("there is no stored completion '{}'", shown(id));
    ApiError::new(StatusCode::NOT_FOUND, "completion_not_found", message).about("id")
}

fn list_query(pairs: Vec<(String, String)>, key: Option<String>) -> Result<ListQuery, ApiError> {
    let mut query =
        ListQuery { model: None, key, metadata: Vec::new(), after: None, limit: PAGE, order: Order::OldestFirst };
    for (name, value) in pairs {
        let filter = name.strip_prefix("metadata[").and_then(|rest| rest.strip_suffix(']'));
        match (name.as_str(), filter) {
            (_, Some(key)) => query.metadata.push((key.to_owned(), value)),
            ("model", None) => query.model = Some(value),
            ("after", None) => query.after = Some(value),
            ("order", None) => {
                query.order = match value.as_str() {
                    "asc" => Order::OldestFirst,
                    "desc" => Order::NewestFirst,
                    other => {
                        let message = format!("order must be asc or desc; it is '{}'", shown(other));
                        return Err(ApiError::invalid("order", message));
                    }
                }
            }
            ("limit", None) => {
                query.limit = value.parse().ok().filter(|limit| (1..=MAX_PAGE).contains(limit)).ok_or_else(|| {
                    let message = format!("limit must be between 1 and {MAX_PAGE}; it is '{}'", shown(&value));
                    ApiError::invalid("limit", message)
                })?;
            }
            (unknown, None) => {
                let message = format!("{} is no parameter of this route", shown(unknown));
                let error = ApiError::new(StatusCode::BAD_REQUEST, "unknown_parameter", message);
                return Err(error.about(shown(unknown)));
            }
        }
    }
    Ok(query)
}

fn listed(data: &[Value], (first, last): (Option<&str>, Option<&str>), more: bool) -> Value {
    json!({"object": "list", "data": data, "first_id": first, "last_id": last, "has_more": more})
}

async fn shown_one(app: &AppState, identity: &Identity, completion: Completion) -> Result<Response, ApiError> {
    let shown = shown_completions(app, identity, &[completion]).await?;
    Ok(Json(shown.into_iter().next()).into_response())
}

/// Completions with what the caller said of them.
async fn shown_completions(
    app: &AppState,
    identity: &Identity,
    completions: &[Completion],
) -> Result<Vec<Value>, ApiError> {
    let ids = completions.iter().map(|completion| completion.id.clone()).collect();
    let said = app.gateway().journal().feedback_on(ids).await?;
    let text = app.gateway().text();
    let shown = completions.iter().map(|completion| {
        let own = said.iter().filter(|kept| {
            kept.feedback.target.id() == completion.id
                && (identity.caller.key.is_none() || identity.caller.key == kept.feedback.key)
        });
        shown_completion(completion, text, own.map(shown_feedback).collect())
    });
    Ok(shown.collect())
}

fn shown_completion(completion: &Completion, text: &Text, feedback: Vec<Value>) -> Value {
    let body = StoredBody {
        id: &completion.id,
        object: "chat.completion",
        created: completion.created_ms / 1000,
        model: &completion.model,
        request_id: &completion.request_id,
        choices: completion
            .choices
            .iter()
            .map(|choice| shown_choice(choice, text, completion.options.top_logprobs.is_some()))
            .collect(),
        usage: completion.usage.into(),
        seed: completion.seed,
        temperature: completion.sampling.temperature,
        top_p: completion.sampling.top_p,
        presence_penalty: completion.sampling.presence_penalty,
        frequency_penalty: completion.sampling.frequency_penalty,
        metadata: &completion.metadata,
        input_user: completion.user.as_deref(),
        tools: None,
        tool_choice: None,
        response_format: None,
        service_tier: "default",
        feedback,
    };
    // Strings, finite numbers and maps of strings: nothing here can fail to be JSON.
    serde_json::to_value(body).unwrap_or_default()
}

fn shown_choice<'a>(choice: &'a ChoiceRecord, text: &Text, logprobs: bool) -> StoredChoice<'a> {
    let finish = match choice.ending {
        Ending::Finished(reason) => Some(reason.as_str()),
        Ending::CutOff | Ending::Failed | Ending::ClientLeft => None,
    };
    // A redacted answer has scores without their tokens.
    let logprobs = logprobs && choice.scores.iter().all(|score| score.token != NOT_KEPT);
    StoredChoice {
        ending: finish.is_none().then(|| choice.ending.as_str()),
        choice: ChatChoice {
            index: choice.index,
            message: ChatMessage { role: "assistant", content: choice.text.as_deref(), refusal: None },
            logprobs: logprobs.then(|| ChatLogprobs { content: chat_tokens(text, &choice.scores), refusal: None }),
            // OpenAI knows no other ending of a stored answer; `ending` says what it was.
            finish_reason: finish.unwrap_or("stop"),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<ListQuery, String> {
        let pairs = pairs.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
        list_query(pairs, Some("shop".into())).map_err(|error| error.param.unwrap_or_default().into_owned())
    }

    #[test]
    fn a_list_is_asked_for_as_at_openai() {
        let query =
            read(&[("model", "poet"), ("metadata[tone]", "dry"), ("after", "x"), ("limit", "5"), ("order", "desc")])
                .unwrap();
        assert_eq!((query.model.as_deref(), query.after.as_deref()), (Some("poet"), Some("x")));
        assert_eq!(query.metadata, [("tone".to_owned(), "dry".to_owned())]);
        assert_eq!((query.limit, query.order, query.key.as_deref()), (5, Order::NewestFirst, Some("shop")));
        for (name, value) in [("limit", "0"), ("limit", "101"), ("limit", "x"), ("order", "up"), ("odd", "1")] {
            assert_eq!(read(&[(name, value)]).unwrap_err(), name);
        }
    }
}
