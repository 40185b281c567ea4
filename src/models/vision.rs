//! Vision: from a source's files to a model that looks at an image and writes an answer. The list of families is here,
//! and what they share: how far a request can be, from a picture to the last word, in steps short enough to look
//! between them at who has gone and to let others in. What one family computes is left to its file.

mod chat;
mod language_model;
mod blip;
mod llava;
mod moondream;
mod qwen3_vl;
mod plan;
mod request;
mod model;
mod worker;
#[cfg(test)]
mod worker_tests;

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use candle_core::{Device, Tensor};
use model_actors::{Bytes, Footprint, LoadContext, Picture};
use serde_json::{Map, Value};

use crate::device::Compute;
use crate::error::Result;
use crate::families::Family;
use crate::limits::GenerationLimits;
use crate::models::continuous_batching::PROMPT_ROWS;
use crate::models::towers::{Stack, with_defaults};
use crate::pixels::{Preprocessing, Processor};
use crate::source::{Files, read_json};
use crate::tokens::Tokens;
use crate::weights::WeightFiles;
pub use model::{ExaminedImage, VisionModel};
pub(crate) use plan::VisionPlan;

/// The families, in the order that errors list them. A new one is its file and its line here.
const FAMILIES: &[Family<Box<dyn Architecture>>] =
    &[llava::FAMILY, llava::NEXT_FAMILY, moondream::FAMILY, blip::FAMILY, qwen3_vl::FAMILY];

/// What errors call it.
const CAPABILITY: &str = "vision";

/// What gemm, the tokenizer and the allocator keep for each thread, as measured.
const THREAD_SCRATCH: Bytes = Bytes::mib(4);

/// A model that is not loaded: what its small files tell.
trait Architecture: Send + Sync {
    /// Reads what it needs beside `config.json`: preprocessing, chat template.
    fn complete(&mut self, files: &Files, context: &LoadContext) -> Result<()>;
    /// Tokens that it knows.
    fn vocabulary(&self) -> usize;
    /// Most tokens of an image, a question and an answer together.
    fn context(&self) -> usize;
    /// Whether a tensor of the file will be loaded.
    fn uses(&self, tensor: &str) -> bool;
    /// Rows that each answer keeps in memory besides its tokens: an image that is no part of the text.
    fn apart(&self) -> usize {
        0
    }
    /// What a worker needs besides the weights and the logits.
    fn per_worker(&self, room: WorkerMemory) -> Bytes;
    /// What it needs to know of the tokenizer, which comes after the small files.
    fn load(
        &self,
        tokens: &Tokens,
        weights: &WeightFiles,
        device: &Device,
        context: &LoadContext,
    ) -> Result<Arc<dyn Network>>;
}

/// How much a worker has in memory at most.
#[derive(Debug, Clone, Copy)]
struct WorkerMemory {
    /// Tokens of all answers together, with their prompts, their images and what is kept apart from them.
    held: usize,
    /// Tokens of one answer with its prompt and image.
    longest: usize,
    /// Rows that go through the text model in one step.
    rows: usize,
}

/// A loaded model. It keeps nothing between steps, so that all workers share one.
trait Network: Send + Sync {
    /// Tokens that end an answer.
    fn ends(&self) -> &[u32];
    /// What will be read for a picture of these sides and a question, which may be empty.
    fn prompt(&self, tokens: &Tokens, sides: (usize, usize), question: &str) -> Result<Prompt>;
    /// What the tower will see of a picture, `(3, height, width)` each.
    fn crops(&self, picture: &Picture) -> Result<Vec<Tensor>>;

    /// What the first layer of the vision tower is given of a crop; or, where a crop has very many rows, the next part
    /// of that, and all of it at the end. So it is with the two below.
    fn open_crop(&self, crop: &Tensor, parts: &mut Option<Unfinished>) -> Result<Option<Tensor>>;
    /// Layers that a crop goes through.
    fn tower_layers(&self) -> usize;
    /// What comes out of a layer of the tower.
    fn tower_step(
        &self,
        layer: usize,
        hidden: &Tensor,
        crop: &Tensor,
        parts: &mut Option<Unfinished>,
    ) -> Result<Option<Tensor>>;
    /// What is kept of a crop after so many layers.
    fn keep(
        &self,
        layers: usize,
        hidden: &Tensor,
        parts: &mut Option<Unfinished>,
    ) -> Result<Option<Vec<Tensor>>>;

    /// All that was kept, for each crop in the order of layers, as the text model sees the image: `(rows, width)`, and
    /// what else is to be added further up.
    fn image(&self, prompt: &Prompt, kept: &[Vec<Tensor>]) -> Result<ImageRows>;
    /// A text model that has yet to read its prompt.
    fn begin(&self, prompt: &Prompt, image: ImageRows) -> Result<Memory>;
    /// Reads the next part of the prompt. At its end, the logits of the first token, `(1, vocabulary)`.
    fn read(&self, memory: &mut Memory) -> Result<Option<Tensor>>;
    /// Reads one more token of each of several answers: logits of the next, `(answers, vocabulary)`.
    fn write(&self, answers: &mut [(&mut Memory, u32)]) -> Result<Tensor>;
}

