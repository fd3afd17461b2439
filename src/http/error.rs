//! The one table from our errors to status, type, code and parameter. No arm catches all: a new error does not compile
//! until someone has chosen its status.

use std::{borrow::Cow, fmt::Display};

use axum::{
    Json,
    response::{IntoResponse, Response},
};
use http::{HeaderName, HeaderValue, StatusCode, header};
use serde::Serialize;

use crate::{
    adapters::{AdapterError, Refusal, RootsError, source::SourceError},
    engine::{EngineFault, SubmitError},
    feedback::{AgainError, report::ReportError},
    gateway::{AskError, ReplayError, ReplyError, publish::PublishError},
    journal::{FeedbackError, JournalError},
    text::TextError,
};

pub const RETRY_AFTER_MS: HeaderName = HeaderName::from_static("retry-after-ms");
const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");

/// A refusal or failure as a client sees it: always `{"error":{"message","type","param","code"}}`.
#[derive(Clone, Debug)]
pub struct ApiError {
    pub status: StatusCode,
    pub code: &'static str,
    pub message: String,
    /// The parameter, header or field that it is about.
    pub param: Option<Cow<'static, str>>,
    /// When it is worth trying again; only where that is known.
    pub retry_after_ms: Option<u64>,
    /// What the log says beyond the message, under the request's id.
    pub detail: Option<String>,
}

/// The body of an error, also inside a stream.
#[derive(Clone, Debug, Serialize)]
pub struct ErrorBody<'a> {
    error: ErrorFields<'a>,
}

#[derive(Clone, Debug, Serialize)]
struct ErrorFields<'a> {
    message: &'a str,
    #[serde(rename = "type")]
    kind: &'static str,
    param: Option<&'a str>,
    code: &'static str,
}

impl ApiError {
    pub fn new(status: StatusCode, code: &'static str, message: impl Display) -> Self {
        Self { status, code, message: message.to_string(), param: None, retry_after_ms: None, detail: None }
    }

    /// 400 about one parameter.
    pub fn invalid(param: impl Into<Cow<'static, str>>, message: impl Display) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_value", message).about(param)
    }

    /// 400 for a known parameter that would change the answer and is not supported.
    pub fn unsupported(param: impl Into<Cow<'static, str>>, reason: impl Display) -> Self {
        let param = param.into();
        Self::new(StatusCode::BAD_REQUEST, "unsupported_parameter", format!("{param} is not supported: {reason}"))
            .about(param)
    }

    /// 404 for a model that is not there.
    pub fn no_model(model: &str, nearest: Option<&str>) -> Self {
        let hint = nearest.map_or_else(String::new, |nearest| format!("; the nearest is '{nearest}'"));
        let message = format!("the model '{model}' does not exist{hint} (GET /v1/models lists all)");
        Self::new(StatusCode::NOT_FOUND, "model_not_found", message).about("model")
    }

    fn overloaded(message: impl Display, retry_after_ms: u64) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "overloaded", message).again_in(retry_after_ms)
    }

    fn internal(code: &'static str, message: &str, detail: impl Display) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, code, message).because(detail)
    }

    /// Another replica, or this server's successor, can take the request at once.
    pub fn draining() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "draining", "the server is shutting down").again_in(1000)
    }

    /// Every seat is taken; a connection that closes frees one.
    pub fn crowded(limit: usize) -> Self {
        Self::overloaded(format!("{limit} connections are open, the limit"), 1000)
    }

    pub fn record_unavailable(reason: impl Display) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "record_unavailable", "the record is not writable")
            .because(reason)
            // The record tries again every second.
            .again_in(1000)
    }

    /// A handler ran without the layers that say who asks.
    pub fn unguarded() -> Self {
        Self::internal("internal_error", "something went wrong here", "a route without its layers")
    }

    pub fn engine_stopped() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "engine_stopped", "the engine has stopped")
    }

    pub fn about(mut self, param: impl Into<Cow<'static, str>>) -> Self {
        self.param = Some(param.into());
        self
    }

    fn again_in(mut self, ms: u64) -> Self {
        self.retry_after_ms = Some(ms);
        self
    }

    fn because(mut self, detail: impl Display) -> Self {
        self.detail = Some(detail.to_string());
        self
    }

    /// A chat has no `prompt`: what is wrong with the question is wrong with its messages.
    pub fn in_chat(mut self) -> Self {
        if self.param.as_deref() == Some("prompt") {
            self.param = Some("messages".into());
        }
        self
    }

    /// OpenAI's `type` of a status.
    const fn kind(&self) -> &'static str {
        match self.status.as_u16() {
            401 => "authentication_error",
            403 => "permission_error",
            429 => "rate_limit_error",
            500.. => "server_error",
            _ => "invalid_request_error",
        }
    }

    pub fn body(&self) -> ErrorBody<'_> {
        ErrorBody {
            error: ErrorFields {
                message: &self.message,
                kind: self.kind(),
                param: self.param.as_deref(),
                code: self.code,
            },
        }
    }
}

