//! `GET /v1/models` and `GET /v1/models/{model}`: the registered models, with their state.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use candle_actors::{BreakerState, ModelStatus, RegisteredModel, SystemStatus, WorkerPhase};
use serde_json::{Value, json};

use crate::error::ApiError;
use crate::json::Json;
use crate::server::Server;

pub(crate) async fn list(State(server): State<Arc<Server>>) -> Json {
    let status = server.engine.system().status();
    let models = server.engine.models();
    let data: Vec<Value> = models.iter().map(|model| object(&server, &status, model)).collect();
    Json(json!({ "object": "list", "data": data }))
}

pub(crate) async fn retrieve(
    State(server): State<Arc<Server>>,
    Path(id): Path<String>,
) -> Result<Json, ApiError> {
    let models = server.engine.models();
    let Some(model) = models.iter().find(|model| model.model.as_str() == id) else {
        let message = format!("the model {id} is not registered");
        return Err(ApiError::new(StatusCode::NOT_FOUND, "model_not_found", message).about("model"));
    };
    Ok(Json(object(&server, &server.engine.system().status(), model)))
}

/// OpenAI's four fields, the capability, and the state.
fn object(server: &Server, status: &SystemStatus, model: &RegisteredModel) -> Value {
    json!({
        "id": model.model,
        "object": "model",
        "created": server.started,
        "owned_by": "candle-actors",
        "capability": model.capability,
        "state": status.model(model.capability, model.model.as_str()).map_or("unloaded", state),
    })
}

/// Name of a model's state.
fn state(model: &ModelStatus) -> &'static str {
    let is_loading = model.workers.iter().any(|worker| worker.phase == WorkerPhase::Loading);
    match model.breaker {
        BreakerState::Open => "unavailable",
        _ if model.is_serving() => "ready",
        _ if is_loading || model.loading.is_some() => "loading",
        _ => "unloaded",
    }
}
