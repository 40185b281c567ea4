//! The queue of loads that wait for room, first come, first served on each device. A pure state machine: its inputs
//! are asks, the offers of the pools and bytes that came back; its effects grant, deny and evict. `eviction`
//! chooses the workers; the maintenance actor takes the leases and sends the messages.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::eviction::{EvictionPlan, Offer, PoolIndex, coming_back, plan};
use crate::id::{Bytes, Device, ModelKey, Time, WorkerId};
use crate::memory::Ledger;

/// A round of questions ends after this long with the answers that came, so that a pool that died holds up
/// nobody.
const ROUND: Duration = Duration::from_millis(100);
/// Time after which a load that waits is looked at again, if no bytes come back before.
const RETRY: Duration = Duration::from_millis(100);
/// Time beyond its moment that a load has for the bytes of workers that have been told to go: an idle one goes at
/// once, and one that takes longer hangs.
const LEAVING: Duration = Duration::from_secs(5);

/// An ask, named by the worker that the room is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RoomAsk {
    /// The worker's pool.
    pub pool: PoolIndex,
    /// The worker.
    pub worker: WorkerId,
}

/// An input of the queue.
#[derive(Debug, Clone)]
#[allow(missing_docs, reason = "the fields are named by their types, which are documented")]
pub enum RoomInput {
    /// Room is wanted by `until`. With `until` now or past, what is free or held by idle workers is given, or
    /// nothing: the ask waits for no other, and for no worker that is in use. The asking model's own workers are
    /// never evicted for it.
    Ask { ask: RoomAsk, model: ModelKey, device: Device, needed: Bytes, until: Time },
    /// It is not wanted any more.
    Withdraw { ask: RoomAsk },
    /// A pool has ended, and all that it asked for with it.
    PoolEnded { pool: PoolIndex },
    /// A pool's answer to [`RoomEffect::Poll`].
    Offers { pool: PoolIndex, offers: Vec<Offer> },
    /// Bytes came back somewhere.
    Released,
    /// The lease of a grant was taken.
    Granted { ask: RoomAsk },
    /// Somebody was faster: the lease of a grant could not be taken.
    GrantFailed { ask: RoomAsk },
    /// The moment that [`LoadQueue::alarm`] named has come.
    Tick,
}

/// An effect that the queue asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields are named by their types, which are documented")]
pub enum RoomEffect {
    /// Ask every pool what it offers.
    Poll,
    /// Have caches give back what is missing for so much to be free, the least worth first, or all that they hold.
    Reclaim { device: Device, room: Bytes },
    /// Have a pool let an idle worker go.
    Evict { pool: PoolIndex, worker: WorkerId },
    /// Take the lease; answered with `Granted` or `GrantFailed`.
    Grant { ask: RoomAsk, device: Device, needed: Bytes },
    /// There is no room.
    Deny { ask: RoomAsk, device: Device, needed: Bytes },
}

#[derive(Debug)]
struct Waiting {
    ask: RoomAsk,
    model: ModelKey,
    needed: Bytes,
    until: Time,
    patience: Patience,
    state: State,
    /// Workers have been told to go, and caches to shrink, whose bytes are enough for it.
    coming: bool,
}

/// Patience of a load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Patience {
    /// For its moment, whoever holds the memory.
    UntilItsMoment,
    /// For one look at what is idle, and for that to go.
    IdleWorkers,
}

impl Waiting {
    /// The moment at which it is denied.
    fn ends(&self) -> Time {
        if self.coming { self.until + LEAVING } else { self.until }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    // ## Waits <=> Granting
    /// No room yet.
    Waits,
    /// The lease is being taken: its bytes are spoken for, whether the ledger shows them already or not.
    Granting,
}

/// A question to all pools that is being answered.
#[derive(Debug)]
struct Round {
    answers: Vec<Option<Vec<Offer>>>,
    ends: Time,
}

/// Queue of loads that wait for memory, as a pure state machine.
#[derive(Debug)]
pub struct LoadQueue {
    pools: usize,
    lines: BTreeMap<Device, VecDeque<Waiting>>,
    round: Option<Round>,
    /// The next round, if one is needed and none is under way.
    poll_at: Time,
}

impl LoadQueue {
    /// An empty queue.
    pub fn new(pools: usize) -> Self {
        Self { pools, lines: BTreeMap::new(), round: None, poll_at: Time::ZERO }
    }

