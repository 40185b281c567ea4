//! The caller's end of a request: waits for the answer, reads the stream, counts how it ended, and cancels the request
//! when it is dropped before. It keeps no timer: the pool answers at the deadline, wherever the request is then, and
//! a pool that dies drops its side.

use std::borrow::Borrow;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Weak;
use std::task::{Context, Poll, ready};

use futures_core::Stream;
use tokio::sync::{mpsc, oneshot};

use super::ModelHandle;
use crate::capability::Capability;
use crate::error::{Error, Result};
use crate::job::Job;

/// Counts a request once, however it ends. Dropped before its end, the caller has gone.
pub(super) struct Tally<C: Capability, H: Borrow<ModelHandle<C>>> {
    handle: H,
    counted: bool,
    capability: PhantomData<fn() -> C>,
}

impl<C: Capability, H: Borrow<ModelHandle<C>>> Tally<C, H> {
    pub(super) fn begin(handle: H) -> Self {
        handle.borrow().model.metrics().requests.increment(1);
        Self { handle, counted: false, capability: PhantomData }
    }

    pub(super) fn end<T>(mut self, result: Result<T>) -> Result<T> {
        self.counted = true;
        let metrics = self.handle.borrow().model.metrics();
        match &result {
            Ok(_) => metrics.succeeded.increment(1),
            Err(error) => {
                tracing::debug!(%error, reason = error.reason(), "a request failed");
                metrics.failed(error);
            }
        }
        result
    }
}

impl<C: Capability, H: Borrow<ModelHandle<C>>> Drop for Tally<C, H> {
    fn drop(&mut self) {
        if !self.counted {
            self.handle.borrow().model.metrics().cancelled.increment(1);
        }
    }
}

/// An accepted request, until it ends. Dropping it cancels the request. It does not keep the job: once that is answered,
/// a caller who takes time to read the answer must not hold what was asked, which may be large.
pub(super) struct Reply<C: Capability, H: Borrow<ModelHandle<C>>> {
    handle: H,
    job: Weak<Job<C>>,
    answer: oneshot::Receiver<Result<C::Output>>,
    ended: bool,
}

// Nothing in it is pinned in place.
impl<C: Capability, H: Borrow<ModelHandle<C>>> Unpin for Reply<C, H> {}

impl<C: Capability, H: Borrow<ModelHandle<C>>> Reply<C, H> {
    pub(super) fn new(handle: H, job: Weak<Job<C>>, answer: oneshot::Receiver<Result<C::Output>>) -> Self {
        Self { handle, job, answer, ended: false }
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
        Error::RecvError { model: self.handle.borrow().id().clone() }
    }
}

impl<C: Capability, H: Borrow<ModelHandle<C>>> Drop for Reply<C, H> {
    fn drop(&mut self) {
        if let Some(job) = self.job.upgrade().filter(|job| !self.ended && job.cancel()) {
            self.handle.borrow().shared.gate.cancel(job.parts.entry.key, job.id);
        }
    }
}

/// The chunks of a streamed answer, in order, and at their end the output. Dropping it cancels the request.
///
/// It is a [`Stream`] of chunks that ends after the last chunk or the first error; [`Self::output`] then gives how it
/// ended.
pub struct ReplyStream<C: Capability> {
    reply: Reply<C, ModelHandle<C>>,
    chunks: mpsc::Receiver<C::Chunk>,
    tally: Option<Tally<C, ModelHandle<C>>>,
    end: Option<Result<C::Output>>,
    /// The `Stream` has told its error.
    told_error: bool,
    span: tracing::Span,
}

impl<C: Capability> ReplyStream<C> {
    pub(super) fn new(
        reply: Reply<C, ModelHandle<C>>,
        chunks: mpsc::Receiver<C::Chunk>,
        tally: Tally<C, ModelHandle<C>>,
        span: tracing::Span,
    ) -> Self {
        Self { reply, chunks, tally: Some(tally), end: None, told_error: false, span }
    }

    /// The next chunk; `None` once all have been read and the answer has ended, well or not.
    pub async fn next(&mut self) -> Option<C::Chunk> {
        std::future::poll_fn(|context| self.poll_chunk(context)).await
    }

    /// Reads to the end, leaving out what chunks remain, and returns the output.
    ///
    /// # Errors
    /// How the request ended, if not well.
    pub async fn output(mut self) -> Result<C::Output> {
        while self.next().await.is_some() {}
        self.end.take().unwrap_or_else(|| Err(self.reply.pool_died()))
    }

    fn poll_chunk(&mut self, context: &mut Context<'_>) -> Poll<Option<C::Chunk>> {
        let _entered = self.span.clone().entered();
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
}

// Nothing in it is pinned in place: its one pinned part is boxed.
impl<C: Capability> Unpin for ReplyStream<C> {}

impl<C: Capability> Stream for ReplyStream<C> {
    type Item = Result<C::Chunk>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Some(chunk) = ready!(self.poll_chunk(context)) {
            return Poll::Ready(Some(Ok(chunk)));
        }
        let error = match &self.end {
            Some(Err(error)) if !self.told_error => Some(error.clone()),
            _ => None,
        };
        self.told_error |= error.is_some();
        Poll::Ready(error.map(Err))
    }
}
