//! Qwen3-VL's vision tower. Its patches come in groups of those that are merged, so that a merged patch is a
//! few rows one after another; learned positions are resampled bilinearly to the image's grid, and heads are
//! rotated by line and column. The blocks are those of `transformer`; a large crop goes through each of them
//! in parts.

use std::ops::Range;
use std::path::Path;

use candle_core::{Device, Tensor};
use model_actors::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};

use super::EPSILON;
use super::merger::{Merger, Normed};
use crate::architecture::parse;
use crate::error::Result;
use crate::kernels::rotary::Position;
use crate::kernels::{Activation, Linear, patchify, scaled_dot_product_attention, with_values};
use crate::limits::MAX_MODEL_SIDE;
use crate::models::config_file::{activation, invalid, with_defaults, without_nulls};
use crate::models::towers::pick;
use crate::models::transformer::{
    self, Block, Names, NormPlacement, QkvNames, Rope, SafeTensors, Sizes, Transformer, TransformerConfig,
    UpNames, check_side,
};
use crate::models::vision::{StepwiseTower, Unfinished, misfit};

/// Rows of a part. A crop of no more is opened, goes through a layer, and has kept what is kept of it in one
/// part; of 65,536, a part takes no longer, or about as long, as the whole layer of such a crop.
const PART_ROWS: usize = 4096;
/// Most pixels along a patch's side.
const MAX_PATCH: usize = 256;
/// Most patches along a side of those that are merged, and most pictures in a row that a patch spans.
const MAX_MERGED: usize = 16;
/// Most learned positions along a side.
const MAX_GRID: usize = 4096;

/// Names of the blocks' tensors.
const BLOCKS: Names = Names {
    blocks: "blocks.",
    attention_norm: "norm1",
    qkv: QkvNames::Fused("attn.qkv"),
    out_proj: "attn.proj",
    feed_forward_norm: "norm2",
    feed_forward: "mlp.",
    up: UpNames::Dense("linear_fc1"),
    down: "linear_fc2",
    ..Names::NONE
};

/// `vision_config`.
#[derive(Debug, Clone, Deserialize)]
struct Settings {
    depth: usize,
    hidden_size: usize,
    hidden_act: String,
    intermediate_size: usize,
    num_heads: usize,
    in_channels: usize,
    patch_size: usize,
    spatial_merge_size: usize,
    temporal_patch_size: usize,
    out_hidden_size: usize,
    num_position_embeddings: usize,
    deepstack_visual_indexes: Vec<usize>,
    rope_parameters: Option<RopeSettings>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "lowercase")]
enum RopeType {
    Default,
    Axial,
}

#[derive(Debug, Clone, Deserialize)]
#[expect(dead_code, reason = "the type is only checked")]
struct RopeSettings {
    rope_theta: Option<f64>,
    /// Nothing but the names that the one form has had.
    rope_type: Option<RopeType>,
}

fn defaults() -> Value {
    json!({
        "depth": 27, "hidden_size": 1152, "hidden_act": "gelu_pytorch_tanh", "intermediate_size": 4304,
        "num_heads": 16, "in_channels": 3, "patch_size": 16, "spatial_merge_size": 2, "temporal_patch_size": 2,
        "out_hidden_size": 3584, "num_position_embeddings": 2304, "deepstack_visual_indexes": [8, 16, 24]
    })
}

/// The tower that is not loaded.
#[derive(Debug, Clone)]
pub(super) struct TowerConfig {
    transformer: TransformerConfig,
    /// Number of pixels along a patch's side.
    pub(super) patch_size: usize,
    /// Number of patches along a side of those that are merged.
    pub(super) spatial_merge_size: usize,
    temporal_patch_size: usize,
    /// Width of the text.
    pub(super) out_hidden_size: usize,
    /// Number of learned positions along a side.
    side: usize,
    /// The blocks whose output is added to the text's first layers.
    pub(super) deepstack_visual_indexes: Vec<usize>,
}

