//! The contract by which language models of candle-transformers, or of an application in the same form, write texts here:
//! [`TransformersModel`], and what loaders are told of a type that implements it. Loading it and running its texts are left
//! to `models/transformers`, everything around it (tokenizer, chat template, sampling, stops) to text to text.

mod shape;

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use candle_core::Tensor;
use candle_nn::VarBuilder;
use serde::Deserialize as _;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::architecture::Family;
use crate::error::{Error, Result};
pub use shape::ModelShape;

/// A language model that is computed by candle-transformers, or by an application's own code in the same form. It needs no
/// more than a few lines, since tokenizer, chat template, sampling, stop strings, limits and supervision are those of every
/// other model that writes.
///
/// The value that implements it is the model's weights, which all workers share. Everything that a text leaves behind is in
/// [`Stream`](Self::Stream), of which each text has its own. Where the library keeps its cache apart from the model, that
/// is the cache. Where it keeps the cache inside the model, it is a clone of one that has never run: the tensors of clones
/// are shared.
///
/// ```
/// # #[cfg(feature = "transformers")] {
/// use candle_actors::{Engine, Source, SourceSpec, TransformersFamily, TransformersModel};
/// use candle_core::{Result, Tensor};
/// use candle_nn::VarBuilder;
/// use candle_transformers::models::qwen3::{Config, ModelForCausalLM};
///
/// struct Mine(ModelForCausalLM);
///
/// impl TransformersModel for Mine {
///     type Config = Config;
///     type Stream = ModelForCausalLM;
///     const MODEL_TYPE: &'static str = "qwen3";
///
///     fn load(config: &Config, weights: VarBuilder<'static>) -> Result<Self> {
///         ModelForCausalLM::new(config, weights).map(Self)
///     }
///
///     fn begin(&self) -> Result<ModelForCausalLM> {
///         Ok(self.0.clone())
///     }
///
///     fn forward(&self, text: &mut ModelForCausalLM, tokens: &Tensor, before: usize) -> Result<Tensor> {
///         text.forward(tokens, before)
///     }
/// }
///
/// let source = SourceSpec::from(Source::directory("models/mine")).with_family(TransformersFamily::of::<Mine>());
/// let builder = Engine::builder().text_to_text("mine", source);
/// # drop(builder);
/// # }
/// ```
pub trait TransformersModel: Sized + Send + Sync + 'static {
    /// Settings that it reads from `config.json`. A setting that this type has no field for, and that may have an effect, is
    /// refused.
    type Config: DeserializeOwned + Clone + Send + Sync + 'static;
    /// Everything that belongs to one text.
    type Stream: Send + 'static;

    /// `model_type` in `config.json`.
    const MODEL_TYPE: &'static str;
    /// `architectures` in `config.json`, for files without a `model_type`.
    const ARCHITECTURES: &'static [&'static str] = &[];
    /// Settings, as JSON, of a file that leaves them out or has `null` for them.
    const DEFAULTS: &'static str = "{}";
    /// Settings that the model has at one value only, each with that value as JSON. A file with another one is refused.
    const FIXED: &'static [(&'static str, &'static str)] = &[];
    /// How many texts one worker writes at a time.
    const TEXTS: TextsPerWorker = TextsPerWorker::Many;
    /// How a prompt can be read.
    const PROMPTS: PromptReading = PromptReading::Pieces;

    /// The sizes that limits and memory are computed from, of the settings after [`Self::DEFAULTS`].
    ///
    /// # Errors
    /// A reason, if a size is missing.
    fn shape(settings: &Value) -> Result<ModelShape, String> {
        ModelShape::read(settings)
    }

    /// Other names, the first that is there first, for a tensor that the files do not have under the name that is asked for.
    fn other_names(_tensor: &str) -> Vec<String> {
        Vec::new()
    }

    /// The tensors that stand in place of one that the files do not have, one below the other.
    fn joined(_tensor: &str) -> Vec<String> {
        Vec::new()
    }

    /// True for a tensor of the files that changes nothing although nothing asks for it.
    fn has_no_effect(_tensor: &str) -> bool {
        false
    }

    /// Builds the model. A tensor that is never asked for is refused afterwards.
    ///
    /// # Errors
    /// Those of the library.
    fn load(config: &Self::Config, weights: VarBuilder<'static>) -> candle_core::Result<Self>;

    /// The state of a new text.
    ///
    /// # Errors
    /// Those of the library.
    fn begin(&self) -> candle_core::Result<Self::Stream>;

    /// The logits after these tokens, `(1, tokens)`, of a text of which `before` tokens were read. Of logits after several
    /// tokens, the last count.
    ///
    /// # Errors
    /// Those of the library.
    fn forward(
        &self,
        stream: &mut Self::Stream,
        tokens: &Tensor,
        before: usize,
    ) -> candle_core::Result<Tensor>;
}

