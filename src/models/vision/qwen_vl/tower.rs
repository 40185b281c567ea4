//! The vision tower of Qwen-VL, loaded. Learned positions, where there are any, are resampled bilinearly to the
//! image's grid, and heads are rotated by line and column. The blocks are those of `transformer`, in some versions
//! with attention within windows; a large crop goes through each of them in parts.

mod config;

use candle_core::{Device, Tensor};

use super::EPSILON;
use super::merger::{Merger, Normed};
use crate::error::Result;
use crate::kernels::{Activation, Linear, with_values};
use crate::models::transformer::{self, Bias, SafeTensors, Transformer};
use crate::models::vision::any_size::{
    BlockStep, PART_ROWS, Places, line_by_line, next_rows, open_patches, window_rows,
};
use crate::models::vision::{StepwiseTower, Unfinished, misfit};
pub(super) use config::{RopeSettings, TowerConfig, TowerNames, Windows, blocks, check_patches};

/// A loaded tower.
pub(super) struct Tower {
    config: TowerConfig,
    patch: Linear,
    /// `(side · side, width)`.
    positions: Option<Tensor>,
    transformer: Transformer,
    merger: Merger,
    deep: Vec<Merger>,
    device: Device,
    /// Number of rows that go through linear layers at a time.
    pub(super) part_rows: usize,
}

impl Tower {
    pub(super) fn load(config: &TowerConfig, tensors: &SafeTensors<'_>) -> Result<Self> {
        let merger = |path: &str, normed: Normed| {
            let kind = config.transformer.norm;
            Merger::load(config.merger_sizes(), &tensors.at(path), config.names.merger, kind, normed)
        };
        let deep = 0..config.deepstack_visual_indexes.len();
        let deep = deep.map(|index| merger(&format!("deepstack_merger_list.{index}."), Normed::Merged));
        let positions = config
            .learned_positions
            .map(|count| tensors.tensor("pos_embed.weight", &[count, config.width()]));
        Ok(Self {
            patch: load_patch(config, tensors)?,
            positions: positions.transpose()?,
            transformer: transformer::load(
                &config.transformer,
                &config.names.blocks,
                tensors,
                tensors.device(),
            )?,
            merger: merger("merger.", Normed::EachPatch)?,
            deep: deep.collect::<Result<_>>()?,
            config: config.clone(),
            device: tensors.device().clone(),
            part_rows: PART_ROWS,
        })
    }

    /// Number of lines and columns of merged patches in a picture of these sides.
    pub(super) fn merged_grid(&self, width: usize, height: usize) -> (usize, usize) {
        let side = self.config.patch_size * self.config.spatial_merge_size;
        (height / side, width / side)
    }

    /// The number of each merged patch of a grid, line by line, in the order in which the tower keeps them; `None`
    /// where that is the same.
    pub(super) fn line_by_line(&self, grid: (usize, usize)) -> Option<Vec<usize>> {
        self.config.windows.as_ref().map(|windows| line_by_line(grid, windows.side))
    }

    /// Lines and columns of merged patches of a crop.
    fn grid_of(&self, crop: &Tensor) -> Result<(usize, usize)> {
        let (_, height, width) = crop.dims3()?;
        Ok(self.merged_grid(width, height))
    }

    fn places(&self, crop: &Tensor) -> Result<Places> {
        let window = self.config.windows.as_ref().map(|windows| windows.side);
        Ok(Places::new(self.grid_of(crop)?, self.config.spatial_merge_size, window))
    }

    /// Learned positions for a grid, bilinear, the corners on the corners.
    fn positions(
        &self,
        learned: &Tensor,
        (down, across): (usize, usize),
        places: &[(usize, usize)],
    ) -> Result<Tensor> {
        let (count, width) = learned.dims2()?;
        let side = count.isqrt();
        let host = learned.to_device(&Device::Cpu)?;
        let out = with_values(&host, |values| {
            let mut out = vec![0.0; places.len() * width];
            for (out, &(line, column)) in out.chunks_exact_mut(width.max(1)).zip(places) {
                let (lines, columns) = (taps(line, down, side), taps(column, across, side));
                for (line, of_line) in lines {
                    for (column, of_column) in columns {
                        let begin = (line * side + column) * width;
                        let weight = of_line * of_column;
                        let from = values.get(begin..begin + width).unwrap_or_default();
                        out.iter_mut().zip(from).for_each(|(sum, value)| *sum += weight * value);
                    }
                }
            }
            out
        })?;
        Ok(Tensor::from_vec(out, (places.len(), width), &Device::Cpu)?.to_device(&self.device)?)
    }

