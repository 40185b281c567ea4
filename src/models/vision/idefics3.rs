//! Idefics3 (Laurençon et al. 2024) and SmolVLM (Marafioti et al. 2025): an image is split into tiles, and a SigLIP
//! tower sees each of them and the whole. Squares of patches are put side by side (pixel shuffle) and projected by one
//! layer into the text of a decoder, where words tell each tile's row and column. Follows `modeling_idefics3.py` and
//! `processing_idefics3.py` of transformers.

mod split;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{Device, Tensor};
use model_actors::{Bytes, LoadContext, Picture};
use serde::Deserialize;
use serde_json::{Value, json};

use super::any_size::Places;
use super::asked::Asked;
use super::chat::{Chat, part, text_half};
use super::language_model::{ImagePlace, LanguageModel};
use super::{
    Architecture, Network, Prompt, SmallFiles, StepwiseTower, Unfinished, WorkerMemory, misfit, prefix,
};
use crate::architecture::{Family, parse};
use crate::error::Result;
use crate::kernels::Activation;
use crate::limits::MAX_IMAGES;
use crate::models::config_file::{invalid, with_defaults, without_nulls};
use crate::models::decoder::DecoderConfig;
use crate::models::towers::siglip::VisionConfig;
use crate::models::towers::{VisionTower, pick};
use crate::models::transformer::{Bias, Norm, Projection, SafeTensors};
use crate::preprocessing::Scaling;
use crate::tokens::Tokens;
use crate::weights::WeightFiles;
use split::Splits;

/// Idefics3's entry in the list, which the first SmolVLM shares.
pub(super) const FAMILY: Family<Box<dyn Architecture>> = Family {
    model_type: "idefics3",
    architectures: &["Idefics3ForConditionalGeneration"],
    read: |file, config| with_text(file, config, text_half(file, config, "llama")?),
};

/// SmolVLM's entry in the list.
pub(super) const SMOLVLM_FAMILY: Family<Box<dyn Architecture>> = Family {
    model_type: "smolvlm",
    architectures: &["SmolVLMForConditionalGeneration"],
    read: |file, config| with_text(file, config, text_half(file, config, "llama")?),
};

/// Reads the settings of a model with this text half.
pub(super) fn with_text(file: &Path, config: &Value, text: DecoderConfig) -> Result<Box<dyn Architecture>> {
    Ok(Box::new(Config::read(file, config, text)?))
}

const TOWERS: [&str; 2] = ["model.vision_model.", "vision_model."];
const CONNECTORS: [&str; 2] = ["model.connector.", "connector."];
/// The word around each tile, and the one for the whole image.
const FAKE: &str = "<fake_token_around_image>";
const WHOLE: &str = "<global-img>";

#[derive(Deserialize)]
struct Settings {
    scale_factor: usize,
    image_token_id: u32,
}

fn defaults() -> Value {
    json!({"scale_factor": 2, "image_token_id": 128_257})
}

fn vision_defaults() -> Value {
    json!({
        "hidden_size": 1152, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 16,
        "image_size": 224, "patch_size": 32
    })
}

/// `config.json`, with what the other small files say once they are read.
struct Config {
    file: PathBuf,
    vision: VisionConfig,
    /// Number of patches along a side of those that are put side by side.
    scale_factor: usize,
    text: DecoderConfig,
    image_token: u32,
    rest: Option<(Splits, Scaling, Chat)>,
}

impl Config {
    fn read(file: &Path, config: &Value, text: DecoderConfig) -> Result<Self> {
        let settings: Settings = parse(file, &with_defaults(&without_nulls(config), defaults()))?;
        let vision = with_defaults(&without_nulls(part(config, "vision_config")), vision_defaults());
        let vision = VisionConfig::read(file, &vision)?;
        let (grid, scale_factor) = (vision.settings.grid(), settings.scale_factor);
        if scale_factor == 0 || !grid.is_multiple_of(scale_factor) {
            let reason =
                format!("scale_factor {scale_factor} does not divide the {grid} patches along a side");
            return Err(invalid(file, reason));
        }
        let image_token = settings.image_token_id;
        Ok(Self { file: file.to_owned(), vision, scale_factor, text, image_token, rest: None })
    }

    /// Number of rows that the text gets of a tile.
    fn rows(&self) -> usize {
        self.vision.rows() / (self.scale_factor * self.scale_factor)
    }
}

