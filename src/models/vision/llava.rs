//! LLaVA 1.5 and 1.6 (Liu et al. 2023, 2024): the patches of a CLIP tower's layer before the last, projected
//! by two layers into the text of a decoder. 1.6 also cuts a large image into tiles. Follows
//! `modeling_llava.py` and `modeling_llava_next.py` of transformers.

mod tiles;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{Device, Tensor};
use model_actors::{Bytes, LoadContext, Picture};
use serde::Deserialize;
use serde_json::{Value, json};

use super::chat::{Chat, part};
use super::language_model::{ImagePlace, LanguageModel};
use super::{
    Architecture, CAPABILITY, ImageRows, Network, Prompt, StepwiseTower, Unfinished, WorkerMemory, misfit,
};
use crate::architecture::{self, Family, parse};
use crate::error::{Error, Result};
use crate::kernels::Activation;
use crate::models::config_file::{activation, invalid, unsupported, with_defaults};
use crate::models::decoder::{self, DecoderConfig};
use crate::models::towers::clip::VisionConfig;
use crate::models::towers::{VisionTower, pick};
use crate::models::transformer::{Bias, Projection, SafeTensors};
use crate::preprocessing::{Preprocessing, Processor};
use crate::source::Files;
use crate::tokens::Tokens;
use crate::weights::WeightFiles;
use tiles::Tiles;

/// LLaVA 1.5's entry in the list.
pub(super) const FAMILY: Family<Box<dyn Architecture>> = Family {
    model_type: "llava",
    architectures: &["LlavaForConditionalGeneration"],
    read: |file, config| Ok(Box::new(Config::read(file, config, None)?)),
};

/// LLaVA 1.6's entry in the list.
pub(super) const NEXT_FAMILY: Family<Box<dyn Architecture>> = Family {
    model_type: "llava_next",
    architectures: &["LlavaNextForConditionalGeneration"],
    read: |file, config| {
        let grids = Tiles::read(file, part(config, "image_grid_pinpoints"))?;
        Ok(Box::new(Config::read(file, config, Some(grids))?))
    },
};

/// Settings of both.
#[derive(Deserialize)]
struct Settings {
    image_token_index: Option<u32>,
    /// The same in newer files.
    image_token_id: Option<u32>,
    vision_feature_layer: FeatureLayers,
    #[serde(default)]
    vision_feature_select_strategy: Strategy,
    projector_hidden_act: String,
    multimodal_projector_bias: bool,
}

fn defaults() -> Value {
    json!({"vision_feature_layer": -2, "projector_hidden_act": "gelu", "multimodal_projector_bias": true})
}

impl Settings {
    fn image_token(&self) -> u32 {
        self.image_token_index.or(self.image_token_id).unwrap_or(32000)
    }
}

/// The layers of the tower that are taken, as Python counts: 0 is what goes into the first, -1 what comes out of the
/// last. The rows of several stand side by side.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum FeatureLayers {
    One(i64),
    Several(Vec<i64>),
}

/// Most layers of a tower that are taken.
const MAX_FEATURE_LAYERS: usize = 64;

impl FeatureLayers {
    /// The number of blocks before each, of a tower of so many.
    fn counts(&self, file: &Path, all: usize) -> Result<Vec<usize>> {
        let layers = match self {
            Self::One(layer) => std::slice::from_ref(layer),
            Self::Several(layers) => layers,
        };
        if !(1..=MAX_FEATURE_LAYERS).contains(&layers.len()) {
            let reason = format!("vision_feature_layer has {} layers", layers.len());
            return Err(invalid(file, reason));
        }
        let count = |layer: &i64| {
            let from_end = if *layer < 0 { all as i64 + 1 } else { 0 };
            let count = usize::try_from(layer.saturating_add(from_end)).ok();
            count
                .filter(|count| *count <= all)
                .ok_or_else(|| invalid(file, format!("vision_feature_layer {layer} of {all} layers")))
        };
        layers.iter().map(count).collect()
    }
}

