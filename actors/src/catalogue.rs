//! The registered models of a pool: a specification each, thousands of them, and no worker. Registering does
//! no I/O; a model's metrics and load progress come to life with its first request. Ending the workers of a
//! model that was removed or replaced is left to the pool.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;

use crate::capability::{Batching, Capability, Portable};
use crate::config::{PoolConfig, check_digest, check_name};
use crate::entry::ModelEntry;
use crate::error::{Error, Result};
use crate::id::{Device, ModelId, ModelKey};
use crate::isolation::{IsolatedLoader, Isolation};
use crate::memory::Budgets;
#[cfg(feature = "cluster")]
use crate::model::Footprint;
use crate::model::Loader;
use crate::progress::Clock;
use crate::reaper::Reaped;
use crate::scheduler::ModelPolicy;
use crate::telemetry::ModelMetrics;

mod directory;

pub(crate) use directory::Directory;
pub use directory::RegisteredModel;

/// Specification of a model to register: its name, its loader, and the settings that differ from its pool's.
///
/// ```
/// use model_actors::testing::{Scripted, ScriptedLoader};
/// use model_actors::{ModelSpec, PoolConfig};
/// let one_worker = PoolConfig::default().with_max_workers(1);
/// let spec = ModelSpec::<Scripted>::new("acme/model", ScriptedLoader::default()).config(one_worker).pinned();
/// # drop(spec);
/// ```
pub struct ModelSpec<C: Capability> {
    id: ModelId,
    loader: Arc<dyn Loader<C>>,
    device: Device,
    config: Option<PoolConfig>,
    batching: Batching,
    max_batch_requests: usize,
    pinned: bool,
    digest: Option<Arc<str>>,
}

impl<C: Capability> ModelSpec<C> {
    /// Specification of a model on the host, with the pool's settings.
    pub fn new(id: impl Into<ModelId>, loader: impl Loader<C>) -> Self {
        Self::of(id.into(), Arc::new(loader))
    }

    /// Specification of a model that is loaded and run where `isolation` says.
    ///
    /// # Errors
    /// Those of [`Isolated::new`](crate::isolation::Isolated::new).
    pub fn isolated<L: IsolatedLoader<C>>(
        id: impl Into<ModelId>,
        loader: L,
        isolation: &Isolation,
    ) -> Result<Self>
    where
        C: Portable,
    {
        Ok(Self::of(id.into(), isolation.place(loader)?))
    }

    fn of(id: ModelId, loader: Arc<dyn Loader<C>>) -> Self {
        Self {
            id,
            loader,
            device: Device::host(),
            config: None,
            batching: C::BATCHING,
            max_batch_requests: usize::MAX,
            pinned: false,
            digest: None,
        }
    }

    /// Says which files the model is made from, by a digest of theirs, in place of what its loader says
    /// ([`Loader::digest`]). In a cluster, models of one name and digest are one model, and those with a digest are reached from
    /// other nodes; it has no meaning otherwise.
    pub fn digest(mut self, digest: impl Into<Arc<str>>) -> Self {
        self.digest = Some(digest.into());
        self
    }

    /// Charges the model to this memory, which needs a budget
    /// ([`SystemConfig::device_limits`](crate::SystemConfig::device_limits)).
    pub fn device(mut self, device: Device) -> Self {
        self.device = device;
        self
    }

    /// Replaces the pool's settings for this model.
    pub fn config(mut self, config: PoolConfig) -> Self {
        self.config = Some(config);
        self
    }

    /// Protects the model, once loaded, from cooldown and from eviction for other models.
    pub fn pinned(mut self) -> Self {
        self.pinned = true;
        self
    }

    /// Limits the number of requests in a run, to 1 at least, where the settings allow more: for a model that
    /// gains nothing from batches.
    pub fn max_batch_requests(mut self, requests: usize) -> Self {
        self.max_batch_requests = requests.max(1);
        self
    }

    /// Turns on continuous batching: requests join and leave a run between its steps
    /// ([`crate::Batch::join`]). It is on already where the capability needs it
    /// ([`Capability::BATCHING`]).
    pub fn continuous(mut self) -> Self {
        self.batching = Batching::Continuous;
        self
    }

