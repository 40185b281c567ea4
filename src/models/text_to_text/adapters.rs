//! The adapters (LoRA) that a model was registered with: they are loaded with it, and shared by its workers. One that cannot
//! be loaded fails the requests that ask for it, and no others.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use candle_core::Device;
use model_actors::{Bytes, LoadContext, LoadStage};

use super::network::NetworkConfig;
use crate::error::{Error, Result};
use crate::models::peft::{PeftAdapter, of_adapter};
use crate::models::transformer::Adapter;
use crate::source::OpenAdapters;

/// The adapters of a loaded model by their names, and the errors of those that cannot be used.
pub(super) struct Adapters(BTreeMap<String, Result<Arc<Adapter>>>);

impl Adapters {
    /// Loads all of a model's.
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub(super) fn load(
        sources: &OpenAdapters,
        config: &NetworkConfig,
        device: &Device,
        context: &LoadContext,
    ) -> Result<Self> {
        let mut loaded = BTreeMap::new();
        for name in sources.names() {
            let adapter = open(sources, &name, context).and_then(|opened| {
                context.begin(LoadStage::Load, opened.bytes_on_disk());
                let loaded = config.load_adapter(&opened, device, context);
                loaded.map(Arc::new).map_err(|error| of_adapter(&name, opened.file(), error))
            });
            if matches!(adapter, Err(Error::Stopped)) {
                return Err(Error::Stopped);
            }
            loaded.insert(name, adapter);
        }
        Ok(Self(loaded))
    }

    /// The adapter of this name.
    ///
    /// # Errors
    /// [`Error::UnknownAdapter`], [`Error::BrokenAdapter`].
    pub(super) fn get(&self, name: &str) -> Result<Arc<Adapter>> {
        let unknown = || {
            Err(Error::UnknownAdapter { adapter: name.to_owned(), known: self.0.keys().cloned().collect() })
        };
        self.0.get(name).cloned().unwrap_or_else(unknown)
    }
}

/// Bytes that all of a model's adapters take; one that cannot be opened takes none.
///
/// # Errors
/// [`Error::Stopped`].
pub(super) fn bytes(sources: &OpenAdapters, context: &LoadContext) -> Result<Bytes> {
    let bytes = |name: String| match open(sources, &name, context) {
        Err(Error::Stopped) => Err(Error::Stopped),
        opened => Ok(opened.map_or(Bytes::ZERO, |opened| opened.bytes())),
    };
    sources.names().into_iter().map(bytes).sum()
}

fn open(sources: &OpenAdapters, name: &str, context: &LoadContext) -> Result<PeftAdapter> {
    let place = PathBuf::from(sources.get(name)?.to_string());
    let opened = sources.open(name).and_then(|files| PeftAdapter::open(&files, "", context));
    opened.map_err(|error| of_adapter(name, place, error))
}
