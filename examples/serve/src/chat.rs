//! `POST /v1/chat/completions`: conversations, with images where the model looks at them.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use candle_actors::{DescribeImage, GenerateText};
use serde_json::json;

use crate::answer::{Endpoint, answer};
use crate::body::Body;
use crate::error::ApiError;
use crate::fields::Fields;
use crate::messages::Messages;
use crate::models;
use crate::server::Server;
use crate::settings::Settings;
use crate::tools::Asked;
use crate::writing::{Writing, handle, settings};

/// Tokens of an answer, unless asked for otherwise.
const ANSWER_TOKENS: usize = 1024;

pub(crate) async fn create(
    State(server): State<Arc<Server>>,
    Body(mut fields): Body,
) -> Result<Response, ApiError> {
    let model: String = fields.required("model")?;
    let messages = Messages::of(&mut fields)?;
    let mut settings = Settings::of(&mut fields)?;
    settings.logprobs = logprobs(&mut fields)?;
    let [newer, older] = ["max_completion_tokens", "max_tokens"].map(|name| fields.optional::<usize>(name));
    let max_tokens = newer?.or(older?).unwrap_or(ANSWER_TOKENS);
    let asked = Asked::of(&mut fields)?;
    // Accepted as long as they ask for what is done anyway.
    fields.only("modalities", [json!(["text"])])?;
    fields.only("store", [json!(false)])?;
    fields.only("service_tier", [json!("auto"), json!("default")])?;
    fields.end()?;

    let writing = match server.engine.vision(model.as_str()) {
        Ok(describer) => {
            let describer = handle!(server, describer);
            let asked_for = asked.constraint_alone()?;
            let request = DescribeImage::chat(messages.with_images()?);
            let request = settings!(request, settings, max_tokens).with_constraint(asked_for);
            Writing::Image(describer, request)
        }
        Err(_) => {
            let (generator, adapter) = models::writer(&server, &model)?;
            let generator = handle!(server, generator);
            let words = messages.in_words().ok_or_else(|| {
                ApiError::field("messages", format!("{model} takes text alone, and no images"))
            })?;
            let request = GenerateText::chat(words).with_adapter(adapter);
            Writing::Text(generator, asked.put(settings!(request, settings, max_tokens)))
        }
    };
    answer(&server, Endpoint::Chat, model, vec![writing], settings.choices, settings.form).await
}

/// The number of other tokens whose log probabilities are asked for beside each token's own.
fn logprobs(fields: &mut Fields) -> Result<Option<usize>, ApiError> {
    match (fields.optional("logprobs")?.unwrap_or(false), fields.optional("top_logprobs")?) {
        (true, top) => Ok(Some(top.unwrap_or(0))),
        (false, None) => Ok(None),
        (false, Some(_)) => {
            Err(ApiError::field("top_logprobs", "top_logprobs goes with logprobs; set logprobs to true"))
        }
    }
}