    /// Turns continuous batching off, for a model that takes nobody in between its steps.
    pub fn per_run(mut self) -> Self {
        self.batching = Batching::PerRun;
        self
    }
}

/// A registered model.
pub(crate) struct Registered<C: Capability> {
    pub(crate) entry: Arc<ModelEntry>,
    /// Key of the registration that it goes back to: a replacement keeps it, so that handles follow.
    origin: ModelKey,
    pub(crate) policy: ModelPolicy,
    pub(crate) loader: Reaped<Arc<dyn Loader<C>>>,
    /// Digest of its files, which identifies it in a cluster, once it is known.
    #[cfg_attr(not(feature = "cluster"), allow(dead_code, reason = "there are no other nodes"))]
    digest: OnceLock<Arc<str>>,
    /// Estimate of its memory before it is loaded, for a cluster, once it is known.
    #[cfg(feature = "cluster")]
    size: OnceLock<Footprint>,
}

impl<C: Capability> Registered<C> {
    pub(crate) fn id(&self) -> &ModelId {
        &self.entry.id
    }

    pub(crate) fn key(&self) -> ModelKey {
        self.entry.key
    }

    pub(crate) fn metrics(&self) -> &ModelMetrics {
        self.entry.metrics()
    }

    /// Digest of its files, as far as it is known.
    #[cfg(feature = "cluster")]
    pub(crate) fn digest(&self) -> Option<&Arc<str>> {
        self.digest.get()
    }

    /// Estimate of its memory before it is loaded, as far as it is known.
    #[cfg(feature = "cluster")]
    pub(crate) fn size(&self) -> Option<Footprint> {
        self.size.get().copied()
    }

    /// Makes the estimate of its memory known. The first one stays.
    #[cfg(feature = "cluster")]
    pub(crate) fn set_size(&self, size: Footprint) {
        let _ = self.size.set(size);
    }

    /// Makes the digest of its files known. The first one stays.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] for what can be none.
    #[cfg(feature = "cluster")]
    pub(crate) fn set_digest(&self, digest: String) -> Result<()> {
        check_digest(&digest)?;
        let _ = self.digest.set(digest.into());
        Ok(())
    }
}

/// All registered models of one pool.
pub(crate) struct Catalogue<C: Capability> {
    models: DashMap<ModelId, Arc<Registered<C>>>,
    defaults: Arc<PoolConfig>,
    clock: Clock,
    /// The memories that models may be charged to.
    budgets: Budgets,
    next_key: AtomicU32,
    /// True if models were removed since the pool looked last.
    has_removals: AtomicBool,
}

impl<C: Capability> Catalogue<C> {
    pub(crate) fn new(defaults: PoolConfig, clock: Clock, budgets: Budgets) -> Self {
        Self {
            models: DashMap::new(),
            defaults: Arc::new(defaults),
            clock,
            budgets,
            next_key: AtomicU32::new(0),
            has_removals: AtomicBool::new(false),
        }
    }

    pub(crate) fn register(&self, spec: ModelSpec<C>) -> Result<Arc<Registered<C>>> {
        let model = self.prepare(spec)?;
        match self.models.entry(model.id().clone()) {
            Entry::Occupied(_) => {
                Err(Error::AlreadyRegistered { capability: C::NAME.into(), model: model.id().clone() })
            }
            Entry::Vacant(place) => Ok(place.insert(Arc::new(model)).clone()),
        }
    }

    /// Registers the model, in place of the one that has its name, if any.
    pub(crate) fn replace(&self, spec: ModelSpec<C>) -> Result<Arc<Registered<C>>> {
        let model = self.prepare(spec)?;
        match self.models.entry(model.id().clone()) {
            Entry::Occupied(mut place) => {
                let model = Arc::new(Registered { origin: place.get().origin, ..model });
                // First the new one is found under the name, then the old one refuses: callers in between wait for it.
                let old = place.insert(model.clone());
                old.entry.remove();
                Ok(model)
            }
            Entry::Vacant(place) => Ok(place.insert(Arc::new(model)).clone()),
        }
    }

