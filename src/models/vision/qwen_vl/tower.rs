//! The vision tower of Qwen-VL, loaded. Learned positions, where there are any, are resampled bilinearly to the
//! image's grid, and heads are rotated by line and column. The blocks are those of `transformer`, in some versions
//! with attention within windows; a large crop goes through each of them in parts.

mod config;
mod order;

use std::ops::Range;

use candle_core::{Device, Tensor};

use super::EPSILON;
use super::merger::{Merger, Normed};
use crate::error::Result;
use crate::kernels::rotary::Position;
use crate::kernels::{Activation, Linear, patchify, scaled_dot_product_attention, with_values};
use crate::models::towers::pick;
use crate::models::transformer::{self, Bias, Block, SafeTensors, Transformer};
use crate::models::vision::{StepwiseTower, Unfinished, misfit};
pub(super) use config::{RopeSettings, TowerConfig, TowerNames, Windows, blocks};
use order::{Places, line_by_line, window_rows};

/// Rows of a part. A crop of no more is opened, goes through a layer, and has kept what is kept of it in one
/// part; of 65,536, a part takes no longer, or about as long, as the whole layer of such a crop.
const PART_ROWS: usize = 4096;

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

    /// Queries, keys and values of some rows.
    fn project(
        &self,
        block: &Block,
        hidden: &Tensor,
        crop: &Tensor,
        state: &mut Unfinished,
        rows: Range<usize>,
    ) -> Result<()> {
        let attention = &self.config.transformer.attention;
        let width = self.config.width();
        let places = self.places(crop)?.places;
        let places = places.get(rows.clone()).ok_or_else(misfit)?.iter();
        let positions: Vec<Position> =
            places.map(|(line, column)| [*line as u32, *column as u32, 0]).collect();
        let rope = self.config.transformer.ropes.first().ok_or_else(misfit)?;
        let rope_table = rope.table_at(&positions);
        let qkv = block.qkv(&hidden.narrow(0, rows.start, rows.len())?)?;
        for (index, to) in state.qkv.iter().enumerate() {
            let part = qkv.narrow(1, index * width, width)?.contiguous()?;
            let part = if index < 2 { rope_table.rotate_rows(&part, attention.head_size)? } else { part };
            to.slice_set(&part, 0, rows.start)?;
        }
        state.projected = rows.end;
        Ok(())
    }

    /// The block's output for some rows, once all have their keys and values. The rows of each of `windows` see each
    /// other; without any, all do.
    fn finish(
        &self,
        block: &Block,
        hidden: &Tensor,
        state: &mut Unfinished,
        rows: Range<usize>,
        windows: Option<&[Range<usize>]>,
    ) -> Result<()> {
        let attention = &self.config.transformer.attention;
        let scale = 1.0 / (attention.head_size as f64).sqrt();
        let [queries, keys, values] = state.qkv.as_slice() else { return Err(misfit()) };
        let attend = |rows: Range<usize>, seen: Range<usize>| -> Result<Tensor> {
            let queries = queries.narrow(0, rows.start, rows.len())?.unsqueeze(0)?;
            let [keys, values] =
                [keys, values].map(|all| all.narrow(0, seen.start, seen.len())?.unsqueeze(0));
            let heads = attention.heads;
            Ok(scaled_dot_product_attention(&queries, &keys?, &values?, heads, scale, None)?.squeeze(0)?)
        };
        let output = match windows {
            None => attend(rows.clone(), 0..hidden.dim(0)?)?,
            Some(windows) => {
                let within = windows.iter().filter_map(|window| {
                    let some = rows.start.max(window.start)..rows.end.min(window.end);
                    (!some.is_empty()).then(|| attend(some, window.clone()))
                });
                Tensor::cat(&within.collect::<Result<Vec<_>>>()?, 0)?
            }
        };
        let out = block.finish(output, hidden.narrow(0, rows.start, rows.len())?, &[])?;
        state.out.slice_set(&out, 0, rows.start)?;
        state.finished = rows.end;
        Ok(())
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
        let Places { down, across, places } = self.places(crop)?;
        // Whole lines of merged patches, or of windows: they are lines of the picture.
        let line = (across * self.config.lines_together()).max(1);
        let most = (self.part_rows / line).max(1) * line;
        next_rows(parts, [places.len(), self.config.width()], most, crop, |rows| {
            let places = places.get(rows.clone()).ok_or_else(misfit)?;
            let (first, count) = (rows.start / across.max(1), rows.len() / across.max(1));
            let side = self.config.patch_size;
            let pixels = patchify(&crop.narrow(1, first * side, count * side)?.contiguous()?, side)?;
            let pixels = pick(&pixels, places.iter().map(|(line, column)| (line - first) * across + column))?;
            let pixels = self.patch.forward(&pixels, Activation::Identity)?;
            match &self.positions {
                Some(learned) => Ok((pixels + self.positions(learned, (down, across), places)?)?),
                None => Ok(pixels),
            }
        })
    }

    /// The next part of a block over the rows of one crop, and at the block's end its output. First all rows
    /// get their queries, keys and values; then some at a time see all others and go through the rest of the
    /// block. A crop of few rows takes the block in one part.
    fn step(
        &self,
        block: usize,
        hidden: &Tensor,
        crop: &Tensor,
        parts: &mut Option<Unfinished>,
    ) -> Result<Option<Tensor>> {
        let (count, width) = hidden.dims2()?;
        let windows = match self.config.window_of(block) {
            Some(side) => {
                Some(window_rows(self.grid_of(crop)?, side, self.config.merged()).collect::<Vec<_>>())
            }
            None => None,
        };
        let block = self.transformer.block(block)?;
        let mut state = match parts.take() {
            Some(state) => state,
            None => {
                let empty = || Tensor::zeros((count, width), hidden.dtype(), hidden.device());
                Unfinished {
                    qkv: vec![empty()?, empty()?, empty()?],
                    projected: 0,
                    out: empty()?,
                    finished: 0,
                }
            }
        };
        loop {
            if state.projected < count {
                let rows = state.projected..count.min(state.projected + self.part_rows);
                self.project(block, hidden, crop, &mut state, rows)?;
            } else {
                // As many products of a query and a key as a small crop has in all.
                let seen = windows.iter().flatten().map(Range::len).max().unwrap_or(count).max(1);
                let most = (self.part_rows.saturating_mul(self.part_rows) / seen)
                    .clamp((self.part_rows / 16).max(1), self.part_rows);
                let rows = state.finished..count.min(state.finished + most);
                self.finish(block, hidden, &mut state, rows, windows.as_deref())?;
            }
            if state.finished >= count {
                return Ok(Some(state.out));
            }
            if count > self.part_rows {
                *parts = Some(state);
                return Ok(None);
            }
        }
    }
}

/// The next rows of something that has `count` rows of `width` numbers, `most` at a time; with the last of
/// them, all.
fn next_rows(
    parts: &mut Option<Unfinished>,
    [count, width]: [usize; 2],
    most: usize,
    like: &Tensor,
    make: impl FnOnce(Range<usize>) -> Result<Tensor>,
) -> Result<Option<Tensor>> {
    if count <= most {
        return make(0..count).map(Some);
    }
    let mut state = match parts.take() {
        Some(state) => state,
        None => {
            let out = Tensor::zeros((count, width), like.dtype(), like.device())?;
            Unfinished { qkv: Vec::new(), projected: 0, out, finished: 0 }
        }
    };
    let rows = state.finished..count.min(state.finished + most);
    state.out.slice_set(&make(rows.clone())?, 0, rows.start)?;
    state.finished = rows.end;
    if state.finished < count {
        *parts = Some(state);
        return Ok(None);
    }
    Ok(Some(state.out))
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
