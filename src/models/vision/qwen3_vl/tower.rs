//! Qwen3-VL's vision tower. Its patches come in blocks of those that are merged, so that a merged patch is a few rows
//! one after another; learned positions are stretched bilinearly to the image's grid, and heads turn by line and column.

use std::path::Path;

use candle_core::{Device, Tensor};
use model_actors::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::families::parse;
use crate::kernels::causal::{CausalAttention, KeyValues, Run, Span};
use crate::kernels::rotary::{Frequencies, Turns};
use crate::kernels::{Activation, LayerNorm, Linear, patches, with_values};
use crate::models::towers::{Bias, StackShape, activation, check_stack, linear, norm, pick, with_defaults};
use crate::models::vision::misfit;
use crate::weights::WeightReader;

const EPSILON: f64 = 1e-6;

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
        let sound = (1..=256).contains(&patch) && (1..=16).contains(&merge) && (1..=16).contains(&time);
        if !sound || config.in_channels != 3 || !(1..=1 << 24).contains(&config.out_hidden_size) {
            return invalid(format!(
                "patch_size {patch}, spatial_merge_size {merge}, temporal_patch_size {time}, in_channels or \
                 out_hidden_size are out of range"
            ));
        }
        if side == 0 || side > 4096 || side * side != config.num_position_embeddings {
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

    /// What a pass over so many patches needs besides the weights. Scores are of a few rows at a time.
    pub(super) fn scratch(&self, patches: usize) -> Bytes {
        let pixels = (3 * self.patch_size * self.patch_size) as u64;
        self.shape().scratch(patches, 0) + Bytes(pixels.saturating_mul(8).saturating_mul(patches as u64))
    }
}

pub(super) struct Tower {
    config: TowerConfig,
    patch: Linear,
    /// `(side · side, width)`.
    positions: Tensor,
    layers: Vec<Layer>,
    attention: CausalAttention,
    frequencies: Frequencies,
    merger: Merger,
    deep: Vec<Merger>,
    device: Device,
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
            attention: CausalAttention {
                heads: config.num_heads,
                shared_heads: config.num_heads,
                size,
                scale: 1.0 / (size as f32).sqrt(),
                soft_cap: None,
                span: Span::Everything,
                head_norms: None,
            },
            frequencies: Frequencies { steps: [steps.clone(), steps].concat(), axes, amplitude: 1.0 },
            merger: Merger::load(config, reader, "merger", Normed::EachPatch)?,
            deep: deep.collect::<Result<_>>()?,
            config: config.clone(),
            device: device.clone(),
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

    /// What the first layer is given.
    pub(super) fn open(&self, crop: &Tensor) -> Result<Tensor> {
        let Places { down, across, places } = self.places(crop)?;
        let rows = patches(crop, self.config.patch_size)?;
        let rows = pick(&rows, places.iter().map(|(line, column)| line * across + column))?;
        let rows = self.patch.forward(&rows, Activation::Identity)?;
        Ok((rows + self.stretched(down, across, &places)?)?)
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

    /// One layer over the rows of one crop.
    pub(super) fn layer(&self, index: usize, hidden: &Tensor, crop: &Tensor) -> Result<Tensor> {
        let layer = self.layers.get(index).ok_or_else(misfit)?;
        let places = self.places(crop)?.places;
        let mut turns = Turns::new(self.frequencies.steps.len());
        turns
            .extend(&self.frequencies, places.iter().map(|(line, column)| [*line as u32, *column as u32, 0]));
        let mixed = layer.mixed.forward(&layer.attention_norm.of(hidden)?, Activation::Identity)?;
        let mut memory = KeyValues::new(self.config.hidden_size, &self.device)?;
        let mut runs = [Run { memory: &mut memory, past: 0, length: places.len() }];
        let attended = self.attention.forward(&mixed, &turns, &mut runs)?;
        drop(mixed);
        let attended = (layer.attended.forward(&attended, Activation::Identity)? + hidden)?;
        let activation = self.config.activation.unwrap_or(Activation::GeluTanh);
        let wide = layer.wide.forward(&layer.middle_norm.of(&attended)?, activation)?;
        Ok((layer.narrow.forward(&wide, Activation::Identity)? + attended)?)
    }

    /// What goes to the text after so many layers: features for its first layers, and at the end the image itself.
    pub(super) fn keep(&self, layers: usize, hidden: &Tensor) -> Result<Vec<Tensor>> {
        let mut kept = Vec::new();
        let deep = self.config.deepstack_visual_indexes.iter().position(|index| index + 1 == layers);
        if let Some(merger) = deep.and_then(|index| self.deep.get(index)) {
            kept.push(merger.forward(hidden)?);
        }
        if layers == self.depth() {
            kept.push(self.merger.forward(hidden)?);
        }
        Ok(kept)
    }
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