    /// Takes one input at a moment and appends what follows from it.
    pub fn handle(
        &mut self,
        now: Time,
        input: RoomInput,
        ledgers: &BTreeMap<Device, Ledger>,
        effects: &mut Vec<RoomEffect>,
    ) {
        match input {
            RoomInput::Ask { ask, model, device, needed, until } => {
                self.drop_where(|waiting| waiting.ask == ask);
                let line = self.lines.entry(device).or_default();
                let is_first = line.iter().all(|before| before.state != State::Waits);
                if is_first {
                    self.poll_at = now;
                }
                // One that does not wait has a round of questions, unless another is before it.
                let (patience, until) = match until > now {
                    true => (Patience::UntilItsMoment, until),
                    false => (Patience::IdleWorkers, if is_first { now + ROUND } else { now }),
                };
                let state = State::Waits;
                line.push_back(Waiting { ask, model, needed, until, patience, state, coming: false });
            }
            RoomInput::Withdraw { ask } => self.drop_where(|waiting| waiting.ask == ask),
            RoomInput::PoolEnded { pool } => self.drop_where(|waiting| waiting.ask.pool == pool),
            RoomInput::Offers { pool, offers } => self.take_offers(pool, offers),
            RoomInput::Released => self.poll_at = now,
            RoomInput::Granted { ask } => {
                self.drop_where(|waiting| waiting.ask == ask && waiting.state == State::Granting);
            }
            RoomInput::GrantFailed { ask } => {
                for waiting in self.lines.values_mut().flatten().filter(|waiting| waiting.ask == ask) {
                    waiting.state = State::Waits;
                }
                self.poll_at = now;
            }
            RoomInput::Tick => {}
        }
        self.grant(ledgers, effects);
        self.reclaim(ledgers, effects);
        self.decide(now, ledgers, effects);
        if self.deny_where(|waiting| waiting.ends() <= now, effects) {
            // The first in a line may have gone without room: the next is granted or looked at without delay.
            self.grant(ledgers, effects);
            self.poll_at = now;
        }
        self.poll(now, effects);
    }

    /// The moment at which [`RoomInput::Tick`] is wanted at the latest.
    pub fn alarm(&self) -> Time {
        let waits = |waiting: &&Waiting| waiting.state == State::Waits;
        let ends = self.lines.values().flatten().filter(waits).map(Waiting::ends);
        let next = match &self.round {
            Some(round) => round.ends,
            None => self.poll_at,
        };
        // With nobody waiting there is nothing to wake up for.
        ends.min().map_or(Time::NEVER, |end| end.min(next))
    }

    /// Number of loads that wait for room on a device.
    pub fn waiting(&self, device: &Device) -> usize {
        self.lines.get(device).map_or(0, VecDeque::len)
    }

    /// True if nobody waits and no grant is under way.
    pub fn is_empty(&self) -> bool {
        self.lines.values().all(VecDeque::is_empty)
    }

    /// Grants from the front of each line for as long as it fits.
    fn grant(&mut self, ledgers: &BTreeMap<Device, Ledger>, effects: &mut Vec<RoomEffect>) {
        for (device, line) in &mut self.lines {
            let Some(ledger) = ledgers.get(device) else { continue };
            let mut free = ledger_less_promised(*ledger, line).free();
            for waiting in line.iter_mut().filter(|waiting| waiting.state == State::Waits) {
                if waiting.needed > free {
                    break;
                }
                free -= waiting.needed;
                waiting.state = State::Granting;
                let (ask, needed) = (waiting.ask, waiting.needed);
                effects.push(RoomEffect::Grant { ask, device: device.clone(), needed });
            }
        }
    }

    /// Has caches make room for each line's first, before any worker is asked for.
    fn reclaim(&self, ledgers: &BTreeMap<Device, Ledger>, effects: &mut Vec<RoomEffect>) {
        for (device, line) in &self.lines {
            let Some(ledger) = ledgers.get(device).filter(|ledger| ledger.cached() > Bytes::ZERO) else {
                continue;
            };
            let Some(first) = line.iter().find(|waiting| waiting.state == State::Waits) else { continue };
            let free = ledger_less_promised(*ledger, line).free();
            if first.needed > free && first.needed <= ledger.limit() {
                let room = first.needed + (ledger.free() - free);
                effects.push(RoomEffect::Reclaim { device: device.clone(), room });
            }
        }
    }

