//! Tiles of LLaVA 1.6: an image is cut into them, and their patches are put together again: the grid that
//! loses least of the image is chosen, the image is scaled into it with borders, and of the patches the
//! borders' are left out. All of it is arithmetic on sides, as in transformers'
//! `image_processing_llava_next.py`.

use std::path::Path;

use model_actors::Picture;
use serde_json::Value;

use crate::architecture::parse;
use crate::error::{Error, Result};
use crate::preprocessing::{Filter, MAX_SIDE, Preprocessing, resize, window};

/// Most grids that a configuration may offer.
const MAX_GRIDS: usize = 64;
/// Most tiles of a grid.
const MAX_TILES: usize = 64;

/// The grids on offer: heights and widths in pixels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Tiles {
    grids: Vec<(usize, usize)>,
}

impl Tiles {
    /// Reads `image_grid_pinpoints`.
    pub(super) fn read(file: &Path, grids: &Value) -> Result<Self> {
        let grids: Vec<(usize, usize)> = if grids.is_null() {
            vec![(336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008)]
        } else {
            parse(file, grids)?
        };
        Ok(Self { grids })
    }

    /// Refuses grids that tiles of `side` pixels do not fill.
    pub(super) fn check(&self, file: &Path, side: usize) -> Result<()> {
        let fits = |length: usize| (1..=MAX_SIDE).contains(&length) && length.is_multiple_of(side.max(1));
        let sound = |&(height, width): &(usize, usize)| {
            fits(height) && fits(width) && (height / side) * (width / side) <= MAX_TILES
        };
        if (1..=MAX_GRIDS).contains(&self.grids.len()) && self.grids.iter().all(sound) {
            return Ok(());
        }
        let reason = format!(
            "image_grid_pinpoints must be 1 to {MAX_GRIDS} pairs of multiples of image_size {side}, up to \
             {MAX_SIDE} and {MAX_TILES} tiles"
        );
        Err(Error::InvalidConfig { file: file.to_owned(), reason })
    }

    /// Most tiles that an image can become, with the one of the whole image, in units of an area of 1 where
    /// the side is not known.
    pub(super) fn most(&self) -> usize {
        let smallest = self.grids.iter().flat_map(|grid| [grid.0, grid.1]).min().unwrap_or(1).max(1);
        let tiles = self.grids.iter().map(|grid| (grid.0 / smallest) * (grid.1 / smallest));
        tiles.max().unwrap_or(0) + 1
    }

    /// Height and width of the grid for an image of these sides (width, height).
    fn best(&self, (width, height): (usize, usize)) -> (usize, usize) {
        let (across, down) = (width as f64, height as f64);
        let mut best = (self.grids.first().copied().unwrap_or((1, 1)), 0.0, f64::INFINITY);
        for &grid in &self.grids {
            let scale = (grid.1 as f64 / across).min(grid.0 as f64 / down);
            let scaled = (across * scale).floor() * (down * scale).floor();
            let effective = scaled.min(across * down);
            let wasted = (grid.0 * grid.1) as f64 - effective;
            if effective > best.1 || (effective == best.1 && wasted < best.2) {
                best = (grid, effective, wasted);
            }
        }
        best.0
    }

    /// The whole picture and its tiles, each of `side` pixels a side.
    pub(super) fn cut(
        &self,
        picture: &Picture,
        side: usize,
        preprocessing: &Preprocessing,
    ) -> Result<Vec<Picture>> {
        let filter = preprocessing.resize.map_or(Filter::Bicubic, |(_, filter)| filter);
        let (down, across) = self.best((picture.width, picture.height));
        let (width, height) = scaled((picture.width, picture.height), (across, down));
        let inner = resize(picture, width, height, filter)?;
        let left = ((across - width) / 2) as isize;
        let top = ((down - height) / 2) as isize;
        let padded = window(&inner, (-left, -top), (across, down), [0; 3])?;
        let mut pictures = vec![resize(picture, side, side, filter)?];
        for top in (0..down).step_by(side) {
            for left in (0..across).step_by(side) {
                pictures.push(window(&padded, (left as isize, top as isize), (side, side), [0; 3])?);
            }
        }
        Ok(pictures)
    }

