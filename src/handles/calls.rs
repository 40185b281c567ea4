//! The parts that the handles of all capabilities have in common: the model, the settings of calls to it, and batches
//! that run as several requests side by side.

use std::time::Duration;

use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use model_actors::{
    CallOptions, Capability, ImageSource, Lane, ModelFacts, ModelHandle, ReplyStream, WhenFull,
};

use crate::error::{Error, Result};
use crate::image_input::ImageInput;

/// Maximum number of texts in a request to embed that a batch is split into.
pub(crate) const TEXTS_PER_REQUEST: usize = 32;
/// Number of requests to embed texts of one batch that are under way at a time; fewer than the batch lane has slots, so
/// that one caller does not fill it.
pub(crate) const TEXT_REQUESTS_AT_A_TIME: usize = 16;

/// A model and the settings of the calls to it.
pub(crate) struct Calls<C: Capability> {
    pub(crate) model: ModelHandle<C>,
    /// Lane of all requests, where the caller has chosen one.
    pub(crate) lane: Option<Lane>,
    /// All settings but the lane.
    pub(crate) options: CallOptions,
}

/// Adds the settings of calls, and the way to the model, to a handle that has a field `calls`.
macro_rules! call_settings {
    ($handle:ident for $capability:ty) => {
        /// The model's name alone.
        impl std::fmt::Debug for $handle {
            fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                formatter.debug_struct(stringify!($handle)).field("model", self.id()).finish_non_exhaustive()
            }
        }

        impl $handle {
            /// Sets the lane of its requests. Unless set, single ones are interactive and batches take the batch lane.
            #[must_use]
            pub fn lane(mut self, lane: model_actors::Lane) -> Self {
                self.calls.lane = Some(lane);
                self
            }

            /// Sets the urgency of its requests relative to others of the model.
            #[must_use]
            pub fn priority(mut self, priority: model_actors::Priority) -> Self {
                self.calls.options.priority = priority;
                self
            }

            /// Sets whoever its requests are made for: the model is shared out fairly between tenants, as
            /// [`TenantConfig`](model_actors::TenantConfig) says.
            #[must_use]
            pub fn tenant(mut self, tenant: impl Into<model_actors::Tenant>) -> Self {
                self.calls.options.tenant = Some(tenant.into());
                self
            }

            /// Sets the time that each request has for queue, load and run up to its first output, in place of the
            /// model's own; the wait for room for its images is included. Where a model writes or paints, the time is
            /// kept once it has begun to read the prompt, or to paint: then the stall limit bounds each step, and
            /// `total_timeout` all of it. Fetching and decoding an image has limits of its own, in
            /// [`ImageSettings`](crate::ImageSettings).
            #[must_use]
            pub fn timeout(mut self, timeout: std::time::Duration) -> Self {
                self.calls.options.timeout = Some(timeout);
                self
            }

            /// Sets the time that each request has from its call to the end of its output, in place of the model's own; unless
            /// either is set there is no such limit.
            #[must_use]
            pub fn total_timeout(mut self, total_timeout: std::time::Duration) -> Self {
                self.calls.options.total_timeout = Some(total_timeout);
                self
            }

            /// Sets the behaviour of a request that finds the model's queue, or the memory for images, full: it waits,
            /// unless set, or fails at once. One that fails at once does so before an image is fetched, and once more if
            /// either became full until the image was decoded.
            #[must_use]
            pub fn when_full(mut self, when_full: model_actors::WhenFull) -> Self {
                self.calls.options.when_full = when_full;
                self
            }

            /// Id of the model.
            pub fn id(&self) -> &model_actors::ModelId {
                self.calls.model.id()
            }

            /// Facts about the model: its kind, how many tokens it takes, and what it gives. A model that was never loaded is
            /// loaded first, on one of the nodes of a cluster that serve it if it is not here;
            /// [`ModelHandle::facts`](model_actors::ModelHandle::facts) asks without. Nothing is known of a model in a process
            /// of its own, or whose loader tells nothing.
            ///
            /// # Errors
            /// [`Error::Actor`](crate::Error::Actor), of which [`Error::root`](crate::Error::root) gives a load's own error.
            pub async fn facts(&self) -> crate::Result<Option<model_actors::ModelFacts>> {
                self.calls.facts().await
            }

            /// The untyped handle, to preload, unload or pin the model. Its workers take images as pixels alone, such as
            /// [`ImageInput::picture`](crate::ImageInput::picture) gives.
            pub fn model(&self) -> &model_actors::ModelHandle<$capability> {
                &self.calls.model
            }
        }
    };
}