impl IntoResponse for ApiError {
    /// The error rides along in the response's extensions, for the log.
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body())).into_response();
        let headers = response.headers_mut();
        if let Some(ms) = self.retry_after_ms {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(ms.div_ceil(1000).max(1)));
            headers.insert(RETRY_AFTER_MS, HeaderValue::from(ms));
        }
        match self.status {
            StatusCode::UNAUTHORIZED => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            // The same request would fail the same way, and SDKs retry every 5xx unless told.
            StatusCode::INTERNAL_SERVER_ERROR | StatusCode::GATEWAY_TIMEOUT => {
                headers.insert(SHOULD_RETRY, HeaderValue::from_static("false"));
            }
            _ => {}
        }
        response.extensions_mut().insert(self);
        response
    }
}

impl From<AskError> for ApiError {
    fn from(error: AskError) -> Self {
        match error {
            AskError::UnknownModel { model, nearest } => Self::no_model(&model, nearest.as_deref()),
            AskError::ModelNotAllowed { .. } => {
                Self::new(StatusCode::FORBIDDEN, "model_not_allowed", error).about("model")
            }
            AskError::Adapter(error) => error.into(),
            AskError::Text(error) => error.into(),
            AskError::Submit(error) => error.into(),
            AskError::Engine(fault) => fault.into(),
            AskError::Invalid { parameter, .. } => Self::invalid(parameter, error),
            AskError::RecordFull { retry_after_ms } => Self::overloaded(error, retry_after_ms),
            AskError::RecordDown { reason } => Self::record_unavailable(reason),
            AskError::Draining => Self::draining(),
        }
    }
}

impl From<AdapterError> for ApiError {
    fn from(error: AdapterError) -> Self {
        match &error {
            AdapterError::Unknown { name, nearest } => Self::no_model(name, nearest.as_deref()),
            AdapterError::UnknownVersion { .. } => {
                Self::new(StatusCode::NOT_FOUND, "model_not_found", error).about("model")
            }
            AdapterError::AmbiguousVersion { .. } => {
                Self::new(StatusCode::BAD_REQUEST, "ambiguous_version", error).about("model")
            }
            AdapterError::Refused { name, refusals } => {
                Self::new(StatusCode::BAD_REQUEST, "adapter_refused", refused(name, refusals)).about("model")
            }
            AdapterError::NoRoom { retry_after_ms, .. }
            | AdapterError::NotYet { retry_after_ms, .. }
            | AdapterError::Busy { retry_after_ms, .. } => Self::overloaded(&error, *retry_after_ms).about("model"),
            AdapterError::Unreadable { name, reason } => {
                Self::internal("adapter_unreadable", &format!("adapter '{name}' could not be read"), reason)
                    .about("model")
            }
            AdapterError::Catalog { reason } => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "catalog_unavailable",
                "the catalog of adapters is not writable",
            )
            .because(reason)
            .again_in(1000),
        }
    }
}

/// How many reasons one message gives.
const REASONS: usize = 8;

fn refused(name: &str, refusals: &[Refusal]) -> String {
    let mut reasons: Vec<String> = refusals.iter().take(REASONS).map(ToString::to_string).collect();
    if refusals.len() > REASONS {
        reasons.push(format!("and {} more", refusals.len() - REASONS));
    }
    format!("adapter '{name}' is refused: {}", reasons.join("; "))
}

