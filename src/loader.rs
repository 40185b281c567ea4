//! Loading as every capability shares it: a source is opened and its small files are read once, into a [`LoadPlan`]; a
//! later load of the same model takes the same files, without asking the hub again. The plan loads the weights once,
//! and each worker, or a standalone model, is a [`WorkerModel`] over them. The content of the files is left to the
//! plans.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

#[cfg(feature = "cluster")]
use model_actors::Fetch;
use model_actors::isolation::IsolatedLoader;
use model_actors::{
    Capability, Cause, Failure, Footprint, LoadContext, Loader, Model, ModelFacts, ModelId, Portable, Weights,
};
use serde::{Deserialize, Serialize};

use crate::device::{Compute, ComputeDevice};
use crate::error::{Error, Result};
use crate::hub_settings::HubSettings;
use crate::language_model::TransformersFamily;
use crate::limits::GenerationLimits;
use crate::source::{AdapterSources, Files, Source, Unread};

pub(crate) mod portable;

/// Everything about a model that its small files tell, before its weights are read.
pub(crate) trait LoadPlan: Sized + Send + Sync + 'static {
    /// Capability that the model serves.
    type Capability: Capability;
    /// Weights, tokenizer and configuration in memory, shared by all workers of the model.
    type Loaded: Send + Sync + 'static;
    /// True if requests join and leave a run between two steps, as they do where text is generated.
    const CONTINUOUS: bool = false;
    /// True if matrices can be quantised to 8 bits at load.
    const EIGHT_BIT: bool = false;
    /// True if requests can ask for adapters.
    const ADAPTERS: bool = false;

    /// Reads the small files. They may come from the network.
    fn read(files: Files, generation: GenerationSettings, context: &LoadContext) -> Result<Self>;
    fn files(&self) -> &Files;
    /// Memory that the model will take, from the headers of its weights.
    fn footprint(&self, compute: &Compute, context: &LoadContext) -> Result<Footprint>;
    /// Name of the adapter that a request asks for.
    fn adapter(_: &<Self::Capability as Capability>::Request) -> Option<&str> {
        None
    }
    /// Asks for the files that nothing but the load reads, so that the model's digest is of these too.
    #[cfg(feature = "cluster")]
    fn ask_for_rest(&self, _: &LoadContext) -> Result<()> {
        Ok(())
    }
    /// Asks for the files of an adapter, as loading it does.
    #[cfg(feature = "cluster")]
    fn ask_for_adapter(_: &Files, _: &LoadContext) -> Result<()> {
        Ok(())
    }
    /// Refuses a request that can be seen not to fit the model.
    fn check(&self, _: &<Self::Capability as Capability>::Request) -> Result<()> {
        Ok(())
    }
    /// Facts about the model.
    fn facts(&self) -> Option<ModelFacts> {
        None
    }
    /// Reads the weights.
    fn load(self: &Arc<Self>, compute: &Compute, context: &LoadContext) -> Result<Self::Loaded>;
}

/// Settings of a model that generates text.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct GenerationSettings {
    pub(crate) limits: GenerationLimits,
    /// Special tokens in what people write are encoded as text.
    pub(crate) split_special_tokens: bool,
    /// Quantised weights of GGUF files are multiplied exactly.
    pub(crate) exact_products: bool,
    /// The model's family, if an application names it. It is code, which does not travel.
    #[serde(skip)]
    pub(crate) family: Option<TransformersFamily>,
    /// The model has the process to itself, as in a child that is told of it.
    #[serde(skip)]
    pub(crate) isolated: bool,
}

impl Default for GenerationSettings {
    fn default() -> Self {
        let limits = GenerationLimits::default();
        Self { limits, split_special_tokens: true, exact_products: false, family: None, isolated: false }
    }
}

/// A model as one thread runs it: the loaded model, which all share, and compute threads of its own.
pub(crate) trait WorkerModel: Sized + 'static {
    type Plan: LoadPlan;

    /// A model over what is loaded, with new compute threads.
    fn over(loaded: Arc<Loaded<Self>>) -> Result<Self>;
    fn loaded(&self) -> &Arc<Loaded<Self>>;
    /// Memory that the loaded model takes.
    fn footprint_of(loaded: &Loaded<Self>) -> Footprint;
}

