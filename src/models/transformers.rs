//! Language models of candle-transformers, and of applications in the same form: one that `config.json` describes becomes
//! one in memory, and its texts take turns. Each family is a few lines in the folder beside this file. Those with a stack
//! of the common block are in `decoder`, which reads GGUF too and runs many texts in one pass; here is the long tail.

mod weights;
#[cfg(feature = "transformers")]
pub(crate) mod gguf;
#[cfg(feature = "transformers")]
mod families;
#[cfg(feature = "transformers")]
mod recurrent;
#[cfg(feature = "transformers")]
mod rebuilt;

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
#[cfg(feature = "transformers")]
use std::sync::{Arc, Mutex, PoisonError};

#[cfg(feature = "transformers")]
use candle_core::DType;
use candle_core::{Device, Tensor};
#[cfg(feature = "transformers")]
use candle_nn::VarBuilder;
#[cfg(feature = "transformers")]
use candle_nn::var_builder::SimpleBackend;
use model_actors::{Bytes, LoadContext};

use crate::architecture::{Family, names_of};
use crate::error::{Error, Result};
use crate::language_model::{Begin, Described, Forward, Load, PromptReading, TextsPerWorker};
use crate::models::config_file::{MAX_LAYERS, MAX_SIDE, invalid};
use crate::models::passes::PROMPT_ROWS;
use crate::models::transformer::is_buffer;
use crate::weights::WeightFiles;
#[cfg(feature = "transformers")]
use weights::Lent;
use weights::Tensors;

/// Rows of the first piece of a prompt whose rest is read token by token: long enough for most prompts, and short enough
/// for scores of all heads.
const FIRST_PIECE: usize = 512;

/// The families, in the order that errors list them. A new one is its lines in a file of this folder and its line here.
#[cfg(feature = "transformers")]
pub(crate) const FAMILIES: &[Family<Described>] = &[
    families::OLMO,
    families::OLMO2,
    families::GLM4,
    families::CHATGLM,
    families::STARCODER2,
    families::HELIUM,
    families::MIXTRAL,
    families::FALCON,
    families::LFM2,
    families::GRANITE,
    families::GRANITE_HYBRID,
    families::RECURRENT_GEMMA,
    recurrent::MAMBA,
    recurrent::MAMBA2,
    rebuilt::DEEPSEEK2,
    rebuilt::STABLE_LM,
    rebuilt::BIG_CODE,
];
/// None without the library.
#[cfg(not(feature = "transformers"))]
pub(crate) const FAMILIES: &[Family<Described>] = &[];

/// Refuses a model whose sizes no model has, before memory is computed from them.
///
/// # Errors
/// [`Error::InvalidConfig`].
pub(crate) fn check(file: &Path, model: &Described) -> Result<()> {
    let shape = &model.shape;
    let sides = [
        ("vocab_size", shape.vocabulary),
        ("the number of positions", shape.context),
        ("the width", shape.width),
        ("the number of heads", shape.heads),
        ("the length of heads", shape.head_size),
        ("the width of the feed-forward network", shape.intermediate),
    ];
    if let Some((name, side)) = sides.into_iter().find(|(_, side)| !(1..=MAX_SIDE).contains(side)) {
        return Err(invalid(file, format!("{name} is {side}; 1 to {MAX_SIDE} are allowed")));
    }
    if !(1..=MAX_LAYERS).contains(&shape.layers) {
        return Err(invalid(file, format!("it has {} layers; 1 to {MAX_LAYERS} are allowed", shape.layers)));
    }
    let shares = shape.kv_heads == 0 || shape.heads.is_multiple_of(shape.kv_heads);
    if !shares || shape.kv_heads > shape.heads {
        let (heads, kept) = (shape.heads, shape.kv_heads);
        return Err(invalid(file, format!("{heads} heads cannot share the keys and values of {kept}")));
    }
    Ok(())
}

/// The same error, which lists the families of the library too.
pub(crate) fn with_library(error: Error) -> Error {
    match error {
        Error::UnsupportedArchitecture { found, capability, mut supported } => {
            supported.extend(names_of(FAMILIES));
            Error::UnsupportedArchitecture { found, capability, supported }
        }
        error => error,
    }
}

/// A model in memory.
pub(crate) struct Loaded {
    begin: Begin,
    described: Described,
    device: Device,
    /// Bytes of its tensors, each counted once.
    bytes: Bytes,
}

/// The state of one text.
pub(crate) struct Text {
    forward: Forward,
    /// Tokens that were read.
    read: usize,
}

/// Reads a model's weights.
///
/// # Errors
/// [`Error::MissingTensor`], [`Error::UnreadTensor`] and the other errors of weights; [`Error::InvalidConfig`] for a
/// configuration that makes the library panic; [`Error::Compute`].
pub(crate) fn load(
    described: &Described,
    weights: WeightFiles,
    file: &Path,
    device: &Device,
    context: &LoadContext,
) -> Result<Loaded> {
    #[allow(irrefutable_let_patterns, reason = "without the library there are no others")]
    let Load::Tensors(load) = &described.load else {
        return Err(Error::compute("the model is one of a GGUF file"));
    };
    let tensors = Tensors::new(weights, described, context);
    let built = catch_unwind(AssertUnwindSafe(|| load(tensors.builder(device))));
    let built = built.map_err(|panic| invalid(file, format!("the library panicked: {}", told(&*panic))))?;
    let begin = built.map_err(|error| tensors.error().unwrap_or_else(|| Error::from(error)))?;
    let bytes = tensors.close(|tensor| is_buffer(tensor) || (described.has_no_effect)(tensor))?;
    Ok(Loaded { begin, described: described.clone(), device: device.clone(), bytes })
}