pub(crate) use call_settings;

impl<C: Capability> Calls<C> {
    pub(crate) fn new(model: ModelHandle<C>) -> Self {
        Self { model, lane: None, options: CallOptions::default() }
    }

    /// The options of a request that takes this lane unless the caller has chosen another.
    pub(crate) fn options(&self, lane: Lane) -> CallOptions {
        self.options.clone().with_lane(self.lane.unwrap_or(lane))
    }

    pub(crate) async fn call(&self, request: C::Request, lane: Lane) -> Result<C::Output> {
        Ok(self.model.call(request, self.options(lane)).await?)
    }

    /// Facts about the model, which is loaded if it never was and can be.
    pub(crate) async fn facts(&self) -> Result<Option<ModelFacts>> {
        if self.model.facts().is_none() {
            self.model.preload().await?;
        }
        Ok(self.model.facts())
    }

    pub(crate) async fn stream(&self, request: C::Request) -> Result<ReplyStream<C>> {
        Ok(self.model.stream(request, self.options(Lane::Interactive)).await?)
    }

    /// The images of a request, fetched and decoded, and the options for the rest of it: the wait for room for the images
    /// is part of the request's time; fetching and decoding have limits of their own. The actors know of the time that is
    /// left alone, which [`model_actors::Error::Timeout`] then names.
    pub(crate) async fn decoded(
        &self,
        images: &ImageInput,
        sources: Vec<ImageSource>,
        options: CallOptions,
    ) -> Result<(Vec<ImageSource>, CallOptions)> {
        let timeout = options.timeout.unwrap_or_else(|| self.model.request_timeout());
        let patience = if options.when_full == WhenFull::Fail { Duration::ZERO } else { timeout };
        let (pictures, waited) = images.leased(sources, patience).await?;
        let total_timeout = options.total_timeout.map(|total| total.saturating_sub(waited));
        let options = options.with_total_timeout(total_timeout);
        Ok((pictures, options.with_timeout(timeout.saturating_sub(waited))))
    }
}

// Derived, it would ask for `C: Clone`.
impl<C: Capability> Clone for Calls<C> {
    fn clone(&self) -> Self {
        Self { model: self.model.clone(), lane: self.lane, options: self.options.clone() }
    }
}

/// The items in portions of at most so many.
pub(crate) fn portions<T>(items: impl IntoIterator<Item = T>, most: usize) -> Vec<Vec<T>> {
    let mut items = items.into_iter().peekable();
    let mut portions = Vec::new();
    while items.peek().is_some() {
        portions.push(items.by_ref().take(most).collect());
    }
    portions
}

/// Portions of texts, or what became of them, with the index of the first text of each.
pub(crate) fn numbered<T>(portions: Vec<T>) -> Vec<(usize, T)> {
    (0..).step_by(TEXTS_PER_REQUEST).zip(portions).collect()
}

/// The outputs of a batch's requests, in order, with so many of them under way at a time; the first error ends the
/// others.
///
/// # Errors
/// [`Error::InvalidInput`] for a batch of none of these `items`; the first error of a request.
pub(crate) async fn in_order<R, O, F>(
    requests: Vec<R>,
    items: &str,
    at_a_time: usize,
    call: impl Fn(R) -> F,
) -> Result<Vec<O>>
where
    F: Future<Output = Result<O>>,
{
    if requests.is_empty() {
        return Err(Error::InvalidInput(format!("the batch holds no {items}")));
    }
    stream::iter(requests).map(call).buffered(at_a_time).try_collect().await
}

/// The answer to a request of one item.
pub(crate) fn only<T>(answers: Vec<T>) -> Result<T> {
    answers.into_iter().next().ok_or_else(|| Error::compute("the model gave no answer"))
}
