//! The parts of an engine that its loads and handles share: device, compute threads, hub settings and image input.
//! An application's own loader uses them to open a [`Source`] as the engine's loaders do; reading the files is left to
//! it.

use model_actors::LoadContext;
use model_actors::isolation::Isolation;

use crate::device::{Compute, ComputeDevice};
use crate::error::Result;
use crate::hub_settings::HubSettings;
use crate::image_input::{ImageInput, ImageSettings};
use crate::loader::LoadOptions;
use crate::source::{Files, ModelFiles, Source};
use crate::structured::ConstraintCheck;

/// Device, compute threads, hub settings and image input of an engine. Cheap to clone.
///
/// ```
/// use candle_actors::{EngineResources, LoadOptions};
/// let resources = EngineResources::new(&LoadOptions::default().with_threads(2))?;
/// assert_eq!(resources.threads(), 2);
/// # Ok::<(), candle_actors::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct EngineResources {
    compute: Compute,
    hub: HubSettings,
    images: ImageInput,
    isolation: Isolation,
    constraints: ConstraintCheck,
}

impl EngineResources {
    /// Creates the resources without an engine, to run a loader on its own. Images are taken in with the default settings.
    ///
    /// # Errors
    /// [`Error::InvalidSetting`](crate::Error::InvalidSetting).
    pub fn new(options: &LoadOptions) -> Result<Self> {
        let compute = Compute::new(options.device, options.threads)?;
        Self::of(compute, options.hub.clone(), ImageSettings::default(), Isolation::default())
    }

    pub(crate) fn of(
        compute: Compute,
        hub: HubSettings,
        images: ImageSettings,
        isolation: Isolation,
    ) -> Result<Self> {
        let (images, constraints) = (ImageInput::new(images)?, ConstraintCheck::default());
        Ok(Self { compute, hub, images, isolation, constraints })
    }

    /// Opens a source. Fetches nothing yet: a file of a repository is fetched when it is asked for.
    ///
    /// # Errors
    /// [`Error::NoSuchDirectory`](crate::Error::NoSuchDirectory) and its like for what is not there.
    pub fn open(&self, source: &Source, context: &LoadContext) -> Result<ModelFiles> {
        Ok(ModelFiles::new(Files::open(source, &self.hub)?, context.clone()))
    }

    /// Device that the models run on.
    pub fn device(&self) -> ComputeDevice {
        self.compute.device
    }

    /// Processor threads that each worker may use.
    pub fn threads(&self) -> usize {
        self.compute.threads
    }

    /// The place where models run that do not say another.
    pub fn isolation(&self) -> &Isolation {
        &self.isolation
    }

    /// Settings for the hub.
    pub fn hub(&self) -> &HubSettings {
        &self.hub
    }

    /// Image input, which turns files, addresses and encoded images into pixels.
    pub fn images(&self) -> &ImageInput {
        &self.images
    }

    pub(crate) fn constraints(&self) -> &ConstraintCheck {
        &self.constraints
    }

    pub(crate) fn compute(&self) -> &Compute {
        &self.compute
    }
}
