//! Jobs: accepted requests, each with its state and the answer that it owes. The answer holds the queue slot
//! and can be taken once; whoever takes it answers. The pool holds each of its jobs as [`Accepted`], which
//! tells the caller when the pool is gone. Deciding when a job runs is left to the scheduler.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use crate::capability::{BatchKey, Capability, Cost};
use crate::entry::{ModelEntry, Slot};
use crate::error::{Error, RequestPhase};
use crate::id::{Lane, ModelId, Priority, RequestId, Tenant, Time};
use crate::progress::Clock;
use crate::reaper::{Reaped, reap};

/// Places at the head of a queue of which each step is told.
pub(crate) const NEAR: usize = 64;

static NEXT_REQUEST: AtomicU64 = AtomicU64::new(1);

/// Parts of a job, before it has an identity.
pub(crate) struct JobParts<C: Capability> {
    pub(crate) entry: Arc<ModelEntry>,
    pub(crate) request: Reaped<C::Request>,
    pub(crate) lane: Lane,
    pub(crate) tenant: Option<Tenant>,
    pub(crate) priority: Priority,
    pub(crate) deadline: Time,
    pub(crate) timeout: Duration,
    /// Time from `began` for all of the output; `Duration::MAX` for no limit.
    pub(crate) total_timeout: Duration,
    /// The moment of the call, before it waited for a slot.
    pub(crate) began: Time,
    pub(crate) clock: Clock,
    /// It fails where it would wait for a slot, here or elsewhere.
    #[cfg(feature = "cluster")]
    pub(crate) impatient: bool,
    /// The span of the request, which those of its runs and of the load that it waits for follow from.
    pub(crate) span: tracing::Span,
}

/// Reply channels of a job, and its slot, which goes back when this is dropped.
pub(crate) struct Answer<C: Capability> {
    pub(crate) done: oneshot::Sender<Result<C::Output, Error>>,
    pub(crate) chunks: Option<mpsc::Sender<C::Chunk>>,
    pub(crate) slot: Slot,
}

/// An accepted request. Shared by the pool and the worker's thread that runs it.
pub(crate) struct Job<C: Capability> {
    pub(crate) id: RequestId,
    pub(crate) cost: Cost,
    pub(crate) key: BatchKey,
    pub(crate) parts: JobParts<C>,
    running: AtomicBool,
    cancelled: AtomicBool,
    /// True once the current attempt has met the deadline: it has made a first piece of output, or its model has said
    /// that it has begun.
    begun: AtomicBool,
    /// True once part of the answer is with the caller.
    sent: AtomicBool,
    /// Nanoseconds from the system's start to the last piece of output; 0 before the first.
    last_output: AtomicU64,
    /// Number of requests before it that subscribers were told last; `usize::MAX` before the first time.
    told_position: AtomicUsize,
    owed: Mutex<Owed<C>>,
}

/// The answer and the attempt that may give it. One lock guards both, so that a thread that was given up can
/// neither answer nor stream into the run of its successor.
struct Owed<C: Capability> {
    attempt: u32,
    stage: Stage,
    answer: Option<Answer<C>>,
    /// Slot of a request whose caller has gone: its work keeps a place until the pool lets go of it.
    held: Option<Slot>,
}

/// Position of a request in the run that it was given to, which says whether a death of the worker may be its doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// The model has not had it yet: no death is its doing.
    Ahead,
    /// The model has it: a death may be.
    Begun,
    /// The run is done with it, and cannot die of it any more.
    Finished,
}

impl<C: Capability> Job<C> {
    pub(crate) fn new(parts: JobParts<C>, answer: Answer<C>) -> Arc<Self> {
        Arc::new(Self {
            id: RequestId(NEXT_REQUEST.fetch_add(1, Ordering::Relaxed)),
            cost: C::cost(&parts.request),
            key: C::batch_key(&parts.request),
            parts,
            running: AtomicBool::new(false),
            cancelled: AtomicBool::new(false),
            begun: AtomicBool::new(false),
            sent: AtomicBool::new(false),
            last_output: AtomicU64::new(0),
            told_position: AtomicUsize::new(usize::MAX),
            owed: Mutex::new(Owed { attempt: 0, stage: Stage::Ahead, answer: Some(answer), held: None }),
        })
    }

