//! Helpers of the examples with images.

use candle_actors::ImageSource;

use crate::common::Failure;

/// Parses the source of an image. A missing file is an error before a model is downloaded.
pub(crate) fn source(image: &str) -> Result<ImageSource, Failure> {
    // A mistyped scheme is an address too: as one it is refused without being shown.
    if image.contains("://") {
        return Ok(ImageSource::Url(image.to_owned()));
    }
    match std::fs::metadata(image) {
        Ok(_) => Ok(ImageSource::Path(image.into())),
        Err(error) => Err(format!("cannot read {}: {error}", shown(image)).into()),
    }
}

/// An image in an error. An address may hold a key.
pub(crate) fn shown(image: &str) -> &str {
    match image.contains("://") || image.contains(['@', '?']) {
        true => "an address",
        false => image,
    }
}