type Loaded<M> = <<M as WorkerModel>::Plan as LoadPlan>::Loaded;
pub(crate) type CapabilityOf<M> = <<M as WorkerModel>::Plan as LoadPlan>::Capability;

/// A loaded model without actors around it, for tools and for comparison: the very code that a worker runs.
///
/// ```no_run
/// use candle_actors::{LoadOptions, Source, StandaloneModel, TextEmbeddingModel};
/// # fn main() -> candle_actors::Result<()> {
/// let source = Source::directory("models/english-embedding-small");
/// let model = TextEmbeddingModel::load_with(source, LoadOptions::default().with_threads(4))?;
/// let other_thread = model.try_clone()?;
/// assert_eq!(model.footprint(), other_thread.footprint());
/// # Ok(())
/// # }
/// ```
pub trait StandaloneModel: Sized {
    /// Capability of an engine that runs such models.
    type Capability: Portable;

    /// Loads a model onto the processor, for the calling thread alone.
    ///
    /// # Errors
    /// The errors of the source, its files or its weights.
    fn load(source: Source) -> Result<Self> {
        Self::load_with(source, LoadOptions::default())
    }

    /// Loads a model.
    ///
    /// # Errors
    /// As [`StandaloneModel::load`]; [`Error::InvalidSetting`](crate::Error::InvalidSetting) for an option that is out of
    /// range.
    fn load_with(source: Source, options: LoadOptions) -> Result<Self>;

    /// The loader that an engine registers for such a source, for a [`ModelSpec`](model_actors::ModelSpec) of an
    /// application's own; with [`ModelSpec::isolated`](model_actors::ModelSpec::isolated) in processes of their own. That of a
    /// model that generates text has to be [continuous](model_actors::ModelSpec::continuous).
    ///
    /// # Errors
    /// [`Error::InvalidSetting`](crate::Error::InvalidSetting) for an option that is out of range.
    fn loader(source: Source, options: LoadOptions) -> Result<impl IsolatedLoader<Self::Capability>>;

    /// Another one over the same weights, with compute threads of its own.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device) if the threads cannot be started.
    fn try_clone(&self) -> Result<Self>;

    /// Memory that it takes: weights, and scratch for each clone.
    fn footprint(&self) -> Footprint;
}

/// Implements [`StandaloneModel`] for a [`WorkerModel`]. A blanket implementation would show its private trait.
macro_rules! standalone_model {
    ($model:ident for $capability:ident) => {
        impl crate::loader::StandaloneModel for $model {
            type Capability = model_actors::$capability;

            fn load_with(source: crate::Source, options: crate::LoadOptions) -> crate::Result<Self> {
                crate::loader::load_standalone(source, options)
            }

            fn loader(
                source: crate::Source,
                options: crate::LoadOptions,
            ) -> crate::Result<impl model_actors::isolation::IsolatedLoader<Self::Capability>> {
                crate::loader::ModelLoader::<Self>::standalone(source, options)
            }

            fn try_clone(&self) -> crate::Result<Self> {
                Self::over(std::sync::Arc::clone(self.loaded()))
            }

            fn footprint(&self) -> model_actors::Footprint {
                Self::footprint_of(self.loaded())
            }
        }
    };
}

pub(crate) use standalone_model;

pub(crate) fn load_standalone<M: WorkerModel>(source: Source, options: LoadOptions) -> Result<M> {
    let context = LoadContext::detached(&ModelId::from(source.to_string()));
    let loaded = ModelLoader::<M>::standalone(source, options)?.load_model(&context)?;
    M::over(Arc::new(loaded))
}

