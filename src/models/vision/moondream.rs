//! Moondream 2, in the layout that its repository has had since January 2025 (`HfMoondream`): a vision
//! transformer over the whole picture and over crops that overlap, stitched together and averaged down to one
//! grid, and a text model of parallel layers. Follows the repository's own code (`moondream.py`, `vision.py`,
//! `text.py`, `image_crops.py`), where it resizes with Pillow. The revisions of 2024, which are laid out
//! otherwise, are not read.

mod crops;
mod text;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{Device, Tensor};
use model_actors::{Bytes, LoadContext, Picture};
use serde::Deserialize;
use serde_json::{Value, json};

use super::asked::Asked;
use super::chat::part;
use super::language_model::{ImagePlace, LanguageModel};
use super::{
    Architecture, ImageRows, Network, Prompt, SmallFiles, StepwiseTower, Unfinished, WorkerMemory, misfit,
};
use crate::architecture::{Family, parse};
use crate::error::{Error, Result};
use crate::kernels::{Activation, Linear};
use crate::models::config_file::{invalid, unsupported, with_defaults, without_nulls};
use crate::models::decoder::DecoderConfig;
use crate::models::towers::{Patches, Positions, Resampling, VisionTower};
use crate::models::transformer::{
    self, Bias, Names, Norm, NormPlacement, Projection, QkvNames, SafeTensors, Sizes, TransformerConfig,
    UpNames, check_side,
};
use crate::preprocessing::Scaling;
use crate::tokens::{Specials, Tokens};
use crate::weights::WeightFiles;
use crops::Crops;

/// The family's entry in the list.
pub(super) const FAMILY: Family<Box<dyn Architecture>> = Family {
    model_type: "moondream1",
    architectures: &["HfMoondream"],
    read: |file, config| Ok(Box::new(Config::read(file, config)?)),
};

const EPSILON: f64 = 1e-5;
/// GPT-2's number for the token that ends a text: that tokenizer's questions are put in words.
const GPT2_END: u32 = 50256;

/// Names of the vision tower's blocks.
const BLOCKS: Names = Names {
    blocks: "blocks.",
    attention_norm: "ln1",
    qkv: QkvNames::Fused("attn.qkv"),
    out_proj: "attn.proj",
    feed_forward_norm: "ln2",
    feed_forward: "mlp.",
    up: UpNames::Dense("fc1"),
    down: "fc2",
    ..Names::NONE
};

/// `vision` in the `config` of `config.json`, whose defaults are those of the published `config.py`.
#[derive(Debug, Clone, Deserialize)]
struct VisionConfig {
    enc_dim: usize,
    enc_patch_size: usize,
    enc_n_layers: usize,
    enc_ff_dim: usize,
    enc_n_heads: usize,
    proj_inner_dim: usize,
    proj_out_dim: usize,
    crop_size: usize,
    in_channels: usize,
    max_crops: usize,
    overlap_margin: usize,
}

fn vision_defaults() -> Value {
    json!({
        "enc_dim": 1152, "enc_patch_size": 14, "enc_n_layers": 27, "enc_ff_dim": 4304, "enc_n_heads": 16,
        "proj_inner_dim": 8192, "proj_out_dim": 2048, "crop_size": 378, "in_channels": 3, "max_crops": 12,
        "overlap_margin": 4
    })
}

/// The tokens around a question.
#[derive(Debug, Clone, Deserialize)]
struct Phrases {
    bos_id: u32,
    eos_id: u32,
    templates: Templates,
}

#[derive(Debug, Clone, Deserialize)]
struct Templates {
    caption: Option<Caption>,
    query: Query,
}

#[derive(Debug, Clone, Deserialize)]
struct Caption {
    normal: Vec<u32>,
}

#[derive(Debug, Clone, Deserialize)]
struct Query {
    prefix: Vec<u32>,
    suffix: Vec<u32>,
}

impl Phrases {
    /// Those of the tokenizer that is there. The published `config.json` names none, and the repository has
    /// had two: GPT-2's until March 2025, and since then one whose first token ends a text.
    fn of(tokens: &Tokens) -> Self {
        let phrases = |end: u32, caption: [u32; 5], prefix: &[u32], suffix: &[u32]| Self {
            bos_id: end,
            eos_id: end,
            templates: Templates {
                caption: Some(Caption { normal: caption.to_vec() }),
                query: Query { prefix: prefix.to_vec(), suffix: suffix.to_vec() },
            },
        };
        match tokens.id("<|endoftext|>") {
            Some(GPT2_END) => {
                phrases(GPT2_END, [198, 198, 24334, 1159, 25], &[198, 198, 24361, 25], &[198, 198, 33706, 25])
            }
            _ => phrases(0, [1, 32708, 2, 6382, 3], &[1, 15381, 2], &[3]),
        }
    }

