//! One node: its router, and the shell that the harness has in place of actors. What goes out over the network is handed to
//! the world.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::checks::{Broken, Ledger, Piece};
use super::models::{SimModel, TOLD_LOAD};
use super::network::{Index, Packet};
use super::plant::ClusterPlant;
use crate::cluster::router::{
    Boot, CallKey, CallKind, Effect, Failed, Input, Message, Own, Refusal, RequestKey, Router, Run, WINDOW,
    Wanted,
};
use crate::id::Time;

/// A request of a peer that runs here.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) of: (Boot, RequestKey),
    pub(super) wanted: Wanted,
    pub(super) lane: usize,
    cost: u64,
    execution: u64,
    chunks: u64,
    sent: u64,
    allowed: u64,
    tells: bool,
    /// A worker has it, which ends what it has begun.
    begun: bool,
}

/// An order of a node to the world.
#[derive(Debug)]
pub(super) enum Order {
    Send(Boot, Packet),
    /// Step this guest after a while, and not before this time has passed.
    Step(Boot, Run, Duration),
    /// Read the chunks of this request after a while.
    Reads(RequestKey),
    /// Run this request here after the time, and answer it.
    RunHere(RequestKey, Duration),
    /// Do this call of a peer after a while, or after this time.
    AnswerCall(Boot, CallKey, Option<Duration>),
    Hangup(Boot),
}

pub(super) struct SimNode {
    pub(super) boot: Boot,
    pub(super) alive: bool,
    /// It is about to go, and takes no guests any more.
    pub(super) leaving: bool,
    pub(super) router: Router,
    pub(super) models: Vec<SimModel>,
    pub(super) jobs: BTreeMap<(Boot, Run), Job>,
    /// Calls of peers that are under way, and their models.
    pub(super) calls: BTreeMap<(Boot, CallKey), Wanted>,
    /// Calls of its own that have gone out.
    called: BTreeSet<CallKey>,
    /// Nodes that it has been linked to, by boot.
    pub(super) known: BTreeMap<Boot, Index>,
}

/// Things that a step of a node may touch beside itself.
pub(super) struct Surroundings<'a> {
    pub(super) ledger: &'a mut Ledger,
    pub(super) random: &'a mut fastrand::Rng,
    pub(super) plant: Option<ClusterPlant>,
    pub(super) counts: &'a mut super::ClusterCounts,
    pub(super) now: Time,
}

impl Surroundings<'_> {
    fn plants(&self, plant: ClusterPlant) -> bool {
        self.plant == Some(plant)
    }

    fn count(&mut self, name: &'static str) {
        *self.counts.entry(name).or_default() += 1;
    }
}

impl SimNode {
    pub(super) fn new(boot: Boot, models: Vec<SimModel>) -> Self {
        let (jobs, calls, known) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        let (router, called) = (Router::new(boot.0), BTreeSet::new());
        Self { boot, alive: true, leaving: false, router, models, jobs, calls, called, known }
    }

    /// Number of guests of a model that run.
    fn running(&self, wanted: &Wanted, lane: usize) -> u32 {
        let jobs = self.jobs.values().filter(|job| job.wanted == *wanted && job.lane == lane);
        u32::try_from(jobs.count()).unwrap_or(u32::MAX)
    }

    /// The models as the router is told of them.
    pub(super) fn own(&self, around: &Surroundings<'_>) -> Vec<Own> {
        let extra = u32::from(around.plants(ClusterPlant::OverstateSlots));
        let own = |model: &SimModel| {
            let open = around.ledger.open_of(self.boot);
            let (mut used, mut queue) = ([0, 0], 0);
            let mut requests = 0;
            for entry in open.filter(|entry| entry.wanted == model.wanted) {
                used[entry.lane] += 1;
                if entry.here {
                    queue += entry.cost;
                    requests += 1;
                }
            }
            let guests = self.jobs.values().filter(|job| job.wanted == model.wanted);
            queue += guests.map(|job| job.cost).sum::<u64>();
            Own {
                wanted: model.wanted.clone(),
                workers: u32::from(model.is_resident()),
                capacity: model.capacity.map(|slots| slots + extra),
                used,
                requests: requests + self.running(&model.wanted, 0) + self.running(&model.wanted, 1),
                queue,
                unit: model.unit,
                load: TOLD_LOAD,
                bytes: model.room.map(|_| 100),
                room: model.room.filter(|_| !model.is_resident()),
                failed: model.failed,
            }
        };
        self.models.iter().map(own).collect()
    }

