//! CLIP (Radford et al. 2021): a vision tower with a class token and a norm before its layers, and a causal
//! text tower that is pooled at the token that ends a text. LLaVA takes the vision tower's hidden states,
//! Stable Diffusion the text tower's. Follows `modeling_clip.py` of transformers.

use std::path::Path;

use candle_core::Tensor;
use model_actors::Bytes;
use serde_json::{Value, json};

use super::positions::{Positions, Resampling};
use super::rows::{pick, starts};
use super::settings::{CLIP_BLOCKS, OPEN_CLIP_BLOCKS, TextSettings, VisionSettings};
use super::text::{PositionsConfig, TextTower, TextTowerConfig, TextTowerNames};
use super::vision::{Patches, VisionTower};
use crate::error::Result;
use crate::kernels::{Activation, AttentionMask, Linear as Dense};
use crate::models::config_file::invalid;
use crate::models::transformer::{
    self, Bias, Names, Norm, Projection as Linear, SafeTensors, TransformerConfig, Workload,
};
use crate::weights::WeightReader;

fn vision_defaults() -> Value {
    json!({
        "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
        "num_channels": 3, "image_size": 224, "patch_size": 32, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5
    })
}

fn text_defaults() -> Value {
    json!({
        "vocab_size": 49408, "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12,
        "num_attention_heads": 8, "max_position_embeddings": 77, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5
    })
}

/// Names of a vision tower's tensors.
#[derive(Debug)]
struct VisionNames {
    /// The class and the positions, whole tensor names.
    class: &'static str,
    positions: &'static str,
    patches: &'static str,
    /// Norm before the blocks, and of the class after them.
    first_norm: &'static str,
    last_norm: &'static str,
    blocks: Names,
}

/// Those of transformers.
const VISION_NAMES: VisionNames = VisionNames {
    class: "embeddings.class_embedding",
    positions: "embeddings.position_embedding.weight",
    patches: "embeddings.patch_embedding",
    // It is misspelt in the published files.
    first_norm: "pre_layrnorm",
    last_norm: "post_layernorm",
    blocks: CLIP_BLOCKS,
};

/// Those of OpenCLIP.
const OPEN_CLIP_VISION_NAMES: VisionNames = VisionNames {
    class: "class_embedding",
    positions: "positional_embedding",
    patches: "conv1",
    first_norm: "ln_pre",
    last_norm: "ln_post",
    blocks: OPEN_CLIP_BLOCKS,
};

/// The vision tower's settings.
#[derive(Debug, Clone)]
pub(crate) struct VisionConfig {
    pub(crate) settings: VisionSettings,
    pub(crate) transformer: TransformerConfig,
    names: &'static VisionNames,
}

impl VisionConfig {
    /// Reads a `vision_config`, or the whole `config.json` of a vision tower alone.
    pub(crate) fn read(file: &Path, config: &Value) -> Result<Self> {
        let settings = VisionSettings::read(file, vision_defaults(), config)?;
        Ok(Self { transformer: settings.transformer(file)?, settings, names: &VISION_NAMES })
    }

    /// The same tower in the files of OpenCLIP.
    pub(crate) fn of_open_clip(self) -> Self {
        Self { names: &OPEN_CLIP_VISION_NAMES, ..self }
    }

    /// Number of rows of an image.
    pub(crate) fn rows(&self) -> usize {
        self.settings.grid() * self.settings.grid() + 1
    }

    /// Loads the tower, all but the last norm.
    pub(crate) fn load(&self, tensors: &SafeTensors<'_>) -> Result<VisionTower> {
        let (width, side, grid) = (self.transformer.width, self.settings.patch_size, self.settings.grid());
        let names = self.names;
        let class = tensors.tensor(names.class, &[width])?;
        let positions = tensors.tensor(names.positions, &[grid * grid + 1, width])?;
        let first = (class.unsqueeze(0)? + positions.narrow(0, 0, 1)?)?;
        let places = positions.narrow(0, 1, grid * grid)?.contiguous()?;
        let first_norm = tensors.layer_norm(names.first_norm, width, self.transformer.epsilon)?;
        Ok(VisionTower {
            patches: Patches::load(tensors, names.patches, width, side, Bias::No)?,
            leading: Some(first),
            positions: Positions::new(places, grid, Resampling::Never),
            first_norm: Some(first_norm),
            transformer: transformer::load(&self.transformer, &names.blocks, tensors, tensors.device())?,
        })
    }

    /// Loads the norm of the pooled class, which a user of hidden states does not need.
    pub(crate) fn load_last_norm(&self, tensors: &SafeTensors<'_>) -> Result<Norm> {
        tensors.layer_norm(self.names.last_norm, self.transformer.width, self.transformer.epsilon)
    }
}

/// Tensor names of the text towers of CLIP and SigLIP.
pub(super) const TEXT_NAMES: TextTowerNames = TextTowerNames {
    token_embeddings: "embeddings.token_embedding",
    positions: "embeddings.position_embedding",
    segments: "",
    embedding_norm: "",
    embedding_projection: "",
    blocks: CLIP_BLOCKS,
    norm: "final_layer_norm",
};

/// Those of the text tower in the files of OpenCLIP.
const OPEN_CLIP_TEXT_NAMES: TextTowerNames = TextTowerNames {
    token_embeddings: "token_embedding",
    positions: "positional_embedding",
    blocks: OPEN_CLIP_BLOCKS,
    norm: "ln_final",
    ..TEXT_NAMES
};

/// The text tower of CLIP or SigLIP with these settings.
pub(super) fn text_tower(
    file: &Path,
    settings: &TextSettings,
    mask: AttentionMask,
) -> Result<TextTowerConfig> {
    Ok(TextTowerConfig {
        vocabulary: settings.vocab_size,
        context: settings.max_position_embeddings,
        embedding_width: None,
        positions: PositionsConfig::Places(settings.max_position_embeddings),
        segments: 0,
        transformer: settings.transformer(file)?.with_mask(mask),
        names: &TEXT_NAMES,
    })
}

