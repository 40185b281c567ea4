//! The contract between this crate and a model, on one page: a [`Loader`] loads a model, its [`Weights`] are
//! in memory once and shared, and each worker builds its own [`Model`] from them. All three are called on a
//! worker's own OS thread and may block it; none of them ever sees an actor.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::{Deserialize, Serialize};

use crate::batch::Batch;
use crate::capability::Capability;
use crate::error::{Cause, Failure};
use crate::id::{Bytes, Device, ModelId, ModelKey};
use crate::memory::{Budget, OnDemandParts, PrefixCache};
use crate::progress::{Clock, Gauge, LoadProgress, LoadStage};
use crate::telemetry::{Event, Events};

/// Loads a model. Constructing a loader does no I/O.
///
/// ```
/// use std::sync::Arc;
/// use model_actors::{
///     Batch, Bytes, EmbedTexts, Embeddings, Failure, Footprint, LoadContext, Loader, Model, TextEmbedding,
///     Weights,
/// };
///
/// /// Embeds a text as its length.
/// struct Length;
/// impl Loader<TextEmbedding> for Length {
///     fn footprint(&self, _: &LoadContext) -> Result<Footprint, Failure> {
///         Ok(Footprint::default())
///     }
///     fn load(&self, _: &LoadContext) -> Result<Arc<dyn Weights<TextEmbedding>>, Failure> {
///         Ok(Arc::new(Length))
///     }
/// }
/// impl Weights<TextEmbedding> for Length {
///     fn footprint(&self) -> Footprint {
///         Footprint::default()
///     }
///     fn build(&self, _: &LoadContext) -> Result<Box<dyn Model<TextEmbedding>>, Failure> {
///         Ok(Box::new(Length))
///     }
/// }
/// impl Model<TextEmbedding> for Length {
///     fn run(&mut self, batch: &mut Batch<TextEmbedding>) -> Result<(), Failure> {
///         for item in batch.items() {
///             let lengths = item.request().texts.iter().map(|text| vec![text.len() as f32]);
///             item.finish(Embeddings::new(lengths.collect()));
///         }
///         Ok(())
///     }
/// }
/// ```
pub trait Loader<C: Capability>: Send + Sync + 'static {
    /// Estimates the memory that the model will take without loading it (from a file's header, say). It may
    /// fetch files first and reports their bytes as progress. Called once; the result is kept, and corrected
    /// later by [`Weights::footprint`].
    ///
    /// # Errors
    /// [`crate::FailureKind::Permanent`] for what will fail again; any other kind is retried.
    fn footprint(&self, context: &LoadContext) -> Result<Footprint, Failure>;

    /// Loads the weights, ticking progress as bytes come in. Room for the footprint has been reserved.
    ///
    /// # Errors
    /// As for [`Loader::footprint`].
    fn load(&self, context: &LoadContext) -> Result<Arc<dyn Weights<C>>, Failure>;

    /// Checks a request in its caller's task, before it takes a place in the queue: against what is known of the model by
    /// then, which may not be loaded yet. It must not take long. Everything is taken, unless a loader says otherwise.
    ///
    /// # Errors
    /// The fault of the request, which its caller gets as [`crate::Error::InvalidInput`].
    fn check(&self, _: &C::Request) -> Result<(), Cause> {
        Ok(())
    }

    /// Facts about its model, as far as they are known by then, most of them once it has loaded it; nothing, unless a loader
    /// says otherwise.
    fn facts(&self) -> Option<ModelFacts> {
        None
    }

    /// Digest of all that makes the model what it is: its files, and the settings that change its answers. Nodes of a cluster
    /// serve the same model if its name and its digest are the same. Asked in a cluster alone, of a model that is registered
    /// without one ([`ModelSpec::digest`](crate::ModelSpec::digest)), on a thread that may wait: once soon after its
    /// registration, and once more when it has been loaded if there was none by then. There is none, unless a loader says
    /// otherwise, and the model stays at home.
    ///
    /// # Errors
    /// The reason why it cannot be told, which goes to the log.
    fn digest(&self, _: Fetch, _: &LoadContext) -> Result<Option<String>, Failure> {
        Ok(None)
    }

    /// Estimates the memory as [`Self::footprint`] does, where that takes no more than what may be fetched. Asked in a cluster
    /// alone, of a model that was never loaded, on a thread that may wait: it is then loaded where it fits best. Nothing is
    /// known, unless a loader says otherwise.
    ///
    /// # Errors
    /// The reason why it cannot be told, which goes to the log.
    fn size(&self, _: Fetch, _: &LoadContext) -> Result<Option<Footprint>, Failure> {
        Ok(None)
    }
}

/// Permission to fetch files from elsewhere, for what is only nice to know.
///
/// ```
/// use model_actors::Fetch;
/// fn is_known(is_here: bool, fetch: Fetch) -> bool {
///     is_here || fetch == Fetch::Allowed
/// }
/// assert!(!is_known(false, Fetch::Never));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fetch {
    /// Only what is here is looked at: nobody has asked for the model yet.
    Never,
    /// Files that are not here are fetched: the model has been loaded, so that most is.
    Allowed,
}

