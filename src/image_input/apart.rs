//! Decoding in processes of their own: the child's work, and the parent's end of it, which checks the pixels that come back.
//! Starting the children, and ending those that nobody waits for, is left to [`model_actors::isolation::Helpers`].

use std::sync::Arc;
use std::time::Duration;

use model_actors::isolation::{Helpers, IsolatedWork, ProcessEnd, ProcessOptions};
use model_actors::{Bytes, Failure, FailureKind, Picture};
use serde::{Deserialize, Serialize};

use super::decode;
use super::memory::ImagePermit;
use crate::error::{Error, Result};
use crate::limits::{ImageLimits, MAX_FRAME_BYTES};

/// Time without images after which a child ends.
const IDLE_LIMIT: Duration = Duration::from_secs(10);
/// Copies of an image's encoded bytes and of its pixels that a child may have on their way in and out, beside the decoder's.
const COPIES: u64 = 4;
/// Bytes of a child's address space for its program, its stacks and what its allocator reserves.
const PROGRAM: u64 = 2 << 30;

/// Most bytes of an answer beside a picture's pixels.
const MARGIN: usize = 8 << 10;
/// Bytes of a frame that are kept for what travels beside an image.
const BESIDE: u64 = 1 << 20;
/// Maximum number of bytes of the reason for which a child cannot decode an image.
const MAX_REASON: usize = 4 << 10;

/// The work of a child: it reads an image's header, or decodes the image.
pub(crate) struct DecodeImage;

#[derive(Serialize, Deserialize)]
pub(crate) struct Encoded {
    limits: ImageLimits,
    #[serde(with = "serde_bytes")]
    bytes: Vec<u8>,
    /// The header alone.
    header: bool,
    /// Number of pixels of the picture that is expected; the parent's alone.
    #[serde(skip)]
    pixels: u64,
    /// Room for it in the memory for images, kept until the child has let go of the bytes.
    #[serde(skip)]
    _room: Option<ImagePermit>,
}

#[derive(Serialize, Deserialize)]
pub(crate) enum Decoded {
    /// Number of pixels, as the header says.
    Header(u64),
    Picture(Picture),
    Failed(Error),
}

impl IsolatedWork for DecodeImage {
    const NAME: &'static str = "image_decoder";
    type Input = Encoded;
    type Output = Decoded;

    fn most_bytes(asked: &Encoded) -> usize {
        let pixels = if asked.header { 0 } else { asked.pixels.saturating_mul(super::BYTES_A_PIXEL) };
        usize::try_from(pixels).unwrap_or(usize::MAX).saturating_add(MARGIN)
    }

    fn work(Encoded { limits, bytes, header, .. }: Encoded) -> Decoded {
        let decoded = match header {
            true => decode::pixels(&bytes, &limits).map(Decoded::Header),
            false => decode::decode(&bytes, &limits).map(Decoded::Picture),
        };
        decoded.unwrap_or_else(|error| Decoded::Failed(short(error)))
    }
}

/// The processes that decode images.
#[derive(Debug)]
pub(super) struct Apart(Helpers<DecodeImage>);

impl Apart {
    /// Starts nothing yet.
    ///
    /// # Errors
    /// [`Error::InvalidSetting`] where there can be no such processes, or the limits allow an image that does not go to one or
    /// come from it.
    pub(super) fn new(mut options: ProcessOptions, limits: &ImageLimits, decoders: usize) -> Result<Self> {
        check_frames(limits)?;
        // Elsewhere the kernel may know no such limit.
        if cfg!(target_os = "linux") {
            options.address_space.get_or_insert(address_space(limits));
        }
        Helpers::new(options, decoders, IDLE_LIMIT).map(Self).map_err(|error| {
            let reason = match error {
                model_actors::Error::InvalidConfig { reason, .. } => reason,
                error => error.to_string(),
            };
            Error::InvalidSetting { setting: "image_input".into(), reason }
        })
    }

    /// Number of pixels of an encoded image, from its header alone, and the image.
    ///
    /// # Errors
    /// As [`decode::pixels`]; [`Error::ImageDecoderDied`].
    pub(super) async fn pixels(&self, bytes: Vec<u8>, limits: &ImageLimits) -> Result<(u64, Vec<u8>)> {
        let asked = Arc::new(Encoded { limits: limits.clone(), bytes, header: true, pixels: 0, _room: None });
        let decoded = self.0.run(asked.clone()).await;
        match decoded.map_err(failed)? {
            // Who has answered has let go of it.
            Decoded::Header(pixels) => match Arc::try_unwrap(asked) {
                Ok(Encoded { bytes, .. }) => Ok((pixels, bytes)),
                Err(asked) => Ok((pixels, asked.bytes.clone())),
            },
            Decoded::Failed(error) => Err(told(error)),
            Decoded::Picture(_) => Err(died(protocol("a picture came for a header"))),
        }
    }

