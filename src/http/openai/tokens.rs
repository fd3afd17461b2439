//! `/tokenize` and `/detokenize`, in vLLM's shapes: what a question is to the model.

use std::sync::Arc;

use axum::{
    Extension, Json,
    extract::State,
    response::{IntoResponse, Response},
};
use serde::Serialize;
use serde_json::json;

use super::{
    create::named,
    fields::Fields,
    messages,
    params::{self, Form},
    refused,
};
use crate::{
    gateway::{Caller, Route},
    http::{AppState, auth::Identity, body::JsonBody, error::ApiError},
    terms::{Message, TemplateSource},
    text::{ChatOptions, Text, TextError},
};

#[derive(Debug, Serialize)]
struct Tokens {
    count: usize,
    max_model_len: usize,
    tokens: Vec<u32>,
    token_strs: Option<Vec<String>>,
}

/// What is to be read.
enum Source {
    Prompt { text: String, add_special: bool },
    Chat { messages: Vec<Message>, template: TemplateSource, options: ChatOptions },
}

/// POST /tokenize
pub async fn tokenize(
    State(app): State<AppState>,
    Extension(identity): Extension<Identity>,
    JsonBody(map): JsonBody,
) -> Result<Response, ApiError> {
    let mut fields = Fields::new(map);
    let mut form = Form::default();
    let model = fields.string("model", params::MAX_MODEL_BYTES)?;
    let strings = fields.boolean("return_token_strs")?.unwrap_or(false);
    let source = match fields.string("prompt", usize::MAX)? {
        Some(text) => Source::Prompt { text, add_special: fields.boolean("add_special_tokens")?.unwrap_or(true) },
        None => {
            refused::settle_chat(&mut fields)?;
            let messages = messages::take(&mut fields, &mut form.unknown)?;
            let options = params::chat_options(&mut fields)?;
            let template = template(&app, model.as_deref(), &identity.caller).await?;
            Source::Chat { messages, template, options }
        }
    };
    params::leave(fields, app.limits(), &mut form)?;
    if let Some(model) = &model {
        app.gateway().route(model, &identity.caller)?;
    }
    let max_model_len = app.gateway().engine().limits().max_model_len;
    let body = beside(&app, move |text| {
        let tokens = match &source {
            Source::Prompt { text: prompt, add_special } => text.encode(prompt, *add_special)?,
            Source::Chat { messages, template, options } => text.chat(template, messages, *options)?.tokens,
        };
        let token_strs = strings.then(|| tokens.iter().map(|&token| text.token_piece(token).text).collect());
        Ok(Tokens { count: tokens.len(), max_model_len, tokens, token_strs })
    })
    .await?;
    Ok(named(&app, &form, Json(body).into_response()))
}

/// POST /detokenize
pub async fn detokenize(
    State(app): State<AppState>,
    Extension(identity): Extension<Identity>,
    JsonBody(map): JsonBody,
) -> Result<Response, ApiError> {
    let mut fields = Fields::new(map);
    let mut form = Form::default();
    if let Some(model) = fields.string("model", params::MAX_MODEL_BYTES)? {
        app.gateway().route(&model, &identity.caller)?;
    }
    let tokens = params::required_token_ids(&mut fields, "tokens")?;
    params::leave(fields, app.limits(), &mut form)?;
    let prompt = beside(&app, move |text| text.decode(&tokens, false)).await.map_err(|error| error.about("tokens"))?;
    Ok(named(&app, &form, Json(json!({"prompt": prompt})).into_response()))
}

/// The template that a chat with this model would use.
async fn template(app: &AppState, model: Option<&str>, caller: &Caller) -> Result<TemplateSource, ApiError> {
    let gateway = app.gateway();
    let own = match gateway.route(model.unwrap_or(gateway.base_name()), caller)? {
        Route::Base => None,
        Route::Adapter { name, version } => gateway.adapters().lease(&name, version).await?.card.template.clone(),
    };
    own.or_else(|| gateway.text().template().cloned()).ok_or_else(|| TextError::NoTemplate.into())
}

/// Runs `work` off the runtime's threads, a few at a time.
async fn beside<T: Send + 'static>(
    app: &AppState,
    work: impl FnOnce(&Text) -> Result<T, TextError> + Send + 'static,
) -> Result<T, ApiError> {
    let permit = Arc::clone(&app.0.tokenizing).acquire_owned().await.map_err(|_| ApiError::draining())?;
    let text = Arc::clone(app.gateway().text());
    let work = tokio::task::spawn_blocking(move || {
        let _permit = permit;
        work(&text)
    });
    match work.await {
        Ok(done) => Ok(done?),
        Err(panicked) => Err(TextError::Tokenizer(panicked.to_string()).into()),
    }
}
