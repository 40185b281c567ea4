//! Pixtral (Agrawal et al. 2024), a LLaVA whose tower takes images of their own sizes, and Mistral Small 3.1, which merges
//! squares of patches before the projector. A picture is in the text line by line, with a word after each line. Follows
//! `modeling_pixtral.py`, `modeling_mistral3.py` and `processing_pixtral.py` of transformers.

mod frame;
mod tower;
#[cfg(test)]
mod tower_tests;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{Device, Tensor};
use model_actors::{Bytes, LoadContext, Picture};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{FeatureLayers, PROJECTORS, Projector, Strategy};
use crate::architecture::{Family, parse};
use crate::error::Result;
use crate::kernels::{Activation, Linear};
use crate::limits::MAX_IMAGES;
use crate::models::config_file::{activation, invalid, unsupported, with_defaults, without_nulls};
use crate::models::decoder::DecoderConfig;
use crate::models::transformer::{Bias, Norm, NormKind, SafeTensors, Tensors as _};
use crate::models::vision::any_size::{MAX_MERGED, next_rows};
use crate::models::vision::asked::Asked;
use crate::models::vision::chat::{Chat, part, text_half};
use crate::models::vision::language_model::{ImagePlace, LanguageModel};
use crate::models::vision::{
    Architecture, Network, Prompt, SmallFiles, StepwiseTower, Unfinished, WorkerMemory, misfit, prefix,
    preprocessing_without, preprocessor_config,
};
use crate::preprocessing::Scaling;
use crate::source::read_json;
use crate::tokens::Tokens;
use crate::weights::WeightFiles;
use frame::Frame;
use tower::{Tower, TowerConfig};

/// Mistral Small 3.1's entry in the list.
pub(in super::super) const FAMILY: Family<Box<dyn Architecture>> = Family {
    model_type: "mistral3",
    architectures: &["Mistral3ForConditionalGeneration"],
    read: |file, config| {
        let text = text_half(file, config, "mistral")?;
        Ok(Box::new(Config::read_merging(file, config, text)?))
    },
};

/// Reads the settings of a model with this text half, which merges patches if it says how many.
pub(in super::super) fn with_text(
    file: &Path,
    config: &Value,
    text: DecoderConfig,
) -> Result<Box<dyn Architecture>> {
    Ok(Box::new(match part(config, "spatial_merge_size") {
        Value::Null => Config::read(file, config, text)?,
        _ => Config::read_merging(file, config, text)?,
    }))
}

/// The model type of the tower in `vision_config`.
pub(super) const TOWER: &str = "pixtral";
const TOWERS: [&str; 2] = ["vision_tower.", "model.vision_tower."];

/// `config.json`, with what the other small files say once they are read.
pub(super) struct Config {
    file: PathBuf,
    vision: TowerConfig,
    /// Number of patches along a side of those that are merged, if any are.
    merge: Option<usize>,
    text: DecoderConfig,
    image_token: u32,
    bias: Bias,
    activation: Activation,
    rest: Option<Rest>,
}

#[derive(Clone)]
struct Rest {
    frame: Frame,
    scaling: Scaling,
    chat: Chat,
    words: ProcessorWords,
}

/// `config.json` of both.
#[derive(Deserialize)]
struct Settings {
    image_token_index: Option<u32>,
    /// The same in newer files.
    image_token_id: Option<u32>,
    vision_feature_layer: Option<FeatureLayers>,
    projector_hidden_act: Option<String>,
    multimodal_projector_bias: Option<bool>,
}

/// Values of settings that a file leaves out.
struct Defaults {
    image_token: u32,
    feature_layer: i64,
    bias: bool,
}

const LLAVA: Defaults = Defaults { image_token: 32000, feature_layer: -2, bias: true };
const MISTRAL3: Defaults = Defaults { image_token: 10, feature_layer: -1, bias: false };

/// The words of an image, and the sizes of patches, in `processor_config.json`.
#[derive(Clone, Deserialize)]
struct ProcessorWords {
    image_token: String,
    image_break_token: String,
    image_end_token: String,
    patch_size: Option<usize>,
    spatial_merge_size: Option<usize>,
}

