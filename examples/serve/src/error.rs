//! Errors as OpenAI's clients read them: a status, an object that says what is wrong, and a time to come back after
//! where there is one. The classes of the library's errors decide the status; no text is looked at.

use std::time::Duration;

use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use candle_actors::ErrorKind;
use serde_json::{Value, json};

use crate::json::Json;

/// Maximum number of bytes of a message: what is wrong with a value may repeat the value.
const MAX_MESSAGE_BYTES: usize = 1024;
/// Header that clients of OpenAI look at before `Retry-After`, which has whole seconds only.
const RETRY_AFTER_MS: HeaderName = HeaderName::from_static("retry-after-ms");

/// The refusal or failure of a request.
#[derive(Debug)]
pub(crate) struct ApiError {
    status: StatusCode,
    /// Name of the field at fault, such as `messages[0].content`.
    param: Option<String>,
    code: &'static str,
    message: String,
    retry_after: Option<Duration>,
}

impl ApiError {
    pub(crate) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, param: None, code, message: shortened(message.into()), retry_after: None }
    }

    /// The refusal of a field.
    pub(crate) fn field(name: &str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_value", message).about(name)
    }

    /// The refusal of a field that does nothing here.
    pub(crate) fn unsupported(name: &str) -> Self {
        let message = format!("the field {name} is not supported by this endpoint; leave it out");
        Self::new(StatusCode::BAD_REQUEST, "unsupported_parameter", message).about(name)
    }

    /// The same about this field.
    pub(crate) fn about(self, name: &str) -> Self {
        Self { param: Some(name.to_owned()), ..self }
    }

    /// The object that stands in the body of a response, or in an event of a stream.
    pub(crate) fn object(&self) -> Value {
        let class = match self.status.as_u16() {
            429 => "rate_limit_error",
            400..=499 => "invalid_request_error",
            _ => "server_error",
        };
        json!({
            "error": { "message": self.message, "type": class, "param": self.param, "code": self.code }
        })
    }
}

/// The first part of a message that is too long.
fn shortened(mut message: String) -> String {
    if message.len() > MAX_MESSAGE_BYTES {
        let end = (0..=MAX_MESSAGE_BYTES).rev().find(|end| message.is_char_boundary(*end));
        message.truncate(end.unwrap_or(0));
        message.push('…');
    }
    message
}

impl From<candle_actors::Error> for ApiError {
    fn from(error: candle_actors::Error) -> Self {
        let kind = error.kind();
        let status = match kind {
            ErrorKind::InvalidInput => StatusCode::BAD_REQUEST,
            ErrorKind::NotFound => StatusCode::NOT_FOUND,
            ErrorKind::Overloaded { .. } => StatusCode::TOO_MANY_REQUESTS,
            ErrorKind::Unavailable { .. } => StatusCode::SERVICE_UNAVAILABLE,
            ErrorKind::Timeout => StatusCode::GATEWAY_TIMEOUT,
            ErrorKind::OutOfMemory => StatusCode::INSUFFICIENT_STORAGE,
            // The caller has gone, so that nobody reads it: 499 has no name in the standard.
            ErrorKind::Cancelled => StatusCode::from_u16(499).unwrap_or(StatusCode::BAD_REQUEST),
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        let code = match (kind, &error) {
            (ErrorKind::NotFound, _) => "model_not_found",
            (_, candle_actors::Error::Actor(actor)) => actor.reason(),
            _ => kind.name(),
        };
        Self { retry_after: kind.retry_after(), ..Self::new(status, code, error.to_string()) }
    }
}

impl From<candle_actors::model_actors::Error> for ApiError {
    fn from(error: candle_actors::model_actors::Error) -> Self {
        candle_actors::Error::from(error).into()
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.object())).into_response();
        if let Some(wait) = self.retry_after {
            let seconds = wait.as_millis().div_ceil(1000).max(1);
            let headers = [(header::RETRY_AFTER, seconds), (RETRY_AFTER_MS, wait.as_millis().max(1))];
            for (name, number) in headers {
                if let Ok(value) = HeaderValue::from_str(&number.to_string()) {
                    response.headers_mut().insert(name, value);
                }
            }
        }
        response
    }
}
