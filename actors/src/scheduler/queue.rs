//! The waiting requests of one model by tenant and rank, and the batches that are to be run again, which go first. Whose
//! turn it is says `shares`; which requests a batch is made of is decided in `batching`. Each request is found by its number and by its deadline, so
//! that one that is cancelled or expires costs no look at the others, however many wait.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use rustc_hash::FxHashMap;

use super::batching::pick;
use super::shares::Shares;
use super::ticket::{Rank, Ticket, rank};
use crate::capability::BatchKey;
use crate::config::{BatchLimits, PoolConfig};
use crate::id::{RequestId, Tenant, Time};

/// The place of a batch that is to be run again: not before this moment, and in the order in which they came.
type Turn = (Time, u64);

/// The place of a waiting request.
#[derive(Debug, Clone)]
enum Place {
    Waiting(Option<Tenant>, Rank),
    /// In this batch, at this index.
    Rerun(Turn, usize),
}

/// The queue of one model.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    waiting: Shares,
    /// The tenants' weights, and the cost of a full batch.
    config: Arc<PoolConfig>,
    /// Batches that failed or whose worker died, already split, to be run before anything else. A member that is
    /// taken out leaves a gap; none has one at its end.
    reruns: BTreeMap<Turn, Vec<Option<Ticket>>>,
    next_turn: u64,
    places: FxHashMap<RequestId, Place>,
    deadlines: BTreeSet<(Time, RequestId)>,
    by_lane: [usize; 2],
}

/// A batch to run, and the requests that were found to be out of time while it was formed.
#[derive(Debug, Default)]
pub(crate) struct Formed {
    pub(crate) batch: Vec<Ticket>,
    pub(crate) expired: Vec<RequestId>,
}

impl Queue {
    pub(crate) fn new(config: Arc<PoolConfig>) -> Self {
        Self { config, ..Self::default() }
    }

    pub(crate) fn len(&self) -> usize {
        self.places.len()
    }

    /// A rerun could run now.
    pub(crate) fn has_reruns(&self, now: Time) -> bool {
        self.reruns.first_key_value().is_some_and(|((from, _), _)| *from <= now)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Number of requests that could run now.
    pub(crate) fn ready(&self, now: Time) -> usize {
        let later = self.reruns.range((now, u64::MAX)..).flat_map(|(_, batch)| batch.iter().flatten());
        self.len() - later.count()
    }

    /// Something could run now.
    pub(crate) fn is_ready(&self, now: Time) -> bool {
        !self.waiting.is_empty() || self.has_reruns(now)
    }

    /// Requests by lane: interactive, batch.
    pub(crate) fn depths(&self) -> [usize; 2] {
        self.by_lane
    }

    /// Number of waiting requests of each tenant that has any, but for batches that are to be run again.
    pub(crate) fn by_tenant(&self) -> impl Iterator<Item = (Option<&Tenant>, usize)> {
        self.waiting.depths()
    }

    /// Lets a request wait.
    pub(crate) fn push(&mut self, ticket: Ticket, now: Time, aging: Duration) {
        let place = rank(&ticket, now, aging);
        let weight = self.config.tenants.weight_of(ticket.tenant.as_ref());
        self.enter(&ticket, Place::Waiting(ticket.tenant.clone(), place));
        self.waiting.push(place, weight, ticket);
    }

    pub(crate) fn push_rerun(&mut self, batch: Vec<Ticket>) {
        self.push_rerun_from(Time::ZERO, batch);
    }

    /// As `push_rerun`, but not before this moment.
    pub(crate) fn push_rerun_from(&mut self, from: Time, batch: Vec<Ticket>) {
        if batch.is_empty() {
            return;
        }
        self.next_turn += 1;
        let turn = (from, self.next_turn);
        for (index, ticket) in batch.iter().enumerate() {
            self.enter(ticket, Place::Rerun(turn, index));
        }
        self.reruns.insert(turn, batch.into_iter().map(Some).collect());
    }

    fn enter(&mut self, ticket: &Ticket, place: Place) {
        self.by_lane[ticket.lane as usize] += 1;
        self.places.insert(ticket.request, place);
        self.deadlines.insert((ticket.deadline, ticket.request));
    }

    /// Forgets the place of a request that was taken out.
    fn leave(&mut self, ticket: &Ticket) {
        self.by_lane[ticket.lane as usize] -= 1;
        self.places.remove(&ticket.request);
        self.deadlines.remove(&(ticket.deadline, ticket.request));
    }

    /// Takes out a request; false if it is not waiting here.
    pub(crate) fn remove(&mut self, request: RequestId) -> bool {
        let ticket = match self.places.get(&request).cloned() {
            Some(Place::Waiting(tenant, rank)) => self.waiting.remove(&tenant, rank),
            Some(Place::Rerun(turn, index)) => self.take_rerun(turn, index),
            None => None,
        };
        ticket.inspect(|ticket| self.leave(ticket)).is_some()
    }

    fn take_rerun(&mut self, turn: Turn, index: usize) -> Option<Ticket> {
        let batch = self.reruns.get_mut(&turn)?;
        let ticket = batch.get_mut(index)?.take();
        while batch.pop_if(|last| last.is_none()).is_some() {}
        if batch.is_empty() {
            self.reruns.remove(&turn);
        }
        ticket
    }

    /// Empties the queue.
    pub(crate) fn take_all(&mut self) -> Vec<Ticket> {
        let reruns = std::mem::take(&mut self.reruns).into_values().flatten().flatten();
        let all = reruns.chain(self.waiting.take_all()).collect();
        self.places.clear();
        self.deadlines.clear();
        self.by_lane = [0; 2];
        all
    }

    /// Takes out what is out of time.
    pub(crate) fn take_expired(&mut self, now: Time) -> Vec<RequestId> {
        let mut expired = Vec::new();
        while let Some((deadline, request)) = self.deadlines.first().copied()
            && deadline <= now
        {
            if !self.remove(request) {
                // Cannot happen: whatever has a deadline here waits here.
                self.deadlines.remove(&(deadline, request));
            }
            expired.push(request);
        }
        expired
    }

    /// The next deadline of a waiting request.
    pub(crate) fn next_deadline(&self) -> Option<Time> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }

