//! The decisions of one pool about its peers, pure: (state, input, now) to effects, with no clock, lock or actor. It is both
//! ends: `asking` sends requests of this node to peers and decides what becomes of them, `hosting` accepts those of peers
//! within the slots that it grants them, and `exchange` is told between them four times a second; `peer` is what it leaves known.
//! `calls` are what is asked of a model beside requests. `choice` says where a request goes, `protocol` what the two ends
//! say to each other.
//!
//! Each attempt to run a request elsewhere has a number of its own, its [`Run`], that is never used again, and each start of
//! a node another [`Boot`]. So whatever comes late, twice or in another order is told from what is awaited. The exchange
//! lists the runs that each end knows of, so what was lost on the way is noticed at both.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::id::{Lane, Time};

mod protocol;
mod choice;
mod peer;
mod asking;
mod calls;
mod exchange;
mod hosting;

pub use asking::{Failed, Request, RequestKey};
pub use choice::Own;
pub use protocol::{Boot, CallKey, CallKind, Load, Message, Offer, Refusal, Room, Run, Wanted, lane_index};

use asking::Asked;
use peer::Peer;

/// Time between two exchanges of load.
pub const EXCHANGE: Duration = Duration::from_millis(250);
/// Number of exchanges that a peer misses before it is lost.
pub const MISSED: u32 = 3;
/// Time beyond a deadline in which a peer's own answer may still come.
pub const GRACE: Duration = Duration::from_millis(250);
/// Number of chunks of a stream that may be on their way or unread.
pub const WINDOW: u64 = 32;
/// Number of runs of a request that may be lost with their peers before it fails: it may be what kills them.
const MAX_LOSSES: u32 = 2;
/// Time for which a peer that is gone is remembered, so that what it sent before is recognised.
const REMEMBERED: Duration = Duration::from_secs(60);

/// An input of the router.
#[derive(Debug, Clone)]
pub enum Input {
    /// There is a way to this peer.
    Linked(Boot),
    /// There is none any more.
    Unlinked(Boot),
    /// A message has come. A chunk or a result that the effects do not deliver is to be dropped.
    Heard {
        /// The peer that sent it.
        from: Boot,
        /// The message.
        message: Message,
    },
    /// The models of this node, as they are now.
    Models(Vec<Own>),
    /// One of the models of this node, as it is now.
    Model(Own),
    /// A request of a caller here.
    Submit(RequestKey, Request),
    /// Its caller has gone.
    Cancelled(RequestKey),
    /// The request has gone out whole.
    Sent(Run),
    /// So many chunks of the request's current run have been read.
    Read(RequestKey, u64),
    /// A guest has begun in the sense of [`Item::begin`](crate::Item::begin).
    GuestBegan(Boot, Run),
    /// A guest's next chunk is about to go out.
    GuestChunk(Boot, Run),
    /// A guest has a result, which is about to go out.
    GuestResult(Boot, Run),
    /// The result of a guest has gone out whole.
    GuestEnded(Boot, Run),
    /// The pool did not take a guest, so it has not begun.
    GuestRefused(Boot, Run, Refusal),
    /// A call of a caller here, to be answered by this moment.
    Call {
        /// Its number, which no other has.
        key: CallKey,
        /// The model.
        wanted: Wanted,
        /// The call's kind.
        kind: CallKind,
        /// The moment.
        ends: Time,
    },
    /// The caller of a call has gone.
    CallerGone(CallKey),
    /// The answer of a peer's call is about to go out.
    CallHosted(Boot, CallKey),
    /// No guests are taken from now on, and no peer shall send any.
    Leave,
    /// Time has passed.
    Tick,
}