    fn owed(&self) -> MutexGuard<'_, Owed<C>> {
        // A poisoned lock still guards a whole value: every change under it is a single assignment.
        self.owed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn model(&self) -> &ModelId {
        &self.parts.entry.id
    }

    /// Counts it as work of the pool of this node, which has it from now on.
    #[cfg(feature = "cluster")]
    pub(crate) fn begin_work(&self) {
        let cost = self.cost;
        self.owed().answer.iter_mut().for_each(|answer| answer.slot.begin_work(cost));
    }

    /// Begins a run and returns its attempt number; earlier attempts can no longer answer.
    pub(crate) fn begin_attempt(&self) -> u32 {
        let mut owed = self.owed();
        self.begun.store(false, Ordering::Release);
        self.running.store(true, Ordering::Release);
        owed.stage = Stage::Ahead;
        owed.attempt += 1;
        owed.attempt
    }

    /// Notes on behalf of a run that the model has the request from here on, or (`Ahead`) that it does not have it yet.
    pub(crate) fn reach_from(&self, attempt: u32, stage: Stage) {
        let mut owed = self.owed();
        if owed.attempt == attempt && owed.stage != Stage::Finished {
            owed.stage = stage;
        }
    }

    /// Its position in its run, or in the last one.
    pub(crate) fn stage(&self) -> Stage {
        self.owed().stage
    }

    /// Ends a run without an answer: a thread that runs it still can no longer answer.
    pub(crate) fn end_attempt(&self) {
        let mut owed = self.owed();
        self.running.store(false, Ordering::Release);
        owed.attempt += 1;
    }

    /// Answers on behalf of the pool. False if it was answered already.
    pub(crate) fn answer(&self, result: Result<C::Output, Error>) -> bool {
        let answer = self.owed().answer.take();
        send(answer, result)
    }

    /// Answers that the time ran out, unless the deadline has been met.
    pub(crate) fn expire(&self) {
        let answer = {
            let mut owed = self.owed();
            if self.has_met_deadline() { None } else { owed.answer.take() }
        };
        send(answer, Err(self.timeout_error()));
    }

    /// Answers that the time for all of it ran out, whatever part of the answer is out.
    pub(crate) fn end(&self) {
        self.answer(Err(self.timeout_error()));
    }

    /// The moment at which all of the output has to be out.
    pub(crate) fn ends_at(&self) -> Time {
        self.parts.began + self.parts.total_timeout
    }

    /// Answers on behalf of a run that is done with the request, unless a later run has begun.
    pub(crate) fn answer_from(&self, attempt: u32, result: Result<C::Output, Error>) -> bool {
        let answer = {
            let mut owed = self.owed();
            let is_current = owed.attempt == attempt;
            if is_current {
                owed.stage = Stage::Finished;
                // A failure may have taken no time, which would be told as speed.
                #[cfg(feature = "cluster")]
                if result.is_ok() {
                    owed.answer.iter_mut().for_each(|answer| answer.slot.serve());
                }
                owed.answer.take()
            } else {
                None
            }
        };
        if answer.is_some() && result.is_ok() && self.last_output.load(Ordering::Relaxed) == 0 {
            self.note_output();
        }
        send(answer, result)
    }

    /// Answers in place of a run that goes on with the request until it looks at its mark, unless a later one has begun.
    pub(crate) fn cut_off_from(&self, attempt: u32, error: Error) {
        let answer = {
            let mut owed = self.owed();
            if owed.attempt == attempt { owed.answer.take() } else { None }
        };
        send(answer, Err(error));
    }

