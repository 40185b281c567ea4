//! Pixtral's vision tower: blocks with root-mean-square norms and gated networks, whose heads are rotated by line and
//! column. A patch sees all others of its image and none of another. The blocks are those of `transformer`; a large
//! image goes through each of them in parts.

use std::path::Path;

use candle_core::Tensor;
use model_actors::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::architecture::parse;
use crate::error::Result;
use crate::kernels::Activation;
use crate::limits::MAX_MODEL_SIDE;
use crate::models::config_file::{activation, invalid, unsupported, with_defaults, without_nulls};
use crate::models::towers::Patches;
use crate::models::transformer::{
    self, Bias, Biases, Names, Norm, NormKind, NormPlacement, QkvNames, Rope, SafeTensors, Sizes,
    Tensors as _, Transformer, TransformerConfig, UpNames,
};
use crate::models::vision::any_size::{BlockStep, MAX_PATCH, PART_ROWS, Places, open_patches};
use crate::models::vision::{StepwiseTower, Unfinished, misfit};

/// Of all norms.
const EPSILON: f64 = 1e-5;

const NAMES: Names = Names {
    blocks: "transformer.layers.",
    attention_norm: "attention_norm",
    qkv: QkvNames::Separate(["attention.q_proj", "attention.k_proj", "attention.v_proj"]),
    out_proj: "attention.o_proj",
    feed_forward_norm: "ffn_norm",
    feed_forward: "feed_forward.",
    up: UpNames::Separate { gate: "gate_proj", up: "up_proj" },
    down: "down_proj",
    ..Names::NONE
};

/// The tower that is not loaded.
#[derive(Debug, Clone)]
pub(super) struct TowerConfig {
    pub(super) transformer: TransformerConfig,
    /// Number of pixels along a patch's side.
    pub(super) patch_size: usize,
}

/// `vision_config`. The size of images is that of the preprocessing.
#[derive(Debug, Deserialize)]
struct Settings {
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    head_dim: Option<usize>,
    num_channels: usize,
    patch_size: usize,
    hidden_act: String,
    /// The base of the rotary embedding in older files.
    rope_theta: Option<f64>,
    rope_parameters: Option<RopeSettings>,
}

#[derive(Debug, Deserialize)]
struct RopeSettings {
    rope_theta: Option<f64>,
    rope_type: Option<String>,
}

fn defaults() -> Value {
    json!({
        "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
        "num_channels": 3, "patch_size": 16, "hidden_act": "gelu"
    })
}

impl TowerConfig {
    /// Reads a `vision_config`.
    pub(super) fn read(file: &Path, config: &Value) -> Result<Self> {
        let settings: Settings = parse(file, &with_defaults(&without_nulls(config), defaults()))?;
        let patch_size = settings.patch_size;
        if settings.num_channels != 3 {
            return Err(unsupported(file, "num_channels", &settings.num_channels.to_string(), "3"));
        }
        if !(1..=MAX_PATCH).contains(&patch_size) {
            return Err(invalid(file, format!("patch_size is {patch_size}; 1 to {MAX_PATCH} are allowed")));
        }
        let sizes = Sizes {
            width: settings.hidden_size,
            intermediate: settings.intermediate_size,
            layers: settings.num_hidden_layers,
            heads: settings.num_attention_heads,
        };
        let activation = activation(file, "hidden_act", &settings.hidden_act)?;
        let blocks = TransformerConfig::encoder(file, sizes, NormPlacement::Pre, activation, EPSILON)?;
        let head_size = blocks.attention.head_size;
        if !head_size.is_multiple_of(4) || settings.head_dim.is_some_and(|size| size != head_size) {
            let reason = format!(
                "a head has {head_size} numbers; a multiple of 4 is needed, and the same as head_dim"
            );
            return Err(invalid(file, reason));
        }
        let rope = settings.rope_parameters.as_ref();
        if let Some(kind) = rope.and_then(|rope| rope.rope_type.as_deref())
            && !["axial", "default"].contains(&kind)
        {
            return Err(unsupported(file, "rope_type", kind, "axial, default"));
        }
        let base = rope.and_then(|rope| rope.rope_theta).or(settings.rope_theta).unwrap_or(10_000.0);
        if !base.is_finite() || base <= 1.0 {
            return Err(invalid(file, "rope_theta is not a number above 1"));
        }
        let rope = Rope::by_line_and_column_in_turns(head_size, base);
        let mut transformer = blocks.with_rope(rope).gated();
        (transformer.norm, transformer.biases) = (NormKind::Rms, Biases::NONE);
        Ok(Self { transformer, patch_size })
    }