    /// The next moment at which a rerun may run that may not yet.
    pub(crate) fn next_rerun(&self, now: Time) -> Option<Time> {
        self.reruns.range((now, u64::MAX)..).map(|((from, _), _)| *from).next()
    }

    /// The waiting requests in the order of service.
    pub(crate) fn order(&self) -> impl Iterator<Item = RequestId> {
        let mut waiting = self.waiting.in_turn();
        let waiting = std::iter::from_fn(move || {
            let next = waiting.next()?;
            waiting.serve(next.cost);
            Some(next)
        });
        self.reruns().chain(waiting).map(|ticket| ticket.request)
    }

    /// The requests that are to be run again.
    pub(crate) fn reruns(&self) -> impl Iterator<Item = &Ticket> {
        self.reruns.values().flatten().flatten()
    }

    /// Takes out the next batch: a rerun as it was split, or what `batching` picks. With the key of a batch
    /// that is running, takes out what may join it.
    pub(crate) fn form(&mut self, limits: BatchLimits, key: Option<BatchKey>, now: Time) -> Formed {
        let mut formed = Formed::default();
        while key.is_none()
            && formed.batch.is_empty()
            && self.has_reruns(now)
            && let Some((_, batch)) = self.reruns.pop_first()
        {
            for ticket in batch.into_iter().flatten() {
                self.leave(&ticket);
                match ticket.deadline <= now {
                    true => formed.expired.push(ticket.request),
                    false => formed.batch.push(ticket),
                }
            }
        }
        if formed.batch.is_empty() {
            self.form_fresh(limits, key, now, &mut formed);
        }
        formed
    }

    fn form_fresh(&mut self, limits: BatchLimits, joined: Option<BatchKey>, now: Time, formed: &mut Formed) {
        let picked = pick(self.waiting.in_turn(), limits, joined, now);
        picked.late.iter().for_each(|request| _ = self.remove(*request));
        formed.expired.extend(picked.late);
        if !picked.chosen.is_empty() {
            self.waiting.begin();
        }
        formed.batch.extend(picked.chosen.into_iter().filter_map(|request| self.serve(request)));
    }