    /// The places of the rows that the text gets, among the rows of the whole picture, those of the tiles and
    /// last the newline. A tile has `grid` patches and `side` pixels a side.
    pub(super) fn layout(&self, sides: (usize, usize), grid: usize, side: usize) -> Result<Vec<u32>> {
        let (height, width) = self.best(sides);
        let (tiles_down, tiles_across) = (height / side, width / side);
        let newline = (1 + tiles_down * tiles_across) * grid * grid;
        let (lines, columns) = shown(sides, (tiles_across * grid, tiles_down * grid));
        let mut rows: Vec<u32> = (0..grid * grid).map(|row| row as u32).collect();
        for line in lines {
            for column in columns.clone() {
                let tile = 1 + (line / grid) * tiles_across + column / grid;
                rows.push((tile * grid * grid + (line % grid) * grid + column % grid) as u32);
            }
            rows.push(newline as u32);
        }
        Ok(rows)
    }
}

/// Width and height of an image that is scaled into a frame, both as (width, height).
fn scaled((width, height): (usize, usize), (across, down): (usize, usize)) -> (usize, usize) {
    let (by_width, by_height) = (across as f64 / width as f64, down as f64 / height as f64);
    if by_width < by_height {
        (across, ((height as f64 * by_width).ceil() as usize).clamp(1, down))
    } else {
        (((width as f64 * by_height).ceil() as usize).clamp(1, across), down)
    }
}

/// Lines and columns of a frame's patches that show the image, and not its borders.
fn shown(
    (width, height): (usize, usize),
    (across, down): (usize, usize),
) -> (std::ops::Range<usize>, std::ops::Range<usize>) {
    // Rounded at the seventh digit as the reference does, so that a whole number is not missed by a hair.
    let inner = |length: usize, scale: f64| ((length as f64 * scale * 1e7).round() / 1e7) as usize;
    if width as f64 / height as f64 > across as f64 / down as f64 {
        let border = down.saturating_sub(inner(height, across as f64 / width as f64)) / 2;
        (border..down - border, 0..across)
    } else {
        let border = across.saturating_sub(inner(width, down as f64 / height as f64)) / 2;
        (0..down, border..across - border)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_grid_that_loses_least_is_chosen_and_borders_are_left_out() {
        let tiles = Tiles::read(Path::new("config.json"), &Value::Null).unwrap();
        tiles.check(Path::new("config.json"), 336).unwrap();
        assert_eq!(tiles.most(), 5);
        assert_eq!(tiles.best((1000, 300)), (336, 1008));
        assert_eq!(tiles.best((300, 1000)), (1008, 336));
        assert_eq!(tiles.best((640, 640)), (672, 672));
        // 1000x300 in 1008x336: 302 of 336 pixels high, 21 of 24 patches, and one more for the odd border.
        let rows = tiles.layout((1000, 300), 24, 336).unwrap();
        let lines = rows.iter().filter(|row| **row == 4 * 576).count();
        assert_eq!((lines, rows.len()), (22, 576 + 22 * 73));
    }

    #[test]
    fn grids_that_tiles_do_not_fill_are_refused() {
        for grids in ["[]", "[[336, 0]]", "[[336, 500]]", "[[336, 336000]]"] {
            let grids = serde_json::from_str(grids).unwrap();
            let tiles = Tiles::read(Path::new("config.json"), &grids).unwrap();
            assert!(tiles.check(Path::new("config.json"), 336).is_err(), "{grids}");
        }
        assert!(Tiles::read(Path::new("config.json"), &Value::from("wide")).is_err());
    }
}
