//! Pictures as PNG files in base64.

use axum::http::StatusCode;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use candle_actors::Picture;
use image::codecs::png::PngEncoder;
use image::{ExtendedColorType, ImageEncoder as _};

use crate::error::ApiError;

/// The picture, encoded on a thread that may take its time.
///
/// # Errors
/// For a picture that cannot be encoded, which is the server's fault.
pub(crate) async fn base64(picture: Picture) -> Result<String, ApiError> {
    let encoded = tokio::task::spawn_blocking(move || encode(&picture)).await;
    let failed = |reason: String| {
        let message = format!("the picture could not be encoded: {reason}");
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "encoding_failed", message)
    };
    encoded.map_err(|error| failed(error.to_string()))?.map_err(failed)
}

fn encode(picture: &Picture) -> Result<String, String> {
    let side = |pixels: usize| u32::try_from(pixels).map_err(|error| error.to_string());
    let (width, height) = (side(picture.width)?, side(picture.height)?);
    let mut file = Vec::new();
    PngEncoder::new(&mut file)
        .write_image(&picture.rgb, width, height, ExtendedColorType::Rgb8)
        .map_err(|error| error.to_string())?;
    Ok(STANDARD.encode(file))
}
