//! The end that asks: a request waits for a slot of a peer, is sent, and is answered with what its current run says. A run
//! that is lost is begun anew elsewhere if nothing of it is out and the capability allows it, or if it is known not to have
//! begun; otherwise the caller gets an error.

use std::collections::BTreeSet;

use super::choice::{Asking, Candidate, Place, choose};
use super::peer::Peer;
use super::protocol::{Boot, Message, Refusal, Run, Wanted, lane_index};
use super::{Effect, GRACE, MAX_LOSSES, Router, WINDOW};
use crate::id::{Lane, Time};

/// Number of a request among those of this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestKey(pub u64);

/// A request of a caller here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The model.
    pub wanted: Wanted,
    /// The lane.
    pub lane: Lane,
    /// The smaller, the sooner, among those that wait.
    pub rank: i128,
    /// The cost.
    pub cost: u64,
    /// The moment by which it has to have begun.
    pub deadline: Time,
    /// The moment by which it has to have ended.
    pub end: Time,
    /// It may run a second time, as long as nothing of it is out.
    pub reruns: bool,
    /// It fails at once where it would wait for a slot.
    pub impatient: bool,
}

/// The reason for which a request fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failed {
    /// No peer that is linked serves the model.
    NoPeer,
    /// Every slot of the peers that serve it is taken, and the caller does not wait.
    Full,
    /// Each peer that serves it has refused it for a reason of its own.
    Refused,
    /// Its time is over; so is that for a peer to say so.
    Late {
        /// A peer was to run it.
        running: bool,
    },
    /// The peer is gone, or has lost the run. It may have begun.
    PeerLost(Boot),
}

/// The whereabouts of a request.
#[derive(Debug)]
enum Whereabouts {
    // ## Waiting => At => (Waiting, if it is lost or refused)
    Waiting,
    At {
        peer: Boot,
        run: Run,
        /// Number of the last exchange before it had gone out; none while it goes.
        out: Option<u64>,
        began: bool,
        received: u64,
        read: u64,
        /// Chunks that had been read when the peer was told last.
        credited: u64,
        /// Number of exchanges in which the peer did not list it, although it should.
        missing: u32,
    },
}

#[derive(Debug)]
pub(super) struct Asked {
    request: Request,
    since: Time,
    whereabouts: Whereabouts,
    /// Peers that have refused it for good.
    refused: Vec<Boot>,
    losses: u32,
    /// The peer that lost it last.
    lost_by: Option<Boot>,
}

impl Asked {
    /// The reason for which it fails when nobody is left who may run it.
    fn left_alone(&self) -> Failed {
        match self.lost_by {
            _ if !self.refused.is_empty() => Failed::Refused,
            Some(peer) => Failed::PeerLost(peer),
            None => Failed::NoPeer,
        }
    }

    pub(super) fn is_at(&self, boot: Boot) -> bool {
        matches!(self.whereabouts, Whereabouts::At { peer, .. } if peer == boot)
    }

    /// The peer that has it, and the number of its chunks that have been read.
    pub(super) fn at(&self) -> Option<(Boot, u64)> {
        match self.whereabouts {
            Whereabouts::At { peer, read, .. } => Some((peer, read)),
            Whereabouts::Waiting => None,
        }
    }

    /// The moment at which it is answered that its time is over. A peer that runs it has its own clock, and the first word.
    pub(super) fn expires(&self) -> Time {
        match self.whereabouts {
            Whereabouts::Waiting => self.request.deadline.min(self.request.end),
            Whereabouts::At { began: true, .. } => self.request.end + GRACE,
            Whereabouts::At { began: false, .. } => self.request.deadline.min(self.request.end) + GRACE,
        }
    }
}

impl Router {
    pub(super) fn submit(&mut self, key: RequestKey, request: Request) {
        let asked = Asked {
            request,
            since: self.now,
            whereabouts: Whereabouts::Waiting,
            refused: Vec::new(),
            losses: 0,
            lost_by: None,
        };
        self.asked.insert(key, asked);
        self.place(key);
    }