    /// True for the tensor, named without the tower's prefix, that is loaded: blocks after the last that is taken are not.
    pub(super) fn uses(&self, name: &str) -> bool {
        match name.strip_prefix(NAMES.blocks).and_then(|rest| rest.split_once('.')) {
            Some((index, _)) => index.parse().is_ok_and(|index: usize| index < self.transformer.layers.len()),
            None => true,
        }
    }

    /// Bytes that an image of so many patches needs besides the weights, each patch with `kept` numbers that go to the
    /// text: its pixels, a block's input, its queries, keys and values, and its output; and the widest moment of a part,
    /// which is one of a block, or the cutting of patches.
    pub(super) fn scratch(&self, patches: usize, merge: usize, kept: usize) -> Bytes {
        let (pixels, width) = (3 * self.patch_size * self.patch_size, self.transformer.width);
        let bytes =
            |row: usize, rows: usize| Bytes((row as u64).saturating_mul(rows as u64).saturating_mul(4));
        // Lines of patches are opened whole, however long they are.
        let line = (MAX_MODEL_SIDE / self.patch_size.max(1)).saturating_mul(merge);
        let opening = bytes(3 * (pixels + width), patches.min(PART_ROWS.max(line)));
        let rows = patches.min(PART_ROWS);
        let projecting = bytes(3 * (width + kept), rows);
        bytes(pixels + kept + 5 * width, patches)
            + self.transformer.scratch(rows, patches).max(opening).max(projecting)
    }

    pub(super) fn load(&self, merge: usize, tensors: &SafeTensors<'_>) -> Result<Tower> {
        let width = self.transformer.width;
        Ok(Tower {
            patches: Patches::load(tensors, "patch_conv", width, self.patch_size, Bias::No)?,
            norm: tensors.norm("ln_pre", width, NormKind::Rms, EPSILON)?,
            transformer: transformer::load(&self.transformer, &NAMES, tensors, tensors.device())?,
            config: self.transformer.clone(),
            merge,
            part_rows: PART_ROWS,
        })
    }
}

/// A loaded tower.
pub(super) struct Tower {
    patches: Patches,
    /// Norm before the first block.
    norm: Norm,
    transformer: Transformer,
    config: TransformerConfig,
    /// Number of patches along a side of those that are merged, which are neighbours in the order of rows.
    merge: usize,
    /// Number of rows that go through linear layers at a time.
    pub(super) part_rows: usize,
}

impl Tower {
    /// Lines and columns of merged patches in a picture of these sides.
    pub(super) fn merged_grid(&self, (width, height): (usize, usize)) -> (usize, usize) {
        let side = self.patches.side * self.merge;
        (height / side.max(1), width / side.max(1))
    }

    fn places(&self, crop: &Tensor) -> Result<Places> {
        let (_, height, width) = crop.dims3()?;
        Ok(Places::new(self.merged_grid((width, height)), self.merge, None))
    }
}

impl StepwiseTower for Tower {
    fn depth(&self) -> usize {
        self.transformer.depth()
    }

    fn open(&self, crop: &Tensor, parts: &mut Option<Unfinished>) -> Result<Option<Tensor>> {
        let sizes = [self.patches.side, self.config.width, self.merge, self.part_rows];
        open_patches(parts, crop, &self.places(crop)?, sizes, |pixels, _| {
            self.norm.forward(&self.patches.linear.forward(pixels, Activation::Identity)?)
        })
    }

    fn step(
        &self,
        block: usize,
        hidden: &Tensor,
        crop: &Tensor,
        parts: &mut Option<Unfinished>,
    ) -> Result<Option<Tensor>> {
        let step = BlockStep {
            block: self.transformer.block(block)?,
            attention: &self.config.attention,
            rope: self.config.ropes.first().ok_or_else(misfit)?,
            places: &self.places(crop)?.places,
            windows: None,
            part_rows: self.part_rows,
        };
        step.advance(hidden, parts)
    }
}
