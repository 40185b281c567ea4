//! The caller's end of a request: waits for the answer, reads the stream, counts the outcome, and cancels the
//! request when it is dropped before. It keeps no timer: the pool answers at the deadline, wherever the
//! request is then, and a pool that dies drops its side.

use std::borrow::Borrow;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Weak;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use futures_core::Stream;
use tokio::sync::{mpsc, oneshot};
use tracing::Span;

use super::ModelHandle;
use crate::capability::Capability;
use crate::error::{Error, Result};
use crate::id::RequestId;
use crate::job::Job;
use crate::wakers::CallersWaker;

/// Counts a request once, whatever its outcome: as cancelled, if it is dropped before the end. Its span is told, too.
pub(super) struct Tally<C: Capability, H: Borrow<ModelHandle<C>>> {
    handle: H,
    span: Span,
    began: Instant,
    counted: bool,
    capability: PhantomData<fn() -> C>,
}

impl<C: Capability, H: Borrow<ModelHandle<C>>> Tally<C, H> {
    pub(super) fn begin(handle: H, span: Span) -> Self {
        handle.borrow().model.metrics().requests.increment(1);
        Self { handle, span, began: Instant::now(), counted: false, capability: PhantomData }
    }

    pub(super) fn end(self, result: Result<C::Output>) -> Result<C::Output> {
        match result {
            Ok(output) => Ok(self.succeed(output)),
            Err(error) => Err(self.fail(error)),
        }
    }

    fn succeed(mut self, output: C::Output) -> C::Output {
        self.counted = true;
        let metrics = self.handle.borrow().model.metrics();
        metrics.succeeded.increment(1);
        metrics.request_time.record(self.began.elapsed().as_secs_f64());
        if let Some(usage) = C::usage(&output) {
            metrics.input_tokens.increment(usage.prompt_tokens as u64);
            metrics.cached_tokens.increment(usage.cached_tokens as u64);
            metrics.output_tokens.increment(usage.completion_tokens as u64);
            // A span that is off looks its fields up all the same.
            if !self.span.is_disabled() {
                self.span.record("input_tokens", usage.prompt_tokens);
                self.span.record("cached_tokens", usage.cached_tokens);
                self.span.record("output_tokens", usage.completion_tokens);
            }
        }
        output
    }

    pub(super) fn fail(mut self, error: Error) -> Error {
        self.counted = true;
        tracing::debug!(%error, reason = error.reason(), "a request failed");
        self.span.record("error", error.reason());
        self.handle.borrow().model.metrics().failed(&error);
        error
    }
}

impl<C: Capability, H: Borrow<ModelHandle<C>>> Drop for Tally<C, H> {
    fn drop(&mut self) {
        if !self.counted {
            self.handle.borrow().model.metrics().cancelled.increment(1);
            self.span.record("error", "cancelled");
        }
    }
}

/// Receiver of an accepted request's answer. Dropping it cancels the request. It does not keep the job: once
/// that is answered, a caller who takes time to read the answer must not hold the request, which may be
/// large.
pub(super) struct Reply<C: Capability, H: Borrow<ModelHandle<C>>> {
    handle: H,
    id: RequestId,
    job: Weak<Job<C>>,
    answer: oneshot::Receiver<Result<C::Output>>,
    ended: bool,
}

// Nothing in it is pinned in place.
impl<C: Capability, H: Borrow<ModelHandle<C>>> Unpin for Reply<C, H> {}

impl<C: Capability, H: Borrow<ModelHandle<C>>> Reply<C, H> {
    pub(super) fn new(
        handle: H,
        (id, job): (RequestId, Weak<Job<C>>),
        answer: oneshot::Receiver<Result<C::Output>>,
    ) -> Self {
        Self { handle, id, job, answer, ended: false }
    }

    pub(super) async fn output(mut self) -> Result<C::Output> {
        std::future::poll_fn(|context| self.poll_output(context)).await
    }

    fn poll_output(&mut self, context: &mut Context<'_>) -> Poll<Result<C::Output>> {
        let answer = ready!(Pin::new(&mut self.answer).poll(context));
        self.ended = true;
        Poll::Ready(answer.unwrap_or_else(|_| Err(self.pool_died())))
    }

    fn pool_died(&self) -> Error {
        Error::RecvError { capability: C::NAME.into(), model: self.handle.borrow().id().clone() }
    }
}