/// Options for loading a model outside an engine.
///
/// ```
/// use candle_actors::LoadOptions;
/// assert_eq!(LoadOptions::default().with_threads(4).threads, 4);
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct LoadOptions {
    /// Device that computes; the processor.
    pub device: ComputeDevice,
    /// Processor threads that a pass may use, 1 to 1,024; 1.
    pub threads: usize,
    /// Limits on the texts that are generated at a time; for models that generate text.
    pub generation: GenerationLimits,
    /// Encodes special tokens in what people write as text: see [`SourceSpec`](crate::SourceSpec); true.
    pub split_special_tokens: bool,
    /// Loads a model all the same whose files have a setting or a tensor that this crate does not know, without it; false,
    /// as the model may then compute something else than it was trained to.
    pub allow_unread: bool,
    /// Multiplies the quantised weights of a GGUF file exactly: see [`SourceSpec`](crate::SourceSpec); false.
    pub exact_products: bool,
    /// Quantises matrices to 8 bits at load: see [`SourceSpec`](crate::SourceSpec); false.
    pub eight_bit: bool,
    /// Family of a language model that an application brings along: see [`SourceSpec`](crate::SourceSpec).
    pub family: Option<TransformersFamily>,
    /// Adapters (LoRA) that a request can ask for, by their names: see [`SourceSpec`](crate::SourceSpec); none.
    pub adapters: BTreeMap<String, Source>,
    /// Settings for the hub.
    pub hub: HubSettings,
}

model_actors::setters! { LoadOptions {
    with_device(device: ComputeDevice);
    with_threads(threads: usize);
    with_generation(generation: GenerationLimits);
    with_split_special_tokens(split_special_tokens: bool);
    with_allow_unread(allow_unread: bool);
    with_exact_products(exact_products: bool);
    with_eight_bit(eight_bit: bool);
    with_family(family: TransformersFamily) Some;
    with_hub(hub: HubSettings);
} }

impl LoadOptions {
    /// The same with one more adapter, in the place of any other of its name.
    ///
    /// ```
    /// use candle_actors::{LoadOptions, Source};
    /// let options = LoadOptions::default().with_adapter("polite", Source::directory("adapters/polite"));
    /// assert_eq!(options.adapters.len(), 1);
    /// ```
    #[must_use]
    pub fn with_adapter(mut self, name: impl Into<String>, source: impl Into<Source>) -> Self {
        self.adapters.insert(name.into(), source.into());
        self
    }
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self {
            device: ComputeDevice::Cpu,
            threads: 1,
            generation: GenerationLimits::default(),
            split_special_tokens: true,
            allow_unread: false,
            exact_products: false,
            eight_bit: false,
            family: None,
            adapters: BTreeMap::new(),
            hub: HubSettings::default(),
        }
    }
}

/// Does two parts of a load at the same time, the first on a thread of its own if one can be started.
///
/// # Errors
/// [`Error::Stopped`] of either; that of the first, then that of the second.
pub(crate) fn beside<A: Send, B>(
    one: impl Fn() -> Result<A> + Sync,
    other: impl FnOnce() -> Result<B>,
) -> Result<(A, B)> {
    let span = tracing::Span::current();
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("load".to_owned());
        let thread = thread.spawn_scoped(scope, || span.in_scope(&one));
        let other = other();
        let one = match thread {
            // A panic is the load's, as it would be on this thread.
            Ok(thread) => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
            Err(error) => {
                tracing::warn!(%error, "no thread could be started to load with; one part goes after the other");
                one()
            }
        };
        match (one, other) {
            (_, Err(Error::Stopped)) => Err(Error::Stopped),
            (one, other) => Ok((one?, other?)),
        }
    })
}

/// The actors' view of a source. Making one does no I/O.
pub(crate) struct ModelLoader<M: WorkerModel> {
    source: Source,
    compute: Compute,
    generation: GenerationSettings,
    unread: Unread,
    eight_bit: bool,
    adapters: AdapterSources,
    hub: HubSettings,
    plan: OnceLock<Arc<M::Plan>>,
}

impl<M: WorkerModel> ModelLoader<M> {
    /// # Errors
    /// [`Error::InvalidSetting`](crate::Error::InvalidSetting) for limits that are out of range.
    pub(crate) fn new(
        source: Source,
        compute: Compute,
        generation: GenerationSettings,
        hub: HubSettings,
    ) -> Result<Self> {
        generation.limits.check()?;
        let (unread, adapters, plan) = (Unread::default(), AdapterSources::default(), OnceLock::new());
        Ok(Self { source, compute, generation, unread, eight_bit: false, adapters, hub, plan })
    }

