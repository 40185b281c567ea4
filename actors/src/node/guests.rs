//! The run of a peer's request in the pool of this node: with the time that it has left, within the slots of the model, and
//! with no more chunks on their way than its window. It ends when it is dropped.

use std::pin::pin;
use std::sync::Arc;

use serde::Serialize;
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;

use super::post::Post;
use crate::capability::Portable;
use crate::client::{CallOptions, ModelHandle, ReplyStream, WhenFull};
use crate::cluster::router::{Refusal, WINDOW, Wanted};
use crate::cluster::{Ask, Body};
use crate::error::{Cause, Error, FailureKind};
use crate::id::Lane;
use crate::limits::MAX_LETTER_BYTES;
use crate::wire;

/// Message of a guest to its speaker.
#[derive(Debug)]
pub(super) enum Says {
    Began,
    Chunk(Body),
    Result(Body),
    Refused(Refusal, Option<Body>),
    /// The peer is gone, so nobody wants the result.
    Nothing,
}

/// A guest as its speaker holds it.
pub(super) struct Guest {
    task: AbortHandle,
    window: Arc<Semaphore>,
    pub(super) lane: Lane,
    pub(super) wanted: Wanted,
}

impl Guest {
    pub(super) fn grow(&self, more: u64) {
        self.window.add_permits(usize::try_from(more).unwrap_or(0));
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The place and way of a guest.
pub(super) struct Lodging<C: Portable> {
    pub(super) model: ModelHandle<C>,
    pub(super) lane: Lane,
    pub(super) wanted: Wanted,
    pub(super) post: Post,
}

impl<C: Portable> Lodging<C> {
    /// Runs the request, and tells `say` of it.
    pub(super) fn take(self, ask: Ask<C::Request>, say: impl Fn(Says) + Send + Sync + 'static) -> Guest {
        let window = Arc::new(Semaphore::new(usize::try_from(WINDOW).unwrap_or(1)));
        let (lane, wanted, of_task) = (self.lane, self.wanted.clone(), window.clone());
        let task = tokio::spawn(async move {
            let said = self.run(ask, &of_task, &say).await;
            say(said);
        });
        Guest { task: task.abort_handle(), window, lane, wanted }
    }

    async fn run(&self, ask: Ask<C::Request>, window: &Semaphore, say: &impl Fn(Says)) -> Says {
        let Ask { priority, tenant, begin_within, end_within, streams, input } = ask;
        let options = CallOptions::default()
            .with_lane(self.lane)
            .with_priority(priority)
            .with_tenant(tenant)
            .with_timeout(begin_within)
            .with_total_timeout(end_within)
            .with_when_full(WhenFull::Fail);
        let mut stream = match self.model.host(input, options, streams).await {
            Ok(stream) => stream,
            Err(error) => return self.refuse_or_end(error, true).await,
        };
        let mut is_first = true;
        let mut begun_by = pin!(tokio::time::sleep(begin_within));
        let mut asks = true;
        loop {
            let item = tokio::select! {
                item = next(&mut stream, window) => item,
                () = begun_by.as_mut(), if asks => {
                    asks = false;
                    if stream.has_begun() {
                        say(Says::Began);
                    }
                    continue;
                }
            };
            match item {
                Some(Ok(chunk)) => {
                    (is_first, asks) = (false, false);
                    let chunk = written_bytes(&chunk).map_err(|cause| self.unwritten(cause));
                    match self.sent(chunk).await {
                        Ok(Some(body)) => say(Says::Chunk(body)),
                        Ok(None) => return Says::Nothing,
                        Err(error) => return self.end(Err(error)).await,
                    }
                }
                Some(Err(error)) => return self.refuse_or_end(error, is_first && C::RUNS_AGAIN).await,
                None => return self.end(stream.output().await).await,
            }
        }
    }

    /// Refuses a request that has not run, and can elsewhere; otherwise this is its end.
    async fn refuse_or_end(&self, error: Error, may_refuse: bool) -> Says {
        let refusal = match &error {
            _ if !may_refuse => None,
            Error::Overloaded { .. } | Error::TooManyTenants { .. } => Some(Refusal::Full),
            Error::ShuttingDown
            | Error::NoWorkers { .. }
            | Error::SendError { .. }
            | Error::UnknownModel { .. }
            | Error::OtherCapability { .. }
            | Error::CircuitOpen { .. }
            | Error::MemoryExhausted { .. }
            | Error::SystemFailed { .. } => Some(Refusal::Unable),
            _ => None,
        };
        match refusal {
            Some(refusal) => {
                let told = written_bytes(&error).map_err(|cause| self.unwritten(cause));
                Says::Refused(refusal, self.sent(told).await.ok().flatten())
            }
            None => self.end(Err(error)).await,
        }
    }

    async fn end(&self, result: Result<C::Output, Error>) -> Says {
        let written = written_bytes(&result).or_else(|cause| {
            let error = self.unwritten(cause);
            written_bytes(&Result::<C::Output, Error>::Err(error))
        });
        drop(result);
        let written = written.map_err(|cause| self.unwritten(cause));
        match self.sent(written).await {
            Ok(Some(body)) => Says::Result(body),
            Ok(None) | Err(_) => Says::Nothing,
        }
    }

    /// Gets a body on its way if it is large. `None` if the peer is gone.
    async fn sent(&self, written: Result<Vec<u8>, Error>) -> Result<Option<Body>, Error> {
        Ok(self.post.body(written?).await)
    }

    fn unwritten(&self, cause: Cause) -> Error {
        let (model, capability) = (self.model.id().clone(), C::NAME.into());
        Error::ModelError { model, capability, failure: FailureKind::Failed, cause }
    }
}

/// Writes a body.
///
/// # Errors
/// One that cannot be written or is too large.
pub(super) fn written_bytes<T: Serialize>(value: &T) -> Result<Vec<u8>, Cause> {
    let mut bytes = Vec::new();
    wire::append(&mut bytes, value).map_err(|error| Cause::of(&error))?;
    match bytes.len() {
        0..=MAX_LETTER_BYTES => Ok(bytes),
        length => {
            Err(Cause::new(format!("it has {length} bytes; at most {MAX_LETTER_BYTES} go to another node")))
        }
    }
}

/// The next item of the stream, once the window has room for one.
async fn next<C: Portable>(
    stream: &mut ReplyStream<C>,
    window: &Semaphore,
) -> Option<Result<C::Chunk, Error>> {
    // The window is not closed while the guest lives.
    let room = window.acquire().await.ok();
    let item = stream.next().await;
    if let (Some(Ok(_)), Some(room)) = (&item, room) {
        room.forget();
    }
    item
}