    /// Sends those that wait, in their order, as far as there are slots. Where one finds none, those behind it look for none.
    pub(super) fn dispatch(&mut self) {
        let waiting: Vec<RequestKey> = self.waiting.iter().map(|(_, key)| *key).collect();
        let mut full = BTreeSet::new();
        for key in waiting {
            let Some(Asked { request, refused, .. }) = self.asked.get(&key) else { continue };
            let queue = (request.wanted.clone(), lane_index(request.lane));
            let tells = refused.is_empty();
            if !full.contains(&queue) && !self.place(key) && tells {
                full.insert(queue);
            }
        }
    }

    /// Finds a place for a request that has none. False if it waits on.
    fn place(&mut self, key: RequestKey) -> bool {
        let Some(asked) = self.asked.get(&key) else { return true };
        let Request { wanted, lane, rank, impatient, cost, .. } = &asked.request;
        let (lane, cost) = (lane_index(*lane), *cost);
        let own = self.models.iter().find(|own| own.wanted == *wanted).filter(|_| !self.leaving);
        let willing = self.candidates(wanted, Some(lane));
        let willing: Vec<_> = willing.into_iter().filter(|(boot, _)| !asked.refused.contains(boot)).collect();
        // Of those without a slot it is told too, if it does not wait: who holds the model is why it is not loaded elsewhere.
        let known: Vec<Candidate> = willing.iter().map(|(_, candidate)| *candidate).collect();
        let mut random = self.random.clone();
        let waited = self.now.since(asked.since);
        let left = asked.request.deadline.min(asked.request.end).since(self.now);
        let place = choose(own, &known, wanted, Asking { cost, waited, left }, &mut random);
        let (none_left, failed) = (willing.is_empty(), asked.left_alone());
        let late = asked.lost_by.map_or(Failed::Late { running: false }, Failed::PeerLost);
        let is_late = self.now >= asked.request.deadline.min(asked.request.end);
        let (rank, impatient) = (*rank, *impatient);
        self.random = random;
        match place {
            // It was lost or refused when its time was over.
            _ if is_late => self.fail(key, late),
            Some(Place::Here) => self.run_here(key, cost),
            Some(Place::At(boot)) => self.send(key, boot, cost),
            None if none_left => self.fail(key, failed),
            None if impatient => self.fail(key, Failed::Full),
            None => {
                self.waiting.insert((rank, key));
                return false;
            }
        }
        true
    }

    /// The peers that serve a model. One is free if it has a slot of this lane for this node, or none is asked for.
    pub(super) fn candidates(&self, wanted: &Wanted, lane: Option<usize>) -> Vec<(Boot, Candidate)> {
        let serving = self.peers.iter().filter(|(_, peer)| peer.linked && !peer.leaving);
        let candidate = |(boot, peer): (&Boot, &Peer)| {
            let (position, offer) = peer.offer(wanted)?;
            let is_free = lane.is_none_or(|lane| self.runs_at(*boot, wanted, lane) < offer.slots[lane]);
            Some((*boot, Candidate::there(*boot, offer, peer.sent(position), is_free)))
        };
        serving.filter_map(candidate).collect()
    }

    fn run_here(&mut self, key: RequestKey, cost: u64) {
        let Some(asked) = self.asked.get(&key) else { return };
        let wanted = &asked.request.wanted;
        self.models.iter_mut().filter(|own| own.wanted == *wanted).for_each(|own| own.add(cost));
        self.forget(key, Effect::RunHere(key));
    }

    fn runs_at(&self, boot: Boot, wanted: &Wanted, lane: usize) -> u32 {
        let there = |asked: &&Asked| {
            asked.is_at(boot) && asked.request.wanted == *wanted && lane_index(asked.request.lane) == lane
        };
        u32::try_from(self.asked.values().filter(there).count()).unwrap_or(u32::MAX)
    }

