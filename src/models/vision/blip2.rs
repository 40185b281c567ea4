//! BLIP-2 (Li et al. 2023): BLIP's vision tower, of which a few learned queries take what they need, before the words
//! of an OPT or a T5. A question is what OPT's text begins with, as it is written; T5's encoder reads it, and its decoder
//! writes. Follows `modeling_blip_2.py` of transformers.

mod qformer;
mod text;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{Device, Tensor};
use model_actors::{Bytes, LoadContext, Picture};
use serde::Deserialize;
use serde_json::{Value, json};

use super::asked::Asked;
use super::blip;
use super::chat::part;
use super::language_model::{Answer, ImagePlace, LanguageModel};
use super::{
    Architecture, ImageRows, Network, Prompt, SmallFiles, StepwiseTower, Unfinished, WorkerMemory, misfit,
};
use crate::architecture::{Family, parse};
use crate::error::Result;
use crate::kernels::Activation;
use crate::models::config_file::{invalid, unsupported, with_defaults, without_nulls};
use crate::models::decoder::DecoderConfig;
use crate::models::generation_config::GenerationConfig;
use crate::models::t5::{T5Config, T5Encoder};
use crate::models::towers::{VisionSettings, VisionTower};
use crate::models::transformer::{Bias, Norm, Projection, SafeTensors, TransformerConfig, is_buffer};
use crate::preprocessing::Preprocessing;
use crate::tokens::{Specials, Tokens};
use crate::weights::WeightFiles;
use qformer::{QFormer, QFormerConfig};

/// The family's entry in the list.
pub(super) const FAMILY: Family<Box<dyn Architecture>> = Family {
    model_type: "blip-2",
    architectures: &["Blip2ForConditionalGeneration"],
    read: |file, config| Ok(Box::new(Config::read(file, config)?)),
};

#[derive(Deserialize)]
struct Settings {
    num_query_tokens: usize,
    /// Files of before it are refused by the reference too.
    image_token_index: u32,
    architectures: Option<Vec<String>>,
}

/// Settings of the tower beside those of every vision tower.
#[derive(Deserialize)]
struct Qkv {
    #[serde(default = "yes")]
    qkv_bias: bool,
}

fn yes() -> bool {
    true
}

fn vision_defaults() -> Value {
    json!({
        "hidden_size": 1408, "intermediate_size": 6144, "num_hidden_layers": 39, "num_attention_heads": 16,
        "num_channels": 3, "image_size": 224, "patch_size": 14, "hidden_act": "gelu", "layer_norm_eps": 1e-6
    })
}

/// `config.json`, with what the other small files say once they are read.
struct Config {
    file: PathBuf,
    vision: VisionSettings,
    tower: TransformerConfig,
    qformer: QFormerConfig,
    text: DecoderConfig,
    /// The whole of the text half where that has an encoder; its decoder is `text`.
    t5: Option<T5Config>,
    image_token: u32,
    rest: Option<(Preprocessing, GenerationConfig)>,
}

impl Config {
    fn read(file: &Path, config: &Value) -> Result<Self> {
        let settings = with_defaults(&without_nulls(config), json!({"num_query_tokens": 32}));
        let settings: Settings = parse(file, &settings)?;
        // All of BLIP-2 share one model type; the others match images with texts.
        if let Some(other) =
            settings.architectures.iter().flatten().find(|name| !name.ends_with("ConditionalGeneration"))
        {
            return Err(unsupported(file, "the architecture", other, "Blip2ForConditionalGeneration"));
        }
        let of_vision = with_defaults(&without_nulls(part(config, "vision_config")), json!({}));
        let vision = VisionSettings::read(file, vision_defaults(), &of_vision)?;
        let mut tower = vision.transformer(file)?;
        tower.biases.qkv = parse::<Qkv>(file, &of_vision)?.qkv_bias.into();
        let queries = settings.num_query_tokens;
        let qformer = QFormerConfig::read(file, part(config, "qformer_config"), queries, tower.width)?;
        let of_text = part(config, "text_config");
        let (text, t5) = match of_text.get("model_type").and_then(Value::as_str) {
            Some("t5") => {
                let t5 = T5Config::read(file, of_text)?;
                (t5.decoder.clone(), Some(t5))
            }
            _ => (text::read(file, of_text)?, None),
        };
        let image_token = settings.image_token_index;
        if image_token as usize >= text.vocabulary {
            return Err(invalid(file, "image_token_index is not below vocab_size"));
        }
        Ok(Self { file: file.to_owned(), vision, tower, qformer, text, t5, image_token, rest: None })
    }

    /// Number of rows of an image.
    fn rows(&self) -> usize {
        self.vision.grid() * self.vision.grid() + 1
    }
}

impl Architecture for Config {
    fn complete(&mut self, files: &SmallFiles<'_>, context: &LoadContext) -> Result<()> {
        let preprocessing = blip::preprocessing(files, &self.file, self.vision.image_size, context)?;
        self.rest = Some((preprocessing, files.generation(context)?));
        Ok(())
    }