    /// Once the offers are in, each line's first gets its room made, waits on, or ends because it never fits.
    fn decide(&mut self, now: Time, ledgers: &BTreeMap<Device, Ledger>, effects: &mut Vec<RoomEffect>) {
        let over = |round: &mut Round| round.ends <= now || round.answers.iter().all(Option::is_some);
        let Some(round) = self.round.take_if(over) else { return };
        let mut offers: Vec<Offer> = round.answers.into_iter().flatten().flatten().collect();
        self.poll_at = now + RETRY;
        for (device, line) in &mut self.lines {
            // A memory that is not budgeted has no room.
            let ledger = ledgers.get(device).copied().unwrap_or(Ledger::new(Bytes::ZERO));
            let ledger = ledger_less_promised(ledger, line);
            let Some(first) = line.iter_mut().find(|waiting| waiting.state == State::Waits) else { continue };
            keep_own_workers(first, &mut offers);
            let plan = plan(first.needed, ledger, device, &offers);
            first.coming = match plan {
                EvictionPlan::Evict(_) => true,
                // `grant` has just been tried, so `Fits` cannot come up; if it did, the retry would see to it.
                EvictionPlan::Wait | EvictionPlan::Fits => {
                    first.needed <= ledger.free() + coming_back(device, &offers) + ledger.cached()
                }
                EvictionPlan::Never => false,
            };
            if plan == EvictionPlan::Never || (!first.coming && first.patience == Patience::IdleWorkers) {
                first.until = now;
            }
            if let EvictionPlan::Evict(workers) = plan {
                let evict = workers.into_iter().map(|(pool, worker)| RoomEffect::Evict { pool, worker });
                effects.extend(evict);
            }
        }
    }

    fn poll(&mut self, now: Time, effects: &mut Vec<RoomEffect>) {
        let waited_for = self.lines.values().flatten().any(|waiting| waiting.state == State::Waits);
        if waited_for && self.round.is_none() && self.poll_at <= now {
            self.round = Some(Round { answers: vec![None; self.pools], ends: now + ROUND });
            effects.push(RoomEffect::Poll);
        }
    }

    /// Takes a pool's offers, unless their round has ended: then they are out of date.
    fn take_offers(&mut self, pool: PoolIndex, offers: Vec<Offer>) {
        if let Some(answer) = self.round.as_mut().and_then(|round| round.answers.get_mut(pool.0)) {
            *answer = Some(offers);
        }
    }

    fn drop_where(&mut self, goes: impl Fn(&Waiting) -> bool) {
        for line in self.lines.values_mut() {
            line.retain(|waiting| !goes(waiting));
        }
    }

    /// True if somebody was denied.
    fn deny_where(&mut self, goes: impl Fn(&Waiting) -> bool, effects: &mut Vec<RoomEffect>) -> bool {
        let before = effects.len();
        for (device, line) in &mut self.lines {
            line.retain(|waiting| {
                let denied = waiting.state == State::Waits && goes(waiting);
                if denied {
                    let (ask, needed) = (waiting.ask, waiting.needed);
                    effects.push(RoomEffect::Deny { ask, device: device.clone(), needed });
                }
                !denied
            });
        }
        effects.len() > before
    }
}

/// A model does not make room for itself by giving up its own workers.
fn keep_own_workers(asking: &Waiting, offers: &mut [Offer]) {
    for offer in offers {
        if offer.pool == asking.ask.pool && offer.model == asking.model {
            offer.pinned = true;
        }
    }
}

/// The ledger as it will be once the leases of all grants are taken. Some may be in it already, so this errs
/// on the side of too little room, for a moment.
fn ledger_less_promised(mut ledger: Ledger, line: &VecDeque<Waiting>) -> Ledger {
    let granting = line.iter().filter(|waiting| waiting.state == State::Granting);
    let promised: Bytes = granting.map(|waiting| waiting.needed).sum();
    // Cannot fail: no more than what is free.
    let _ = ledger.charge(promised.min(ledger.free()));
    ledger
}
