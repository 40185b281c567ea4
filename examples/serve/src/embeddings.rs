//! `POST /v1/embeddings`: texts to vectors, as numbers or as base64 of their bytes, which OpenAI's clients ask for.

use std::sync::Arc;

use axum::extract::State;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use candle_actors::{Lane, Truncate};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::body::Body;
use crate::error::ApiError;
use crate::json::Json;
use crate::server::Server;
use crate::settings::Strings;
use crate::writing::handle;

/// Maximum number of texts of a request, as OpenAI has it.
const MAX_INPUTS: usize = 2048;

/// Form of the vectors.
#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Encoding {
    Float,
    /// Little-endian 32-bit numbers in base64.
    Base64,
}

pub(crate) async fn create(
    State(server): State<Arc<Server>>,
    Body(mut fields): Body,
) -> Result<Json, ApiError> {
    let model: String = fields.required("model")?;
    let texts = fields.required::<Strings>("input")?.into_vec();
    let encoding = fields.optional("encoding_format")?.unwrap_or(Encoding::Float);
    let dimensions: Option<usize> = fields.optional("dimensions")?;
    let cut = fields.optional("truncate")?.unwrap_or(false);
    fields.without_effect(&["user"]);
    fields.end()?;
    if !(1..=MAX_INPUTS).contains(&texts.len()) {
        let message = format!("input has {} texts; 1 to {MAX_INPUTS} are allowed", texts.len());
        return Err(ApiError::field("input", message));
    }
    let embedder = server.engine.text_embedding(model.as_str());
    let embedder = handle!(server, embedder.map_err(|error| ApiError::from(error).about("model"))?);
    let embedder = match dimensions {
        Some(dimensions) => embedder.dimensions(dimensions),
        None => embedder,
    };
    // A single text is somebody who waits; several take the lane of those who do not.
    let embedder = if texts.len() == 1 { embedder.lane(Lane::Interactive) } else { embedder };
    let truncate = if cut { Truncate::Cut } else { Truncate::Refuse };
    let embeddings = embedder.truncate(truncate).embeddings(texts).await?;
    let tokens = embeddings.usage.prompt_tokens;
    let usage = json!({ "prompt_tokens": tokens, "total_tokens": tokens });
    let data: Vec<Value> = embeddings
        .vectors
        .into_iter()
        .enumerate()
        .map(|(index, vector)| {
            json!({ "object": "embedding", "index": index, "embedding": encoded(&vector, encoding) })
        })
        .collect();
    Ok(Json(json!({ "object": "list", "model": model, "data": data, "usage": usage })))
}

fn encoded(vector: &[f32], encoding: Encoding) -> Value {
    match encoding {
        Encoding::Float => json!(vector),
        Encoding::Base64 => {
            let bytes: Vec<u8> = vector.iter().flat_map(|value| value.to_le_bytes()).collect();
            STANDARD.encode(bytes).into()
        }
    }
}