impl From<PublishError> for ApiError {
    fn from(error: PublishError) -> Self {
        match error {
            PublishError::Adapter(error) => {
                let mut error = Self::from(error);
                // These routes name an adapter, not a model.
                if error.param.as_deref() == Some("model") {
                    error.param = Some("lora_name".into());
                }
                error
            }
            PublishError::BaseName { .. } => Self::invalid("lora_name", error),
            PublishError::AlreadyLoaded { .. } => {
                Self::new(StatusCode::BAD_REQUEST, "adapter_already_loaded", error).about("lora_name")
            }
            PublishError::NotLoaded { .. } => {
                Self::new(StatusCode::NOT_FOUND, "adapter_not_found", error).about("lora_name")
            }
            PublishError::Conflict { .. } => {
                Self::new(StatusCode::CONFLICT, "version_mismatch", error).about("expected_version")
            }
            PublishError::NoEarlier { .. } => {
                Self::new(StatusCode::CONFLICT, "no_earlier_version", error).about("version")
            }
            PublishError::Managed { .. } | PublishError::Held { .. } => {
                Self::new(StatusCode::CONFLICT, "managed_elsewhere", error).about("lora_name")
            }
            PublishError::Quarantined { retry_after_ms, .. } => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "adapter_quarantined", &error)
                    .about("lora_name")
                    .again_in(retry_after_ms)
            }
            PublishError::Untried { retry_after_ms, .. } => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "adapter_untried", &error)
                    .about("lora_name")
                    .again_in(retry_after_ms)
            }
            PublishError::Worse { .. } => {
                Self::new(StatusCode::UNPROCESSABLE_ENTITY, "worse_than_current", error).about("suite")
            }
            PublishError::Uncompared { .. } => {
                Self::new(StatusCode::UNPROCESSABLE_ENTITY, "suite_failed", error).about("suite")
            }
            PublishError::Busy { retry_after_ms, .. } => Self::overloaded(&error, retry_after_ms),
            PublishError::Failed { reason } => Self::internal("publish_failed", "the change failed", reason),
        }
    }
}

/// Why what a `lora_path` names was not read.
impl From<SourceError> for ApiError {
    fn from(error: SourceError) -> Self {
        match error {
            SourceError::Path(error) => error.into(),
            SourceError::Unnamed(_) => {
                Self::new(StatusCode::FORBIDDEN, "adapter_path_forbidden", error).about("lora_path")
            }
            SourceError::NotThere(_) => {
                Self::new(StatusCode::NOT_FOUND, "adapter_path_not_found", error).about("lora_path")
            }
            SourceError::TooLarge(_) => {
                Self::new(StatusCode::BAD_REQUEST, "adapter_too_large", error).about("lora_path")
            }
            SourceError::Refused(refusals) => {
                AdapterError::Refused { name: "lora_path".to_owned(), refusals: refusals.into() }.into()
            }
            SourceError::Denied(_) => Self::new(StatusCode::BAD_GATEWAY, "source_denied", error).about("lora_path"),
            SourceError::Spoilt(_) => Self::new(StatusCode::BAD_GATEWAY, "source_spoilt", error).about("lora_path"),
            SourceError::Changed(_) => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "source_changed", error).about("lora_path").again_in(1000)
            }
            SourceError::Unavailable(_) => Self::new(StatusCode::SERVICE_UNAVAILABLE, "source_unavailable", error)
                .about("lora_path")
                .again_in(5000),
            SourceError::Settings(reason) => Self::internal("source_unusable", "the source cannot be used", reason),
        }
    }
}

impl From<RootsError> for ApiError {
    fn from(error: RootsError) -> Self {
        match error {
            RootsError::NoRoot | RootsError::Url { .. } | RootsError::Outside { .. } => {
                Self::new(StatusCode::FORBIDDEN, "adapter_path_forbidden", error).about("lora_path")
            }
            RootsError::Absent { .. } => {
                Self::new(StatusCode::NOT_FOUND, "adapter_path_not_found", error).about("lora_path")
            }
        }
    }
}