    /// A packet comes. The plant takes a doubled request as a new one.
    pub(super) fn arrive(
        &mut self,
        from: Boot,
        packet: Packet,
        around: &mut Surroundings<'_>,
    ) -> Result<Vec<Order>, Broken> {
        let run = match &packet.message {
            Message::Ask { run, .. } => Some(*run),
            _ => None,
        };
        if let Some(run) = run.filter(|run| self.jobs.contains_key(&(from, *run)))
            && around.plants(ClusterPlant::HostTwice)
            && let Some(request) = packet.request
        {
            let mut orders = Vec::new();
            self.host(from, run, (from, request), around, &mut orders)?;
            return Ok(orders);
        }
        let ghost = match (&packet.message, packet.piece) {
            (Message::Chunk(..), Some(piece)) if around.plants(ClusterPlant::DeliverGhosts) => Some(piece),
            _ => None,
        };
        let input = Input::Heard { from, message: packet.message.clone() };
        let before = around.ledger.entries.len();
        let orders = self.step_with(input, Some(&packet), around)?;
        debug_assert_eq!(before, around.ledger.entries.len());
        if let (Some(piece), Some(request)) = (ghost, packet.request)
            && !orders.iter().any(|order| matches!(order, Order::Reads(_)))
        {
            around.ledger.deliver((self.boot, request), piece)?;
        }
        Ok(orders)
    }

    /// Takes leave of its peers.
    pub(super) fn leave(&mut self, around: &mut Surroundings<'_>) -> Result<Vec<Order>, Broken> {
        self.leaving = true;
        if around.plants(ClusterPlant::TakeNoLeave) {
            Ok(Vec::new())
        } else {
            self.step(Input::Leave, around)
        }
    }

    pub(super) fn step(&mut self, input: Input, around: &mut Surroundings<'_>) -> Result<Vec<Order>, Broken> {
        self.step_with(input, None, around)
    }

    fn step_with(
        &mut self,
        input: Input,
        packet: Option<&Packet>,
        around: &mut Surroundings<'_>,
    ) -> Result<Vec<Order>, Broken> {
        self.models.iter_mut().for_each(|model| model.pass(around.now));
        let own = self.own(around);
        let mut effects = self.router.step(Input::Models(own), around.now);
        let heard = if let Input::Heard { from, .. } = &input { Some(*from) } else { None };
        effects.extend(self.router.step(input, around.now));
        let mut orders = Vec::new();
        for effect in effects {
            self.obey(effect, (packet, heard), around, &mut orders)?;
        }
        Ok(orders)
    }

