//! A request's body: JSON of a bounded size that comes in a bounded time.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use axum::http::{StatusCode, header};
use serde_json::Value;

use crate::error::ApiError;
use crate::fields::Fields;
use crate::server::Server;

/// Time for a body to come in whole.
const PATIENCE: Duration = Duration::from_secs(60);

/// The fields of a request's body.
pub(crate) struct Body(pub(crate) Fields);

impl FromRequest<Arc<Server>> for Body {
    type Rejection = ApiError;

    async fn from_request(request: Request, server: &Arc<Server>) -> Result<Self, ApiError> {
        // A page from elsewhere can send any other type without being asked by the browser whether it may.
        if !is_json(&request) {
            let message = "the body has to be JSON, with the header Content-Type: application/json";
            return Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", message));
        }
        let reading = Bytes::from_request(request, server);
        let bytes = tokio::time::timeout(PATIENCE, reading).await.map_err(|_| {
            let message = format!("the body did not come within {} s", PATIENCE.as_secs());
            ApiError::new(StatusCode::REQUEST_TIMEOUT, "body_timeout", message)
        })?;
        let bytes = bytes.map_err(|error| match error.status() {
            StatusCode::PAYLOAD_TOO_LARGE => {
                let message = format!("the body has more than the {} bytes allowed", server.body_bytes);
                ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", message)
            }
            _ => ApiError::new(StatusCode::BAD_REQUEST, "invalid_body", error.body_text()),
        })?;
        let value: Value = serde_json::from_slice(&bytes).map_err(|error| {
            ApiError::new(StatusCode::BAD_REQUEST, "invalid_json", format!("the body is not JSON: {error}"))
        })?;
        Ok(Self(Fields::of(value, "")?))
    }
}

fn is_json(request: &Request) -> bool {
    let content_type = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let media_type = content_type.and_then(|value| value.split(';').next()).unwrap_or_default().trim();
    media_type.eq_ignore_ascii_case("application/json")
}
