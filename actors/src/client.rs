//! What users hold: a [`Client`] for each pool and a [`ModelHandle`] for each model, both cheap to clone. A request is
//! checked here, in the caller's task, takes a slot of its model's bounded queue, and is handed to the pool; here too
//! it is timed, counted and, if its caller goes away, cancelled. Nothing here knows which worker runs it.

use std::borrow::Borrow;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{TryAcquireError, mpsc, oneshot};
use tracing::Instrument;

use crate::capability::Capability;
use crate::catalogue::{Catalogue, ModelSpec, Registered};
use crate::entry::Slot;
use crate::error::{Error, RequestPhase, Result};
use crate::id::{Lane, ModelId, Priority, Time};
use crate::job::{Accepted, Answer, Job, JobParts};
use crate::pool::{Call, Caller, PoolMessage};
use crate::progress::Clock;
use crate::telemetry::span;

mod gate;
mod reply;

pub(crate) use gate::PoolGate;
pub use reply::ReplyStream;
use reply::{Reply, Tally};

/// Options of one request: its lane, urgency and time, and what it does when the queue is full.
///
/// ```
/// use model_actors::{CallOptions, Lane, WhenFull};
/// use std::time::Duration;
/// let bulk = CallOptions::default().with_lane(Lane::Batch).with_timeout(Duration::from_secs(60));
/// let impatient = CallOptions::default().with_when_full(WhenFull::Fail);
/// assert_eq!((bulk.when_full, impatient.lane), (WhenFull::Wait, Lane::Interactive));
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CallOptions {
    /// Queue of the model that the request waits in.
    pub lane: Lane,
    /// Urgency relative to other requests of the model.
    pub priority: Priority,
    /// Time for queue, load and run up to the first output. `None`: the model's configured time.
    pub timeout: Option<Duration>,
    /// Behaviour when the queue is full.
    pub when_full: WhenFull,
}

setters! { CallOptions {
    with_lane(lane: Lane);
    with_priority(priority: Priority);
    with_timeout(timeout: impl Into<Option<Duration>>) Into::into;
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
    /// Fails at once with [`Error::Overloaded`].
    Fail,
}

/// Shared by all clients of one pool and the pool's own starts.
pub(crate) struct PoolShared<C: Capability> {
    pub(crate) catalogue: Arc<Catalogue<C>>,
    pub(crate) gate: PoolGate<C>,
    pub(crate) clock: Clock,
}

/// Client of one pool: registers, replaces and removes models, and gives handles to them. Cheap to clone.
pub struct Client<C: Capability> {
    shared: Arc<PoolShared<C>>,
}

impl<C: Capability> Clone for Client<C> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone() }
    }
}

impl<C: Capability> Client<C> {
    pub(crate) fn new(shared: Arc<PoolShared<C>>) -> Self {
        Self { shared }
    }

    /// Registers a model. Starts no worker and does no I/O.
    ///
    /// # Errors
    /// [`Error::AlreadyRegistered`], or [`Error::InvalidConfig`] for settings of its own.
    pub fn register(&self, spec: ModelSpec<C>) -> Result<ModelHandle<C>> {
        let model = self.shared.catalogue.register(spec)?;
        Ok(ModelHandle { shared: self.shared.clone(), model })
    }

    /// Registers a model in place of the one that has its name, if any.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] for settings of its own; the model that was registered then stays.
    pub fn replace(&self, spec: ModelSpec<C>) -> Result<ModelHandle<C>> {
        let (model, old) = self.shared.catalogue.replace(spec)?;
        if let Some(old) = old {
            old.entry.close();
        }
        Ok(ModelHandle { shared: self.shared.clone(), model })
    }

    /// Takes a model out of the catalogue: its handles refuse new requests, what runs finishes, and its workers cool
    /// down. Unload it first to have its bytes back at once.
    ///
    /// # Errors
    /// [`Error::UnknownModel`].
    pub fn remove(&self, model: &ModelId) -> Result<()> {
        let removed = self.shared.catalogue.remove(model);
        removed.ok_or_else(|| Error::UnknownModel { model: model.clone() })?.entry.close();
        Ok(())
    }

    /// Handle to a registered model.
    ///
    /// # Errors
    /// [`Error::UnknownModel`].
    pub fn handle(&self, id: impl Into<ModelId>) -> Result<ModelHandle<C>> {
        let id = id.into();
        match self.shared.catalogue.get(&id) {
            Some(model) => Ok(ModelHandle { shared: self.shared.clone(), model }),
            None => Err(Error::UnknownModel { model: id }),
        }
    }