    fn send(&mut self, key: RequestKey, to: Boot, cost: u64) {
        let Some(asked) = self.asked.get_mut(&key) else { return };
        let run = Run(self.next_run);
        self.next_run += 1;
        self.waiting.remove(&(asked.request.rank, key));
        asked.whereabouts = Whereabouts::At {
            peer: to,
            run,
            out: None,
            began: false,
            received: 0,
            read: 0,
            credited: 0,
            missing: 0,
        };
        if let Some(peer) = self.peers.get_mut(&to)
            && let Some((position, _)) = peer.offer(&asked.request.wanted)
        {
            peer.sent.insert(run, (position, cost));
        }
        self.runs.insert(run, key);
        self.effects.push(Effect::Ask { to, run, request: key, after: self.exchanges });
    }

    pub(super) fn sent(&mut self, run: Run) {
        let exchanges = self.exchanges;
        if let Some((_, Asked { whereabouts: Whereabouts::At { out, .. }, .. })) = self.current(run) {
            *out = Some(exchanges);
        }
    }

    /// The request of a run that has not ended.
    fn current(&mut self, run: Run) -> Option<(RequestKey, &mut Asked)> {
        let key = *self.runs.get(&run)?;
        Some((key, self.asked.get_mut(&key)?))
    }

    /// The request of a run of this peer.
    fn current_at(&mut self, peer: Boot, run: Run) -> Option<(RequestKey, &mut Asked)> {
        self.current(run).filter(|(_, asked)| asked.is_at(peer))
    }

    /// Ends a request with an effect.
    fn forget(&mut self, key: RequestKey, effect: Effect) {
        if self.drop_request(key) {
            self.effects.push(effect);
        }
    }

    fn drop_request(&mut self, key: RequestKey) -> bool {
        let Some(asked) = self.asked.remove(&key) else { return false };
        self.waiting.remove(&(asked.request.rank, key));
        if let Whereabouts::At { peer, run, .. } = asked.whereabouts {
            self.end_run(peer, run);
        }
        true
    }

    fn end_run(&mut self, peer: Boot, run: Run) {
        self.runs.remove(&run);
        self.peers.get_mut(&peer).and_then(|peer| peer.sent.remove(&run));
    }

    fn fail(&mut self, key: RequestKey, failed: Failed) {
        self.forget(key, Effect::Fail(key, failed));
    }

    /// Tells the peer that has a request that nobody waits for it any more.
    fn call_off(&mut self, key: RequestKey) {
        let Some(asked) = self.asked.get(&key) else { return };
        if let Whereabouts::At { peer, run, .. } = asked.whereabouts {
            self.effects.push(Effect::Tell(peer, Message::Cancel(run)));
        }
    }

    pub(super) fn cancelled(&mut self, key: RequestKey) {
        self.call_off(key);
        self.drop_request(key);
        self.dispatch();
    }

    pub(super) fn expire(&mut self, now: Time) {
        let late: Vec<(RequestKey, bool)> = self
            .asked
            .iter()
            .filter(|(_, asked)| now >= asked.expires())
            .map(|(key, asked)| (*key, matches!(asked.whereabouts, Whereabouts::At { .. })))
            .collect();
        for (key, running) in late {
            self.call_off(key);
            self.fail(key, Failed::Late { running });
        }
        self.dispatch();
    }

    pub(super) fn read(&mut self, key: RequestKey, count: u64) {
        let Some(Asked { whereabouts, .. }) = self.asked.get_mut(&key) else { return };
        let Whereabouts::At { peer, run, received, read, credited, .. } = whereabouts else { return };
        *read = count.min(*received).max(*read);
        // A word for each quarter of the window; the exchange tells the rest.
        if *read >= *credited + WINDOW / 4 {
            *credited = *read;
            let tell = Effect::Tell(*peer, Message::Credit(*run, *read));
            self.effects.push(tell);
        }
    }

    pub(super) fn heard_began(&mut self, from: Boot, run: Run) {
        if let Some((_, Asked { whereabouts: Whereabouts::At { began, .. }, .. })) =
            self.current_at(from, run)
        {
            *began = true;
        }
    }

