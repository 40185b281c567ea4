//! BLIP captioning (Li et al. 2022): a vision transformer, and a text decoder like BERT's that looks at the
//! image in each layer. The question is the beginning of the caption; without one the model begins by itself.
//! Follows `modeling_blip.py` of transformers.

mod text;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{Device, Tensor};
use model_actors::{Bytes, LoadContext, Picture};
use serde::Deserialize;
use serde_json::{Value, json};

use super::asked::Asked;
use super::language_model::{ImagePlace, LanguageModel};
use super::{Architecture, Network, Prompt, SmallFiles, StepwiseTower, Unfinished, WorkerMemory, misfit};
use crate::architecture::{Family, parse};
use crate::error::Result;
use crate::models::config_file::{invalid, unsupported};
use crate::models::decoder::DecoderConfig;
use crate::models::towers::{CLIP_BLOCKS, Patches, Positions, Resampling, VisionSettings, VisionTower};
use crate::models::transformer::{
    self, Bias, Names, Norm, QkvNames, SafeTensors, TransformerConfig, is_buffer,
};
use crate::preprocessing::{Preprocessing, Processor};
use crate::tokens::{Specials, Tokens};
use crate::weights::WeightFiles;
use text::TextConfig;

/// The family's entry in the list.
pub(super) const FAMILY: Family<Box<dyn Architecture>> = Family {
    model_type: "blip",
    architectures: &["BlipForConditionalGeneration"],
    read: |file, config| Ok(Box::new(Config::read(file, config)?)),
};

/// Names of the vision tower's blocks.
const BLOCKS: Names =
    Names { qkv: QkvNames::Fused("self_attn.qkv"), out_proj: "self_attn.projection", ..CLIP_BLOCKS };

fn vision_defaults() -> Value {
    json!({
        "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
        "num_channels": 3, "image_size": 384, "patch_size": 16, "hidden_act": "gelu", "layer_norm_eps": 1e-5
    })
}

/// `config.json`, with `preprocessor_config.json` once that is read.
struct Config {
    file: PathBuf,
    vision: VisionSettings,
    tower: TransformerConfig,
    text: TextConfig,
    preprocessing: Option<Preprocessing>,
}

#[derive(Deserialize)]
struct Parts {
    #[serde(default)]
    text_config: Value,
    #[serde(default)]
    vision_config: Value,
    architectures: Option<Vec<String>>,
    tie_word_embeddings: Option<bool>,
}

impl Config {
    fn read(file: &Path, config: &Value) -> Result<Self> {
        let parts: Parts = parse(file, config)?;
        // All of BLIP share one model type; the others answer or match with towers that are not read here.
        if let Some(other) =
            parts.architectures.iter().flatten().find(|name| !name.ends_with("ConditionalGeneration"))
        {
            return Err(unsupported(file, "the architecture", other, "BlipForConditionalGeneration"));
        }
        let vision = VisionSettings::read(file, vision_defaults(), &parts.vision_config)?;
        let tower = vision.transformer(file)?;
        let is_tied = parts.tie_word_embeddings.unwrap_or(true);
        let text = TextConfig::read(file, &parts.text_config, tower.width, is_tied)?;
        Ok(Self { file: file.to_owned(), tower, vision, text, preprocessing: None })
    }

    fn rows(&self) -> usize {
        self.vision.grid() * self.vision.grid() + 1
    }
}

impl Architecture for Config {
    fn complete(&mut self, files: &SmallFiles<'_>, context: &LoadContext) -> Result<()> {
        self.preprocessing = Some(preprocessing(files, &self.file, self.vision.image_size, context)?);
        Ok(())
    }

    fn text(&self) -> &DecoderConfig {
        &self.text.decoder
    }

    fn context(&self) -> usize {
        self.text.decoder.context
    }

    fn uses(&self, tensor: &str) -> bool {
        (tensor.starts_with("vision_model.") || tensor.starts_with("text_decoder."))
            && !tensor.contains("position_ids")
    }

    fn packs(&self, _: &str) -> bool {
        false
    }

