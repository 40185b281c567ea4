//! The options of one request.

use std::time::Duration;

use crate::id::{Lane, Priority, Tenant};

/// Options of one request: its lane, urgency, tenant and time, and what it does when the queue is full.
///
/// ```
/// use model_actors::{CallOptions, Lane, WhenFull};
/// use std::time::Duration;
/// let bulk = CallOptions::default().with_lane(Lane::Batch).with_timeout(Duration::from_secs(60));
/// let impatient = CallOptions::default().with_when_full(WhenFull::Fail);
/// assert_eq!((bulk.when_full, impatient.lane), (WhenFull::Wait, Lane::Interactive));
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CallOptions {
    /// Queue of the model that the request waits in.
    pub lane: Lane,
    /// Urgency relative to other requests of the model and the tenant, those that wait for a slot included.
    pub priority: Priority,
    /// Whoever it is made for, with whom others share the model fairly as [`TenantConfig`](crate::TenantConfig) says.
    /// Those without a tenant are one more.
    pub tenant: Option<Tenant>,
    /// Time for queue, load and run up to the first output, or to the moment at which the model says that it has begun
    /// ([`Item::begin`](crate::Item::begin)): text to text and vision do when they begin to read the prompt, text to
    /// image when it begins to paint. From then on the stall limit bounds the run. `None`: the model's configured time.
    pub timeout: Option<Duration>,
    /// Time for all of the request, to the end of its output. `None`: the model's configured time, if any.
    pub total_timeout: Option<Duration>,
    /// Behaviour when the queue is full.
    pub when_full: WhenFull,
}

setters! { CallOptions {
    with_lane(lane: Lane);
    with_priority(priority: Priority);
    with_tenant(tenant: impl Into<Option<Tenant>>) Into::into;
    with_timeout(timeout: impl Into<Option<Duration>>) Into::into;
    with_total_timeout(total_timeout: impl Into<Option<Duration>>) Into::into;
    with_when_full(when_full: WhenFull);
} }

/// Behaviour of a request that finds its queue full.
///
/// ```
/// assert_eq!(model_actors::WhenFull::default(), model_actors::WhenFull::Wait);
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum WhenFull {
    /// Waits for a slot until the request's time runs out.
    #[default]
    Wait,
    /// Fails at once with [`Error::Overloaded`](crate::Error::Overloaded).
    Fail,
}