fn processor_defaults() -> Value {
    json!({"image_token": "[IMG]", "image_break_token": "[IMG_BREAK]", "image_end_token": "[IMG_END]"})
}

impl Config {
    /// Reads the `config.json` of a LLaVA with this tower.
    pub(super) fn read(file: &Path, config: &Value, text: DecoderConfig) -> Result<Self> {
        #[derive(Deserialize)]
        struct Own {
            vision_feature_select_strategy: Option<Strategy>,
        }
        let own: Own = parse(file, config)?;
        if own.vision_feature_select_strategy != Some(Strategy::Full) {
            let reason =
                "vision_feature_select_strategy is not full, and the first row of this tower is a patch";
            return Err(invalid(file, reason));
        }
        Self::of(file, config, (&LLAVA, text), TowerConfig::read(file, part(config, "vision_config"))?, None)
    }

    /// Reads a `config.json` of Mistral Small 3.1.
    fn read_merging(file: &Path, config: &Value, text: DecoderConfig) -> Result<Self> {
        #[derive(Deserialize)]
        struct Own {
            spatial_merge_size: Option<usize>,
        }
        let own: Own = parse(file, config)?;
        let merge = own.spatial_merge_size.unwrap_or(2);
        if !(1..=MAX_MERGED).contains(&merge) {
            let reason = format!("spatial_merge_size is {merge}; 1 to {MAX_MERGED} are allowed");
            return Err(invalid(file, reason));
        }
        let vision = part(config, "vision_config");
        let kind = vision.get("model_type").and_then(Value::as_str);
        if let Some(other) = kind.filter(|kind| *kind != TOWER) {
            return Err(unsupported(file, "the vision tower", other, TOWER));
        }
        // The one of a file without any settings of the tower.
        let vision = if vision.is_null() { json!({"patch_size": 14}) } else { vision.clone() };
        Self::of(file, config, (&MISTRAL3, text), TowerConfig::read(file, &vision)?, Some(merge))
    }

    fn of(
        file: &Path,
        config: &Value,
        (defaults, text): (&Defaults, DecoderConfig),
        mut vision: TowerConfig,
        merge: Option<usize>,
    ) -> Result<Self> {
        let settings: Settings = parse(file, config)?;
        let layers = settings.vision_feature_layer.unwrap_or(FeatureLayers::One(defaults.feature_layer));
        let layers = layers.counts(file, vision.transformer.layers.len())?;
        let [taken] = layers.as_slice() else {
            let found = format!("{} layers", layers.len());
            return Err(unsupported(file, "vision_feature_layer", &found, "one layer of Pixtral's tower"));
        };
        // Blocks after the one that is taken are not loaded.
        vision.transformer.layers.truncate(*taken);
        let image_token = settings.image_token_index.or(settings.image_token_id);
        let activation_name = settings.projector_hidden_act.as_deref().unwrap_or("gelu");
        Ok(Self {
            file: file.to_owned(),
            vision,
            merge,
            text,
            image_token: image_token.unwrap_or(defaults.image_token),
            bias: settings.multimodal_projector_bias.unwrap_or(defaults.bias).into(),
            activation: activation(file, "projector_hidden_act", activation_name)?,
            rest: None,
        })
    }

    /// Number of patches of a row of the text, along a side.
    fn merged(&self) -> usize {
        self.merge.unwrap_or(1)
    }

    /// The words of `processor_config.json`, whose patches are those of the tower.
    fn words(&self, files: &SmallFiles<'_>, context: &LoadContext) -> Result<ProcessorWords> {
        let file = files.optional("processor_config.json", context)?;
        let config = match &file {
            Some(file) => without_nulls(&read_json(file)?),
            None => Value::Null,
        };
        let file = file.as_ref().unwrap_or(&self.file);
        let words: ProcessorWords = parse(file, &with_defaults(&config, processor_defaults()))?;
        let (patch, merge) = (self.vision.patch_size, self.merged());
        if words.patch_size.is_some_and(|size| size != patch)
            || words.spatial_merge_size.is_some_and(|size| size != merge)
        {
            let reason =
                format!("patch_size and spatial_merge_size are not the model's, {patch} and {merge}");
            return Err(invalid(file, reason));
        }
        Ok(words)
    }
}

