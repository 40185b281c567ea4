//! Tells a file's format from its first bytes, whatever its name or its sender says, and whether a JPEG is
//! whole.

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

/// A JPEG's segments up to the mark of its end. The decoder fills up what is missing with grey and says
/// nothing.
///
/// # Errors
/// [`Error::InvalidImage`] if there is no such mark.
pub(crate) fn check_jpeg_ends(bytes: &[u8]) -> Result<()> {
    match jpeg_end(bytes) {
        Some(()) => Ok(()),
        None => Err(Error::InvalidImage { reason: "the file is truncated".to_owned() }),
    }
}

const END: u8 = 0xD9;

/// Walks from mark to mark. Behind a mark with a length come so many bytes; everything else up to the next
/// mark is compressed data, in which `FF 00` is a byte and `FF D0` to `FF D7` are restarts.
fn jpeg_end(bytes: &[u8]) -> Option<()> {
    let mut at = 2;
    loop {
        at += bytes.get(at..)?.iter().position(|byte| *byte == 0xFF)? + 1;
        match *bytes.get(at)? {
            END => return Some(()),
            // A byte of data, a restart, a second begin, a mark without content; or one more FF to fill up.
            0x00 | 0x01 | 0xD0..=0xD8 => at += 1,
            0xFF => {}
            _ => {
                let length = u16::from_be_bytes([*bytes.get(at + 1)?, *bytes.get(at + 2)?]);
                at += 1 + usize::from(length);
            }
        }
    }
}
