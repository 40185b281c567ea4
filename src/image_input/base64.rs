//! Base64 as it comes: standard or URL-safe, padded or not, with or without the `data:` prefix and line
//! breaks. The size is checked before anything is decoded.

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

use crate::error::{Error, Result};
use crate::image_input::checks::too_large;
use crate::limits::ImageLimits;

const CONFIG: GeneralPurposeConfig =
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
const STANDARD: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, CONFIG);
const URL_SAFE: GeneralPurpose = GeneralPurpose::new(&alphabet::URL_SAFE, CONFIG);

/// Maximum number of letters of a media type in front of the data.
const MAX_MEDIA_TYPE: usize = 256;

/// Refuses a text that is too long to be within the limit. Bounds the work on one that is mostly blanks; the
/// exact count comes after they are left out.
///
/// # Errors
/// [`Error::ImageTooLarge`].
pub(crate) fn check_length(text: &str, limits: &ImageLimits) -> Result<()> {
    let limit = limits.encoded.0;
    // Four letters for three bytes, a line break after as few as 64 letters, and what stands in front.
    let letters = limit.div_ceil(3).saturating_mul(4);
    let most = letters.saturating_add(letters / 16).saturating_add(MAX_MEDIA_TYPE as u64);
    if text.len() as u64 > most {
        return Err(Error::ImageTooLarge { what: "bytes".into(), found: text.len() as u64 / 4 * 3, limit });
    }
    Ok(())
}

/// The bytes that the text stands for.
///
/// # Errors
/// [`Error::ImageTooLarge`], [`Error::InvalidImage`].
pub(crate) fn decode(text: &str, limits: &ImageLimits) -> Result<Vec<u8>> {
    check_length(text, limits)?;
    let data = payload(text.trim_ascii())?;
    let is_blank = |byte: &u8| byte.is_ascii_whitespace();
    let dense: Vec<u8>;
    let data = match data.as_bytes() {
        bytes if bytes.iter().any(is_blank) => {
            dense = bytes.iter().copied().filter(|byte| !is_blank(byte)).collect();
            dense.as_slice()
        }
        bytes => bytes,
    };
    let engine = if data.iter().any(|byte| matches!(byte, b'-' | b'_')) { &URL_SAFE } else { &STANDARD };
    let bytes = engine.decode(data).map_err(|error| invalid(&format!("its base64 is wrong: {error}")))?;
    too_large("bytes", bytes.len() as u64, limits.encoded.0)?;
    Ok(bytes)
}

/// Strips a prefix such as `data:image/png;base64,`.
fn payload(text: &str) -> Result<&str> {
    let Some(scheme) = text.get(..5) else { return Ok(text) };
    if !scheme.eq_ignore_ascii_case("data:") {
        return Ok(text);
    }
    let (head, data) = text[5..].split_once(',').ok_or_else(|| invalid("its data: address has no comma"))?;
    if head.len() > MAX_MEDIA_TYPE {
        return Err(invalid("its data: address has too long a media type"));
    }
    match head.rsplit(';').next() {
        Some(encoding) if encoding.trim().eq_ignore_ascii_case("base64") => Ok(data),
        _ => Err(invalid("its data: address is not in base64")),
    }
}

fn invalid(reason: &str) -> Error {
    Error::InvalidImage { reason: reason.to_owned() }
}
