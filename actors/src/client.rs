//! What users hold: a [`Client`] for each pool and a [`ModelHandle`] for each model, both cheap to clone. A request is
//! checked here, in the caller's task, takes a slot of its model's bounded queue, and is handed to the pool; here too
//! it is timed, counted and, if its caller goes away, cancelled. Nothing here knows which worker runs it.

use std::borrow::Borrow;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{TryAcquireError, mpsc, oneshot};
use tracing::Instrument;

use crate::capability::{Capability, Lane, Priority};
use crate::catalogue::{Catalogue, ModelSpec, Registered};
use crate::entry::Slot;
use crate::error::{Error, RequestPhase, Result};
use crate::id::{ModelId, Time};
use crate::job::{Accepted, Answer, Job, JobParts};
use crate::pool::{Call, Caller, PoolMessage};
use crate::progress::Clock;
use crate::telemetry::span;

mod gate;
mod reply;

pub(crate) use gate::PoolGate;
pub use reply::ReplyStream;
use reply::{Reply, Tally};

/// How a request wants to be treated.
///
/// ```
/// use model_actors::{CallOptions, Lane};
/// use std::time::Duration;
/// let options = CallOptions { lane: Lane::Batch, timeout: Some(Duration::from_secs(5)), ..CallOptions::default() };
/// assert_eq!(options.priority.0, 0);
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CallOptions {
    /// Which of the model's two queues it waits in.
    pub lane: Lane,
    /// How urgent it is against others of its model.
    pub priority: Priority,
    /// Time for queue, load and run up to the first output. `None`: the model's configured time.
    pub timeout: Option<Duration>,
}

/// Whether a request waits for a slot of a full queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WhenFull {
    WaitUntilDeadline,
    FailAtOnce,
}

/// Shared by all clients of one pool and the pool's own starts.
pub(crate) struct PoolShared<C: Capability> {
    pub(crate) catalogue: Arc<Catalogue<C>>,
    pub(crate) gate: PoolGate<C>,
    pub(crate) clock: Clock,
}

