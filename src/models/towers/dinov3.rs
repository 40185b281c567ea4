//! DINOv3 (Siméoni et al. 2025): a vision tower with registers and layer scale whose blocks rotate queries and keys by
//! the centres of the patches, for images of any size; some have a gated feed-forward network. Follows
//! `modeling_dinov3_vit.py` of transformers.

use std::path::Path;

use candle_core::Tensor;
use serde::Deserialize;
use serde_json::{Value, json};

use super::dinov2::MAX_REGISTERS;
use super::positions::Positions;
use super::settings::{check_image, side};
use super::vision::{Patches, VisionTower};
use crate::architecture::parse;
use crate::error::Result;
use crate::models::config_file::{activation, invalid, unsupported, with_defaults, without_nulls};
use crate::models::transformer::{
    self, Bias, Biases, Names, Norm, NormPlacement, QkvNames, Rope, SafeTensors, Sizes, TransformerConfig,
    UpNames,
};

/// Names of the blocks' tensors in published files.
const PUBLISHED: Names = Names {
    blocks: "layer.",
    attention_norm: "norm1",
    qkv: QkvNames::Separate(["attention.q_proj", "attention.k_proj", "attention.v_proj"]),
    out_proj: "attention.o_proj",
    attention_scale: Some("layer_scale1.lambda1"),
    feed_forward_norm: "norm2",
    feed_forward: "mlp.",
    up: UpNames::Dense("up_proj"),
    down: "down_proj",
    feed_forward_scale: Some("layer_scale2.lambda1"),
    ..Names::NONE
};

/// `config.json`.
#[derive(Debug, Clone, Deserialize)]
struct Settings {
    #[serde(deserialize_with = "side")]
    patch_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_channels: usize,
    hidden_act: String,
    layer_norm_eps: f64,
    rope_theta: f64,
    query_bias: bool,
    key_bias: bool,
    value_bias: bool,
    proj_bias: bool,
    mlp_bias: bool,
    use_gated_mlp: bool,
    num_register_tokens: usize,
}

fn defaults() -> Value {
    json!({
        "patch_size": 16, "hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 12,
        "num_attention_heads": 6, "num_channels": 3, "hidden_act": "gelu", "layer_norm_eps": 1e-5,
        "rope_theta": 100.0, "query_bias": true, "key_bias": false, "value_bias": true, "proj_bias": true,
        "mlp_bias": true, "use_gated_mlp": false, "num_register_tokens": 0
    })
}

/// The tower's settings.
#[derive(Debug, Clone)]
pub(crate) struct Dinov3Config {
    settings: Settings,
    pub(crate) transformer: TransformerConfig,
}

impl Dinov3Config {
    pub(crate) fn read(file: &Path, config: &Value) -> Result<Self> {
        let settings: Settings = parse(file, &with_defaults(&without_nulls(config), defaults()))?;
        // Images of any size that has a patch.
        check_image(file, settings.num_channels, settings.patch_size, settings.patch_size)?;
        let registers = settings.num_register_tokens;
        if registers > MAX_REGISTERS {
            let reason = format!("num_register_tokens is {registers}; at most {MAX_REGISTERS} are allowed");
            return Err(invalid(file, reason));
        }
        let sizes = Sizes {
            width: settings.hidden_size,
            intermediate: settings.intermediate_size,
            layers: settings.num_hidden_layers,
            heads: settings.num_attention_heads,
        };
        let activation = activation(file, "hidden_act", &settings.hidden_act)?;
        let (placement, epsilon) = (NormPlacement::Pre, settings.layer_norm_eps);
        let mut transformer = TransformerConfig::encoder(file, sizes, placement, activation, epsilon)?;
        let (head_size, base) = (transformer.attention.head_size, settings.rope_theta);
        if !head_size.is_multiple_of(4) || !base.is_finite() || base <= 1.0 {
            let reason = format!(
                "rotation by line and column needs heads of a multiple of 4, here {head_size}, and a rope_theta above \
                 1, here {base}"
            );
            return Err(invalid(file, reason));
        }
        transformer.biases = Biases::both(settings.proj_bias.into(), settings.mlp_bias.into());
        transformer.biases.qkv = settings.query_bias.into();
        transformer.attention.key_bias = match (settings.query_bias, settings.key_bias, settings.value_bias) {
            (query, key, value) if query == key && query == value => None,
            (true, false, true) => Some(Bias::No),
            _ => {
                let supported = "that of query_bias, and a key_bias only beside them";
                return Err(unsupported(file, "value_bias", &settings.value_bias.to_string(), supported));
            }
        };
        let mut transformer = transformer.with_rope(Rope::by_line_and_column(head_size, base));
        if settings.use_gated_mlp {
            transformer = transformer.gated();
        }
        Ok(Self { settings, transformer })
    }

    /// Length of a row.
    pub(crate) fn width(&self) -> usize {
        self.transformer.width
    }

    /// Pixels along a patch's side.
    pub(crate) fn patch(&self) -> usize {
        self.settings.patch_size
    }

    /// Number of registers.
    pub(crate) fn registers(&self) -> usize {
        self.settings.num_register_tokens
    }

    /// Loads the tower up to the last block.
    pub(crate) fn load(&self, tensors: &SafeTensors<'_>) -> Result<VisionTower> {
        let (width, side) = (self.transformer.width, self.settings.patch_size);
        let embeddings = tensors.at("embeddings.");
        let mut leading = vec![embeddings.tensor("cls_token", &[1, 1, width])?.reshape((1, width))?];
        if self.registers() > 0 {
            let shape = [1, self.registers(), width];
            leading.push(embeddings.tensor("register_tokens", &shape)?.squeeze(0)?);
        }
        let mut names = PUBLISHED;
        if self.settings.use_gated_mlp {
            names.up = UpNames::Separate { gate: "gate_proj", up: "up_proj" };
        }
        Ok(VisionTower {
            patches: Patches::load(&embeddings, "patch_embeddings", width, side, Bias::Yes)?,
            leading: Some(Tensor::cat(&leading, 0)?),
            positions: Positions::rotary(),
            first_norm: None,
            transformer: transformer::load(&self.transformer, &names, tensors, tensors.device())?,
        })
    }

    /// Loads the norm after the last block.
    pub(crate) fn load_last_norm(&self, tensors: &SafeTensors<'_>) -> Result<Norm> {
        tensors.layer_norm("norm", self.transformer.width, self.transformer.epsilon)
    }
}
