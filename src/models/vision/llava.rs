//! LLaVA 1.5 and 1.6 (Liu et al. 2023, 2024) and LLaVA-OneVision (Li et al. 2024): the patches of some layer of
//! a CLIP or SigLIP tower, or of several side by side, projected by two layers into the text of a decoder. 1.6
//! also cuts a large image into tiles, and OneVision scales down what is more than the text is to see. Follows
//! `modeling_llava.py`, `modeling_llava_next.py` and `modeling_llava_onevision.py` of transformers.

mod tiles;
mod tower;
mod pixtral;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{Device, Tensor};
use model_actors::{Bytes, LoadContext, Picture};
use serde::Deserialize;
use serde_json::{Value, json};

use super::asked::Asked;
use super::chat::{Chat, part, text_half};
use super::language_model::{ImagePlace, LanguageModel};
use super::{
    Architecture, ImageRows, Network, Prompt, SmallFiles, StepwiseTower, Unfinished, WorkerMemory, misfit,
    prefix,
};
use crate::architecture::{Family, parse};
use crate::error::Result;
use crate::kernels::Activation;
use crate::models::config_file::{activation, invalid, with_defaults};
use crate::models::decoder::DecoderConfig;
use crate::models::towers::VisionTower;
use crate::models::transformer::{Bias, Projection, SafeTensors};
use crate::preprocessing::{Preprocessing, Processor};
use crate::tokens::Tokens;
use crate::weights::WeightFiles;
use tiles::{Layout, Tiles, squared};
use tower::TowerConfig;

pub(super) use pixtral::{FAMILY as MISTRAL3_FAMILY, with_text as pixtral};

/// LLaVA 1.5's entry in the list.
pub(super) const FAMILY: Family<Box<dyn Architecture>> = Family {
    model_type: "llava",
    architectures: &["LlavaForConditionalGeneration"],
    read: |file, config| match part(config, "vision_config").get("model_type").and_then(Value::as_str) {
        Some(pixtral::TOWER) => {
            Ok(Box::new(pixtral::Config::read(file, config, text_half(file, config, "llama")?)?))
        }
        _ => Ok(Box::new(Config::read(file, config, &LLAVA, None)?)),
    },
};

/// LLaVA 1.6's entry in the list.
pub(super) const NEXT_FAMILY: Family<Box<dyn Architecture>> = Family {
    model_type: "llava_next",
    architectures: &["LlavaNextForConditionalGeneration"],
    read: |file, config| {
        let grids = Tiles::read(file, part(config, "image_grid_pinpoints"))?;
        Ok(Box::new(Config::read(file, config, &LLAVA, Some(grids))?))
    },
};

/// LLaVA-OneVision's entry in the list.
pub(super) const ONE_VISION_FAMILY: Family<Box<dyn Architecture>> = Family {
    model_type: "llava_onevision",
    architectures: &["LlavaOnevisionForConditionalGeneration"],
    read: |file, config| {
        let grids = Tiles::read(file, part(config, "image_grid_pinpoints"))?;
        let grids = grids.shrunk(file, part(config, "vision_aspect_ratio"))?;
        Ok(Box::new(Config::read(file, config, &ONE_VISION, Some(grids))?))
    },
};

/// Values of settings that a file leaves out.
struct Defaults {
    /// Model types of the two halves.
    tower: &'static str,
    text: &'static str,
    image_token: u32,
    feature_layer: i64,
    strategy: Strategy,
    /// Those of `preprocessor_config.json`.
    preprocessing: fn() -> Value,
}

const LLAVA: Defaults = Defaults {
    tower: tower::CLIP,
    text: "llama",
    image_token: 32000,
    feature_layer: -2,
    strategy: Strategy::Default,
    preprocessing: || json!({}),
};

const ONE_VISION: Defaults = Defaults {
    tower: tower::SIGLIP,
    text: "qwen2",
    image_token: 151_646,
    feature_layer: -1,
    strategy: Strategy::Full,
    preprocessing: || json!({"do_center_crop": false, "size": {"height": 384, "width": 384}}),
};

/// Settings of all of them.
#[derive(Deserialize)]
struct Settings {
    image_token_index: Option<u32>,
    /// The same in newer files.
    image_token_id: Option<u32>,
    vision_feature_layer: Option<FeatureLayers>,
    vision_feature_select_strategy: Option<Strategy>,
    projector_hidden_act: String,
    multimodal_projector_bias: bool,
}

fn defaults() -> Value {
    json!({"projector_hidden_act": "gelu", "multimodal_projector_bias": true})
}