    /// Meets the deadline on behalf of a run, before there is output. One that is over stays so.
    pub(crate) fn begin_from(&self, attempt: u32) {
        let owed = self.owed();
        if owed.attempt == attempt && owed.answer.is_some() && !self.is_abandoned() {
            self.begun.store(true, Ordering::Release);
        }
    }

    /// Sends a part of the answer on behalf of a run. Gives the chunk back if the reader's buffer is full.
    pub(crate) fn emit_from(&self, attempt: u32, chunk: C::Chunk) -> Result<(), EmitError<C::Chunk>> {
        let chunks = {
            let owed = self.owed();
            let Some(answer) = owed.answer.as_ref().filter(|_| owed.attempt == attempt) else {
                reap(chunk);
                return Err(EmitError::Stopped);
            };
            self.begun.store(true, Ordering::Release);
            if answer.chunks.is_some() {
                self.sent.store(true, Ordering::Release);
            }
            answer.chunks.clone()
        };
        // Without a stream the caller wants the output alone.
        let Some(chunks) = chunks else {
            reap(chunk);
            self.note_output();
            return Ok(());
        };
        // The reader wakes without the lock, as it may go at once. From the mark on there is no later run to mix with.
        chunks.try_send(chunk).map_err(|error| match error {
            mpsc::error::TrySendError::Full(chunk) => EmitError::Full(chunk),
            mpsc::error::TrySendError::Closed(chunk) => {
                reap(chunk);
                EmitError::Stopped
            }
        })?;
        self.note_output();
        Ok(())
    }

    /// The reader's buffer, for whoever waits for room in it before [`Self::emit_from`].
    #[cfg(feature = "cluster")]
    pub(crate) fn chunks(&self) -> Option<mpsc::Sender<C::Chunk>> {
        self.owed().answer.as_ref().and_then(|answer| answer.chunks.clone())
    }

    /// Measures the time to the first piece of output, and between two.
    fn note_output(&self) {
        let now = self.parts.clock.now();
        let nanos = u64::try_from(now.since(Time::ZERO).as_nanos()).unwrap_or(u64::MAX).max(1);
        let metrics = self.parts.entry.metrics();
        match self.last_output.swap(nanos, Ordering::Relaxed) {
            0 => metrics.first_output.record(now.since(self.parts.began).as_secs_f64()),
            last => {
                metrics.between_outputs.record(Duration::from_nanos(nanos.saturating_sub(last)).as_secs_f64())
            }
        }
    }

    /// True if subscribers should be told that so many requests are before it now: each step of the last
    /// [`NEAR`], and before that whenever the number has halved or doubled, so that a long queue is no flood.
    pub(crate) fn position_is_news(&self, position: usize) -> bool {
        let told = self.told_position.load(Ordering::Relaxed);
        let is_news = position != told
            && (position <= NEAR || position <= told / 2 || position >= told.saturating_mul(2));
        if is_news {
            self.told_position.store(position, Ordering::Relaxed);
        }
        is_news
    }

    /// True if this run can no longer answer: the job was answered, cancelled or given up, or nobody waits
    /// any more.
    pub(crate) fn is_over_for(&self, attempt: u32) -> bool {
        let owed = self.owed();
        owed.attempt != attempt || owed.answer.is_none() || self.is_abandoned()
    }

    pub(crate) fn is_answered(&self) -> bool {
        self.owed().answer.is_none()
    }

    /// Cancels the job because its caller has gone. False if it was answered before.
    pub(crate) fn cancel(&self) -> bool {
        self.cancelled.store(true, Ordering::Release);
        let mut owed = self.owed();
        let Some(Answer { done, chunks, slot }) = owed.answer.take() else { return false };
        owed.held = Some(slot);
        drop(owed);
        drop((done, chunks));
        true
    }

