//! The speaker's part for callers of this node: sends their requests, and hands on what comes back.

use std::sync::Arc;

use super::delivery::Delivery;
use super::{Luggage, Outgoing, SpeakerMessage, SpeakerState, missing};
use crate::capability::{Capability, Portable};
use crate::catalogue::Registered;
use crate::cluster::Ask;
use crate::cluster::router::{Boot, Failed, Input, Message, Request, RequestKey, Run};
use crate::error::{Cause, Error, FailureKind};
use crate::id::Time;
use crate::job::{Accepted, Job};
use crate::node::guests::written_bytes;
use crate::node::own::wanted;
use crate::wire;

impl<C: Portable> SpeakerState<C> {
    pub(super) fn submit(&mut self, model: Arc<Registered<C>>, accepted: Accepted<C>) {
        let Some(wanted) = wanted(&model) else { return };
        self.measure(&wanted);
        let job = accepted.job();
        if job.is_abandoned() {
            job.expire();
            return;
        }
        let (key, parts) = (RequestKey(job.id.0), &job.parts);
        let aging = model.policy.config.aging;
        let request = Request {
            wanted,
            lane: parts.lane,
            rank: parts.priority.rank(parts.began, aging),
            cost: job.cost.0.max(1),
            deadline: parts.deadline,
            end: job.ends_at(),
            reruns: C::RUNS_AGAIN,
            impatient: parts.impatient,
        };
        self.outgoing.insert(key, Outgoing { accepted, model, attempt: 0, delivery: None, refusal: None });
        self.step(Input::Submit(key, request), Luggage::default());
    }

    pub(super) fn sent(&mut self, run: Run, key: RequestKey, sent: Result<(), Cause>) {
        match sent {
            Ok(()) => self.step(Input::Sent(run), Luggage::default()),
            Err(cause) => {
                if let Some(outgoing) = self.outgoing.remove(&key) {
                    outgoing.accepted.job().answer(Err(Error::InvalidInput { cause }));
                }
                self.step(Input::Cancelled(key), Luggage::default());
            }
        }
    }

    /// Sends a request to a peer. A task writes it, as it may be large.
    pub(super) fn ask(&mut self, to: Boot, run: Run, key: RequestKey, after: u64) {
        let (Some(outgoing), Some(link)) = (self.outgoing.get_mut(&key), self.links.get(&to)) else { return };
        let job = outgoing.accepted.job().clone();
        let stall = outgoing.model.policy.config.stall.run;
        outgoing.attempt = job.begin_attempt();
        outgoing.delivery = Delivery::of(&job, outgoing.attempt, stall, self.myself.clone());
        let (post, myself, clock) = (link.post.clone(), self.myself.clone(), self.shared.clock);
        let Some(wanted) = wanted(&outgoing.model) else { return };
        tokio::spawn(async move {
            let (parts, now) = (&job.parts, clock.now());
            let ask = Ask {
                priority: parts.priority,
                tenant: parts.tenant.clone(),
                begin_within: parts.deadline.since(now),
                end_within: (job.ends_at() < Time::NEVER).then(|| job.ends_at().since(now)),
                streams: job.chunks().is_some(),
                input: &*parts.request,
            };
            let sent = match written_bytes(&ask) {
                Ok(bytes) => {
                    if let Some(body) = post.body(bytes).await {
                        post.tell(Message::Ask { run, after, wanted, lane: parts.lane }, Some(body));
                    }
                    Ok(())
                }
                Err(cause) => Err(cause),
            };
            let _ = myself.send_message(SpeakerMessage::Sent(run, key, sent));
        });
    }

    pub(super) fn run_here(&mut self, key: RequestKey) {
        let Some(Outgoing { accepted, model, .. }) = self.outgoing.remove(&key) else { return };
        let job = accepted.job().clone();
        job.end_attempt();
        if let Err(error) = self.shared.gate.submit(model, accepted) {
            job.answer(Err(error));
        }
    }

    pub(super) fn deliver(&mut self, key: RequestKey, luggage: &mut Luggage) {
        let Some(outgoing) = self.outgoing.get_mut(&key) else { return };
        let chunk = luggage
            .came
            .take()
            .ok_or_else(missing)
            .and_then(|bytes| wire::read::<C::Chunk>(&bytes).map_err(|error| Cause::of(&error)));
        match (chunk, &outgoing.delivery) {
            (Ok(chunk), Some(delivery)) => delivery.chunk(chunk),
            // Nobody asked for chunks.
            (Ok(chunk), None) => drop(chunk),
            (Err(cause), _) => {
                self.answer(key, Err(cause));
                self.step(Input::Cancelled(key), Luggage::default());
            }
        }
    }

    pub(super) fn finish(&mut self, key: RequestKey, luggage: &mut Luggage) {
        let result = luggage.came.take().ok_or_else(missing).and_then(|bytes| {
            wire::read::<Result<C::Output, Error>>(&bytes).map_err(|error| Cause::of(&error))
        });
        self.answer(key, result);
    }

    /// Answers with what a peer has sent: its result, or the reason for which that cannot be read.
    fn answer(&mut self, key: RequestKey, result: Result<Result<C::Output, Error>, Cause>) {
        let Some(Outgoing { accepted, delivery, attempt, .. }) = self.outgoing.remove(&key) else { return };
        let job = accepted.job().clone();
        let result = result.unwrap_or_else(|cause| Err(unreadable::<C>(&job, cause)));
        match (result, delivery) {
            // After the chunks that wait for the reader.
            (Ok(output), Some(delivery)) => delivery.end(accepted, output),
            (result, _) => {
                job.answer_from(attempt, result);
            }
        }
    }

    pub(super) fn fail(&mut self, key: RequestKey, failed: Failed) {
        let Some(Outgoing { accepted, model, refusal, .. }) = self.outgoing.remove(&key) else { return };
        let job = accepted.job();
        let (id, capability) = (model.id().clone(), C::NAME.into());
        let error = match failed {
            Failed::NoPeer => Error::NoPeer { model: id, capability },
            Failed::Refused => refusal.unwrap_or(Error::NoPeer { model: id, capability }),
            Failed::Late { .. } => job.timeout_error(),
            Failed::PeerLost(peer) => Error::PeerLost { model: id, capability, peer: self.name_of(peer) },
            Failed::Full => {
                let lane = job.parts.lane;
                let (capacity, retry_after) = (model.entry.capacity(lane), model.entry.retry_after(lane));
                Error::Overloaded { capability, model: id, lane, tenant: None, capacity, retry_after }
            }
        };
        job.answer(Err(error));
    }

    pub(super) fn note_refusal(&mut self, run: Run, bytes: &[u8]) {
        let Some(key) = self.router.request_of(run) else { return };
        if let (Some(outgoing), Ok(error)) = (self.outgoing.get_mut(&key), wire::read::<Error>(bytes)) {
            outgoing.refusal = Some(error);
        }
    }
}

fn unreadable<C: Capability>(job: &Job<C>, cause: Cause) -> Error {
    let (model, capability) = (job.model().clone(), C::NAME.into());
    Error::ModelError { model, capability, failure: FailureKind::Failed, cause }
}
