//! `POST /v1/images/edits`: pictures from a picture and a prompt, the whole of it or what a mask leaves open. A form with
//! files, as OpenAI's clients send it.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::State;
use axum::response::Response;
use candle_actors::ImageSource;
use serde_json::json;

use crate::body::Form;
use crate::error::ApiError;
use crate::images::Asked;
use crate::mask;
use crate::server::Server;

pub(crate) async fn create(State(server): State<Arc<Server>>, mut form: Form) -> Result<Response, ApiError> {
    let mut asked = Asked::of(&mut form.fields, "image_edit")?;
    let strength = form.fields.optional::<f32>("strength")?;
    form.fields.only("input_fidelity", [json!("low")])?;
    let image = one(&mut form, "image")?
        .ok_or_else(|| ApiError::field("image", "the file image is missing: the picture to begin with"))?;
    let mask = one(&mut form, "mask")?;
    form.end()?;
    asked.request = asked.request.with_image(ImageSource::Bytes(image.into())).with_strength(strength);
    if let Some(mask) = mask {
        let mask = mask::of_transparency(&server, mask).await?;
        asked.request = asked.request.with_mask(ImageSource::Bytes(mask));
    }
    asked.answer(&server).await
}

/// The file of this name, if there is one.
///
/// # Errors
/// For several.
fn one(form: &mut Form, name: &str) -> Result<Option<Bytes>, ApiError> {
    let mut files = form.take(name);
    match files.len() {
        0 | 1 => Ok(files.pop()),
        several => Err(ApiError::field(name, format!("there are {several} files {name}; one is allowed"))),
    }
}