impl From<TextError> for ApiError {
    fn from(error: TextError) -> Self {
        match &error {
            TextError::Load { .. } | TextError::UnsupportedTokenizer(_) => {
                Self::internal("tokenizer_unavailable", "the tokenizer could not be loaded", error)
            }
            TextError::Template(_) => Self::new(StatusCode::BAD_REQUEST, "template_refused", error).about("messages"),
            TextError::NoTemplate => Self::new(StatusCode::BAD_REQUEST, "no_chat_template", error).about("messages"),
            TextError::TooLong { .. } => {
                Self::new(StatusCode::BAD_REQUEST, "string_above_max_length", error).about("prompt")
            }
            TextError::UnknownToken { .. } => Self::invalid("prompt", error),
            TextError::Tokenizer(_) => Self::internal("tokenizer_failed", "the text could not be tokenized", error),
        }
    }
}

impl From<SubmitError> for ApiError {
    fn from(error: SubmitError) -> Self {
        match error {
            SubmitError::EmptyPrompt => Self::invalid("prompt", error),
            SubmitError::TooLong { .. } => {
                Self::new(StatusCode::BAD_REQUEST, "context_length_exceeded", error).about("prompt")
            }
            SubmitError::UnknownToken { .. } => Self::invalid("prompt", error),
            SubmitError::QueueFull { retry_after_ms, .. } => Self::overloaded(error, retry_after_ms),
            SubmitError::Stopped => Self::engine_stopped(),
        }
    }
}

impl From<JournalError> for ApiError {
    fn from(error: JournalError) -> Self {
        match error {
            JournalError::Full { retry_after_ms, .. } => Self::overloaded(error, retry_after_ms),
            JournalError::Down { reason } => Self::record_unavailable(reason),
            JournalError::Write { reason } => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "record_unavailable", "the change could not be recorded")
                    .because(reason)
            }
            JournalError::Read { reason } => {
                Self::internal("record_unreadable", "the record could not be read", reason)
            }
            JournalError::Secret { reason } | JournalError::Rules { reason } => Self::record_unavailable(reason),
            JournalError::UnknownCursor { .. } => Self::invalid("after", error),
        }
    }
}

impl From<FeedbackError> for ApiError {
    fn from(error: FeedbackError) -> Self {
        match error {
            FeedbackError::Conflict { .. } => Self::new(StatusCode::CONFLICT, "feedback_conflict", error).about("id"),
            FeedbackError::NotKept { field, .. } => {
                Self::new(StatusCode::FORBIDDEN, "content_not_recorded", error).about(field)
            }
            FeedbackError::Journal(error) => error.into(),
        }
    }
}

impl From<AgainError> for ApiError {
    fn from(error: AgainError) -> Self {
        match error {
            AgainError::Busy { .. } => Self::new(StatusCode::CONFLICT, "flag_rules_busy", error),
            AgainError::Unknown { .. } => Self::new(StatusCode::NOT_FOUND, "flag_rule_not_found", error).about("rules"),
            AgainError::Journal(error) => error.into(),
        }
    }
}

impl From<ReportError> for ApiError {
    fn from(error: ReportError) -> Self {
        match error {
            ReportError::Nothing { .. } => Self::new(StatusCode::NOT_FOUND, "nothing_to_report", error).about("id"),
            ReportError::One { .. } => Self::new(StatusCode::CONFLICT, "nothing_to_compare", error).about("versions"),
            ReportError::Unknown { .. } => {
                Self::new(StatusCode::NOT_FOUND, "version_not_found", error).about("versions")
            }
            ReportError::Ambiguous { .. } => {
                Self::new(StatusCode::BAD_REQUEST, "ambiguous_version", error).about("versions")
            }
            ReportError::Journal(error) => error.into(),
        }
    }
}

impl From<EngineFault> for ApiError {
    fn from(fault: EngineFault) -> Self {
        match fault {
            EngineFault::NotFinite => Self::internal("model_not_finite", "the model's scores were not finite", fault),
            EngineFault::Step(reason) => Self::internal("engine_failed", "the forward pass failed", reason),
            EngineFault::Stopped => Self::engine_stopped(),
        }
    }
}