/// The rows of the tower that are taken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Strategy {
    /// The patches'.
    #[default]
    Default,
    /// The class's too.
    Full,
}

/// `config.json`, with what the other small files say once they are read.
struct Config {
    file: PathBuf,
    vision: VisionConfig,
    /// Number of blocks before each of the tower's layers that are taken.
    layers: Vec<usize>,
    text: DecoderConfig,
    settings: Settings,
    activation: Activation,
    tiles: Option<Tiles>,
    rest: Option<(Preprocessing, Chat)>,
}

const TOWERS: [&str; 4] = [
    "vision_tower.vision_model.",
    "model.vision_tower.vision_model.",
    "model.vision_tower.",
    "vision_tower.",
];
const PROJECTORS: [&str; 2] = ["multi_modal_projector.", "model.multi_modal_projector."];
const NEWLINES: [&str; 2] = ["image_newline", "model.image_newline"];

impl Config {
    fn read(file: &Path, config: &Value, tiles: Option<Tiles>) -> Result<Self> {
        let settings: Settings = parse(file, &with_defaults(config, defaults()))?;
        let vision = part(config, "vision_config");
        match vision.get("model_type").and_then(Value::as_str) {
            None | Some("clip_vision_model") => {}
            Some(other) => {
                return Err(unsupported(file, "the vision tower", other, "clip_vision_model"));
            }
        }
        let mut vision = VisionConfig::read(file, vision)?;
        let layers = settings.vision_feature_layer.counts(file, vision.transformer.layers.len())?;
        // Blocks after the last that is taken are not loaded.
        vision.transformer.layers.truncate(layers.iter().copied().max().unwrap_or(0));
        let activation = activation(file, "projector_hidden_act", &settings.projector_hidden_act)?;
        let text = part(config, "text_config");
        let fallback = json!({"model_type": "llama"});
        let text = if text.is_null() { &fallback } else { text };
        let text = architecture::find(decoder::FAMILIES, CAPABILITY, file, text)?;
        Ok(Self { file: file.to_owned(), vision, layers, text, settings, activation, tiles, rest: None })
    }

    fn uses_of_tower(&self, name: &str) -> bool {
        match name.strip_prefix("encoder.layers.").and_then(|rest| rest.split_once('.')) {
            Some((index, _)) => {
                index.parse().is_ok_and(|index: usize| index < self.vision.transformer.layers.len())
            }
            None => !name.starts_with("post_layernorm") && !name.ends_with("position_ids"),
        }
    }
}

impl Architecture for Config {
    fn complete(&mut self, files: &Files, context: &LoadContext) -> Result<()> {
        let side = self.vision.settings.image_size;
        let mut defaults = json!({"do_pad": false});
        if let Some(tiles) = &mut self.tiles {
            let (file, config) = super::preprocessor_config(files, json!({}), context)?;
            if let Some(grids) = config.get("image_grid_pinpoints").filter(|grids| !grids.is_null()) {
                *tiles = Tiles::read(&file, grids)?;
            }
            tiles.check(&self.file, side)?;
            // What this file calls padding is that of a batch of several images.
            defaults = json!({});
        }
        let preprocessing = match self.tiles {
            Some(_) => super::preprocessing_without(files, defaults, &["do_pad"], context)?,
            None => super::preprocessing(files, defaults, Processor::Clip, context)?,
        };
        if preprocessing.exact() != Some((side, side)) {
            let reason = "the preprocessing makes pictures of another size than image_size";
            return Err(invalid(&self.file, reason));
        }
        let chat = Chat::read(files, self.settings.image_token(), context)?;
        chat.check(self.text.vocabulary)?;
        self.rest = Some((preprocessing, chat));
        Ok(())
    }

    fn vocabulary(&self) -> usize {
        self.text.vocabulary
    }