    fn all(&self) -> impl Iterator<Item = u32> {
        let Templates { caption, query } = &self.templates;
        let caption = caption.iter().flat_map(|caption| &caption.normal);
        let words = caption.chain(&query.prefix).chain(&query.suffix).copied();
        words.chain([self.bos_id, self.eos_id])
    }
}

struct Config {
    file: PathBuf,
    vision: VisionConfig,
    tower: TransformerConfig,
    crops: Crops,
    text: DecoderConfig,
    phrases: Option<Phrases>,
}

impl Config {
    fn read(file: &Path, config: &Value) -> Result<Self> {
        let config = part(config, "config");
        if !config.is_object() && !config.is_null() {
            return Err(invalid(file, "config is no table"));
        }
        let vision = with_defaults(&without_nulls(part(config, "vision")), vision_defaults());
        let vision: VisionConfig = parse(file, &vision)?;
        let text = text::read(file, part(config, "text"))?;
        let sizes = Sizes {
            width: vision.enc_dim,
            intermediate: vision.enc_ff_dim,
            layers: vision.enc_n_layers,
            heads: vision.enc_n_heads,
        };
        let (placement, activation) = (NormPlacement::Pre, Activation::GeluTanh);
        let tower = TransformerConfig::encoder(file, sizes, placement, activation, EPSILON)?;
        if vision.in_channels != 3 || vision.proj_out_dim != text.width() {
            return Err(invalid(file, "in_channels is not 3, or proj_out_dim is not the text's dim"));
        }
        check_side(file, "proj_inner_dim", vision.proj_inner_dim)?;
        let VisionConfig { crop_size, enc_patch_size, overlap_margin, max_crops, .. } = vision;
        let crops = Crops::new(crop_size, enc_patch_size, overlap_margin, max_crops).ok_or_else(|| {
            invalid(file, "crop_size, enc_patch_size, overlap_margin and max_crops do not fit")
        })?;
        // The rows that see each other are those of the image and the token before it.
        let seen = part(part(config, "text"), "prefix_attn");
        if !seen.is_null() && seen.as_u64() != Some((crops.grid * crops.grid + 1) as u64) {
            let found = seen.to_string();
            return Err(unsupported(file, "prefix_attn", &found, "one more than the image's patches"));
        }
        let phrases = match part(config, "tokenizer") {
            Value::Null => None,
            phrases => Some(parse(file, phrases)?),
        };
        Ok(Self { file: file.to_owned(), tower, crops, text, phrases, vision })
    }

    fn load_tower(&self, tensors: &SafeTensors<'_>) -> Result<VisionTower> {
        let (width, side, grid) = (self.tower.width, self.vision.enc_patch_size, self.crops.grid);
        let weight = tensors.tensor("patch_emb.weight", &[width, 3 * side * side])?;
        let bias = tensors.tensor("patch_emb.bias", &[width])?;
        let positions = tensors.tensor("pos_emb", &[1, grid * grid, width])?.squeeze(0)?;
        Ok(VisionTower {
            patches: Patches { linear: Linear::new(&weight, Some(bias))?, side },
            leading: None,
            positions: Positions::new(positions, grid, Resampling::Never),
            first_norm: None,
            transformer: transformer::load(&self.tower, &BLOCKS, tensors, tensors.device())?,
        })
    }
}

impl Architecture for Config {
    fn complete(&mut self, _: &SmallFiles<'_>, _: &LoadContext) -> Result<()> {
        Ok(())
    }

    fn text(&self) -> &DecoderConfig {
        &self.text
    }

    fn context(&self) -> usize {
        self.text.context
    }

    fn uses(&self, tensor: &str) -> bool {
        let name = tensor.strip_prefix("model.").unwrap_or(tensor);
        name.starts_with("vision.") || name.starts_with("text.")
    }

    fn packs(&self, _: &str) -> bool {
        false
    }

    fn has_no_effect(&self, tensor: &str) -> bool {
        // What points at places, and draws boxes around them, says nothing.
        let name = tensor.strip_prefix("model.").unwrap_or(tensor);
        name.starts_with("region.") || self.text.has_no_effect(tensor)
    }

    fn per_worker(&self, room: WorkerMemory) -> Bytes {
        let rows = self.crops.grid * self.crops.grid;
        let kept = (rows * (self.crops.most + 1)) as u64;
        let kept = Bytes(kept.saturating_mul(8).saturating_mul(self.tower.width as u64));
        let text = self.text.scratch(room.rows.max(rows + 1), room.longest)
            + self.text.cache_bytes(room.held, room.sequences);
        self.tower.scratch(rows, rows) + kept + text
    }