/// The layers of the tower that are taken, as Python counts: 0 is what goes into the first, -1 what comes out of the
/// last. The rows of several stand side by side.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum FeatureLayers {
    One(i64),
    Several(Vec<i64>),
}

/// Maximum number of layers of a tower that are taken.
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Strategy {
    /// All but the first, which is the class's of CLIP.
    Default,
    /// All.
    Full,
}

/// `config.json`, with what the other small files say once they are read.
struct Config {
    file: PathBuf,
    vision: TowerConfig,
    /// Number of blocks before each of the tower's layers that are taken.
    layers: Vec<usize>,
    /// Number of the tower's first rows that are left out.
    leading: usize,
    text: DecoderConfig,
    image_token: u32,
    bias: Bias,
    activation: Activation,
    tiles: Option<Tiles>,
    defaults: &'static Defaults,
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
    fn read(file: &Path, config: &Value, defaults: &'static Defaults, tiles: Option<Tiles>) -> Result<Self> {
        let settings: Settings = parse(file, &with_defaults(config, self::defaults()))?;
        let mut vision = TowerConfig::read(file, part(config, "vision_config"), defaults.tower)?;
        let layers = settings.vision_feature_layer.unwrap_or(FeatureLayers::One(defaults.feature_layer));
        let layers = layers.counts(file, vision.transformer().layers.len())?;
        // Blocks after the last that is taken are not loaded.
        vision.truncate(layers.iter().copied().max().unwrap_or(0));
        let strategy = settings.vision_feature_select_strategy.unwrap_or(defaults.strategy);
        let leading = usize::from(strategy == Strategy::Default);
        let patches = vision.settings().grid() * vision.settings().grid();
        if tiles.is_some() && vision.rows() != patches + leading {
            let reason =
                "vision_feature_select_strategy takes other rows than the patches, of which tiles consist";
            return Err(invalid(file, reason));
        }
        Ok(Self {
            file: file.to_owned(),
            vision,
            layers,
            leading,
            text: text_half(file, config, defaults.text)?,
            image_token: settings
                .image_token_index
                .or(settings.image_token_id)
                .unwrap_or(defaults.image_token),
            bias: settings.multimodal_projector_bias.into(),
            activation: activation(file, "projector_hidden_act", &settings.projector_hidden_act)?,
            tiles,
            defaults,
            rest: None,
        })
    }
}

impl Architecture for Config {
    fn complete(&mut self, files: &SmallFiles<'_>, context: &LoadContext) -> Result<()> {
        let side = self.vision.settings().image_size;
        if let Some(tiles) = &mut self.tiles {
            let (file, config) = super::preprocessor_config(files, json!({}), context)?;
            if let Some(grids) = config.get("image_grid_pinpoints").filter(|grids| !grids.is_null()) {
                tiles.replace(&file, grids)?;
            }
            tiles.check(&self.file, side)?;
        }
        let preprocessing = match self.tiles {
            // What this file calls padding is that of a batch of several images.
            Some(_) => {
                super::preprocessing_without(files, (self.defaults.preprocessing)(), &["do_pad"], context)?
            }
            None => super::preprocessing(files, json!({"do_pad": false}), Processor::Clip, context)?,
        };
        if preprocessing.exact() != Some((side, side)) {
            let reason = "the preprocessing makes pictures of another size than image_size";
            return Err(invalid(&self.file, reason));
        }
        let chat = Chat::read(files, self.image_token, context)?;
        chat.check(self.text.vocabulary)?;
        self.rest = Some((preprocessing, chat));
        Ok(())
    }

    fn text(&self) -> &DecoderConfig {
        &self.text
    }

    fn uses(&self, tensor: &str) -> bool {
        let of_tower = TOWERS.iter().find_map(|prefix| tensor.strip_prefix(prefix));
        match of_tower {
            Some(name) => self.vision.uses(name),
            None => {
                PROJECTORS.iter().any(|prefix| tensor.starts_with(prefix))
                    || (self.tiles.is_some() && NEWLINES.contains(&tensor))
                    || self.text.uses(tensor)
            }
        }
    }

    fn has_no_effect(&self, tensor: &str) -> bool {
        match TOWERS.iter().find_map(|prefix| tensor.strip_prefix(prefix)) {
            Some(name) => !self.vision.uses(name),
            None => self.text.has_no_effect(tensor),
        }
    }