impl From<ReplyError> for ApiError {
    fn from(error: ReplyError) -> Self {
        match error {
            ReplyError::Engine(fault) => fault.into(),
            ReplyError::CutOff => Self::draining(),
            ReplyError::Deadline { .. } => Self::new(StatusCode::GATEWAY_TIMEOUT, "answer_timeout", error),
            ReplyError::Record { reason } => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "record_unavailable", "the answer could not be recorded")
                    .because(reason)
            }
        }
    }
}

impl From<ReplayError> for ApiError {
    fn from(error: ReplayError) -> Self {
        match error {
            ReplayError::Unknown { .. } => Self::new(StatusCode::NOT_FOUND, "completion_not_found", error).about("id"),
            ReplayError::NotKept { .. }
            | ReplayError::Erased { .. }
            | ReplayError::Expired { .. }
            | ReplayError::Redacted { .. }
            | ReplayError::Empty { .. }
            | ReplayError::OtherBase { .. }
            | ReplayError::OtherTokenizer { .. } => {
                Self::new(StatusCode::CONFLICT, "not_replayable", error).about("id")
            }
            ReplayError::Ask(error) => error.into(),
            ReplayError::Reply(error) => error.into(),
            ReplayError::Journal(error) => error.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::adapters::RefusalCode;

    fn shown(error: impl Into<ApiError>) -> (u16, serde_json::Value) {
        let error: ApiError = error.into();
        (error.status.as_u16(), serde_json::to_value(error.body()).unwrap())
    }

    #[test]
    fn every_error_has_all_four_fields() {
        let (status, body) = shown(SubmitError::Stopped);
        assert_eq!(status, 503);
        assert_eq!(
            body.to_string(),
            r#"{"error":{"message":"the engine has stopped","type":"server_error","param":null,"code":"engine_stopped"}}"#
        );
    }

    #[test]
    fn an_unknown_model_is_not_found_and_names_the_nearest() {
        let (status, body) = shown(AskError::UnknownModel { model: "poer".into(), nearest: Some("poet".into()) });
        assert_eq!((status, &body["error"]["code"]), (404, &"model_not_found".into()));
        assert!(body["error"]["message"].as_str().unwrap().contains("'poet'"));
    }

    #[test]
    fn a_refused_adapter_says_why() {
        let refusal = |subject: &str| Refusal {
            code: RefusalCode::Unsupported,
            subject: subject.into(),
            reason: "is not applied".into(),
        };
        let refusals = Arc::new((0..10).map(|n| refusal(&format!("key_{n}"))).collect());
        let (status, body) = shown(AdapterError::Refused { name: "poet".into(), refusals });
        let message = body["error"]["message"].as_str().unwrap();
        assert_eq!(status, 400);
        assert!(message.contains("key_0: is not applied") && message.ends_with("and 2 more"), "{message}");
    }

    #[test]
    fn what_went_wrong_inside_stays_inside() {
        let reason = "/srv/secret/model.safetensors: no such file";
        for error in [
            ApiError::from(AdapterError::Unreadable { name: "poet".into(), reason: reason.into() }),
            ApiError::from(TextError::Load { path: "/srv/secret".into(), reason: reason.into() }),
            ApiError::from(ReplyError::Record { reason: reason.into() }),
            ApiError::from(ReplyError::Engine(EngineFault::Step(reason.into()))),
            ApiError::from(AskError::RecordDown { reason: reason.into() }),
        ] {
            assert!(!serde_json::to_string(&error.body()).unwrap().contains("secret"), "{error:?}");
            assert!(error.detail.as_deref().is_some_and(|detail| detail.contains("secret")), "{error:?}");
        }
    }

    #[test]
    fn a_full_queue_says_when_to_try_again() {
        let full = SubmitError::QueueFull { waiting: 9, limit: 9, retry_after_ms: 1400 };
        let response = ApiError::from(full).into_response();
        assert_eq!(response.status(), 503);
        assert_eq!(response.headers()["retry-after"], "2");
        assert_eq!(response.headers()["retry-after-ms"], "1400");
    }

    #[test]
    fn what_is_wrong_with_a_chat_is_wrong_with_its_messages() {
        let error = ApiError::from(SubmitError::EmptyPrompt).in_chat();
        assert_eq!(error.param.as_deref(), Some("messages"));
    }
}
