//! DINOv2 (Oquab et al. 2023; with registers Darcet et al. 2023): a vision tower with layer scale, and with
//! SwiGLU in the giant one, for images of any size. Follows `modeling_dinov2.py` and
//! `modeling_dinov2_with_registers.py` of transformers; published files have the tensor names of their
//! releases up to 4.x, and the newer names are read too.

use std::path::Path;

use candle_core::Tensor;
use serde::Deserialize;
use serde_json::{Value, json};

use super::positions::{Positions, Resampling};
use super::settings::{check_image, side};
use super::vision::{Patches, VisionTower};
use crate::architecture::parse;
use crate::error::Result;
use crate::kernels::Activation;
use crate::models::config_file::{activation, invalid, with_defaults, without_nulls};
use crate::models::transformer::{
    self, Bias, FeedForwardConfig, LayerConfig, Names, Norm, NormPlacement, QkvNames, SafeTensors, Sizes,
    Tensors, TransformerConfig, UpNames,
};

/// Maximum number of registers.
pub(super) const MAX_REGISTERS: usize = 1024;

/// Names of the blocks' tensors in published files.
const PUBLISHED: Names = Names {
    blocks: "encoder.layer.",
    attention_norm: "norm1",
    qkv: QkvNames::Separate([
        "attention.attention.query",
        "attention.attention.key",
        "attention.attention.value",
    ]),
    out_proj: "attention.output.dense",
    attention_scale: Some("layer_scale1.lambda1"),
    feed_forward_norm: "norm2",
    feed_forward: "mlp.",
    up: UpNames::Dense("fc1"),
    down: "fc2",
    feed_forward_scale: Some("layer_scale2.lambda1"),
    ..Names::NONE
};

/// The two architectures that a `config.json` may be of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Registers {
    Without,
    With,
}

/// `config.json`.
#[derive(Debug, Clone, Deserialize)]
struct Settings {
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    mlp_ratio: f64,
    num_channels: usize,
    #[serde(deserialize_with = "side")]
    image_size: usize,
    #[serde(deserialize_with = "side")]
    patch_size: usize,
    hidden_act: String,
    layer_norm_eps: f64,
    qkv_bias: bool,
    use_swiglu_ffn: bool,
    num_register_tokens: usize,
}

fn defaults(registers: Registers) -> Value {
    let (patch, count) = match registers {
        Registers::Without => (14, 0),
        Registers::With => (16, 4),
    };
    json!({
        "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "mlp_ratio": 4, "num_channels": 3,
        "image_size": 224, "patch_size": patch, "hidden_act": "gelu", "layer_norm_eps": 1e-6, "qkv_bias": true,
        "use_swiglu_ffn": false, "num_register_tokens": count
    })
}

/// The tower's settings.
#[derive(Debug, Clone)]
pub(crate) struct Dinov2Config {
    settings: Settings,
    pub(crate) transformer: TransformerConfig,
    registers: Registers,
}

impl Dinov2Config {
    pub(crate) fn read(file: &Path, config: &Value, registers: Registers) -> Result<Self> {
        let settings: Settings = parse(file, &with_defaults(&without_nulls(config), defaults(registers)))?;
        check_image(file, settings.num_channels, settings.image_size, settings.patch_size)?;
        if settings.num_register_tokens > MAX_REGISTERS {
            let reason = format!(
                "num_register_tokens is {}; at most {MAX_REGISTERS} are allowed",
                settings.num_register_tokens
            );
            return Err(invalid(file, reason));
        }
        // The casts saturate, so that an absurd ratio becomes a size that is refused below.
        let intermediate = (settings.hidden_size as f64 * settings.mlp_ratio) as usize;
        let gated = ((intermediate as f64 * 2.0 / 3.0) as usize).saturating_add(7) / 8 * 8;
        let sizes = Sizes {
            width: settings.hidden_size,
            intermediate: if settings.use_swiglu_ffn { gated } else { intermediate },
            layers: settings.num_hidden_layers,
            heads: settings.num_attention_heads,
        };
        let activation = match settings.use_swiglu_ffn {
            true => Activation::Silu,
            false => activation(file, "hidden_act", &settings.hidden_act)?,
        };
        let (placement, epsilon) = (NormPlacement::Pre, settings.layer_norm_eps);
        let mut transformer = TransformerConfig::encoder(file, sizes, placement, activation, epsilon)?;
        transformer.biases.qkv = settings.qkv_bias.into();
        if settings.use_swiglu_ffn {
            transformer = transformer.gated();
        }
        Ok(Self { settings, transformer, registers })
    }

    /// Length of a row.
    pub(crate) fn width(&self) -> usize {
        self.transformer.width
    }

    /// Pixels along a patch's side.
    pub(crate) fn patch(&self) -> usize {
        self.settings.patch_size
    }

    /// Number of rows before those of the patches: the class and the registers.
    pub(crate) fn leading(&self) -> usize {
        1 + self.settings.num_register_tokens
    }

    /// Loads the tower up to the last block.
    pub(crate) fn load(&self, tensors: &SafeTensors<'_>) -> Result<VisionTower> {
        let (width, side) = (self.transformer.width, self.settings.patch_size);
        let grid = self.settings.image_size / side;
        let embeddings = tensors.at("embeddings.");
        let class = embeddings.tensor("cls_token", &[1, 1, width])?.reshape((1, width))?;
        let positions = embeddings.tensor("position_embeddings", &[1, grid * grid + 1, width])?.squeeze(0)?;
        let mut leading = vec![(class + positions.narrow(0, 0, 1)?)?];
        if self.settings.num_register_tokens > 0 {
            let shape = [1, self.settings.num_register_tokens, width];
            leading.push(embeddings.tensor("register_tokens", &shape)?.squeeze(0)?);
        }
        let places = positions.narrow(0, 1, grid * grid)?.force_contiguous()?;
        let resampling = match self.registers {
            Registers::Without => Resampling::Bicubic,
            Registers::With => Resampling::BicubicAntialias,
        };
        let names = self.names(tensors);
        Ok(VisionTower {
            patches: Patches::load(&embeddings, "patch_embeddings.projection", width, side, Bias::Yes)?,
            leading: Some(Tensor::cat(&leading, 0)?),
            positions: Positions::new(places, grid, resampling),
            first_norm: None,
            transformer: transformer::load(&self.transformer, &names, tensors, tensors.device())?,
        })
    }

    /// Loads the norm after the last block.
    pub(crate) fn load_last_norm(&self, tensors: &SafeTensors<'_>) -> Result<Norm> {
        tensors.layer_norm("layernorm", self.transformer.width, self.transformer.epsilon)
    }

    /// The names that the file has.
    fn names(&self, tensors: &SafeTensors<'_>) -> Names {
        let mut names = PUBLISHED;
        let first = tensors.at("encoder.layer.0.");
        if first.contains("attention.q_proj.weight") {
            names.qkv = QkvNames::Separate(["attention.q_proj", "attention.k_proj", "attention.v_proj"]);
            names.out_proj = "attention.o_proj";
        }
        let is_gated = |layer: &LayerConfig| matches!(layer.feed_forward, FeedForwardConfig::Gated { .. });
        if self.transformer.layers.iter().any(is_gated) {
            let renamed = first.contains("mlp.gate_proj.weight");
            (names.up, names.down) = match renamed {
                true => (UpNames::Separate { gate: "gate_proj", up: "up_proj" }, "down_proj"),
                false => (UpNames::GateUp("weights_in"), "weights_out"),
            };
        }
        names
    }
}