impl Architecture for Config {
    fn complete(&mut self, files: &SmallFiles<'_>, context: &LoadContext) -> Result<()> {
        let (file, config) = super::preprocessor_config(files, json!({}), context)?;
        let splits = Splits::read(&file, &config, self.vision.settings.image_size)?;
        let defaults = json!({
            "do_resize": false, "do_center_crop": false, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]
        });
        let preprocessing = super::preprocessing_without(files, defaults, &Splits::SETTINGS, context)?;
        let chat = Chat::read(files, self.image_token, context)?;
        chat.check(self.text.vocabulary)?;
        self.rest = Some((splits, preprocessing.scaling, chat));
        Ok(())
    }

    fn text(&self) -> &DecoderConfig {
        &self.text
    }

    fn uses(&self, tensor: &str) -> bool {
        let is_of_images = |prefix: &&str| tensor.starts_with(prefix);
        TOWERS.iter().chain(&CONNECTORS).any(is_of_images) || self.text.uses(tensor)
    }

    fn per_worker(&self, room: WorkerMemory) -> Bytes {
        // Those of the largest image, or of as many as a conversation has room for.
        let most = self.rest.as_ref().map_or(1, |(splits, ..)| splits.most());
        let all = most.saturating_mul(MAX_IMAGES).min(room.longest / self.rows().max(1));
        let tiles = most.max(all) as u64;
        let side = self.vision.settings.image_size as u64;
        let pixels = side.saturating_mul(side).saturating_mul(3);
        let kept = (self.rows() as u64).saturating_mul(2 * self.text.width() as u64);
        let images = Bytes(tiles.saturating_mul(pixels.saturating_add(kept)).saturating_mul(4));
        let tower = self.vision.transformer.scratch(self.vision.rows(), self.vision.rows());
        let text = room.of_text(&self.text);
        tower + images + text
    }

    fn load(
        &self,
        tokens: &Tokens,
        weights: &WeightFiles,
        device: &Device,
        context: &LoadContext,
    ) -> Result<Arc<dyn Network>> {
        let (splits, scaling, chat) = self.rest.clone().ok_or_else(misfit)?;
        if tokens.id(FAKE).is_none() {
            return Err(invalid(&self.file, format!("the tokenizer has no {FAKE}")));
        }
        let reader = weights.reader("", device, context);
        let tensors = SafeTensors::new(&reader, "", self.vision.transformer.workload);
        let tower = tensors.at(prefix(weights, &TOWERS, "embeddings.patch_embedding.weight"));
        let connector = tensors.at(prefix(weights, &CONNECTORS, "modality_projection.proj.weight"));
        let wide = self.vision.transformer.width * self.scale_factor * self.scale_factor;
        let squares = self.vision.settings.grid() / self.scale_factor;
        Ok(Arc::new(Idefics3 {
            tower: self.vision.load(&tower)?,
            norm: self.vision.load_last_norm(&tower)?,
            projection: connector.linear("modality_projection.proj", self.text.width(), wide, Bias::No)?,
            wide,
            order: Places::new((squares, squares), self.scale_factor, None).numbers(),
            rows: self.rows(),
            image_word: tokens.written(self.image_token).ok_or_else(|| {
                invalid(&self.file, format!("image_token_id {} is no token", self.image_token))
            })?,
            language_model: LanguageModel {
                decoder: self.text.load(weights, device, context)?,
                image: ImagePlace::InPrompt,
            },
            ends: chat.ends(tokens, &self.text.end_tokens),
            splits,
            scaling,
            chat,
            device: device.clone(),
        }))
    }
}

struct Idefics3 {
    tower: VisionTower,
    /// The norm after the last block.
    norm: Norm,
    projection: Projection,
    /// Length of a square of patches side by side.
    wide: usize,
    /// The patches of a tile in the order of their squares.
    order: Vec<usize>,
    /// Number of rows that the text gets of a tile.
    rows: usize,
    image_word: String,
    language_model: LanguageModel,
    ends: Vec<u32>,
    splits: Splits,
    scaling: Scaling,
    chat: Chat,
    device: Device,
}

impl Idefics3 {
    /// A picture of so many rows and columns of tiles as the text has it.
    fn words(&self, (rows, columns): (usize, usize)) -> String {
        let image = self.image_word.repeat(self.rows);
        let mut words = String::new();
        for row in 1..=rows {
            (1..=columns).for_each(|column| words += &format!("{FAKE}<row_{row}_col_{column}>{image}"));
            words.push('\n');
        }
        if rows > 0 {
            words.push('\n');
        }
        words + &format!("{FAKE}{WHOLE}{image}{FAKE}")
    }
}

impl Network for Idefics3 {
    fn ends(&self) -> &[u32] {
        &self.ends
    }

    fn prompt(&self, tokens: &Tokens, asked: &Asked<'_>) -> Result<Prompt> {
        let sides = asked.sides.clone();
        let grids: Vec<(usize, usize)> = sides.iter().map(|sides| self.splits.grid(*sides)).collect();
        let count = grids.iter().map(|(rows, columns)| (rows * columns + 1) * self.rows).sum();
        Chat::check_room(count, &self.image_word)?;
        let words: Vec<String> = grids.iter().map(|grid| self.words(*grid)).collect();
        let (tokens, places) = self.chat.ask_in_words(tokens, asked, (&self.image_word, &words), count)?;
        Ok(Prompt { tokens, places, sides })
    }

    fn crops(&self, picture: &Picture, _: usize) -> Result<Vec<Tensor>> {
        let pictures = self.splits.cut(picture)?;
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
        if layers < self.tower.transformer.depth() {
            return Ok(Some(Vec::new()));
        }
        let rows = pick(&self.norm.forward(hidden)?, self.order.iter().copied())?;
        let rows = self.projection.forward(&rows.reshape(((), self.wide))?, Activation::Identity)?;
        Ok(Some(vec![rows]))
    }

    fn language_model(&self) -> &LanguageModel {
        &self.language_model
    }
}
