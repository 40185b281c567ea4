//! The batch that a model runs: each item is a request's input, its cancel mark, and the means to answer it.
//! A batch answers callers directly; requests left unanswered at its end are the scheduler's to decide on.
//! Batch formation is left to `scheduler/batching.rs`.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::capability::Capability;
use crate::error::{Error, Failure, FailureKind};
use crate::id::RequestId;
#[cfg(unix)]
use crate::job::Stage;
use crate::job::{EmitError, Job};
use crate::progress::Gauge;
use crate::reaper::reap;

/// Time between two looks at a reader's full buffer.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// The channel by which requests join a running batch, and by which answered ones are reported meanwhile.
pub(crate) trait Joining<C: Capability> {
    /// Requests that were sent to this worker while it ran.
    fn joined(&mut self) -> Vec<Item<C>>;
    /// These are answered, or their callers have gone; their seats are free.
    fn left(&mut self, gone: Vec<Item<C>>);
}

/// The requests of one run.
///
/// ```
/// use model_actors::{Batch, Capability, Failure};
///
/// /// Runs each request in turn, and stops early where nobody waits any more.
/// fn run<C: Capability>(batch: &Batch<C>, answer: impl Fn(&C::Request) -> C::Output) -> Result<(), Failure> {
///     for item in batch.items().iter().filter(|item| !item.should_stop()) {
///         item.finish(answer(item.request()));
///         batch.tick();
///     }
///     Ok(())
/// }
/// ```
pub struct Batch<'a, C: Capability> {
    items: Vec<Item<C>>,
    gauge: &'a Gauge,
    joining: Option<&'a mut dyn Joining<C>>,
}

impl<'a, C: Capability> Batch<'a, C> {
    pub(crate) fn new(
        items: Vec<Item<C>>,
        gauge: &'a Gauge,
        joining: Option<&'a mut dyn Joining<C>>,
    ) -> Self {
        Self { items, gauge, joining }
    }

    /// The requests.
    pub fn items(&self) -> &[Item<C>] {
        &self.items
    }

    /// Reports progress: one batch, token or diffusion step. A run without ticks counts as stuck.
    pub fn tick(&self) {
        self.gauge.step();
    }

    /// Waits a moment for readers of streams, where every item has a full buffer, and reports progress. Look at the
    /// items' marks after it.
    pub fn pause(&self) {
        self.gauge.tick();
        // The readers' channels cannot wake a thread with a time limit.
        std::thread::park_timeout(LOOK_AGAIN);
    }

    /// Admits the requests that have arrived to a continuous batch, between two steps, drops the items that are answered,
    /// and returns how many of the items at the end are new. A caller may go away at any
    /// moment, so what a model keeps of each item it keeps by [`Item::id`], not by place. Always 0 for a
    /// model whose specification does not ask for continuous batching.
    pub fn join(&mut self) -> usize {
        self.gauge.tick();
        self.admit(Item::is_answered)
    }

    /// Does so without a sign of progress, and drops the items that `has_left` says.
    pub(crate) fn admit(&mut self, has_left: impl Fn(&Item<C>) -> bool) -> usize {
        let Some(joining) = self.joining.as_deref_mut() else { return 0 };
        let (gone, staying): (Vec<_>, Vec<_>) = self.items.drain(..).partition(has_left);
        self.items = staying;
        if !gone.is_empty() {
            joining.left(gone);
        }
        let joined = joining.joined();
        let count = joined.len();
        self.items.extend(joined);
        count
    }

    /// True if requests may join.
    #[cfg(unix)]
    pub(crate) fn is_joined(&self) -> bool {
        self.joining.is_some()
    }

    pub(crate) fn into_items(self) -> Vec<Item<C>> {
        self.items
    }
}

/// A request that another process has sent to this one to be run.
pub(crate) trait Sent<C: Capability>: Send + Sync {
    fn id(&self) -> RequestId;
    fn request(&self) -> &C::Request;
    /// True once it was answered or cancelled.
    fn is_over(&self) -> bool;
    fn begin(&self);
    fn answer(&self, result: Result<C::Output, Failure>);
    fn emit(&self, chunk: C::Chunk) -> Result<(), EmitError<C::Chunk>>;
}

