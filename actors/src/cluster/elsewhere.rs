//! The way from a client to the pools of other nodes. Only a capability whose messages can travel has one; its clients are
//! generic over all, so they know it by this trait.

use std::sync::Arc;
use std::time::Duration;

use crate::capability::Capability;
use crate::catalogue::Registered;
use crate::error::Result;
use crate::id::{ModelId, RequestId, Time};
use crate::job::Accepted;
use crate::pool::{Call, Caller};
use crate::scheduler::CallId;

/// A call on a model that other nodes alone serve, and who made it.
pub(crate) struct ElsewhereCall<C: Capability> {
    pub(crate) id: CallId,
    pub(crate) model: Arc<Registered<C>>,
    pub(crate) call: Call,
    /// The moment by which it is to be answered, and the time that it was given.
    pub(crate) ends: Time,
    pub(crate) timeout: Duration,
    pub(crate) caller: Caller,
}

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

    /// Whether this is the stand-in for a model that other nodes alone serve.
    fn stands_in(&self, model: &Registered<C>) -> bool;

    /// Takes a call on such a model over.
    ///
    /// # Errors
    /// As [`Self::submit`].
    fn call(&self, call: ElsewhereCall<C>) -> Result<()>;

    /// Tells that the caller of a call has gone.
    fn caller_gone(&self, call: CallId);

    /// Refuses requests from now on.
    fn close(&self);
}
