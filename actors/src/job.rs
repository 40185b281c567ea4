//! One accepted request on its way: what is asked, where it stands, and the answer that it owes. The answer holds
//! the queue slot and can be taken once; whoever takes it answers. Dropping a job unanswered tells its caller so.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

use crate::capability::{BatchKey, Capability, Cost, Lane, Priority};
use crate::error::{Error, RequestPhase};
use crate::id::{ModelId, RequestId, Time};
use crate::progress::{Clock, LoadProgress};

static NEXT_REQUEST: AtomicU64 = AtomicU64::new(1);

/// What a job is made of, before it has an identity.
pub(crate) struct JobParts<C: Capability> {
    pub(crate) model: ModelId,
    pub(crate) request: C::Request,
    pub(crate) lane: Lane,
    pub(crate) priority: Priority,
    pub(crate) deadline: Time,
    pub(crate) timeout: Duration,
    pub(crate) clock: Clock,
    pub(crate) load: Arc<LoadProgress>,
}

/// What a job owes its caller. The slot goes back when this is dropped.
pub(crate) struct Answer<C: Capability> {
    pub(crate) done: oneshot::Sender<Result<C::Output, Error>>,
    pub(crate) chunks: Option<mpsc::Sender<C::Chunk>>,
    pub(crate) slot: OwnedSemaphorePermit,
}

/// An accepted request. Shared by the pool, the worker's thread that runs it, and the caller who waits for it.
pub(crate) struct Job<C: Capability> {
    pub(crate) id: RequestId,
    pub(crate) cost: Cost,
    pub(crate) key: BatchKey,
    pub(crate) parts: JobParts<C>,
    running: AtomicU8,
    cancelled: AtomicBool,
    emitted: AtomicBool,
    /// Which run may answer: a thread that was given up must not answer for its successor.
    attempt: AtomicU32,
    answer: Mutex<Option<Answer<C>>>,
}

impl<C: Capability> Job<C> {
    pub(crate) fn new(parts: JobParts<C>, answer: Answer<C>) -> Arc<Self> {
        Arc::new(Self {
            id: RequestId(NEXT_REQUEST.fetch_add(1, Ordering::Relaxed)),
            cost: C::cost(&parts.request),
            key: C::batch_key(&parts.request),
            parts,
            running: AtomicU8::new(0),
            cancelled: AtomicBool::new(false),
            emitted: AtomicBool::new(false),
            attempt: AtomicU32::new(0),
            answer: Mutex::new(Some(answer)),
        })
    }

    /// Begins a run and returns its attempt number; earlier attempts can no longer answer.
    pub(crate) fn begin_attempt(&self) -> u32 {
        self.running.store(1, Ordering::Relaxed);
        self.attempt.fetch_add(1, Ordering::AcqRel) + 1
    }

    /// The run is over without an answer: the job is back in the queue, and its late thread may not answer.
    pub(crate) fn end_attempt(&self) {
        self.running.store(0, Ordering::Relaxed);
        self.attempt.fetch_add(1, Ordering::AcqRel);
    }

    pub(crate) fn is_current(&self, attempt: u32) -> bool {
        self.attempt.load(Ordering::Acquire) == attempt
    }

    /// Answers on behalf of the pool. False if it was answered already.
    pub(crate) fn answer(&self, result: Result<C::Output, Error>) -> bool {
        self.take_answer().is_some_and(|answer| {
            // The slot goes back before the caller wakes, so that it finds the slot free.
            drop(answer.slot);
            // A caller that has gone has dropped its receiver; it wants no answer.
            let _ = answer.done.send(result);
            true
        })
    }

    /// Answers on behalf of a run, unless a later run has begun.
    pub(crate) fn answer_from(&self, attempt: u32, result: Result<C::Output, Error>) -> bool {
        self.is_current(attempt) && self.answer(result)
    }

    pub(crate) fn take_answer(&self) -> Option<Answer<C>> {
        // A panic cannot happen under this lock, so its poison means nothing.
        self.answer.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    pub(crate) fn chunk_sender(&self) -> Option<mpsc::Sender<C::Chunk>> {
        let answer = self.answer.lock().unwrap_or_else(PoisonError::into_inner);
        answer.as_ref().and_then(|answer| answer.chunks.clone())
    }

    pub(crate) fn is_answered(&self) -> bool {
        self.answer.lock().unwrap_or_else(PoisonError::into_inner).is_none()
    }

    /// The caller has gone.
    pub(crate) fn cancel(&self) -> bool {
        self.cancelled.store(true, Ordering::Release);
        self.take_answer().is_some()
    }

    pub(crate) fn mark_emitted(&self) {
        self.emitted.store(true, Ordering::Release);
    }

    /// Part of the answer is out, so the request cannot be run again and its deadline no longer counts.
    pub(crate) fn has_emitted(&self) -> bool {
        self.emitted.load(Ordering::Acquire)
    }

    /// Nobody waits any more: cancelled, or past its deadline with nothing sent out.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.cancelled.load(Ordering::Acquire)
            || (!self.has_emitted() && self.parts.clock.now() >= self.parts.deadline)
    }

    /// Where the request stands, for the error of a caller that ran out of time.
    pub(crate) fn phase(&self) -> RequestPhase {
        if self.running.load(Ordering::Relaxed) != 0 {
            return RequestPhase::Running;
        }
        match self.parts.load.percent() {
            Some(percent) => RequestPhase::Loading { percent },
            None => RequestPhase::Queued,
        }
    }

    pub(crate) fn timeout_error(&self) -> Error {
        Error::Timeout { model: self.parts.model.clone(), phase: self.phase(), after: self.parts.timeout }
    }
}