/// What will be read for a request.
struct Prompt {
    /// A token for each row that the text model reads; those of the image are placeholders.
    tokens: Vec<u32>,
    /// Which rows are the image's, where it is a part of the text.
    image: Range<usize>,
    /// Width and height of the picture as it came.
    sides: (usize, usize),
}

/// What the parts of one thing that a tower does with a crop have made so far: its opening, a layer, or what is kept.
struct Unfinished {
    /// In a layer, queries, keys and values, `(rows, width)` each, of which the first `projected` rows are there.
    mixed: Vec<Tensor>,
    projected: usize,
    /// What comes out, of which the first `finished` rows are there.
    out: Tensor,
    finished: usize,
}

/// An image as a text model sees it.
struct ImageRows {
    /// `(rows, width)`.
    rows: Tensor,
    /// Of the same shape, to be added after the text model's first layers.
    deep: Vec<Tensor>,
}

/// What a worker keeps of one answer.
enum Memory {
    Blip(blip::Memory),
    Moondream(moondream::Memory),
    LanguageModel(language_model::Memory),
}

impl Memory {
    fn blip(&mut self) -> Result<&mut blip::Memory> {
        match self {
            Self::Blip(memory) => Ok(memory),
            Self::Moondream(_) | Self::LanguageModel(_) => Err(misfit()),
        }
    }

    fn moondream(&mut self) -> Result<&mut moondream::Memory> {
        match self {
            Self::Moondream(memory) => Ok(memory),
            Self::Blip(_) | Self::LanguageModel(_) => Err(misfit()),
        }
    }

    fn language_model(&mut self) -> Result<&mut language_model::Memory> {
        match self {
            Self::LanguageModel(memory) => Ok(memory),
            Self::Blip(_) | Self::Moondream(_) => Err(misfit()),
        }
    }
}

/// Reads `preprocessor_config.json`, where it does not say with these `defaults`. The name of the processor in the file
/// is left aside: the family knows what it does.
fn preprocessing(
    files: &Files,
    defaults: Value,
    processor: Processor,
    context: &LoadContext,
) -> Result<Preprocessing> {
    let (file, mut config) = preprocessor_config(files, defaults, context)?;
    leave_out(&mut config, &["image_processor_type", "feature_extractor_type"]);
    Preprocessing::read(&file, &config, processor)
}

/// The same as CLIP's, without what a family reads itself; its `defaults` stand in for that.
fn preprocessing_without(
    files: &Files,
    defaults: Value,
    names: &[&str],
    context: &LoadContext,
) -> Result<Preprocessing> {
    let (file, mut config) = preprocessor_config(files, Value::Object(Map::new()), context)?;
    leave_out(&mut config, &["image_processor_type", "feature_extractor_type"]);
    leave_out(&mut config, names);
    Preprocessing::read(&file, &with_defaults(defaults, &[&config]), Processor::Clip)
}

fn leave_out(config: &mut Value, names: &[&str]) {
    if let Some(settings) = config.as_object_mut() {
        settings.retain(|name, _| !names.contains(&name.as_str()));
    }
}

/// The content of `preprocessor_config.json`, or of the part of `processor_config.json` where newer releases of
/// transformers put it, and the file that it is from.
fn preprocessor_config(files: &Files, defaults: Value, context: &LoadContext) -> Result<(PathBuf, Value)> {
    if let Some(path) = files.optional("processor_config.json", context)? {
        let config: Value = read_json(&path)?;
        if let Some(config) = config.get("image_processor") {
            return Ok((path, with_defaults(defaults, &[config])));
        }
    }
    let path = files.required("preprocessor_config.json", context)?;
    let config: Value = read_json(&path)?;
    Ok((path, with_defaults(defaults, &[&config])))
}

/// One layer of a tower over the rows of one crop.
fn stack_layer(stack: &Stack, layer: usize, hidden: &Tensor) -> Result<Option<Tensor>> {
    let (rows, layer) = (hidden.dim(0)?, stack.layers.get(layer).ok_or_else(misfit)?);
    layer.forward(hidden, &[rows], stack.heads, stack.mask).map(Some)
}

/// A step was given what another model remembers: a fault of this crate.
fn misfit() -> crate::error::Error {
    crate::error::Error::compute("a memory of another model")
}

/// A model in memory, shared by its workers.
pub(crate) struct LoadedModel {
    network: Arc<dyn Network>,
    tokens: Tokens,
    context: usize,
    apart: usize,
    limits: GenerationLimits,
    /// Steps of all its workers so far: layers of the vision tower, parts of prompts, tokens.
    steps: AtomicU64,
    compute: Compute,
    footprint: Footprint,
}
