//! The simulated world: virtual time, and the events to come.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use fastrand::Rng;

use super::coverage::{Coverage, Fault};
use super::line::Line;
use super::scenario::Scenario;
use super::state::{Call, Order, Pool, Request, Weights};
use super::{Plant, Report};
use crate::id::{Bytes, Device, ModelKey, Time, WorkerId};
use crate::maintenance::eviction::Offer;
use crate::maintenance::room::{LoadQueue, RoomInput};
use crate::memory::Ledger;
use crate::scheduler::{CallId, Effect, Input};

/// More events than any history of this size can need.
const MOST_EVENTS: u64 = 100_000;

/// A message about a worker to its pool, which makes an input of it when it arrives.
#[derive(Debug)]
pub(super) enum Word {
    /// A report of the thread.
    Report(Input),
    /// The supervision event of the actor; the weights come along if its thread panicked.
    Crashed { weights: Option<usize> },
}

#[derive(Debug)]
pub(super) enum Event {
    /// A message to a pool that is about no worker.
    ToPool {
        pool: usize,
        input: Input,
    },
    /// A message to a pool from one of its workers.
    FromWorker {
        pool: usize,
        worker: WorkerId,
        word: Word,
    },
    /// An order to a worker's thread.
    ToWorker {
        pool: usize,
        worker: WorkerId,
        order: Order,
    },
    /// A thread comes to the end of what it is doing.
    Step {
        pool: usize,
        worker: WorkerId,
        generation: u32,
    },
    /// A continuous run is done with one of its requests.
    Item {
        pool: usize,
        worker: WorkerId,
        generation: u32,
        request: usize,
    },
    ThreadEnds {
        pool: usize,
        worker: WorkerId,
    },
    ToLoadQueue(RoomInput),
    /// Maintenance's answer to an ask; the lease comes along with a grant.
    Room {
        pool: usize,
        worker: WorkerId,
        answer: Result<(Device, Bytes), Input>,
    },
    Relieve {
        device: Device,
    },
    CacheReturns {
        device: Device,
        bytes: Bytes,
    },
    AskOffers {
        pool: usize,
    },
    /// A pool's answer to that: what maintenance is told, and the truth, if that is another.
    Offers {
        pool: usize,
        offers: Vec<Offer>,
        truth: Option<Vec<Offer>>,
    },
    PoolReturns {
        pool: usize,
    },
    DeskAlarm,
    Tick {
        pool: usize,
    },
    CooldownAlarm {
        pool: usize,
    },
    CooldownDue {
        pool: usize,
    },
    Interval,
    Arrive,
    CallerGoes {
        request: usize,
    },
    CallIsLeft {
        pool: usize,
        key: ModelKey,
        call: CallId,
    },
    Command,
    ShutDown,
    DrainedBy {
        pool: usize,
    },
    Close,
}

