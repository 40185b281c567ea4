//! SigLIP (Zhai et al. 2023): a vision tower without a class token, whose patches a learned probe attends to, and a
//! text tower that sees a whole text and the padding after it. Follows `modeling_siglip.py` of transformers.

use std::path::Path;

use candle_core::Tensor;
use serde_json::{Value, json};

use super::vision::ImageRows;
use super::{
    Bias, MAX_SIZE, Middle, Patches, Positions, Resampling, Stack, StackShape, TextSettings, TextTower,
    VisionSettings, VisionTower, linear, norm, pick, starts,
};
use crate::error::{Error, Result};
use crate::kernels::{Activation, AttentionMask, LayerNorm, Linear, scaled_dot_product_attention};
use crate::weights::WeightReader;

fn vision_defaults() -> Value {
    json!({
        "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
        "num_channels": 3, "image_size": 224, "patch_size": 16, "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": 1e-6
    })
}

fn text_defaults() -> Value {
    json!({
        "vocab_size": 32000, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
        "num_attention_heads": 12, "max_position_embeddings": 64, "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": 1e-6
    })
}

/// The vision tower's settings.
#[derive(Debug, Clone)]
pub(crate) struct VisionConfig {
    pub(crate) settings: VisionSettings,
    pub(crate) shape: StackShape,
}

impl VisionConfig {
    /// Reads a `vision_config`, or the whole `config.json` of a vision tower alone.
    pub(crate) fn read(file: &Path, config: &Value) -> Result<Self> {
        let settings = VisionSettings::read(file, vision_defaults(), config)?;
        Ok(Self { shape: settings.shape(file)?, settings })
    }

    /// Rows of an image.
    pub(crate) fn rows(&self) -> usize {
        self.settings.grid() * self.settings.grid()
    }

    /// Loads the tensors that begin with `name`, which is empty or ends with a dot, up to the last layer.
    pub(crate) fn load(&self, reader: &WeightReader<'_>, name: &str) -> Result<VisionTower> {
        let (width, side, grid) = (self.shape.width, self.settings.patch_size, self.settings.grid());
        let part = |part: &str| format!("{name}{part}");
        let places = reader.tensor(&part("embeddings.position_embedding.weight"), &[grid * grid, width])?;
        Ok(VisionTower {
            patches: Patches::load(reader, &part("embeddings.patch_embedding"), width, side, Bias::With)?,
            leading: None,
            positions: Positions::new(places, grid, Resampling::Never),
            first_norm: None,
            stack: Stack::load(reader, &part("encoder.layers"), &self.shape, AttentionMask::Full)?,
        })
    }

    /// Loads the norm after the last layer.
    pub(crate) fn load_last_norm(&self, reader: &WeightReader<'_>, name: &str) -> Result<LayerNorm> {
        norm(reader, &format!("{name}post_layernorm"), self.shape.width, self.shape.epsilon)
    }

    /// Loads the head that makes one vector of an image's rows.
    pub(crate) fn load_head(&self, reader: &WeightReader<'_>, name: &str) -> Result<ProbeHead> {
        ProbeHead::load(reader, &format!("{name}head"), &self.shape)
    }
}

/// Attention of a learned probe over an image's rows, and a middle layer.
pub(crate) struct ProbeHead {
    /// The probe's query, `(1, 1, width)`: it is the same for every image.
    query: Tensor,
    key: Linear,
    value: Linear,
    attended: Linear,
    norm: LayerNorm,
    middle: Middle,
    heads: usize,
    scale: f64,
}