    /// The pixels of an encoded image whose header says that it has so many. Keeps the room until the child has let go of the
    /// image, even where nobody waits any more.
    ///
    /// # Errors
    /// As [`decode::decode`]; [`Error::ImageDecoderDied`].
    pub(super) async fn decode(
        &self,
        bytes: Vec<u8>,
        pixels: u64,
        limits: &ImageLimits,
        room: ImagePermit,
    ) -> Result<Picture> {
        let asked = Encoded { limits: limits.clone(), bytes, header: false, pixels, _room: Some(room) };
        match self.0.run(Arc::new(asked)).await.map_err(failed)? {
            // Their room is what the header says.
            Decoded::Picture(picture) if super::pixels_of(&picture) == pixels => {
                decode::check_picture(&picture, limits).map(|()| picture)
            }
            Decoded::Failed(error) => Err(told(error)),
            _ => Err(died(protocol("another picture came than its header says"))),
        }
    }

    /// Ends the processes, those at work after it, and waits for their end.
    pub(super) async fn end(&self) {
        self.0.end().await;
    }
}

/// Checks that any image within the limits goes to a process at once, and its pixels come back at once.
fn check_frames(limits: &ImageLimits) -> Result<()> {
    // Sides are limited too.
    let pixels = limits.pixels.min(u64::from(limits.side).saturating_mul(limits.side.into()));
    let pixels = pixels.saturating_mul(super::BYTES_A_PIXEL);
    for (what, bytes) in [("encoded bytes", limits.encoded.0), ("bytes of pixels", pixels)] {
        if bytes.saturating_add(BESIDE) > MAX_FRAME_BYTES as u64 {
            let most = MAX_FRAME_BYTES as u64 - BESIDE;
            let reason = format!(
                "its limits allow an image of {bytes} {what}; at most {most} go to or come from a process of its own"
            );
            return Err(Error::InvalidSetting { setting: "image_input".into(), reason });
        }
    }
    Ok(())
}

/// The address space that decoding any image within the limits takes.
fn address_space(limits: &ImageLimits) -> Bytes {
    let pixels = limits.pixels.saturating_mul(super::BYTES_A_PIXEL);
    let copies = limits.encoded.0.saturating_add(pixels).saturating_mul(COPIES);
    Bytes(PROGRAM.saturating_add(limits.decoder.0).saturating_add(copies))
}

/// The error of a decoder, with a reason that is short enough for [`told`].
fn short(error: Error) -> Error {
    let cut = |reason: String| reason.chars().take(MAX_REASON / 4).collect();
    match error {
        Error::UnsupportedImage { found } => Error::UnsupportedImage { found: cut(found) },
        Error::InvalidImage { reason } => Error::InvalidImage { reason: cut(reason) },
        error => error,
    }
}

/// The error that a child tells of, if it is one that a decoder can have.
fn told(error: Error) -> Error {
    let is_a_decoders = match &error {
        Error::ImageTooLarge { what, .. } => what.len() <= MAX_REASON,
        Error::UnsupportedImage { found: reason } | Error::InvalidImage { reason } => {
            reason.len() <= MAX_REASON
        }
        _ => false,
    };
    if is_a_decoders { error } else { died(protocol("an error came that no decoder has")) }
}

fn failed(failure: Failure) -> Error {
    match failure.cause.data::<ProcessEnd>() {
        Some(end) => died(end),
        None if failure.kind == FailureKind::InvalidInput => {
            Error::InvalidImage { reason: failure.cause.message().to_owned() }
        }
        None => Error::compute(format!("no process decodes the image: {}", failure.cause.message())),
    }
}

fn died(end: ProcessEnd) -> Error {
    Error::ImageDecoderDied { end }
}

fn protocol(reason: &str) -> ProcessEnd {
    ProcessEnd::Protocol { reason: reason.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_that_no_frame_takes_are_refused() {
        let limits = ImageLimits::default;
        check_frames(&limits()).unwrap();
        let most = MAX_FRAME_BYTES as u64 - BESIDE;
        check_frames(&limits().with_encoded(Bytes(most))).unwrap();
        let refused = [
            limits().with_encoded(Bytes(most + 1)),
            limits().with_pixels(most / 3 + 1).with_side(u32::MAX),
            limits().with_pixels(u64::MAX).with_side(u32::MAX).with_encoded(Bytes(u64::MAX)),
        ];
        for limits in refused {
            let error = check_frames(&limits).unwrap_err();
            assert!(matches!(error, Error::InvalidSetting { .. }), "{error}");
        }
        check_frames(&limits().with_pixels(u64::MAX)).unwrap();
    }

    #[test]
    fn an_error_that_was_cut_short_is_taken_from_a_child() {
        let error = short(Error::InvalidImage { reason: "\u{1f308}".repeat(MAX_REASON) });
        assert_eq!(told(error.clone()), error);
    }
}
