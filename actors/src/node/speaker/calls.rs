//! The speaker's part for calls that are no requests: those of callers here on models that other nodes serve, and those of
//! peers on models of this node.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use tokio::task::AbortHandle;

use super::{Luggage, SpeakerMessage, SpeakerState, missing};
use crate::capability::{Capability, Portable};
use crate::client::Client;
use crate::cluster::ElsewhereCall;
use crate::cluster::router::{Boot, CallKey, CallKind, Failed, Input, Wanted};
use crate::error::{Error, FailureKind, RequestPhase, Result};
use crate::model::ModelFacts;
use crate::node::guests::written_bytes;
use crate::node::own::wanted;
use crate::pool::Call;
use crate::wire;

/// Longest time that a call of a peer is worked on, whatever the peer says.
const LONGEST_CALL: Duration = Duration::from_secs(60 * 60);

/// The answer to a call, with what is known of the model by then.
type Answer = Result<Option<ModelFacts>>;

/// A call of a caller here that the router has.
pub(super) struct Calling<C: Capability> {
    call: ElsewhereCall<C>,
    /// The first error of those who have answered.
    result: Result<()>,
}

/// A call of a peer, which ends when this is dropped.
pub(super) struct Hosted(AbortHandle);

impl Drop for Hosted {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl<C: Portable> SpeakerState<C> {
    pub(super) fn call(&mut self, call: ElsewhereCall<C>) {
        let Some(wanted) = wanted(&call.model) else { return };
        let (key, ends) = (CallKey(call.id.0), call.ends);
        let kind = match call.call {
            Call::Preload => CallKind::Preload,
            Call::Unload { .. } => CallKind::Unload,
            Call::Pin { pinned } => CallKind::Pin(pinned),
        };
        self.calling.insert(key, Calling { call, result: Ok(()) });
        self.step(Input::Call { key, wanted, kind, ends }, Luggage::default());
    }

    pub(super) fn caller_gone(&mut self, key: CallKey) {
        if self.calling.remove(&key).is_some() {
            self.step(Input::CallerGone(key), Luggage::default());
        }
    }

    pub(super) fn note_call(&mut self, key: CallKey, luggage: &mut Luggage) {
        let Some(Calling { call, result }) = self.calling.get_mut(&key) else { return };
        let model = &call.model;
        let read = luggage.came.take().ok_or_else(missing);
        let read =
            read.and_then(|bytes| wire::read::<Answer>(&bytes).map_err(|error| crate::Cause::of(&error)));
        let answer = read.unwrap_or_else(|cause| {
            let (model, capability) = (model.id().clone(), C::NAME.into());
            Err(Error::ModelError { model, capability, failure: FailureKind::Failed, cause })
        });
        match answer {
            Ok(Some(facts)) => self.way.know(model, facts),
            Ok(None) => {}
            Err(error) => *result = std::mem::replace(result, Ok(())).and(Err(error)),
        }
    }

    pub(super) fn end_call(&mut self, key: CallKey, failed: Option<Failed>) {
        let Some(Calling { call, result }) = self.calling.remove(&key) else { return };
        let (model, capability) = (call.model.id().clone(), C::NAME.into());
        let result = match failed {
            None => result,
            Some(Failed::PeerLost(peer)) => {
                Err(Error::PeerLost { model, capability, peer: self.name_of(peer) })
            }
            Some(Failed::Late { .. }) => {
                Err(Error::Timeout { model, capability, phase: RequestPhase::Queued, after: call.timeout })
            }
            Some(Failed::NoPeer | Failed::Full | Failed::Refused) => Err(Error::NoPeer { model, capability }),
        };
        // Whoever made it may have gone.
        let _ = call.caller.done.send(result);
    }

    pub(super) fn host_call(
        &mut self,
        (from, key): (Boot, CallKey),
        wanted: &Wanted,
        kind: CallKind,
        within: Duration,
    ) {
        let Some(link) = self.links.get(&from) else { return };
        let (post, myself) = (link.post.clone(), self.myself.clone());
        let (wanted, client) = (wanted.clone(), Client::new(self.shared.clone()));
        let model = client.handle(wanted.model.clone());
        let task = tokio::spawn(async move {
            let answer: Answer = async {
                let model = model?;
                model.host_call(&wanted, kind, within.min(LONGEST_CALL)).await?;
                // They are asked of a loader, which is code of the application.
                Ok(catch_unwind(AssertUnwindSafe(|| model.facts())).unwrap_or(None))
            }
            .await;
            let written = written_bytes(&answer).or_else(|_| written_bytes::<Answer>(&answer.map(|_| None)));
            let body = match written {
                Ok(bytes) => post.body(bytes).await,
                Err(_) => None,
            };
            let _ = myself.send_message(SpeakerMessage::Hosted(from, key, body));
        });
        self.hosted.insert((from, key), Hosted(task.abort_handle()));
    }
}
