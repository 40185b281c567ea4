//! Encoded bytes to pixels, within limits: the format is found from the content, the size is read from the
//! header and checked, and only then is anything decoded. The pixels are those that the reference processors
//! see after Pillow's `exif_transpose`: the first frame of an animation, what is transparent over white
//! (`convert_to_rgb` of transformers 5.23), the high byte of 16 bits, colour profiles ignored. Those of a
//! JPEG differ by rounding, by a few of 255.

use std::borrow::Cow;
use std::io::Cursor;

use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageError, ImageReader};
use model_actors::Picture;

use crate::error::{Error, Result};
use crate::image_input::checks::too_large;
use crate::image_input::formats::Format;
use crate::image_input::to_rgb::to_rgb;
use crate::image_input::{jpeg, webp};
use crate::limits::ImageLimits;

/// Bytes a pixel of the picture that comes out, and of its copy while it is turned; the decoder is gone by then.
const RESULT: u64 = 3 * 2;
/// Bytes a pixel that decoding a JPEG takes beside its output: coefficients of two bytes of up to four channels, all of
/// them until the last scan.
const COEFFICIENTS: u64 = 2 * 4;
/// Bytes a pixel that decoding a WebP takes beside its output: planes of brightness and colour, one and a half, and the
/// alpha channel on its way, five.
const PLANES: u64 = 7;
/// Bytes a pixel of an animated WebP's frame and canvas on top.
const FRAMES: u64 = 4 + 4;
/// Times the bytes of a lossless WebP that its tables of codes may take: 157 bytes can describe one of 78 KB.
const TABLES: u64 = 500;
/// Maximum number of bytes of metadata that are unpacked from a PNG, and of its rows.
const METADATA: u64 = 32 << 20;

/// The pixels of an encoded image.
///
/// # Errors
/// [`Error::ImageTooLarge`], [`Error::UnsupportedImage`], [`Error::InvalidImage`].
pub(crate) fn decode(bytes: &[u8], limits: &ImageLimits) -> Result<Picture> {
    guarded(|| decode_here(bytes, limits))
}

/// Number of pixels of an encoded image, from its header alone.
///
/// # Errors
/// As [`decode`].
pub(crate) fn pixels(bytes: &[u8], limits: &ImageLimits) -> Result<u64> {
    guarded(|| {
        let (width, height) = open(bytes, limits)?.decoder.dimensions();
        Ok(u64::from(width) * u64::from(height))
    })
}

/// The decoders are other people's code: one that panics on a damaged file must not take a worker with it.
fn guarded<T>(work: impl FnOnce() -> Result<T> + std::panic::UnwindSafe) -> Result<T> {
    std::panic::catch_unwind(work)
        .unwrap_or_else(|_| Err(Error::InvalidImage { reason: "the decoder failed".to_owned() }))
}

/// A file whose header is read and within the limits.
struct Opened<D> {
    decoder: D,
    /// Memory that the decoder may still take.
    room: image::Limits,
}

fn open<'a>(bytes: &'a [u8], limits: &ImageLimits) -> Result<Opened<impl ImageDecoder + use<'a>>> {
    too_large("bytes", bytes.len() as u64, limits.encoded.0)?;
    let format = Format::of(bytes)?;
    let parts = match format {
        Format::Jpeg => jpeg::needed_parts(bytes)?,
        _ => Cow::Borrowed(bytes),
    };
    let copied = if let Cow::Owned(parts) = &parts { parts.len() as u64 } else { 0 };
    let webp = if format == Format::WebP { Some(webp::webp_parts(bytes)?) } else { None };
    let mut reader = ImageReader::with_format(Cursor::new(parts), format.decoder());
    let mut room = image::Limits::no_limits();
    room.max_alloc = Some(METADATA);
    reader.limits(room.clone());
    let decoder = reader.into_decoder().map_err(name_error)?;
    let (width, height) = decoder.dimensions();
    check_size(width.into(), height.into(), limits)?;
    let (beside, tables) = match format {
        Format::Jpeg => (COEFFICIENTS, copied),
        Format::WebP => {
            let parts = webp.unwrap_or_default();
            let beside = PLANES + if parts.animated { FRAMES } else { 0 };
            (beside, parts.lossless.saturating_mul(TABLES))
        }
        Format::Png | Format::Gif | Format::Bmp => (RESULT, 0),
    };
    let pixels = u64::from(width) * u64::from(height);
    let needed = decoder.total_bytes().saturating_add(pixels.saturating_mul(beside)).saturating_add(tables);
    too_large("bytes to decode", needed, limits.decoder.0)?;
    room.max_alloc = Some(limits.decoder.0 - needed);
    Ok(Opened { decoder, room })
}

fn decode_here(bytes: &[u8], limits: &ImageLimits) -> Result<Picture> {
    let Opened { mut decoder, room } = open(bytes, limits)?;
    decoder.set_limits(room).map_err(name_error)?;
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    let rgb = to_rgb(DynamicImage::from_decoder(decoder).map_err(name_error)?)?;
    let mut image = DynamicImage::ImageRgb8(rgb);
    image.apply_orientation(orientation);
    let rgb = image.into_rgb8();
    Ok(Picture::new(rgb.width() as usize, rgb.height() as usize, rgb.into_raw()))
}

/// Checks that pixels that came decoded are as many as they claim to be, and not too many.
///
/// # Errors
/// [`Error::ImageTooLarge`], [`Error::InvalidImage`].
pub(crate) fn check_picture(picture: &Picture, limits: &ImageLimits) -> Result<()> {
    let &Picture { width, height, ref rgb, .. } = picture;
    check_size(width as u64, height as u64, limits)?;
    if has_all_bytes(picture) {
        return Ok(());
    }
    let reason = format!("{width} x {height} pixels are claimed and {} bytes are there", rgb.len());
    Err(Error::InvalidImage { reason })
}

/// True if a picture has three bytes for each of its pixels.
pub(crate) fn has_all_bytes(picture: &Picture) -> bool {
    let pixels = picture.width.checked_mul(picture.height);
    pixels.and_then(|pixels| pixels.checked_mul(3)) == Some(picture.rgb.len())
}

fn check_size(width: u64, height: u64, limits: &ImageLimits) -> Result<()> {
    let (short, long) = (width.min(height), width.max(height));
    if short == 0 {
        return Err(Error::InvalidImage { reason: format!("it has {width} x {height} pixels") });
    }
    too_large("pixels on one side", long, limits.side.into())?;
    too_large("pixels", width.saturating_mul(height), limits.pixels)?;
    too_large("times the length of its short side", long.div_ceil(short), limits.aspect.into())
}

fn name_error(error: ImageError) -> Error {
    match error {
        ImageError::Unsupported(error) => Error::UnsupportedImage { found: error.to_string() },
        ImageError::Limits(_) => {
            Error::InvalidImage { reason: "decoding it takes more memory than is allowed".to_owned() }
        }
        error => Error::InvalidImage { reason: error.to_string() },
    }
}