    /// True once the run has begun in the sense of [`Self::begin_from`], or the first output is made: the deadline is
    /// for that alone, also where the caller sees only the whole output.
    pub(crate) fn has_met_deadline(&self) -> bool {
        self.has_sent() || (self.running.load(Ordering::Acquire) && self.begun.load(Ordering::Acquire))
    }

    fn has_ended(&self) -> bool {
        self.parts.clock.now() >= self.ends_at()
    }

    fn is_late(&self) -> bool {
        self.parts.clock.now() >= self.parts.deadline
    }

    /// True if part of the answer is with the caller.
    pub(crate) fn has_sent(&self) -> bool {
        self.sent.load(Ordering::Acquire)
    }

    /// True if nothing was sent out and there is time left: it was not only its first output that kept it
    /// alive.
    pub(crate) fn may_run_again(&self) -> bool {
        let lives_by_its_output = self.begun.load(Ordering::Acquire) && self.is_late();
        !self.has_sent() && !lives_by_its_output
    }

    /// True if nobody waits any more: it was cancelled, or is past its deadline without output, or past its end.
    pub(crate) fn is_abandoned(&self) -> bool {
        let is_late = !self.has_met_deadline() && self.is_late();
        self.cancelled.load(Ordering::Acquire) || is_late || self.has_ended()
    }

    /// Position of the request, for the error of a caller that ran out of time.
    pub(crate) fn phase(&self) -> RequestPhase {
        if self.running.load(Ordering::Relaxed) {
            return RequestPhase::Running;
        }
        match self.parts.entry.load.percent() {
            Some(percent) => RequestPhase::Loading { percent },
            None => RequestPhase::Queued,
        }
    }

    pub(crate) fn timeout_error(&self) -> Error {
        Error::Timeout {
            capability: C::NAME.into(),
            model: self.model().clone(),
            phase: self.phase(),
            after: if self.has_ended() { self.parts.total_timeout } else { self.parts.timeout },
        }
    }
}

/// A pool's hold on a job. A thread that runs the job holds it too, so dropping the job says nothing;
/// dropping this tells the caller that the pool is gone.
pub(crate) struct Accepted<C: Capability>(Arc<Job<C>>);

impl<C: Capability> Accepted<C> {
    pub(crate) fn new(job: Arc<Job<C>>) -> Self {
        Self(job)
    }

    pub(crate) fn job(&self) -> &Arc<Job<C>> {
        &self.0
    }
}

impl<C: Capability> Drop for Accepted<C> {
    fn drop(&mut self) {
        let held = self.0.owed().held.take();
        drop(held);
        if self.0.is_answered() {
            return;
        }
        self.0.answer(Err(Error::RecvError { capability: C::NAME.into(), model: self.0.model().clone() }));
    }
}

/// Reason for which a chunk was not sent.
///
/// ```
/// use model_actors::EmitError;
/// assert_eq!(EmitError::Full("again, later").to_string(), "the reader's buffer is full");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EmitError<T> {
    /// The reader's buffer is full. Gives the chunk back.
    #[error("the reader's buffer is full")]
    Full(T),
    /// Nobody waits for more of this answer.
    #[error("nobody waits for the rest of this answer")]
    Stopped,
}

fn send<C: Capability>(answer: Option<Answer<C>>, result: Result<C::Output, Error>) -> bool {
    #[cfg_attr(not(feature = "cluster"), allow(unused_mut, reason = "work is measured for a cluster alone"))]
    let Some(mut answer) = answer else {
        result.into_iter().for_each(reap);
        return false;
    };
    // Whoever answers: runs that failed may have been repeated before. A worker's death is its breaker's concern.
    #[cfg(feature = "cluster")]
    if matches!(result, Err(Error::ModelError { .. })) {
        answer.slot.fail();
    }
    // The slot goes back before the caller wakes, so that it finds the slot free.
    drop(answer.slot);
    // A caller that has gone has dropped its receiver; it wants no answer.
    if let Err(unwanted) = answer.done.send(result) {
        reap(unwanted);
    }
    true
}