    fn load(
        &self,
        tokens: &Tokens,
        weights: &WeightFiles,
        device: &Device,
        context: &LoadContext,
    ) -> Result<Arc<dyn Network>> {
        let phrases = self.phrases.clone().unwrap_or_else(|| Phrases::of(tokens));
        if let Some(token) = phrases.all().find(|token| *token as usize >= self.text.vocabulary) {
            let reason =
                format!("the token {token} of a template is not below vocab_size {}", self.text.vocabulary);
            return Err(invalid(&self.file, reason));
        }
        let prefix = if weights.contains("model.text.wte") { "model." } else { "" };
        let reader = weights.reader(prefix, device, context);
        let vision = SafeTensors::new(&reader, "vision.", self.tower.workload);
        let VisionConfig { enc_dim, proj_inner_dim, proj_out_dim, .. } = self.vision;
        Ok(Arc::new(Moondream {
            tower: self.load_tower(&vision)?,
            last_norm: vision.layer_norm("post_ln", enc_dim, EPSILON)?,
            first: vision.linear("proj_mlp.fc1", proj_inner_dim, 2 * enc_dim, Bias::Yes)?,
            second: vision.linear("proj_mlp.fc2", proj_out_dim, proj_inner_dim, Bias::Yes)?,
            language_model: LanguageModel {
                decoder: self.text.load(weights, device, context)?,
                image: ImagePlace::InPrefix,
            },
            crops: self.crops,
            ends: [phrases.eos_id],
            phrases,
            scaling: Scaling::new(1.0 / 255.0, [0.5; 3], [0.5; 3]),
            device: device.clone(),
        }))
    }
}

struct Moondream {
    tower: VisionTower,
    last_norm: Norm,
    first: Projection,
    second: Projection,
    language_model: LanguageModel,
    crops: Crops,
    ends: [u32; 1],
    phrases: Phrases,
    scaling: Scaling,
    device: Device,
}

impl Moondream {
    /// The tokens after the image: the question, or without one, the request for a caption.
    fn phrase(&self, tokens: &Tokens, question: &str) -> Result<Vec<u32>> {
        let Templates { caption, query } = &self.phrases.templates;
        if !question.is_empty() {
            // As the code that came with GPT-2's tokenizer; its successor's puts no space before the question.
            let space = if self.phrases.bos_id == GPT2_END { " " } else { "" };
            let question = tokens.encode_written(&format!("{space}{question}"), Specials::Added)?;
            return Ok([query.prefix.as_slice(), &question, &query.suffix].concat());
        }
        match caption {
            Some(caption) => Ok(caption.normal.clone()),
            None => Err(Error::InvalidInput("the question is empty; this model needs one".to_owned())),
        }
    }
}

impl Network for Moondream {
    fn ends(&self) -> &[u32] {
        &self.ends
    }

    fn prompt(&self, tokens: &Tokens, asked: &Asked<'_>) -> Result<Prompt> {
        let (sides, question) = asked.one("Moondream")?;
        let phrase = self.phrase(tokens, question)?;
        let rows = self.crops.grid * self.crops.grid;
        let mut tokens = vec![self.phrases.bos_id; 1 + rows];
        tokens.extend(phrase);
        let places = std::iter::once(1..1 + rows).collect();
        Ok(Prompt { tokens, places, sides: vec![sides] })
    }

    fn crops(&self, picture: &Picture, _: usize) -> Result<Vec<Tensor>> {
        let pictures = self.crops.cut(picture)?;
        pictures.iter().map(|picture| self.scaling.tensor(picture, &self.device)).collect()
    }

    fn tower(&self) -> &dyn StepwiseTower {
        &self.tower
    }

    fn keep(
        &self,
        layers: usize,
        hidden: &Tensor,
        _: &mut Option<Unfinished>,
    ) -> Result<Option<Vec<Tensor>>> {
        let at_end = layers == self.tower.depth();
        Ok(Some(if at_end { vec![self.last_norm.forward(hidden)?] } else { Vec::new() }))
    }

    fn image(&self, sides: (usize, usize), _: usize, kept: &[Vec<Tensor>]) -> Result<ImageRows> {
        let rows: Vec<Tensor> = kept.iter().flatten().cloned().collect();
        let (whole, parts) = rows.split_first().ok_or_else(misfit)?;
        let stitched = self.crops.stitch(&Tensor::cat(parts, 0)?, sides)?.to_device(&self.device)?;
        let both = Tensor::cat(&[whole, &stitched], 1)?;
        let rows = self.first.forward(&both, Activation::GeluTanh)?;
        Ok(ImageRows { rows: self.second.forward(&rows, Activation::Identity)?, deep: Vec::new() })
    }

    fn language_model(&self) -> &LanguageModel {
        &self.language_model
    }
}
