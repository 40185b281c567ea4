//! The pictures that Idefics3 makes of one: tiles, row by row, and after them the whole, all squares of one size. A
//! picture is first scaled to a longest side, then to multiples of the tile's. As transformers'
//! `image_processing_pil_idefics3.py`.

use std::path::Path;

use model_actors::Picture;
use serde::Deserialize;
use serde_json::Value;

use crate::architecture::parse;
use crate::error::Result;
use crate::models::config_file::{invalid, unsupported};
use crate::preprocessing::{Filter, resize, window};

/// Maximum number of tiles along a side.
const MAX_TILES_ALONG: usize = 16;
/// Pixels of a longest side beyond which a picture is scaled down, whatever the file says.
const LIMIT: usize = 4096;

/// How a picture is split.
#[derive(Debug, Clone)]
pub(super) struct Splits {
    /// Pixels of a picture's longer side before it is split.
    longest: usize,
    /// Pixels along a tile's side.
    pub(super) tile: usize,
    /// Whether there are tiles, or the whole alone.
    splitting: bool,
    filter: Filter,
}

/// `preprocessor_config.json`, as far as it matters here.
#[derive(Debug, Deserialize)]
struct Raw {
    size: Option<Sides>,
    max_image_size: Option<Sides>,
    do_resize: Option<bool>,
    do_image_splitting: Option<bool>,
    resample: Option<u64>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
struct Sides {
    longest_edge: usize,
}

impl Splits {
    /// The names of its settings.
    pub(super) const SETTINGS: [&str; 7] = [
        "size",
        "max_image_size",
        "do_resize",
        "do_image_splitting",
        "do_pad",
        "do_center_crop",
        "return_row_col_info",
    ];

    /// Reads them for a tower that takes images of `side` pixels a side.
    pub(super) fn read(file: &Path, config: &Value, side: usize) -> Result<Self> {
        let raw: Raw = parse(file, config)?;
        if raw.do_resize == Some(false) {
            return Err(unsupported(file, "do_resize", "false", "true"));
        }
        let longest = raw.size.map_or(4 * 364, |size| size.longest_edge);
        let tile = raw.max_image_size.map_or(364, |size| size.longest_edge);
        if tile != side {
            let reason = format!("max_image_size is {tile}; the tower's image_size is {side}");
            return Err(invalid(file, reason));
        }
        let splits = Self {
            longest,
            tile,
            splitting: raw.do_image_splitting.unwrap_or(true),
            filter: match raw.resample {
                None => Filter::Lanczos,
                Some(number) => Filter::from_number(number).ok_or_else(|| {
                    unsupported(file, "resample", &number.to_string(), "0 to 5, as Pillow counts")
                })?,
            },
        };
        if tile == 0 || longest == 0 || longest > LIMIT || splits.along() > MAX_TILES_ALONG {
            let reason = format!(
                "a longest_edge of {longest} pixels is out of range, or more than {MAX_TILES_ALONG} tiles of {tile}"
            );
            return Err(invalid(file, reason));
        }
        Ok(splits)
    }

    /// Maximum number of tiles along a side. An odd side is made even by another pixel.
    fn along(&self) -> usize {
        (self.longest + 1).div_ceil(self.tile.max(1))
    }

    /// Maximum number of pictures of one.
    pub(super) fn most(&self) -> usize {
        if self.splitting { self.along() * self.along() + 1 } else { 1 }
    }

    /// Width and height that a picture is scaled to first.
    fn scaled(&self, (width, height): (usize, usize)) -> (usize, usize) {
        let aspect = width as f64 / height as f64;
        let even = |side: f64| (side as usize).next_multiple_of(2).max(1);
        let longest = self.longest as f64;
        let (width, height) = match width >= height {
            true => (self.longest, even(longest / aspect)),
            false => (even(longest * aspect), self.longest),
        };
        // The pixel that makes a side even may be one too many.
        let aspect = width as f64 / height as f64;
        match width >= height {
            true if width > LIMIT => (LIMIT, ((LIMIT as f64 / aspect) as usize).max(1)),
            false if height > LIMIT => (((LIMIT as f64 * aspect) as usize).max(1), LIMIT),
            _ => (width, height),
        }
    }