/// A job of this process and the attempt that may answer it.
pub(crate) struct Assigned<C: Capability> {
    pub(crate) job: Arc<Job<C>>,
    pub(crate) attempt: u32,
}

/// The side to which an item answers.
enum Owed<C: Capability> {
    Here(Assigned<C>),
    #[cfg_attr(not(unix), allow(dead_code, reason = "only there do models run in processes of their own"))]
    Elsewhere(Arc<dyn Sent<C>>),
}

/// One request of a batch.
///
/// ```
/// use model_actors::{Completion, FinishReason, Item, Stopped, TextChunk, TextToText, Usage};
///
/// fn stream(item: &Item<TextToText>, words: &[&str]) -> Result<(), Stopped> {
///     for word in words {
///         item.emit(TextChunk::from(*word))?;
///     }
///     item.finish(Completion::new(words.concat(), FinishReason::Stop, Usage::new(1, words.len())));
///     Ok(())
/// }
/// ```
pub struct Item<C: Capability> {
    owed: Owed<C>,
    gauge: Arc<Gauge>,
    stall: Duration,
    /// Since when the reader's buffer has been full, as far as the model tried. Only the worker's thread looks.
    full_since: Mutex<Option<Instant>>,
}

/// The signal that a request was cancelled: its caller has gone, its time is up, or its reader stalled.
///
/// ```
/// use model_actors::{Failure, FailureKind, Stopped};
/// assert_eq!(Failure::from(Stopped).kind, FailureKind::Stopped);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("nobody waits for the rest of this answer")]
pub struct Stopped;

/// A run that ends with it ends for the others of its batch too; they are run again.
impl From<Stopped> for Failure {
    fn from(_: Stopped) -> Self {
        Failure::stopped()
    }
}

impl<C: Capability> Item<C> {
    pub(crate) fn new(job: Arc<Job<C>>, attempt: u32, gauge: Arc<Gauge>, stall: Duration) -> Self {
        let owed = Owed::Here(Assigned { job, attempt });
        Self { owed, gauge, stall, full_since: Mutex::default() }
    }

    /// An item of another process, which looks after readers that stall.
    #[cfg(unix)]
    pub(crate) fn sent(sent: Arc<dyn Sent<C>>, gauge: Arc<Gauge>) -> Self {
        Self { owed: Owed::Elsewhere(sent), gauge, stall: Duration::MAX, full_since: Mutex::default() }
    }

    /// The job that it answers, which all items of a worker's thread have.
    pub(crate) fn assigned(&self) -> Option<&Assigned<C>> {
        match &self.owed {
            Owed::Here(assigned) => Some(assigned),
            Owed::Elsewhere(_) => None,
        }
    }

    pub(crate) fn is_answered(&self) -> bool {
        match &self.owed {
            Owed::Here(Assigned { job, .. }) => job.is_answered(),
            Owed::Elsewhere(sent) => sent.is_over(),
        }
    }

    /// The request.
    pub fn request(&self) -> &C::Request {
        match &self.owed {
            Owed::Here(Assigned { job, .. }) => &job.parts.request,
            Owed::Elsewhere(sent) => sent.request(),
        }
    }

    /// The request's number, as in logs and events.
    pub fn id(&self) -> RequestId {
        match &self.owed {
            Owed::Here(Assigned { job, .. }) => job.id,
            Owed::Elsewhere(sent) => sent.id(),
        }
    }

    /// True once nobody waits for this answer. Look at it between steps.
    pub fn should_stop(&self) -> bool {
        match &self.owed {
            Owed::Here(Assigned { job, attempt }) => job.is_over_for(*attempt),
            Owed::Elsewhere(sent) => sent.is_over(),
        }
    }

    /// Reports progress as [`Batch::tick`] does, from a thread that has no hold of the batch.
    pub fn tick(&self) {
        self.gauge.step();
    }

