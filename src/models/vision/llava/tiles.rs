//! Tiles of LLaVA 1.6 and OneVision: an image is cut into them, and their patches are put together again: the
//! grid that loses least of the image is chosen, the image is scaled into it with borders, and of the patches
//! the borders' are left out. Where OneVision would have too many, they are scaled down. All of it is
//! arithmetic on sides, as in transformers' `image_processing_llava_next.py` and `pack_image_features`.

use std::ops::Range;
use std::path::Path;

use candle_core::Tensor;
use model_actors::Picture;
use serde_json::Value;

use crate::architecture::parse;
use crate::error::{Error, Result};
use crate::models::config_file::unsupported;
use crate::models::towers::{Resampling, pick, resample};
use crate::preprocessing::{Filter, MAX_SIDE, Preprocessing, resize, window};

/// Maximum number of grids that a configuration may offer.
const MAX_GRIDS: usize = 64;
/// Maximum number of tiles of a grid.
const MAX_TILES: usize = 64;

/// The grids on offer: heights and widths in pixels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Tiles {
    grids: Vec<(usize, usize)>,
    /// Number of tiles whose patches the text gets at most, or a few more; beyond that they are scaled down.
    full: Option<usize>,
}

/// Number of times more patches than that by which they are scaled down, along a side.
const TOLERANCE: f64 = 1.1;

impl Tiles {
    /// Reads `image_grid_pinpoints`.
    pub(super) fn read(file: &Path, grids: &Value) -> Result<Self> {
        let grids: Vec<(usize, usize)> = if grids.is_null() {
            vec![(336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008)]
        } else {
            parse(file, grids)?
        };
        Ok(Self { grids, full: None })
    }

    /// Takes other grids, those of the image processor.
    pub(super) fn replace(&mut self, file: &Path, grids: &Value) -> Result<()> {
        self.grids = parse(file, grids)?;
        Ok(())
    }

    /// The same where what is more than `aspect_ratio` allows is scaled down: `anyres_max_9` is 9 tiles.
    pub(super) fn shrunk(mut self, file: &Path, aspect_ratio: &Value) -> Result<Self> {
        let name: Option<String> = parse(file, aspect_ratio)?;
        let name = name.as_deref().unwrap_or("anyres_max_9");
        let full = name.strip_prefix("anyres_max_").and_then(|count| count.parse().ok());
        let full = full.filter(|count| (1..=MAX_TILES).contains(count));
        if full.is_none() {
            let supported = format!("anyres_max_1 to anyres_max_{MAX_TILES}");
            return Err(unsupported(file, "vision_aspect_ratio", name, supported));
        }
        self.full = full;
        Ok(self)
    }

    /// True where pictures are cut into tiles only where a conversation has one: OneVision's.
    pub(super) fn are_for_one(&self) -> bool {
        self.full.is_some()
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

    /// The patches that the text gets of a picture of these sides. A tile has `grid` patches and `side` pixels a
    /// side.
    pub(super) fn layout(&self, sides: (usize, usize), grid: usize, side: usize) -> Layout {
        let (height, width) = self.best(sides);
        let (tiles_down, across) = (height / side, width / side);
        let (lines, columns) = shown(sides, (across * grid, tiles_down * grid));
        let (down, wide) = (lines.len() as f64, columns.len() as f64);
        let ratio = self.full.map(|full| (down * wide / (full * grid * grid) as f64).sqrt());
        let size = match ratio.filter(|ratio| *ratio > TOLERANCE) {
            Some(ratio) => ((down / ratio).floor() as usize, (wide / ratio).floor() as usize),
            None => (lines.len(), columns.len()),
        };
        Layout { grid, across, lines, columns, size }
    }
}

/// Patches of a picture as the text gets them: those of the whole picture, and then line by line those of the
/// tiles, with a newline after each line.
pub(super) struct Layout {
    /// Number of patches along a tile's side.
    grid: usize,
    /// Number of tiles in a line of tiles.
    across: usize,
    /// Lines and columns of the tiles' patches without the borders.
    lines: Range<usize>,
    columns: Range<usize>,
    /// Number of lines and columns that they are scaled to.
    size: (usize, usize),
}

impl Layout {
    /// Number of rows that the text gets.
    pub(super) fn rows(&self) -> usize {
        self.grid * self.grid + self.size.0 * (self.size.1 + 1)
    }

    /// The text's rows, from those of the whole picture, those of the tiles, and last the newline.
    pub(super) fn assemble(&self, rows: &Tensor) -> Result<Tensor> {
        let Self { grid, across, lines, columns, size: (down, wide) } = self;
        let (whole, newline) = (grid * grid, rows.dim(0)?.saturating_sub(1));
        let place = |line: usize, column: usize| {
            let tile = 1 + (line / grid) * across + column / grid;
            tile * whole + (line % grid) * grid + column % grid
        };
        if (lines.len(), columns.len()) == (*down, *wide) {
            let mut places: Vec<usize> = (0..whole).collect();
            for line in lines.clone() {
                places.extend(columns.clone().map(|column| place(line, column)));
                places.push(newline);
            }
            return pick(rows, places.into_iter());
        }
        let shown = lines.clone().flat_map(|line| columns.clone().map(move |column| (line, column)));
        let patches = pick(rows, shown.map(|(line, column)| place(line, column)))?;
        let patches = resample(&patches, (lines.len(), columns.len()), (*down, *wide), Resampling::Bilinear)?;
        let parts = [rows.narrow(0, 0, whole)?, patches, rows.narrow(0, newline, 1)?];
        let line = |line: usize| (line * wide..(line + 1) * wide).chain([down * wide]);
        let places = (0..*down).flat_map(line).map(|place| whole + place);
        pick(&Tensor::cat(&parts, 0)?, (0..whole).chain(places))
    }
}

/// The picture in the middle of a square of this colour.
pub(super) fn squared(picture: &Picture, colour: [u8; 3]) -> Result<Picture> {
    let side = picture.width.max(picture.height);
    let [left, top] = [picture.width, picture.height].map(|length| -(((side - length) / 2) as isize));
    window(picture, (left, top), (side, side), colour)
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
fn shown((width, height): (usize, usize), (across, down): (usize, usize)) -> (Range<usize>, Range<usize>) {
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
        let layout = tiles.layout((1000, 300), 24, 336);
        assert_eq!((layout.lines.len(), layout.rows()), (22, 576 + 22 * 73));
    }

    #[test]
    fn patches_beyond_the_full_number_of_tiles_are_scaled_down() {
        let file = Path::new("config.json");
        let grids = serde_json::json!([[384, 384], [2304, 2304]]);
        let full = |name: &str| Tiles::read(file, &grids).unwrap().shrunk(file, &Value::from(name));
        let tiles = full("anyres_max_9").unwrap();
        // 162 patches a side, of which 9 tiles of 27 have 81.
        assert_eq!(tiles.layout((3000, 3000), 27, 384).size, (81, 81));
        assert_eq!(tiles.layout((300, 300), 27, 384).size, (27, 27));
        for name in ["anyres", "anyres_max_", "anyres_max_0", "anyres_max_1000", "square"] {
            assert!(full(name).is_err(), "{name}");
        }
        assert!(Tiles::read(file, &grids).unwrap().shrunk(file, &Value::from(9)).is_err());
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
