//! Qwen3-VL's vision tower. Its patches come in blocks of those that are merged, so that a merged patch is a few rows
//! one after another; learned positions are stretched bilinearly to the image's grid, and heads turn by line and column.

use std::ops::Range;
use std::path::Path;

use candle_core::{Device, Tensor};
use model_actors::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::families::parse;
use crate::kernels::rotary::{RopeTable, RotaryEmbedding};
use crate::kernels::{Activation, LayerNorm, Linear, patchify, scaled_dot_product_attention, with_values};
use crate::limits::MAX_MODEL_SIDE;
use crate::models::towers::{
    Bias, MAX_SIZE, StackShape, activation, check_stack, linear, norm, pick, with_defaults,
};
use crate::models::vision::{Unfinished, misfit};
use crate::weights::WeightReader;

const EPSILON: f64 = 1e-6;
/// Rows of a part. A crop of no more is opened, goes through a layer, and has kept what is kept of it in one part; of
/// 65,536, a part takes no longer, or about as long, as the whole layer of such a crop.
const PART_ROWS: usize = 4096;
/// Most pixels along a patch's side.
const MAX_PATCH: usize = 256;
/// Most patches along a side of those that are merged, and most pictures in a row that a patch spans.
const MAX_MERGED: usize = 16;
/// Most learned positions along a side.
const MAX_GRID: usize = 4096;

/// `vision_config`.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct TowerConfig {
    depth: usize,
    hidden_size: usize,
    hidden_act: String,
    intermediate_size: usize,
    num_heads: usize,
    in_channels: usize,
    pub(super) patch_size: usize,
    pub(super) spatial_merge_size: usize,
    temporal_patch_size: usize,
    pub(super) out_hidden_size: usize,
    num_position_embeddings: usize,
    pub(super) deepstack_visual_indexes: Vec<usize>,
    rope_parameters: Option<Rope>,
    #[serde(skip)]
    activation: Option<Activation>,
}

#[derive(Debug, Clone, Deserialize)]
struct Rope {
    rope_theta: Option<f64>,
}

fn defaults() -> Value {
    json!({
        "depth": 27, "hidden_size": 1152, "hidden_act": "gelu_pytorch_tanh", "intermediate_size": 4304,
        "num_heads": 16, "in_channels": 3, "patch_size": 16, "spatial_merge_size": 2, "temporal_patch_size": 2,
        "out_hidden_size": 3584, "num_position_embeddings": 2304, "deepstack_visual_indexes": [8, 16, 24]
    })
}

impl TowerConfig {
    pub(super) fn read(file: &Path, config: &Value) -> Result<Self> {
        let mut config: Self = parse(file, &with_defaults(defaults(), &[config]))?;
        config.activation = Some(activation(file, &config.hidden_act)?);
        check_stack(file, &config.shape())?;
        let invalid = |reason: String| Err(Error::InvalidConfig { file: file.to_owned(), reason });
        let side = config.side();
        let (patch, merge, time) = (config.patch_size, config.spatial_merge_size, config.temporal_patch_size);
        let sound = (1..=MAX_PATCH).contains(&patch)
            && [merge, time].iter().all(|count| (1..=MAX_MERGED).contains(count));
        if !sound || config.in_channels != 3 || !(1..=MAX_SIZE).contains(&config.out_hidden_size) {
            return invalid(format!(
                "patch_size {patch}, spatial_merge_size {merge}, temporal_patch_size {time}, in_channels or \
                 out_hidden_size are out of range"
            ));
        }
        if side == 0 || side > MAX_GRID || side * side != config.num_position_embeddings {
            return invalid(format!(
                "num_position_embeddings {} is no square",
                config.num_position_embeddings
            ));
        }
        if !(config.hidden_size / config.num_heads).is_multiple_of(4) {
            return invalid("the size of a head is no multiple of 4".to_owned());
        }
        let deep = &config.deepstack_visual_indexes;
        if !deep.is_sorted_by(|left, right| left < right)
            || deep.last().is_some_and(|last| *last >= config.depth)
        {
            return invalid("deepstack_visual_indexes are not layers of the tower in order".to_owned());
        }
        if !config.theta().is_finite() || config.theta() <= 1.0 {
            return invalid("rope_theta is no number above 1".to_owned());
        }
        Ok(config)
    }

    fn shape(&self) -> StackShape {
        StackShape {
            width: self.hidden_size,
            middle: self.intermediate_size,
            layers: self.depth,
            heads: self.num_heads,
            epsilon: EPSILON,
            activation: self.activation.unwrap_or(Activation::GeluTanh),
        }
    }

