//! `POST /v1/images/generations`: pictures from a prompt, with what they are going to be as they come.

use std::sync::Arc;

use axum::extract::State;
use axum::response::sse::Event;
use axum::response::{IntoResponse, Response};
use candle_actors::{ImagePainter, PaintImage, PaintStep, Picture, ReplyStream, TextToImage};
use futures_util::future::try_join_all;
use futures_util::stream::{self, Stream};
use serde_json::{Value, json};

use crate::body::Body;
use crate::error::ApiError;
use crate::events::streamed;
use crate::fields::Fields;
use crate::json::Json;
use crate::png;
use crate::server::{Server, seconds};
use crate::writing::handle;

/// Maximum number of pictures of a request, as OpenAI has it.
const MAX_PICTURES: u64 = 10;
/// Maximum number of partial pictures of a stream, as OpenAI has it.
const MAX_PARTIAL: usize = 3;

pub(crate) async fn generate(
    State(server): State<Arc<Server>>,
    Body(mut fields): Body,
) -> Result<Response, ApiError> {
    let asked = Asked::of(&mut fields, "image_generation")?;
    fields.end()?;
    asked.answer(&server).await
}

/// The fields that all requests for pictures have.
pub(crate) struct Asked {
    model: String,
    pub(crate) request: PaintImage,
    pictures: u64,
    form: Form,
    /// First part of the names of a stream's events.
    events: &'static str,
}

/// The form of an answer.
enum Form {
    Whole,
    /// With so many partial pictures before the whole.
    Streamed(usize),
}

impl Asked {
    /// # Errors
    /// For a field of another type or value.
    pub(crate) fn of(fields: &mut Fields, events: &'static str) -> Result<Self, ApiError> {
        let model = fields.required("model")?;
        let prompt: String = fields.required("prompt")?;
        let request = PaintImage::from(prompt)
            .with_size(size(fields)?)
            .with_steps(fields.optional::<usize>("steps")?)
            .with_guidance(fields.optional::<f32>("guidance")?)
            .with_negative_prompt(fields.optional::<String>("negative_prompt")?)
            .with_seed(fields.optional::<i64>("seed")?.map(i64::cast_unsigned));
        let pictures = fields.optional("n")?.unwrap_or(1);
        let stream = fields.optional("stream")?.unwrap_or(false);
        let partial = fields.optional("partial_images")?.unwrap_or(0);
        fields.only("response_format", [json!("b64_json")])?;
        fields.only("output_format", [json!("png")])?;
        fields.only("output_compression", [json!(100)])?;
        fields.only("quality", [json!("auto")])?;
        fields.only("background", [json!("auto"), json!("opaque")])?;
        fields.without_effect(&["user"]);
        let most = if stream { 1 } else { MAX_PICTURES };
        if !(1..=most).contains(&pictures) {
            let message = format!("n is {pictures}; 1 to {MAX_PICTURES} are allowed, in a stream 1");
            return Err(ApiError::field("n", message));
        }
        if partial > MAX_PARTIAL || (partial > 0 && !stream) {
            let message =
                format!("partial_images is {partial}; 0 to {MAX_PARTIAL} are allowed, in streams alone");
            return Err(ApiError::field("partial_images", message));
        }
        let form = if stream { Form::Streamed(partial) } else { Form::Whole };
        Ok(Self { model, request, pictures, form, events })
    }

    /// Paints what is asked for.
    ///
    /// # Errors
    /// Those known before the first event of a stream, and all of whole pictures.
    pub(crate) async fn answer(self, server: &Server) -> Result<Response, ApiError> {
        let Self { request, pictures, .. } = self;
        let painter = server.engine.text_to_image(self.model.as_str());
        let painter = handle!(server, painter.map_err(|error| ApiError::from(error).about("model"))?);
        if let Form::Streamed(partial) = self.form {
            let reply = painter.stream(request.with_preview(partial > 0)).await?;
            return streamed(events(Painting { reply, partial, sent: 0, name: self.events })).await;
        }
        let painted = try_join_all((0..pictures).map(|number| paint(&painter, &request, number))).await?;
        Ok(Json(json!({ "created": seconds(), "output_format": "png", "data": painted })).into_response())
    }
}

/// A picture's sides, or none for the model's own.
fn size(fields: &mut Fields) -> Result<Option<(usize, usize)>, ApiError> {
    let Some(text) = fields.optional::<String>("size")?.filter(|text| text != "auto") else {
        return Ok(None);
    };
    let sides =
        text.split_once('x').and_then(|(width, height)| Some((width.parse().ok()?, height.parse().ok()?)));
    sides.map(Some).ok_or_else(|| ApiError::field("size", "size is given as 512x512, or as auto"))
}

/// One of several pictures: with a seed, each has one of its own.
async fn paint(painter: &ImagePainter, request: &PaintImage, number: u64) -> Result<Value, ApiError> {
    let request = request.clone().with_seed(request.seed.map(|seed| seed.wrapping_add(number)));
    let picture = painter.paint(request).await?;
    Ok(json!({ "b64_json": png::base64(picture).await? }))
}

/// A picture that is being painted, as events.
struct Painting {
    reply: ReplyStream<TextToImage>,
    /// Number of partial pictures to send, and of those sent.
    partial: usize,
    sent: usize,
    /// First part of the events' names.
    name: &'static str,
}

/// The events of one picture: partial ones, and the whole. Dropping the stream stops the model.
fn events(painting: Painting) -> impl Stream<Item = Result<Event, ApiError>> + Send + 'static {
    stream::unfold(Some(painting), |painting| async {
        let mut painting = painting?;
        match painting.next().await {
            Ok(Some(event)) => Some((Ok(event), Some(painting))),
            Ok(None) => Some((painting.completed().await, None)),
            Err(error) => Some((Err(error), None)),
        }
    })
}

impl Painting {
    /// The next partial picture; `None` after the last step.
    async fn next(&mut self) -> Result<Option<Event>, ApiError> {
        while let Some(step) = self.reply.next().await {
            let step = step?;
            if !self.is_due(&step) {
                continue;
            }
            if let Some(preview) = step.preview {
                let index = self.sent;
                self.sent += 1;
                return shown(self.name, preview, Some(index)).await.map(Some);
            }
        }
        Ok(None)
    }

    /// True for the steps that are spread evenly over all of them, without the last, which is the whole picture.
    fn is_due(&self, step: &PaintStep) -> bool {
        self.sent < self.partial
            && step.step < step.of
            && step.step * (self.partial + 1) >= step.of * (self.sent + 1)
    }

    async fn completed(self) -> Result<Event, ApiError> {
        let picture = self.reply.output().await?;
        shown(self.name, picture, None).await
    }
}

/// The event that shows a picture: a partial one with its number, or the whole.
async fn shown(name: &str, picture: Picture, partial: Option<usize>) -> Result<Event, ApiError> {
    let kind = format!("{name}.{}", if partial.is_some() { "partial_image" } else { "completed" });
    let size = format!("{}x{}", picture.width, picture.height);
    let mut value = json!({
        "type": kind, "created_at": seconds(), "size": size, "quality": "auto", "background": "opaque",
        "output_format": "png", "b64_json": png::base64(picture).await?,
    });
    match partial {
        Some(index) => value["partial_image_index"] = index.into(),
        // Typed clients want it, and no tokens are counted here.
        None => {
            let details = json!({ "text_tokens": 0, "image_tokens": 0 });
            value["usage"] = json!({
                "input_tokens": 0, "output_tokens": 0, "total_tokens": 0, "input_tokens_details": details,
            });
        }
    }
    Ok(Event::default().event(kind).data(value.to_string()))
}