    fn obey(
        &mut self,
        effect: Effect,
        (packet, heard): (Option<&Packet>, Option<Boot>),
        around: &mut Surroundings<'_>,
        orders: &mut Vec<Order>,
    ) -> Result<(), Broken> {
        let me = self.boot;
        match effect {
            Effect::Tell(to, message) => {
                match &message {
                    Message::NotCalled(call) => around.ledger.calls.refused((to, *call), me),
                    Message::Call { call, kind: CallKind::Unload | CallKind::Pin(_), .. }
                        if around.plants(ClusterPlant::CallFirstAlone) && !self.is_first_call(*call) =>
                    {
                        orders.extend(
                            self.step(Input::Heard { from: to, message: Message::Called(*call) }, around)?,
                        );
                        return Ok(());
                    }
                    _ => {}
                }
                orders.push(Order::Send(to, Packet { message, request: None, piece: None }));
            }
            Effect::Ask { to, run, request, after } => {
                around.count("asks");
                let Some(entry) = around.ledger.entries.get(&(me, request)) else { return Ok(()) };
                let lane = [crate::Lane::Interactive, crate::Lane::Batch][entry.lane];
                let message = Message::Ask { run, after, wanted: entry.wanted.clone(), lane };
                orders.push(Order::Send(to, Packet { message, request: Some(request), piece: None }));
                orders.extend(self.step(Input::Sent(run), around)?);
            }
            Effect::RunHere(request) => {
                around.count("runs here");
                around.ledger.execute((me, request), &around.ledger_digest(me, request))?;
                let Some(entry) = around.ledger.entries.get_mut(&(me, request)) else { return Ok(()) };
                entry.here = true;
                let wanted = entry.wanted.clone();
                orders.push(Order::RunHere(request, self.need(&wanted, around)));
            }
            Effect::Deliver(request) => {
                let piece = packet.and_then(|packet| packet.piece);
                let Some(piece) = piece else { return Err(("a chunk to deliver", format!("{request:?}"))) };
                around.ledger.deliver((me, request), piece)?;
                orders.push(Order::Reads(request));
            }
            Effect::Finish(request) => {
                let piece = packet.and_then(|packet| packet.piece);
                let Some(piece) = piece else { return Err(("a result to give", format!("{request:?}"))) };
                around.count("finished");
                around.ledger.finish((me, request), piece, around.now)?;
            }
            Effect::HostCall { from, call, wanted, .. } => {
                self.calls.insert((from, call), wanted);
                orders.push(Order::AnswerCall(from, call, None));
            }
            Effect::DropCall(from, call) => {
                around.count("calls dropped");
                self.calls.remove(&(from, call));
            }
            Effect::NoteCall(call) => {
                let Some(of) = heard else { return Err(("an answer to note", format!("{call:?}"))) };
                around.ledger.calls.note((me, call), of)?;
            }
            Effect::EndCall(call, failed) => {
                let name = match failed {
                    None => "call answered",
                    Some(Failed::Late { .. }) => "call late",
                    Some(Failed::PeerLost(_)) => "call lost",
                    Some(_) => "call of nobody",
                };
                around.count(name);
                if failed.is_none() || !around.plants(ClusterPlant::SwallowCallErrors) {
                    if failed.is_none() && around.ledger.calls.is_of_several((me, call)) {
                        around.count("calls of several answered");
                    }
                    around.ledger.calls.answer((me, call), name, around.now)?;
                }
            }
            Effect::Fail(request, failed) => {
                let name = name_of(failed);
                around.count(name);
                if !around.plants(ClusterPlant::SwallowErrors) {
                    around.ledger.answer((me, request), name, around.now)?;
                }
            }
            Effect::Host(from, run) => {
                let request = packet.and_then(|packet| packet.request);
                let Some(request) = request else { return Err(("a request to host", format!("{run:?}"))) };
                self.host(from, run, (from, request), around, orders)?;
            }
            Effect::Evict(from, run) => {
                around.count("evictions");
                if !around.plants(ClusterPlant::KeepEvicted) {
                    self.jobs.remove(&(from, run));
                }
            }
            Effect::Grow(from, run, more) => {
                if let Some(job) = self.jobs.get_mut(&(from, run)) {
                    job.allowed += more;
                    orders.push(Order::Step(from, run, Duration::ZERO));
                }
            }
            Effect::Hangup(peer) => {
                around.count("hangups");
                if !around.plants(ClusterPlant::NeverHangUp) {
                    orders.push(Order::Hangup(peer));
                }
            }
        }
        Ok(())
    }

    fn host(
        &mut self,
        from: Boot,
        run: Run,
        of: (Boot, RequestKey),
        around: &mut Surroundings<'_>,
        orders: &mut Vec<Order>,
    ) -> Result<(), Broken> {
        if self.leaving {
            return Err(("who leaves takes no guests", format!("{of:?} comes to {:?}", self.boot)));
        }
        let Some(entry) = around.ledger.entries.get(&of) else { return Ok(()) };
        let (wanted, lane, cost) = (entry.wanted.clone(), entry.lane, entry.cost);
        let Some(model) = self.models.iter().find(|model| model.wanted == wanted) else {
            return Err(("a model that is here", format!("{wanted:?}")));
        };
        let capacity = model.capacity[lane];
        let own = self.own(around).into_iter().find(|own| own.wanted == wanted);
        let used = own.map_or(0, |own| own.used[lane]);
        let running = self.running(&wanted, lane);
        if running >= capacity {
            return Err((
                "no more guests than slots",
                format!("{running} of {wanted:?} run, and {of:?} comes"),
            ));
        }
        // Callers here may have taken the slots since.
        let refusal = match around.random.u32(..100) {
            _ if used + running >= capacity => Some(Refusal::Full),
            0..4 => Some(Refusal::Unable),
            _ => None,
        };
        if let Some(refusal) = refusal {
            around.count("refusals of the pool");
            orders.extend(self.step(Input::GuestRefused(from, run, refusal), around)?);
            return Ok(());
        }
        let digest = if around.plants(ClusterPlant::OtherFiles) { "others" } else { &wanted.digest };
        let execution = around.ledger.execute(of, digest)?;
        let chunks = [0, 0, 3, 40, 100][around.random.usize(..5)];
        let tells = around.random.bool();
        let left = self.need(&wanted, around);
        let begun = left.is_zero();
        let job = Job { of, wanted, lane, cost, execution, chunks, sent: 0, allowed: WINDOW, tells, begun };
        self.jobs.insert((from, run), job);
        orders.push(Order::Step(from, run, left));
        Ok(())
    }

