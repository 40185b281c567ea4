//! The users' side: a [`Client`] for each pool and a [`ModelHandle`] for each model, both cheap to clone. A
//! request is checked here, in the caller's task, takes a slot of its model's bounded queue, and is handed to
//! the pool; here too it is timed, counted and, if its caller goes away, cancelled. Choosing the worker that
//! runs it is left to the pool.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tracing::Instrument;
use tracing::field::Empty;

use crate::alarm::{Deadlines, Overdue};
use crate::capability::Capability;
use crate::catalogue::{Catalogue, Directory, ModelSpec, Registered};
use crate::config::check_name;
use crate::entry::{ModelEntry, Refusal, Slot};
use crate::error::{Error, RequestPhase, Result};
use crate::id::{Lane, ModelId, Time};
use crate::job::{Accepted, Answer, Job, JobParts};
use crate::model::ModelFacts;
use crate::pool::PoolMessage;
use crate::progress::Clock;
use crate::reaper::Reaped;
use crate::roster::Roster;
use crate::telemetry::span;
use crate::wakers::for_a_caller;

mod options;
mod gate;
mod calls;
mod reply;

pub(crate) use gate::PoolGate;
pub use options::{CallOptions, WhenFull};
pub use reply::ReplyStream;
use reply::{Reply, Tally};

/// Shared by all clients of one pool and the pool's own starts.
pub(crate) struct PoolShared<C: Capability> {
    pub(crate) catalogue: Arc<Catalogue<C>>,
    pub(crate) directory: Arc<Directory>,
    pub(crate) gate: PoolGate<C>,
    pub(crate) roster: Arc<Roster<C>>,
    pub(crate) clock: Clock,
    pub(crate) deadlines: Deadlines,
    /// The way to the pools of other nodes, if this one is in a cluster.
    #[cfg(feature = "cluster")]
    pub(crate) elsewhere: std::sync::OnceLock<Arc<dyn crate::cluster::Elsewhere<C>>>,
}

