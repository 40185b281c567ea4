//! `GET /health/live` and `GET /health/ready`: whether the process has to be restarted, and whether it takes requests.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use candle_actors::SystemState;
use serde_json::json;

use crate::json::Json;
use crate::server::Server;

/// 503 once the system has failed, which it does not come back from by itself.
pub(crate) async fn live(State(server): State<Arc<Server>>) -> (StatusCode, Json) {
    let state = server.engine.system().status().state;
    answer(state != SystemState::Failed, state)
}

/// 503 while a pool is down, and as soon as a shutdown begins. A model that is not loaded, or fails, is no reason: the
/// others serve, and its own state is in `/v1/models`.
pub(crate) async fn ready(State(server): State<Arc<Server>>) -> (StatusCode, Json) {
    let status = server.engine.system().status();
    answer(status.is_ready(), status.state)
}

fn answer(is_well: bool, state: SystemState) -> (StatusCode, Json) {
    let status = if is_well { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(json!({ "state": state })))
}
