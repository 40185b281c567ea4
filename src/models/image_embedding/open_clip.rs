//! CLIP in the files of OpenCLIP (`open_clip_config.json`): images by its vision transformer, or by a network of timm that
//! candle-transformers has (FastViT, which makes MobileCLIP of it), and texts by its own transformer, in one space.
//! `encode_image` and `encode_text` of open_clip_torch.

use std::path::Path;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use model_actors::{Bytes, LoadContext};
use serde::Deserialize;
use serde_json::{Value, json};

#[cfg(feature = "transformers")]
use super::fast_vit;
use super::{Architecture, Encoder, ImageSide, ImageSize, Padding, TextSide, Watch};
use crate::architecture::{Family, parse, refuse_listed};
use crate::device::ComputeThreads;
use crate::error::Result;
use crate::kernels::AttentionMask;
use crate::models::config_file::{MAX_SIDE, invalid, unsupported};
use crate::models::towers::VisionTower;
use crate::models::towers::clip::{ClipText, Projection, TextConfig, VisionConfig};
use crate::models::transformer::{Norm, SafeTensors};
use crate::preprocessing::{Preprocessing, Processor};
use crate::weights::WeightFiles;

/// The family's entry in the list.
pub(super) const FAMILY: Family<Box<dyn Architecture>> = Family {
    model_type: "open_clip",
    architectures: &[],
    read: |file, config| Ok(Box::new(Config::read(file, config)?)),
};
/// The file that describes such a model.
pub(super) const FILE: &str = "open_clip_config.json";
/// Name of its weights.
const WEIGHTS: &str = "open_clip_model";

