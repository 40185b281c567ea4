//! Chinese-CLIP of candle-transformers (Yang et al., 2022): CLIP's images, and Chinese texts by BERT's encoder, in one space.
//! `get_image_features` and `get_text_features` of `ChineseCLIPModel` in transformers. Texts go through one by one.

use std::path::Path;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use candle_transformers::models::chinese_clip::text_model::{ChineseClipTextConfig, PositionEmbeddingType};
use candle_transformers::models::chinese_clip::vision_model::ChineseClipVisionConfig;
use candle_transformers::models::chinese_clip::{Activation, ChineseClipConfig, ChineseClipModel};
use model_actors::{Bytes, LoadContext};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Architecture, Encoder, ImageSide, ImageSize, Padding, TextSide, Watch, encoder_scratch};
use crate::architecture::{Family, parse};
use crate::device::ComputeThreads;
use crate::error::Result;
use crate::models::config_file::{MAX_LAYERS, MAX_SIDE, invalid, unsupported, with_defaults};
use crate::models::transformers::build;
use crate::preprocessing::Processor;
use crate::weights::WeightFiles;

/// The family's entry in the list.
pub(super) const FAMILY: Family<Box<dyn Architecture>> = Family {
    model_type: "chinese_clip",
    architectures: &["ChineseCLIPModel"],
    read: |file, config| Ok(Box::new(Config::read(file, config)?)),
};

struct Config(ChineseClipConfig);

/// Settings of both towers, under the names of transformers.
#[derive(Deserialize)]
struct Tower {
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    hidden_act: String,
    layer_norm_eps: f64,
}

#[derive(Deserialize)]
struct Texts {
    vocab_size: usize,
    max_position_embeddings: usize,
    type_vocab_size: usize,
}

#[derive(Deserialize)]
struct Images {
    num_channels: usize,
    image_size: usize,
    patch_size: usize,
}

impl Tower {
    fn read(file: &Path, config: &Value, sides: &[usize]) -> Result<(Self, Activation)> {
        let tower: Self = parse(file, config)?;
        let own = [tower.hidden_size, tower.intermediate_size, tower.num_attention_heads];
        if let Some(side) = own.iter().chain(sides).find(|side| !(1..=MAX_SIDE).contains(*side)) {
            return Err(invalid(file, format!("a side is {side}; 1 to {MAX_SIDE} are allowed")));
        }
        let (width, heads, layers) = (tower.hidden_size, tower.num_attention_heads, tower.num_hidden_layers);
        if !(1..=MAX_LAYERS).contains(&layers) || !width.is_multiple_of(heads) {
            let reason = format!("{layers} layers of {heads} heads over {width} numbers are not supported");
            return Err(invalid(file, reason));
        }
        let activation = match tower.hidden_act.as_str() {
            "quick_gelu" => Activation::QuickGelu,
            "gelu" => Activation::Gelu,
            "gelu_new" => Activation::GeluNew,
            "relu" => Activation::Relu,
            other => return Err(unsupported(file, "hidden_act", other, "quick_gelu, gelu, gelu_new, relu")),
        };
        Ok((tower, activation))
    }
}