    fn per_worker(&self, room: WorkerMemory) -> Bytes {
        let crops = self.tiles.as_ref().map_or(1, Tiles::most);
        let images = room.images(self.vision.rows());
        let side = self.vision.settings().image_size as u64;
        let pixels = Bytes(side.saturating_mul(side).saturating_mul((12 * images * crops) as u64));
        let rows = self.vision.rows().saturating_mul(crops).saturating_add(room.longest);
        let taken = self.layers.len().saturating_mul(self.vision.transformer().width);
        let kept = (rows as u64).saturating_mul(self.text.width().max(taken) as u64);
        let kept = Bytes(kept.saturating_mul(8));
        let text = room.of_text(&self.text);
        self.vision.scratch() + pixels + kept + text
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
        let tower = prefix(weights, &TOWERS, "embeddings.patch_embedding.weight");
        let projector = prefix(weights, &PROJECTORS, "linear_1.weight");
        let newline = match self.tiles {
            Some(_) => {
                Some(reader.tensor(prefix(weights, &NEWLINES, ""), &[self.text.width()])?.unsqueeze(0)?)
            }
            None => None,
        };
        let tensors = SafeTensors::new(&reader, "", self.vision.transformer().workload);
        let wide = self.vision.transformer().width.saturating_mul(self.layers.len());
        let sizes = [wide, self.text.width()];
        Ok(Arc::new(Llava {
            tower: self.vision.load(&tensors.at(tower))?,
            projector: Projector::load(&tensors.at(projector), sizes, self.bias, self.activation)?,
            newline,
            language_model: LanguageModel {
                decoder: self.text.load(weights, device, context)?,
                image: ImagePlace::InPrompt,
            },
            ends: chat.ends(tokens, &self.text.end_tokens),
            layers: self.layers.clone(),
            leading: self.leading,
            kept: self.vision.rows().saturating_sub(self.leading),
            grid: self.vision.settings().grid(),
            side: self.vision.settings().image_size,
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
    fn load(
        tensors: &SafeTensors<'_>,
        [in_dim, out_dim]: [usize; 2],
        bias: Bias,
        activation: Activation,
    ) -> Result<Self> {
        Ok(Self {
            first: tensors.linear("linear_1", out_dim, in_dim, bias)?,
            activation,
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
    /// Number of rows that are kept of a crop.
    kept: usize,
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

    /// The tiles that each picture of a conversation of so many is cut into.
    fn tiles(&self, images: usize) -> Option<&Tiles> {
        self.tiles.as_ref().filter(|tiles| images == 1 || !tiles.are_for_one())
    }

    /// The patches that the text gets of a picture of these sides.
    fn layout(&self, tiles: &Tiles, sides: (usize, usize)) -> Layout {
        tiles.layout(sides, self.grid, self.side)
    }
}

impl Network for Llava {
    fn ends(&self) -> &[u32] {
        &self.ends
    }

    fn prompt(&self, tokens: &Tokens, asked: &Asked<'_>) -> Result<Prompt> {
        let sides = asked.sides.clone();
        let rows = |sides: &(usize, usize)| match self.tiles(asked.sides.len()) {
            Some(tiles) => self.layout(tiles, *sides).rows(),
            None => self.kept + usize::from(self.newline.is_some()),
        };
        let rows: Vec<usize> = sides.iter().map(rows).collect();
        let (tokens, places) = self.chat.ask(tokens, asked, &rows)?;
        Ok(Prompt { tokens, places, sides })
    }

    fn crops(&self, picture: &Picture, images: usize) -> Result<Vec<Tensor>> {
        let pictures = match self.tiles(images) {
            Some(tiles) => tiles.cut(picture, self.side, &self.preprocessing)?,
            None if self.tiles.is_some() => {
                vec![self.preprocessing.picture(&squared(picture, self.preprocessing.scaling.zero())?)?]
            }
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
        let rows = hidden.narrow(0, self.leading, self.kept)?.contiguous()?;
        // Several layers are projected together.
        Ok(Some(vec![if self.layers.len() > 1 { rows } else { self.projector.forward(&rows)? }]))
    }

    fn image(&self, sides: (usize, usize), images: usize, kept: &[Vec<Tensor>]) -> Result<ImageRows> {
        let mut rows = kept.iter().map(|crop| self.features(crop)).collect::<Result<Vec<_>>>()?;
        rows.extend(self.newline.clone());
        let all = Tensor::cat(&rows, 0)?;
        let rows = match self.tiles(images) {
            Some(tiles) => self.layout(tiles, sides).assemble(&all)?,
            None => all,
        };
        Ok(ImageRows { rows, deep: Vec::new() })
    }

    fn language_model(&self) -> &LanguageModel {
        &self.language_model
    }
}
