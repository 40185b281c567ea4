//! The stand-in for systems without socket pairs that a child can inherit: registration is refused.

use std::convert::Infallible;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use super::{IsolatedLoader, IsolatedWork, ProcessOptions};
use crate::capability::Portable;
use crate::error::{Error, Failure, Result};
use crate::model::{Footprint, LoadContext, Loader, Weights};

/// A loader whose model runs in processes of its own, which needs Unix: none can be made here.
pub struct Isolated<C, L> {
    none: Infallible,
    kind: PhantomData<fn() -> (C, L)>,
}

impl<C: Portable, L: IsolatedLoader<C>> Isolated<C, L> {
    /// Refuses the loader.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`], always.
    pub fn new(_: L, _: ProcessOptions) -> Result<Self> {
        let reason = "models run in processes of their own on Unix alone; use Isolation::Thread".to_owned();
        Err(Error::InvalidConfig { setting: "isolation".into(), reason })
    }
}

impl<C: Portable, L: IsolatedLoader<C>> Loader<C> for Isolated<C, L> {
    fn footprint(&self, _: &LoadContext) -> Result<Footprint, Failure> {
        match self.none {}
    }

    fn load(&self, _: &LoadContext) -> Result<Arc<dyn Weights<C>>, Failure> {
        match self.none {}
    }
}

/// Children that do work of one kind, which needs Unix: there can be none here.
pub struct Helpers<W> {
    none: Infallible,
    kind: PhantomData<fn() -> W>,
}

impl<W: IsolatedWork> Helpers<W> {
    /// Refuses the work.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`], always.
    pub fn new(_: ProcessOptions, _: usize, _: Duration) -> Result<Self> {
        let reason = "processes of their own are there on Unix alone; use Isolation::Thread".to_owned();
        Err(Error::InvalidConfig { setting: "isolation".into(), reason })
    }

    /// Does nothing.
    ///
    /// # Errors
    /// None.
    pub async fn run(&self, _: Arc<W::Input>) -> Result<W::Output, Failure> {
        match self.none {}
    }

    /// Ends nothing.
    pub async fn end(&self) {
        match self.none {}
    }
}

impl<W> fmt::Debug for Helpers<W> {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.none {}
    }
}