    pub(super) fn heard_chunk(&mut self, from: Boot, run: Run, number: u64) {
        let Some((key, asked)) = self.current_at(from, run) else { return };
        let Whereabouts::At { began, received, read, .. } = &mut asked.whereabouts else { return };
        if number < *received {
            // It has come twice.
            return;
        }
        if number > *received || *received >= *read + WINDOW {
            // One before it is lost, or the peer keeps to no window.
            self.lose(key, Some(run));
            return;
        }
        (*began, *received) = (true, *received + 1);
        self.effects.push(Effect::Deliver(key));
    }

    pub(super) fn heard_end(&mut self, from: Boot, run: Run, chunks: u64) {
        let Some((key, asked)) = self.current_at(from, run) else { return };
        let Whereabouts::At { received, .. } = asked.whereabouts else { return };
        if received == chunks {
            self.forget(key, Effect::Finish(key));
            self.dispatch();
        } else {
            self.lose(key, Some(run));
        }
    }

    pub(super) fn heard_refused(&mut self, from: Boot, run: Run, refusal: Refusal) {
        let Some((key, asked)) = self.current_at(from, run) else { return };
        if let Whereabouts::At { received: 1.., .. } = asked.whereabouts {
            return;
        }
        asked.whereabouts = Whereabouts::Waiting;
        if refusal == Refusal::Unable {
            asked.refused.push(from);
        }
        let wanted = asked.request.wanted.clone();
        let lane = lane_index(asked.request.lane);
        self.end_run(from, run);
        if refusal == Refusal::Full {
            // It has no slot until it says otherwise.
            let held = self.runs_at(from, &wanted, lane);
            let offers = self.peers.get_mut(&from).map(|peer| peer.offers.iter_mut());
            for offer in offers.into_iter().flatten().filter(|offer| offer.wanted == wanted) {
                offer.slots[lane] = offer.slots[lane].min(held);
            }
        }
        self.place(key);
        self.dispatch();
    }

    pub(super) fn lost_runs_at(&mut self, boot: Boot) {
        let lost: Vec<RequestKey> =
            self.asked.iter().filter(|(_, asked)| asked.is_at(boot)).map(|(key, _)| *key).collect();
        lost.into_iter().for_each(|key| self.lose(key, None));
        // Those that wait may have waited for this peer alone.
        self.dispatch();
    }

    /// Notices runs that a peer does not have, although it has heard of them by now.
    pub(super) fn compare_runs_at(&mut self, boot: Boot, heard: u64, there: &BTreeSet<Run>) {
        let mut lost = Vec::new();
        for (key, asked) in &mut self.asked {
            let Whereabouts::At { peer, run, out: Some(out), missing, .. } = &mut asked.whereabouts else {
                continue;
            };
            if *peer != boot || heard <= *out || there.contains(run) {
                continue;
            }
            *missing += 1;
            // Its end may have been overtaken once.
            if *missing >= 2 {
                lost.push((*key, *run));
            }
        }
        lost.into_iter().for_each(|(key, run)| self.lose(key, Some(run)));
    }

    /// Decides about a request whose run is lost: with its peer, or on it, which is then told.
    fn lose(&mut self, key: RequestKey, tell: Option<Run>) {
        let Some(asked) = self.asked.get_mut(&key) else { return };
        let Whereabouts::At { peer, run, received, .. } = asked.whereabouts else { return };
        (asked.losses, asked.lost_by) = (asked.losses + 1, Some(peer));
        if let Some(run) = tell {
            self.effects.push(Effect::Tell(peer, Message::Cancel(run)));
        }
        if received > 0 || !asked.request.reruns || asked.losses > MAX_LOSSES {
            self.fail(key, Failed::PeerLost(peer));
            return;
        }
        asked.whereabouts = Whereabouts::Waiting;
        self.end_run(peer, run);
        self.place(key);
    }
}