    /// Places along a side of the learned positions.
    fn side(&self) -> usize {
        self.num_position_embeddings.isqrt()
    }

    fn theta(&self) -> f64 {
        self.rope_parameters.as_ref().and_then(|rope| rope.rope_theta).unwrap_or(10_000.0)
    }

    /// Patches of a merged one.
    pub(super) fn merged(&self) -> usize {
        self.spatial_merge_size * self.spatial_merge_size
    }

    /// What an image of so many patches needs besides the weights: its pixels and what goes to the text; what goes into a
    /// layer, its queries, keys and values, and what comes out; and the widest moment of a part, which is one of a layer,
    /// or the cutting of patches, or a merger.
    pub(super) fn scratch(&self, patches: usize) -> Bytes {
        let [pixels, width, out, merged] =
            [3 * self.patch_size * self.patch_size, self.hidden_size, self.out_hidden_size, self.merged()]
                .map(|numbers| numbers as u64);
        let kept =
            (self.deepstack_visual_indexes.len() as u64 + 1).saturating_mul(out.div_ceil(merged.max(1)));
        let row = pixels.saturating_add(kept).saturating_add(5 * width);
        let bytes = |row: u64, rows: usize| Bytes(row.saturating_mul(rows as u64).saturating_mul(4));
        // Lines of blocks are opened whole, however long they are.
        let line = (MAX_MODEL_SIDE / self.patch_size.max(1)).saturating_mul(self.spatial_merge_size);
        let opening = bytes(3 * (pixels + width), patches.min(PART_ROWS.max(line)));
        let rows = patches.min(PART_ROWS);
        let merger = bytes((3 * width).saturating_add(out.div_ceil(merged.max(1))), rows);
        bytes(row, patches) + self.shape().scratch(rows, patches).max(opening).max(merger)
    }
}

pub(super) struct Tower {
    config: TowerConfig,
    patch: Linear,
    /// `(side · side, width)`.
    positions: Tensor,
    layers: Vec<Layer>,
    frequencies: RotaryEmbedding,
    merger: Merger,
    deep: Vec<Merger>,
    device: Device,
    /// Rows that go through linear layers at a time.
    part_rows: usize,
}

struct Layer {
    attention_norm: LayerNorm,
    mixed: Linear,
    attended: Linear,
    middle_norm: LayerNorm,
    wide: Linear,
    narrow: Linear,
}

/// The patches of a crop.
struct Places {
    /// Lines and columns of patches.
    down: usize,
    across: usize,
    /// Line and column of each patch, in blocks of those that are merged.
    places: Vec<(usize, usize)>,
}

/// Whether the norm comes before the patches are put side by side or after.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Normed {
    EachPatch,
    Merged,
}

/// Patches side by side and through two layers to the text's width.
struct Merger {
    normed: Normed,
    norm: LayerNorm,
    first: Linear,
    second: Linear,
    /// Length of merged patches side by side.
    wide: usize,
}

impl Merger {
    fn load(config: &TowerConfig, reader: &WeightReader<'_>, name: &str, normed: Normed) -> Result<Self> {
        let wide = config.hidden_size * config.merged();
        let width = if normed == Normed::Merged { wide } else { config.hidden_size };
        Ok(Self {
            normed,
            norm: norm(reader, &format!("{name}.norm"), width, EPSILON)?,
            first: linear(reader, &format!("{name}.linear_fc1"), wide, wide, Bias::With)?,
            second: linear(reader, &format!("{name}.linear_fc2"), config.out_hidden_size, wide, Bias::With)?,
            wide,
        })
    }

    fn forward(&self, hidden: &Tensor) -> Result<Tensor> {
        let merged = |rows: &Tensor| rows.reshape(((), self.wide));
        let rows = match self.normed {
            Normed::EachPatch => merged(&self.norm.of(hidden)?)?,
            Normed::Merged => self.norm.of(&merged(hidden)?)?,
        };
        self.second.forward(&self.first.forward(&rows, Activation::GeluErf)?, Activation::Identity)
    }
}

