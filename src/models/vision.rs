//! Vision: from a source's files to a model that looks at the images of a conversation and writes an answer. The list of families
//! is here, and the two traits between a family and what all share: the progress of a request from a picture
//! to the last word, in steps short enough to look between them at who has gone and to let others in. A
//! family's vision tower and how it shows an image to its text half are left to its file; the text half is a
//! decoder (`language_model`).

mod asked;
mod small_files;
mod chat;
mod language_model;
mod any_size;
mod blip;
mod blip2;
mod idefics3;
mod gemma3;
mod llava;
mod moondream;
mod qwen_vl;
mod request;
mod gguf;
mod plan;
mod model;
mod worker;
#[cfg(test)]
mod blip_tests;
#[cfg(test)]
mod request_tests;
#[cfg(test)]
mod worker_tests;

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use candle_core::{Device, Tensor};
use model_actors::{Bytes, Footprint, LoadContext, Picture};
use serde_json::{Map, Value};

use crate::architecture::Family;
use crate::device::Compute;
use crate::error::Result;
use crate::limits::{GenerationLimits, MAX_IMAGES};
use crate::models::config_file::{with_defaults, without_nulls};
use crate::models::decoder::DecoderConfig;
use crate::models::generation_config::GenerationConfig;
use crate::models::passes::PROMPT_ROWS;
use crate::models::towers::VisionTower;
use crate::preprocessing::{Preprocessing, Processor};
use crate::structured::Grammars;
use crate::tokens::Tokens;
use crate::weights::WeightFiles;
use asked::Asked;
use language_model::{Answer, LanguageModel};
pub use model::{ExaminedImage, VisionModel};
pub(crate) use plan::VisionPlan;
use small_files::SmallFiles;

/// The families, in the order that errors list them. A new one is its file and its line here.
const FAMILIES: &[Family<Box<dyn Architecture>>] = &[
    llava::FAMILY,
    llava::NEXT_FAMILY,
    llava::ONE_VISION_FAMILY,
    llava::MISTRAL3_FAMILY,
    moondream::FAMILY,
    blip::FAMILY,
    blip2::FAMILY,
    qwen_vl::QWEN2,
    qwen_vl::QWEN2_5,
    qwen_vl::QWEN3,
    qwen_vl::QWEN3_MOE,
    idefics3::FAMILY,
    idefics3::SMOLVLM_FAMILY,
    gemma3::FAMILY,
];

/// The capability's name in errors.
const CAPABILITY: &str = "vision";

/// A model that is not loaded, as its small files describe it.
trait Architecture: Send + Sync {
    /// Reads what it needs beside `config.json`: preprocessing, chat template.
    fn complete(&mut self, files: &SmallFiles<'_>, context: &LoadContext) -> Result<()>;
    /// The text half.
    fn text(&self) -> &DecoderConfig;
    /// Number of tokens that it knows.
    fn vocabulary(&self) -> usize {
        self.text().vocabulary
    }
    /// Maximum number of tokens of a conversation, with its images, and an answer together. The rows of an image are not
    /// there any more when an answer would have to be read again.
    fn context(&self) -> usize {
        self.text().steady_context()
    }
    /// True for tensors of the file that change no answer.
    fn has_no_effect(&self, tensor: &str) -> bool {
        self.text().has_no_effect(tensor)
    }
    /// True for the tensors of the file that are loaded.
    fn uses(&self, tensor: &str) -> bool;
    /// True for those that are packed for any number of rows, in which matrices of 16 bits stay so.
    fn packs(&self, tensor: &str) -> bool {
        self.text().packs(tensor)
    }
    /// Number of rows that each answer keeps in memory besides its tokens: an image that is no part of the
    /// text.
    fn apart(&self) -> usize {
        0
    }
    /// Bytes that a worker needs besides the weights and the logits.
    fn per_worker(&self, room: WorkerMemory) -> Bytes;
    /// Reads the weights. The tokenizer comes after the small files.
    fn load(
        &self,
        tokens: &Tokens,
        weights: &WeightFiles,
        device: &Device,
        context: &LoadContext,
    ) -> Result<Arc<dyn Network>>;
}

/// The most that a worker has in memory.
#[derive(Debug, Clone, Copy)]
struct WorkerMemory {
    /// Tokens of all answers together, with their prompts, their images and what is kept apart from them.
    held: usize,
    /// Answers that are written together.
    sequences: usize,
    /// Tokens of one answer with its prompt and images.
    longest: usize,
    /// Rows that go through the text model in one step.
    rows: usize,
}

impl WorkerMemory {
    /// Number of images of at least so many rows that one conversation may have.
    fn images(&self, rows: usize) -> usize {
        (self.longest / rows.max(1)).clamp(1, MAX_IMAGES)
    }