    fn context(&self) -> usize {
        // The rows of an image are not there any more when an answer would have to be read again.
        self.text.steady_context()
    }

    fn uses(&self, tensor: &str) -> bool {
        let of_tower = TOWERS.iter().find_map(|prefix| tensor.strip_prefix(prefix));
        match of_tower {
            Some(name) => self.uses_of_tower(name),
            None => {
                PROJECTORS.iter().any(|prefix| tensor.starts_with(prefix))
                    || (self.tiles.is_some() && NEWLINES.contains(&tensor))
                    || self.text.uses(tensor)
            }
        }
    }

    fn has_no_effect(&self, tensor: &str) -> bool {
        match TOWERS.iter().find_map(|prefix| tensor.strip_prefix(prefix)) {
            Some(name) => !self.uses_of_tower(name),
            None => self.text.has_no_effect(tensor),
        }
    }

    fn per_worker(&self, room: WorkerMemory) -> Bytes {
        let crops = self.tiles.as_ref().map_or(1, Tiles::most);
        let rows = self.vision.rows().saturating_mul(crops);
        let taken = self.layers.len().saturating_mul(self.vision.transformer.width);
        let kept = (rows as u64).saturating_mul(self.text.width().max(taken) as u64);
        let kept = Bytes(kept.saturating_mul(8));
        let text = self.text.scratch(room.rows, room.longest) + self.text.cache_bytes(room.held);
        self.vision.scratch(1) + kept + text
    }

    fn load(
        &self,
        tokens: &Tokens,
        weights: &WeightFiles,
        device: &Device,
        context: &LoadContext,
    ) -> Result<Arc<dyn Network>> {
        let (preprocessing, chat) = self.rest.clone().ok_or_else(misfit)?;
        let reader = weights.reader("", device, context);
        let find = |names: &[&'static str], part: &str| {
            let there = names.iter().find(|name| weights.contains(&format!("{name}{part}")));
            there.or(names.first()).copied().unwrap_or_default()
        };
        let tower = find(&TOWERS, "embeddings.class_embedding");
        let projector = find(&PROJECTORS, "linear_1.weight");
        let newline = match self.tiles {
            Some(_) => Some(reader.tensor(find(&NEWLINES, ""), &[self.text.width()])?.unsqueeze(0)?),
            None => None,
        };
        let tensors = SafeTensors::new(&reader, "", self.vision.transformer.workload);
        Ok(Arc::new(Llava {
            tower: self.vision.load(&tensors.at(tower))?,
            projector: Projector::load(self, &tensors.at(projector))?,
            newline,
            language_model: LanguageModel {
                decoder: self.text.load(weights, device, context)?,
                image: ImagePlace::InPrompt,
            },
            ends: chat.ends(tokens, &self.text.end_tokens),
            layers: self.layers.clone(),
            leading: usize::from(self.settings.vision_feature_select_strategy == Strategy::Default),
            grid: self.vision.settings.grid(),
            side: self.vision.settings.image_size,
            tiles: self.tiles.clone(),
            preprocessing,
            chat,
            device: device.clone(),
        }))
    }
}

/// Two layers from the tower's width to the text's.
struct Projector {
    first: Projection,
    activation: Activation,
    second: Projection,
}

impl Projector {
    fn load(config: &Config, tensors: &SafeTensors<'_>) -> Result<Self> {
        let in_dim = config.vision.transformer.width.saturating_mul(config.layers.len());
        let out_dim = config.text.width();
        let bias = Bias::from(config.settings.multimodal_projector_bias);
        Ok(Self {
            first: tensors.linear("linear_1", out_dim, in_dim, bias)?,
            activation: config.activation,
            second: tensors.linear("linear_2", out_dim, out_dim, bias)?,
        })
    }

    fn forward(&self, rows: &Tensor) -> Result<Tensor> {
        self.second.forward(&self.first.forward(rows, self.activation)?, Activation::Identity)
    }
}

