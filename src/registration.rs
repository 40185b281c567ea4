//! Registration with an engine: the traits that tie a capability to its typed handle and a source or loader to a
//! model's specification. The six shipped capabilities implement them in their own files; an application implements
//! them for its own. Registering itself is left to `engine`.

use std::collections::BTreeMap;

use model_actors::isolation::Isolation;
use model_actors::{Capability, Model, ModelHandle, ModelId, ModelSpec, PoolConfig, Portable};

use crate::error::{Error, Result};
use crate::language_model::TransformersFamily;
use crate::limits::GenerationLimits;
use crate::loader::{CapabilityOf, GenerationSettings, LoadPlan, ModelLoader, WorkerModel, portable};
use crate::resources::EngineResources;
use crate::source::Source;

/// A capability that an engine serves: one of the six shipped ones, or an application's own.
///
/// ```
/// use candle_actors::model_actors::NoChunk;
/// use candle_actors::{Capability, EngineCapability, EngineResources, ModelHandle};
///
/// /// Translates sentences.
/// struct Translation;
/// impl Capability for Translation {
///     type Request = Vec<String>;
///     type Chunk = NoChunk;
///     type Output = Vec<String>;
///     const NAME: &'static str = "translation";
/// }
/// impl EngineCapability for Translation {
///     type Handle = ModelHandle<Self>;
///     fn handle(model: ModelHandle<Self>, _: &EngineResources) -> Self::Handle {
///         model
///     }
/// }
/// ```
pub trait EngineCapability: Capability + Sized {
    /// Handle that an engine gives to its callers; [`ModelHandle`] itself will do.
    type Handle;

    /// The handle to a registered model.
    fn handle(model: ModelHandle<Self>, resources: &EngineResources) -> Self::Handle;
}

/// A value that an engine can register for a capability: a [`Source`] or a [`SourceSpec`], or, for a loader of an
/// application's own, a closure that makes the specification.
///
/// ```
/// use candle_actors::{
///     EngineResources, IntoModelSpec, LoadOptions, ModelId, ModelSpec, Result, Source, StandaloneModel,
///     TextEmbedding, TextEmbeddingModel,
/// };
/// let spec = |id: ModelId, resources: &EngineResources| -> Result<ModelSpec<TextEmbedding>> {
///     let options = LoadOptions::default().with_threads(resources.threads());
///     Ok(ModelSpec::new(id, TextEmbeddingModel::loader(Source::directory("models/mine"), options)?).pinned())
/// };
/// fn registers<T: IntoModelSpec<TextEmbedding>>(_: &T) {}
/// registers(&spec);
/// ```
pub trait IntoModelSpec<C: Capability> {
    /// The specification under this id.
    ///
    /// # Errors
    /// [`Error::InvalidSetting`](crate::Error::InvalidSetting) for options that are out of range;
    /// [`Error::NoSuchDirectory`](crate::Error::NoSuchDirectory) and its like for what is seen at once not to be there.
    fn into_model_spec(self, id: ModelId, resources: &EngineResources) -> Result<ModelSpec<C>>;
}

impl<C: Capability, F> IntoModelSpec<C> for F
where
    F: FnOnce(ModelId, &EngineResources) -> Result<ModelSpec<C>>,
{
    fn into_model_spec(self, id: ModelId, resources: &EngineResources) -> Result<ModelSpec<C>> {
        self(id, resources)
    }
}

impl<C: Capability> IntoModelSpec<C> for Source
where
    SourceSpec: IntoModelSpec<C>,
{
    fn into_model_spec(self, id: ModelId, resources: &EngineResources) -> Result<ModelSpec<C>> {
        SourceSpec::from(self).into_model_spec(id, resources)
    }
}