    fn has_no_effect(&self, tensor: &str) -> bool {
        // Where the matrix of the logits has a bias of its own, this one stands for nothing.
        is_buffer(tensor) || tensor == "text_decoder.cls.predictions.bias"
    }

    fn apart(&self) -> usize {
        self.rows()
    }

    fn per_worker(&self, room: WorkerMemory) -> Bytes {
        let rows = self.rows();
        let text = &self.text.decoder;
        let text = room.of_text(text);
        self.tower.scratch(rows, rows) + text
    }

    fn load(
        &self,
        _: &Tokens,
        weights: &WeightFiles,
        device: &Device,
        context: &LoadContext,
    ) -> Result<Arc<dyn Network>> {
        let reader = weights.reader("", device, context);
        let preprocessing = self.preprocessing.clone().ok_or_else(misfit)?;
        let tower = SafeTensors::new(&reader, "vision_model.", self.tower.workload);
        let (width, epsilon) = (self.tower.width, self.tower.epsilon);
        Ok(Arc::new(Blip {
            tower: load_tower(&self.vision, &self.tower, &tower)?,
            last_norm: tower.layer_norm("post_layernorm", width, epsilon)?,
            language_model: LanguageModel {
                decoder: self.text.decoder.load(weights, device, context)?,
                image: ImagePlace::Beside,
            },
            begin: self.text.begin,
            ends: [self.text.end],
            preprocessing,
            device: device.clone(),
        }))
    }
}

/// Reads the preprocessing of BLIP and BLIP-2 for towers that take images of `side` pixels a side; `config` is the
/// file that says so.
pub(super) fn preprocessing(
    files: &SmallFiles<'_>,
    config: &Path,
    side: usize,
    context: &LoadContext,
) -> Result<Preprocessing> {
    let defaults = json!({
        "size": {"height": 384, "width": 384}, "resample": 3, "do_center_crop": false, "do_pad": false
    });
    let preprocessing = super::preprocessing(files, defaults, Processor::Clip, context)?;
    if preprocessing.exact() != Some((side, side)) {
        let reason = format!("image_size is {side}; the preprocessing makes pictures of another size");
        return Err(invalid(config, reason));
    }
    Ok(preprocessing)
}

/// Loads the vision tower of BLIP and BLIP-2, up to the last block.
pub(super) fn load_tower(
    settings: &VisionSettings,
    config: &TransformerConfig,
    tensors: &SafeTensors<'_>,
) -> Result<VisionTower> {
    let (width, grid, side) = (config.width, settings.grid(), settings.patch_size);
    let embeddings = tensors.at("embeddings.");
    let class = embeddings.tensor("class_embedding", &[1, 1, width])?.reshape((1, width))?;
    let positions = embeddings.tensor("position_embedding", &[1, grid * grid + 1, width])?.squeeze(0)?;
    let places = positions.narrow(0, 1, grid * grid)?.contiguous()?;
    Ok(VisionTower {
        patches: Patches::load(&embeddings, "patch_embedding", width, side, Bias::Yes)?,
        leading: Some((class + positions.narrow(0, 0, 1)?)?),
        positions: Positions::new(places, grid, Resampling::Never),
        first_norm: None,
        transformer: transformer::load(config, &BLOCKS, tensors, tensors.device())?,
    })
}

struct Blip {
    tower: VisionTower,
    last_norm: Norm,
    language_model: LanguageModel,
    begin: u32,
    ends: [u32; 1],
    preprocessing: Preprocessing,
    device: Device,
}

impl Network for Blip {
    fn ends(&self) -> &[u32] {
        &self.ends
    }

    fn prompt(&self, tokens: &Tokens, asked: &Asked<'_>) -> Result<Prompt> {
        let (sides, question) = asked.one("BLIP")?;
        let mut ids = vec![self.begin];
        ids.extend(tokens.encode_written(question, Specials::AsWritten)?);
        Ok(Prompt { tokens: ids, places: Vec::new(), sides: vec![sides] })
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
        let at_end = layers == self.tower.depth();
        Ok(Some(if at_end { vec![self.last_norm.forward(hidden)?] } else { Vec::new() }))
    }

    fn language_model(&self) -> &LanguageModel {
        &self.language_model
    }
}