struct Llava {
    tower: VisionTower,
    projector: Projector,
    /// The row that ends a line of tiles' patches, `(1, width)`.
    newline: Option<Tensor>,
    language_model: LanguageModel,
    ends: Vec<u32>,
    /// Number of blocks before each of the tower's layers that are taken.
    layers: Vec<usize>,
    /// Number of the tower's first rows that are left out.
    leading: usize,
    /// Number of patches along a side.
    grid: usize,
    /// Number of pixels along a side.
    side: usize,
    tiles: Option<Tiles>,
    preprocessing: Preprocessing,
    chat: Chat,
    device: Device,
}

impl Llava {
    /// The features of a crop for the text half, from the layers that are taken, kept in the order of blocks.
    fn features(&self, kept: &[Tensor]) -> Result<Tensor> {
        if let ([_], [projected]) = (self.layers.as_slice(), kept) {
            return Ok(projected.clone());
        }
        let mut order = self.layers.clone();
        order.sort_unstable();
        order.dedup();
        let place = |layer: &usize| order.iter().position(|other| other == layer);
        let part = |layer: &usize| place(layer).and_then(|place| kept.get(place)).ok_or_else(misfit);
        let parts = self.layers.iter().map(part).collect::<Result<Vec<_>>>()?;
        self.projector.forward(&Tensor::cat(&parts, 1)?)
    }

    /// Number of rows that are kept of a crop.
    fn kept(&self) -> usize {
        self.grid * self.grid + 1 - self.leading
    }

    /// The places, in all that was kept with the newline at its end, of the rows that the text gets.
    fn layout(&self, tiles: &Tiles, sides: (usize, usize)) -> Result<Vec<u32>> {
        if self.leading == 0 {
            return Err(Error::InvalidInput("tiles with their class rows cannot be laid out".to_owned()));
        }
        tiles.layout(sides, self.grid, self.side)
    }
}

impl Network for Llava {
    fn ends(&self) -> &[u32] {
        &self.ends
    }

    fn prompt(&self, tokens: &Tokens, sides: (usize, usize), question: &str) -> Result<Prompt> {
        let rows = match &self.tiles {
            Some(tiles) => self.layout(tiles, sides)?.len(),
            None => self.kept(),
        };
        let (tokens, image) = self.chat.ask(tokens, question, rows)?;
        Ok(Prompt { tokens, image, sides })
    }

    fn crops(&self, picture: &Picture) -> Result<Vec<Tensor>> {
        let pictures = match &self.tiles {
            Some(tiles) => tiles.cut(picture, self.side, &self.preprocessing)?,
            None => vec![self.preprocessing.picture(picture)?],
        };
        let scaling = &self.preprocessing.scaling;
        pictures.iter().map(|picture| scaling.tensor(picture, &self.device)).collect()
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
        if !self.layers.contains(&layers) {
            return Ok(Some(Vec::new()));
        }
        let rows = hidden.narrow(0, self.leading, self.kept())?.contiguous()?;
        // Several layers are projected together.
        Ok(Some(vec![if self.layers.len() > 1 { rows } else { self.projector.forward(&rows)? }]))
    }

    fn image(&self, prompt: &Prompt, kept: &[Vec<Tensor>]) -> Result<ImageRows> {
        let mut rows = kept.iter().map(|crop| self.features(crop)).collect::<Result<Vec<_>>>()?;
        rows.extend(self.newline.clone());
        let all = Tensor::cat(&rows, 0)?;
        let rows = match &self.tiles {
            Some(tiles) => pick(&all, self.layout(tiles, prompt.sides)?.into_iter().map(|row| row as usize))?,
            None => all,
        };
        Ok(ImageRows { rows, deep: Vec::new() })
    }

    fn language_model(&self) -> &LanguageModel {
        &self.language_model
    }
}