/// Ways in which a model can read a prompt.
///
/// ```
/// use candle_actors::PromptReading;
/// assert_ne!(PromptReading::Pieces, PromptReading::FirstPiece);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum PromptReading {
    /// Piece by piece, so that a long prompt holds up nobody and can be left in the middle.
    Pieces,
    /// Its first piece at once, and the rest token by token: a piece does not see what was before it.
    FirstPiece,
    /// Only token by token, as recurrent models do.
    Tokens,
}

/// Numbers of texts that one worker writes at a time.
///
/// ```
/// use candle_actors::TextsPerWorker;
/// assert_ne!(TextsPerWorker::Many, TextsPerWorker::One);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum TextsPerWorker {
    /// As many as the limits allow. They take turns, token by token.
    Many,
    /// One, since the state of a text is large or dear to make: that of a model which can be neither cloned nor cleared is
    /// the whole model, built anew from the same tensors.
    One,
}

/// A type that implements [`TransformersModel`], as settings name it.
///
/// ```
/// use candle_actors::{LoadOptions, TransformersFamily, TransformersModel};
/// fn options<M: TransformersModel>() -> LoadOptions {
///     LoadOptions::default().with_family(TransformersFamily::of::<M>())
/// }
/// ```
#[derive(Clone, Copy)]
pub struct TransformersFamily {
    pub(crate) family: fn() -> Family<Described>,
    name: &'static str,
}

impl TransformersFamily {
    /// The family of models of this type.
    pub fn of<M: TransformersModel>() -> Self {
        Self { family: family::<M>, name: M::MODEL_TYPE }
    }
}

impl fmt::Debug for TransformersFamily {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("TransformersFamily").field(&self.name).finish()
    }
}