impl<C: Capability, H: Borrow<ModelHandle<C>>> Drop for Reply<C, H> {
    fn drop(&mut self) {
        if let Some(job) = self.job.upgrade().filter(|job| !self.ended && job.cancel()) {
            let shared = &self.handle.borrow().shared;
            #[cfg(feature = "cluster")]
            shared.cancel_elsewhere(job.id);
            shared.gate.cancel(job.parts.entry.key, job.id);
        }
    }
}

/// Stream of an answer's chunks, in order, with the output at its end. Dropping it cancels the request.
///
/// [`Self::next`] and the [`Stream`] give the same items: each chunk, then the error if the request failed.
/// [`Self::output`] gives the output afterwards, or the same error.
///
/// ```
/// # use model_actors::{Capability, ReplyStream, Result, TextChunk};
/// async fn read<C: Capability<Chunk = TextChunk>>(mut stream: ReplyStream<C>) -> Result<C::Output> {
///     while let Some(piece) = stream.next().await {
///         print!("{}", piece?);
///     }
///     stream.output().await
/// }
/// ```
#[must_use = "dropping the stream cancels the request"]
pub struct ReplyStream<C: Capability> {
    reply: Reply<C, ModelHandle<C>>,
    chunks: mpsc::Receiver<C::Chunk>,
    tally: Option<Tally<C, ModelHandle<C>>>,
    end: Option<Result<C::Output>>,
    /// The error, if any, was given out as the last item.
    told_error: bool,
    waker: CallersWaker,
    span: Span,
}

impl<C: Capability> ReplyStream<C> {
    pub(super) fn new(
        reply: Reply<C, ModelHandle<C>>,
        chunks: mpsc::Receiver<C::Chunk>,
        tally: Tally<C, ModelHandle<C>>,
        span: Span,
    ) -> Self {
        Self {
            reply,
            chunks,
            tally: Some(tally),
            end: None,
            told_error: false,
            waker: CallersWaker::default(),
            span,
        }
    }

    /// The request's number, as in spans, logs and events.
    pub fn id(&self) -> RequestId {
        self.reply.id
    }

    /// True if its run has begun, or it is answered.
    #[cfg(feature = "cluster")]
    pub(crate) fn has_begun(&self) -> bool {
        self.reply.job.upgrade().is_none_or(|job| job.has_met_deadline())
    }

    /// The next chunk. `None` after the last chunk of an answer that succeeded, or after the error of one
    /// that did not.
    ///
    /// # Errors
    /// Every [`Error`] that a request can end with, once.
    pub async fn next(&mut self) -> Option<Result<C::Chunk>> {
        std::future::poll_fn(|context| self.poll_item(context)).await
    }

    /// Reads to the end, leaving out the chunks that remain, and returns the output.
    ///
    /// # Errors
    /// Every [`Error`] that a request can end with, also if [`Self::next`] gave it before.
    pub async fn output(mut self) -> Result<C::Output> {
        while self.next().await.is_some() {}
        self.end.take().unwrap_or_else(|| Err(self.reply.pool_died()))
    }

    fn poll_chunk(&mut self, context: &mut Context<'_>) -> Poll<Option<C::Chunk>> {
        let _entered = self.span.clone().entered();
        let waker = self.waker.of(context.waker());
        let context = &mut Context::from_waker(&waker);
        if let Poll::Ready(Some(chunk)) = self.chunks.poll_recv(context) {
            return Poll::Ready(Some(chunk));
        }
        if self.end.is_none() {
            let end = ready!(self.reply.poll_output(context));
            if let Some(tally) = self.tally.take() {
                self.end = Some(tally.end(end));
            }
        }
        // Chunks that came just before the end are read first.
        Poll::Ready(self.chunks.try_recv().ok())
    }

    fn poll_item(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<C::Chunk>>> {
        if let Some(chunk) = ready!(self.poll_chunk(context)) {
            return Poll::Ready(Some(Ok(chunk)));
        }
        match &self.end {
            Some(Err(error)) if !std::mem::replace(&mut self.told_error, true) => {
                Poll::Ready(Some(Err(error.clone())))
            }
            _ => Poll::Ready(None),
        }
    }
}

// Nothing in it is pinned in place: its one pinned part is boxed.
impl<C: Capability> Unpin for ReplyStream<C> {}

impl<C: Capability> Stream for ReplyStream<C> {
    type Item = Result<C::Chunk>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll_item(context)
    }
}
