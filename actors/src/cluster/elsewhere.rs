//! The way from a client to the pools of other nodes. Only a capability whose messages can travel has one; its clients are
//! generic over all, so they know it by this trait.

use std::sync::Arc;

use crate::capability::Capability;
use crate::catalogue::Registered;
use crate::error::Result;
use crate::id::{ModelId, RequestId};
use crate::job::Accepted;

/// The way to the pools of other nodes.
pub(crate) trait Elsewhere<C: Capability>: Send + Sync {
    /// Whether a request for this model may be served by another node, or can be by no other.
    fn concerns(&self, model: &Registered<C>) -> bool;

    /// The stand-in for a model that other nodes serve, if any does.
    ///
    /// # Errors
    /// [`Error::DifferentModels`](crate::Error::DifferentModels).
    fn find(&self, id: &ModelId) -> Result<Option<Arc<Registered<C>>>>;

    /// Takes a request over.
    ///
    /// # Errors
    /// [`Error::SendError`](crate::Error::SendError) if nobody is there to take it.
    fn submit(&self, model: Arc<Registered<C>>, accepted: Accepted<C>) -> Result<()>;

    /// Tells that the caller of a request has gone.
    fn cancel(&self, request: RequestId);

    /// Refuses requests from now on.
    fn close(&self);
}