impl Architecture for Config {
    fn complete(&mut self, files: &SmallFiles<'_>, context: &LoadContext) -> Result<()> {
        let (file, config) = preprocessor_config(files, json!({}), context)?;
        let frame = Frame::read(&file, &config, self.vision.patch_size.saturating_mul(self.merged()))?;
        let defaults = json!({"do_resize": false, "do_center_crop": false});
        let preprocessing = preprocessing_without(files, defaults, &Frame::SETTINGS, context)?;
        let words = self.words(files, context)?;
        let chat = Chat::read(files, self.image_token, context)?;
        chat.check(self.text.vocabulary)?;
        self.rest = Some(Rest { frame, scaling: preprocessing.scaling, chat, words });
        Ok(())
    }

    fn text(&self) -> &DecoderConfig {
        &self.text
    }

    fn uses(&self, tensor: &str) -> bool {
        match TOWERS.iter().find_map(|prefix| tensor.strip_prefix(prefix)) {
            Some(name) => self.vision.uses(name),
            None => PROJECTORS.iter().any(|prefix| tensor.starts_with(prefix)) || self.text.uses(tensor),
        }
    }

    fn has_no_effect(&self, tensor: &str) -> bool {
        match TOWERS.iter().find_map(|prefix| tensor.strip_prefix(prefix)) {
            Some(name) => !self.vision.uses(name),
            None => self.text.has_no_effect(tensor),
        }
    }

    fn per_worker(&self, room: WorkerMemory) -> Bytes {
        let text = room.of_text(&self.text);
        let (side, merge) = (self.vision.patch_size.max(1), self.merged());
        // The largest image that is let in, by its pixels and by the tokens that it may take; and all of a conversation.
        let all = room.longest.saturating_mul(merge * merge);
        let most = self.rest.as_ref().map_or(usize::MAX, |rest| rest.frame.pixels()) / (side * side);
        let kept = self.text.width().div_ceil(merge * merge);
        let images = all.min(most.saturating_mul(MAX_IMAGES)) as u64;
        let images = images.saturating_mul((3 * side * side + kept) as u64).saturating_mul(4);
        self.vision.scratch(all.min(most), merge, kept) + Bytes(images) + text
    }

    fn load(
        &self,
        tokens: &Tokens,
        weights: &WeightFiles,
        device: &Device,
        context: &LoadContext,
    ) -> Result<Arc<dyn Network>> {
        let Rest { frame, scaling, chat, words } = self.rest.clone().ok_or_else(misfit)?;
        let written = tokens.written(self.image_token);
        if written.as_deref() != Some(words.image_token.as_str()) {
            let (id, word) = (self.image_token, &words.image_token);
            return Err(invalid(&self.file, format!("the image's token {id} is not written {word}")));
        }
        for word in [&words.image_break_token, &words.image_end_token] {
            if tokens.id(word).is_none() {
                return Err(invalid(&self.file, format!("the tokenizer has no {word}")));
            }
        }
        let reader = weights.reader("", device, context);
        let tensors = SafeTensors::new(&reader, "", self.vision.transformer.workload);
        let projector = tensors.at(prefix(weights, &PROJECTORS, "linear_1.weight"));
        let width = self.vision.transformer.width;
        let merger = match self.merge {
            Some(merge) => Some(Merger::load(&projector, width, merge, self.text.transformer.epsilon)?),
            None => None,
        };
        let tower = tensors.at(prefix(weights, &TOWERS, "patch_conv.weight"));
        Ok(Arc::new(Pixtral {
            tower: self.vision.load(self.merged(), &tower)?,
            merger,
            projector: Projector::load(&projector, [width, self.text.width()], self.bias, self.activation)?,
            merged: self.merged() * self.merged(),
            text_width: self.text.width(),
            language_model: LanguageModel {
                decoder: self.text.load(weights, device, context)?,
                image: ImagePlace::InPrompt,
            },
            ends: chat.ends(tokens, &self.text.end_tokens),
            frame,
            scaling,
            chat,
            words,
            device: device.clone(),
        }))
    }
}