impl TowerConfig {
    pub(super) fn read(file: &Path, config: &Value) -> Result<Self> {
        let settings: Settings = parse(file, &with_defaults(&without_nulls(config), defaults()))?;
        let transformer = settings.transformer(file)?;
        let side = settings.num_position_embeddings.isqrt();
        let (patch, merge, time) =
            (settings.patch_size, settings.spatial_merge_size, settings.temporal_patch_size);
        let sound = (1..=MAX_PATCH).contains(&patch)
            && [merge, time].iter().all(|count| (1..=MAX_MERGED).contains(count));
        if !sound || settings.in_channels != 3 {
            let reason = format!(
                "patch_size {patch}, spatial_merge_size {merge}, temporal_patch_size {time} or in_channels are out of \
                 range"
            );
            return Err(invalid(file, reason));
        }
        check_side(file, "out_hidden_size", settings.out_hidden_size)?;
        if side == 0 || side > MAX_GRID || side * side != settings.num_position_embeddings {
            let count = settings.num_position_embeddings;
            return Err(invalid(file, format!("num_position_embeddings {count} is no square")));
        }
        let deep = settings.deepstack_visual_indexes;
        if !deep.is_sorted_by(|left, right| left < right)
            || deep.last().is_some_and(|last| *last >= settings.depth)
        {
            return Err(invalid(file, "deepstack_visual_indexes are not layers of the tower in order"));
        }
        Ok(Self {
            transformer,
            patch_size: patch,
            spatial_merge_size: merge,
            temporal_patch_size: time,
            out_hidden_size: settings.out_hidden_size,
            side,
            deepstack_visual_indexes: deep,
        })
    }

    /// Length of a patch's vector.
    fn width(&self) -> usize {
        self.transformer.width
    }

    /// Width of a patch's vector, number of patches that are merged, and width of the text.
    fn merger_sizes(&self) -> [usize; 3] {
        [self.width(), self.merged(), self.out_hidden_size]
    }

    /// Number of patches of a merged one.
    pub(super) fn merged(&self) -> usize {
        self.spatial_merge_size * self.spatial_merge_size
    }

    /// Bytes that an image of so many patches needs besides the weights: its pixels and what goes to the
    /// text; a block's input, its queries, keys and values, and its output; and the widest moment of a part,
    /// which is one of a block, or the cutting of patches, or a merger.
    pub(super) fn scratch(&self, patches: usize) -> Bytes {
        let [pixels, width, out, merged] =
            [3 * self.patch_size * self.patch_size, self.width(), self.out_hidden_size, self.merged()]
                .map(|numbers| numbers as u64);
        let kept =
            (self.deepstack_visual_indexes.len() as u64 + 1).saturating_mul(out.div_ceil(merged.max(1)));
        let row = pixels.saturating_add(kept).saturating_add(5 * width);
        let bytes = |row: u64, rows: usize| Bytes(row.saturating_mul(rows as u64).saturating_mul(4));
        // Lines of merged patches are opened whole, however long they are.
        let line = (MAX_MODEL_SIDE / self.patch_size.max(1)).saturating_mul(self.spatial_merge_size);
        let opening = bytes(3 * (pixels + width), patches.min(PART_ROWS.max(line)));
        let rows = patches.min(PART_ROWS);
        let merger = bytes((3 * width).saturating_add(out.div_ceil(merged.max(1))), rows);
        bytes(row, patches) + self.transformer.scratch(rows, patches).max(opening).max(merger)
    }
}

impl Settings {
    fn transformer(&self, file: &Path) -> Result<TransformerConfig> {
        let sizes = Sizes {
            width: self.hidden_size,
            intermediate: self.intermediate_size,
            layers: self.depth,
            heads: self.num_heads,
        };
        let activation = activation(file, "hidden_act", &self.hidden_act)?;
        let blocks = TransformerConfig::encoder(file, sizes, NormPlacement::Pre, activation, EPSILON)?;
        let base = self.rope_parameters.as_ref().and_then(|rope| rope.rope_theta).unwrap_or(10_000.0);
        if !base.is_finite() || base <= 1.0 {
            return Err(invalid(file, "rope_theta is not a number above 1"));
        }
        let head_size = blocks.attention.head_size;
        if !head_size.is_multiple_of(4) {
            return Err(invalid(file, "the size of a head is no multiple of 4"));
        }
        Ok(blocks.with_rope(Rope::by_line_and_column(head_size, base)))
    }
}

/// A loaded tower.
pub(super) struct Tower {
    config: TowerConfig,
    patch: Linear,
    /// `(side · side, width)`.
    positions: Tensor,
    transformer: Transformer,
    merger: Merger,
    deep: Vec<Merger>,
    device: Device,
    /// Number of rows that go through linear layers at a time.
    part_rows: usize,
}

