//! A request as the scheduler sees it, and its rank.
//!
//! The rank is fixed when the request arrives: its arrival, moved earlier by its priority and later by the
//! batch lane, in units of the aging time. So waiting raises a request against every later one, nothing
//! starves, and nothing is ever re-sorted.

use std::time::Duration;

use crate::capability::{BatchKey, Cost};
use crate::id::{Lane, Priority, RequestId, Tenant, Time};

/// Levels of priority by which the batch lane stands back behind the interactive one.
const BATCH_LANE_LEVELS: i64 = 5;

/// A request as the scheduler sees it.
///
/// ```
/// use model_actors::scheduler::Ticket;
/// use model_actors::{RequestId, Time};
/// let ticket = Ticket::new(RequestId(1), Time::NEVER);
/// assert_eq!(ticket.deaths, 0);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ticket {
    /// The request.
    pub request: RequestId,
    /// Its lane.
    pub lane: Lane,
    /// Its priority.
    pub priority: Priority,
    /// Whoever it is made for.
    pub tenant: Option<Tenant>,
    /// The moment from which it is worth nothing, unless output has begun.
    pub deadline: Time,
    /// The moment at which all of its output has to be out.
    pub ends_at: Time,
    /// Cost against the batch's limit.
    pub cost: Cost,
    /// Requests of the same key may share a batch.
    pub key: BatchKey,
    /// Workers that died, or got stuck, running it.
    pub deaths: u32,
    /// Number of the first of those deaths among the failures of the model, if this request may be the cause.
    pub suspect_of: Option<u64>,
    /// It ran out of memory alone and is being tried a second time.
    pub starved: bool,
    /// The limit on the requests of a batch, before this one ran out of memory beside others.
    pub limit_before: Option<usize>,
    /// It failed beside others and runs again by itself, so that the fault can only be its own.
    pub alone: bool,
    /// It ran out of time while it was running, and its caller has been told, unless a first output met the
    /// deadline.
    pub expired: bool,
    /// The time for all of its output ran out while it was running, and its caller has been told.
    pub ended: bool,
}

impl Ticket {
    /// An interactive request of ordinary priority and cost 1, of no tenant.
    pub fn new(request: RequestId, deadline: Time) -> Self {
        Self {
            request,
            lane: Lane::Interactive,
            priority: Priority::default(),
            tenant: None,
            deadline,
            ends_at: Time::NEVER,
            cost: Cost(1),
            key: BatchKey(0),
            deaths: 0,
            suspect_of: None,
            starved: false,
            limit_before: None,
            alone: false,
            expired: false,
            ended: false,
        }
    }
}

impl Ticket {
    /// The next moment at which its time runs out while it is running.
    pub(crate) fn next_limit(&self) -> Option<Time> {
        match (self.expired, self.ended) {
            (_, true) => None,
            (true, false) => Some(self.ends_at),
            (false, false) => Some(self.deadline.min(self.ends_at)),
        }
    }
}

/// The order of service of one tenant's requests: a smaller rank runs earlier. Ties go by request number, which is the order of
/// acceptance.
pub(crate) type Rank = (i128, RequestId);

/// Ranks a request that arrives now; `aging` is one level of priority.
pub(crate) fn rank(ticket: &Ticket, now: Time, aging: Duration) -> Rank {
    let lane = match ticket.lane {
        Lane::Interactive => 0,
        Lane::Batch => BATCH_LANE_LEVELS,
    };
    // As in the rank itself, this cannot overflow.
    let step_back = i128::from(lane) * aging.as_nanos() as i128;
    (ticket.priority.rank(now, aging) + step_back, ticket.request)
}
