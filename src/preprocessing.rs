//! Image preprocessing, exactly as the Pillow-backed processors of transformers do it: resizes, crops, pads,
//! rescales and normalises, as the model's own `preprocessor_config.json` says. All of it is plain functions
//! of [`Picture`]s, so that models with a preprocessing of their own put theirs together from the same parts.
//! Reading and decoding images is left to `image_input`.

mod resample;
mod window;
mod settings;

use model_actors::Picture;

use crate::error::{Error, Result};
use crate::image_input::has_all_bytes;
use resample::resize_planes;
pub(crate) use resample::{Filter, resize};
pub(crate) use settings::{Preprocessing, Processor, Scaling, Size, processor_config};
pub(crate) use window::{Middle, centre_crop, window};

pub(crate) use crate::limits::{MAX_MODEL_PIXELS as MAX_PIXELS, MAX_MODEL_SIDE as MAX_SIDE};

/// Refuses a picture whose pixels are not those that its sides call for, and one of nothing.
pub(crate) fn check(picture: &Picture) -> Result<()> {
    let &Picture { width, height, ref rgb, .. } = picture;
    if width == 0 || height == 0 || !has_all_bytes(picture) {
        let reason = format!("a picture of {width}x{height} pixels does not have {} bytes", rgb.len());
        return Err(Error::InvalidInput(reason));
    }
    Ok(())
}

/// Refuses sides of zero or over the limit.
fn check_sides(width: usize, height: usize) -> Result<()> {
    if (1..=MAX_SIDE).contains(&width) && (1..=MAX_SIDE).contains(&height) {
        return Ok(());
    }
    let reason = format!(
        "the picture would become {width}x{height} pixels; 1 to {MAX_SIDE} a side are allowed (it may be too narrow)"
    );
    Err(Error::InvalidInput(reason))
}