/// The patches of a crop.
struct Places {
    /// Number of lines and columns of patches.
    down: usize,
    across: usize,
    /// Line and column of each patch, in groups of those that are merged.
    places: Vec<(usize, usize)>,
}

impl Tower {
    pub(super) fn load(config: &TowerConfig, tensors: &SafeTensors<'_>) -> Result<Self> {
        let deep = (0..config.deepstack_visual_indexes.len()).map(|index| {
            let tensors = tensors.at(&format!("deepstack_merger_list.{index}."));
            Merger::load(config.merger_sizes(), &tensors, Normed::Merged)
        });
        Ok(Self {
            patch: load_patch(config, tensors)?,
            positions: tensors.tensor("pos_embed.weight", &[config.side * config.side, config.width()])?,
            transformer: transformer::load(&config.transformer, &BLOCKS, tensors, tensors.device())?,
            merger: Merger::load(config.merger_sizes(), &tensors.at("merger."), Normed::EachPatch)?,
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

    fn places(&self, crop: &Tensor) -> Result<Places> {
        let (_, height, width) = crop.dims3()?;
        let merge = self.config.spatial_merge_size;
        let (down, across) = self.merged_grid(width, height);
        let mut places = Vec::with_capacity(down * across * merge * merge);
        for (group_line, group_column) in
            (0..down).flat_map(|line| (0..across).map(move |column| (line, column)))
        {
            for (line, column) in (0..merge).flat_map(|line| (0..merge).map(move |column| (line, column))) {
                places.push((group_line * merge + line, group_column * merge + column));
            }
        }
        Ok(Places { down: down * merge, across: across * merge, places })
    }

    /// Learned positions for a grid, bilinear, the corners on the corners.
    fn positions(&self, down: usize, across: usize, places: &[(usize, usize)]) -> Result<Tensor> {
        let (side, width) = (self.config.side, self.config.width());
        let host = self.positions.to_device(&Device::Cpu)?;
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

    /// The block's output for some rows, once all have their keys and values.
    fn finish(
        &self,
        block: &Block,
        hidden: &Tensor,
        state: &mut Unfinished,
        rows: Range<usize>,
    ) -> Result<()> {
        let attention = &self.config.transformer.attention;
        let scale = 1.0 / (attention.head_size as f64).sqrt();
        let some = |tensor: &Tensor| tensor.narrow(0, rows.start, rows.len());
        let [queries, keys, values] = state.qkv.as_slice() else { return Err(misfit()) };
        let (queries, keys, values) =
            (some(queries)?.unsqueeze(0)?, keys.unsqueeze(0)?, values.unsqueeze(0)?);
        let output = scaled_dot_product_attention(&queries, &keys, &values, attention.heads, scale, None)?;
        let output = output.squeeze(0)?;
        let out = block.finish(output, some(hidden)?, &[])?;
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
        // Whole lines of merged patches: they are lines of the picture.
        let line = (across * self.config.spatial_merge_size).max(1);
        let most = (self.part_rows / line).max(1) * line;
        next_rows(parts, [places.len(), self.config.width()], most, crop, |rows| {
            let places = places.get(rows.clone()).ok_or_else(misfit)?;
            let (first, count) = (rows.start / across.max(1), rows.len() / across.max(1));
            let side = self.config.patch_size;
            let pixels = patchify(&crop.narrow(1, first * side, count * side)?.contiguous()?, side)?;
            let pixels = pick(&pixels, places.iter().map(|(line, column)| (line - first) * across + column))?;
            let pixels = self.patch.forward(&pixels, Activation::Identity)?;
            Ok((pixels + self.positions(down, across, places)?)?)
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
        let block = self.transformer.block(block)?;
        let (count, width) = hidden.dims2()?;
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
                let most =
                    (self.part_rows.saturating_mul(self.part_rows) / count).max(self.part_rows / 16).max(1);
                let rows = state.finished..count.min(state.finished + most);
                self.finish(block, hidden, &mut state, rows)?;
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
    let bias = tensors.tensor("patch_embed.proj.bias", &[width])?;
    Linear::new(&weight.sum(2)?.reshape((width, 3 * side * side))?, Some(bias))
}

#[cfg(test)]
mod tests;
