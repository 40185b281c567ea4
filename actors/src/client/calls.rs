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
#[cfg(feature = "cluster")]
use crate::cluster::{Elsewhere, ElsewhereCall, router::CallKind, router::Wanted};
use crate::entry;
use crate::error::{Error, RequestPhase, Result};
use crate::id::Time;
use crate::pool::{Call, Caller, PoolMessage};
use crate::scheduler::CallId;
use crate::wakers::for_a_caller;

/// Time beyond its deadline in which the pool answers an unload with what is left.
const MARGIN: Duration = Duration::from_secs(5);

static NEXT_CALL: AtomicU64 = AtomicU64::new(1);

impl<C: Capability> ModelHandle<C> {
    /// Loads the model now; one that other nodes alone serve on one of them, unless it is loaded already. Returns once its
    /// first worker is ready; joins a load under way. Waits for
    /// [`PoolConfig::preload_timeout`](crate::PoolConfig::preload_timeout) at most; the load goes on after that,
    /// and also when the future is dropped.
    ///
    /// # Errors
    /// As for a request: [`Error::SpawnFailed`], [`Error::MemoryExhausted`], [`Error::CircuitOpen`],
    /// [`Error::Timeout`] and so on; also [`Error::NoPeer`] and [`Error::PeerLost`].
    pub async fn preload(&self) -> Result<()> {
        for_a_caller(self.manage(Call::Preload, self.latest().policy.config.preload_timeout)).await
    }

    /// Stops the model's workers, each after the batch that it runs, and returns once their bytes are back in
    /// the budget. Requests that wait meanwhile are served by a new load afterwards. Dropping the future ends
    /// the unload: workers that are still busy then stay. A model that other nodes alone serve goes from all of them.
    ///
    /// # Errors
    /// [`Error::UnloadIncomplete`] with the bytes that are not back, and the reason. [`Error::NoWorkers`] or
    /// [`Error::RecvError`] if the pool is down or fails meanwhile, [`Error::Timeout`] if it does not answer, and
    /// [`Error::ShuttingDown`] or [`Error::SystemFailed`] once the system has ended; [`Error::NoPeer`], and
    /// [`Error::PeerLost`] where it may not have been unloaded on a node that is gone.
    pub async fn unload(&self, timeout: Duration) -> Result<()> {
        let deadline = self.shared.clock.now() + timeout;
        for_a_caller(self.manage(Call::Unload { deadline }, timeout)).await
    }

    /// Protects the model's workers from cooldown and from eviction for other models, or ends that
    /// protection; of one that other nodes alone serve on all of them that are connected.
    ///
    /// # Errors
    /// [`Error::NoWorkers`] if the pool is down; [`Error::Timeout`] if it does not answer within the model's
    /// request time; [`Error::NoPeer`] and [`Error::PeerLost`].
    pub async fn pin(&self, pinned: bool) -> Result<()> {
        for_a_caller(self.manage(Call::Pin { pinned }, self.request_timeout())).await
    }

    /// Makes a call of another node, with the time that it has left.
    #[cfg(feature = "cluster")]
    pub(crate) async fn host_call(&self, wanted: &Wanted, kind: CallKind, within: Duration) -> Result<()> {
        // Other files may have taken its name meanwhile.
        if self.latest().digest() != Some(&wanted.digest) {
            return Err(self.shared.not_found(&wanted.model));
        }
        let deadline = self.shared.clock.now() + within;
        let call = match kind {
            CallKind::Preload => Call::Preload,
            CallKind::Unload => Call::Unload { deadline },
            CallKind::Pin(pinned) => Call::Pin { pinned },
        };
        self.manage(call, within).await
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
            Call::Preload => (entry::CallKind::Preload, deadline),
            Call::Pin { .. } => (entry::CallKind::Pin, deadline),
            // The pool answers at the deadline, with what is left.
            Call::Unload { .. } => (entry::CallKind::Unload, deadline + MARGIN),
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
        let mut pending = Pending { shared: &self.shared, model, id, answer: Some(answer) };
        let sent = self.shared.send_call(model, (id, call, caller), deadline, timeout);
        if let Err(error) = sent {
            pending.answer = None;
            return Err(self.shared.unsent(error));
        }
        // Those who serve it elsewhere have the first word.
        let ends = if self.shared.stands_in(model) { deadline + MARGIN } else { ends };
        match deadlines.until(ends, pending.answer()).await {
            Ok(Some(result)) => result,
            Ok(None) => Err(Error::RecvError { capability: C::NAME.into(), model: model.id().clone() }),
            Err(Overdue::RuntimeEnded) => Err(self.shared.gate.closed()),
            Err(Overdue::Deadline) => Err(late(model, timeout)),
        }
    }
}

impl<C: Capability> PoolShared<C> {
    /// The way to the nodes that serve a model, if this node does not.
    #[cfg(feature = "cluster")]
    fn elsewhere_of(&self, model: &Registered<C>) -> Option<&dyn Elsewhere<C>> {
        self.elsewhere.get().map(Arc::as_ref).filter(|elsewhere| elsewhere.stands_in(model))
    }

    /// True if other nodes alone serve the model.
    #[cfg_attr(not(feature = "cluster"), allow(unused_variables, reason = "there are no other nodes"))]
    fn stands_in(&self, model: &Registered<C>) -> bool {
        #[cfg(feature = "cluster")]
        return self.elsewhere_of(model).is_some();
        #[cfg(not(feature = "cluster"))]
        false
    }

    /// Hands a call to the pool, or to whoever speaks with the nodes that serve the model.
    #[cfg_attr(not(feature = "cluster"), allow(unused_variables, reason = "a pool keeps no time of a call"))]
    fn send_call(
        &self,
        model: &Arc<Registered<C>>,
        (id, call, caller): (CallId, Call, Caller),
        ends: Time,
        timeout: Duration,
    ) -> Result<()> {
        let model = model.clone();
        #[cfg(feature = "cluster")]
        if let Some(elsewhere) = self.elsewhere_of(&model) {
            return elsewhere.call(ElsewhereCall { id, model, call, ends, timeout, caller });
        }
        let name = model.id().clone();
        self.gate.send(&name, PoolMessage::Call { model, id, call, caller })
    }

    /// Takes a call back, as nobody waits for it any more.
    fn drop_call(&self, model: &Registered<C>, id: CallId) {
        #[cfg(feature = "cluster")]
        if let Some(elsewhere) = self.elsewhere_of(model) {
            return elsewhere.caller_gone(id);
        }
        // A pool that is down has no call to take back.
        self.gate.notify(PoolMessage::CallerGone { key: model.key(), call: id });
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
    model: &'a Registered<C>,
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
        if self.answer.take().is_some() {
            self.shared.drop_call(self.model, self.id);
        }
    }
}
