//! `POST /v1/chat/completions`: conversations, and questions about an image.

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

    let writings = match messages {
        Messages::Text(messages) => {
            let generator = handle!(server, generator(&server, &model)?);
            let request = asked.put(settings!(GenerateText::chat(messages), settings, max_tokens));
            let writing = |choice| {
                let request = request.clone().with_sampling(settings.sampling_of(choice));
                Writing::Text(generator.clone(), request)
            };
            (0..settings.choices).map(writing).collect()
        }
        Messages::Image(image, question) => {
            let describer = handle!(server, describer(&server, &model)?);
            let question = DescribeImage::new(image).with_question(question);
            let request =
                settings!(question, settings, max_tokens).with_constraint(asked.constraint_alone()?);
            let writing = |choice| {
                let request = request.clone().with_sampling(settings.sampling_of(choice));
                Writing::Image(describer.clone(), request)
            };
            (0..settings.choices).map(writing).collect()
        }
    };
    answer(&server, Endpoint::Chat, model, writings, settings.choices, settings.form).await
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

/// The model that writes.
///
/// # Errors
/// For a model that looks at images, with what it needs; for one that there is not.
fn generator(server: &Server, model: &str) -> Result<candle_actors::TextGenerator, ApiError> {
    server.engine.text_to_text(model).map_err(|error| match server.engine.vision(model) {
        Ok(_) => {
            let message = format!("{model} answers questions about images: put one into the message");
            ApiError::field("messages", message)
        }
        Err(_) => ApiError::from(error).about("model"),
    })
}

/// The model that looks at images.
///
/// # Errors
/// For a model that takes text alone; for one that there is not.
fn describer(server: &Server, model: &str) -> Result<candle_actors::ImageDescriber, ApiError> {
    server.engine.vision(model).map_err(|error| match server.engine.text_to_text(model) {
        Ok(_) => ApiError::field("messages", format!("{model} takes text alone, and no images")),
        Err(_) => ApiError::from(error).about("model"),
    })
}
