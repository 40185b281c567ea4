//! `GET /v1/models` and `GET /v1/models/{model}`: the registered models, with their state. An adapter is a model of its own
//! there, `base:adapter`, whose `parent` is the model that it changes, as servers of adapters have it.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use candle_actors::{
    BreakerState, Capability as _, ModelStatus, RegisteredModel, SystemStatus, TextGenerator, TextToText,
    WorkerPhase,
};
use serde_json::{Value, json};

use crate::error::ApiError;
use crate::json::Json;
use crate::server::Server;

pub(crate) async fn list(State(server): State<Arc<Server>>) -> Json {
    Json(json!({ "object": "list", "data": all(&server) }))
}

pub(crate) async fn retrieve(
    State(server): State<Arc<Server>>,
    Path(id): Path<String>,
) -> Result<Json, ApiError> {
    match all(&server).into_iter().find(|model| model["id"] == id.as_str()) {
        Some(model) => Ok(Json(model)),
        None => {
            let message = format!("the model {id} is not registered");
            Err(ApiError::new(StatusCode::NOT_FOUND, "model_not_found", message).about("model"))
        }
    }
}

/// The model that writes, and the adapter for it, by the name that a client has for both.
///
/// # Errors
/// For a name of no model that writes.
pub(crate) fn writer(server: &Server, id: &str) -> Result<(TextGenerator, Option<String>), ApiError> {
    let unknown = match server.engine.text_to_text(id) {
        Ok(model) => return Ok((model, None)),
        Err(error) => error,
    };
    let bases = id.match_indices(':').map(|(place, _)| id.split_at(place));
    let adapted = |(base, adapter): (&str, &str)| {
        Some((server.engine.text_to_text(base).ok()?, adapter.strip_prefix(':').map(str::to_owned)))
    };
    bases.filter_map(adapted).next().ok_or_else(|| ApiError::from(unknown).about("model"))
}

fn all(server: &Server) -> Vec<Value> {
    let status = server.engine.system().status();
    let with_adapters = |model: RegisteredModel| {
        let base = object(server, &status, &model);
        let writer = server.engine.text_to_text(model.model.as_str()).ok();
        let facts =
            writer.filter(|_| model.capability == TextToText::NAME).and_then(|one| one.model().facts());
        let adapter = |name: String| {
            let mut adapted = base.clone();
            adapted["id"] = format!("{}:{name}", model.model).into();
            adapted["parent"] = base["id"].clone();
            adapted
        };
        let adapted: Vec<Value> = facts.unwrap_or_default().adapters.into_iter().map(adapter).collect();
        std::iter::once(base).chain(adapted).collect::<Vec<_>>()
    };
    server.engine.models().into_iter().flat_map(with_adapters).collect()
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
