//! What the handles of all capabilities keep: the model, and how urgent their requests are.

use std::time::Duration;

use model_actors::{CallOptions, Capability, ImageSource, Lane, ModelHandle, Priority};

use crate::error::Result;
use crate::image_input::ImageInput;

/// Whether a request waits while its model's queue or the memory for images is full.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum WhenFull {
    Wait,
    FailAtOnce,
}

/// A model and the settings of the calls to it.
pub(crate) struct Calls<C: Capability> {
    pub(crate) model: ModelHandle<C>,
    priority: Priority,
    timeout: Option<Duration>,
}

impl<C: Capability> Calls<C> {
    pub(crate) fn new(model: ModelHandle<C>) -> Self {
        Self { model, priority: Priority::default(), timeout: None }
    }

    pub(crate) fn priority(self, priority: Priority) -> Self {
        Self { priority, ..self }
    }

    pub(crate) fn timeout(self, timeout: Duration) -> Self {
        Self { timeout: Some(timeout), ..self }
    }

    pub(crate) fn options(&self, lane: Lane) -> CallOptions {
        CallOptions::default().with_lane(lane).with_priority(self.priority).with_timeout(self.timeout)
    }

    /// Refuses a request for which nothing needs to be fetched or decoded, since it would be refused afterwards.
    pub(crate) fn check(&self, request: &C::Request, lane: Lane, when_full: WhenFull) -> Result<()> {
        let options = match when_full {
            WhenFull::Wait => self.options(lane),
            WhenFull::FailAtOnce => self.options(lane).with_when_full(model_actors::WhenFull::Fail),
        };
        Ok(self.model.check(request, &options)?)
    }

    /// A request's images, fetched and decoded, and the options for the rest of it: the wait for room for the images is
    /// part of the request's time; fetching and decoding have limits of their own. What is left of the time is what the
    /// actors know of, and what [`model_actors::Error::Timeout`] then names.
    pub(crate) async fn decoded(
        &self,
        images: &ImageInput,
        sources: Vec<ImageSource>,
        lane: Lane,
        when_full: WhenFull,
    ) -> Result<(Vec<ImageSource>, CallOptions)> {
        let timeout = self.timeout.unwrap_or_else(|| self.model.request_timeout());
        let patience = match when_full {
            WhenFull::Wait => timeout,
            WhenFull::FailAtOnce => Duration::ZERO,
        };
        let (pictures, waited) = images.leased(sources, patience).await?;
        let timeout = Some(timeout.saturating_sub(waited));
        Ok((pictures, self.options(lane).with_timeout(timeout)))
    }
}

// Derived, it would ask for `C: Clone`.
impl<C: Capability> Clone for Calls<C> {
    fn clone(&self) -> Self {
        Self { model: self.model.clone(), ..*self }
    }
}
