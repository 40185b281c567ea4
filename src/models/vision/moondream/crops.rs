//! Crops of Moondream: a picture is cut into crops that overlap, and their rows are put together again: of
//! each crop the margin that a neighbour sees better is left out, and the whole is averaged down to the grid
//! of one crop.

use candle_core::{Device, Tensor};
use model_actors::Picture;

use crate::error::Result;
use crate::kernels::with_values;
use crate::preprocessing::{Filter, MAX_SIDE, resize, window};

/// Maximum number of crops that a configuration may ask for.
const MAX_CROPS: usize = 64;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Crops {
    /// Pixels along a patch.
    patch: usize,
    /// Patches along a crop.
    pub(super) grid: usize,
    /// Patches along a crop's margin.
    margin: usize,
    /// Maximum number of crops beside that of the whole picture.
    pub(super) most: usize,
}

impl Crops {
    /// Nothing if the sizes do not fit each other.
    pub(super) fn new(crop: usize, patch: usize, margin: usize, most: usize) -> Option<Self> {
        let grid = crop.checked_div(patch)?;
        let sound = (1..=MAX_SIDE).contains(&crop)
            && grid > 0
            && grid * patch == crop
            && margin.checked_mul(2)? < grid
            && (1..=MAX_CROPS).contains(&most);
        let crops = Self { patch, grid, margin, most };
        // All crops in one line must not become a larger picture than is possible.
        let longest = most.checked_mul(crops.step() * patch)?.checked_add(2 * margin * patch)?;
        (sound && longest <= 4 * MAX_SIDE).then_some(crops)
    }

    /// Patches from one crop to the next.
    fn step(&self) -> usize {
        self.grid - (2 * self.margin).min(self.grid)
    }

    /// Lines and columns of crops for a picture of these sides (width, height).
    fn tiling(&self, (width, height): (usize, usize)) -> (usize, usize) {
        let border = 2 * self.margin * self.patch;
        let side = self.step() * self.patch;
        let (Some(down), Some(across)) = (height.checked_sub(border), width.checked_sub(border)) else {
            return (1, 1);
        };
        if down <= side || across <= side {
            return (1, 1);
        }
        let (low, high) = (down.div_ceil(side), across.div_ceil(side));
        let most = self.most as f64;
        let (down, across) = (down as f64, across as f64);
        if low.saturating_mul(high) > self.most {
            let ratio = (most / (low as f64 * high as f64)).sqrt();
            let fewer = |count: usize| ((count as f64 * ratio).floor() as usize).max(1);
            return (fewer(low), fewer(high));
        }
        let lines = ((most * down / across).sqrt().floor() as usize).max(low);
        let columns = ((most * across / down).sqrt().floor() as usize).max(high);
        match (lines * columns > self.most, columns > lines) {
            (false, _) => (lines, columns),
            (true, true) => (lines, (self.most / lines.max(1)).max(1)),
            (true, false) => ((self.most / columns.max(1)).max(1), columns),
        }
    }

    /// The whole picture and its crops.
    pub(super) fn cut(&self, picture: &Picture) -> Result<Vec<Picture>> {
        let side = self.grid * self.patch;
        let (border, step) = (2 * self.margin * self.patch, self.step() * self.patch);
        let (down, across) = self.tiling((picture.width, picture.height));
        let large = resize(picture, across * step + border, down * step + border, Filter::Lanczos)?;
        let mut pictures = vec![resize(picture, side, side, Filter::Lanczos)?];
        for (line, column) in (0..down).flat_map(|line| (0..across).map(move |column| (line, column))) {
            let at = ((column * step) as isize, (line * step) as isize);
            pictures.push(window(&large, at, (side, side), [0; 3])?);
        }
        Ok(pictures)
    }

    /// The rows of all crops, `(crops · grid · grid, width)`, as those of one, `(grid · grid, width)`.
    pub(super) fn stitch(&self, rows: &Tensor, sides: (usize, usize)) -> Result<Tensor> {
        let (down, across) = self.tiling(sides);
        let width = rows.dim(1)?;
        let (lines, columns) = (self.axis(down), self.axis(across));
        let host = rows.to_device(&Device::Cpu)?.contiguous()?;
        let pooled = with_values(&host, |values| {
            let mut pooled = vec![0.0; self.grid * self.grid * width];
            for (place, out) in pooled.chunks_exact_mut(width.max(1)).enumerate() {
                let line_part = share(place / self.grid, lines.len(), self.grid);
                let column_part = share(place % self.grid, columns.len(), self.grid);
                let count = (line_part.len() * column_part.len()) as f32;
                for &(tile_line, line) in lines.get(line_part).unwrap_or_default() {
                    for &(tile_column, column) in columns.get(column_part.clone()).unwrap_or_default() {
                        let tile = tile_line * across + tile_column;
                        let begin = ((tile * self.grid + line) * self.grid + column) * width;
                        let from = values.get(begin..begin + width).unwrap_or_default();
                        out.iter_mut().zip(from).for_each(|(sum, value)| *sum += value);
                    }
                }
                out.iter_mut().for_each(|sum| *sum /= count);
            }
            pooled
        })?;
        Ok(Tensor::from_vec(pooled, (self.grid * self.grid, width), &Device::Cpu)?)
    }

    /// Along one side of the whole: which crop shows a patch best, and where in it.
    fn axis(&self, crops: usize) -> Vec<(usize, usize)> {
        let part = |crop: usize| {
            let begin = if crop == 0 { 0 } else { self.margin };
            let end = if crop + 1 == crops { self.grid } else { self.grid - self.margin };
            (begin..end).map(move |place| (crop, place))
        };
        (0..crops).flat_map(part).collect()
    }
}

/// The part of `old` places that becomes place `index` of `new`, as PyTorch's adaptive average does.
fn share(index: usize, old: usize, new: usize) -> std::ops::Range<usize> {
    index * old / new..((index + 1) * old).div_ceil(new)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn published() -> Crops {
        Crops::new(378, 14, 4, 12).unwrap()
    }

    #[test]
    fn crops_cover_a_picture_and_but_for_strips_are_no_more_than_allowed() {
        assert_eq!(published().tiling((300, 300)), (1, 1));
        assert_eq!(published().tiling((1000, 700)), (3, 4));
        for sides in [(4000, 3000), (1, 1), (379, 379)] {
            let (down, across) = published().tiling(sides);
            assert!(down * across <= 12 && down * across > 0, "{sides:?}");
        }
        // A strip gets more, as in the reference, which rounds a single line up and the columns down.
        assert_eq!(published().tiling((10_000, 500)), (1, 15));
        assert_eq!(published().tiling((500, 10_000)), (15, 1));
    }

    #[test]
    fn each_patch_of_the_whole_is_seen_once() {
        let crops = published();
        for count in 1..5 {
            assert_eq!(crops.axis(count).len(), count * crops.step() + 2 * crops.margin);
        }
        assert_eq!(share(1, 65, 27), 2..5);
    }

    #[test]
    fn sizes_that_do_not_fit_are_refused() {
        for (crop, patch, margin, most) in [
            (378, 0, 4, 12),
            (0, 14, 4, 12),
            (380, 14, 4, 12),
            (378, 14, 14, 12),
            (378, 14, 4, 0),
            (1 << 40, 1, 4, 12),
        ] {
            assert_eq!(Crops::new(crop, patch, margin, most), None);
        }
    }
}