/// Client of one pool: registers, replaces and removes models, and gives handles to them. Cheap to clone.
///
/// ```
/// # #[tokio::main]
/// # async fn main() -> model_actors::Result<()> {
/// use model_actors::testing::{Act, Scripted, ScriptedLoader};
/// use model_actors::{CallOptions, ModelSpec, PoolConfig, System, SystemConfig};
/// let system = System::builder(SystemConfig::default()).pool::<Scripted>(PoolConfig::default()).start().await?;
/// let client = system.client::<Scripted>()?;
/// client.register(ModelSpec::new("acme/model", ScriptedLoader::default()))?;
/// let answer = client.handle("acme/model")?.call(Act::Reply(7).into(), CallOptions::default()).await?;
/// assert_eq!(answer, 7);
/// # Ok(())
/// # }
/// ```
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
    /// [`Error::AlreadyRegistered`]; [`Error::InvalidConfig`] for its name (see [`ModelId`]), for a device
    /// without a budget, or for settings of its own.
    pub fn register(&self, spec: ModelSpec<C>) -> Result<ModelHandle<C>> {
        let model = self.shared.catalogue.register(spec)?;
        Ok(ModelHandle { shared: self.shared.clone(), model })
    }

    /// Registers a model in place of the one that has its name, or anew if none has. From now on all requests
    /// are for the new one, those of existing handles included. The requests that the old one has accepted
    /// end on its own workers; when the last has ended, the workers go and their memory is free again. Until
    /// then both are in memory.
    ///
    /// ```
    /// use model_actors::testing::{Scripted, ScriptedLoader};
    /// use model_actors::{Client, ModelSpec, Result};
    ///
    /// fn switch(client: &Client<Scripted>, version: ScriptedLoader) -> Result<()> {
    ///     client.replace(ModelSpec::new("acme/model", version))?;
    ///     Ok(())
    /// }
    /// ```
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] as for [`Self::register`]; the model that was registered then stays.
    pub fn replace(&self, spec: ModelSpec<C>) -> Result<ModelHandle<C>> {
        let model = self.shared.catalogue.replace(spec)?;
        self.shared.tell_removals();
        Ok(ModelHandle { shared: self.shared.clone(), model })
    }

    /// Removes a model: its handles refuse new requests, those that it has accepted finish, and then its
    /// workers go.
    ///
    /// # Errors
    /// [`Error::UnknownModel`], [`Error::OtherCapability`].
    pub fn remove(&self, model: &ModelId) -> Result<()> {
        if !self.shared.catalogue.remove(model) {
            return Err(self.shared.not_found(model));
        }
        self.shared.tell_removals();
        Ok(())
    }

    /// Handle to a registered model.
    ///
    /// # Errors
    /// [`Error::UnknownModel`], [`Error::OtherCapability`].
    pub fn handle(&self, id: impl Into<ModelId>) -> Result<ModelHandle<C>> {
        let id = id.into();
        match self.shared.catalogue.get(&id) {
            Some(model) => Ok(ModelHandle { shared: self.shared.clone(), model }),
            None => Err(self.shared.not_found(&id)),
        }
    }

    /// Handle to a model wherever it is: one that is registered here, or else one that a connected node of the cluster serves.
    /// The handle, its errors, streams, deadlines and limits are the same. A model that is registered here and has a
    /// [`ModelSpec::digest`] also runs on other nodes that have it, whenever they serve a request sooner.
    ///
    /// # Errors
    /// As [`Self::handle`], and [`Error::DifferentModels`].
    pub fn model(&self, id: impl Into<ModelId>) -> Result<ModelHandle<C>> {
        let id = id.into();
        #[cfg(feature = "cluster")]
        if self.shared.catalogue.get(&id).is_none()
            && let Some(elsewhere) = self.shared.elsewhere.get()
            && let Some(model) = elsewhere.find(&id)?
        {
            return Ok(ModelHandle { shared: self.shared.clone(), model });
        }
        self.handle(id)
    }

    /// Names of the registered models, in alphabetical order.
    pub fn models(&self) -> Vec<ModelId> {
        self.shared.catalogue.ids()
    }

    /// Numbers of free and of all slots of the pool's queues. Equal when no request is under way.
    pub fn slots(&self) -> (usize, usize) {
        self.shared.catalogue.slots()
    }
}

impl<C: Capability> PoolShared<C> {
    /// Tells the pool that models were removed, once until it has looked.
    fn tell_removals(&self) {
        // A pool that is down knows no model; one that came up meanwhile may, and is told by the second try.
        for _ in 0..2 {
            if !self.catalogue.note_removal() || self.gate.notify(PoolMessage::Removals) {
                return;
            }
            self.catalogue.take_removals();
        }
    }

    /// Hands an accepted request to the pool, or to whoever knows whether another node serves it sooner.
    fn submit(&self, model: Arc<Registered<C>>, accepted: Accepted<C>) -> Result<()> {
        #[cfg(feature = "cluster")]
        if let Some(elsewhere) = self.elsewhere.get().filter(|elsewhere| elsewhere.concerns(&model)) {
            return elsewhere.submit(model, accepted);
        }
        self.gate.submit(model, accepted)
    }

    /// Tells whoever sends requests to other nodes that the caller of one has gone.
    #[cfg(feature = "cluster")]
    fn cancel_elsewhere(&self, request: crate::id::RequestId) {
        if let Some(elsewhere) = self.elsewhere.get() {
            elsewhere.cancel(request);
        }
    }

    fn not_found(&self, model: &ModelId) -> Error {
        self.directory.not_found(C::NAME, model)
    }

    /// The error of a message that the pool could not be given. A pool that went with its runtime does not come
    /// back, and may be gone before the gate is told.
    fn unsent(&self, error: Error) -> Error {
        if self.deadlines.runtime_ended() { self.gate.closed() } else { error }
    }
}