    /// Marks the request as begun, which meets the deadline that is set for its first output: queue and load are over, and from now on the stall limit bounds the run, and the total timeout where one is set. For
    /// models whose first output takes the longer the larger the request is, as reading a prompt does. Without it the
    /// first chunk meets the deadline.
    ///
    /// ```
    /// use model_actors::{Item, TextToText};
    ///
    /// fn read(item: &Item<TextToText>, prompt: &[u32], mut step: impl FnMut(&[u32])) {
    ///     item.begin();
    ///     for piece in prompt.chunks(128) {
    ///         step(piece);
    ///         item.tick();
    ///     }
    /// }
    /// ```
    pub fn begin(&self) {
        match &self.owed {
            Owed::Here(Assigned { job, attempt }) => job.begin_from(*attempt),
            Owed::Elsewhere(sent) => sent.begin(),
        }
    }

    /// Notes that the model has the request from here on, or (`Ahead`) that it does not have it yet, where the model is
    /// elsewhere. In a process of its own there is no worker that could be lost.
    #[cfg(unix)]
    pub(crate) fn reach(&self, stage: Stage) {
        if let Owed::Here(Assigned { job, attempt }) = &self.owed {
            job.reach_from(*attempt, stage);
        }
    }

    /// Completes the request with its output.
    pub fn finish(&self, output: C::Output) {
        match &self.owed {
            Owed::Here(Assigned { job, attempt }) => {
                job.answer_from(*attempt, Ok(output));
            }
            Owed::Elsewhere(sent) => sent.answer(Ok(output)),
        }
    }

    /// Ends this request alone; the rest of the batch goes on.
    pub fn fail(&self, failure: Failure) {
        match &self.owed {
            Owed::Here(Assigned { job, attempt }) => {
                // A model that sees that nobody waits, where the time is up, may be sooner than the pool.
                let error = match failure.kind {
                    FailureKind::Stopped if job.is_abandoned() => job.timeout_error(),
                    _ => failure.of_one_that_is_waited_for().into_error(C::NAME, job.model()),
                };
                job.answer_from(*attempt, Err(error));
            }
            Owed::Elsewhere(sent) => sent.answer(Err(failure)),
        }
    }

    /// Sends a part of a streamed answer. Waits while the reader's buffer is full, ticking progress; a reader
    /// that stalls past the stall limit loses its stream with [`Error::SlowReader`]. The other items of the
    /// batch wait too; where they can go on meanwhile, use [`Self::try_emit`].
    ///
    /// # Errors
    /// [`Stopped`] if nobody wants it any more. The other items are not affected.
    pub fn emit(&self, mut chunk: C::Chunk) -> Result<(), Stopped> {
        loop {
            self.gauge.tick();
            if self.should_stop() {
                reap(chunk);
                return Err(Stopped);
            }
            chunk = match self.try_emit(chunk) {
                Ok(()) => return Ok(()),
                Err(EmitError::Stopped) => return Err(Stopped),
                Err(EmitError::Full(back)) => back,
            };
            // The reader's channel cannot wake a thread with a time limit.
            std::thread::park_timeout(LOOK_AGAIN);
        }
    }

    /// Sends a part of a streamed answer without waiting, and gives it back while the reader's buffer is full. Try again
    /// between steps; a reader that stalls past the stall limit from the first such try loses its stream with
    /// [`Error::SlowReader`].
    ///
    /// # Errors
    /// [`EmitError::Full`], and [`EmitError::Stopped`] if nobody wants it any more.
    pub fn try_emit(&self, chunk: C::Chunk) -> Result<(), EmitError<C::Chunk>> {
        let Assigned { job, attempt } = match &self.owed {
            Owed::Here(assigned) => assigned,
            Owed::Elsewhere(sent) => return sent.emit(chunk),
        };
        let sent = job.emit_from(*attempt, chunk);
        let mut full_since = self.full_since.lock().unwrap_or_else(PoisonError::into_inner);
        let Err(EmitError::Full(chunk)) = sent else {
            *full_since = None;
            return sent;
        };
        if full_since.get_or_insert_with(Instant::now).elapsed() < self.stall {
            return Err(EmitError::Full(chunk));
        }
        reap(chunk);
        let model = job.model().clone();
        let error = Error::SlowReader { model, capability: C::NAME.into(), stalled: self.stall };
        job.cut_off_from(*attempt, error);
        Err(EmitError::Stopped)
    }
}
