//! Masks as OpenAI's clients send them, a PNG file that is transparent where the picture is painted anew, as the library
//! takes them: white there, and black elsewhere.

use std::io::Cursor;

use axum::body::Bytes;
use axum::http::StatusCode;
use image::codecs::png::{PngDecoder, PngEncoder};
use image::{DynamicImage, ExtendedColorType, ImageDecoder as _, ImageEncoder as _, Limits};

use crate::error::ApiError;
use crate::server::Server;

/// Maximum number of pixels of a side, as of the library's pictures.
const MAX_SIDE: u32 = 4096;
/// Maximum number of bytes that decoding a mask takes: 16 bits for each of four channels.
const MAX_BYTES: u64 = 8 * MAX_SIDE as u64 * MAX_SIDE as u64;

/// A PNG file, white where the mask is fully transparent. Few masks are decoded at a time, on threads that may take their
/// time.
///
/// # Errors
/// For what is no PNG file, has no transparency, or is too large.
pub(crate) async fn of_transparency(server: &Server, mask: Bytes) -> Result<Vec<u8>, ApiError> {
    // The semaphore is never closed.
    let place = server.masks.clone().acquire_owned().await.ok();
    let drawn = tokio::task::spawn_blocking(move || {
        let drawn = white_where_transparent(&mask);
        drop(place);
        drawn
    });
    let failed = |error: tokio::task::JoinError| {
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "decoding_failed", error.to_string())
    };
    drawn.await.map_err(failed)?.map_err(|reason| ApiError::field("mask", format!("mask: {reason}")))
}

fn white_where_transparent(mask: &[u8]) -> Result<Vec<u8>, String> {
    let words = |error: image::ImageError| error.to_string();
    let mut limits = Limits::default();
    (limits.max_image_width, limits.max_image_height) = (Some(MAX_SIDE), Some(MAX_SIDE));
    limits.max_alloc = Some(MAX_BYTES);
    let decoder = PngDecoder::with_limits(Cursor::new(mask), limits).map_err(words)?;
    if !decoder.color_type().has_alpha() {
        return Err("it has no transparency, which says what is painted anew".to_owned());
    }
    let (width, height) = decoder.dimensions();
    if width > MAX_SIDE || height > MAX_SIDE {
        return Err(format!("it has {width}x{height} pixels; at most {MAX_SIDE} a side are allowed"));
    }
    let alpha = DynamicImage::from_decoder(decoder).map_err(words)?.into_luma_alpha16();
    let grey: Vec<u8> = alpha.pixels().map(|pixel| if pixel.0[1] == 0 { u8::MAX } else { 0 }).collect();
    let mut file = Vec::new();
    PngEncoder::new(&mut file).write_image(&grey, width, height, ExtendedColorType::L8).map_err(words)?;
    Ok(file)
}