/// A source with settings of its own in place of the engine's.
///
/// ```
/// use candle_actors::{Engine, GenerationLimits, PoolConfig, Source, SourceSpec};
/// let long = SourceSpec::from(Source::directory("models/long"))
///     .with_generation(GenerationLimits::default().with_kv_cache_tokens(32_768))
///     .with_pool_config(PoolConfig::default())
///     .with_pinned(true);
/// let builder = Engine::builder().text_to_text("long", long);
/// # drop(builder);
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct SourceSpec {
    /// Place of the model's files.
    pub source: Source,
    /// Limits on the texts that a worker generates at a time; for models that generate text.
    pub generation: GenerationLimits,
    /// Encodes special tokens in what people write as text, as `split_special_tokens` of transformers; true. Otherwise a
    /// message that holds `<|im_end|>` or the like ends its own turn and can forge another's, the system's included, as
    /// it can in transformers unless that is asked not to. It holds for the messages of a conversation but the system's,
    /// also for earlier answers, which may repeat what a person wrote; and for questions about images. A
    /// [raw prompt](model_actors::Prompt::Raw) and the chat template's own output have their special tokens in any case.
    pub split_special_tokens: bool,
    /// Loads the model all the same if its files have a setting or a tensor that this crate does not know, without it;
    /// false, as the model may then compute something else than it was trained to. Otherwise
    /// [`Error::UnreadSetting`](crate::Error::UnreadSetting) or [`Error::UnreadTensor`](crate::Error::UnreadTensor) names it.
    pub allow_unread: bool,
    /// Multiplies the quantised weights of a GGUF file with 32-bit numbers; false. Otherwise what they are multiplied with
    /// is rounded to 8 bits for each product, as in llama.cpp, which is several times as fast and changes logits about
    /// as much as there. On an accelerator it changes nothing.
    pub exact_products: bool,
    /// Quantises the matrices of a model that embeds texts or writes text to 8 bits while it is loaded, in blocks of 32 as
    /// Q8_0 of GGUF, and multiplies integers; false. It takes about a quarter of the memory of 32-bit numbers, and
    /// vectors and logits change a little; rows that are no whole blocks stay as they are. Refused for other capabilities and on an accelerator
    /// ([`Error::InvalidSetting`](crate::Error::InvalidSetting)); GGUF files are as they are.
    pub eight_bit: bool,
    /// Family of a language model that is computed by an application's own code, or by one of candle-transformers that this
    /// crate does not list; none. Otherwise the family is found by the names in `config.json`. Refused for a model in a process
    /// of its own ([`Error::InvalidSetting`]).
    pub family: Option<TransformersFamily>,
    /// Adapters (LoRA) of a model that writes text, by the names by which a request asks for one
    /// ([`GenerateText::adapter`](model_actors::GenerateText::adapter)); none. Each is a folder or repository as PEFT writes
    /// it: `adapter_config.json` with `adapter_model.safetensors` or `adapter_model.bin`. Requests with different ones, and
    /// with none, share the model's weights and its batches. At most 256; refused for other capabilities, and for language
    /// models that candle-transformers computes ([`Error::InvalidSetting`]).
    pub adapters: BTreeMap<String, Source>,
    /// Settings of the model's workers and queue, in place of its pool's.
    pub pool_config: Option<PoolConfig>,
    /// The place where the model is loaded and run, in place of the engine's: processes of their own, say, with
    /// [`ProcessOptions`](crate::isolation::ProcessOptions).
    pub isolation: Option<Isolation>,
    /// Keeps the model in memory once it is loaded: neither cooldown nor another model's need evicts it.
    pub pinned: bool,
}

model_actors::setters! { SourceSpec {
    with_generation(generation: GenerationLimits);
    with_split_special_tokens(split_special_tokens: bool);
    with_allow_unread(allow_unread: bool);
    with_exact_products(exact_products: bool);
    with_eight_bit(eight_bit: bool);
    with_family(family: TransformersFamily) Some;
    with_pool_config(pool_config: PoolConfig) Some;
    with_isolation(isolation: impl Into<Isolation>) place;
    with_pinned(pinned: bool);
} }

fn place(isolation: impl Into<Isolation>) -> Option<Isolation> {
    Some(isolation.into())
}

impl From<Source> for SourceSpec {
    fn from(source: Source) -> Self {
        let generation = GenerationLimits::default();
        Self {
            source,
            generation,
            split_special_tokens: true,
            allow_unread: false,
            exact_products: false,
            eight_bit: false,
            family: None,
            adapters: BTreeMap::new(),
            pool_config: None,
            isolation: None,
            pinned: false,
        }
    }
}

impl SourceSpec {
    /// The same with one more adapter, in the place of any other of its name.
    ///
    /// ```
    /// use candle_actors::{Source, SourceSpec};
    /// let base = SourceSpec::from(Source::repository("Qwen/Qwen3-0.6B"));
    /// let spec = base.with_adapter("polite", Source::directory("adapters/polite"));
    /// assert_eq!(spec.adapters.len(), 1);
    /// ```
    #[must_use]
    pub fn with_adapter(mut self, name: impl Into<String>, source: impl Into<Source>) -> Self {
        self.adapters.insert(name.into(), source.into());
        self
    }

    /// The specification of one of this crate's models.
    pub(crate) fn loaded_by<M: WorkerModel + Model<CapabilityOf<M>>>(
        self,
        id: ModelId,
        resources: &EngineResources,
    ) -> Result<ModelSpec<CapabilityOf<M>>>
    where
        CapabilityOf<M>: Portable,
    {
        let Self {
            source,
            generation: limits,
            split_special_tokens,
            allow_unread,
            exact_products,
            eight_bit,
            family,
            adapters,
            pool_config,
            isolation,
            pinned,
        } = self;
        source.check()?;
        let (compute, hub) = (resources.compute().clone(), resources.hub().clone());
        let generation =
            GenerationSettings { limits, split_special_tokens, exact_products, family, isolated: false };
        let loader = ModelLoader::<M>::new(source, compute, generation, hub)?;
        let loader = loader.with_allow_unread(allow_unread).with_eight_bit(eight_bit)?;
        let loader = loader.with_adapters(adapters.into())?;
        let mut isolation = isolation.unwrap_or_else(|| resources.isolation().clone());
        if let Isolation::Process(options) = &mut isolation {
            if generation.family.is_some() {
                let reason = "it is code of this process, which a model in a process of its own does not get";
                return Err(Error::InvalidSetting { setting: "family".into(), reason: reason.to_owned() });
            }
            options.environment.extend(portable::ENVIRONMENT.map(str::to_owned));
        }
        let mut spec = ModelSpec::isolated(id, loader, &isolation)?.device(resources.device().memory());
        if M::Plan::CONTINUOUS {
            spec = spec.continuous().max_batch_requests(limits.max_sequences);
        }
        if let Some(config) = pool_config {
            spec = spec.config(config);
        }
        Ok(if pinned { spec.pinned() } else { spec })
    }
}
