//! Tells a file's format from its first bytes, whatever its name or its sender says, whether a JPEG is whole, and how
//! much of a WebP is compressed without loss.

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

/// Parts of a WebP that tell how much memory decoding it takes.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct WebpParts {
    /// Bytes that are compressed without loss: an image, or its alpha channel.
    pub(crate) lossless: u64,
    /// Whether it has frames.
    pub(crate) animated: bool,
}

/// Walks through a WebP's parts.
///
/// # Errors
/// [`Error::InvalidImage`] if metadata claims more bytes than are there, for which the decoder would ask for memory.
pub(crate) fn webp_parts(bytes: &[u8]) -> Result<WebpParts> {
    const METADATA: [&[u8]; 3] = [b"EXIF", b"ICCP", b"XMP "];
    /// Bytes of the file before its parts.
    const FILE: usize = 12;
    /// Bytes of a frame before its parts.
    const FRAME: usize = 16;
    let (mut parts, mut at) = (WebpParts::default(), FILE);
    while let Some(&[a, b, c, d, ref size @ ..]) = bytes.get(at..).and_then(<[u8]>::first_chunk::<8>) {
        let (kind, size) = ([a, b, c, d], u32::from_le_bytes(*size) as usize);
        at += 8;
        let there = bytes.len() - at;
        if size > there && METADATA.contains(&kind.as_slice()) {
            let reason = format!("a part of it claims {size} bytes and {there} are left");
            return Err(Error::InvalidImage { reason });
        }
        let skipped = match &kind {
            // The parts of a frame are walked through as those of the file are.
            b"ANMF" => {
                parts.animated = true;
                FRAME
            }
            b"VP8L" | b"ALPH" => {
                parts.lossless += size.min(there) as u64;
                size
            }
            _ => size,
        };
        at = at.saturating_add(skipped).saturating_add(skipped % 2).min(bytes.len());
    }
    Ok(parts)
}

/// Most scans of a JPEG; an encoder makes about ten.
const MAX_SCANS: usize = 100;

/// A JPEG's segments up to the mark of its end. The decoder fills up what is missing with grey and says
/// nothing.
///
/// # Errors
/// [`Error::InvalidImage`] if there is no such mark, or if there are too many scans, each of which goes over all pixels.
pub(crate) fn check_jpeg_ends(bytes: &[u8]) -> Result<()> {
    let invalid = |reason| Err(Error::InvalidImage { reason });
    match scans_of_jpeg(bytes) {
        Some(0..=MAX_SCANS) => Ok(()),
        Some(scans) => invalid(format!("it has {scans} scans; at most {MAX_SCANS} are allowed")),
        None => invalid("the file is truncated".to_owned()),
    }
}

const END: u8 = 0xD9;
const SCAN: u8 = 0xDA;

/// Walks from mark to mark. Behind a mark with a length come so many bytes; everything else up to the next
/// mark is compressed data, in which `FF 00` is a byte and `FF D0` to `FF D7` are restarts.
fn scans_of_jpeg(bytes: &[u8]) -> Option<usize> {
    let (mut at, mut scans) = (2, 0);
    loop {
        at += bytes.get(at..)?.iter().position(|byte| *byte == 0xFF)? + 1;
        match *bytes.get(at)? {
            END => return Some(scans),
            // A byte of data, a restart, a second begin, a mark without content; or one more FF to fill up.
            0x00 | 0x01 | 0xD0..=0xD8 => at += 1,
            0xFF => {}
            mark => {
                scans += usize::from(mark == SCAN);
                let length = u16::from_be_bytes([*bytes.get(at + 1)?, *bytes.get(at + 2)?]);
                at += 1 + usize::from(length);
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn parts_of(name: &str) -> WebpParts {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/images/");
        webp_parts(&std::fs::read(format!("{folder}{name}")).unwrap()).unwrap()
    }

    #[test]
    fn the_parts_of_a_webp_are_told_apart() {
        assert_eq!(parts_of("lossy.webp"), WebpParts::default());
        assert!(!parts_of("lossless.webp").animated && parts_of("lossless.webp").lossless > 0);
        assert!(parts_of("lossy_alpha.webp").lossless > 0);
        assert!(parts_of("animated.webp").animated);
    }

    #[test]
    fn scans_of_a_jpeg_are_counted() {
        let scan = [0xFF, SCAN, 0, 2];
        let jpeg = |scans| [&[0xFF, 0xD8][..], &scan.repeat(scans), &[0xFF, END]].concat();
        assert!(check_jpeg_ends(&jpeg(MAX_SCANS)).is_ok());
        assert!(check_jpeg_ends(&jpeg(MAX_SCANS + 1)).is_err());
    }
}