    /// Width and height in whole tiles of a picture of these sides.
    fn filled(&self, (width, height): (usize, usize)) -> (usize, usize) {
        let aspect = width as f64 / height as f64;
        let whole = |side: usize| side.max(1).next_multiple_of(self.tile.max(1));
        if width >= height {
            let width = whole(width);
            (width, whole((width as f64 / aspect) as usize))
        } else {
            let height = whole(height);
            (whole((height as f64 * aspect) as usize), height)
        }
    }

    /// Number of rows and columns of tiles of a picture of these sides (width, height); none where the whole is alone.
    pub(super) fn grid(&self, sides: (usize, usize)) -> (usize, usize) {
        let (width, height) = self.filled(self.scaled(sides));
        let tile = self.tile.max(1);
        match !self.splitting || (width <= tile && height <= tile) {
            true => (0, 0),
            false => (height / tile, width / tile),
        }
    }

    /// The pictures of one, each a square of one tile.
    pub(super) fn cut(&self, picture: &Picture) -> Result<Vec<Picture>> {
        let sides = (picture.width, picture.height);
        let (width, height) = self.scaled(sides);
        let scaled = resize(picture, width, height, self.filter)?;
        let whole = |picture: &Picture| resize(picture, self.tile, self.tile, self.filter);
        if !self.splitting {
            return Ok(vec![whole(&scaled)?]);
        }
        let (width, height) = self.filled((width, height));
        let filled = resize(&scaled, width, height, self.filter)?;
        let (rows, columns) = self.grid(sides);
        let mut pictures = Vec::with_capacity(rows * columns + 1);
        for (row, column) in (0..rows).flat_map(|row| (0..columns).map(move |column| (row, column))) {
            let at = ((column * self.tile) as isize, (row * self.tile) as isize);
            pictures.push(window(&filled, at, (self.tile, self.tile), [0; 3])?);
        }
        pictures.push(whole(&filled)?);
        Ok(pictures)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn splits(change: Value) -> Result<Splits> {
        let mut config = json!({"size": {"longest_edge": 2048}, "max_image_size": {"longest_edge": 512}});
        config.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        Splits::read(Path::new("preprocessor_config.json"), &config, 512)
    }

    #[test]
    fn a_picture_becomes_whole_tiles_of_its_longest_side() {
        let splits = splits(json!({})).unwrap();
        assert_eq!(splits.scaled((640, 427)), (2048, 1366));
        // An odd side has a pixel more.
        assert_eq!(splits.scaled((100, 33)), (2048, 676));
        assert_eq!(splits.grid((640, 427)), (3, 4));
        assert_eq!(splits.grid((427, 640)), (4, 3));
        assert_eq!(splits.grid((1, 4000)), (4, 1));
        assert_eq!(splits.most(), 5 * 5 + 1);
        let small = Splits { longest: 300, ..splits.clone() };
        assert_eq!(small.grid((640, 427)), (0, 0));
        let whole = Splits { splitting: false, ..splits };
        assert_eq!((whole.grid((640, 427)), whole.most()), ((0, 0), 1));
    }

    #[test]
    fn settings_that_cannot_be_are_refused() {
        for change in [
            json!({"size": {"longest_edge": 0}}),
            json!({"size": {"longest_edge": 5000}}),
            json!({"size": {"height": 512, "width": 512}}),
            json!({"max_image_size": {"longest_edge": 364}}),
            json!({"do_resize": false}),
            json!({"resample": 9}),
        ] {
            assert!(splits(change.clone()).is_err(), "{change}");
        }
        assert!(
            Splits::read(Path::new("c.json"), &json!({"max_image_size": {"longest_edge": 8}}), 8).is_err()
        );
    }
}
