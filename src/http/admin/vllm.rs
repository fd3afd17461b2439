//! Load and unload as vLLM's callers know them: a bare sentence where it went well, and one error body that fits both
//! shapes that vLLM has had.

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use http::{HeaderMap, HeaderName, HeaderValue, header};
use serde_json::{Value, json};

use crate::{http::error::ApiError, terms::AdapterVersion};

const VERSION: HeaderName = HeaderName::from_static("x-tunegate-version");

/// A refusal with the fields both under `error` and beside it: KubeAI reads the former, the production stack's operator the
/// latter.
pub fn refusal(error: ApiError) -> Response {
    let kind = match error.status.as_u16() {
        401 => "AuthenticationError",
        403 => "PermissionDeniedError",
        404 => "NotFoundError",
        409 => "ConflictError",
        503 => "ServiceUnavailableError",
        500.. => "InternalServerError",
        _ => "InvalidUserInput",
    };
    let body = json!({
        "error": {"message": error.message, "type": kind, "param": error.param, "code": error.code},
        "object": "error", "message": error.message, "type": kind, "param": error.param, "code": error.status.as_u16(),
    });
    let mut response = error.into_response();
    response.headers_mut().remove(header::CONTENT_LENGTH);
    *response.body_mut() = Body::from(body.to_string());
    response
}

/// vLLM's sentence, or `value` for who asks for JSON.
pub fn success(headers: &HeaderMap, sentence: String, version: AdapterVersion, value: Value) -> Response {
    let json = headers.get_all(header::ACCEPT).iter().any(|accept| {
        let accept = accept.to_str().unwrap_or_default();
        accept
            .split(',')
            .any(|kind| kind.split(';').next().unwrap_or("").trim().eq_ignore_ascii_case("application/json"))
    });
    let mut response = if json {
        ([(header::CONTENT_TYPE, "application/json")], value.to_string()).into_response()
    } else {
        sentence.into_response()
    };
    if let Ok(version) = HeaderValue::from_str(&version.short()) {
        response.headers_mut().insert(VERSION, version);
    }
    response
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use http_body_util::BodyExt;

    use super::*;
    use crate::terms::Digest;

    async fn body(response: Response) -> String {
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        String::from_utf8(bytes.to_vec()).unwrap()
    }

    #[tokio::test]
    async fn a_refusal_has_both_shapes_and_keeps_its_headers() {
        let error = ApiError::new(StatusCode::BAD_REQUEST, "adapter_already_loaded", "no").about("lora_name");
        let response = refusal(error);
        assert_eq!(
            (response.status(), &response.headers()["content-type"]),
            (StatusCode::BAD_REQUEST, &"application/json".parse().unwrap())
        );
        assert!(response.extensions().get::<ApiError>().is_some(), "for the log");
        let text = body(response).await;
        assert_eq!(
            text,
            r#"{"error":{"message":"no","type":"InvalidUserInput","param":"lora_name","code":"adapter_already_loaded"},"object":"error","message":"no","type":"InvalidUserInput","param":"lora_name","code":400}"#
        );
    }

    #[tokio::test]
    async fn who_asks_for_json_gets_it() {
        let version = AdapterVersion(Digest::of(b"x"));
        for (accept, expected) in [
            (None, "fine"),
            (Some("*/*"), "fine"),
            (Some("application/json, text/plain;q=0.5"), r#"{"a":1}"#),
            (Some("text/html,Application/JSON;q=0.9"), r#"{"a":1}"#),
        ] {
            let mut headers = HeaderMap::new();
            headers.extend(accept.map(|accept| (header::ACCEPT, accept.parse().unwrap())));
            let response = success(&headers, "fine".to_owned(), version, json!({"a": 1}));
            assert_eq!(response.headers()[VERSION], version.short().as_str());
            assert_eq!(body(response).await, expected, "{accept:?}");
        }
    }
}