/// The invariant that does not hold, and what was seen.
pub(super) type Broken = (&'static str, String);

pub(super) struct World {
    pub(super) now: Time,
    heap: BinaryHeap<Reverse<(Time, u64, usize)>>,
    slots: Vec<Option<Event>>,
    free_slots: Vec<usize>,
    sequence: u64,
    pub(super) random: Rng,
    /// Decides about tenants, so that all else in a history is as it is without them.
    pub(super) apart: Rng,
    pub(super) scenario: Scenario,
    pub(super) pools: Vec<Pool>,
    pub(super) requests: Vec<Request>,
    pub(super) ledgers: BTreeMap<Device, Ledger>,
    /// Bytes held, counted beside the ledgers.
    pub(super) held: BTreeMap<Device, Bytes>,
    pub(super) weights: Vec<Weights>,
    pub(super) load_queue: LoadQueue,
    pub(super) desk_at: Time,
    /// The load queue as the checks see it.
    pub(super) line: Line,
    pub(super) arrivals_left: u32,
    /// Calls of preload and unload that have not returned.
    pub(super) calls: BTreeMap<u64, Call>,
    pub(super) next_call: u64,
    pub(super) closing: bool,
    pub(super) plant: Option<Plant>,
    pub(super) coverage: Coverage,
    pub(super) broken: Option<Broken>,
    pub(super) trace: Option<Vec<String>>,
    pub(super) effects: Vec<Effect>,
    /// Inputs that follow from effects at once, as in the shell.
    pub(super) follow: VecDeque<(usize, Input)>,
    /// Requests that came back from a worker in the input at hand.
    pub(super) came_back: Vec<usize>,
}

impl World {
    pub(super) fn new(seed: u64, plant: Option<Plant>, traced: bool) -> Self {
        let (mut random, mut apart) = (Rng::with_seed(seed), Rng::with_seed(!seed));
        let scenario = Scenario::new(&mut random, &mut apart);
        let interval = scenario.interval;
        let names = ["red", "green", "blue"];
        let pools: Vec<Pool> = scenario
            .pools
            .iter()
            .zip(names)
            .map(|(plans, name)| Pool::new(name, interval, seed, plans))
            .collect();
        let ledgers: BTreeMap<Device, Ledger> =
            scenario.limits.iter().map(|(device, limit)| (device.clone(), Ledger::new(*limit))).collect();
        Self {
            now: Time::ZERO,
            heap: BinaryHeap::new(),
            slots: Vec::new(),
            free_slots: Vec::new(),
            sequence: 0,
            load_queue: LoadQueue::new(pools.len()),
            desk_at: Time::NEVER,
            line: Line::new(pools.len()),
            held: ledgers.keys().map(|device| (device.clone(), Bytes::ZERO)).collect(),
            ledgers,
            pools,
            requests: Vec::new(),
            weights: Vec::new(),
            arrivals_left: scenario.requests,
            scenario,
            random,
            apart,
            calls: BTreeMap::new(),
            next_call: 0,
            closing: false,
            plant,
            coverage: Coverage::default(),
            broken: None,
            trace: traced.then(Vec::new),
            effects: Vec::new(),
            follow: VecDeque::new(),
            came_back: Vec::new(),
        }
    }

    pub(super) fn run(&mut self) -> Result<Report, Broken> {
        self.declare_all();
        self.after(Duration::ZERO, Event::Arrive);
        let interval = self.scenario.interval;
        self.after(interval, Event::Interval);
        self.plan_commands();
        let mut events = 0;
        while let Some(Reverse((at, _, slot))) = self.heap.pop() {
            self.now = at;
            self.free_slots.push(slot);
            let Some(event) = self.slots[slot].take() else { continue };
            if self.trace.is_some() {
                let line = format!("{event:?}");
                self.note(|| line);
            }
            if catch_unwind(AssertUnwindSafe(|| self.happen(event))).is_err() {
                self.break_invariant("no panic", || "see standard error".to_owned());
            }
            events += 1;
            if events > MOST_EVENTS {
                self.break_invariant("comes to rest", || "too many events".to_owned());
            }
            if let Some(broken) = self.broken.take() {
                return Err(broken);
            }
        }
        self.check_rest();
        match self.broken.take() {
            Some(broken) => Err(broken),
            None => Ok(Report { events, coverage: std::mem::take(&mut self.coverage) }),
        }
    }

    pub(super) fn take_trace(&mut self) -> Vec<String> {
        self.trace.take().unwrap_or_default()
    }

    /// Writes a line of the trace, if one is kept.
    pub(super) fn note(&mut self, line: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            trace.push(format!("{:>14.6}  {}", self.now.since(Time::ZERO).as_secs_f64(), line()));
        }
    }

    pub(super) fn at(&mut self, at: Time, event: Event) {
        let slot = self.free_slots.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        self.slots[slot] = Some(event);
        self.sequence += 1;
        self.heap.push(Reverse((at.max(self.now), self.sequence, slot)));
    }

    pub(super) fn after(&mut self, wait: Duration, event: Event) {
        self.at(self.now + wait, event);
    }

    /// Takes events out of the future.
    pub(super) fn take_events(&mut self, goes: impl Fn(&Event) -> bool) -> Vec<Event> {
        let events = self.slots.iter_mut();
        events.filter_map(|event| event.take_if(|event| goes(event))).collect()
    }

    /// A fault that happens as often as the scenario says, and not once the history is being brought to its
    /// end.
    pub(super) fn fault(&mut self, fault: Fault) -> bool {
        let rate = self.scenario.rate(fault);
        let happens = !self.closing && rate > 0.0 && self.random.f64() < rate;
        if happens {
            self.coverage.fault(fault);
        }
        happens
    }

    /// Returns true if the plant is to be carried out now: once in a history.
    pub(super) fn planted(&mut self, plant: Plant) -> bool {
        let happens = self.plant == Some(plant) && self.random.u8(..8) == 0;
        if happens {
            self.plant = None;
            self.note(|| format!("** {}", plant.name()));
        }
        happens
    }

    fn delay(&mut self) -> Duration {
        let most = self.scenario.delay.as_micros() as u64;
        Duration::from_micros(if most == 0 { 0 } else { self.random.u64(0..most) })
    }

    /// Messages between the same two parties arrive in the order in which they were sent.
    pub(super) fn send(&mut self, last: Time) -> Time {
        let arrives = self.now + self.delay();
        arrives.max(last)
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::ToPool { pool, input } => self.feed(pool, input),
            Event::FromWorker { pool, worker, word } => self.hear(pool, worker, word),
            Event::ToWorker { pool, worker, order } => self.ordered(pool, worker, order),
            Event::Step { pool, worker, generation } => self.step(pool, worker, generation),
            Event::Item { pool, worker, generation, request } => {
                self.item_done(pool, worker, generation, request);
            }
            Event::ThreadEnds { pool, worker } => self.thread_ends(pool, worker),
            Event::ToLoadQueue(input) => self.load_queue(input),
            Event::Room { pool, worker, answer } => self.room_answered(pool, worker, answer),
            Event::Relieve { device } => self.relieve(&device),
            Event::CacheReturns { device, bytes } => self.cache_returns(&device, bytes),
            Event::AskOffers { pool } => self.offer(pool),
            Event::Offers { pool, offers, truth } => self.offered(pool, offers, truth),
            Event::PoolReturns { pool } => self.pool_returns(pool),
            Event::DeskAlarm => {
                self.desk_at = Time::NEVER;
                self.load_queue(RoomInput::Tick);
            }
            Event::Tick { pool } => self.tick(pool),
            Event::CooldownAlarm { pool } => {
                let at = self.send(self.pools[pool].from_maintenance);
                self.pools[pool].from_maintenance = at;
                self.at(at, Event::CooldownDue { pool });
            }
            Event::CooldownDue { pool } => {
                self.pools[pool].cooldown_at = Time::NEVER;
                self.feed(pool, Input::Cooldown);
            }
            Event::Interval => self.interval(),
            Event::Arrive => self.arrive(),
            Event::CallerGoes { request } => self.caller_goes(request),
            Event::CallIsLeft { pool, key, call } => self.call_is_left(pool, key, call),
            Event::Command => self.command(),
            Event::ShutDown => self.shut_down(),
            Event::DrainedBy { pool } => {
                self.check(
                    "drained by the deadline",
                    |world| world.pools[pool].drained,
                    || format!("pool {pool}"),
                );
            }
            Event::Close => self.close(),
        }
    }

    fn tick(&mut self, pool: usize) {
        let now = self.now;
        let Pool { ticks, tick_at, .. } = &mut self.pools[pool];
        if *tick_at == now {
            *tick_at = Time::NEVER;
            *ticks = if ticks.0 == now { (now, ticks.1 + 1) } else { (now, 1) };
        } else if self.random.u8(..4) > 0 {
            // An alarm that was set to another moment; now and then it rings nevertheless.
            return;
        }
        self.feed(pool, Input::Tick);
    }
}