/// Settings that the towers have at one value only.
const FIXED: [(&str, &str); 17] = [
    ("ls_init_value", "null"),
    ("block_type", r#""default""#),
    ("qk_norm", "false"),
    ("scaled_cosine_attn", "false"),
    ("scale_heads", "false"),
    ("scale_attn_inner", "false"),
    ("scale_attn", "false"),
    ("scale_fc", "false"),
    ("attentional_pool", "false"),
    ("no_ln_pre", "false"),
    ("pos_embed_type", r#""learnable""#),
    ("embed_cls", "false"),
    ("proj_bias", "false"),
    ("proj_type", r#""linear""#),
    ("act_kwargs", "null"),
    ("norm_kwargs", "null"),
    ("hf_model_name", "null"),
];

#[derive(Deserialize)]
struct Model {
    embed_dim: usize,
    #[serde(default)]
    quick_gelu: bool,
    /// Both ways to name the tensors of texts are read, whatever it says.
    #[serde(default, rename = "custom_text")]
    _custom_text: bool,
    vision_cfg: Value,
    text_cfg: Value,
}

/// `vision_cfg`.
#[derive(Deserialize)]
#[serde(default)]
struct VisionSettings {
    layers: usize,
    width: usize,
    head_width: usize,
    mlp_ratio: f64,
    patch_size: usize,
    image_size: usize,
    pool_type: String,
    timm_model_name: Option<String>,
}

impl Default for VisionSettings {
    fn default() -> Self {
        Self {
            layers: 12,
            width: 768,
            head_width: 64,
            mlp_ratio: 4.0,
            patch_size: 16,
            image_size: 224,
            pool_type: "tok".to_owned(),
            timm_model_name: None,
        }
    }
}

/// `text_cfg`.
#[derive(Deserialize)]
#[serde(default)]
struct TextSettings {
    context_length: usize,
    vocab_size: usize,
    width: usize,
    heads: usize,
    layers: usize,
    mlp_ratio: f64,
    no_causal_mask: bool,
    pool_type: String,
    hf_tokenizer_name: Option<String>,
    tokenizer_kwargs: Option<Value>,
}

impl Default for TextSettings {
    fn default() -> Self {
        Self {
            context_length: 77,
            vocab_size: 49_408,
            width: 512,
            heads: 8,
            layers: 12,
            mlp_ratio: 4.0,
            no_causal_mask: false,
            pool_type: "argmax".to_owned(),
            hf_tokenizer_name: None,
            tokenizer_kwargs: None,
        }
    }
}

/// The network for images.
enum Images {
    Transformer(Box<VisionConfig>),
    #[cfg(feature = "transformers")]
    FastVit(fast_vit::Config),
}

struct Config {
    images: Images,
    image_size: usize,
    preprocessing: Preprocessing,
    text: TextConfig,
    mask: AttentionMask,
    dimensions: usize,
}

/// Width of the feed-forward network, as Python computes it.
fn intermediate(file: &Path, width: usize, ratio: f64) -> Result<usize> {
    // The cast saturates, and so large a side is refused.
    match (width as f64 * ratio) as usize {
        side @ 1..=MAX_SIDE => Ok(side),
        side => Err(invalid(file, format!("mlp_ratio makes {side} of {width}; 1 to {MAX_SIDE} are allowed"))),
    }
}

impl Config {
    fn read(file: &Path, config: &Value) -> Result<Self> {
        let model: Model = parse(file, config.get("model_cfg").unwrap_or(config))?;
        if !(1..=MAX_SIDE).contains(&model.embed_dim) {
            return Err(invalid(file, format!("embed_dim must be 1 to {MAX_SIDE}")));
        }
        let activation = if model.quick_gelu { "quick_gelu" } else { "gelu" };
        let vision: VisionSettings = parse(file, &model.vision_cfg)?;
        let images = match &vision.timm_model_name {
            Some(name) => images_of_timm(file, name, &model)?,
            None => images_of_transformer(file, &vision, &model.vision_cfg, activation)?,
        };
        let text: TextSettings = parse(file, &model.text_cfg)?;
        let (mask, text) = (mask_of(&text), text_tower(file, &text, &model.text_cfg, activation)?);
        let preprocessing = config.get("preprocess_cfg").unwrap_or(&Value::Null);
        Ok(Self {
            images,
            image_size: vision.image_size,
            preprocessing: Preprocessing::of_open_clip(file, preprocessing, vision.image_size)?,
            text: text.of_open_clip(mask),
            mask,
            dimensions: model.embed_dim,
        })
    }

    /// Path of the tensors of texts.
    fn text_path(&self, weights: &WeightFiles) -> &'static str {
        if weights.contains("text.ln_final.weight") { "text." } else { "" }
    }
}

fn mask_of(text: &TextSettings) -> AttentionMask {
    if text.no_causal_mask { AttentionMask::Full } else { AttentionMask::Causal }
}

/// Refuses settings of a tower that it has at one value only.
fn check_fixed(file: &Path, settings: &Value, pool: (&str, &'static str)) -> Result<()> {
    refuse_listed(file, settings, &FIXED)?;
    match pool {
        (found, only) if found != only => Err(unsupported(file, "pool_type", found, only)),
        _ => Ok(()),
    }
}

fn images_of_transformer(
    file: &Path,
    vision: &VisionSettings,
    settings: &Value,
    activation: &str,
) -> Result<Images> {
    check_fixed(file, settings, (vision.pool_type.as_str(), "tok"))?;
    let heads = vision.width / vision.head_width.max(1);
    if heads == 0 || heads.checked_mul(vision.head_width) != Some(vision.width) {
        let (width, head) = (vision.width, vision.head_width);
        return Err(invalid(file, format!("width {width} is no whole number of heads of {head}")));
    }
    let config = json!({
        "hidden_size": vision.width, "intermediate_size": intermediate(file, vision.width, vision.mlp_ratio)?,
        "num_hidden_layers": vision.layers, "num_attention_heads": heads, "image_size": vision.image_size,
        "patch_size": vision.patch_size, "hidden_act": activation,
    });
    Ok(Images::Transformer(Box::new(VisionConfig::read(file, &config)?.of_open_clip())))
}

#[cfg(feature = "transformers")]
fn images_of_timm(file: &Path, name: &str, model: &Model) -> Result<Images> {
    let settings = &model.vision_cfg;
    refuse_listed(
        file,
        settings,
        &[("timm_pool", r#""avg""#), ("timm_proj", "null"), ("timm_proj_bias", "false")],
    )?;
    let image_size = settings.get("image_size").and_then(Value::as_u64).unwrap_or(224);
    fast_vit::Config::read(file, name, image_size, model.embed_dim).map(Images::FastVit)
}

#[cfg(not(feature = "transformers"))]
fn images_of_timm(file: &Path, name: &str, _: &Model) -> Result<Images> {
    Err(unsupported(file, "timm_model_name", name, "none in a build without the feature `transformers`"))
}

fn text_tower(file: &Path, text: &TextSettings, settings: &Value, activation: &str) -> Result<TextConfig> {
    check_fixed(file, settings, (text.pool_type.as_str(), "argmax"))?;
    if let Some(name) = text.hf_tokenizer_name.as_deref().filter(|name| !name.is_empty()) {
        return Err(unsupported(file, "hf_tokenizer_name", name, "null, for the tokenizer of CLIP"));
    }
    if let Some(settings) = text.tokenizer_kwargs.as_ref().filter(|settings| !settings.is_null()) {
        return Err(unsupported(file, "tokenizer_kwargs", &settings.to_string(), "null"));
    }
    let config = json!({
        "vocab_size": text.vocab_size, "hidden_size": text.width,
        "intermediate_size": intermediate(file, text.width, text.mlp_ratio)?, "num_hidden_layers": text.layers,
        "num_attention_heads": text.heads, "max_position_embeddings": text.context_length,
        "hidden_act": activation, "eos_token_id": 2,
    });
    TextConfig::read(file, &config)
}

impl Architecture for Config {
    fn dimensions(&self) -> usize {
        self.dimensions
    }

    fn images(&self) -> Option<ImageSide> {
        let (patch, leading) = match &self.images {
            Images::Transformer(vision) => (vision.settings.patch_size, 1),
            #[cfg(feature = "transformers")]
            Images::FastVit(_) => (fast_vit::PATCH, 0),
        };
        let size = ImageSize::Square(self.image_size);
        Some(ImageSide { processor: Processor::Clip, size, patch, leading })
    }

    fn preprocessing(&self) -> Option<Preprocessing> {
        Some(self.preprocessing.clone())
    }

    fn weights(&self) -> &'static str {
        WEIGHTS
    }

    fn texts(&self) -> Option<TextSide> {
        Some(TextSide {
            vocabulary: self.text.tower.vocabulary,
            longest: self.text.tower.context,
            padding: match self.mask {
                // Padding is seen, and the reference has zeros there.
                AttentionMask::Full => Padding::ToLongestWith(0),
                _ => Padding::None,
            },
        })
    }

    fn uses(&self, tensor: &str) -> bool {
        !self.has_no_effect(tensor)
    }

    fn has_no_effect(&self, tensor: &str) -> bool {
        ["logit_scale", "logit_bias"].contains(&tensor) || tensor.ends_with(".num_batches_tracked")
    }

    fn scratch(&self, rows: usize, longest: usize) -> Bytes {
        let images = match &self.images {
            Images::Transformer(vision) => vision.transformer.scratch(rows, longest),
            #[cfg(feature = "transformers")]
            Images::FastVit(network) => network.scratch(self.image_size),
        };
        images.max(self.text.tower.transformer.scratch(rows, longest))
    }

    fn load(
        &self,
        weights: &WeightFiles,
        device: &Device,
        context: &LoadContext,
    ) -> Result<Arc<dyn Encoder>> {
        let reader = weights.reader("", device, context);
        let images = match &self.images {
            Images::Transformer(vision) => {
                let tensors = SafeTensors::new(&reader, "visual.", vision.transformer.workload);
                let width = vision.transformer.width;
                LoadedImages::Transformer(Box::new(Tower {
                    tower: vision.load(&tensors)?,
                    norm: vision.load_last_norm(&tensors)?,
                    projection: Projection::load_columns(&reader, "visual.proj", self.dimensions, width)?,
                }))
            }
            #[cfg(feature = "transformers")]
            Images::FastVit(network) => {
                LoadedImages::FastVit(network.load("visual.trunk", weights, device, context)?)
            }
        };
        let path = self.text_path(weights);
        let text = self.text.load(&reader, path)?;
        let name = format!("{path}text_projection");
        let projection = Projection::load_columns(&reader, &name, self.dimensions, text.width())?;
        Ok(Arc::new(OpenClip { images, text, projection }))
    }
}

/// A loaded vision transformer with its projection.
struct Tower {
    tower: VisionTower,
    /// Norm of the class token after the last block.
    norm: Norm,
    projection: Projection,
}

enum LoadedImages {
    Transformer(Box<Tower>),
    #[cfg(feature = "transformers")]
    FastVit(fast_vit::FastVit),
}

struct OpenClip {
    images: LoadedImages,
    text: ClipText,
    projection: Projection,
}

impl Encoder for OpenClip {
    fn threads(&self, threads: usize) -> Result<ComputeThreads> {
        match &self.images {
            LoadedImages::Transformer(_) => ComputeThreads::for_kernels(threads),
            #[cfg(feature = "transformers")]
            LoadedImages::FastVit(_) => ComputeThreads::pool(threads),
        }
    }

    fn images(&self, images: &[Tensor], watch: &Watch<'_>) -> Result<Tensor> {
        match &self.images {
            LoadedImages::Transformer(images_side) => {
                let Tower { tower, norm, projection } = &**images_side;
                projection.forward(&norm.forward(&tower.forward(images, watch)?.first()?)?)
            }
            #[cfg(feature = "transformers")]
            LoadedImages::FastVit(network) => network.forward(images, watch),
        }
    }

    fn texts(&self, ids: &[u32], lengths: &[usize]) -> Result<Tensor> {
        let hidden = self.text.tower.encode(ids, lengths, || Ok(()))?;
        self.projection.forward(&self.text.pool(&hidden, ids, lengths)?)
    }
}