/// A way to one pool.
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

    /// Registers a model. Costs no worker and no I/O.
    ///
    /// # Errors
    /// [`Error::AlreadyRegistered`], or [`Error::InvalidConfig`] for settings of its own.
    pub fn register(&self, spec: ModelSpec<C>) -> Result<ModelHandle<C>> {
        let model = self.shared.catalogue.register(spec)?;
        Ok(ModelHandle { shared: self.shared.clone(), model })
    }

    /// Takes a model out of the catalogue: its handles refuse new requests, what runs finishes, and its workers cool
    /// down. Unload it first to have its bytes back at once.
    ///
    /// # Errors
    /// [`Error::UnknownModel`].
    pub fn unregister(&self, model: &ModelId) -> Result<()> {
        let removed = self.shared.catalogue.remove(model);
        removed.ok_or_else(|| Error::UnknownModel { model: model.clone() })?.entry.close();
        Ok(())
    }

    /// A registered model.
    ///
    /// # Errors
    /// [`Error::UnknownModel`].
    pub fn model(&self, id: impl Into<ModelId>) -> Result<ModelHandle<C>> {
        let id = id.into();
        match self.shared.catalogue.get(&id) {
            Some(model) => Ok(ModelHandle { shared: self.shared.clone(), model }),
            None => Err(Error::UnknownModel { model: id }),
        }
    }

    /// The registered models, in order.
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

    /// Fails as [`Self::try_call`] would at this moment if the lane's queue is full or closed, and counts as a request
    /// that did: for a caller who has costly work to do before a request. Takes no slot, so that another caller may be
    /// faster.
    ///
    /// # Errors
    /// [`Error::Overloaded`], [`Error::ShuttingDown`], [`Error::UnknownModel`].
    pub fn try_vacancy(&self, lane: Lane) -> Result<()> {
        let refusal = match self.model.entry.vacancy(lane) {
            Ok(()) => return Ok(()),
            Err(TryAcquireError::Closed) => self.closed(),
            Err(TryAcquireError::NoPermits) => self.overloaded(lane),
        };
        Tally::begin(self).end(Err(refusal))
    }

    /// Fails as [`Self::call`] would before it waits, if the request is invalid or the model takes none any more, and
    /// counts as a request that did: for a caller who has costly work to do before a request.
    ///
    /// # Errors
    /// [`Error::InvalidInput`], [`Error::ShuttingDown`], [`Error::UnknownModel`].
    pub fn check(&self, request: &C::Request) -> Result<()> {
        let refusal = match (C::check(request), self.model.entry.vacancy(Lane::Batch)) {
            (Err(reason), _) => Error::InvalidInput { reason },
            (Ok(()), Err(TryAcquireError::Closed)) => self.closed(),
            _ => return Ok(()),
        };
        Tally::begin(self).end(Err(refusal))
    }

    /// Sends a request and waits for its output; a streamed capability's chunks are not sent. Waits for a slot, until
    /// the deadline, while the model's queue is full. Dropping the future cancels the request.
    ///
    /// # Errors
    /// Every [`Error`] that says how a request can end.
    pub async fn call(&self, request: C::Request, options: CallOptions) -> Result<C::Output> {
        self.output(request, options, WhenFull::WaitUntilDeadline).await
    }

    /// As [`Self::call`], but fails at once with [`Error::Overloaded`] if the queue is full.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub async fn try_call(&self, request: C::Request, options: CallOptions) -> Result<C::Output> {
        self.output(request, options, WhenFull::FailAtOnce).await
    }

    /// Sends a request and returns its stream of chunks, which ends with the output. Waits for a slot as
    /// [`Self::call`] does. Dropping the stream cancels the request.
    ///
    /// # Errors
    /// What is known before the request is accepted; the rest comes out of the stream.
    pub async fn stream(&self, request: C::Request, options: CallOptions) -> Result<ReplyStream<C>> {
        self.chunks(request, options, WhenFull::WaitUntilDeadline).await
    }

    /// As [`Self::stream`], but fails at once with [`Error::Overloaded`] if the queue is full.
    ///
    /// # Errors
    /// As [`Self::stream`].
    pub async fn try_stream(&self, request: C::Request, options: CallOptions) -> Result<ReplyStream<C>> {
        self.chunks(request, options, WhenFull::FailAtOnce).await
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

    async fn output(
        &self,
        request: C::Request,
        options: CallOptions,
        when_full: WhenFull,
    ) -> Result<C::Output> {
        let tally = Tally::begin(self);
        let work = async { self.accept(self, request, options, when_full, None).await?.output().await };
        tally.end(work.instrument(self.span(options)).await)
    }

    async fn chunks(
        &self,
        request: C::Request,
        options: CallOptions,
        when_full: WhenFull,
    ) -> Result<ReplyStream<C>> {
        let span = self.span(options);
        let tally = Tally::begin(self.clone());
        let (sender, chunks) = mpsc::channel(self.model.policy.config.stream_buffer);
        let accepted = self.accept(self.clone(), request, options, when_full, Some(sender));
        match accepted.instrument(span.clone()).await {
            Ok(reply) => Ok(ReplyStream::new(reply, chunks, tally, span)),
            Err(error) => tally.end(Err(error)),
        }
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
        when_full: WhenFull,
        chunks: Option<mpsc::Sender<C::Chunk>>,
    ) -> Result<Reply<C, H>> {
        C::check(&request).map_err(|reason| Error::InvalidInput { reason })?;
        let timeout = options.timeout.unwrap_or(self.model.policy.config.request_timeout);
        let deadline = self.shared.clock.now() + timeout;
        let slot = self.slot(options.lane, when_full, deadline, timeout).await?;
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

    async fn slot(&self, lane: Lane, when_full: WhenFull, deadline: Time, timeout: Duration) -> Result<Slot> {
        let entry = &self.model.entry;
        match Slot::try_take(entry, lane) {
            Ok(slot) => return Ok(slot),
            Err(TryAcquireError::Closed) => return Err(self.closed()),
            Err(TryAcquireError::NoPermits) => {}
        }
        if when_full == WhenFull::FailAtOnce {
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
        Error::Overloaded { model: self.id().clone(), lane: lane.name(), capacity }
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