impl ProbeHead {
    fn load(reader: &WeightReader<'_>, name: &str, shape: &StackShape) -> Result<Self> {
        let width = shape.width;
        let part = |part: &str| format!("{name}.{part}");
        let probe = reader.tensor(&part("probe"), &[1, 1, width])?.reshape((1, width))?;
        let weight = reader.tensor(&part("attention.in_proj_weight"), &[3 * width, width])?;
        let bias = reader.tensor(&part("attention.in_proj_bias"), &[3 * width])?;
        let part_of = |first: usize| -> Result<Linear> {
            let bias = bias.narrow(0, first * width, width)?.force_contiguous()?;
            Linear::new(&weight.narrow(0, first * width, width)?, Some(bias))
        };
        Ok(Self {
            query: part_of(0)?.forward(&probe, Activation::Identity)?.unsqueeze(0)?,
            key: part_of(1)?,
            value: part_of(2)?,
            attended: linear(reader, &part("attention.out_proj"), width, width, Bias::With)?,
            norm: norm(reader, &part("layernorm"), width, shape.epsilon)?,
            middle: Middle::load(reader, &part("mlp"), shape)?,
            heads: shape.heads,
            scale: 1.0 / ((width / shape.heads) as f64).sqrt(),
        })
    }

    /// One row for each image out of rows that the last norm has seen.
    pub(crate) fn forward(&self, rows: &ImageRows) -> Result<Tensor> {
        let keys = self.key.forward(&rows.hidden, Activation::Identity)?;
        let values = self.value.forward(&rows.hidden, Activation::Identity)?;
        let attended = starts(&rows.lengths).zip(&rows.lengths).map(|(first, &length)| {
            let own = |rows: &Tensor| rows.narrow(0, first, length)?.unsqueeze(0);
            let attended = scaled_dot_product_attention(
                &self.query,
                &own(&keys)?,
                &own(&values)?,
                self.heads,
                self.scale,
                None,
            )?;
            Ok(attended.squeeze(0)?)
        });
        let attended = Tensor::cat(&attended.collect::<Result<Vec<_>>>()?, 0)?;
        let attended = self.attended.forward(&attended, Activation::Identity)?;
        let middle = self.middle.forward(&self.norm.of(&attended)?)?;
        Ok((attended + middle)?)
    }
}

/// The text tower's settings.
#[derive(Debug, Clone)]
pub(crate) struct TextConfig {
    pub(crate) settings: TextSettings,
    pub(crate) shape: StackShape,
    /// The length of a text's vector.
    pub(crate) projection: usize,
}

impl TextConfig {
    /// Reads a `text_config`.
    pub(crate) fn read(file: &Path, config: &Value) -> Result<Self> {
        let settings = TextSettings::read(file, text_defaults(), config)?;
        let projection = config.get("projection_size").filter(|size| !size.is_null());
        let projection = match projection.map(Value::as_u64) {
            None => settings.hidden_size,
            Some(Some(size)) if (1..=MAX_SIZE as u64).contains(&size) => size as usize,
            Some(_) => {
                let reason = format!("projection_size must be a whole number from 1 to {MAX_SIZE}");
                return Err(Error::InvalidConfig { file: file.to_owned(), reason });
            }
        };
        Ok(Self { shape: settings.shape(file)?, settings, projection })
    }

    /// Loads the tower from the tensors that begin with `name`, which is empty or ends with a dot.
    pub(crate) fn load(&self, reader: &WeightReader<'_>, name: &str) -> Result<SiglipText> {
        Ok(SiglipText {
            tower: TextTower::load(reader, name, &self.settings, &self.shape, AttentionMask::Full)?,
            head: linear(reader, &format!("{name}head"), self.projection, self.shape.width, Bias::With)?,
        })
    }
}

/// The text tower and its head.
pub(crate) struct SiglipText {
    tower: TextTower,
    head: Linear,
}

impl SiglipText {
    /// One row for each text. Every text must be padded to the length that the model was trained with: it sees the
    /// padding, and its vector is made of the last token's, which mostly is padding.
    pub(crate) fn forward(&self, ids: &[u32], lengths: &[usize]) -> Result<Tensor> {
        let hidden = self.tower.forward(ids, lengths)?;
        let last = starts(lengths).zip(lengths).map(|(start, length)| (start + length).saturating_sub(1));
        self.head.forward(&pick(&hidden, last)?, Activation::Identity)
    }
}
