//! Decoded colours to the bytes of a picture, and back.

use candle_core::{D, Device, IndexOp as _, Tensor};
use model_actors::Picture;

use crate::error::{Error, Result};

/// Converts colours `(1, 3, height, width)` from -1 to 1 to bytes.
///
/// # Errors
/// [`Error::NotFiniteOutput`] if a colour is not finite.
pub(super) fn to_picture(colours: &Tensor) -> Result<Picture> {
    let (_, _, height, width) = colours.dims4()?;
    let colours = colours.i(0)?.permute((1, 2, 0))?.contiguous()?.to_device(&Device::Cpu)?;
    let values: Vec<f32> = colours.flatten(0, D::Minus1)?.to_vec1()?;
    if !values.iter().all(|value| value.is_finite()) {
        return Err(Error::NotFiniteOutput);
    }
    let byte = |value: &f32| ((value / 2.0 + 0.5).clamp(0.0, 1.0) * 255.0).round_ties_even() as u8;
    Ok(Picture::new(width, height, values.iter().map(byte).collect()))
}

/// Converts a picture to colours `(1, 3, height, width)` from -1 to 1.
pub(super) fn to_colours(picture: &Picture, device: &Device) -> Result<Tensor> {
    let values: Vec<f32> = picture.rgb.iter().map(|byte| f32::from(*byte) / 255.0 * 2.0 - 1.0).collect();
    let colours = Tensor::from_vec(values, (1, picture.height, picture.width, 3), device)?;
    Ok(colours.permute((0, 3, 1, 2))?.contiguous()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_out_of_range_are_clamped_and_infinite_ones_refused() {
        let colours = Tensor::new(&[[[[-3.0f32, -1.0]], [[0.0, 1.0]], [[0.5, 9.0]]]], &Device::Cpu).unwrap();
        let picture = to_picture(&colours).unwrap();
        assert_eq!((picture.width, picture.height, picture.rgb), (2, 1, vec![0, 128, 191, 0, 255, 255]));
        let infinite = (colours / 0.0).unwrap();
        assert!(matches!(to_picture(&infinite), Err(Error::NotFiniteOutput)));
    }
}
