//! What the fuzz targets call: everything that reads what others wrote. Nothing here is part of the public interface.
#![allow(missing_docs, reason = "for the fuzz targets alone")]

use model_actors::Bytes;

use crate::image_input;
use crate::limits::ImageLimits;

/// Small enough that a run spends its time on the formats and not on large pictures.
fn limits() -> ImageLimits {
    ImageLimits { pixels: 1 << 20, decoder: Bytes::mib(64), ..ImageLimits::default() }
}

pub fn image(bytes: &[u8]) {
    if let Ok(picture) = image_input::decode(bytes, &limits()) {
        assert_eq!(picture.rgb.len(), picture.width * picture.height * 3);
        assert!(picture.rgb.len() <= 3 << 20);
    }
}