impl Tower {
    pub(super) fn load(config: &TowerConfig, reader: &WeightReader<'_>, device: &Device) -> Result<Self> {
        let (width, places) = (config.hidden_size, config.num_position_embeddings);
        let size = width / config.num_heads;
        let steps =
            (0..size / 4).map(|pair| 1.0 / (config.theta() as f32).powf(4.0 * pair as f32 / size as f32));
        let steps: Vec<f32> = steps.collect();
        let axes = [vec![0; steps.len()], vec![1; steps.len()]].concat();
        let deep = (0..config.deepstack_visual_indexes.len()).map(|index| {
            Merger::load(config, reader, &format!("deepstack_merger_list.{index}"), Normed::Merged)
        });
        Ok(Self {
            patch: load_patch(config, reader)?,
            positions: reader.tensor("pos_embed.weight", &[places, width])?,
            layers: (0..config.depth)
                .map(|index| Layer::load(config, reader, index))
                .collect::<Result<_>>()?,
            frequencies: RotaryEmbedding {
                inverse_frequencies: [steps.clone(), steps].concat(),
                axes,
                attention_factor: 1.0,
            },
            merger: Merger::load(config, reader, "merger", Normed::EachPatch)?,
            deep: deep.collect::<Result<_>>()?,
            config: config.clone(),
            device: device.clone(),
            part_rows: PART_ROWS,
        })
    }

    pub(super) fn depth(&self) -> usize {
        self.layers.len()
    }

    /// Lines and columns of merged patches in a picture of these sides.
    pub(super) fn merged_grid(&self, width: usize, height: usize) -> (usize, usize) {
        let side = self.config.patch_size * self.config.spatial_merge_size;
        (height / side, width / side)
    }

    fn places(&self, crop: &Tensor) -> Result<Places> {
        let (_, height, width) = crop.dims3()?;
        let merge = self.config.spatial_merge_size;
        let (down, across) = self.merged_grid(width, height);
        let mut places = Vec::with_capacity(down * across * merge * merge);
        for (block_line, block_column) in
            (0..down).flat_map(|line| (0..across).map(move |column| (line, column)))
        {
            for (line, column) in (0..merge).flat_map(|line| (0..merge).map(move |column| (line, column))) {
                places.push((block_line * merge + line, block_column * merge + column));
            }
        }
        Ok(Places { down: down * merge, across: across * merge, places })
    }

    /// The next lines of what the first layer is given, and after the last all of it.
    pub(super) fn open(&self, crop: &Tensor, parts: &mut Option<Unfinished>) -> Result<Option<Tensor>> {
        let Places { down, across, places } = self.places(crop)?;
        // Whole lines of blocks of those that are merged: they are lines of the picture.
        let line = (across * self.config.spatial_merge_size).max(1);
        let most = (self.part_rows / line).max(1) * line;
        next_rows(parts, [places.len(), self.config.hidden_size], most, crop, |rows| {
            let places = places.get(rows.clone()).ok_or_else(misfit)?;
            let (first, count) = (rows.start / across.max(1), rows.len() / across.max(1));
            let side = self.config.patch_size;
            let pixels = patchify(&crop.narrow(1, first * side, count * side)?.contiguous()?, side)?;
            let pixels = pick(&pixels, places.iter().map(|(line, column)| (line - first) * across + column))?;
            let pixels = self.patch.forward(&pixels, Activation::Identity)?;
            Ok((pixels + self.stretched(down, across, places)?)?)
        })
    }

