//! Decides which requests share a batch; nothing else does.
//!
//! 1. **A batch** is formed when a worker is idle, of what waits by then; there is no batching timer. It
//!    begins with the first request of the tenant whose turn it is and takes further ones in turn, of one tenant by
//!    rank ([`pick`]). They share its
//!    key ([`Capability::batch_key`](crate::Capability::batch_key)); those of another key are passed over. It
//!    is full with as many requests as its limits allow, or at the first one that would exceed their cost
//!    ([`Capability::cost`](crate::Capability::cost), tokens say). One request always fits, whatever it
//!    costs.
//! 2. **The limits** are the model's [`BatchLimits`]. [`ModelSpec::max_batch_requests`](crate::ModelSpec)
//!    lowers them at registration. A half-open breaker lets one request through at a time. Several idle
//!    workers share what waits evenly ([`Batches::even_share`]).
//! 3. **A running batch** of a model with [`Batching::Continuous`] is joined between its steps: by requests
//!    of its key, up to the limits less what runs ([`Batches::seats`]), and by none that would overtake a
//!    request of another key, so that a run that others join for ever keeps nobody waiting. Nobody joins
//!    while a rerun waits for a worker, nor a run that a suspect has for itself.
//! 4. **A batch that fails** is split in two, each of which runs again as it is and before anything else; one
//!    whose others have ended by then, or that is left after the splits, runs alone. Only what failed alone is
//!    answered with the failure, so that one bad input fails alone. If a
//!    batch ran out of memory, half of it is the most that a batch may have until the model is loaded anew, or one of
//!    its requests runs out of memory by itself ([`Batches::ran_out_of_memory`]). What ran on a worker that died or got stuck is run again one by one. Only the
//!    members of a continuous run that died, which may be long, are run again together once, and others may join
//!    them; whoever is there at a second death runs alone.
//!
//! A model runs its batch as it likes, in one pass or in several: the workers for text embedding pack a batch
//! into passes of limited size, those for diffusion run one request after another. That changes no batch's
//! members, and they are answered together or, with [`Batching::Continuous`], one by one.

use super::shares::InTurn;
use super::ticket::Ticket;
use crate::capability::BatchKey;
use crate::config::BatchLimits;
use crate::id::{RequestId, Time};

/// Requests picked for a batch, and those found to be out of time meanwhile.
#[derive(Debug, Default)]
pub(super) struct Picked {
    pub(super) chosen: Vec<RequestId>,
    pub(super) late: Vec<RequestId>,
}

/// Picks a batch from the requests that wait, in turn. With the key of a batch that is running, picks what may join it.
pub(super) fn pick(
    mut waiting: InTurn<'_>,
    limits: BatchLimits,
    joined: Option<BatchKey>,
    now: Time,
) -> Picked {
    let mut picked = Picked::default();
    let mut key = joined;
    let mut cost = 0_u64;
    while picked.chosen.len() < limits.requests
        && let Some(ticket) = waiting.next()
    {
        if ticket.deadline <= now {
            picked.late.push(ticket.request);
        } else if key.is_none_or(|key| key == ticket.key) {
            let total = cost.saturating_add(ticket.cost.0);
            if key.is_some() && total > limits.cost {
                break;
            }
            cost = total;
            key = Some(ticket.key);
            picked.chosen.push(ticket.request);
            waiting.serve(ticket.cost);
        } else if joined.is_some() {
            break;
        }
    }
    picked
}

/// Splits a batch that failed in two; what is then by itself stays so.
pub(super) fn split(mut batch: Vec<Ticket>) -> [Vec<Ticket>; 2] {
    let tail = batch.split_off(batch.len() / 2);
    [batch, tail].map(|mut part| {
        if let [only] = part.as_mut_slice() {
            only.alone = true;
        }
        part
    })
}

/// The limits on one model's batches.
#[derive(Debug, Clone)]
pub(crate) struct Batches {
    configured: BatchLimits,
    /// Maximum number of requests in a batch; less than configured after memory ran out.
    requests: usize,
}

impl Batches {
    pub(super) fn new(configured: BatchLimits) -> Self {
        Self { configured, requests: configured.requests }
    }

    /// Maximum number of requests in a batch.
    pub(crate) fn requests(&self) -> usize {
        self.requests
    }

