//! The catalogues of all pools of a system, whatever their capabilities: finds out which models there are,
//! and for which capability a model is registered. It is read on request alone; no request to a model passes
//! through it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;

use super::Catalogue;
use crate::capability::Capability;
use crate::error::Error;
use crate::id::{ModelId, ModelKey};

/// A registered model and its capability.
///
/// ```
/// # #[tokio::main]
/// # async fn main() -> model_actors::Result<()> {
/// use model_actors::testing::{Scripted, ScriptedLoader};
/// use model_actors::{ModelSpec, PoolConfig, System, SystemConfig};
/// let system = System::builder(SystemConfig::default()).pool::<Scripted>(PoolConfig::default()).start().await?;
/// system.client::<Scripted>()?.register(ModelSpec::new("english", ScriptedLoader::default()))?;
/// let registered = &system.models()[0];
/// assert_eq!((registered.capability, registered.model.as_str()), ("scripted", "english"));
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct RegisteredModel {
    /// Name of the capability.
    pub capability: &'static str,
    /// Name of the model.
    pub model: ModelId,
}

/// A catalogue of any capability.
trait AnyCatalogue: Send + Sync {
    fn capability(&self) -> &'static str;
    fn has(&self, id: &ModelId) -> bool;
    /// True if the name belongs to the model with this key.
    fn is_current(&self, id: &ModelId, key: ModelKey) -> bool;
    fn ids(&self) -> Vec<ModelId>;
    /// Numbers of free and of all slots.
    fn slots(&self) -> (usize, usize);
}

impl<C: Capability> AnyCatalogue for Catalogue<C> {
    fn capability(&self) -> &'static str {
        C::NAME
    }

    fn has(&self, id: &ModelId) -> bool {
        self.models.contains_key(id)
    }

    fn is_current(&self, id: &ModelId, key: ModelKey) -> bool {
        self.models.get(id).is_some_and(|model| model.value().key() == key)
    }

    fn ids(&self) -> Vec<ModelId> {
        Catalogue::ids(self)
    }

    fn slots(&self) -> (usize, usize) {
        Catalogue::slots(self)
    }
}

/// The catalogues of a system's pools, in the order in which the pools were added.
#[derive(Default)]
pub(crate) struct Directory(Mutex<Vec<Arc<dyn AnyCatalogue>>>);

impl Directory {
    pub(crate) fn add<C: Capability>(&self, catalogue: Arc<Catalogue<C>>) {
        self.lock().push(catalogue);
    }

    /// All registered models, in the order of the pools, and of the names within a pool.
    pub(crate) fn models(&self) -> Vec<RegisteredModel> {
        let of = |catalogue: &Arc<dyn AnyCatalogue>| {
            let capability = catalogue.capability();
            catalogue.ids().into_iter().map(move |model| RegisteredModel { capability, model })
        };
        self.lock().iter().flat_map(of).collect()
    }

    /// Numbers of free and of all slots.
    pub(crate) fn slots(&self) -> (usize, usize) {
        self.lock().iter().map(|catalogue| catalogue.slots()).fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1))
    }

    /// True if a name of a capability belongs to the model with this key, and to none that replaced it.
    pub(crate) fn is_current(&self, capability: &str, id: &ModelId, key: ModelKey) -> bool {
        let catalogues = self.lock();
        let of = catalogues.iter().find(|catalogue| catalogue.capability() == capability);
        of.is_some_and(|catalogue| catalogue.is_current(id, key))
    }

    /// The error for a model that is not registered for a capability: it may be for another.
    pub(crate) fn not_found(&self, asked: &'static str, model: &ModelId) -> Error {
        let model = model.clone();
        let is_other =
            |catalogue: &&Arc<dyn AnyCatalogue>| catalogue.capability() != asked && catalogue.has(&model);
        match self.lock().iter().find(is_other) {
            Some(other) => {
                Error::OtherCapability { model, asked: asked.into(), registered: other.capability().into() }
            }
            None => Error::UnknownModel { model, capability: asked.into() },
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<dyn AnyCatalogue>>> {
        // Pushes and reads alone happen under this lock, so its poison means nothing.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