/// Handle to one model: sends requests, loads, unloads and pins. It follows [`Client::replace`], and fails with [`Error::UnknownModel`] once the model is removed. Cheap to clone.
///
/// ```
/// use model_actors::{CallOptions, EmbedTexts, Embeddings, ModelHandle, Result, TextEmbedding};
///
/// async fn embed(model: &ModelHandle<TextEmbedding>, text: &str) -> Result<Embeddings> {
///     model.call(EmbedTexts::from(text), CallOptions::default()).await
/// }
/// ```
pub struct ModelHandle<C: Capability> {
    shared: Arc<PoolShared<C>>,
    model: Arc<Registered<C>>,
}

impl<C: Capability> Clone for ModelHandle<C> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone(), model: self.model.clone() }
    }
}

/// The model's name and capability alone.
impl<C: Capability> fmt::Debug for ModelHandle<C> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = formatter.debug_struct("ModelHandle");
        shown.field("model", self.id()).field("capability", &C::NAME).finish_non_exhaustive()
    }
}

impl<C: Capability> ModelHandle<C> {
    /// Name of the model.
    pub fn id(&self) -> &ModelId {
        self.model.id()
    }

    /// Time that a request has for queue, load and run up to its first output, or until its model has begun, unless its
    /// [`CallOptions`] set another.
    pub fn request_timeout(&self) -> Duration {
        self.latest().policy.config.request_timeout
    }

    /// Facts about the model, once it has been loaded for the first time; nothing for a loader that tells nothing. Those of one
    /// that other nodes alone serve are known once it has been preloaded from here.
    pub fn facts(&self) -> Option<ModelFacts> {
        self.latest().loader.facts()
    }

    /// Checks a request without sending it, for a caller who has costly work to do before (decoding images,
    /// say). Fails as [`Self::call`] would before it waits, and is then counted as a request that failed.
    /// Takes no slot, so the queue may be full by the time of the call.
    ///
    /// # Errors
    /// [`Error::InvalidInput`], [`Error::ShuttingDown`], [`Error::UnknownModel`]; with [`WhenFull::Fail`]
    /// also [`Error::Overloaded`].
    pub fn check(&self, request: &C::Request, options: &CallOptions) -> Result<()> {
        match self.refusal(request, options) {
            Some(error) => Err(Tally::begin(self, self.span(options.lane)).fail(error)),
            None => Ok(()),
        }
    }

    fn check_input(&self, request: &C::Request, options: &CallOptions) -> Result<()> {
        if let Some(tenant) = &options.tenant {
            check_name("tenant", tenant.as_str())?;
        }
        let checked = C::check(request).and_then(|()| self.latest().loader.check(request));
        checked.map_err(|cause| Error::InvalidInput { cause })
    }

    fn refusal(&self, request: &C::Request, options: &CallOptions) -> Option<Error> {
        if let Err(error) = self.check_input(request, options) {
            return Some(error);
        }
        loop {
            let model = match self.current() {
                Ok(model) => model,
                Err(error) => return Some(error),
            };
            return match model.entry.vacancy(options.lane, &options.tenant) {
                // Replaced or removed in between: the catalogue knows what holds now.
                Err(Refusal::Closed) if model.entry.is_removed() => continue,
                Err(Refusal::Full | Refusal::PartFull) if options.when_full == WhenFull::Wait => None,
                Err(refusal) => Some(self.refused(&model.entry, options, refusal)),
                Ok(()) => None,
            };
        }
    }

    /// Sends a request and waits for its output; a streamed capability's chunks are not sent. Dropping the
    /// future cancels the request. It may be awaited on any executor: what it needs of tokio is the runtime that
    /// the system was started on, which has to live on.
    ///
    /// # Errors
    /// Every [`Error`] that a request can end with.
    pub async fn call(&self, request: C::Request, options: CallOptions) -> Result<C::Output> {
        let span = self.span(options.lane);
        let tally = Tally::begin(self, span.clone());
        let work = async { self.accept(self, request, options, None, false).await?.output().await };
        tally.end(for_a_caller(work.instrument(span)).await)
    }