/// One text: given the tokens that come next, and how many there were before, the logits after them.
pub(crate) type Forward = Box<dyn FnMut(&Tensor, usize) -> candle_core::Result<Tensor> + Send>;
/// A loaded model, by what it is good for: to begin a text.
pub(crate) type Begin = Box<dyn Fn() -> candle_core::Result<Forward> + Send + Sync>;
type LoadTensors = Arc<dyn Fn(VarBuilder<'static>) -> candle_core::Result<Begin> + Send + Sync>;

/// Files that a model is loaded from.
#[derive(Clone)]
pub(crate) enum Load {
    /// Safetensors.
    Tensors(LoadTensors),
    /// A GGUF file.
    #[cfg(feature = "transformers")]
    Gguf,
}

/// A model that its `config.json` describes and that is not loaded.
#[derive(Clone)]
pub(crate) struct Described {
    pub(crate) shape: ModelShape,
    pub(crate) prompts: PromptReading,
    pub(crate) texts: TextsPerWorker,
    /// Tokens that end a text, as `config.json` has them.
    pub(crate) end_tokens: Vec<u32>,
    pub(crate) other_names: fn(&str) -> Vec<String>,
    pub(crate) joined: fn(&str) -> Vec<String>,
    pub(crate) has_no_effect: fn(&str) -> bool,
    pub(crate) load: Load,
}

/// The entry of a type in a list of families.
pub(crate) const fn family<M: TransformersModel>() -> Family<Described> {
    Family { model_type: M::MODEL_TYPE, architectures: M::ARCHITECTURES, read: read::<M> }
}

fn read<M: TransformersModel>(file: &Path, config: &Value) -> Result<Described> {
    let invalid = |reason: String| Error::InvalidConfig { file: file.to_owned(), reason };
    let settings = settings::<M>(config).map_err(invalid)?;
    for (name, value) in M::FIXED {
        let found = settings.get(name).filter(|found| !found.is_null());
        let fixed: Value = serde_json::from_str(value).unwrap_or_default();
        if let Some(found) = found.filter(|found| !is_same(found, &fixed)) {
            return Err(Error::UnsupportedSetting {
                file: file.to_owned(),
                what: (*name).into(),
                found: found.to_string(),
                supported: (*value).into(),
            });
        }
    }
    let ends = config.get("eos_token_id");
    let config = M::Config::deserialize(&settings).map_err(|error| invalid(error.to_string()))?;
    let shape = M::shape(&settings).map_err(invalid)?;
    let end_tokens = match ends {
        Some(Value::Array(tokens)) => tokens.iter().filter_map(token).collect(),
        Some(one) => token(one).into_iter().collect(),
        None => Vec::new(),
    };
    let load = move |weights: VarBuilder<'static>| -> candle_core::Result<Begin> {
        let model = Arc::new(M::load(&config, weights)?);
        Ok(Box::new(move || -> candle_core::Result<Forward> {
            let model = Arc::clone(&model);
            let mut stream = model.begin()?;
            Ok(Box::new(move |tokens: &Tensor, before| model.forward(&mut stream, tokens, before)))
        }))
    };
    Ok(Described {
        shape,
        prompts: M::PROMPTS,
        texts: M::TEXTS,
        end_tokens,
        other_names: M::other_names,
        joined: M::joined,
        has_no_effect: M::has_no_effect,
        load: Load::Tensors(Arc::new(load)),
    })
}

fn token(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|token| u32::try_from(token).ok())
}

/// True for the same value, where a number without a fraction is one with the fraction 0.
fn is_same(one: &Value, other: &Value) -> bool {
    one == other || matches!((one.as_f64(), other.as_f64()), (Some(one), Some(other)) if one == other)
}

/// The settings of a file as the library's types name them, completed by the family's defaults: what transformers 5 has in
/// `rope_parameters` is at the top, as it was before.
fn settings<M: TransformersModel>(config: &Value) -> Result<Value, String> {
    let mut settings: Map<String, Value> =
        config.as_object().cloned().ok_or("it is not a table of settings")?;
    if let Some(Value::Object(mut rope)) = settings.remove("rope_parameters") {
        let kind = match rope.get("rope_type") {
            None => "default".to_owned(),
            Some(kind) => kind.as_str().ok_or("rope_type is not a text")?.to_owned(),
        };
        for name in ["rope_theta", "partial_rotary_factor"] {
            if let Some(value) = rope.remove(name) {
                settings.entry(name).or_insert(value);
            }
        }
        if kind != "default" {
            rope.insert("type".to_owned(), Value::String(kind));
            settings.insert("rope_scaling".to_owned(), Value::Object(rope));
        }
    }
    // The library takes one end of a text; the others are read where all of a model's are.
    if let Some(Value::Array(ends)) = settings.get("eos_token_id") {
        let first = ends.first().cloned().unwrap_or_default();
        settings.insert("eos_token_id".to_owned(), first);
    }
    let defaults: Map<String, Value> = serde_json::from_str(M::DEFAULTS).unwrap_or_default();
    for (name, value) in defaults {
        let setting = settings.entry(name).or_insert(Value::Null);
        if setting.is_null() {
            *setting = value;
        }
    }
    Ok(Value::Object(settings))
}