    /// Takes out a request of a batch that is formed.
    fn serve(&mut self, request: RequestId) -> Option<Ticket> {
        let Some(Place::Waiting(tenant, rank)) = self.places.get(&request) else { return None };
        let ticket = self.waiting.serve(tenant, *rank, self.config.batch.cost)?;
        self.leave(&ticket);
        Some(ticket)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capability::Cost;
    use crate::id::{Lane, Priority};

    const AGING: Duration = Duration::from_secs(2);
    const LIMITS: BatchLimits = BatchLimits { requests: 8, cost: 100 };

    fn at(seconds: u64) -> Time {
        Time::after_start(Duration::from_secs(seconds))
    }

    fn ticket(request: u64) -> Ticket {
        Ticket::new(RequestId(request), Time::NEVER)
    }

    fn order(queue: &mut Queue) -> Vec<u64> {
        let one = BatchLimits { requests: 1, cost: 1 };
        std::iter::from_fn(|| queue.form(one, None, at(0)).batch.pop())
            .map(|ticket| ticket.request.0)
            .collect()
    }

    #[test]
    fn priority_goes_first_the_batch_lane_last_and_waiting_makes_up_for_both() {
        let mut queue = Queue::default();
        queue.push(Ticket { lane: Lane::Batch, ..ticket(1) }, at(0), AGING);
        queue.push(Ticket { priority: Priority::LOW, ..ticket(2) }, at(0), AGING);
        queue.push(ticket(3), at(0), AGING);
        queue.push(Ticket { priority: Priority::HIGH, ..ticket(4) }, at(1), AGING);
        // Five levels of two seconds: a batch request of 0 s runs before an interactive one of 11 s.
        queue.push(ticket(5), at(11), AGING);
        assert_eq!(order(&mut queue), [4, 3, 2, 1, 5]);
    }

    #[test]
    fn a_batch_keeps_to_its_key_its_count_and_its_budget() {
        let mut queue = Queue::default();
        for request in 0..4 {
            let key = BatchKey(request % 2);
            queue.push(Ticket { cost: Cost(40), key, ..ticket(request) }, at(0), AGING);
        }
        queue.push(Ticket { cost: Cost(40), ..ticket(4) }, at(0), AGING);
        let requests =
            |formed: Formed| formed.batch.iter().map(|ticket| ticket.request.0).collect::<Vec<_>>();
        assert_eq!(requests(queue.form(LIMITS, None, at(0))), [0, 2], "a third of 40 is beyond 100");
        assert!(
            requests(queue.form(LIMITS, Some(BatchKey(0)), at(0))).is_empty(),
            "1 and 3 were there before"
        );
        assert_eq!(requests(queue.form(LIMITS, Some(BatchKey(1)), at(0))), [1, 3], "joins key 1");
        assert_eq!(requests(queue.form(LIMITS, Some(BatchKey(0)), at(0))), [4], "joins key 0");
        assert!(queue.is_empty());
    }

    #[test]
    fn one_request_beyond_the_budget_runs_alone() {
        let mut queue = Queue::default();
        queue.push(Ticket { cost: Cost(1000), ..ticket(1) }, at(0), AGING);
        queue.push(ticket(2), at(0), AGING);
        assert_eq!(queue.form(LIMITS, None, at(0)).batch.len(), 1);
        assert_eq!(queue.depths(), [1, 0]);
    }

    #[test]
    fn requests_out_of_time_are_left_out() {
        let mut queue = Queue::default();
        queue.push(Ticket { deadline: at(5), ..ticket(1) }, at(0), AGING);
        queue.push(ticket(2), at(0), AGING);
        queue.push_rerun(vec![Ticket { deadline: at(5), ..ticket(3) }]);
        let formed = queue.form(LIMITS, None, at(5));
        assert_eq!(formed.expired, [RequestId(3), RequestId(1)]);
        assert_eq!(formed.batch.len(), 1);
        assert_eq!((queue.len(), queue.depths()), (0, [0, 0]));
    }

    #[test]
    fn reruns_go_first_and_as_they_were_split() {
        let mut queue = Queue::default();
        queue.push(ticket(1), at(0), AGING);
        queue.push_rerun(vec![ticket(2)]);
        queue.push_rerun(vec![ticket(3), ticket(4)]);
        let sizes: Vec<usize> = (0..3).map(|_| queue.form(LIMITS, None, at(0)).batch.len()).collect();
        assert_eq!(sizes, [1, 2, 1]);
    }

    #[test]
    fn those_that_have_to_wait_are_not_ready() {
        let mut queue = Queue::default();
        queue.push(ticket(1), at(0), AGING);
        queue.push_rerun_from(at(2), vec![ticket(2), ticket(3)]);
        assert_eq!((queue.len(), queue.ready(at(1)), queue.ready(at(2))), (3, 1, 3));
    }

    #[test]
    fn a_rerun_that_has_to_wait_holds_up_nobody() {
        let mut queue = Queue::default();
        queue.push_rerun_from(at(2), vec![ticket(1)]);
        assert!(!queue.is_ready(at(1)) && queue.form(LIMITS, None, at(1)).batch.is_empty());
        queue.push(ticket(2), at(1), AGING);
        assert_eq!(queue.form(LIMITS, None, at(1)).batch[0].request, RequestId(2));
        assert_eq!(queue.next_rerun(at(1)), Some(at(2)));
        assert!(queue.is_ready(at(2)) && queue.next_rerun(at(2)).is_none());
        assert_eq!(queue.form(LIMITS, None, at(2)).batch[0].request, RequestId(1));
    }

    #[test]
    fn a_request_can_be_taken_out_wherever_it_waits() {
        let mut queue = Queue::default();
        queue.push(ticket(1), at(0), AGING);
        queue.push_rerun(vec![ticket(2), ticket(3)]);
        assert!(queue.remove(RequestId(3)) && queue.remove(RequestId(1)));
        assert!(!queue.remove(RequestId(1)));
        assert_eq!(queue.len(), 1);
        assert!(queue.remove(RequestId(2)));
        assert!(!queue.is_ready(at(0)) && !queue.has_reruns(at(0)), "nothing is left of its batch");
    }
}