impl Config {
    fn read(file: &Path, config: &Value) -> Result<Self> {
        // Files have the settings a second time under a name with `_dict`, and transformers takes that then.
        let part = |name: &str, defaults| {
            let old = config.get(format!("{name}_dict")).filter(|value| !value.is_null());
            with_defaults(old.or(config.get(name)).unwrap_or(&Value::Null), defaults)
        };
        let usual = json!({
            "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
        });
        let texts = json!({
            "hidden_act": "gelu", "layer_norm_eps": 1e-12, "vocab_size": 30522, "max_position_embeddings": 512,
            "type_vocab_size": 2,
        });
        let images = json!({
            "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "num_channels": 3, "image_size": 224, "patch_size": 32,
        });
        let text = with_defaults(&part("text_config", texts), usual.clone());
        let vision = with_defaults(&part("vision_config", images), usual);
        #[derive(Deserialize)]
        struct Whole {
            projection_dim: usize,
        }
        let Whole { projection_dim } = parse(file, &with_defaults(config, json!({"projection_dim": 512})))?;
        let (texts, images): (Texts, Images) = (parse(file, &text)?, parse(file, &vision)?);
        let sides = [texts.vocab_size, texts.max_position_embeddings, texts.type_vocab_size, projection_dim];
        let (text, text_act) = Tower::read(file, &text, &sides)?;
        let (vision, vision_act) = Tower::read(file, &vision, &[images.image_size, images.patch_size])?;
        if images.num_channels != 3 || !images.image_size.is_multiple_of(images.patch_size) {
            return Err(invalid(
                file,
                "images of other than three channels and whole patches are not supported",
            ));
        }
        Ok(Self(ChineseClipConfig {
            text_config: ChineseClipTextConfig {
                vocab_size: texts.vocab_size,
                hidden_size: text.hidden_size,
                num_hidden_layers: text.num_hidden_layers,
                num_attention_heads: text.num_attention_heads,
                intermediate_size: text.intermediate_size,
                hidden_act: text_act,
                hidden_dropout_prob: 0.0,
                attention_probs_dropout_prob: 0.0,
                max_position_embeddings: texts.max_position_embeddings,
                type_vocab_size: texts.type_vocab_size,
                initializer_range: 0.02,
                initializer_factor: 1.0,
                layer_norm_eps: text.layer_norm_eps,
                pad_token_id: 0,
                position_embedding_type: PositionEmbeddingType::Absolute,
                use_cache: false,
            },
            vision_config: ChineseClipVisionConfig {
                hidden_size: vision.hidden_size,
                intermediate_size: vision.intermediate_size,
                projection_dim,
                num_hidden_layers: vision.num_hidden_layers,
                num_attention_heads: vision.num_attention_heads,
                num_channels: 3,
                image_size: images.image_size,
                patch_size: images.patch_size,
                hidden_act: vision_act,
                layer_norm_eps: vision.layer_norm_eps,
                attention_dropout: 0.0,
                initializer_range: 0.02,
                initializer_factor: 1.0,
            },
            projection_dim,
            // Of training, and of the products of vectors, which are not made here.
            logit_scale_init_value: 2.6592,
            image_size: images.image_size,
        }))
    }
}

impl Architecture for Config {
    fn dimensions(&self) -> usize {
        self.0.projection_dim
    }

    fn images(&self) -> Option<ImageSide> {
        Some(ImageSide {
            processor: Processor::Clip,
            size: ImageSize::Square(self.0.vision_config.image_size),
            patch: self.0.vision_config.patch_size,
            leading: 1,
        })
    }

    fn texts(&self) -> Option<TextSide> {
        let ChineseClipTextConfig { vocab_size, max_position_embeddings, .. } = self.0.text_config;
        Some(TextSide { vocabulary: vocab_size, longest: max_position_embeddings, padding: Padding::None })
    }

    fn uses(&self, tensor: &str) -> bool {
        !self.has_no_effect(tensor)
    }

    fn has_no_effect(&self, tensor: &str) -> bool {
        tensor.ends_with("position_ids") || tensor.starts_with("text_model.pooler.")
    }

    fn scratch(&self, rows: usize, longest: usize) -> Bytes {
        let ChineseClipConfig { text_config: text, vision_config: vision, .. } = &self.0;
        let texts = (text.num_attention_heads, text.hidden_size, text.intermediate_size);
        let images = (vision.num_attention_heads, vision.hidden_size, vision.intermediate_size);
        encoder_scratch(texts, rows, longest).max(encoder_scratch(images, rows, longest))
    }

    fn load(
        &self,
        weights: &WeightFiles,
        device: &Device,
        context: &LoadContext,
    ) -> Result<Arc<dyn Encoder>> {
        let model = build(weights, device, context, |weights| ChineseClipModel::new(weights, &self.0))?;
        Ok(Arc::new(ChineseClip { model, device: device.clone() }))
    }
}

struct ChineseClip {
    model: ChineseClipModel,
    device: Device,
}

impl Encoder for ChineseClip {
    fn threads(&self, threads: usize) -> Result<ComputeThreads> {
        ComputeThreads::pool(threads)
    }

    fn images(&self, images: &[Tensor], watch: &Watch<'_>) -> Result<Tensor> {
        watch()?;
        let vectors = self.model.get_image_features(&Tensor::stack(images, 0)?)?;
        watch()?;
        Ok(vectors)
    }

    fn texts(&self, ids: &[u32], lengths: &[usize]) -> Result<Tensor> {
        let (mut rest, mut vectors) = (ids, Vec::with_capacity(lengths.len()));
        for length in lengths {
            let (text, others) = rest.split_at_checked(*length).unwrap_or((rest, &[]));
            rest = others;
            let tokens = Tensor::new(text, &self.device)?.unsqueeze(0)?;
            vectors.push(self.model.get_text_features(&tokens, None, None)?);
        }
        Ok(Tensor::cat(&vectors, 0)?)
    }
}
