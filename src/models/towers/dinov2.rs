//! DINOv2 (Oquab et al. 2023; with registers Darcet et al. 2023): a vision tower whose layers scale what they add, with
//! SwiGLU in the giant one, for images of any size. Follows `modeling_dinov2.py` and
//! `modeling_dinov2_with_registers.py` of transformers; published files have the tensor names of their releases up to
//! 4.x, and the newer names are read too.

use std::path::Path;

use candle_core::Tensor;
use model_actors::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};

use super::settings::{activation, check_image, side};
use super::{
    Bias, Layer, Middle, Patches, Positions, Resampling, Stack, StackShape, VisionTower, check_stack, linear,
    mixed, norm, with_defaults,
};
use crate::error::{Error, Result};
use crate::families::parse;
use crate::kernels::{AttentionMask, LayerNorm, Linear};
use crate::weights::WeightReader;

/// Most registers.
const MAX_REGISTERS: usize = 1024;

/// Which of the two architectures a `config.json` is of.
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
    shape: StackShape,
    registers: Registers,
}

impl Dinov2Config {
    pub(crate) fn read(file: &Path, config: &Value, registers: Registers) -> Result<Self> {
        let settings: Settings = parse(file, &with_defaults(defaults(registers), &[config]))?;
        check_image(file, settings.num_channels, settings.image_size, settings.patch_size)?;
        if settings.num_register_tokens > MAX_REGISTERS {
            let reason = format!(
                "num_register_tokens is {}; at most {MAX_REGISTERS} are allowed",
                settings.num_register_tokens
            );
            return Err(Error::InvalidConfig { file: file.to_owned(), reason });
        }
        // The casts saturate, so that an absurd ratio becomes a size that is refused below.
        let middle = (settings.hidden_size as f64 * settings.mlp_ratio) as usize;
        let gated = ((middle as f64 * 2.0 / 3.0) as usize).saturating_add(7) / 8 * 8;
        let shape = StackShape {
            width: settings.hidden_size,
            middle: if settings.use_swiglu_ffn { gated } else { middle },
            layers: settings.num_hidden_layers,
            heads: settings.num_attention_heads,
            epsilon: settings.layer_norm_eps,
            activation: activation(file, &settings.hidden_act)?,
        };
        check_stack(file, &shape)?;
        Ok(Self { settings, shape, registers })
    }

    /// The length of a row.
    pub(crate) fn width(&self) -> usize {
        self.shape.width
    }

    /// Pixels along a patch's side.
    pub(crate) fn patch(&self) -> usize {
        self.settings.patch_size
    }

    /// Rows of an image of this size.
    pub(crate) fn rows(&self, width: usize, height: usize) -> usize {
        let patches = (width / self.settings.patch_size).saturating_mul(height / self.settings.patch_size);
        patches.saturating_add(1 + self.settings.num_register_tokens)
    }

    /// What a pass over so many rows needs besides the weights.
    pub(crate) fn scratch(&self, rows: usize, longest: usize) -> Bytes {
        self.shape.scratch(rows, longest)
    }

    /// Loads the tensors that begin with `name`, which is empty or ends with a dot, up to the last layer.
    pub(crate) fn load(&self, reader: &WeightReader<'_>, name: &str) -> Result<VisionTower> {
        let (width, side) = (self.shape.width, self.settings.patch_size);
        let grid = self.settings.image_size / side;
        let part = |part: &str| format!("{name}embeddings.{part}");
        let class = reader.tensor(&part("cls_token"), &[1, 1, width])?.reshape((1, width))?;
        let positions = reader.tensor(&part("position_embeddings"), &[1, grid * grid + 1, width])?;
        let positions = positions.squeeze(0)?;
        let mut leading = vec![(class + positions.narrow(0, 0, 1)?)?];
        if self.settings.num_register_tokens > 0 {
            let shape = [1, self.settings.num_register_tokens, width];
            leading.push(reader.tensor(&part("register_tokens"), &shape)?.squeeze(0)?);
        }
        let places = positions.narrow(0, 1, grid * grid)?.force_contiguous()?;
        let resampling = match self.registers {
            Registers::Without => Resampling::Bicubic,
            Registers::With => Resampling::BicubicAntialias,
        };
        let layers = (0..self.shape.layers)
            .map(|index| self.load_layer(reader, &format!("{name}encoder.layer.{index}")));
        let stack = Stack {
            layers: layers.collect::<Result<_>>()?,
            heads: self.shape.heads,
            mask: AttentionMask::Full,
        };
        Ok(VisionTower {
            patches: Patches::load(reader, &part("patch_embeddings.projection"), width, side, Bias::With)?,
            leading: Some(Tensor::cat(&leading, 0)?),
            positions: Positions::new(places, grid, resampling),
            first_norm: None,
            stack,
        })
    }

