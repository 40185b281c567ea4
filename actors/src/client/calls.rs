//! The calls on a model that are no requests: preload, unload and pin. Each has a deadline, which is kept here; one
//! whose caller goes away is taken back from the pool. Starting and stopping workers is left to the pool.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::oneshot;

use super::{ModelHandle, PoolShared};
use crate::alarm::Overdue;
use crate::capability::Capability;
use crate::catalogue::Registered;
use crate::entry::CallKind;
use crate::error::{Error, RequestPhase, Result};
use crate::id::{ModelKey, Time};
use crate::pool::{Call, Caller, PoolMessage};
use crate::scheduler::CallId;
use crate::wakers::for_a_caller;

/// Time beyond its deadline in which the pool answers an unload with what is left.
const MARGIN: Duration = Duration::from_secs(5);

static NEXT_CALL: AtomicU64 = AtomicU64::new(1);

impl<C: Capability> ModelHandle<C> {
    /// Loads the model now. Returns once its first worker is ready; joins a load under way. Waits for
    /// [`PoolConfig::preload_timeout`](crate::PoolConfig::preload_timeout) at most; the load goes on after that,
    /// and also when the future is dropped.
    ///
    /// # Errors
    /// As for a request: [`Error::SpawnFailed`], [`Error::MemoryExhausted`], [`Error::CircuitOpen`],
    /// [`Error::Timeout`] and so on.
    pub async fn preload(&self) -> Result<()> {
        for_a_caller(self.manage(Call::Preload, self.latest().policy.config.preload_timeout)).await
    }

    /// Stops the model's workers, each after the batch that it runs, and returns once their bytes are back in
    /// the budget. Requests that wait meanwhile are served by a new load afterwards. Dropping the future ends
    /// the unload: workers that are still busy then stay.
    ///
    /// # Errors
    /// [`Error::UnloadIncomplete`] with the bytes that are not back, and the reason. [`Error::NoWorkers`] or
    /// [`Error::RecvError`] if the pool is down or fails meanwhile, [`Error::Timeout`] if it does not answer, and
    /// [`Error::ShuttingDown`] or [`Error::SystemFailed`] once the system has ended.
    pub async fn unload(&self, timeout: Duration) -> Result<()> {
        let deadline = self.shared.clock.now() + timeout;
        for_a_caller(self.manage(Call::Unload { deadline }, timeout)).await
    }

    /// Protects the model's workers from cooldown and from eviction for other models, or ends that
    /// protection.
    ///
    /// # Errors
    /// [`Error::NoWorkers`] if the pool is down; [`Error::Timeout`] if it does not answer within the model's
    /// request time.
    pub async fn pin(&self, pinned: bool) -> Result<()> {
        for_a_caller(self.manage(Call::Pin { pinned }, self.request_timeout())).await
    }

    /// Calls the pool. A preload or pin of a model that is replaced meanwhile goes to the new one as well.
    async fn manage(&self, call: Call, timeout: Duration) -> Result<()> {
        let deadline = self.shared.clock.now() + timeout;
        if let Call::Unload { .. } = call {
            // A model that was removed can still be unloaded.
            return self.manage_model(&self.latest(), call, deadline, timeout).await;
        }
        loop {
            let model = self.current()?;
            let result = self.manage_model(&model, call, deadline, timeout).await;
            if !model.entry.is_removed() {
                return result;
            }
        }
    }

    async fn manage_model(
        &self,
        model: &Arc<Registered<C>>,
        call: Call,
        deadline: Time,
        timeout: Duration,
    ) -> Result<()> {
        let (kind, ends) = match call {
            Call::Preload => (CallKind::Preload, deadline),
            Call::Pin { .. } => (CallKind::Pin, deadline),
            // The pool answers at the deadline, with what is left.
            Call::Unload { .. } => (CallKind::Unload, deadline + MARGIN),
        };
        let deadlines = &self.shared.deadlines;
        let place = match deadlines.until(deadline, model.entry.call_place(kind)).await {
            Ok(Some(place)) => place,
            Ok(None) | Err(Overdue::RuntimeEnded) => return Err(self.shared.gate.closed()),
            Err(Overdue::Deadline) => return Err(late(model, timeout)),
        };
        let (done, answer) = oneshot::channel();
        let id = CallId(NEXT_CALL.fetch_add(1, Ordering::Relaxed));
        let caller = Caller { done, _place: place };
        let sent =
            self.shared.gate.send(model.id(), PoolMessage::Call { model: model.clone(), id, call, caller });
        sent.map_err(|error| self.shared.unsent(error))?;
        let mut pending = Pending { shared: &self.shared, key: model.key(), id, answer: Some(answer) };
        match deadlines.until(ends, pending.answer()).await {
            Ok(Some(result)) => result,
            Ok(None) => Err(Error::RecvError { capability: C::NAME.into(), model: model.id().clone() }),
            Err(Overdue::RuntimeEnded) => Err(self.shared.gate.closed()),
            Err(Overdue::Deadline) => Err(late(model, timeout)),
        }
    }
}

/// The error of a call that ran out of time.
fn late<C: Capability>(model: &Registered<C>, after: Duration) -> Error {
    let phase = match model.entry.load.percent() {
        Some(percent) => RequestPhase::Loading { percent },
        None => RequestPhase::Queued,
    };
    Error::Timeout { capability: C::NAME.into(), model: model.id().clone(), phase, after }
}

/// A call that the pool has, from its sending to its answer. Takes the call back when it is dropped before that.
struct Pending<'a, C: Capability> {
    shared: &'a PoolShared<C>,
    key: ModelKey,
    id: CallId,
    answer: Option<oneshot::Receiver<Result<()>>>,
}

impl<C: Capability> Pending<'_, C> {
    /// `None` if the pool dropped the call.
    async fn answer(&mut self) -> Option<Result<()>> {
        let answer = self.answer.as_mut()?.await;
        self.answer = None;
        answer.ok()
    }
}

impl<C: Capability> Drop for Pending<'_, C> {
    fn drop(&mut self) {
        // A pool that is down has no call to take back.
        if self.answer.take().is_some() {
            self.shared.gate.notify(PoolMessage::CallerGone { key: self.key, call: self.id });
        }
    }
}
