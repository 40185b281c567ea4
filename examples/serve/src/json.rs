//! JSON as the body of a response.

use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde_json::Value;

/// A response of this value.
pub(crate) struct Json(pub(crate) Value);

impl IntoResponse for Json {
    fn into_response(self) -> Response {
        ([(header::CONTENT_TYPE, "application/json")], self.0.to_string()).into_response()
    }
}
