//! What this node knows of a peer, and the exchange of load: what it offers, the runs on both sides, and its loss when it
//! falls silent.

use std::collections::{BTreeMap, BTreeSet};

use super::choice::Own;
use super::protocol::{Boot, Load, Message, Offer, Run, Wanted, lane_index};
use super::{EXCHANGE, Effect, MISSED, REMEMBERED, Router};
use crate::id::{Lane, Time};

/// A request of a peer that this node runs.
#[derive(Debug)]
pub(super) struct Guest {
    pub(super) wanted: Wanted,
    pub(super) lane: Lane,
    /// Number of chunks that have gone out, and that the peer has read.
    pub(super) sent: u64,
    pub(super) read: u64,
}

/// A peer, linked or remembered.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) linked: bool,
    /// The last moment at which it was heard, or was linked or lost.
    pub(super) since: Time,
    /// Number of its last exchange.
    pub(super) heard: u64,
    pub(super) leaving: bool,
    pub(super) offers: Vec<Offer>,
    /// Cost of what was sent there since its last exchange, by the position of the offer.
    pub(super) sent_cost: BTreeMap<usize, u64>,
    pub(super) guests: BTreeMap<Run, Guest>,
    /// Runs that are over and that it may not know to be over.
    pub(super) done: BTreeSet<Run>,
    /// What it said last of its runs here: all below this that are not listed are over.
    pub(super) below: Run,
    pub(super) listed: BTreeSet<Run>,
}

impl Peer {
    fn new(now: Time) -> Self {
        Self {
            linked: true,
            since: now,
            heard: 0,
            leaving: false,
            offers: Vec::new(),
            sent_cost: BTreeMap::new(),
            guests: BTreeMap::new(),
            done: BTreeSet::new(),
            below: Run(0),
            listed: BTreeSet::new(),
        }
    }

    /// Ends a guest; it does not begin again.
    pub(super) fn end(&mut self, run: Run) -> Option<Guest> {
        self.done.insert(run);
        self.guests.remove(&run)
    }

    /// True if the run is over by what the peer has said, or was here already.
    pub(super) fn is_ghost(&self, run: Run, after: u64) -> bool {
        let is_over = after < self.heard && run < self.below && !self.listed.contains(&run);
        is_over || self.done.contains(&run) || self.guests.contains_key(&run)
    }

    /// Notes that the peer has read chunks of a run. Returns the number that may go out more.
    pub(super) fn credit(&mut self, run: Run, read: u64) -> Option<u64> {
        let guest = self.guests.get_mut(&run)?;
        // It cannot have read more than was sent.
        let more = read.min(guest.sent).checked_sub(guest.read).filter(|more| *more > 0)?;
        guest.read += more;
        Some(more)
    }

    pub(super) fn offer(&self, wanted: &Wanted) -> Option<(usize, &Offer)> {
        self.offers.iter().enumerate().find(|(_, offer)| offer.wanted == *wanted)
    }
}

impl Router {
    pub(super) fn linked(&mut self, boot: Boot, now: Time) {
        let peer = self.peers.entry(boot).or_insert_with(|| Peer::new(now));
        (peer.linked, peer.since) = (true, now);
        self.tell_load(boot);
        self.next_exchange = self.next_exchange.min(now + EXCHANGE);
    }

    /// The way to a peer is gone: what ran there is lost, and what it had here is dropped.
    pub(super) fn gone(&mut self, boot: Boot, now: Time) {
        let Some(peer) = self.peers.get_mut(&boot).filter(|peer| peer.linked) else { return };
        (peer.linked, peer.since) = (false, now);
        peer.offers.clear();
        let guests: Vec<Run> = peer.guests.keys().copied().collect();
        for run in guests {
            peer.end(run);
            self.effects.push(Effect::Evict(boot, run));
        }
        self.lost_runs_at(boot);
    }

