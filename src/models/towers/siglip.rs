//! SigLIP (Zhai et al. 2023): a vision tower without a class token, whose patches a learned probe attends to,
//! and a text tower that sees a whole text and the padding after it. The NaFlex variant of SigLIP 2 (Tschannen
//! et al. 2025) takes images of any proportions. Follows `modeling_siglip.py` and `modeling_siglip2.py` of
//! transformers.

use std::path::Path;

use candle_core::Tensor;
use serde::Deserialize;
use serde_json::{Value, json};

use super::clip::text_tower;
use super::positions::{Positions, Resampling};
use super::rows::{pick, starts};
use super::settings::{CLIP_BLOCKS, TextSettings, VisionSettings, side};
use super::text::{TextTower, TextTowerConfig};
use super::vision::{ImageRows, Patches, VisionTower};
use crate::architecture::parse;
use crate::error::Result;
use crate::kernels::{Activation, AttentionMask, Linear};
use crate::models::config_file::{MAX_SIDE, invalid, with_defaults, without_nulls};
use crate::models::transformer::{
    self, Bias, CrossKeyValues, FeedForward, Norm, Projection, SafeTensors, TransformerConfig,
    load_feed_forward,
};

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
    pub(crate) transformer: TransformerConfig,
    pub(crate) variant: Variant,
}

/// Images that a vision tower takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Variant {
    /// Squares of one size.
    Fixed,
    /// Any number of whole patches down and across; learned positions are resized to them.
    NaFlex,
}

impl VisionConfig {
    /// Reads a `vision_config`, or the whole `config.json` of a vision tower alone.
    pub(crate) fn read(file: &Path, config: &Value) -> Result<Self> {
        let settings = VisionSettings::read(file, vision_defaults(), config)?;
        Ok(Self { transformer: settings.transformer(file)?, settings, variant: Variant::Fixed })
    }

    /// Reads the `vision_config` of a tower for images of any proportions, which names the number of its learned
    /// positions in place of a size of images.
    pub(crate) fn read_naflex(file: &Path, config: &Value) -> Result<Self> {
        #[derive(Deserialize)]
        struct Patches {
            num_patches: usize,
            #[serde(deserialize_with = "side")]
            patch_size: usize,
        }
        let defaults = json!({"num_patches": 256, "patch_size": 16});
        let mut config = with_defaults(&without_nulls(config), defaults);
        let Patches { num_patches, patch_size } = parse(file, &config)?;
        let grid = num_patches.isqrt();
        if grid == 0 || grid > MAX_SIDE || grid * grid != num_patches {
            return Err(invalid(file, format!("num_patches is {num_patches}; it must be a square above 0")));
        }
        // The size of the square that has a position for each patch.
        config["image_size"] = json!(grid.saturating_mul(patch_size));
        Ok(Self { variant: Variant::NaFlex, ..Self::read(file, &config)? })
    }

    /// Number of rows of an image of the one size.
    pub(crate) fn rows(&self) -> usize {
        self.settings.grid() * self.settings.grid()
    }

    /// Loads the tower up to the last block.
    pub(crate) fn load(&self, tensors: &SafeTensors<'_>) -> Result<VisionTower> {
        let (width, side, grid) = (self.transformer.width, self.settings.patch_size, self.settings.grid());
        let embeddings = tensors.at("embeddings.");
        let places = embeddings.tensor("position_embedding.weight", &[grid * grid, width])?;
        let (patches, resampling) = match self.variant {
            Variant::Fixed => {
                let patches = Patches::load(&embeddings, "patch_embedding", width, side, Bias::Yes)?;
                (patches, Resampling::Never)
            }
            Variant::NaFlex => {
                let patches = Patches::load_of_pixels(&embeddings, "patch_embedding", width, side)?;
                (patches, Resampling::BilinearAntialias)
            }
        };
        Ok(VisionTower {
            patches,
            leading: None,
            positions: Positions::new(places, grid, resampling),
            first_norm: None,
            transformer: transformer::load(&self.transformer, &CLIP_BLOCKS, tensors, tensors.device())?,
        })
    }

    /// Loads the norm after the last block.
    pub(crate) fn load_last_norm(&self, tensors: &SafeTensors<'_>) -> Result<Norm> {
        tensors.layer_norm("post_layernorm", self.transformer.width, self.transformer.epsilon)
    }

    /// Loads the head that makes one vector of an image's rows.
    pub(crate) fn load_head(&self, tensors: &SafeTensors<'_>) -> Result<ProbeHead> {
        ProbeHead::load(&tensors.at("head."), &self.transformer)
    }
}

