//! Sources of a model's adapters by their names. They are opened one by one, when one is needed; what is in their files is
//! read elsewhere.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Files, Source, Unread};
use crate::error::{Error, Result};
use crate::hub_settings::HubSettings;
use crate::limits::{MAX_ADAPTERS, MAX_NAME_BYTES};

/// Sources by the names of adapters.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct AdapterSources(Arc<BTreeMap<String, Source>>);

impl From<BTreeMap<String, Source>> for AdapterSources {
    fn from(sources: BTreeMap<String, Source>) -> Self {
        Self(Arc::new(sources))
    }
}

impl AdapterSources {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The names, in their order.
    pub(crate) fn names(&self) -> Vec<String> {
        self.0.keys().cloned().collect()
    }

    /// Looks whether names and number are allowed, and directories are there.
    ///
    /// # Errors
    /// [`Error::InvalidSetting`]; those of [`Source::check`].
    pub(crate) fn check(&self) -> Result<()> {
        let invalid = |reason| Err(Error::InvalidSetting { setting: "adapters".into(), reason });
        if self.0.len() > MAX_ADAPTERS {
            return invalid(format!("there are {}; at most {MAX_ADAPTERS} are allowed", self.0.len()));
        }
        for (name, source) in &*self.0 {
            if !(1..=MAX_NAME_BYTES).contains(&name.len()) {
                let bytes = name.len();
                return invalid(format!("a name has {bytes} bytes; 1 to {MAX_NAME_BYTES} are allowed"));
            }
            source.check()?;
        }
        Ok(())
    }

    /// The source of one.
    ///
    /// # Errors
    /// [`Error::UnknownAdapter`].
    pub(crate) fn get(&self, adapter: &str) -> Result<&Source> {
        let unknown = || Error::UnknownAdapter { adapter: adapter.to_owned(), known: self.names() };
        self.0.get(adapter).ok_or_else(unknown)
    }
}

/// Adapters, and how their sources are opened.
#[derive(Clone, Default)]
pub(crate) struct OpenAdapters {
    pub(super) sources: AdapterSources,
    pub(super) hub: HubSettings,
    pub(super) unread: Unread,
}

impl Deref for OpenAdapters {
    type Target = AdapterSources;

    fn deref(&self) -> &AdapterSources {
        &self.sources
    }
}

impl OpenAdapters {
    /// Opens one.
    ///
    /// # Errors
    /// [`Error::UnknownAdapter`]; those of [`Files::open`].
    pub(crate) fn open(&self, adapter: &str) -> Result<Files> {
        Ok(Files::open(self.get(adapter)?, &self.hub)?.with_unread(self.unread))
    }
}
