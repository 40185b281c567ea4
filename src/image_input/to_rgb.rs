//! Pixels of any depth and any channels to 8 bits of red, green and blue, as `convert_to_rgb` of transformers
//! does it: what is transparent lies on white, by Pillow's `alpha_composite`.

use image::{DynamicImage, ImageBuffer, RgbImage};

use crate::error::{Error, Result};

/// Alpha is blended with white, grey is repeated, of 16 bits the high byte is kept.
///
/// # Errors
/// [`Error::UnsupportedImage`] for pixels that are fractions.
pub(crate) fn to_rgb(image: DynamicImage) -> Result<RgbImage> {
    let (width, height) = (image.width(), image.height());
    let high = |sample: u16| (sample >> 8) as u8;
    let rgb: Vec<u8> = match image {
        DynamicImage::ImageRgb8(image) => return Ok(image),
        DynamicImage::ImageRgba8(image) => {
            image.pixels().flat_map(|&image::Rgba([r, g, b, a])| [r, g, b].map(|x| on_white(x, a))).collect()
        }
        DynamicImage::ImageLuma8(image) => {
            image.pixels().flat_map(|&image::Luma([grey])| [grey; 3]).collect()
        }
        DynamicImage::ImageLumaA8(image) => {
            image.pixels().flat_map(|&image::LumaA([grey, a])| [on_white(grey, a); 3]).collect()
        }
        DynamicImage::ImageRgb16(image) => image.pixels().flat_map(|pixel| pixel.0.map(high)).collect(),
        DynamicImage::ImageRgba16(image) => {
            let rgb = |&image::Rgba([r, g, b, a]): &image::Rgba<u16>| {
                [r, g, b].map(|sample| on_white(high(sample), high(a)))
            };
            image.pixels().flat_map(rgb).collect()
        }
        DynamicImage::ImageLuma16(image) => {
            image.pixels().flat_map(|&image::Luma([grey])| [high(grey); 3]).collect()
        }
        DynamicImage::ImageLumaA16(image) => {
            image.pixels().flat_map(|&image::LumaA([grey, a])| [on_white(high(grey), high(a)); 3]).collect()
        }
        _ => return Err(Error::UnsupportedImage { found: "numbers with fractions for pixels".to_owned() }),
    };
    ImageBuffer::from_raw(width, height, rgb)
        .ok_or_else(|| Error::InvalidImage { reason: "it has fewer pixels than its size says".to_owned() })
}

/// A sample over white, with Pillow's rounding: 7 bits more than the result has, and a division by 255 of
/// shifts.
fn on_white(sample: u8, alpha: u8) -> u8 {
    const BITS: u32 = 7;
    if alpha == 0 {
        return u8::MAX;
    }
    let (own, rest) = (u32::from(alpha) << BITS, u32::from(u8::MAX - alpha) << BITS);
    let sum = u32::from(sample) * own + u32::from(u8::MAX) * rest + (0x80 << BITS);
    ((((sum >> 8) + sum) >> 8) >> BITS) as u8
}