    /// The time until a model serves, whose load begins now if it has to.
    fn need(&mut self, wanted: &Wanted, around: &mut Surroundings<'_>) -> Duration {
        let Some(model) = self.models.iter_mut().find(|model| model.wanted == *wanted) else {
            return Duration::ZERO;
        };
        let (left, begins) = model.need(around.random, around.now);
        if begins {
            around.count("loads");
        }
        left
    }

    /// A model may go by its cooldown.
    pub(super) fn cool(&mut self, around: &mut Surroundings<'_>) -> Result<Vec<Order>, Broken> {
        let busy: Vec<Own> = self.own(around).into_iter().filter(|own| own.requests > 0).collect();
        for model in &mut self.models {
            if model.cool(busy.iter().any(|own| own.wanted == model.wanted), around.now) {
                around.count("cooldowns");
            }
        }
        Ok(Vec::new())
    }

    /// A call of a peer is done, or goes on being done.
    pub(super) fn do_call(
        &mut self,
        from: Boot,
        call: CallKey,
        around: &mut Surroundings<'_>,
    ) -> Result<Vec<Order>, Broken> {
        let (Some(wanted), Some(kind)) =
            (self.calls.get(&(from, call)), around.ledger.calls.kind((from, call)))
        else {
            return Ok(Vec::new());
        };
        if let Some(model) = self.models.iter_mut().find(|model| model.wanted == *wanted)
            && !around.plants(ClusterPlant::AnswerCallsUndone)
        {
            if let Some(left) = model.call(kind, around.random, around.now) {
                return Ok(vec![Order::AnswerCall(from, call, Some(left))]);
            }
            if model.has_done(kind) {
                around.count(match kind {
                    CallKind::Preload => "preloads",
                    CallKind::Unload => "unloads",
                    CallKind::Pin(_) => "pins",
                });
                around.ledger.calls.done((from, call), self.boot);
            }
        }
        self.calls.remove(&(from, call));
        self.step(Input::CallHosted(from, call), around)
    }

    /// True if this call has gone out to nobody yet. The plant alone asks.
    fn is_first_call(&mut self, call: CallKey) -> bool {
        self.called.insert(call)
    }

    /// A guest makes a step: it begins, sends a chunk, or ends.
    pub(super) fn guest_step(
        &mut self,
        from: Boot,
        run: Run,
        around: &mut Surroundings<'_>,
    ) -> Result<Vec<Order>, Broken> {
        let Some(job) = self.jobs.get(&(from, run)) else { return Ok(Vec::new()) };
        if !job.begun {
            let left = self.need(&job.wanted.clone(), around);
            if !left.is_zero() {
                return Ok(vec![Order::Step(from, run, left)]);
            }
        }
        let Some(job) = self.jobs.get_mut(&(from, run)) else { return Ok(Vec::new()) };
        job.begun = true;
        if job.sent == job.allowed && job.sent < job.chunks {
            around.count("full windows");
            return Ok(Vec::new());
        }
        let (execution, of) = (job.execution, job.of);
        let piece = Piece { execution, number: job.sent };
        let is_end = job.sent == job.chunks;
        let input = match (std::mem::take(&mut job.tells), is_end) {
            (true, _) => Input::GuestBegan(from, run),
            (false, true) => Input::GuestResult(from, run),
            (false, false) => {
                job.sent += 1;
                Input::GuestChunk(from, run)
            }
        };
        let ends = matches!(input, Input::GuestResult(..));
        let mut orders = self.step(input, around)?;
        for order in &mut orders {
            if let Order::Send(_, packet) = order
                && matches!(packet.message, Message::Chunk(..) | Message::End(..))
            {
                (packet.piece, packet.request) = (Some(piece), Some(of.1));
            }
        }
        if ends {
            if !around.plants(ClusterPlant::KeepEnded) {
                self.jobs.remove(&(from, run));
            }
            orders.extend(self.step(Input::GuestEnded(from, run), around)?);
        } else {
            orders.push(Order::Step(from, run, Duration::ZERO));
        }
        Ok(orders)
    }
}

fn name_of(failed: Failed) -> &'static str {
    match failed {
        Failed::NoPeer => "no peer",
        Failed::Full => "full",
        Failed::Refused => "refused",
        Failed::Late { .. } => "late",
        Failed::PeerLost(_) => "peer lost",
    }
}

impl Surroundings<'_> {
    fn ledger_digest(&self, boot: Boot, request: RequestKey) -> String {
        self.ledger
            .entries
            .get(&(boot, request))
            .map(|entry| entry.wanted.digest.to_string())
            .unwrap_or_default()
    }
}
