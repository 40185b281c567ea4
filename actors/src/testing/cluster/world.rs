//! The clock and the events: requests, faults, deaths, and at last healing, after which nothing may be left.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::time::Duration;

use super::ClusterCounts;
use super::checks::{Broken, Ledger};
use super::models::{Memory, SimModel};
use super::network::{Fate, Faults, Index, Network, Packet, pair};
use super::node::{Order, SimNode, Surroundings};
use super::plant::ClusterPlant;
use crate::cluster::router::{Boot, CallKey, CallKind, Input, Request, RequestKey, Room, Run, Wanted};
use crate::id::{Lane, Time};

/// The moments from which no fault happens any more, and at which nothing may be left.
const HEALED: Duration = Duration::from_secs(12);
const OVER: Duration = Duration::from_secs(32);
/// Number of further nodes that a history has beyond this many.
const LEAST_NODES: usize = 2;
const MOST_NODES: usize = 4;

#[derive(Debug, Clone)]
pub(super) enum Event {
    Arrive {
        to: Boot,
        from: Boot,
        packet: Packet,
    },
    Tick(Boot),
    Step(Boot, Boot, Run),
    Submit,
    Cancel(Boot, RequestKey),
    Read(Boot, RequestKey),
    EndHere(Boot, RequestKey),
    Call,
    AnswerCall(Boot, Boot, CallKey),
    CallerGone(Boot, CallKey),
    Cool,
    Connect(Index, Index),
    /// A node notices that its connection to another is gone, unless there is a newer one.
    Notice(Index, Boot, Boot, u64),
    Fault,
    /// A node that has taken leave goes, once its guests have.
    Depart(Boot),
    Unblock(Index, Index),
    Rebirth(Index),
    Heal,
}

pub(super) struct World {
    pub(super) random: fastrand::Rng,
    pub(super) now: Time,
    /// Events by time and number.
    pub(super) queue: BinaryHeap<Reverse<(Time, u64)>>,
    pub(super) events: BTreeMap<u64, Event>,
    pub(super) next_event: u64,
    pub(super) nodes: Vec<SimNode>,
    pub(super) network: Network,
    pub(super) ledger: Ledger,
    pub(super) plant: Option<ClusterPlant>,
    pub(super) counts: ClusterCounts,
    pub(super) trace: Option<Vec<String>>,
    pub(super) next_boot: u64,
    pub(super) next_key: u64,
    /// The moment of each node's next tick.
    pub(super) ticks: BTreeMap<Boot, Time>,
    pub(super) healed: bool,
}