/// Pooling by the attention of a learned probe to an image's rows, and a feed-forward network.
pub(crate) struct ProbeHead {
    /// The probe's query, `(1, width)`: it is the same for every image.
    query: Tensor,
    /// Key and value projections in one product.
    kv_proj: Linear,
    out_proj: Projection,
    norm: Norm,
    feed_forward: FeedForward,
    heads: usize,
    scale: f64,
}

impl ProbeHead {
    fn load(tensors: &SafeTensors<'_>, config: &TransformerConfig) -> Result<Self> {
        let (width, attention) = (config.width, &config.attention);
        let probe = tensors.tensor("probe", &[1, 1, width])?.reshape((1, width))?;
        let weight = tensors.tensor("attention.in_proj_weight", &[3 * width, width])?;
        let bias = tensors.tensor("attention.in_proj_bias", &[3 * width])?;
        let part = |first: usize, count: usize| -> Result<Linear> {
            let bias = bias.narrow(0, first * width, count * width)?.force_contiguous()?;
            Linear::new(&weight.narrow(0, first * width, count * width)?, Some(bias))
        };
        Ok(Self {
            query: part(0, 1)?.forward(&probe, Activation::Identity)?,
            kv_proj: part(1, 2)?,
            out_proj: tensors.linear("attention.out_proj", width, width, Bias::Yes)?,
            norm: tensors.layer_norm("layernorm", width, config.epsilon)?,
            feed_forward: load_feed_forward(config, &CLIP_BLOCKS, tensors)?,
            heads: attention.heads,
            scale: 1.0 / (attention.head_size as f64).sqrt(),
        })
    }

    /// One row for each image out of rows that the last norm has seen.
    pub(crate) fn forward(&self, rows: &ImageRows) -> Result<Tensor> {
        let key_values = self.kv_proj.forward(&rows.hidden, Activation::Identity)?;
        let key_values = CrossKeyValues::split(&key_values)?;
        let output = starts(&rows.lengths).zip(&rows.lengths).map(|(first, &length)| {
            key_values.rows(first, length)?.attend(&self.query, self.heads, self.scale)
        });
        let output = Tensor::cat(&output.collect::<Result<Vec<_>>>()?, 0)?;
        let hidden = self.out_proj.forward(&output, Activation::Identity)?;
        Ok((self.feed_forward.forward(&self.norm.forward(&hidden)?)? + hidden)?)
    }
}

/// The text tower's settings.
#[derive(Debug, Clone)]
pub(crate) struct TextConfig {
    pub(crate) tower: TextTowerConfig,
    /// Length of a text's vector.
    pub(crate) projection: usize,
}

impl TextConfig {
    /// Reads a `text_config`.
    pub(crate) fn read(file: &Path, config: &Value) -> Result<Self> {
        let settings = TextSettings::read(file, text_defaults(), config)?;
        let projection = config.get("projection_size").filter(|size| !size.is_null());
        let projection = match projection.map(Value::as_u64) {
            None => settings.hidden_size,
            Some(Some(size)) if (1..=MAX_SIDE as u64).contains(&size) => size as usize,
            Some(_) => {
                let reason = format!("projection_size must be a whole number from 1 to {MAX_SIDE}");
                return Err(invalid(file, reason));
            }
        };
        Ok(Self { tower: text_tower(file, &settings, AttentionMask::Full)?, projection })
    }

    /// Loads the tower and its head.
    pub(crate) fn load(&self, tensors: &SafeTensors<'_>) -> Result<SiglipText> {
        Ok(SiglipText {
            tower: self.tower.load(tensors, tensors.device())?,
            head: tensors.linear("head", self.projection, self.tower.transformer.width, Bias::Yes)?,
        })
    }
}

/// The text tower and its head.
pub(crate) struct SiglipText {
    tower: TextTower,
    head: Projection,
}

impl SiglipText {
    /// One row for each text. Every text must be padded to the length that the model was trained with: it
    /// sees the padding, and its vector is made of the last token's, which mostly is padding.
    pub(crate) fn forward(&self, ids: &[u32], lengths: &[usize]) -> Result<Tensor> {
        let hidden = self.tower.encode(ids, lengths, || Ok(()))?;
        let last = starts(lengths).zip(lengths).map(|(start, length)| (start + length).saturating_sub(1));
        self.head.forward(&pick(&hidden, last)?, Activation::Identity)
    }
}