/// Builds a model of the library whose configuration was checked, as an encoder: it keeps the tensors that it asks for.
///
/// # Errors
/// [`Error::MissingTensor`] and the other errors of weights; [`Error::Compute`], also if the library panics.
#[cfg(feature = "transformers")]
pub(crate) fn build<M>(
    weights: &WeightFiles,
    device: &Device,
    context: &LoadContext,
    make: impl FnOnce(VarBuilder<'_>) -> candle_core::Result<M>,
) -> Result<M> {
    build_lacking(weights, device, context, |_| false, make)
}

/// The same of a model that goes without tensors which it asks for and is not given: of those that are missing, `may_lack`
/// is true for the ones that it may go without.
///
/// # Errors
/// As [`build`].
#[cfg(feature = "transformers")]
pub(crate) fn build_lacking<M>(
    weights: &WeightFiles,
    device: &Device,
    context: &LoadContext,
    may_lack: fn(&str) -> bool,
    make: impl FnOnce(VarBuilder<'_>) -> candle_core::Result<M>,
) -> Result<M> {
    let error = Arc::new(Mutex::new(None));
    let lent = Lent { weights, context, may_lack, error: Arc::clone(&error) };
    let backend: Box<dyn SimpleBackend + '_> = Box::new(lent);
    let builder = VarBuilder::from_backend(backend, DType::F32, device.clone());
    let built = catch_unwind(AssertUnwindSafe(|| make(builder)));
    let built = built.map_err(|panic| Error::compute(format!("the library panicked: {}", told(&*panic))))?;
    match error.lock().unwrap_or_else(PoisonError::into_inner).take() {
        Some(error) => Err(error),
        None => Ok(built?),
    }
}

/// The words of a panic.
fn told(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("without words")
}

impl Loaded {
    pub(crate) fn described(&self) -> &Described {
        &self.described
    }

    /// Bytes of weights and tables.
    pub(crate) fn bytes(&self) -> Bytes {
        self.bytes + Bytes(self.described.shape.table_bytes())
    }

    /// The state of a new text.
    pub(crate) fn begin(&self) -> Result<Text> {
        Ok(Text { forward: (self.begin)()?, read: 0 })
    }

    /// Reads the next tokens of a text, `unread` of which is all that it has: `rows` of them, as far as the family can stop
    /// there. The logits after the last of all, if that was read.
    pub(crate) fn read(&self, text: &mut Text, unread: &[u32], rows: usize) -> Result<Option<Vec<f32>>> {
        let rows = match self.described.prompts {
            PromptReading::Pieces => rows.min(unread.len()),
            PromptReading::FirstPiece if text.read == 0 => unread.len().min(FIRST_PIECE),
            PromptReading::FirstPiece | PromptReading::Tokens => 1,
        };
        let piece = unread.get(..rows).unwrap_or(unread);
        let tokens = Tensor::new(piece, &self.device)?.unsqueeze(0)?;
        let logits = (text.forward)(&tokens, text.read)?;
        text.read += piece.len();
        if piece.len() < unread.len() {
            return Ok(None);
        }
        let vocabulary = self.described.shape.vocabulary;
        let logits = logits.flatten_all()?;
        match logits.elem_count().checked_sub(vocabulary) {
            Some(before) => Ok(Some(logits.narrow(0, before, vocabulary)?.to_vec1()?)),
            None => {
                let found = logits.elem_count();
                Err(Error::compute(format!("the model made {found} logits for {vocabulary} tokens")))
            }
        }
    }
}

impl Text {
    /// Number of tokens that were read.
    pub(crate) fn length(&self) -> usize {
        self.read
    }
}

/// Bytes that a worker has beside the weights: the caches of so many tokens, in so many texts of at most `longest`, and the
/// scratch of a pass.
pub(crate) fn worker_bytes(described: &Described, tokens: usize, texts: usize, longest: usize) -> Bytes {
    let shape = &described.shape;
    let rows = match described.prompts {
        PromptReading::Pieces => PROMPT_ROWS.min(longest),
        PromptReading::FirstPiece => FIRST_PIECE.min(longest),
        PromptReading::Tokens => 1,
    };
    let states = shape.state_bytes.saturating_mul(texts as u64);
    let tables = match described.texts {
        TextsPerWorker::Many => 0,
        // They are built anew with the model.
        TextsPerWorker::One => shape.table_bytes(),
    };
    let all = [shape.cache_bytes(tokens), states, tables, shape.scratch(rows, longest)];
    Bytes(all.into_iter().fold(0, u64::saturating_add))
}
