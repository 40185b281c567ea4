//! The place of `fetch` in a build without the feature `image-urls`: there is no fetcher, so that nothing is
//! fetched.

use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;

use crate::error::Result;
use crate::image_input::settings::UrlSettings;
use crate::limits::ImageLimits;

/// A fetcher that cannot exist.
#[derive(Debug)]
pub(crate) enum Fetcher {}

impl Fetcher {
    pub(crate) fn new(_: &UrlSettings) -> Option<Self> {
        None
    }

    pub(crate) fn downloads(&self) -> usize {
        match *self {}
    }

    pub(crate) fn patience(&self) -> Duration {
        match *self {}
    }

    pub(crate) fn check(&self, _: &str) -> Result<()> {
        match *self {}
    }

    pub(crate) async fn leave(&self, _: usize) -> Result<OwnedSemaphorePermit> {
        match *self {}
    }

    pub(crate) async fn fetch(&self, _: &str, _: &ImageLimits) -> Result<Vec<u8>> {
        match *self {}
    }
}
