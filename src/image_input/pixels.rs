//! Pixels of any depth and any channels to 8 bits of red, green and blue, as Pillow's `convert("RGB")` does it.

use image::{DynamicImage, ImageBuffer, RgbImage};

use crate::error::{Error, Result};

/// Alpha is dropped, grey is repeated, of 16 bits the high byte is kept.
///
/// # Errors
/// [`Error::UnsupportedImage`] for pixels that are fractions.
pub(crate) fn to_rgb(image: DynamicImage) -> Result<RgbImage> {
    let (width, height) = (image.width(), image.height());
    let high = |sample: u16| (sample >> 8) as u8;
    let rgb: Vec<u8> = match image {
        DynamicImage::ImageRgb8(image) => return Ok(image),
        DynamicImage::ImageRgba8(image) => {
            image.pixels().flat_map(|&image::Rgba([r, g, b, _])| [r, g, b]).collect()
        }
        DynamicImage::ImageLuma8(image) => {
            image.pixels().flat_map(|&image::Luma([grey])| [grey; 3]).collect()
        }
        DynamicImage::ImageLumaA8(image) => {
            image.pixels().flat_map(|&image::LumaA([grey, _])| [grey; 3]).collect()
        }
        DynamicImage::ImageRgb16(image) => image.pixels().flat_map(|pixel| pixel.0.map(high)).collect(),
        DynamicImage::ImageRgba16(image) => {
            image.pixels().flat_map(|&image::Rgba([r, g, b, _])| [r, g, b].map(high)).collect()
        }
        DynamicImage::ImageLuma16(image) => {
            image.pixels().flat_map(|&image::Luma([grey])| [high(grey); 3]).collect()
        }
        DynamicImage::ImageLumaA16(image) => {
            image.pixels().flat_map(|&image::LumaA([grey, _])| [high(grey); 3]).collect()
        }
        _ => return Err(Error::UnsupportedImage { found: "numbers with fractions for pixels".to_owned() }),
    };
    ImageBuffer::from_raw(width, height, rgb)
        .ok_or_else(|| Error::InvalidImage { reason: "it has fewer pixels than its size says".to_owned() })
}