    /// Bytes of a text half.
    fn of_text(&self, text: &DecoderConfig) -> Bytes {
        text.scratch(self.rows, self.longest) + text.cache_bytes(self.held, self.sequences)
    }
}

/// A loaded model. It keeps nothing between steps, so that all workers share one.
trait Network: Send + Sync {
    /// The tokens that end an answer.
    fn ends(&self) -> &[u32];
    /// The prompt for a conversation.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::Error::InvalidInput) for one that the family does not take.
    fn prompt(&self, tokens: &Tokens, asked: &Asked<'_>) -> Result<Prompt>;
    /// The crops of a picture that the tower will see, `(3, height, width)` each, in a conversation of so many.
    fn crops(&self, picture: &Picture, images: usize) -> Result<Vec<Tensor>>;

    /// The vision tower.
    fn tower(&self) -> &dyn StepwiseTower;
    /// The rows that are kept of a crop after so many blocks.
    fn keep(
        &self,
        layers: usize,
        hidden: &Tensor,
        parts: &mut Option<Unfinished>,
    ) -> Result<Option<Vec<Tensor>>>;

    /// An image of these sides, in a conversation of so many, as the text half sees it: from all rows that were kept of
    /// each crop, in the order of blocks.
    fn image(&self, _: (usize, usize), _: usize, kept: &[Vec<Tensor>]) -> Result<ImageRows> {
        let rows = Tensor::cat(&kept.iter().flatten().collect::<Vec<_>>(), 0)?;
        Ok(ImageRows { rows, deep: Vec::new() })
    }
    /// The text half.
    fn language_model(&self) -> &LanguageModel;
    /// The tokens before an answer that its repetitions are counted in.
    fn before<'a>(&'a self, prompt: &'a Prompt) -> &'a [u32] {
        &prompt.tokens
    }
    /// An answer to a prompt of which nothing is read yet.
    fn begin(&self, prompt: &Prompt, images: &[ImageRows]) -> Result<Answer> {
        self.language_model().begin(prompt, images, None)
    }
}

/// A vision tower that a crop goes through step by step. Where a crop has very many rows, each call takes a part of the
/// step, what is made so far stays in `parts`, and the last call gives all.
trait StepwiseTower: Send + Sync {
    /// Number of blocks.
    fn depth(&self) -> usize;
    /// The first block's input for a crop.
    fn open(&self, crop: &Tensor, parts: &mut Option<Unfinished>) -> Result<Option<Tensor>>;
    /// A block's output.
    fn step(
        &self,
        block: usize,
        hidden: &Tensor,
        crop: &Tensor,
        parts: &mut Option<Unfinished>,
    ) -> Result<Option<Tensor>>;
}

/// All rows of a crop at once: these towers take crops of one size.
impl StepwiseTower for VisionTower {
    fn depth(&self) -> usize {
        self.transformer.depth()
    }

    fn open(&self, crop: &Tensor, _: &mut Option<Unfinished>) -> Result<Option<Tensor>> {
        Ok(Some(self.embed(std::slice::from_ref(crop))?.hidden))
    }

