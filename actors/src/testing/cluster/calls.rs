//! The ledger of calls that are no requests, and their invariants: each is answered once and in time, and one that is
//! answered well was done by all whom it concerns.

use std::collections::{BTreeMap, BTreeSet};

use crate::cluster::router::{Boot, CallKey, CallKind, GRACE};
use crate::id::Time;

/// An invariant that does not hold, and the observation.
pub(super) type Broken = (&'static str, String);

/// A call, by the node that made it and its number.
pub(super) type CallAt = (Boot, CallKey);

#[derive(Debug)]
struct CallEntry {
    kind: CallKind,
    ends: Time,
    answered: Option<&'static str>,
    /// Peers that served the model when it was made, as far as its node knew.
    serving: BTreeSet<Boot>,
    /// Those that have done it, those that do not take it, and those whose answer has come.
    done: BTreeSet<Boot>,
    refused: BTreeSet<Boot>,
    noted: BTreeSet<Boot>,
}

#[derive(Debug, Default)]
pub(super) struct Calls {
    entries: BTreeMap<CallAt, CallEntry>,
    /// Those that are neither answered nor over.
    open: BTreeSet<CallAt>,
}

impl Calls {
    pub(super) fn open(&mut self, at: CallAt, kind: CallKind, ends: Time, serving: BTreeSet<Boot>) {
        let (done, refused, noted) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        self.entries.insert(at, CallEntry { kind, ends, answered: None, serving, done, refused, noted });
        self.open.insert(at);
    }

    /// The caller of a call goes. False if it was answered before.
    pub(super) fn close(&mut self, at: CallAt) -> bool {
        self.open.remove(&at)
    }

    pub(super) fn close_all(&mut self, boot: Boot) {
        self.open.retain(|(at, _)| *at != boot);
    }

    pub(super) fn kind(&self, at: CallAt) -> Option<CallKind> {
        self.entries.get(&at).map(|call| call.kind)
    }

    /// True if a call concerns several peers.
    pub(super) fn is_of_several(&self, at: CallAt) -> bool {
        self.entries.get(&at).is_some_and(|call| call.kind != CallKind::Preload && call.serving.len() > 1)
    }

    /// A node has done what the call says.
    pub(super) fn done(&mut self, at: CallAt, by: Boot) {
        self.entries.get_mut(&at).map(|call| call.done.insert(by));
    }

    /// A node does not take the call.
    pub(super) fn refused(&mut self, at: CallAt, by: Boot) {
        self.entries.get_mut(&at).map(|call| call.refused.insert(by));
    }

    /// The answer of a peer is kept for the caller.
    pub(super) fn note(&mut self, at: CallAt, of: Boot) -> Result<(), Broken> {
        let call = self.entries.get_mut(&at);
        let may = |call: &&mut CallEntry| call.done.contains(&of) && call.answered.is_none();
        let told = format!("{at:?} by {of:?}: {call:?}");
        match call.filter(may).is_some_and(|call| call.noted.insert(of)) {
            true => Ok(()),
            false => Err(("an answer to a call is that of who has done it", told)),
        }
    }

    pub(super) fn answer(&mut self, at: CallAt, with: &'static str, now: Time) -> Result<(), Broken> {
        let is_open = self.open.remove(&at);
        let call = match self.entries.get_mut(&at) {
            Some(call) if is_open && (with != "call late" || now >= call.ends) => call,
            call => {
                let detail = format!("{at:?} gets {with}: {call:?}");
                return Err(("a call is answered once, and late when it is", detail));
            }
        };
        call.answered = Some(with);
        let is_missing = |boot: &&Boot| !call.noted.contains(boot) && !call.refused.contains(boot);
        let is_done = match call.kind {
            CallKind::Preload => call.noted.len() == 1,
            CallKind::Unload | CallKind::Pin(_) => !call.serving.iter().any(|boot| is_missing(&boot)),
        };
        match with == "call answered" && !is_done {
            true => {
                Err(("a call that is answered was done by all whom it concerns", format!("{at:?}: {call:?}")))
            }
            false => Ok(()),
        }
    }

    pub(super) fn check_times(&self, now: Time) -> Result<(), Broken> {
        let late = |at: &&CallAt| self.entries.get(at).is_some_and(|call| now > call.ends + GRACE);
        match self.open.iter().find(late) {
            Some(at) => {
                Err(("a call is answered in time", format!("{at:?} at {now:?}: {:?}", self.entries.get(at))))
            }
            None => Ok(()),
        }
    }

    pub(super) fn check_end(&self) -> Result<(), Broken> {
        match self.open.first() {
            Some(at) => Err(("each call is answered", format!("{at:?}: {:?}", self.entries.get(at)))),
            None => Ok(()),
        }
    }
}