    /// Sends a request and returns the stream of its chunks, which ends with the output. Dropping the stream
    /// cancels the request. It needs no more of the executor than [`Self::call`].
    ///
    /// # Errors
    /// Those known before the request is accepted; later ones come out of the stream.
    pub async fn stream(&self, request: C::Request, options: CallOptions) -> Result<ReplyStream<C>> {
        let span = self.span(options.lane);
        let tally = Tally::begin(self.clone(), span.clone());
        let (sender, chunks) = mpsc::channel(self.latest().policy.config.stream_buffer);
        let accepted = self.accept(self.clone(), request, options, Some(sender), false);
        match for_a_caller(accepted.instrument(span.clone())).await {
            Ok(reply) => Ok(ReplyStream::new(reply, chunks, tally, span)),
            Err(error) => Err(tally.fail(error)),
        }
    }

    fn span(&self, lane: Lane) -> tracing::Span {
        tracing::info_span!(
            span::REQUEST,
            capability = C::NAME,
            model = %self.model.id(),
            %lane,
            request = Empty,
            queue_wait_seconds = Empty,
            input_tokens = Empty,
            cached_tokens = Empty,
            output_tokens = Empty,
            error = Empty,
        )
    }

    /// Sends a request of another node to the pool of this one. Without `streams` there are no chunks.
    #[cfg(feature = "cluster")]
    pub(crate) async fn host(
        &self,
        request: C::Request,
        options: CallOptions,
        streams: bool,
    ) -> Result<ReplyStream<C>> {
        let span = self.span(options.lane);
        let tally = Tally::begin(self.clone(), span.clone());
        let (sender, chunks) = mpsc::channel(self.latest().policy.config.stream_buffer);
        let sender = streams.then_some(sender);
        match self.accept(self.clone(), request, options, sender, true).await {
            Ok(reply) => Ok(ReplyStream::new(reply, chunks, tally, span)),
            Err(error) => Err(tally.fail(error)),
        }
    }

    /// True if the model is registered on this node. Calls on one that other nodes alone serve are for these: a preload is of one
    /// of them, an unload and a pin of all.
    pub fn is_here(&self) -> bool {
        self.shared.catalogue.has(&self.model)
    }

    /// Checks the request, takes a slot and hands it to the pool, `here` to that of this node alone. The reply keeps `handle`: this one for as
    /// long as the caller waits here, or one of its own.
    async fn accept<H: Borrow<Self>>(
        &self,
        handle: H,
        request: C::Request,
        options: CallOptions,
        chunks: Option<mpsc::Sender<C::Chunk>>,
        here: bool,
    ) -> Result<Reply<C, H>> {
        self.check_input(&request, &options)?;
        let total_timeout = options.total_timeout.or_else(|| self.latest().policy.config.total_timeout);
        let total_timeout = total_timeout.unwrap_or(Duration::MAX);
        // Less time for all of it leaves no more for its beginning.
        let timeout = options.timeout.unwrap_or_else(|| self.request_timeout()).min(total_timeout);
        let began = self.shared.clock.now();
        let deadline = began + timeout;
        let (model, slot) = self.slot(&options, deadline, timeout).await?;
        let parts = JobParts {
            entry: model.entry.clone(),
            request: Reaped::counted(request, self.shared.roster.drops.clone()),
            lane: options.lane,
            tenant: options.tenant,
            priority: options.priority,
            deadline,
            timeout,
            total_timeout,
            began,
            clock: self.shared.clock,
            #[cfg(feature = "cluster")]
            impatient: options.when_full == WhenFull::Fail,
            span: tracing::Span::current(),
        };
        let (done, answer) = oneshot::channel();
        let job = Job::new(parts, Answer { done, chunks, slot });
        let (id, cancels) = (job.id, Arc::downgrade(&job));
        tracing::Span::current().record("request", id.0);
        let accepted = Accepted::new(job);
        let sent = match here {
            true => self.shared.gate.submit(model, accepted),
            false => self.shared.submit(model, accepted),
        };
        sent.map_err(|error| self.shared.unsent(error))?;
        Ok(Reply::new(handle, (id, cancels), answer))
    }