    /// The rows that go to the text after so many blocks: features for its first layers, and at the end the
    /// image itself.
    pub(super) fn keep(
        &self,
        layers: usize,
        hidden: &Tensor,
        parts: &mut Option<Unfinished>,
    ) -> Result<Option<Vec<Tensor>>> {
        let deep = self.config.deepstack_visual_indexes.iter().position(|index| index + 1 == layers);
        let deep = deep.and_then(|index| self.deep.get(index));
        let last = (layers == self.depth()).then_some(&self.merger);
        let mergers: Vec<&Merger> = deep.into_iter().chain(last).collect();
        if mergers.is_empty() {
            return Ok(Some(Vec::new()));
        }
        let (merged, width) = (self.config.merged(), self.config.out_hidden_size);
        let (count, wide) = (hidden.dim(0)? / merged, width * mergers.len());
        let most = (self.part_rows / merged / mergers.len()).max(1);
        let side_by_side = next_rows(parts, [count, wide], most, hidden, |rows| {
            let hidden = hidden.narrow(0, rows.start * merged, rows.len() * merged)?;
            let made = mergers.iter().map(|merger| merger.forward(&hidden)).collect::<Result<Vec<_>>>()?;
            Ok(Tensor::cat(&made, 1)?)
        })?;
        let Some(all) = side_by_side else { return Ok(None) };
        let kept = (0..mergers.len()).map(|index| Ok(all.narrow(1, index * width, width)?.contiguous()?));
        kept.collect::<Result<_>>().map(Some)
    }
}

impl StepwiseTower for Tower {
    /// Number of blocks.
    fn depth(&self) -> usize {
        self.transformer.depth()
    }

    /// The next lines of the first block's input, and after the last all of it.
    fn open(&self, crop: &Tensor, parts: &mut Option<Unfinished>) -> Result<Option<Tensor>> {
        let places = self.places(crop)?;
        let grid = (places.down, places.across);
        let sizes =
            [self.config.patch_size, self.config.width(), self.config.lines_together(), self.part_rows];
        open_patches(parts, crop, &places, sizes, |pixels, places| {
            let rows = self.patch.forward(pixels, Activation::Identity)?;
            match &self.positions {
                Some(learned) => Ok((rows + self.positions(learned, grid, places)?)?),
                None => Ok(rows),
            }
        })
    }

    /// The next part of a block over the rows of one crop, and at the block's end its output.
    fn step(
        &self,
        block: usize,
        hidden: &Tensor,
        crop: &Tensor,
        parts: &mut Option<Unfinished>,
    ) -> Result<Option<Tensor>> {
        let windows = match self.config.window_of(block) {
            Some(side) => {
                Some(window_rows(self.grid_of(crop)?, side, self.config.merged()).collect::<Vec<_>>())
            }
            None => None,
        };
        let step = BlockStep {
            block: self.transformer.block(block)?,
            attention: &self.config.transformer.attention,
            rope: self.config.transformer.ropes.first().ok_or_else(misfit)?,
            places: &self.places(crop)?.places,
            windows: windows.as_deref(),
            part_rows: self.part_rows,
        };
        step.advance(hidden, parts)
    }
}

/// The two old places between which a new one lies, and the weight of each.
fn taps(place: usize, new: usize, old: usize) -> [(usize, f32); 2] {
    let at = place as f32 * (old - 1) as f32 / new.saturating_sub(1).max(1) as f32;
    let first = (at.floor() as usize).min(old - 1);
    let share = at - first as f32;
    [(first, 1.0 - share), ((first + 1).min(old - 1), share)]
}

/// The convolution over patches and moments. A still image is the same at all moments, so that the weights of
/// the moments add up to those of one.
fn load_patch(config: &TowerConfig, tensors: &SafeTensors<'_>) -> Result<Linear> {
    let (width, side, time) = (config.width(), config.patch_size, config.temporal_patch_size);
    let weight = tensors.tensor("patch_embed.proj.weight", &[width, 3, time, side, side])?;
    let bias = match config.patch_bias {
        Bias::Yes => Some(tensors.tensor("patch_embed.proj.bias", &[width])?),
        Bias::No => None,
    };
    Linear::new(&weight.sum(2)?.reshape((width, 3 * side * side))?, bias)
}
