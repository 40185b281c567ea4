//! Gemma 3 with images (Gemma Team 2025): the patches of a SigLIP tower, averaged square by square to a few rows, which a
//! norm and one layer bring into the text of a Gemma 3. The rows of an image see each other, and all that is before them.
//! Follows `modeling_gemma3.py` and `processing_gemma3.py` of transformers, without cutting wide images up.

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
    preprocessing_without, preprocessor_config,
};
use crate::architecture::{Family, parse};
use crate::error::{Error, Result};
use crate::kernels::{Activation, Linear};
use crate::models::config_file::{invalid, unsupported};
use crate::models::decoder::DecoderConfig;
use crate::models::towers::siglip::VisionConfig;
use crate::models::towers::{VisionTower, pick};
use crate::models::transformer::{Norm, NormKind, SafeTensors, Tensors as _};
use crate::preprocessing::Preprocessing;
use crate::source::read_json;
use crate::tokens::Tokens;
use crate::weights::WeightFiles;

/// The family's entry in the list.
pub(super) const FAMILY: Family<Box<dyn Architecture>> = Family {
    model_type: "gemma3",
    architectures: &["Gemma3ForConditionalGeneration"],
    read: |file, config| with_text(file, config, text_half(file, config, "gemma3_text")?),
};

/// Reads the settings of a model with this text half.
pub(super) fn with_text(file: &Path, config: &Value, text: DecoderConfig) -> Result<Box<dyn Architecture>> {
    Ok(Box::new(Config::read(file, config, text)?))
}

const TOWERS: [&str; 4] = [
    "vision_tower.vision_model.",
    "model.vision_tower.vision_model.",
    "model.vision_tower.",
    "vision_tower.",
];
const PROJECTORS: [&str; 2] = ["multi_modal_projector.", "model.multi_modal_projector."];
/// Settings of pictures that are cut up. The reference's processor puts its own in their place at each call, and cuts none up
/// unless the call asks for it.
const PAN_AND_SCAN: [&str; 4] = [
    "do_pan_and_scan",
    "pan_and_scan_min_crop_size",
    "pan_and_scan_max_num_crops",
    "pan_and_scan_min_ratio_to_activate",
];

#[derive(Deserialize)]
struct Settings {
    mm_tokens_per_image: Option<usize>,
    image_token_index: Option<u32>,
    /// The same in newer files.
    image_token_id: Option<u32>,
    boi_token_index: Option<u32>,
    boi_token_id: Option<u32>,
    eoi_token_index: Option<u32>,
    eoi_token_id: Option<u32>,
}

/// Numbers of the tokens of an image.
#[derive(Debug, Clone, Copy)]
struct ImageTokens {
    begin: u32,
    /// One for each row.
    row: u32,
    end: u32,
}

/// `config.json`, with what the other small files say once they are read.
struct Config {
    file: PathBuf,
    vision: VisionConfig,
    /// Rows that the text gets of an image, along a side.
    side: usize,
    text: DecoderConfig,
    image_tokens: ImageTokens,
    rest: Option<(Preprocessing, Chat)>,
}

impl Config {
    fn read(file: &Path, config: &Value, text: DecoderConfig) -> Result<Self> {
        // The head makes one vector of an image, which is not asked for, whether there is one or not.
        #[derive(Deserialize)]
        #[expect(dead_code, reason = "the setting is only checked")]
        struct Head {
            vision_use_head: Option<bool>,
        }
        let vision = part(config, "vision_config");
        if !vision.is_null() {
            parse::<Head>(file, vision)?;
        }
        let kind = vision.get("model_type").and_then(Value::as_str).unwrap_or("siglip_vision_model");
        if kind != "siglip_vision_model" {
            return Err(unsupported(file, "the vision tower", kind, "siglip_vision_model"));
        }
        let settings: Settings = parse(file, config)?;
        let vision = VisionConfig::read(file, vision)?;
        let (tokens, grid) = (settings.mm_tokens_per_image.unwrap_or(256), vision.settings.grid());
        let side = tokens.isqrt();
        if side == 0 || side * side != tokens || !grid.is_multiple_of(side) {
            let reason = format!(
                "mm_tokens_per_image {tokens} is no square that divides the {grid} patches along a side"
            );
            return Err(invalid(file, reason));
        }
        let image_tokens = ImageTokens {
            begin: settings.boi_token_index.or(settings.boi_token_id).unwrap_or(255_999),
            row: settings.image_token_index.or(settings.image_token_id).unwrap_or(262_144),
            end: settings.eoi_token_index.or(settings.eoi_token_id).unwrap_or(256_000),
        };
        // The reference implementation caps the logits of the text models alone.
        let text = DecoderConfig { logit_cap: None, ..text };
        Ok(Self { file: file.to_owned(), vision, side, text, image_tokens, rest: None })
    }

