//! The part of loading that every capability shares: a source is opened and its small files are read once, into a
//! [`LoadPlan`]; a later load of the same model takes the same files, without asking the hub again. What is in the files
//! is left to the plans.

use std::sync::{Arc, OnceLock};

use model_actors::{Capability, Failure, Footprint, LoadContext, Loader, ModelId, Weights};

use crate::device::{Compute, ComputeDevice};
use crate::error::Result;
#[cfg(feature = "hub")]
use crate::hub::HubSettings;
use crate::limits::GenerationLimits;
use crate::source::{Files, Source};

/// Everything about a model that its small files tell, before its weights are read.
pub(crate) trait LoadPlan: Sized + Send + Sync + 'static {
    /// What the model can be asked.
    type Capability: Capability;
    /// The model in memory, shared by its workers.
    type Loaded: Weights<Self::Capability>;

    /// Reads the small files. They may come from the network.
    fn read(files: Files, context: &LoadContext) -> Result<Self>;
    /// The same with these limits, for models that write.
    fn limited(self, _: GenerationLimits) -> Self {
        self
    }
    fn files(&self) -> &Files;
    /// What the model will take, from the headers of its weights.
    fn footprint(&self, context: &LoadContext) -> Result<Footprint>;
    /// Reads the weights.
    fn load(self: &Arc<Self>, compute: &Compute, context: &LoadContext) -> Result<Self::Loaded>;
}

/// How a model is loaded that is not an engine's own.
///
/// ```
/// assert_eq!(candle_actors::LoadOptions::default().threads, 1);
/// ```
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// Where it computes.
    pub device: ComputeDevice,
    /// Processor threads that a pass may use, at least 1.
    pub threads: usize,
    /// How much it writes at a time, if it writes.
    pub writing: GenerationLimits,
    /// How the hub is reached.
    #[cfg(feature = "hub")]
    pub hub: HubSettings,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self {
            device: ComputeDevice::Cpu,
            threads: 1,
            writing: GenerationLimits::default(),
            #[cfg(feature = "hub")]
            hub: HubSettings::default(),
        }
    }
}

/// The actors' view of a source. Making one does no I/O.
pub(crate) struct ModelLoader<P> {
    source: Source,
    compute: Compute,
    writing: GenerationLimits,
    #[cfg(feature = "hub")]
    hub: HubSettings,
    plan: OnceLock<Arc<P>>,
}

impl<P: LoadPlan> ModelLoader<P> {
    pub(crate) fn new(source: Source, compute: Compute, #[cfg(feature = "hub")] hub: HubSettings) -> Self {
        Self {
            source,
            compute,
            writing: GenerationLimits::default(),
            #[cfg(feature = "hub")]
            hub,
            plan: OnceLock::new(),
        }
    }

    /// With other limits for a model that writes.
    ///
    /// # Errors
    /// [`Error::InvalidSetting`](crate::Error::InvalidSetting).
    pub(crate) fn writing(self, writing: GenerationLimits) -> Result<Self> {
        writing.check()?;
        Ok(Self { writing, ..self })
    }

    /// A loader outside any engine.
    ///
    /// # Errors
    /// As [`Self::writing`].
    pub(crate) fn alone(source: Source, options: LoadOptions) -> Result<Self> {
        let compute = Compute::new(options.device, options.threads.max(1));
        let loader = Self::new(
            source,
            compute,
            #[cfg(feature = "hub")]
            options.hub,
        );
        loader.writing(options.writing)
    }

    /// Loads a model outside any pool.
    pub(crate) fn load_alone(source: Source, options: LoadOptions) -> Result<P::Loaded> {
        let context = LoadContext::detached(&ModelId::from(source.to_string()));
        Self::alone(source, options)?.load_model(&context)
    }

    fn plan(&self, context: &LoadContext) -> Result<Arc<P>> {
        if let Some(plan) = self.plan.get() {
            return Ok(Arc::clone(plan));
        }
        #[cfg(feature = "hub")]
        let files = Files::open(&self.source, &self.hub)?;
        #[cfg(not(feature = "hub"))]
        let files = Files::open(&self.source)?;
        let plan = Arc::new(P::read(files, context)?.limited(self.writing));
        Ok(Arc::clone(self.plan.get_or_init(|| plan)))
    }

    fn load_model(&self, context: &LoadContext) -> Result<P::Loaded> {
        self.plan(context)?.load(&self.compute, context)
    }
}

impl<P: LoadPlan> Loader<P::Capability> for ModelLoader<P> {
    fn footprint(&self, context: &LoadContext) -> Result<Footprint, Failure> {
        let plan = self.plan(context)?;
        let footprint = plan.footprint(context);
        plan.files().rest();
        Ok(self.compute.counted(footprint?))
    }

    fn load(&self, context: &LoadContext) -> Result<Arc<dyn Weights<P::Capability>>, Failure> {
        let model = self.load_model(context);
        self.plan.get().inspect(|plan| plan.files().rest());
        Ok(Arc::new(model?))
    }
}
