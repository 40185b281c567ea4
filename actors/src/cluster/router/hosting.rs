//! The end that is asked: a guest is taken while its model has a free slot, has a window for its chunks, and is dropped once
//! its peer no longer lists it or is gone. What was here before, or is over, does not begin again.

use super::peer::Guest;
use super::protocol::{Boot, Message, Refusal, Run, Wanted, lane_index};
use super::{Effect, Router, WINDOW};
use crate::id::Lane;

impl Router {
    pub(super) fn heard_ask(&mut self, from: Boot, run: Run, after: u64, wanted: Wanted, lane: Lane) {
        let Some(peer) = self.peers.get(&from) else { return };
        if peer.is_ghost(run, after) {
            return;
        }
        let own = self.models.iter().find(|own| own.wanted == wanted).filter(|_| !self.leaving);
        let refusal = match own {
            None => Some(Refusal::Unable),
            Some(own) if self.free(own, lane_index(lane)) == 0 => Some(Refusal::Full),
            Some(_) => None,
        };
        let Some(peer) = self.peers.get_mut(&from) else { return };
        match refusal {
            Some(refusal) => {
                peer.done.insert(run);
                self.effects.push(Effect::Tell(from, Message::Refused(run, refusal)));
            }
            None => {
                peer.guests.insert(run, Guest { wanted, lane, sent: 0, read: 0 });
                self.effects.push(Effect::Host(from, run));
            }
        }
    }

    fn has_guest(&self, from: Boot, run: Run) -> bool {
        self.peers.get(&from).is_some_and(|peer| peer.guests.contains_key(&run))
    }

    pub(super) fn guest_began(&mut self, from: Boot, run: Run) {
        if self.has_guest(from, run) {
            self.effects.push(Effect::Tell(from, Message::Began(run)));
        }
    }

    /// Sends a guest's chunk. One beyond its window, or of a guest that is gone, is dropped.
    pub(super) fn guest_chunk(&mut self, from: Boot, run: Run) {
        let guest = self.peers.get_mut(&from).and_then(|peer| peer.guests.get_mut(&run));
        let Some(guest) = guest.filter(|guest| guest.sent < guest.read + WINDOW) else { return };
        let number = guest.sent;
        guest.sent += 1;
        self.effects.push(Effect::Tell(from, Message::Chunk(run, number)));
    }

    /// Sends a guest's result. It stays listed until all of it is out.
    pub(super) fn guest_result(&mut self, from: Boot, run: Run) {
        let guest = self.peers.get(&from).and_then(|peer| peer.guests.get(&run));
        if let Some(guest) = guest {
            self.effects.push(Effect::Tell(from, Message::End(run, guest.sent)));
        }
    }

    pub(super) fn guest_ended(&mut self, from: Boot, run: Run) {
        if let Some(peer) = self.peers.get_mut(&from) {
            peer.end(run);
        }
    }

    pub(super) fn guest_refused(&mut self, from: Boot, run: Run, refusal: Refusal) {
        let ended = self.peers.get_mut(&from).and_then(|peer| peer.end(run));
        if ended.is_some() {
            self.effects.push(Effect::Tell(from, Message::Refused(run, refusal)));
        }
    }
}