/// The token whose vector stands for the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// The first with the largest number. Configurations from before transformers 4.31 say 2 for the token
    /// that ends a text, which is wrong; in them it is the vocabulary's last.
    Largest,
    /// The first of this number, or the text's first where it has none.
    First(u32),
}

/// The text tower's settings.
#[derive(Debug, Clone)]
pub(crate) struct TextConfig {
    pub(crate) tower: TextTowerConfig,
    end: End,
}

impl TextConfig {
    /// Reads a `text_config`, or the whole `config.json` of a text tower alone.
    pub(crate) fn read(file: &Path, config: &Value) -> Result<Self> {
        let settings = TextSettings::read(file, text_defaults(), config)?;
        let end = config.get("eos_token_id").filter(|id| !id.is_null());
        let end = match end.map(Value::as_u64) {
            None => End::First(49407),
            Some(Some(2)) => End::Largest,
            Some(Some(id)) if id < settings.vocab_size as u64 => End::First(id as u32),
            Some(_) => return Err(invalid(file, "eos_token_id must be the number of a token")),
        };
        Ok(Self { tower: text_tower(file, &settings, AttentionMask::Causal)?, end })
    }

    /// The same tower in the files of OpenCLIP, whose tokens see those before them alone or all. A text ends at the first
    /// token with the largest number.
    pub(crate) fn of_open_clip(self, mask: AttentionMask) -> Self {
        let TextTowerConfig { transformer, .. } = self.tower;
        let transformer = transformer.with_mask(mask);
        let tower = TextTowerConfig { transformer, names: &OPEN_CLIP_TEXT_NAMES, ..self.tower };
        Self { tower, end: End::Largest }
    }

    /// Bytes that a pass over so many tokens needs besides the weights.
    pub(crate) fn scratch(&self, tokens: usize) -> Bytes {
        self.tower.transformer.scratch(tokens, self.tower.context)
    }

    /// Loads the tower from the tensors that begin with `name`, which is empty or ends with a dot.
    pub(crate) fn load(&self, reader: &WeightReader<'_>, name: &str) -> Result<ClipText> {
        let transformer = &self.tower.transformer;
        let tower =
            self.tower.load(&SafeTensors::new(reader, name, transformer.workload), reader.device())?;
        Ok(ClipText { tower, end: self.end, width: transformer.width })
    }
}

/// The text tower and where it is pooled.
pub(crate) struct ClipText {
    pub(crate) tower: TextTower,
    end: End,
    width: usize,
}

impl ClipText {
    /// One row for each text out of `hidden`, `(tokens, width)`: that of the token which ends it. Padding
    /// behind the end changes nothing.
    pub(crate) fn pool(&self, hidden: &Tensor, ids: &[u32], lengths: &[usize]) -> Result<Tensor> {
        let places = starts(lengths).zip(lengths).map(|(start, length)| {
            let text = ids.get(start..start + length).unwrap_or_default();
            start + self.end.place(text)
        });
        pick(hidden, places)
    }

    /// Length of a token's vector.
    pub(crate) fn width(&self) -> usize {
        self.width
    }
}

impl End {
    fn place(self, text: &[u32]) -> usize {
        let wanted = match self {
            Self::Largest => text.iter().copied().max().unwrap_or(0),
            Self::First(id) => id,
        };
        text.iter().position(|id| *id == wanted).unwrap_or(0)
    }
}

/// A projection into the space that images and texts share. It has no bias.
pub(crate) struct Projection(Linear);

impl Projection {
    /// Loads `{name}.weight`, `(out_dim, in_dim)`.
    pub(crate) fn load(reader: &WeightReader<'_>, name: &str, out_dim: usize, in_dim: usize) -> Result<Self> {
        let tensors = SafeTensors::new(reader, "", Workload::WholeSequences);
        Ok(Self(tensors.linear(name, out_dim, in_dim, Bias::No)?))
    }

    /// Loads the tensor `name`, `(in_dim, out_dim)`, as OpenCLIP has it.
    pub(crate) fn load_columns(
        reader: &WeightReader<'_>,
        name: &str,
        out_dim: usize,
        in_dim: usize,
    ) -> Result<Self> {
        let weight = reader.tensor(name, &[in_dim, out_dim])?.t()?.contiguous()?;
        Ok(Self(Linear::Gemm(Dense::new(&weight, None)?)))
    }

    /// `(rows, in_dim)` to `(rows, out_dim)`.
    pub(crate) fn forward(&self, rows: &Tensor) -> Result<Tensor> {
        self.0.forward(rows, Activation::Identity)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_pooled_at_its_end() {
        assert_eq!(End::Largest.place(&[5, 9, 3, 9]), 1);
        assert_eq!(End::First(3).place(&[5, 9, 3, 9]), 2);
        assert_eq!(End::First(7).place(&[5, 9, 3, 9]), 0);
        assert_eq!(End::Largest.place(&[]), 0);
    }

    #[test]
    fn the_end_is_read_as_the_reference_reads_it() {
        let file = Path::new("config.json");
        let end = |config: Value| TextConfig::read(file, &config).map(|config| config.end);
        assert_eq!(end(json!({})).unwrap(), End::First(49407));
        assert_eq!(end(json!({"eos_token_id": 2})).unwrap(), End::Largest);
        assert_eq!(end(json!({"eos_token_id": 7})).unwrap(), End::First(7));
        assert!(end(json!({"eos_token_id": 49408})).is_err());
        assert!(end(json!({"eos_token_id": "end"})).is_err());
    }
}
