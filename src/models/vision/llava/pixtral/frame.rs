//! The size that Pixtral scales a picture to: within a frame, in proportion, and then up to whole patches. As
//! `get_resize_output_image_size` of transformers.

use std::path::Path;

use model_actors::Picture;
use serde::Deserialize;
use serde_json::Value;

use crate::architecture::parse;
use crate::error::{Error, Result};
use crate::limits::MAX_MODEL_SIDE;
use crate::models::config_file::{invalid, unsupported};
use crate::preprocessing::{Filter, resize};

#[derive(Debug, Clone)]
pub(super) struct Frame {
    /// Width and height that no picture exceeds before it is filled up to whole patches.
    most: (usize, usize),
    /// Pixels along a merged patch.
    unit: usize,
    filter: Filter,
}

/// `preprocessor_config.json`, as far as it matters here.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Raw {
    size: Option<Sides>,
    do_resize: Option<bool>,
    do_center_crop: Option<bool>,
    resample: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Sides {
    longest_edge: Option<usize>,
    height: Option<usize>,
    width: Option<usize>,
}

impl Frame {
    /// The names of its settings, and of those that do nothing: the processor takes its own size of patches, and padding
    /// is taken away again.
    pub(super) const SETTINGS: [&str; 5] = ["size", "do_resize", "do_center_crop", "patch_size", "do_pad"];

    /// Reads it for merged patches of `unit` pixels a side.
    pub(super) fn read(file: &Path, config: &Value, unit: usize) -> Result<Self> {
        let raw: Raw = parse(file, config)?;
        for (name, found, only) in [
            ("do_resize", raw.do_resize.unwrap_or(true), true),
            ("do_center_crop", raw.do_center_crop.unwrap_or(false), false),
        ] {
            if found != only {
                return Err(unsupported(file, name, &found.to_string(), only.to_string()));
            }
        }
        let sides = raw.size.unwrap_or(Sides { longest_edge: Some(1024), ..Sides::default() });
        let most = match (sides.longest_edge, sides.width, sides.height) {
            (Some(longest), ..) => (longest, longest),
            (None, Some(width), Some(height)) => (width, height),
            _ => return Err(invalid(file, "size has neither a longest_edge nor a height and a width")),
        };
        let is_possible = |side: usize| {
            side > 0 && side.checked_next_multiple_of(unit).is_some_and(|side| side <= MAX_MODEL_SIDE)
        };
        if !is_possible(most.0) || !is_possible(most.1) {
            let reason = format!(
                "pictures of up to {}x{} pixels are asked for; up to {MAX_MODEL_SIDE} a side are possible",
                most.0, most.1
            );
            return Err(invalid(file, reason));
        }
        let filter = match raw.resample {
            None => Filter::Bicubic,
            Some(number) => Filter::from_number(number).ok_or_else(|| {
                unsupported(file, "resample", &number.to_string(), "0 to 5, as Pillow counts")
            })?,
        };
        Ok(Self { most, unit, filter })
    }

    /// Maximum number of pixels of what a picture becomes.
    pub(super) fn pixels(&self) -> usize {
        let side = |side: usize| side.next_multiple_of(self.unit);
        side(self.most.0).saturating_mul(side(self.most.1))
    }

    /// Width and height of what a picture becomes.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] for a strip of which nothing would be left.
    pub(super) fn of(&self, (width, height): (usize, usize)) -> Result<(usize, usize)> {
        let ratio = (height as f64 / self.most.1 as f64).max(width as f64 / self.most.0 as f64);
        let side = |side: usize| if ratio > 1.0 { (side as f64 / ratio).floor() as usize } else { side };
        let (across, down) = (side(width), side(height));
        if across == 0 || down == 0 {
            let reason = format!("a picture of {width}x{height} pixels is too narrow to be scaled down");
            return Err(Error::InvalidInput(reason));
        }
        Ok((across.next_multiple_of(self.unit), down.next_multiple_of(self.unit)))
    }

    pub(super) fn picture(&self, picture: &Picture) -> Result<Picture> {
        let (width, height) = self.of((picture.width, picture.height))?;
        resize(picture, width, height, self.filter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn frame(config: Value) -> Result<Frame> {
        Frame::read(Path::new("preprocessor_config.json"), &config, 28)
    }

    #[test]
    fn pictures_are_scaled_into_the_frame_and_up_to_whole_patches() {
        let square = frame(json!({"size": {"longest_edge": 1540}})).unwrap();
        assert_eq!(square.of((10, 29)).unwrap(), (28, 56));
        assert_eq!(square.of((1540, 1540)).unwrap(), (1540, 1540));
        // 3000x1000 becomes 1540x513.
        assert_eq!(square.of((3000, 1000)).unwrap(), (1540, 532));
        assert_eq!(square.pixels(), 1540 * 1540);
        let wide = frame(json!({"size": {"height": 100, "width": 400}})).unwrap();
        assert_eq!(wide.of((400, 200)).unwrap(), (224, 112));
        assert!(matches!(square.of((1, 4000)), Err(Error::InvalidInput(_))));
    }

    #[test]
    fn frames_that_cannot_be_are_refused() {
        for config in [
            json!({"size": {"longest_edge": 0}}),
            json!({"size": {"longest_edge": 1_u64 << 40}}),
            json!({"size": {"height": 100}}),
            json!({"size": {"longest_edge": 100}, "do_resize": false}),
            json!({"do_center_crop": true}),
            json!({"resample": 9}),
        ] {
            assert!(frame(config.clone()).is_err(), "{config}");
        }
    }
}