/// An order of the router.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Send a message.
    Tell(Boot, Message),
    /// Send the request to a peer, and tell [`Input::Sent`] once it has gone out.
    Ask {
        /// The peer.
        to: Boot,
        /// The run that it is from now on.
        run: Run,
        /// The request.
        request: RequestKey,
        /// Number of the last exchange before.
        after: u64,
    },
    /// Give the request to the pool of this node. The router knows it no longer.
    RunHere(RequestKey),
    /// Give the chunk that has come to the caller of the request.
    Deliver(RequestKey),
    /// Answer the request with the result that has come.
    Finish(RequestKey),
    /// Answer the request with an error.
    Fail(RequestKey, Failed),
    /// Run the request that has come from this peer, and begin with a window of [`WINDOW`] chunks.
    Host(Boot, Run),
    /// Drop a guest; nobody waits for it any more.
    Evict(Boot, Run),
    /// So many more chunks of a guest may go out.
    Grow(Boot, Run, u64),
    /// Make the call that has come from this peer, within the time.
    HostCall {
        /// The peer.
        from: Boot,
        /// The call.
        call: CallKey,
        /// The model.
        wanted: Wanted,
        /// The call's kind.
        kind: CallKind,
        /// The time left.
        within: Duration,
    },
    /// Drop a peer's call; nobody waits for it any more.
    DropCall(Boot, CallKey),
    /// Keep the answer that has come for the caller of a call.
    NoteCall(CallKey),
    /// Answer a call with what has come for it, or with an error.
    EndCall(CallKey, Option<Failed>),
    /// The peer is silent: close the connection to it.
    Hangup(Boot),
}

/// Knowledge that one pool of one node has of its peers.
#[derive(Debug)]
pub struct Router {
    random: fastrand::Rng,
    /// The moment of the last input.
    now: Time,
    /// This node's pools refuse guests, as the node is about to go.
    leaving: bool,
    models: Vec<Own>,
    peers: BTreeMap<Boot, Peer>,
    asked: BTreeMap<RequestKey, Asked>,
    /// Requests that wait for a slot, by rank.
    waiting: BTreeSet<(i128, RequestKey)>,
    /// The request of each run that has not ended.
    runs: BTreeMap<Run, RequestKey>,
    calls: BTreeMap<CallKey, calls::Asked>,
    next_run: u64,
    /// Number of the last exchange, from 1.
    exchanges: u64,
    next_exchange: Time,
    effects: Vec<Effect>,
}

impl Router {
    /// A router without peers. `seed` is for its random choices.
    pub fn new(seed: u64) -> Self {
        Self {
            random: fastrand::Rng::with_seed(seed),
            now: Time::ZERO,
            leaving: false,
            models: Vec::new(),
            peers: BTreeMap::new(),
            asked: BTreeMap::new(),
            waiting: BTreeSet::new(),
            runs: BTreeMap::new(),
            calls: BTreeMap::new(),
            next_run: 0,
            exchanges: 1,
            next_exchange: Time::ZERO,
            effects: Vec::new(),
        }
    }

    /// Takes an input in, and returns the orders that follow from it, to be carried out in their order.
    pub fn step(&mut self, input: Input, now: Time) -> Vec<Effect> {
        self.now = now;
        match input {
            Input::Linked(peer) => self.linked(peer, now),
            Input::Unlinked(peer) => self.gone(peer, now),
            Input::Heard { from, message } => self.heard(from, message, now),
            Input::Models(models) => {
                self.models = models;
                self.dispatch();
            }
            Input::Model(own) => {
                self.models.retain(|model| model.wanted != own.wanted);
                self.models.push(own);
            }
            Input::Submit(key, request) => self.submit(key, request),
            Input::Cancelled(key) => self.cancelled(key),
            Input::Sent(run) => self.sent(run),
            Input::Read(key, read) => self.read(key, read),
            Input::GuestBegan(peer, run) => self.guest_began(peer, run),
            Input::GuestChunk(peer, run) => self.guest_chunk(peer, run),
            Input::GuestResult(peer, run) => self.guest_result(peer, run),
            Input::GuestEnded(peer, run) => self.guest_ended(peer, run),
            Input::GuestRefused(peer, run, refusal) => self.guest_refused(peer, run, refusal),
            Input::Call { key, wanted, kind, ends } => self.call(key, wanted, kind, ends),
            Input::CallerGone(key) => self.withdraw_call(key),
            Input::CallHosted(peer, key) => self.call_hosted(peer, key),
            Input::Leave => {
                self.leaving = true;
                self.next_exchange = now;
                self.exchange(now);
            }
            Input::Tick => {
                self.expire(now);
                self.expire_calls(now);
                self.exchange(now);
            }
        }
        std::mem::take(&mut self.effects)
    }

