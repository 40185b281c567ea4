//! Writing of images as PNG files.

use std::fmt::Display;
use std::path::Path;

use candle_actors::Picture;

/// # Errors
/// In words, with the file's name.
pub(crate) fn save(picture: &Picture, path: &Path) -> Result<(), String> {
    let failed = |error: &dyn Display| format!("cannot write {}: {error}", path.display());
    let side = |pixels: usize| u32::try_from(pixels).map_err(|error| failed(&error));
    let (width, height) = (side(picture.width)?, side(picture.height)?);
    let (colours, format) = (image::ExtendedColorType::Rgb8, image::ImageFormat::Png);
    image::save_buffer_with_format(path, &picture.rgb, width, height, colours, format)
        .map_err(|error| failed(&error))
}