    /// The same loader, for which parts of a model that nothing reads are no error.
    pub(crate) fn with_allow_unread(self, allowed: bool) -> Self {
        Self { unread: if allowed { Unread::Allowed } else { Unread::Refused }, ..self }
    }

    /// The same loader, which quantises matrices to 8 bits or does not.
    ///
    /// # Errors
    /// [`Error::InvalidSetting`](crate::Error::InvalidSetting) for another capability than those that can, and on an
    /// accelerator.
    pub(crate) fn with_eight_bit(self, eight_bit: bool) -> Result<Self> {
        let reason = match eight_bit {
            true if !M::Plan::EIGHT_BIT => {
                "only models that embed texts or write text can be quantised at load"
            }
            true if !self.compute.packs() => "models are quantised at load on the processor alone",
            _ => return Ok(Self { eight_bit, ..self }),
        };
        Err(Error::InvalidSetting { setting: "eight_bit".into(), reason: reason.to_owned() })
    }

    /// The same loader, whose requests can ask for these adapters.
    ///
    /// # Errors
    /// [`Error::InvalidSetting`](crate::Error::InvalidSetting) for another capability than those that can, and for too many
    /// or a name that is empty or too long; those of a directory that is not there.
    pub(crate) fn with_adapters(self, adapters: AdapterSources) -> Result<Self> {
        if !M::Plan::ADAPTERS && !adapters.is_empty() {
            let reason = "only models that write text can have adapters that a request asks for";
            return Err(Error::InvalidSetting { setting: "adapters".into(), reason: reason.to_owned() });
        }
        adapters.check()?;
        Ok(Self { adapters, ..self })
    }

    /// A loader outside any engine.
    pub(crate) fn standalone(source: Source, options: LoadOptions) -> Result<Self> {
        let LoadOptions {
            device,
            threads,
            generation: limits,
            split_special_tokens,
            allow_unread,
            exact_products,
            eight_bit,
            family,
            adapters,
            hub,
        } = options;
        let generation =
            GenerationSettings { limits, split_special_tokens, exact_products, family, isolated: false };
        let loader = Self::new(source, Compute::new(device, threads)?, generation, hub)?;
        let loader = loader.with_allow_unread(allow_unread).with_eight_bit(eight_bit)?;
        loader.with_adapters(adapters.into())
    }

    fn plan(&self, context: &LoadContext) -> Result<Arc<M::Plan>> {
        if let Some(plan) = self.plan.get() {
            return Ok(Arc::clone(plan));
        }
        let files = Files::open(&self.source, &self.hub)?;
        let files = files.with_unread(self.unread).with_eight_bit(self.eight_bit);
        let files = files.with_adapters(self.adapters.clone(), self.hub.clone());
        let plan = Arc::new(M::Plan::read(files, self.generation, context)?);
        Ok(Arc::clone(self.plan.get_or_init(|| plan)))
    }

    /// The settings that change what the model computes, and its adapters, as its digest has them.
    #[cfg(feature = "cluster")]
    fn beside(&self, files: &Files, context: &LoadContext) -> Result<String> {
        let GenerationSettings { limits, split_special_tokens, exact_products, family, isolated: _ } =
            self.generation;
        // The capacity of caches decides which prompts are refused and which answers are cut.
        let mut text = format!("{split_special_tokens} {exact_products} {} {family:?}", self.eight_bit);
        text.push_str(&format!(" {}", limits.kv_cache_tokens));
        for adapter in self.adapters.names() {
            let digest = match Self::digest_of_adapter(files, &adapter, context) {
                Err(Error::Stopped) => return Err(Error::Stopped),
                // A load goes on without it.
                digest => digest.unwrap_or_else(|error| error.to_string()),
            };
            text.push_str(&format!(" {adapter:?} {digest}"));
        }
        Ok(text)
    }