impl World {
    pub(super) fn new(seed: u64, plant: Option<ClusterPlant>, traced: bool) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let count = random.usize(LEAST_NODES..=MOST_NODES);
        let faulty = |random: &mut fastrand::Rng| if random.bool() { random.u32(..40) } else { 0 };
        let faults =
            Faults { lost: faulty(&mut random), late: faulty(&mut random), doubled: faulty(&mut random) };
        let mut world = Self {
            random,
            now: Time::ZERO,
            queue: BinaryHeap::new(),
            events: BTreeMap::new(),
            next_event: 0,
            nodes: Vec::new(),
            network: Network { faults, ..Network::default() },
            ledger: Ledger::default(),
            plant,
            counts: ClusterCounts::new(),
            trace: traced.then(Vec::new),
            next_boot: 1,
            next_key: 1,
            ticks: BTreeMap::new(),
            healed: false,
        };
        for index in 0..count {
            let node = world.birth(index);
            world.nodes.push(node);
        }
        for a in 0..count {
            for b in a + 1..count {
                world.after(1, Event::Connect(a, b));
            }
        }
        world.after(5, Event::Submit);
        world.after(400, Event::Call);
        world.after(500, Event::Cool);
        world.after(300, Event::Fault);
        world.schedule(Time::ZERO + HEALED, Event::Heal);
        world
    }

    pub(super) fn into_counts(self) -> (ClusterCounts, Vec<String>) {
        (self.counts, self.trace.unwrap_or_default())
    }

    pub(super) fn birth(&mut self, index: Index) -> SimNode {
        let boot = Boot(self.next_boot);
        self.next_boot += 1;
        let named = [("a", "1"), ("b", "1"), ("a", "2")];
        let models = named.iter().enumerate().filter(|(which, _)| {
            // The third has the name of the first and other files; no node has both.
            match which {
                0 => index % 3 != 2,
                1 => self.random.bool(),
                _ => index % 3 == 2,
            }
        });
        let named: Vec<_> = models.map(|(_, named)| *named).collect();
        let room = Room { free: self.random.u64(..200), evictable: self.random.u64(..200) };
        let failed = [0, 0, 80][self.random.usize(..3)];
        // Not every node knows.
        let room = (index > 0).then_some(room);
        let models: Vec<SimModel> = named
            .into_iter()
            .map(|(model, digest)| SimModel {
                wanted: Wanted { model: model.into(), digest: digest.into() },
                capacity: [3, 1],
                memory: if index.is_multiple_of(2) { Memory::Resident } else { Memory::Cold },
                pinned: false,
                failed: if index == 1 { failed } else { 0 },
                room,
                unit: (index < 3).then(|| Duration::from_millis(1 + 9 * index as u64)),
            })
            .collect();
        SimNode::new(boot, models)
    }

    pub(super) fn schedule(&mut self, at: Time, event: Event) {
        self.queue.push(Reverse((at, self.next_event)));
        self.events.insert(self.next_event, event);
        self.next_event += 1;
    }

    pub(super) fn after(&mut self, millis: u64, event: Event) {
        self.schedule(self.now + Duration::from_millis(millis), event);
    }

    pub(super) fn soon(&mut self, millis: std::ops::Range<u64>, event: Event) {
        let millis = self.random.u64(millis);
        self.after(millis, event);
    }

    fn soon_after(&mut self, time: Duration, millis: std::ops::Range<u64>, event: Event) {
        let millis = self.random.u64(millis);
        self.schedule(self.now + time + Duration::from_millis(millis), event);
    }

    pub(super) fn count(&mut self, name: &'static str) {
        *self.counts.entry(name).or_default() += 1;
    }

    pub(super) fn index_of(&self, boot: Boot) -> Option<Index> {
        self.nodes.iter().position(|node| node.alive && node.boot == boot)
    }

    pub(super) fn run(&mut self) -> Result<(), Broken> {
        while let Some(Reverse((at, number))) = self.queue.pop() {
            if at > Time::ZERO + OVER {
                break;
            }
            self.now = at;
            let Some(event) = self.events.remove(&number) else { continue };
            *self.counts.entry("events").or_default() += 1;
            if let Some(trace) = &mut self.trace {
                trace.push(format!("{:?} {event:?}", at.since(Time::ZERO)));
            }
            self.happen(event)?;
            self.ledger.check_times(self.now)?;
        }
        self.check_healed()
    }

    fn check_healed(&self) -> Result<(), Broken> {
        self.ledger.check_end()?;
        for node in &self.nodes {
            let (asked, guests) = node.router.counts();
            let (ours, theirs) = node.router.open_calls();
            if ours + theirs + node.calls.len() > 0 {
                let detail =
                    format!("{:?}: {ours} and {theirs} calls, {} under way", node.boot, node.calls.len());
                return Err(("no call is left after healing", detail));
            }
            if asked + guests + node.jobs.len() > 0 {
                let detail =
                    format!("{:?}: {asked} asked, {guests} guests, {} jobs", node.boot, node.jobs.len());
                return Err(("nothing is left after healing", detail));
            }
            for model in &node.models {
                // What the others may have there, all together, is all of it, but for what is on its way.
                let offers = self.nodes.iter().filter_map(|other| {
                    let (_, offers) = other.router.peers().find(|(boot, _)| *boot == node.boot)?;
                    offers.iter().find(|offer| offer.wanted == model.wanted)
                });
                let told: u32 = offers.map(|offer| offer.slots[0]).sum();
                if told.abs_diff(model.capacity[0]) >= 3 {
                    let detail = format!("{told} slots of {model:?} of {:?} are told", node.boot);
                    return Err(("all slots are back after healing", detail));
                }
            }
        }
        Ok(())
    }

    fn happen(&mut self, event: Event) -> Result<(), Broken> {
        match event {
            Event::Arrive { to, from, packet } => {
                if let Some(index) = self.index_of(to) {
                    return self.at(index, |node, around| node.arrive(from, packet, around));
                }
            }
            Event::Tick(boot) => {
                self.ticks.remove(&boot);
                if let Some(index) = self.index_of(boot) {
                    return self.give(index, Input::Tick);
                }
            }
            Event::Step(at, from, run) => {
                if let Some(index) = self.index_of(at) {
                    return self.at(index, |node, around| node.guest_step(from, run, around));
                }
            }
            Event::Submit => return self.submit(),
            Event::Cancel(boot, key) => {
                let is_open = self.ledger.open_of(boot).next().is_some();
                if let Some(index) = self.index_of(boot).filter(|_| is_open) {
                    self.count("cancels");
                    self.ledger.close((boot, key));
                    return self.give(index, Input::Cancelled(key));
                }
            }
            Event::Read(boot, key) => {
                let more = self.random.u64(1..20);
                let read = self.ledger.read((boot, key), more);
                if let Some(index) = self.index_of(boot) {
                    return self.give(index, Input::Read(key, read));
                }
            }
            Event::EndHere(boot, key) => {
                if self.index_of(boot).is_some() {
                    return self.ledger.answer((boot, key), "here", self.now);
                }
            }
            Event::Call => return self.call(),
            Event::AnswerCall(at, from, call) => {
                if let Some(index) = self.index_of(at) {
                    return self.at(index, |node, around| node.do_call(from, call, around));
                }
            }
            Event::CallerGone(boot, key) => {
                if let Some(index) = self.index_of(boot)
                    && self.ledger.calls.close((boot, key))
                {
                    self.count("callers of calls gone");
                    return self.give(index, Input::CallerGone(key));
                }
            }
            Event::Cool if self.healed => {}
            Event::Cool => {
                self.soon(100..2000, Event::Cool);
                let index = self.random.usize(..self.nodes.len());
                if self.nodes[index].alive {
                    return self.at(index, SimNode::cool);
                }
            }
            Event::Connect(a, b) => return self.connect(a, b),
            Event::Notice(there, boot, gone, connection) => {
                if let Some(index) = self.index_of(boot)
                    && self.network.newest.get(&pair(index, there)) == Some(&connection)
                {
                    return self.give(index, Input::Unlinked(gone));
                }
            }
            Event::Fault => return self.fault(),
            Event::Depart(boot) => self.depart(boot),
            Event::Unblock(a, b) => drop(self.network.blocked.remove(&(a, b))),
            Event::Rebirth(index) => self.rebirth(index),
            Event::Heal => {
                self.healed = true;
                self.network.faults = Faults::default();
                self.network.blocked.clear();
                (0..self.nodes.len())
                    .filter(|index| !self.nodes[*index].alive)
                    .collect::<Vec<_>>()
                    .into_iter()
                    .for_each(|index| self.rebirth(index));
            }
        }
        Ok(())
    }

    fn give(&mut self, index: Index, input: Input) -> Result<(), Broken> {
        self.at(index, |node, around| node.step(input, around))
    }

    /// Has a node do something, and carries out its orders.
    pub(super) fn at(
        &mut self,
        index: Index,
        act: impl FnOnce(&mut SimNode, &mut Surroundings<'_>) -> Result<Vec<Order>, Broken>,
    ) -> Result<(), Broken> {
        let Self { nodes, ledger, random, plant, counts, now, .. } = self;
        let node = &mut nodes[index];
        let boot = node.boot;
        let mut around = Surroundings { ledger, random, plant: *plant, counts, now: *now };
        let orders = act(node, &mut around)?;
        let tick = node.router.next_tick();
        for order in orders {
            self.order(index, boot, order);
        }
        let tick = tick.max(self.now);
        let pending = self.ticks.get(&boot).copied().unwrap_or(Time::NEVER);
        if tick < pending || pending <= self.now && tick < Time::NEVER {
            self.ticks.insert(boot, tick);
            self.schedule(tick, Event::Tick(boot));
        }
        Ok(())
    }

    fn order(&mut self, index: Index, boot: Boot, order: Order) {
        match order {
            Order::Send(to, packet) => {
                let Some(there) = self.nodes[index].known.get(&to).copied() else { return };
                let fate = self.network.fate(index, there, &mut self.random);
                if !self.network.connected.contains(&pair(index, there)) {
                    return;
                }
                let arrive = Event::Arrive { to, from: boot, packet };
                match fate {
                    Fate::Lost => self.count("messages lost"),
                    Fate::After(time) => self.schedule(self.now + time, arrive),
                    Fate::Twice(first, second) => {
                        self.count("messages doubled");
                        self.schedule(self.now + first, arrive.clone());
                        self.schedule(self.now + second, arrive);
                    }
                }
            }
            Order::Step(from, run, left) => self.soon_after(left, 1..60, Event::Step(boot, from, run)),
            Order::Reads(key) => self.soon(1..400, Event::Read(boot, key)),
            Order::RunHere(key, left) => {
                let work = Duration::from_millis(self.random.u64(1..200));
                // A pool answers by the request's end, served or not.
                let end = self.ledger.entries.get(&(boot, key)).map_or(self.now, |entry| entry.end);
                self.schedule((self.now + left + work).min(end), Event::EndHere(boot, key));
            }
            Order::AnswerCall(from, call, left) => match left {
                Some(left) => self.schedule(self.now + left, Event::AnswerCall(boot, from, call)),
                None => self.soon(1..1500, Event::AnswerCall(boot, from, call)),
            },
            Order::Hangup(peer) => {
                if let Some(there) = self.nodes[index].known.get(&peer).copied() {
                    self.disconnect(index, there);
                }
            }
        }
    }

    pub(super) fn disconnect(&mut self, a: Index, b: Index) {
        if !self.network.connected.remove(&pair(a, b)) {
            return;
        }
        let (first, second) = (self.nodes[a].boot, self.nodes[b].boot);
        let connection = self.network.newest.get(&pair(a, b)).copied().unwrap_or(0);
        self.soon(0..1500, Event::Notice(b, first, second, connection));
        self.soon(0..1500, Event::Notice(a, second, first, connection));
        self.soon(100..1000, Event::Connect(a, b));
    }

    fn connect(&mut self, a: Index, b: Index) -> Result<(), Broken> {
        if self.network.connected.contains(&pair(a, b)) {
            return Ok(());
        }
        let blocked = self.network.blocked.contains(&(a, b)) || self.network.blocked.contains(&(b, a));
        if blocked || !self.nodes[a].alive || !self.nodes[b].alive {
            self.soon(100..1000, Event::Connect(a, b));
            return Ok(());
        }
        self.count("connections");
        self.network.connected.insert(pair(a, b));
        *self.network.newest.entry(pair(a, b)).or_default() += 1;
        for (one, other) in [(a, b), (b, a)] {
            let boot = self.nodes[other].boot;
            self.nodes[one].known.insert(boot, other);
            // An older connection may not have been noticed to be gone.
            self.give(one, Input::Unlinked(boot))?;
            self.give(one, Input::Linked(boot))?;
        }
        Ok(())
    }

    fn submit(&mut self) -> Result<(), Broken> {
        if self.healed {
            return Ok(());
        }
        self.soon(1..120, Event::Submit);
        let index = self.random.usize(..self.nodes.len());
        let (model, digest) = [("a", "1"), ("a", "2"), ("b", "1")][self.random.usize(..3)];
        let wanted = Wanted { model: model.into(), digest: digest.into() };
        let batch = usize::from(self.random.u32(..4) == 0);
        if !self.nodes[index].alive || self.nodes[index].leaving {
            return Ok(());
        }
        let boot = self.nodes[index].boot;
        let open =
            self.ledger.open_of(boot).filter(|entry| entry.wanted == wanted && entry.lane == batch).count();
        // A caller has a slot of its own node's.
        if open >= [3, 1][batch] {
            return Ok(());
        }
        let key = RequestKey(self.next_key);
        self.next_key += 1;
        let deadline = self.now + Duration::from_millis(self.random.u64(50..4000));
        let end = self.now + Duration::from_millis(self.random.u64(100..8000));
        let reruns = self.random.u32(..4) > 0;
        let cost = self.random.u64(1..100);
        self.ledger.open((boot, key), wanted.clone(), batch, cost, reruns, [deadline, end]);
        let request = Request {
            wanted,
            lane: [Lane::Interactive, Lane::Batch][batch],
            rank: i128::from(key.0),
            cost,
            deadline,
            end,
            reruns,
            impatient: self.random.u32(..5) == 0,
        };
        if self.random.u32(..8) == 0 {
            self.soon(1..2000, Event::Cancel(boot, key));
        }
        self.give(index, Input::Submit(key, request))
    }

    fn call(&mut self) -> Result<(), Broken> {
        if self.healed {
            return Ok(());
        }
        self.soon(50..1500, Event::Call);
        let index = self.random.usize(..self.nodes.len());
        if !self.nodes[index].alive || self.nodes[index].leaving {
            return Ok(());
        }
        let (model, digest) = [("a", "1"), ("a", "2"), ("b", "1")][self.random.usize(..3)];
        let wanted = Wanted { model: model.into(), digest: digest.into() };
        let kind = [CallKind::Preload, CallKind::Unload, CallKind::Pin(true), CallKind::Pin(false)]
            [self.random.usize(..4)];
        let (boot, key) = (self.nodes[index].boot, CallKey(self.next_key));
        self.next_key += 1;
        let ends = self.now + Duration::from_millis(self.random.u64(50..4000));
        let serving = self.nodes[index].router.peers();
        let serving = serving.filter(|(_, offers)| offers.iter().any(|offer| offer.wanted == wanted));
        let serving = serving.map(|(boot, _)| boot).collect();
        self.ledger.calls.open((boot, key), kind, ends, serving);
        if self.random.u32(..6) == 0 {
            self.soon(1..1000, Event::CallerGone(boot, key));
        }
        self.give(index, Input::Call { key, wanted, kind, ends })
    }
}