    /// Number of rows that the text gets of an image.
    fn rows(&self) -> usize {
        self.side * self.side
    }

    /// Refuses another number of rows in `processor_config.json`, which writes the placeholders.
    fn check_processor(&self, files: &SmallFiles<'_>, context: &LoadContext) -> Result<()> {
        #[derive(Deserialize)]
        struct Processor {
            image_seq_length: Option<usize>,
        }
        let Some(file) = files.optional("processor_config.json", context)? else { return Ok(()) };
        let processor: Processor = parse(&file, &read_json(&file)?)?;
        match processor.image_seq_length {
            Some(length) if length != self.rows() => {
                let rows = self.rows();
                Err(invalid(&file, format!("image_seq_length is {length}; mm_tokens_per_image is {rows}")))
            }
            _ => Ok(()),
        }
    }
}

impl Architecture for Config {
    fn complete(&mut self, files: &SmallFiles<'_>, context: &LoadContext) -> Result<()> {
        let (file, _) = preprocessor_config(files, json!({}), context)?;
        self.check_processor(files, context)?;
        let defaults = json!({
            "do_center_crop": false, "size": {"height": 224, "width": 224}, "resample": 2,
            "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]
        });
        let preprocessing = preprocessing_without(files, defaults, &PAN_AND_SCAN, context)?;
        let side = self.vision.settings.image_size;
        if preprocessing.exact() != Some((side, side)) {
            return Err(invalid(&file, "the preprocessing makes pictures of another size than image_size"));
        }
        let chat = Chat::read(files, self.image_tokens.row, context)?;
        chat.check(self.text.vocabulary)?;
        self.rest = Some((preprocessing, chat));
        Ok(())
    }

    fn text(&self) -> &DecoderConfig {
        &self.text
    }

    fn uses(&self, tensor: &str) -> bool {
        let of_images = TOWERS.iter().chain(&PROJECTORS).any(|prefix| tensor.starts_with(prefix));
        (of_images && !self.has_no_effect(tensor)) || self.text.uses(tensor)
    }

    fn has_no_effect(&self, tensor: &str) -> bool {
        match TOWERS.iter().find_map(|prefix| tensor.strip_prefix(prefix)) {
            Some(name) => name.starts_with("head.") || name.ends_with("position_ids"),
            None => self.text.has_no_effect(tensor),
        }
    }

    fn per_worker(&self, room: WorkerMemory) -> Bytes {
        let images = room.images(self.rows()) as u64;
        let side = self.vision.settings.image_size as u64;
        let pixels = side.saturating_mul(side).saturating_mul(3);
        let kept = (self.rows() as u64).saturating_mul(2 * self.text.width() as u64);
        let images = Bytes(images.saturating_mul(pixels.saturating_add(kept)).saturating_mul(4));
        // What comes out of the tower, normed, and put into the order of squares.
        let patches = self.vision.rows();
        let pooled = (patches as u64).saturating_mul(12).saturating_mul(self.vision.transformer.width as u64);
        let tower = self.vision.transformer.scratch(patches, patches).max(Bytes(pooled));
        // An image's rows are read in one step.
        let rows = room.rows.max(self.rows());
        let text = self.text.scratch(rows, room.longest) + self.text.cache_bytes(room.held, room.sequences);
        tower + images + text
    }