/// A norm of each patch, and a layer from those of a square side by side to the width of one.
struct Merger {
    norm: Norm,
    layer: Linear,
    /// Length of patches side by side.
    wide: usize,
}

impl Merger {
    fn load(tensors: &SafeTensors<'_>, width: usize, merge: usize, epsilon: f64) -> Result<Self> {
        let merged = merge * merge;
        let wide = width.saturating_mul(merged);
        // The file has the patches of a square side by side number by number.
        let weight = tensors.tensor("patch_merger.merging_layer.weight", &[width, wide])?;
        let weight = weight.reshape((width, width, merged))?.transpose(1, 2)?.contiguous()?;
        Ok(Self {
            norm: tensors.norm("norm", width, NormKind::Rms, epsilon)?,
            layer: Linear::new(&weight.reshape((width, wide))?, None)?,
            wide,
        })
    }

    fn forward(&self, rows: &Tensor) -> Result<Tensor> {
        let rows = self.norm.forward(rows)?.reshape(((), self.wide))?;
        self.layer.forward(&rows, Activation::Identity)
    }
}

struct Pixtral {
    tower: Tower,
    merger: Option<Merger>,
    projector: Projector,
    /// Number of patches of a row of the text.
    merged: usize,
    text_width: usize,
    language_model: LanguageModel,
    ends: Vec<u32>,
    frame: Frame,
    scaling: Scaling,
    chat: Chat,
    words: ProcessorWords,
    device: Device,
}

impl Pixtral {
    /// A picture of so many lines and columns of rows as the text has it.
    fn in_words(&self, (down, across): (usize, usize)) -> String {
        let ProcessorWords { image_token, image_break_token, image_end_token, .. } = &self.words;
        let line = image_token.repeat(across);
        vec![line; down].join(image_break_token) + image_end_token
    }
}

impl Network for Pixtral {
    fn ends(&self) -> &[u32] {
        &self.ends
    }

    fn prompt(&self, tokens: &Tokens, asked: &Asked<'_>) -> Result<Prompt> {
        let sides = asked.sides.clone();
        let grid = |sides: &(usize, usize)| Ok(self.tower.merged_grid(self.frame.of(*sides)?));
        let grids = sides.iter().map(grid).collect::<Result<Vec<_>>>()?;
        let count = grids.iter().map(|(down, across)| down * across).sum();
        // Each line has one more.
        let most = grids.iter().map(|(down, across)| down * (across + 1)).sum();
        let ProcessorWords { image_token, image_break_token, image_end_token, .. } = &self.words;
        for word in [image_token, image_break_token, image_end_token] {
            Chat::check_room(most, word)?;
        }
        let words: Vec<String> = grids.iter().map(|grid| self.in_words(*grid)).collect();
        let word = (self.words.image_token.as_str(), words.as_slice());
        let (tokens, places) = self.chat.ask_in_words(tokens, asked, word, count)?;
        Ok(Prompt { tokens, places, sides })
    }

    fn crops(&self, picture: &Picture, _: usize) -> Result<Vec<Tensor>> {
        Ok(vec![self.scaling.tensor(&self.frame.picture(picture)?, &self.device)?])
    }

    fn tower(&self) -> &dyn StepwiseTower {
        &self.tower
    }

    fn keep(
        &self,
        layers: usize,
        hidden: &Tensor,
        parts: &mut Option<Unfinished>,
    ) -> Result<Option<Vec<Tensor>>> {
        if layers < self.tower.depth() {
            return Ok(Some(Vec::new()));
        }
        let count = hidden.dim(0)? / self.merged;
        let most = (self.tower.part_rows / self.merged).max(1);
        let kept = next_rows(parts, [count, self.text_width], most, hidden, |rows| {
            let rows = hidden.narrow(0, rows.start * self.merged, rows.len() * self.merged)?;
            match &self.merger {
                Some(merger) => self.projector.forward(&merger.forward(&rows)?),
                None => self.projector.forward(&rows),
            }
        })?;
        Ok(kept.map(|rows| vec![rows]))
    }

    fn language_model(&self) -> &LanguageModel {
        &self.language_model
    }
}
