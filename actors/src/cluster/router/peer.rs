//! Knowledge that this node has of a peer: what it offers, its guests here, and which of its runs are over.

use std::collections::{BTreeMap, BTreeSet};

use super::choice::Sent;
use super::protocol::{CallKey, Offer, Run, Wanted};
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
    /// Runs that were sent there since its last exchange and have not ended: the position of the offer, and the cost.
    pub(super) sent: BTreeMap<Run, (usize, u64)>,
    pub(super) guests: BTreeMap<Run, Guest>,
    /// Its calls here that are not answered.
    pub(super) calls: BTreeSet<CallKey>,
    /// Runs that are over and that it may not know to be over.
    pub(super) done: BTreeSet<Run>,
    /// Its last word on its runs here: all below this that are not listed are over.
    pub(super) below: Run,
    pub(super) listed: BTreeSet<Run>,
}

impl Peer {
    pub(super) fn new(now: Time) -> Self {
        Self {
            linked: true,
            since: now,
            heard: 0,
            leaving: false,
            offers: Vec::new(),
            sent: BTreeMap::new(),
            guests: BTreeMap::new(),
            calls: BTreeSet::new(),
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

    /// The requests that its last exchange does not count, of the offer at this position.
    pub(super) fn sent(&self, position: usize) -> Sent {
        let mut sent = Sent::default();
        let of_offer = self.sent.values().filter(|(offer, _)| *offer == position);
        of_offer.for_each(|(_, cost)| sent.add(*cost));
        sent
    }

    pub(super) fn offer(&self, wanted: &Wanted) -> Option<(usize, &Offer)> {
        self.offers.iter().enumerate().find(|(_, offer)| offer.wanted == *wanted)
    }
}
