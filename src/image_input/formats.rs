//! The formats that are read, told from a file's first bytes, whatever its name or its sender says. The memory that
//! decoding takes is left to `decode`.

use image::ImageFormat;

use crate::error::{Error, Result};

/// A format that is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Png,
    Jpeg,
    WebP,
    Gif,
    Bmp,
}

impl Format {
    const ALL: [Self; 5] = [Self::Png, Self::Jpeg, Self::WebP, Self::Gif, Self::Bmp];

    /// The file's format.
    ///
    /// # Errors
    /// [`Error::UnsupportedImage`], which names what it is where that can be told.
    pub(crate) fn of(bytes: &[u8]) -> Result<Self> {
        let found = match image::guess_format(bytes) {
            Ok(found) => match Self::ALL.into_iter().find(|format| format.decoder() == found) {
                Some(format) => return Ok(format),
                None => format!("{found:?}").to_uppercase(),
            },
            Err(_) => other_format(bytes).to_owned(),
        };
        Err(Error::UnsupportedImage { found })
    }

    /// The decoder's name for it.
    pub(crate) fn decoder(self) -> ImageFormat {
        match self {
            Self::Png => ImageFormat::Png,
            Self::Jpeg => ImageFormat::Jpeg,
            Self::WebP => ImageFormat::WebP,
            Self::Gif => ImageFormat::Gif,
            Self::Bmp => ImageFormat::Bmp,
        }
    }
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