/// Facts that a loader knows of its model.
///
/// ```
/// use model_actors::ModelFacts;
/// let facts = ModelFacts::new("bert").with_context(512).with_dimensions(384);
/// assert_eq!((facts.context, facts.dimensions), (Some(512), Some(384)));
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct ModelFacts {
    /// Kind of the model, as its own files call it; empty where it is not known.
    pub family: String,
    /// Maximum number of tokens of an input, or of a prompt and its answer, special ones included.
    pub context: Option<usize>,
    /// Length of its vectors.
    pub dimensions: Option<usize>,
    /// Shorter lengths that the model was trained for, where its files list them.
    pub shorter_dimensions: Vec<usize>,
    /// Prompts that its files define, by their names.
    pub prompts: BTreeMap<String, String>,
    /// Name of the prompt that a request without one gets.
    pub default_prompt: Option<String>,
    /// Poolings of the tokens' vectors, by the names of sentence-transformers.
    pub pooling: Vec<String>,
    /// Names of the adapters that a request may ask for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub adapters: Vec<String>,
}

setters! { ModelFacts {
    with_context(context: impl Into<Option<usize>>) Into::into;
    with_dimensions(dimensions: impl Into<Option<usize>>) Into::into;
    with_shorter_dimensions(shorter_dimensions: Vec<usize>);
    with_prompts(prompts: BTreeMap<String, String>);
    with_default_prompt(default_prompt: impl Into<Option<String>>) Into::into;
    with_pooling(pooling: Vec<String>);
    with_adapters(adapters: Vec<String>);
} }

impl ModelFacts {
    /// The facts of a model of this kind.
    pub fn new(family: impl Into<String>) -> Self {
        Self { family: family.into(), ..Self::default() }
    }
}

/// A loaded model's weights, shared by all its workers on one device and freed with the last of them.
///
/// ```
/// use std::sync::Arc;
/// use model_actors::{Bytes, Capability, Weights};
///
/// fn bytes_of_two_workers<C: Capability>(weights: &Arc<dyn Weights<C>>) -> Bytes {
///     weights.footprint().with_workers(2)
/// }
/// ```
pub trait Weights<C: Capability>: Send + Sync + 'static {
    /// Measures the memory that the loaded model takes.
    fn footprint(&self) -> Footprint;

    /// Builds one worker's model: shares the weights, owns scratch and caches. Must not read the weights
    /// again.
    ///
    /// # Errors
    /// As for [`Loader::footprint`].
    fn build(&self, context: &LoadContext) -> Result<Box<dyn Model<C>>, Failure>;
}

/// One worker's model. It is built, used and dropped on one thread, so it need not be `Send`. What it keeps in thread-locals
/// goes at the end of that thread, which counts as the worker's end; a panic in the destructor of a thread-local ends the
/// process, as on any thread.
///
/// ```
/// use model_actors::{Batch, Capability, Failure, Model};
///
/// /// Fails every request; an implementation that answers is at `Loader`.
/// struct Broken;
/// impl<C: Capability> Model<C> for Broken {
///     fn run(&mut self, batch: &mut Batch<C>) -> Result<(), Failure> {
///         batch.items().iter().for_each(|item| item.fail(Failure::permanent("broken")));
///         Ok(())
///     }
/// }
/// ```
pub trait Model<C: Capability> {
    /// Runs a batch: answers each item through it, ticks progress, and looks at each item's mark between
    /// steps.
    ///
    /// # Errors
    /// Ends the run. Items that were not answered are run again, split, or answered with the failure.
    fn run(&mut self, batch: &mut Batch<C>) -> Result<(), Failure>;

    /// Says whether the model can run another batch. Asked before and after each run, and of an idle worker at each
    /// health check, within five seconds. A model is in good health unless it knows better: one whose process or device is gone, say.
    ///
    /// # Errors
    /// The reason why it is lost. Its worker is then replaced as after a panic. The requests of a run that came before are
    /// treated as after one; those of a run to come go to another worker.
    fn health(&mut self) -> Result<(), Cause> {
        Ok(())
    }
}

/// Memory that a model takes on its device.
///
/// ```
/// use model_actors::{Bytes, Footprint};
/// let footprint = Footprint::new(Bytes::mib(90), Bytes::mib(8));
/// assert_eq!(footprint.with_workers(2), Bytes::mib(106));
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Footprint {
    /// Weights, once for all workers.
    pub shared: Bytes,
    /// Scratch and caches, for each worker.
    pub per_worker: Bytes,
}

impl Footprint {
    /// A footprint of `shared` bytes once and `per_worker` bytes for each worker.
    pub const fn new(shared: Bytes, per_worker: Bytes) -> Self {
        Self { shared, per_worker }
    }

    /// Bytes of the weights and `workers` workers together.
    pub fn with_workers(self, workers: usize) -> Bytes {
        self.shared + Bytes(self.per_worker.0.saturating_mul(workers as u64))
    }
}