    fn load(
        &self,
        tokens: &Tokens,
        weights: &WeightFiles,
        device: &Device,
        context: &LoadContext,
    ) -> Result<Arc<dyn Network>> {
        let (preprocessing, chat) = self.rest.clone().ok_or_else(misfit)?;
        let written = |name: &str, id: u32| {
            let no_token = || invalid(&self.file, format!("{name} {id} is no token"));
            tokens.written(id).ok_or_else(no_token)
        };
        let ImageTokens { begin, row, end } = self.image_tokens;
        let begin_word = written("boi_token_index", begin)?;
        let row = written("image_token_index", row)?;
        Chat::check_room(self.rows(), &row).map_err(|error| invalid(&self.file, error.to_string()))?;
        let (rows, end_word) = (row.repeat(self.rows()), written("eoi_token_index", end)?);
        let words = format!("\n\n{begin_word}{rows}{end_word}\n\n");
        let reader = weights.reader("", device, context);
        let tensors = SafeTensors::new(&reader, "", self.vision.transformer.workload);
        let tower = tensors.at(prefix(weights, &TOWERS, "embeddings.patch_embedding.weight"));
        let projector = tensors.at(prefix(weights, &PROJECTORS, "mm_input_projection_weight"));
        Ok(Arc::new(Gemma3 {
            tower: self.vision.load(&tower)?,
            last_norm: self.vision.load_last_norm(&tower)?,
            projector: Projector::load(self, &projector)?,
            language_model: LanguageModel {
                decoder: self.text.load(weights, device, context)?,
                image: ImagePlace::Together,
            },
            ends: chat.ends(tokens, &self.text.end_tokens),
            rows: self.rows(),
            begin: (begin, begin_word),
            words,
            preprocessing,
            chat,
            device: device.clone(),
        }))
    }
}

/// The mean of each square of patches, a norm, and a layer.
struct Projector {
    /// The patches in the order of their squares.
    order: Vec<usize>,
    /// Number of patches of a square.
    square: usize,
    norm: Norm,
    layer: Linear,
}

impl Projector {
    fn load(config: &Config, tensors: &SafeTensors<'_>) -> Result<Self> {
        let Config { vision, side, text, .. } = config;
        let (width, along) = (vision.transformer.width, vision.settings.grid() / (*side).max(1));
        // The file has it input by input.
        let weight = tensors.tensor("mm_input_projection_weight", &[width, text.width()])?;
        Ok(Self {
            order: Places::new((*side, *side), along, None).numbers(),
            square: along * along,
            norm: tensors.norm(
                "mm_soft_emb_norm",
                width,
                NormKind::RmsLessOne,
                vision.transformer.epsilon,
            )?,
            layer: Linear::new(&weight.t()?.contiguous()?, None)?,
        })
    }

    fn forward(&self, patches: &Tensor) -> Result<Tensor> {
        let width = patches.dim(1)?;
        let squares = pick(patches, self.order.iter().copied())?.reshape(((), self.square, width))?;
        self.layer.forward(&self.norm.forward(&squares.mean(1)?)?, Activation::Identity)
    }
}

struct Gemma3 {
    tower: VisionTower,
    /// The norm after the last block.
    last_norm: Norm,
    projector: Projector,
    language_model: LanguageModel,
    ends: Vec<u32>,
    /// Number of rows that the text gets of an image.
    rows: usize,
    /// The token with which the template marks an image's place, and the way it is written.
    begin: (u32, String),
    /// An image as the text has it.
    words: String,
    preprocessing: Preprocessing,
    chat: Chat,
    device: Device,
}

impl Network for Gemma3 {
    fn ends(&self) -> &[u32] {
        &self.ends
    }

    fn prompt(&self, tokens: &Tokens, asked: &Asked<'_>) -> Result<Prompt> {
        let sides = asked.sides.clone();
        Chat::check_room(sides.len(), &self.words)?;
        let words = vec![self.words.clone(); sides.len()];
        let count = sides.len() * self.rows;
        let (begin, word) = &self.begin;
        let (tokens, places) = self.chat.ask_in_words(tokens, asked, (word, &words), count)?;
        // The word in a message could have taken the place of the template's.
        if tokens.iter().filter(|token| *token == begin).count() != sides.len() {
            return Err(Error::InvalidInput(format!("a message holds {word}, which stands for an image")));
        }
        Ok(Prompt { tokens, places, sides })
    }

    fn crops(&self, picture: &Picture, _: usize) -> Result<Vec<Tensor>> {
        let picture = self.preprocessing.picture(picture)?;
        Ok(vec![self.preprocessing.scaling.tensor(&picture, &self.device)?])
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
        Ok(Some(vec![self.projector.forward(&self.last_norm.forward(hidden)?)?]))
    }

    fn language_model(&self) -> &LanguageModel {
        &self.language_model
    }
}
