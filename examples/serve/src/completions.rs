//! `POST /v1/completions`: prompts that a model continues as they are.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use candle_actors::GenerateText;
use serde_json::json;

use crate::answer::{Endpoint, answer};
use crate::body::Body;
use crate::error::ApiError;
use crate::models;
use crate::server::Server;
use crate::settings::{MAX_CHOICES, Settings, Strings};
use crate::writing::{Writing, handle, settings};

/// Tokens of a continuation, unless asked for otherwise: OpenAI's default.
const TOKENS: usize = 16;

pub(crate) async fn create(
    State(server): State<Arc<Server>>,
    Body(mut fields): Body,
) -> Result<Response, ApiError> {
    let model: String = fields.required("model")?;
    let prompts = fields.required::<Strings>("prompt")?.into_vec();
    let mut settings = Settings::of(&mut fields)?;
    settings.logprobs = fields.optional("logprobs")?;
    let max_tokens = fields.optional("max_tokens")?.unwrap_or(TOKENS);
    fields.only("best_of", [json!(settings.choices)])?;
    fields.only("echo", [json!(false)])?;
    fields.end()?;
    let texts = prompts.len() * settings.choices;
    if !(1..=MAX_CHOICES).contains(&texts) {
        let message =
            format!("{texts} texts are asked for, n for each prompt; 1 to {MAX_CHOICES} are allowed");
        return Err(ApiError::field("prompt", message));
    }
    let (generator, adapter) = models::writer(&server, &model)?;
    let generator = handle!(server, generator);
    let writings = prompts.into_iter().map(|prompt| {
        let request = GenerateText::from(prompt).with_adapter(adapter.clone());
        Writing::Text(generator.clone(), settings!(request, settings, max_tokens))
    });
    let writings = writings.collect();
    answer(&server, Endpoint::Completions, model, writings, settings.choices, settings.form).await
}