    /// True if nothing is to be fetched for a load.
    #[cfg(feature = "cluster")]
    fn is_at_hand(&self) -> Result<bool> {
        let adapters = self.adapters.names();
        let adapters =
            adapters.iter().map(|adapter| self.adapters.get(adapter)).collect::<Result<Vec<_>>>()?;
        let mut sources = std::iter::once(&self.source).chain(adapters);
        Ok(sources.all(|source| matches!(source, Source::Directory { .. })))
    }

    /// The digest of the files of an adapter that loading it asks for, whether they are right or not.
    #[cfg(feature = "cluster")]
    fn digest_of_adapter(files: &Files, adapter: &str, context: &LoadContext) -> Result<String> {
        let files = files.adapters.open(adapter)?;
        let asked = M::Plan::ask_for_adapter(&files, context);
        files.rest();
        match asked {
            Err(Error::Stopped) => Err(Error::Stopped),
            _ => files.digest("", context),
        }
    }

    fn load_model(&self, context: &LoadContext) -> Result<Loaded<M>> {
        self.plan(context)?.load(&self.compute, context)
    }
}

impl<M: WorkerModel + Model<CapabilityOf<M>>> Loader<CapabilityOf<M>> for ModelLoader<M> {
    fn footprint(&self, context: &LoadContext) -> Result<Footprint, Failure> {
        let plan = self.plan(context)?;
        let footprint = plan.footprint(&self.compute, context);
        plan.files().rest();
        Ok(self.compute.counted(footprint?))
    }

    fn load(&self, context: &LoadContext) -> Result<Arc<dyn Weights<CapabilityOf<M>>>, Failure> {
        let loaded = self.load_model(context);
        self.plan.get().inspect(|plan| plan.files().rest());
        Ok(Arc::new(SharedModel::<M>(Arc::new(loaded?))))
    }

    fn facts(&self) -> Option<ModelFacts> {
        let facts = self.plan.get().and_then(|plan| plan.facts());
        match self.adapters.names() {
            none if none.is_empty() => facts,
            names => Some(facts.unwrap_or_default().with_adapters(names)),
        }
    }

    /// Of the files that a load asks for.
    #[cfg(feature = "cluster")]
    fn digest(&self, fetch: Fetch, context: &LoadContext) -> Result<Option<String>, Failure> {
        if fetch == Fetch::Never && !self.is_at_hand()? {
            return Ok(None);
        }
        let plan = self.plan(context)?;
        let asked = plan.footprint(&self.compute, context).and_then(|_| plan.ask_for_rest(context));
        plan.files().rest();
        asked?;
        Ok(Some(plan.files().digest(&self.beside(plan.files(), context)?, context)?))
    }

    #[cfg(feature = "cluster")]
    fn size(&self, fetch: Fetch, context: &LoadContext) -> Result<Option<Footprint>, Failure> {
        if fetch == Fetch::Never && !self.is_at_hand()? {
            return Ok(None);
        }
        self.footprint(context).map(Some)
    }

    fn check(&self, request: &<CapabilityOf<M> as Capability>::Request) -> Result<(), Cause> {
        let known = M::Plan::adapter(request).map_or(Ok(()), |adapter| self.adapters.get(adapter).map(drop));
        let checked = known.and_then(|()| self.plan.get().map_or(Ok(()), |plan| plan.check(request)));
        checked.map_err(|error| Failure::from(error).cause)
    }
}

/// A loaded model, from which each worker builds its own.
pub(crate) struct SharedModel<M: WorkerModel>(pub(crate) Arc<Loaded<M>>);

impl<M: WorkerModel + Model<CapabilityOf<M>>> Weights<CapabilityOf<M>> for SharedModel<M> {
    fn footprint(&self) -> Footprint {
        M::footprint_of(&self.0)
    }

    fn build(&self, _: &LoadContext) -> Result<Box<dyn Model<CapabilityOf<M>>>, Failure> {
        Ok(Box::new(M::over(Arc::clone(&self.0))?))
    }
}

#[cfg(test)]
mod tests;