    /// Names of the registered models, in alphabetical order.
    pub fn models(&self) -> Vec<ModelId> {
        self.shared.catalogue.ids()
    }

    /// Slots of all queues that no request holds, and all there are. Equal when nothing is under way.
    pub fn slots(&self) -> (usize, usize) {
        self.shared.catalogue.slots()
    }
}

/// A way to one model.
pub struct ModelHandle<C: Capability> {
    shared: Arc<PoolShared<C>>,
    model: Arc<Registered<C>>,
}

impl<C: Capability> Clone for ModelHandle<C> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone(), model: self.model.clone() }
    }
}

impl<C: Capability> ModelHandle<C> {
    /// The model.
    pub fn id(&self) -> &ModelId {
        self.model.id()
    }

    /// The time that a request has unless its [`CallOptions`] say otherwise.
    pub fn request_timeout(&self) -> Duration {
        self.model.policy.config.request_timeout
    }

    /// Checks a request without sending it, for a caller who has costly work to do before (decoding images, say). Fails
    /// as [`Self::call`] would before it waits, and is then counted as a request that failed. Takes no slot, so the
    /// queue may be full by the time of the call.
    ///
    /// # Errors
    /// [`Error::InvalidInput`], [`Error::ShuttingDown`], [`Error::UnknownModel`]; with [`WhenFull::Fail`] also
    /// [`Error::Overloaded`].
    pub fn check(&self, request: &C::Request, options: &CallOptions) -> Result<()> {
        let refusal = match (C::check(request), self.model.entry.vacancy(options.lane)) {
            (Err(cause), _) => Error::InvalidInput { cause },
            (Ok(()), Err(TryAcquireError::Closed)) => self.closed(),
            (Ok(()), Err(TryAcquireError::NoPermits)) if options.when_full == WhenFull::Fail => {
                self.overloaded(options.lane)
            }
            _ => return Ok(()),
        };
        Tally::begin(self).end(Err(refusal))
    }

    /// Sends a request and waits for its output; a streamed capability's chunks are not sent. Dropping the future
    /// cancels the request.
    ///
    /// # Errors
    /// Every [`Error`] that a request can end with.
    pub async fn call(&self, request: C::Request, options: CallOptions) -> Result<C::Output> {
        let tally = Tally::begin(self);
        let work = async { self.accept(self, request, options, None).await?.output().await };
        tally.end(work.instrument(self.span(options)).await)
    }

    /// Sends a request and returns the stream of its chunks, which ends with the output. Dropping the stream cancels
    /// the request.
    ///
    /// # Errors
    /// Those known before the request is accepted; later ones come out of the stream.
    pub async fn stream(&self, request: C::Request, options: CallOptions) -> Result<ReplyStream<C>> {
        let span = self.span(options);
        let tally = Tally::begin(self.clone());
        let (sender, chunks) = mpsc::channel(self.model.policy.config.stream_buffer);
        let accepted = self.accept(self.clone(), request, options, Some(sender));
        match accepted.instrument(span.clone()).await {
            Ok(reply) => Ok(ReplyStream::new(reply, chunks, tally, span)),
            Err(error) => tally.end(Err(error)),
        }
    }

    /// Loads the model now. Returns once its first worker is ready; joins a load under way.
    ///
    /// # Errors
    /// What a request would get: [`Error::SpawnFailed`], [`Error::MemoryExhausted`], [`Error::CircuitOpen`] and so on.
    pub async fn preload(&self) -> Result<()> {
        self.manage(Call::Preload, None).await
    }

    /// Stops the model's workers, each after the batch that it runs, and returns once their bytes are back in the
    /// budget. Requests that wait meanwhile are served by a new load afterwards.
    ///
    /// # Errors
    /// [`Error::UnloadIncomplete`] says how many bytes are not back, and why.
    pub async fn unload(&self, timeout: Duration) -> Result<()> {
        let deadline = self.shared.clock.now() + timeout;
        self.manage(Call::Unload { deadline }, Some(timeout)).await
    }

    /// Keeps the model's workers in memory, against cooldown and the needs of others, or no longer.
    ///
    /// # Errors
    /// [`Error::NoWorkers`] if the pool is down.
    pub async fn pin(&self, pinned: bool) -> Result<()> {
        self.manage(Call::Pin { pinned }, None).await
    }