    /// The moment at which a [`Input::Tick`] is due.
    pub fn next_tick(&self) -> Time {
        let exchange = if self.peers.is_empty() { Time::NEVER } else { self.next_exchange };
        let requests = self.asked.values().map(Asked::expires);
        requests.chain(self.calls.values().map(calls::Asked::expires)).fold(exchange, Time::min)
    }

    /// Boots of the peers that are linked and have told what they serve, with their offers.
    pub fn peers(&self) -> impl Iterator<Item = (Boot, &[Offer])> {
        let linked = self.peers.iter().filter(|(_, peer)| peer.linked && peer.heard > 0);
        linked.map(|(boot, peer)| (*boot, peer.offers.as_slice()))
    }

    /// True while the peer is linked or remembered.
    pub fn knows(&self, peer: Boot) -> bool {
        self.peers.contains_key(&peer)
    }

    /// The request of a run that has not ended.
    pub fn request_of(&self, run: Run) -> Option<RequestKey> {
        self.runs.get(&run).copied()
    }

    /// The model and the lane of a guest.
    pub fn guest(&self, peer: Boot, run: Run) -> Option<(Wanted, Lane)> {
        let guest = self.peers.get(&peer)?.guests.get(&run)?;
        Some((guest.wanted.clone(), guest.lane))
    }

    /// Numbers of requests that wait or run elsewhere, and of guests.
    pub fn counts(&self) -> (usize, usize) {
        (self.asked.len(), self.peers.values().map(|peer| peer.guests.len()).sum())
    }

    /// Numbers of calls of this node and of peers that are not answered.
    pub fn open_calls(&self) -> (usize, usize) {
        (self.calls.len(), self.peers.values().map(|peer| peer.calls.len()).sum())
    }

    fn heard(&mut self, from: Boot, message: Message, now: Time) {
        // A peer whose connection is gone says nothing any more that counts.
        let Some(peer) = self.peers.get_mut(&from).filter(|peer| peer.linked) else { return };
        match message {
            Message::Load(load) => self.heard_load(from, load, now),
            Message::Ask { run, after, wanted, lane } => self.heard_ask(from, run, after, wanted, lane),
            Message::Cancel(run) => {
                if peer.end(run).is_some() {
                    self.effects.push(Effect::Evict(from, run));
                }
            }
            Message::Credit(run, read) => {
                if let Some(more) = peer.credit(run, read) {
                    self.effects.push(Effect::Grow(from, run, more));
                }
            }
            Message::Refused(run, refusal) => self.heard_refused(from, run, refusal),
            Message::Began(run) => self.heard_began(from, run),
            Message::Chunk(run, number) => self.heard_chunk(from, run, number),
            Message::End(run, chunks) => self.heard_end(from, run, chunks),
            Message::Call { call, wanted, kind, within } => {
                let host = Effect::HostCall { from, call, wanted: wanted.clone(), kind, within };
                self.heard_call(from, call, &wanted, host);
            }
            Message::Called(call) => self.heard_called(from, call),
            Message::NotCalled(call) => self.heard_not_called(from, call),
            Message::CallOff(call) => self.heard_call_off(from, call),
        }
    }
}

#[cfg(test)]
mod tests;