/// The context of a load: reports its progress, and says when it is no longer wanted.
///
/// ```
/// use model_actors::{Bytes, LoadContext, LoadStage};
/// let context = LoadContext::detached(&"english".into());
/// context.begin(LoadStage::Load, Bytes::mib(4));
/// context.advance(Bytes::mib(1));
/// assert!(!context.should_stop());
/// ```
#[derive(Clone)]
pub struct LoadContext {
    pub(crate) model: ModelId,
    pub(crate) capability: &'static str,
    pub(crate) key: ModelKey,
    pub(crate) gauge: Arc<Gauge>,
    pub(crate) progress: Arc<LoadProgress>,
    pub(crate) abandoned: Arc<AtomicBool>,
    pub(crate) events: Events,
    /// Budget of the memory that the model is in, which its caches are charged to.
    pub(crate) caches: Option<Arc<Budget>>,
    pub(crate) clock: Clock,
}

impl LoadContext {
    /// A context of its own, for calling a loader outside a pool (a benchmark, a tool). It has no memory for caches.
    pub fn detached(model: &ModelId) -> Self {
        let clock = Clock::start();
        Self {
            model: model.clone(),
            capability: "",
            key: ModelKey(0),
            gauge: Gauge::new(clock),
            progress: Arc::default(),
            abandoned: Arc::default(),
            events: Events::new(1),
            caches: None,
            clock,
        }
    }

    /// The same context, with memory of its own for caches.
    pub fn with_cache_memory(self, limit: Bytes) -> Self {
        Self { caches: Some(Arc::new(Budget::new(Device::host(), limit))), ..self }
    }

    /// An empty cache of what the model computes of the beginnings of sequences, whose parts take no more than `limit`
    /// together. They are charged to the memory that the model is in, beside its footprint, and given back before a worker
    /// is evicted. Without such a memory, as in a process of its own, the cache stays empty.
    pub fn prefix_cache<V>(&self, limit: Bytes) -> PrefixCache<V> {
        let none = || Arc::new(Budget::new(Device::host(), Bytes::ZERO));
        PrefixCache::new(self.caches.clone().unwrap_or_else(none), self.clock, limit)
    }

    /// Nothing yet of the parts of a model that are loaded when a request needs them. They are charged as those of
    /// [`Self::prefix_cache`] are; without such a memory they stay for good, and belong into the model's footprint.
    pub fn on_demand_parts<V: Send + Sync + 'static>(&self) -> OnDemandParts<V> {
        let endless = || Arc::new(Budget::new(Device::host(), Bytes(u64::MAX)));
        OnDemandParts::new(self.caches.clone().unwrap_or_else(endless), self.clock)
    }

    /// True if caches, and parts that are loaded on demand, are charged to a memory.
    pub fn has_cache_memory(&self) -> bool {
        self.caches.is_some()
    }

    /// Gives up what is done with this context and its clones: [`Self::should_stop`] is true from now on. For contexts of
    /// one's own; those of a pool's loads are given up by the pool.
    pub fn give_up(&self) {
        self.abandoned.store(true, Ordering::Release);
    }

    /// Begins a stage of `total` bytes; 0 where the number is unknown.
    pub fn begin(&self, stage: LoadStage, total: Bytes) {
        self.gauge.tick();
        if self.should_stop() {
            // The progress that is shown is its successor's.
            return;
        }
        self.progress.begin(stage, total.0);
        self.emit(stage, 0);
    }

    /// Reports that so many more bytes of the stage are done. Without such reports a load counts as stuck
    /// after the stall limit.
    pub fn advance(&self, bytes: Bytes) {
        self.gauge.tick();
        if self.should_stop() {
            return;
        }
        let (total, done) = (self.progress.total(), self.progress.advance(bytes.0));
        // At most a hundred events a stage where the total is known, one every 16 MiB where it is not.
        let step = if total > 0 { (total / 100).max(1) } else { 16 << 20 };
        if done / step != (done - bytes.0) / step {
            self.emit(self.progress.stage(), done);
        }
    }

    /// True once nobody wants the load any more; return [`Failure::stopped`] then.
    pub fn should_stop(&self) -> bool {
        self.abandoned.load(Ordering::Acquire)
    }

    fn emit(&self, stage: LoadStage, done: u64) {
        self.events.send(|| Event::Loading {
            capability: self.capability,
            key: self.key,
            model: self.model.clone(),
            stage,
            done: Bytes(done),
            total: Some(self.progress.total()).filter(|total| *total > 0).map(Bytes),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_load_that_was_given_up_shows_no_progress_beside_its_successor() {
        let given_up = LoadContext::detached(&ModelId::from("model"));
        given_up.advance(Bytes(1));
        assert!(given_up.progress.percent().is_some());
        // The successor of the same model has begun and ended.
        given_up.abandoned.store(true, Ordering::Release);
        given_up.progress.end();
        given_up.begin(LoadStage::Load, Bytes(10));
        given_up.advance(Bytes(5));
        assert_eq!(given_up.progress.percent(), None);
    }
}
