//! The size that Qwen-VL scales a picture to: both sides multiples of the side of a merged patch, no fewer
//! and no more pixels than the model wants, in proportion otherwise. As `smart_resize` of transformers.

use std::path::Path;

use model_actors::Picture;
use serde::Deserialize;
use serde_json::Value;

use crate::architecture::parse;
use crate::error::{Error, Result};
use crate::preprocessing::{Filter, MAX_PIXELS, resize};

/// Largest ratio of a longer side to a shorter.
const MAX_ASPECT: f64 = 200.0;

#[derive(Debug, Clone)]
pub(super) struct SmartResize {
    /// Pixels along a merged patch.
    factor: usize,
    fewest: usize,
    most: usize,
    filter: Filter,
}

/// `preprocessor_config.json`, as far as it matters here.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Raw {
    size: Option<Sides>,
    min_pixels: Option<usize>,
    max_pixels: Option<usize>,
    resample: Option<u64>,
    patch_size: Option<usize>,
    merge_size: Option<usize>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Sides {
    shortest_edge: Option<usize>,
    longest_edge: Option<usize>,
}

impl SmartResize {
    /// Reads it for a tower of these patches.
    pub(super) fn read(file: &Path, config: &Value, patch: usize, merge: usize) -> Result<Self> {
        let raw: Raw = parse(file, config)?;
        let invalid = |reason: String| Error::InvalidConfig { file: file.to_owned(), reason };
        if raw.patch_size.is_some_and(|size| size != patch)
            || raw.merge_size.is_some_and(|size| size != merge)
        {
            let reason = format!("patch_size and merge_size are not the vision tower's, {patch} and {merge}");
            return Err(invalid(reason));
        }
        let sides = raw.size.unwrap_or_default();
        let fewest = raw.min_pixels.or(sides.shortest_edge).unwrap_or(56 * 56);
        let most = raw.max_pixels.or(sides.longest_edge).unwrap_or(28 * 28 * 1280);
        let factor = patch.saturating_mul(merge);
        if fewest == 0 || most < fewest || most < factor.saturating_mul(factor) || most > MAX_PIXELS {
            let reason = format!(
                "pictures of {fewest} to {most} pixels are asked for; at least one merged patch of {factor} pixels a \
                 side and at most {MAX_PIXELS} are possible"
            );
            return Err(invalid(reason));
        }
        let filter = match raw.resample {
            None => Filter::Bicubic,
            Some(number) => Filter::from_number(number).ok_or_else(|| Error::UnsupportedSetting {
                file: file.to_owned(),
                what: "resample".into(),
                found: number.to_string(),
                supported: "0 to 5, as Pillow counts".into(),
            })?,
        };
        Ok(Self { factor, fewest, most, filter })
    }

    /// Maximum number of pixels of what a picture becomes.
    pub(super) fn most(&self) -> usize {
        self.most
    }

    /// Width and height of what a picture becomes.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] for a strip.
    pub(super) fn of(&self, (width, height): (usize, usize)) -> Result<(usize, usize)> {
        let (across, down) = (width as f64, height as f64);
        if width == 0 || height == 0 || across.max(down) / across.min(down) > MAX_ASPECT {
            let reason =
                format!("a picture of {width}x{height} is more than {MAX_ASPECT} times longer than wide");
            return Err(Error::InvalidInput(reason));
        }
        let factor = self.factor as f64;
        let both = |round: fn(f64) -> f64, scale: f64| {
            let side = |side: f64| (round(side * scale / factor) as usize).saturating_mul(self.factor);
            (side(across), side(down))
        };
        let nearest = both(f64::round_ties_even, 1.0);
        let pixels = nearest.0.saturating_mul(nearest.1);
        if pixels > self.most {
            // Divided rather than multiplied, as the reference, which can differ in the last digit.
            let shrink = (across * down / self.most as f64).sqrt();
            let side = |side: f64| ((side / shrink / factor).floor() as usize * self.factor).max(self.factor);
            Ok((side(across), side(down)))
        } else if pixels < self.fewest {
            let grow = (self.fewest as f64 / (across * down)).sqrt();
            Ok(both(f64::ceil, grow))
        } else {
            Ok(nearest)
        }
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

    fn resize(change: Value) -> Result<SmartResize> {
        SmartResize::read(Path::new("preprocessor_config.json"), &change, 16, 2)
    }

    #[test]
    fn sides_become_multiples_within_the_limits() {
        let resize = resize(json!({"size": {"shortest_edge": 65536, "longest_edge": 16_777_216}})).unwrap();
        assert_eq!(resize.of((1000, 700)).unwrap(), (992, 704));
        assert_eq!(resize.of((100, 70)).unwrap(), (320, 224));
        assert_eq!(resize.of((8000, 6000)).unwrap(), (4704, 3520));
        // Halves go to the even side.
        assert_eq!(resize.of((48 + 1024, 80 + 1024)).unwrap(), (1088, 1088));
        assert!(resize.of((10, 4000)).is_err());
        assert!(resize.of((0, 4)).is_err());
    }

    #[test]
    fn limits_that_cannot_be_are_refused() {
        for change in [
            json!({"min_pixels": 0}),
            json!({"min_pixels": 5000, "max_pixels": 4000}),
            json!({"max_pixels": 1_u64 << 40}),
            json!({"min_pixels": 1, "max_pixels": 100}),
            json!({"patch_size": 14}),
            json!({"resample": 9}),
        ] {
            assert!(resize(change.clone()).is_err(), "{change}");
        }
    }
}
