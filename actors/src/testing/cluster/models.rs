//! The models of a node: they are loaded by requests and preloads, which takes a while, and go by cooldown and unload.

use std::time::Duration;

use crate::cluster::router::{CallKind, Room, Wanted};
use crate::id::Time;

/// Time that a load is told to take, and the range of the time that it takes.
pub(super) const TOLD_LOAD: Duration = Duration::from_secs(1);
const LOAD_MILLIS: std::ops::Range<u64> = 100..1500;

/// Whether a model is in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Memory {
    Cold,
    LoadingUntil(Time),
    Resident,
}

/// A model of a node.
#[derive(Debug, Clone)]
pub(super) struct SimModel {
    pub(super) wanted: Wanted,
    pub(super) capacity: [u32; 2],
    pub(super) memory: Memory,
    pub(super) pinned: bool,
    pub(super) unit: Option<Duration>,
    /// Percent of its latest requests that it says it has failed.
    pub(super) failed: u8,
    pub(super) room: Option<Room>,
}

impl SimModel {
    /// Notes that a load is over, if it is.
    pub(super) fn pass(&mut self, now: Time) {
        if let Memory::LoadingUntil(until) = self.memory
            && now >= until
        {
            self.memory = Memory::Resident;
        }
    }

    /// Begins a load unless it is there. Returns the time until it serves, and whether a load has begun.
    pub(super) fn need(&mut self, random: &mut fastrand::Rng, now: Time) -> (Duration, bool) {
        self.pass(now);
        match self.memory {
            Memory::Resident => (Duration::ZERO, false),
            Memory::LoadingUntil(until) => (until.since(now), false),
            Memory::Cold => {
                let load = Duration::from_millis(random.u64(LOAD_MILLIS));
                self.memory = Memory::LoadingUntil(now + load);
                (load, true)
            }
        }
    }

    pub(super) fn is_resident(&self) -> bool {
        self.memory == Memory::Resident
    }

    /// Goes by its cooldown, if nothing keeps it. `busy` says that it has requests.
    pub(super) fn cool(&mut self, busy: bool, now: Time) -> bool {
        self.pass(now);
        let goes = self.is_resident() && !busy && !self.pinned;
        if goes {
            self.memory = Memory::Cold;
        }
        goes
    }

    /// Does what a call says. Returns the time after which it is done, if that is not now.
    pub(super) fn call(&mut self, kind: CallKind, random: &mut fastrand::Rng, now: Time) -> Option<Duration> {
        match kind {
            CallKind::Preload => {
                let (left, _) = self.need(random, now);
                return Some(left).filter(|left| !left.is_zero());
            }
            CallKind::Unload => self.memory = Memory::Cold,
            CallKind::Pin(pinned) => self.pinned = pinned,
        }
        None
    }

    /// True if the call has been done.
    pub(super) fn has_done(&self, kind: CallKind) -> bool {
        match kind {
            CallKind::Preload => self.is_resident(),
            CallKind::Unload => self.memory == Memory::Cold,
            CallKind::Pin(pinned) => self.pinned == pinned,
        }
    }
}