    /// Loads the norm after the last layer.
    pub(crate) fn load_last_norm(&self, reader: &WeightReader<'_>, name: &str) -> Result<LayerNorm> {
        norm(reader, &format!("{name}layernorm"), self.shape.width, self.shape.epsilon)
    }

    fn load_layer(&self, reader: &WeightReader<'_>, name: &str) -> Result<Layer> {
        let (width, epsilon) = (self.shape.width, self.shape.epsilon);
        let part = |part: &str| format!("{name}.{part}");
        let published = ["attention.attention.query", "attention.attention.key", "attention.attention.value"];
        let renamed = ["attention.q_proj", "attention.k_proj", "attention.v_proj"];
        let is_renamed = reader.contains(&part("attention.q_proj.weight"));
        let (names, attended) = match is_renamed {
            true => (renamed, "attention.o_proj"),
            false => (published, "attention.output.dense"),
        };
        let names = names.map(part);
        let bias = if self.settings.qkv_bias { Bias::With } else { Bias::Without };
        let scale = |which: &str| reader.tensor(&part(which), &[width]);
        Ok(Layer {
            attention_norm: norm(reader, &part("norm1"), width, epsilon)?,
            mixed: mixed(reader, names.each_ref().map(String::as_str), width, bias)?,
            attended: scaled(reader, &part(attended), width, width, &scale("layer_scale1.lambda1")?)?,
            middle_norm: norm(reader, &part("norm2"), width, epsilon)?,
            middle: self.load_middle(reader, &part("mlp"), &scale("layer_scale2.lambda1")?)?,
        })
    }

    fn load_middle(&self, reader: &WeightReader<'_>, name: &str, scale: &Tensor) -> Result<Middle> {
        let (width, middle) = (self.shape.width, self.shape.middle);
        let part = |part: &str| format!("{name}.{part}");
        if !self.settings.use_swiglu_ffn {
            return Ok(Middle::Plain {
                wide: linear(reader, &part("fc1"), middle, width, Bias::With)?,
                activation: self.shape.activation,
                narrow: scaled(reader, &part("fc2"), width, middle, scale)?,
            });
        }
        if reader.contains(&part("gate_proj.weight")) {
            return Ok(Middle::Gated {
                gate: linear(reader, &part("gate_proj"), middle, width, Bias::With)?,
                wide: linear(reader, &part("up_proj"), middle, width, Bias::With)?,
                narrow: scaled(reader, &part("down_proj"), width, middle, scale)?,
            });
        }
        // Gate and wide layer are one tensor in the published files.
        let weight = reader.tensor(&part("weights_in.weight"), &[2 * middle, width])?;
        let bias = reader.tensor(&part("weights_in.bias"), &[2 * middle])?;
        let half = |first: usize| -> Result<Linear> {
            let bias = bias.narrow(0, first, middle)?.force_contiguous()?;
            Linear::new(&weight.narrow(0, first, middle)?, Some(bias))
        };
        let narrow = scaled(reader, &part("weights_out"), width, middle, scale)?;
        Ok(Middle::Gated { gate: half(0)?, wide: half(middle)?, narrow })
    }
}

/// A linear layer with the layer scale that follows it, which is the same as one with a scaled weight and bias.
fn scaled(
    reader: &WeightReader<'_>,
    name: &str,
    outside: usize,
    inside: usize,
    scale: &Tensor,
) -> Result<Linear> {
    let weight = reader.tensor(&format!("{name}.weight"), &[outside, inside])?;
    let bias = reader.tensor(&format!("{name}.bias"), &[outside])?;
    Linear::new(&weight.broadcast_mul(&scale.unsqueeze(1)?)?, Some((bias * scale)?))
}
