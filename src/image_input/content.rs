//! Tells a file's format from its first bytes, whatever its name or its sender says.

use image::ImageFormat;

use crate::error::{Error, Result};

/// The formats that are read.
const FORMATS: [ImageFormat; 5] =
    [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::WebP, ImageFormat::Gif, ImageFormat::Bmp];

/// The file's format.
///
/// # Errors
/// [`Error::UnsupportedImage`], which names what it is where that can be told.
pub(crate) fn format_of(bytes: &[u8]) -> Result<ImageFormat> {
    let found = match image::guess_format(bytes) {
        Ok(format) if FORMATS.contains(&format) => return Ok(format),
        Ok(format) => format!("{format:?}").to_uppercase(),
        Err(_) => other_format(bytes).to_owned(),
    };
    Err(Error::UnsupportedImage { found })
}

/// Names what people mistake for a picture, or an address gives in place of one.
fn other_format(bytes: &[u8]) -> &'static str {
    let text = bytes.trim_ascii_start();
    let begins = |word: &[u8]| text.get(..word.len()).is_some_and(|start| start.eq_ignore_ascii_case(word));
    match bytes {
        [] => "empty",
        [_, _, _, _, b'f', b't', b'y', b'p', b'h', ..] | [_, _, _, _, b'f', b't', b'y', b'p', b'm', ..] => {
            "HEIC"
        }
        _ if begins(b"%PDF") => "PDF",
        _ if begins(b"<svg") => "SVG",
        _ if begins(b"<!doctype html") || begins(b"<html") => "a page of HTML",
        _ if begins(b"<?xml") => "XML",
        _ if begins(b"{") || begins(b"[") => "JSON",
        _ => "of no known format",
    }
}