    fn step(
        &self,
        block: usize,
        hidden: &Tensor,
        _: &Tensor,
        _: &mut Option<Unfinished>,
    ) -> Result<Option<Tensor>> {
        let (hidden, rows) = (hidden.clone(), hidden.dim(0)?);
        self.transformer.encode(hidden, &[rows], block..block + 1, |_, _| Ok(())).map(Some)
    }
}

/// The tokens that will be read for a request.
#[derive(Clone)]
struct Prompt {
    /// A token for each row that the text half reads; those of images are placeholders.
    tokens: Vec<u32>,
    /// The places of all images' rows, in order, where they are a part of the text. An image may have several.
    places: Vec<Range<usize>>,
    /// Width and height of each picture as it came.
    sides: Vec<(usize, usize)>,
}

/// The parts made so far of one thing that a tower does with a crop: its opening, a block, or the rows that
/// are kept.
struct Unfinished {
    /// In a block, queries, keys and values, `(rows, width)` each, of which the first `projected` rows are
    /// there.
    qkv: Vec<Tensor>,
    projected: usize,
    /// The output, of which the first `finished` rows are there.
    out: Tensor,
    finished: usize,
}

/// An image as the text half sees it.
struct ImageRows {
    /// `(rows, width)`.
    rows: Tensor,
    /// Rows of the same shape, to be added after each of the text half's first blocks (DeepStack).
    deep: Vec<Tensor>,
}

/// Reads `preprocessor_config.json`, with these `defaults` for what it leaves out, and those of `processor` where
/// the file names another than the usual ones: the family knows what that does.
fn preprocessing(
    files: &SmallFiles<'_>,
    defaults: Value,
    processor: Processor,
    context: &LoadContext,
) -> Result<Preprocessing> {
    let (file, mut config) = preprocessor_config(files, defaults, context)?;
    let processor = Processor::named(&config).unwrap_or(processor);
    leave_out(&mut config, &["image_processor_type", "feature_extractor_type"]);
    Preprocessing::read(&file, &config, processor)
}

/// The same as CLIP's, without the settings of these `names`, which the family reads itself; its `defaults`
/// stand in.
fn preprocessing_without(
    files: &SmallFiles<'_>,
    defaults: Value,
    names: &[&str],
    context: &LoadContext,
) -> Result<Preprocessing> {
    let (file, mut config) = preprocessor_config(files, Value::Object(Map::new()), context)?;
    leave_out(&mut config, &["image_processor_type", "feature_extractor_type"]);
    leave_out(&mut config, names);
    Preprocessing::read(&file, &with_defaults(&without_nulls(&config), defaults), Processor::Clip)
}

fn leave_out(config: &mut Value, names: &[&str]) {
    if let Some(settings) = config.as_object_mut() {
        settings.retain(|name, _| !names.contains(&name.as_str()));
    }
}

/// The settings of the model's image processor, with these defaults, and the file that they are from.
fn preprocessor_config(
    files: &SmallFiles<'_>,
    defaults: Value,
    context: &LoadContext,
) -> Result<(PathBuf, Value)> {
    let (path, config) = files.processor_config(context)?;
    Ok((path, with_defaults(&without_nulls(&config), defaults)))
}

/// The first of the beginnings of names under which the file has the tensor `name`, or the first of all.
fn prefix(weights: &WeightFiles, beginnings: &[&'static str], name: &str) -> &'static str {
    let is_there = |beginning: &&&str| weights.contains(&format!("{beginning}{name}"));
    beginnings.iter().find(is_there).or(beginnings.first()).copied().unwrap_or_default()
}

/// The error for parts that do not belong together: a fault of this crate.
fn misfit() -> crate::error::Error {
    crate::error::Error::compute("vision: the parts of a request do not fit the model")
}

/// A model in memory, shared by its workers.
pub(crate) struct LoadedModel {
    network: Arc<dyn Network>,
    tokens: Tokens,
    grammars: Grammars,
    context: usize,
    apart: usize,
    limits: GenerationLimits,
    settings: GenerationConfig,
    /// Number of steps of all its workers so far: blocks of the vision tower, parts of prompts, tokens.
    steps: AtomicU64,
    compute: Compute,
    footprint: Footprint,
}