    /// Tells all peers the load if it is time, and gives up those that have fallen silent.
    pub(super) fn exchange(&mut self, now: Time) {
        if now < self.next_exchange {
            return;
        }
        self.next_exchange = now + EXCHANGE;
        let silence = EXCHANGE * MISSED;
        let silent = |peer: &Peer| peer.linked && now.since(peer.since) > silence;
        let lost: Vec<Boot> =
            self.peers.iter().filter(|(_, peer)| silent(peer)).map(|(boot, _)| *boot).collect();
        for boot in lost {
            self.effects.push(Effect::Hangup(boot));
            self.gone(boot, now);
        }
        self.peers.retain(|_, peer| peer.linked || now.since(peer.since) < REMEMBERED);
        self.exchanges += 1;
        let linked: Vec<Boot> = self.linked_peers().collect();
        linked.into_iter().for_each(|boot| self.tell_load(boot));
    }

    fn linked_peers(&self) -> impl Iterator<Item = Boot> + '_ {
        self.peers.iter().filter(|(_, peer)| peer.linked).map(|(boot, _)| *boot)
    }

    fn tell_load(&mut self, boot: Boot) {
        let Some(peer) = self.peers.get(&boot) else { return };
        let runs = self.runs.iter().filter_map(|(run, key)| {
            let asked = self.asked.get(key)?;
            asked.is_at(boot).then_some((*run, asked.read()))
        });
        let load = Load {
            number: self.exchanges,
            heard: peer.heard,
            leaving: self.leaving,
            offers: self.offers_to(boot),
            below: Run(self.next_run),
            runs: runs.collect(),
            guests: peer.guests.keys().copied().collect(),
        };
        self.effects.push(Effect::Tell(boot, Message::Load(load)));
    }

    /// The models of this node, with the slots that a peer may have: those that its guests hold, and an equal part of the
    /// free ones. What does not divide goes round.
    fn offers_to(&self, boot: Boot) -> Vec<Offer> {
        if self.leaving {
            return Vec::new();
        }
        let linked = u32::try_from(self.linked_peers().count()).unwrap_or(u32::MAX).max(1);
        let place = self.linked_peers().position(|peer| peer == boot).unwrap_or(0);
        let turn = u32::try_from((place as u64 + self.exchanges) % u64::from(linked)).unwrap_or(0);
        let offer = |own: &Own| {
            let slots = [0, 1].map(|lane| {
                let held = self.guests_of(boot, &own.wanted, lane);
                let free = self.free(own, lane);
                held + free / linked + u32::from(turn < free % linked)
            });
            let Own { wanted, resident, queue, rate, load, .. } = own.clone();
            Offer { wanted, resident, slots, queue, rate, load }
        };
        self.models.iter().map(offer).collect()
    }

    fn guests_of(&self, boot: Boot, wanted: &Wanted, lane: usize) -> u32 {
        let peer = self.peers.get(&boot);
        let guests = peer.into_iter().flat_map(|peer| peer.guests.values());
        let count = guests.filter(|guest| lane_index(guest.lane) == lane && guest.wanted == *wanted).count();
        u32::try_from(count).unwrap_or(u32::MAX)
    }

    /// Number of free slots of a model of this node.
    pub(super) fn free(&self, own: &Own, lane: usize) -> u32 {
        let guests = self.peers.keys().map(|boot| self.guests_of(*boot, &own.wanted, lane));
        own.capacity[lane].saturating_sub(own.used[lane]).saturating_sub(guests.sum())
    }

    pub(super) fn heard_load(&mut self, from: Boot, load: Load, now: Time) {
        let Some(peer) = self.peers.get_mut(&from) else { return };
        peer.since = now;
        // One that is older than what was heard says nothing new.
        if load.number < peer.heard {
            return;
        }
        let Load { number, heard, leaving, offers, below, runs, guests } = load;
        (peer.heard, peer.leaving, peer.offers) = (number, leaving, offers);
        peer.sent_cost.clear();
        peer.below = peer.below.max(below);
        peer.listed = runs.iter().map(|(run, _)| *run).collect();
        let over: Vec<Run> =
            peer.guests.keys().copied().filter(|run| *run < below && !peer.listed.contains(run)).collect();
        for run in over {
            peer.end(run);
            self.effects.push(Effect::Evict(from, run));
        }
        let (below, listed) = (peer.below, &peer.listed);
        peer.done.retain(|run| *run >= below || listed.contains(run));
        for (run, read) in runs {
            if let Some(more) = peer.credit(run, read) {
                self.effects.push(Effect::Grow(from, run, more));
            }
        }
        self.compare_runs_at(from, heard, &guests.into_iter().collect());
        self.dispatch();
    }
}
