//! Checks before every endpoint: the key, a number for each request, a span, and a line in the log.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tracing::field::Empty;
use tracing::{Instrument as _, info, info_span};

use crate::error::ApiError;
use crate::server::Server;
use crate::traces::continue_trace;

/// Lets requests with the key through, and those for what needs none.
pub(crate) async fn guard(State(server): State<Arc<Server>>, request: Request, next: Next) -> Response {
    let began = Instant::now();
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let id = server.next_id("req");
    let span = info_span!(
        "http_request",
        otel.kind = "server",
        %id,
        http.request.method = %method,
        url.path = path,
        http.response.status_code = Empty,
        otel.status_code = Empty,
    );
    continue_trace(&span, request.headers());
    let mut response = match server.key.as_deref() {
        Some(key) if !is_open(&path) && !has_key(&request, key) => {
            let message = "the key is missing or wrong: send it as Authorization: Bearer KEY";
            ApiError::new(StatusCode::UNAUTHORIZED, "invalid_api_key", message).into_response()
        }
        _ => next.run(request).instrument(span.clone()).await,
    };
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert("x-request-id", value);
    }
    let (status, ms) = (response.status().as_u16(), began.elapsed().as_millis());
    span.record("http.response.status_code", status);
    if response.status().is_server_error() {
        span.record("otel.status_code", "ERROR");
    }
    info!(%id, %method, path, status, ms, "answered");
    response
}

/// Probes have no key, and the page asks for it.
fn is_open(path: &str) -> bool {
    path == "/" || path.starts_with("/health/")
}

/// True for a request with this key. The time it takes does not depend on where a wrong one differs.
fn has_key(request: &Request, key: &str) -> bool {
    let sent = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let sent = sent.and_then(|value| {
        let (scheme, sent) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| sent.trim())
    });
    sent.is_some_and(|sent| {
        let differences = sent.bytes().zip(key.bytes()).fold(0, |all, (one, other)| all | (one ^ other));
        sent.len() == key.len() && differences == 0
    })
}

/// The answer to an address that there is not.
pub(crate) async fn unknown(request: Request) -> ApiError {
    let message = format!("there is no {} {}", request.method(), request.uri().path());
    ApiError::new(StatusCode::NOT_FOUND, "unknown_url", message)
}

/// The answer to a method that an address does not have.
pub(crate) async fn not_allowed(request: Request) -> ApiError {
    let message = format!("{} is not allowed for {}", request.method(), request.uri().path());
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message)
}
