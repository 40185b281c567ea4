//! Calls on a model that other nodes serve, and this one does not: preload, unload and pin, which are no requests. A preload
//! goes to one node, and to another one if that is gone, as loading twice does no harm; the others go to all. Each is
//! answered once: when all who have it have answered, or one of them is gone, or its time is over.

use std::collections::BTreeSet;

use super::choice::{Place, home};
use super::protocol::{Boot, CallKey, CallKind, Message, Wanted};
use super::{Effect, Failed, GRACE, Router};
use crate::id::Time;

/// Largest number of calls of one peer that are worked on here at a time: far above those that its callers can make.
const MAX_HOSTED_CALLS: usize = 1024;

/// A call of a caller here.
#[derive(Debug)]
pub(super) struct Asked {
    wanted: Wanted,
    kind: CallKind,
    /// The moment by which it is to be answered.
    ends: Time,
    /// The peers that have it.
    at: BTreeSet<Boot>,
    /// Those that have not taken it, or are gone.
    without: BTreeSet<Boot>,
    lost_by: Option<Boot>,
}

impl Asked {
    /// The moment at which it is answered that its time is over. A peer has the first word.
    pub(super) fn expires(&self) -> Time {
        self.ends + GRACE
    }
}

impl Router {
    pub(super) fn call(&mut self, key: CallKey, wanted: Wanted, kind: CallKind, ends: Time) {
        let (at, without) = (BTreeSet::new(), BTreeSet::new());
        self.calls.insert(key, Asked { wanted, kind, ends, at, without, lost_by: None });
        self.send_call(key);
    }

    /// Sends a call to those whom it concerns, of whom nobody has it.
    fn send_call(&mut self, key: CallKey) {
        let Some(asked) = self.calls.get(&key) else { return };
        let serving = self.candidates(&asked.wanted, None);
        let serving: Vec<_> = serving.into_iter().filter(|(boot, _)| !asked.without.contains(boot)).collect();
        let to: BTreeSet<Boot> = match asked.kind {
            CallKind::Preload => {
                let places: Vec<_> = serving.iter().map(|(_, candidate)| *candidate).collect();
                home(&places, &asked.wanted, asked.ends.since(self.now))
                    .into_iter()
                    .filter_map(|place| if let Place::At(boot) = place { Some(boot) } else { None })
                    .collect()
            }
            CallKind::Unload | CallKind::Pin(_) => serving.iter().map(|(boot, _)| *boot).collect(),
        };
        let failed = match asked.lost_by {
            _ if !to.is_empty() => None,
            Some(peer) => Some(Failed::PeerLost(peer)),
            None => Some(Failed::NoPeer),
        };
        if failed.is_some() {
            return self.end_call(key, failed);
        }
        let (wanted, kind, within) = (asked.wanted.clone(), asked.kind, asked.ends.since(self.now));
        for boot in &to {
            let wanted = wanted.clone();
            self.effects.push(Effect::Tell(*boot, Message::Call { call: key, wanted, kind, within }));
        }
        if let Some(asked) = self.calls.get_mut(&key) {
            asked.at = to;
        }
    }

    fn end_call(&mut self, key: CallKey, failed: Option<Failed>) {
        if self.calls.remove(&key).is_some() {
            self.effects.push(Effect::EndCall(key, failed));
        }
    }

    /// Nobody waits for it any more.
    pub(super) fn withdraw_call(&mut self, key: CallKey) {
        let Some(asked) = self.calls.remove(&key) else { return };
        for boot in asked.at {
            self.effects.push(Effect::Tell(boot, Message::CallOff(key)));
        }
    }

    pub(super) fn expire_calls(&mut self, now: Time) {
        let late = self.calls.iter().filter(|(_, asked)| now >= asked.expires()).map(|(key, _)| *key);
        let late: Vec<CallKey> = late.collect();
        for key in late {
            self.withdraw_call(key);
            self.effects.push(Effect::EndCall(key, Some(Failed::Late { running: true })));
        }
    }

    pub(super) fn heard_called(&mut self, from: Boot, key: CallKey) {
        let Some(asked) = self.calls.get_mut(&key).filter(|asked| asked.at.contains(&from)) else { return };
        asked.at.remove(&from);
        let is_over = asked.at.is_empty();
        self.effects.push(Effect::NoteCall(key));
        if is_over {
            self.end_call(key, None);
        }
    }

    /// A peer does not take a call: it does not serve the model any more, or is about to go.
    pub(super) fn heard_not_called(&mut self, from: Boot, key: CallKey) {
        let Some(asked) = self.calls.get_mut(&key).filter(|asked| asked.at.contains(&from)) else { return };
        asked.at.remove(&from);
        asked.without.insert(from);
        match asked.kind {
            CallKind::Preload => self.send_call(key),
            // There it has no workers that would need either.
            CallKind::Unload | CallKind::Pin(_) if asked.at.is_empty() => self.end_call(key, None),
            CallKind::Unload | CallKind::Pin(_) => {}
        }
    }

    /// The way to a peer is gone, and with it the calls of both ends.
    pub(super) fn lost_calls_at(&mut self, boot: Boot) {
        let lost: Vec<CallKey> =
            self.calls.iter().filter(|(_, asked)| asked.at.contains(&boot)).map(|(key, _)| *key).collect();
        for key in lost {
            let Some(asked) = self.calls.get_mut(&key) else { continue };
            asked.at.remove(&boot);
            asked.without.insert(boot);
            asked.lost_by = Some(boot);
            match asked.kind {
                CallKind::Preload => self.send_call(key),
                CallKind::Unload | CallKind::Pin(_) => self.end_call(key, Some(Failed::PeerLost(boot))),
            }
        }
        let hosted = self.peers.get_mut(&boot).map(|peer| std::mem::take(&mut peer.calls));
        for key in hosted.into_iter().flatten() {
            self.effects.push(Effect::DropCall(boot, key));
        }
    }

    pub(super) fn heard_call(&mut self, from: Boot, key: CallKey, wanted: &Wanted, effect: Effect) {
        let serves = !self.leaving && self.models.iter().any(|own| own.wanted == *wanted);
        let Some(peer) = self.peers.get_mut(&from) else { return };
        if !serves || peer.calls.len() >= MAX_HOSTED_CALLS {
            self.effects.push(Effect::Tell(from, Message::NotCalled(key)));
        } else if peer.calls.insert(key) {
            self.effects.push(effect);
        }
    }

    pub(super) fn heard_call_off(&mut self, from: Boot, key: CallKey) {
        if self.peers.get_mut(&from).is_some_and(|peer| peer.calls.remove(&key)) {
            self.effects.push(Effect::DropCall(from, key));
        }
    }

    /// The answer of a call of a peer is about to go out.
    pub(super) fn call_hosted(&mut self, from: Boot, key: CallKey) {
        if self.peers.get_mut(&from).is_some_and(|peer| peer.calls.remove(&key)) {
            self.effects.push(Effect::Tell(from, Message::Called(key)));
        }
    }
}