    fn text(&self) -> &DecoderConfig {
        &self.text
    }

    fn context(&self) -> usize {
        self.text.context
    }

    fn uses(&self, tensor: &str) -> bool {
        let parts = ["vision_model.", "qformer.", "query_tokens", "language_projection."];
        let is_of_image = parts.iter().any(|part| tensor.starts_with(part)) && !is_buffer(tensor);
        let is_of_encoder = self.t5.as_ref().is_some_and(|t5| t5.encoder_uses(tensor));
        is_of_image || is_of_encoder || self.text.uses(tensor)
    }

    fn per_worker(&self, room: WorkerMemory) -> Bytes {
        let rows = self.rows();
        let text = room.of_text(&self.text);
        // The decoder keeps keys and values of what the encoder has read, as many for a row as of its own.
        let encoder = self.t5.as_ref().map_or(Bytes(0), |t5| t5.scratch(room.longest));
        self.tower.scratch(rows, rows) + self.qformer.scratch(rows) + encoder + text
    }

    fn load(
        &self,
        _: &Tokens,
        weights: &WeightFiles,
        device: &Device,
        context: &LoadContext,
    ) -> Result<Arc<dyn Network>> {
        let (preprocessing, generation) = self.rest.clone().ok_or_else(misfit)?;
        let reader = weights.reader("", device, context);
        let tensors = SafeTensors::new(&reader, "", self.tower.workload);
        let tower = tensors.at("vision_model.");
        let (width, epsilon) = (self.tower.width, self.tower.epsilon);
        let (from, to) = (self.qformer.width(), self.text.width());
        Ok(Arc::new(Blip2 {
            tower: blip::load_tower(&self.vision, &self.tower, &tower)?,
            last_norm: tower.layer_norm("post_layernorm", width, epsilon)?,
            qformer: self.qformer.load(&tensors)?,
            projection: tensors.linear("language_projection", to, from, Bias::Yes)?,
            queries: self.qformer.queries,
            image_token: self.image_token,
            language_model: LanguageModel {
                decoder: self.text.load(weights, device, context)?,
                image: if self.t5.is_some() { ImagePlace::Beside } else { ImagePlace::InPrompt },
            },
            reader: match &self.t5 {
                Some(t5) => {
                    Some(Reader { encoder: t5.load_encoder(weights, device, context)?, start: [t5.start] })
                }
                None => None,
            },
            ends: generation.ends(&self.text.end_tokens, None),
            preprocessing,
            device: device.clone(),
        }))
    }
}

struct Blip2 {
    tower: VisionTower,
    last_norm: Norm,
    qformer: QFormer,
    projection: Projection,
    queries: usize,
    image_token: u32,
    language_model: LanguageModel,
    /// The encoder that reads the prompt, where the language model does not.
    reader: Option<Reader>,
    ends: Vec<u32>,
    preprocessing: Preprocessing,
    device: Device,
}

/// An encoder that reads the prompt.
struct Reader {
    encoder: T5Encoder,
    /// The token that an answer begins behind.
    start: [u32; 1],
}

impl Network for Blip2 {
    fn ends(&self) -> &[u32] {
        &self.ends
    }

    /// The image, and after it the text with the token that begins one.
    fn prompt(&self, tokens: &Tokens, asked: &Asked<'_>) -> Result<Prompt> {
        let (sides, question) = asked.one("BLIP-2")?;
        let mut ids = vec![self.image_token; self.queries];
        ids.extend(tokens.encode_written(question, Specials::Added)?);
        Ok(Prompt { tokens: ids, places: std::iter::once(0..self.queries).collect(), sides: vec![sides] })
    }

    fn crops(&self, picture: &Picture, _: usize) -> Result<Vec<Tensor>> {
        Ok(vec![self.preprocessing.tensor(picture, &self.device)?])
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
        if layers < self.tower.transformer.depth() {
            return Ok(Some(Vec::new()));
        }
        let rows = self.qformer.forward(&self.last_norm.forward(hidden)?)?;
        Ok(Some(vec![self.projection.forward(&rows, Activation::Identity)?]))
    }

    fn language_model(&self) -> &LanguageModel {
        &self.language_model
    }

    fn before<'a>(&'a self, prompt: &'a Prompt) -> &'a [u32] {
        self.reader.as_ref().map_or(&prompt.tokens, |reader| &reader.start)
    }

    fn begin(&self, prompt: &Prompt, images: &[ImageRows]) -> Result<Answer> {
        let Some(Reader { encoder, start }) = &self.reader else {
            return self.language_model.begin(prompt, images, None);
        };
        let read = encoder.forward(self.language_model.rows_with_images(prompt, images)?)?;
        let begun = Prompt { tokens: start.to_vec(), places: Vec::new(), sides: Vec::new() };
        self.language_model.begin(&begun, &[ImageRows { rows: read, deep: Vec::new() }], None)
    }
}