    /// The limits of a batch; one request while a probe decides about the model.
    pub(super) fn limits(&self, probing: bool) -> BatchLimits {
        BatchLimits { requests: if probing { 1 } else { self.requests }, ..self.configured }
    }

    /// The limits of one idle worker's batch, so that each idle one gets a share of what is ready: nobody
    /// waits behind a busy worker, not even within a batch, while a sibling is idle.
    pub(super) fn even_share(&self, probing: bool, ready: usize, idle: usize) -> BatchLimits {
        let limits = self.limits(probing);
        BatchLimits { requests: limits.requests.min(ready.div_ceil(idle.max(1))), ..limits }
    }

    /// The key and the free seats of a run that may be joined: any but a run that a suspect has for itself.
    pub(super) fn seats(&self, probing: bool, running: &[Ticket]) -> Option<(BatchKey, BatchLimits)> {
        let key = running.first()?.key;
        if running.iter().any(|ticket| ticket.starved || ticket.alone) {
            return None;
        }
        let limits = self.limits(probing);
        let cost = running.iter().fold(0, |cost: u64, ticket| cost.saturating_add(ticket.cost.0));
        let free = BatchLimits {
            requests: limits.requests.saturating_sub(running.len()),
            cost: limits.cost.saturating_sub(cost),
        };
        Some((key, free))
    }

    /// Notes that these requests together ran out of memory; returns the new limit if that lowers it. Each keeps the limit
    /// that there was before it had a part in that.
    pub(super) fn ran_out_of_memory<'a>(
        &mut self,
        together: impl ExactSizeIterator<Item = &'a mut Ticket>,
    ) -> Option<usize> {
        let half = together.len() / 2;
        together.for_each(|ticket| _ = ticket.limit_before.get_or_insert(self.requests));
        (half < self.requests).then(|| {
            self.requests = half;
            half
        })
    }

    /// Notes that a request ran out of memory by itself, also when it was tried again: what it lowered says nothing of the
    /// others. A limit that holds without it is found again.
    pub(super) fn ran_out_of_memory_alone(&mut self, ticket: &Ticket) {
        self.requests = self.requests.max(ticket.limit_before.unwrap_or(0));
    }

    /// Notes that the model was loaded anew: memory may hold again what it could not hold then. A limit that
    /// still holds is found again.
    pub(super) fn loaded(&mut self) {
        self.requests = self.configured.requests;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capability::Cost;

    fn ticket(request: u64, cost: u64) -> Ticket {
        Ticket { cost: Cost(cost), ..Ticket::new(RequestId(request), Time::NEVER) }
    }

    #[test]
    fn the_limit_halves_when_memory_runs_out_and_is_back_after_a_load() {
        let mut batches = Batches::new(BatchLimits { requests: 8, cost: 100 });
        let mut eight: Vec<Ticket> = (0..8).map(|request| ticket(request, 1)).collect();
        assert_eq!(batches.ran_out_of_memory(eight.iter_mut()), Some(4));
        assert_eq!(batches.ran_out_of_memory(eight.iter_mut()), None, "an older batch says nothing new");
        assert_eq!((batches.requests(), batches.limits(true).requests), (4, 1));
        batches.loaded();
        assert_eq!(batches.limits(false), BatchLimits { requests: 8, cost: 100 });
    }

    #[test]
    fn idle_workers_share_evenly_up_to_the_limit() {
        let batches = Batches::new(BatchLimits { requests: 8, cost: 100 });
        let shares = [(9, 3), (9, 2), (40, 2), (1, 4), (5, 0)];
        let requests = shares.map(|(ready, idle)| batches.even_share(false, ready, idle).requests);
        assert_eq!(requests, [3, 5, 8, 1, 5]);
    }

    #[test]
    fn a_run_is_joined_up_to_its_limits_unless_a_suspect_has_it() {
        let batches = Batches::new(BatchLimits { requests: 3, cost: 100 });
        let running = [ticket(1, 40), ticket(2, 40)];
        let free = BatchLimits { requests: 1, cost: 20 };
        assert_eq!(batches.seats(false, &running), Some((BatchKey(0), free)));
        assert_eq!(batches.seats(false, &[]), None, "an idle worker has no run");
        for suspect in [Ticket { alone: true, ..ticket(3, 1) }, Ticket { starved: true, ..ticket(3, 1) }] {
            assert_eq!(batches.seats(false, &[suspect]), None);
        }
    }
}