    /// Learned positions for a grid, bilinear, the corners on the corners.
    fn stretched(&self, down: usize, across: usize, places: &[(usize, usize)]) -> Result<Tensor> {
        let (side, width) = (self.config.side(), self.config.hidden_size);
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

    /// The next part of a layer over the rows of one crop, and at the layer's end what comes out. First all rows get
    /// their queries, keys and values; then some at a time see all others and go through the rest of the layer. A crop
    /// of few rows takes the layer in one part.
    pub(super) fn step(
        &self,
        index: usize,
        hidden: &Tensor,
        crop: &Tensor,
        parts: &mut Option<Unfinished>,
    ) -> Result<Option<Tensor>> {
        let layer = self.layers.get(index).ok_or_else(misfit)?;
        let (count, width) = hidden.dims2()?;
        let mut state = match parts.take() {
            Some(state) => state,
            None => {
                let empty = || Tensor::zeros((count, width), hidden.dtype(), hidden.device());
                Unfinished {
                    mixed: vec![empty()?, empty()?, empty()?],
                    projected: 0,
                    out: empty()?,
                    finished: 0,
                }
            }
        };
        loop {
            if state.projected < count {
                let rows = state.projected..count.min(state.projected + self.part_rows);
                self.project(layer, hidden, crop, &mut state, rows)?;
            } else {
                // As many products of a query and a key as a small crop has in all.
                let most =
                    (self.part_rows.saturating_mul(self.part_rows) / count).max(self.part_rows / 16).max(1);
                let rows = state.finished..count.min(state.finished + most);
                self.finish(layer, hidden, &mut state, rows)?;
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

    /// Queries, keys and values of some rows.
    fn project(
        &self,
        layer: &Layer,
        hidden: &Tensor,
        crop: &Tensor,
        state: &mut Unfinished,
        rows: Range<usize>,
    ) -> Result<()> {
        let width = self.config.hidden_size;
        let places = self.places(crop)?.places;
        let places = places.get(rows.clone()).ok_or_else(misfit)?;
        let mut rope = RopeTable::new(self.frequencies.inverse_frequencies.len());
        rope.extend(&self.frequencies, places.iter().map(|(line, column)| [*line as u32, *column as u32, 0]));
        let normal = layer.attention_norm.of(&hidden.narrow(0, rows.start, rows.len())?)?;
        let mixed = layer.mixed.forward(&normal, Activation::Identity)?;
        for (index, to) in state.mixed.iter().enumerate() {
            let part = mixed.narrow(1, index * width, width)?.contiguous()?;
            let part = if index < 2 { rope.rotate_rows(&part, width / self.config.num_heads)? } else { part };
            to.slice_set(&part, 0, rows.start)?;
        }
        state.projected = rows.end;
        Ok(())
    }

    /// What comes out of the layer for some rows, once all have their keys and values.
    fn finish(
        &self,
        layer: &Layer,
        hidden: &Tensor,
        state: &mut Unfinished,
        rows: Range<usize>,
    ) -> Result<()> {
        let heads = self.config.num_heads;
        let scale = 1.0 / ((self.config.hidden_size / heads) as f64).sqrt();
        let some = |tensor: &Tensor| tensor.narrow(0, rows.start, rows.len());
        let [queries, keys, values] = state.mixed.as_slice() else { return Err(misfit()) };
        let (queries, keys, values) =
            (some(queries)?.unsqueeze(0)?, keys.unsqueeze(0)?, values.unsqueeze(0)?);
        let attended =
            scaled_dot_product_attention(&queries, &keys, &values, heads, scale, None)?.squeeze(0)?;
        let attended = (layer.attended.forward(&attended, Activation::Identity)? + some(hidden)?)?;
        let activation = self.config.activation.unwrap_or(Activation::GeluTanh);
        let wide = layer.wide.forward(&layer.middle_norm.of(&attended)?, activation)?;
        let out = (layer.narrow.forward(&wide, Activation::Identity)? + attended)?;
        state.out.slice_set(&out, 0, rows.start)?;
        state.finished = rows.end;
        Ok(())
    }

    /// What goes to the text after so many layers: features for its first layers, and at the end the image itself.
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

/// The next rows of something that has `count` rows of `width` numbers, `most` at a time; with the last of them, all.
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
            Unfinished { mixed: Vec::new(), projected: 0, out, finished: 0 }
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

/// The two old places between which a new one lies, and how near it is to each.
fn taps(place: usize, new: usize, old: usize) -> [(usize, f32); 2] {
    let at = place as f32 * (old - 1) as f32 / new.saturating_sub(1).max(1) as f32;
    let first = (at.floor() as usize).min(old - 1);
    let share = at - first as f32;
    [(first, 1.0 - share), ((first + 1).min(old - 1), share)]
}

/// The convolution over patches and moments. A still image is the same at all moments, so that the weights of the
/// moments add up to those of one.
fn load_patch(config: &TowerConfig, reader: &WeightReader<'_>) -> Result<Linear> {
    let (width, side, time) = (config.hidden_size, config.patch_size, config.temporal_patch_size);
    let weight = reader.tensor("patch_embed.proj.weight", &[width, 3, time, side, side])?;
    let bias = reader.tensor("patch_embed.proj.bias", &[width])?;
    Linear::new(&weight.sum(2)?.reshape((width, 3 * side * side))?, Some(bias))
}

impl Layer {
    fn load(config: &TowerConfig, reader: &WeightReader<'_>, index: usize) -> Result<Self> {
        let (width, middle) = (config.hidden_size, config.intermediate_size);
        let part = |part: &str| format!("blocks.{index}.{part}");
        Ok(Self {
            attention_norm: norm(reader, &part("norm1"), width, EPSILON)?,
            mixed: linear(reader, &part("attn.qkv"), 3 * width, width, Bias::With)?,
            attended: linear(reader, &part("attn.proj"), width, width, Bias::With)?,
            middle_norm: norm(reader, &part("norm2"), width, EPSILON)?,
            wide: linear(reader, &part("mlp.linear_fc1"), middle, width, Bias::With)?,
            narrow: linear(reader, &part("mlp.linear_fc2"), width, middle, Bias::With)?,
        })
    }
}

#[cfg(test)]
mod tests;