    /// Checks a specification's name, device and settings and gives the model its key.
    pub(crate) fn prepare(&self, spec: ModelSpec<C>) -> Result<Registered<C>> {
        check_name("model", spec.id.as_str())?;
        spec.digest.as_deref().map_or(Ok(()), check_digest)?;
        self.check_device(&spec.device)?;
        let mut config = match spec.config {
            Some(config) => {
                config.validate()?;
                Arc::new(config)
            }
            None => self.defaults.clone(),
        };
        if spec.max_batch_requests < config.batch.requests {
            Arc::make_mut(&mut config).batch.requests = spec.max_batch_requests;
        }
        let capacity = config.queue.unwrap_or(C::QUEUE);
        capacity.validate()?;
        let key = ModelKey(self.next_key.fetch_add(1, Ordering::Relaxed));
        let entry = ModelEntry::new(C::NAME, key, spec.id.clone(), capacity, &config, self.clock);
        entry.pinned.store(spec.pinned, Ordering::Relaxed);
        let policy = ModelPolicy {
            model: spec.id,
            device: spec.device,
            config,
            batching: spec.batching,
            pinned: spec.pinned,
        };
        let digest = spec.digest.map_or_else(OnceLock::new, OnceLock::from);
        Ok(Registered {
            entry,
            origin: key,
            policy,
            loader: Reaped::new(spec.loader),
            digest,
            #[cfg(feature = "cluster")]
            size: OnceLock::new(),
        })
    }

    fn check_device(&self, device: &Device) -> Result<()> {
        if self.budgets.contains_key(device) {
            return Ok(());
        }
        let known: Vec<&str> = self.budgets.keys().map(Device::as_str).collect();
        let reason = format!("{:?} has no budget; those with one are {}", device.as_str(), known.join(", "));
        Err(Error::InvalidConfig { setting: "device".into(), reason })
    }

    pub(crate) fn get(&self, id: &ModelId) -> Option<Arc<Registered<C>>> {
        self.models.get(id).map(|entry| entry.value().clone())
    }

    /// The model itself, or the one that replaced it; `None` if it was removed.
    pub(crate) fn current(&self, model: &Arc<Registered<C>>) -> Option<Arc<Registered<C>>> {
        match model.entry.is_removed() {
            false => Some(model.clone()),
            true => self.get(model.id()).filter(|successor| successor.origin == model.origin),
        }
    }

    /// Removes a model. False if there is none of this name.
    pub(crate) fn remove(&self, id: &ModelId) -> bool {
        let removed = self.models.remove(id);
        removed.inspect(|(_, model)| model.entry.remove()).is_some()
    }

    /// Notes that models were removed or replaced. True if the pool has to be told.
    pub(crate) fn note_removal(&self) -> bool {
        !self.has_removals.swap(true, Ordering::AcqRel)
    }

    /// Clears the note; the pool looks at the removed models after this.
    pub(crate) fn take_removals(&self) {
        self.has_removals.store(false, Ordering::Release);
    }

    /// The models that other nodes may reach, in the order of their names, and those of which that is not known.
    #[cfg(feature = "cluster")]
    pub(crate) fn by_digest(&self) -> [Vec<Arc<Registered<C>>>; 2] {
        let models = self.models.iter().map(|entry| entry.value().clone());
        let (mut with, without): (Vec<_>, Vec<_>) = models.partition(|model| model.digest().is_some());
        with.sort_by(|a, b| a.id().cmp(b.id()));
        [with, without]
    }

    /// True if the model is registered under its name, be it replaced meanwhile or not.
    pub(crate) fn has(&self, model: &Registered<C>) -> bool {
        self.get(model.id()).is_some_and(|found| found.origin == model.origin)
    }

    pub(crate) fn ids(&self) -> Vec<ModelId> {
        let mut ids: Vec<ModelId> = self.models.iter().map(|entry| entry.key().clone()).collect();
        ids.sort();
        ids
    }

    /// Refuses everybody who waits for a slot or comes for one later.
    pub(crate) fn close(&self) {
        for entry in &self.models {
            entry.value().entry.close();
        }
    }

    /// Sets the gauges of all models to what they are without a pool.
    pub(crate) fn reset_gauges(&self) {
        for entry in &self.models {
            entry.value().entry.reset_gauges();
        }
    }

    /// Numbers of free and of all slots.
    pub(crate) fn slots(&self) -> (usize, usize) {
        self.models.iter().fold((0, 0), |(free, all), model| {
            let slots = model.value().entry.slots();
            (free + slots.0, all + slots.1)
        })
    }
}