    fn span(&self, options: CallOptions) -> tracing::Span {
        tracing::info_span!(span::REQUEST, capability = C::NAME, model = %self.model.id(), lane = %options.lane)
    }

    /// Checks the request, takes a slot and hands it to the pool. The reply keeps `handle`: this one for as long as
    /// the caller waits here, or one of its own.
    async fn accept<H: Borrow<Self>>(
        &self,
        handle: H,
        request: C::Request,
        options: CallOptions,
        chunks: Option<mpsc::Sender<C::Chunk>>,
    ) -> Result<Reply<C, H>> {
        C::check(&request).map_err(|cause| Error::InvalidInput { cause })?;
        let timeout = options.timeout.unwrap_or(self.model.policy.config.request_timeout);
        let deadline = self.shared.clock.now() + timeout;
        let slot = self.slot(options, deadline, timeout).await?;
        let parts = JobParts {
            entry: self.model.entry.clone(),
            request,
            lane: options.lane,
            priority: options.priority,
            deadline,
            timeout,
            clock: self.shared.clock,
        };
        let (done, answer) = oneshot::channel();
        let job = Job::new(parts, Answer { done, chunks, slot });
        let cancels = Arc::downgrade(&job);
        self.shared.gate.submit(self.id(), Accepted::new(job))?;
        Ok(Reply::new(handle, cancels, answer))
    }

    async fn slot(&self, options: CallOptions, deadline: Time, timeout: Duration) -> Result<Slot> {
        let (entry, lane) = (&self.model.entry, options.lane);
        match Slot::try_take(entry, lane) {
            Ok(slot) => return Ok(slot),
            Err(TryAcquireError::Closed) => return Err(self.closed()),
            Err(TryAcquireError::NoPermits) => {}
        }
        if options.when_full == WhenFull::Fail {
            return Err(self.overloaded(lane));
        }
        let model = entry.id.clone();
        let began = self.shared.clock.now();
        let slot =
            tokio::time::timeout_at(self.shared.clock.instant(deadline), Slot::take(entry, lane)).await;
        entry.metrics().backpressure_wait.record(self.shared.clock.now().since(began).as_secs_f64());
        match slot {
            Ok(Ok(slot)) => Ok(slot),
            Ok(Err(_)) => Err(self.closed()),
            Err(_) => Err(Error::Timeout { model, phase: RequestPhase::WaitingForSlot, after: timeout }),
        }
    }

    fn overloaded(&self, lane: Lane) -> Error {
        let capacity = self.model.entry.capacity(lane);
        Error::Overloaded { model: self.id().clone(), lane, capacity, retry_after: Duration::from_secs(1) }
    }

    /// Why the model takes no more requests.
    fn closed(&self) -> Error {
        match self.shared.catalogue.holds(&self.model) {
            true => Error::ShuttingDown,
            false => self.unknown(),
        }
    }

    fn unknown(&self) -> Error {
        Error::UnknownModel { model: self.model.id().clone() }
    }

    /// The pool ends a call by its own limits; the margin is for a pool that died with the call in its hands.
    async fn manage(&self, call: Call, timeout: Option<Duration>) -> Result<()> {
        // What was taken out can be unloaded, but nothing else.
        if !matches!(call, Call::Unload { .. }) && !self.shared.catalogue.holds(&self.model) {
            return Err(self.unknown());
        }
        let id = self.model.id();
        let late = || Error::Timeout {
            model: id.clone(),
            phase: RequestPhase::WaitingForSlot,
            after: timeout.unwrap_or_default(),
        };
        let permit = match timeout {
            Some(timeout) => {
                tokio::time::timeout(timeout, self.shared.gate.call_permit()).await.map_err(|_| late())?
            }
            None => self.shared.gate.call_permit().await,
        };
        let (done, answer) = oneshot::channel();
        let message =
            PoolMessage::Call { model: self.model.clone(), call, done: Caller { done, _permit: permit } };
        self.shared.gate.send(self.model.id(), message)?;
        let model = self.model.id().clone();
        let lost = Error::RecvError { model: model.clone() };
        let Some(timeout) = timeout else { return answer.await.unwrap_or(Err(lost)) };
        match tokio::time::timeout(timeout.saturating_add(Duration::from_secs(5)), answer).await {
            Ok(result) => result.unwrap_or(Err(lost)),
            Err(_) => Err(Error::Timeout { model, phase: RequestPhase::Running, after: timeout }),
        }
    }
}