    /// Takes a slot of the model, or of its replacement if it is replaced meanwhile.
    async fn slot(
        &self,
        options: &CallOptions,
        deadline: Time,
        timeout: Duration,
    ) -> Result<(Arc<Registered<C>>, Slot)> {
        loop {
            let model = self.current()?;
            match self.slot_of(&model, options, deadline, timeout).await {
                Ok(slot) => return Ok((model, slot)),
                Err(Error::ShuttingDown) if model.entry.is_removed() => {}
                Err(error) => return Err(error),
            }
        }
    }

    async fn slot_of(
        &self,
        model: &Registered<C>,
        options: &CallOptions,
        deadline: Time,
        timeout: Duration,
    ) -> Result<Slot> {
        let entry = &model.entry;
        match Slot::try_take(entry, options.lane, &options.tenant) {
            Ok(slot) => return Ok(slot),
            Err(Refusal::Full | Refusal::PartFull) if options.when_full == WhenFull::Wait => {}
            Err(refusal) => return Err(self.refused(entry, options, refusal)),
        }
        let clock = self.shared.clock;
        let began = clock.now();
        let rank = options.priority.rank(began, model.policy.config.aging);
        let taken = Slot::take(entry, options.lane, &options.tenant, rank);
        let slot = self.shared.deadlines.until(deadline, taken).await;
        entry.metrics().backpressure_wait.record(clock.now().since(began).as_secs_f64());
        match slot {
            Ok(Ok(slot)) => Ok(slot),
            Ok(Err(refusal)) => Err(self.refused(entry, options, refusal)),
            Err(Overdue::RuntimeEnded) => Err(self.shared.gate.closed()),
            Err(Overdue::Deadline) => Err(Error::Timeout {
                capability: C::NAME.into(),
                model: entry.id.clone(),
                phase: RequestPhase::WaitingForSlot,
                after: timeout,
            }),
        }
    }

    /// The error of a caller who gets no slot.
    fn refused(&self, entry: &ModelEntry, options: &CallOptions, refusal: Refusal) -> Error {
        let (capability, model, lane) = (entry.capability.into(), entry.id.clone(), options.lane);
        let retry_after = entry.retry_after(lane);
        let (tenant, capacity) = match (refusal, &options.tenant) {
            (Refusal::Closed, _) => return self.shared.gate.closed(),
            (Refusal::TooManyTenants, Some(tenant)) => {
                let (tenant, most) = (tenant.clone(), entry.most_tenants());
                return Error::TooManyTenants { model, capability, lane, tenant, most, retry_after };
            }
            (Refusal::PartFull, tenant) => (tenant.clone(), entry.part(lane)),
            (Refusal::Full | Refusal::TooManyTenants, _) => (None, entry.capacity(lane)),
        };
        Error::Overloaded { capability, model, lane, tenant, capacity, retry_after }
    }

    /// The model that requests are for now: this one or its replacement.
    fn current(&self) -> Result<Arc<Registered<C>>> {
        self.shared.catalogue.current(&self.model).ok_or_else(|| self.shared.not_found(self.id()))
    }

    /// As [`Self::current`], or the model as it was if it has been removed.
    fn latest(&self) -> Arc<Registered<C>> {
        self.shared.catalogue.current(&self.model).unwrap_or_else(|| self.model.clone())
    }
}
