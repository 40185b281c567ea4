//! The exchange of load: what each end offers, the runs on both sides, and the loss of a peer that falls silent.

use std::collections::BTreeMap;

use super::asking::Asked;
use super::choice::Own;
use super::peer::Peer;
use super::protocol::{Boot, Load, Message, Offer, Run, Wanted, lane_index};
use super::{EXCHANGE, Effect, MISSED, REMEMBERED, Router};
use crate::id::Time;

/// Free slots of each model and lane, and the number of peers that share them.
struct Shares {
    linked: u32,
    free: Vec<[u32; 2]>,
}

impl Shares {
    /// The models of this node, with the slots that a peer may have: those that its guests hold, and an equal part of the
    /// free ones. What does not divide goes round.
    fn offers(&self, router: &Router, boot: Boot, place: usize) -> Vec<Offer> {
        if router.leaving {
            return Vec::new();
        }
        let turn = (place as u64 + router.exchanges) % u64::from(self.linked);
        let offer = |(own, free): (&Own, &[u32; 2])| {
            let slots = [0, 1].map(|lane| {
                let (part, rest) = (free[lane] / self.linked, free[lane] % self.linked);
                router.guests_of(boot, &own.wanted, lane) + part + u32::from(turn < u64::from(rest))
            });
            own.offer(slots)
        };
        router.models.iter().zip(&self.free).map(offer).collect()
    }
}

impl Router {
    pub(super) fn linked(&mut self, boot: Boot, now: Time) {
        let peer = self.peers.entry(boot).or_insert_with(|| Peer::new(now));
        (peer.linked, peer.since) = (true, now);
        let place = self.linked_peers().position(|peer| peer == boot).unwrap_or(0);
        let offers = self.shares().offers(self, boot, place);
        // Whatever ran there when it was linked before is lost.
        self.tell_load(boot, offers, Vec::new());
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
        self.lost_calls_at(boot);
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
        let mut runs: BTreeMap<Boot, Vec<(Run, u64)>> = BTreeMap::new();
        for (run, key) in &self.runs {
            let Some((peer, read)) = self.asked.get(key).and_then(Asked::at) else { continue };
            runs.entry(peer).or_default().push((*run, read));
        }
        let shares = self.shares();
        let linked: Vec<Boot> = self.linked_peers().collect();
        for (place, boot) in linked.into_iter().enumerate() {
            self.tell_load(boot, shares.offers(self, boot, place), runs.remove(&boot).unwrap_or_default());
        }
    }

    fn linked_peers(&self) -> impl Iterator<Item = Boot> + '_ {
        self.peers.iter().filter(|(_, peer)| peer.linked).map(|(boot, _)| *boot)
    }

    fn tell_load(&mut self, boot: Boot, offers: Vec<Offer>, runs: Vec<(Run, u64)>) {
        let Some(peer) = self.peers.get(&boot) else { return };
        let load = Load {
            number: self.exchanges,
            heard: peer.heard,
            leaving: self.leaving,
            offers,
            below: Run(self.next_run),
            runs,
            guests: peer.guests.keys().copied().collect(),
        };
        self.effects.push(Effect::Tell(boot, Message::Load(load)));
    }

    /// The free slots of this node's models, to be shared among the peers that are linked.
    fn shares(&self) -> Shares {
        let linked = u32::try_from(self.linked_peers().count()).unwrap_or(u32::MAX).max(1);
        let free = self.models.iter().map(|own| [0, 1].map(|lane| self.free(own, lane)));
        Shares { linked, free: free.collect() }
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
        peer.sent.clear();
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
