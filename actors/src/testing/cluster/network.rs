//! The network: a connection between two nodes and what it does to messages. A message is lost, late, doubled, or overtaken;
//! a link may carry nothing one way, or neither, while both ends believe in it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::checks::Piece;
use crate::cluster::router::{Message, RequestKey};

/// Index of a node, which stays the same when it comes back.
pub(super) type Index = usize;

/// A message, and what the shell carries along with it.
#[derive(Debug, Clone)]
pub(super) struct Packet {
    pub(super) message: Message,
    /// The request, for an ask.
    pub(super) request: Option<RequestKey>,
    /// The piece of the answer, for a chunk or a result.
    pub(super) piece: Option<Piece>,
}

/// Fate of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Lost,
    After(Duration),
    Twice(Duration, Duration),
}

/// Shares of messages with a fault, in thousandths.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Faults {
    pub(super) lost: u32,
    pub(super) late: u32,
    pub(super) doubled: u32,
}

#[derive(Debug, Default)]
pub(super) struct Network {
    pub(super) faults: Faults,
    /// Ways that carry nothing, although nobody is told.
    pub(super) blocked: BTreeSet<(Index, Index)>,
    /// Pairs that are connected, the smaller index first.
    pub(super) connected: BTreeSet<(Index, Index)>,
    /// Number of connections that each pair has had.
    pub(super) newest: BTreeMap<(Index, Index), u64>,
}

pub(super) fn pair(a: Index, b: Index) -> (Index, Index) {
    (a.min(b), a.max(b))
}

impl Network {
    pub(super) fn fate(&self, from: Index, to: Index, random: &mut fastrand::Rng) -> Fate {
        if self.blocked.contains(&(from, to)) {
            return Fate::Lost;
        }
        let draw = random.u32(..1000);
        // The way between two nodes keeps the order, but for the faults.
        let quick = Duration::from_micros(500 + 300 * (from + to) as u64);
        let slow = |random: &mut fastrand::Rng| Duration::from_millis(random.u64(20..3000));
        let Faults { lost, late, doubled } = self.faults;
        if draw < lost {
            Fate::Lost
        } else if draw < lost + late {
            Fate::After(slow(random))
        } else if draw < lost + late + doubled {
            Fate::Twice(quick, slow(random))
        } else {
            Fate::After(quick)
        }
    }
}
