//! The messages that the pools of two nodes exchange, as the router sees them: requests, chunks and results are carried
//! along by the shell. Every message can come late, twice, in another order or not at all.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::id::{Lane, ModelId};

/// One start of a node. A node that comes back has another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Boot(pub u64);

/// An attempt to run a request on a peer, unique among all of the node that asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Run(pub u64);

/// A model as a request wants it: by name, and with these files.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Wanted {
    /// Its name.
    pub model: ModelId,
    /// Digest of its files: models of one name with other files are other models.
    pub digest: Arc<str>,
}

/// The memory that a model would be loaded into.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Room {
    /// Bytes that are free, or that caches give back.
    pub free: u64,
    /// Bytes of other models that could go: they are not pinned, and have no requests.
    pub evictable: u64,
}

/// A model that a node serves, as it tells one peer of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// The model.
    pub wanted: Wanted,
    /// True if it is in memory.
    pub resident: bool,
    /// Number of requests that the peer may have there at a time: interactive ones, and those of the batch lane.
    pub slots: [u32; 2],
    /// Cost of the requests that wait or run. A node of an earlier build counts each as 1.
    pub queue: u64,
    /// Measured cost of what is served in a second, for nodes of an earlier build; 0 while nothing is known. Such a node
    /// tells requests a second here, which is another unit, so it is not read.
    pub rate: u64,
    /// Time until it serves, if it is not in memory, or that its load would take.
    pub load: Duration,
    /// Number of the requests that wait or run; a node of an earlier build tells their cost alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests: Option<u64>,
    /// Measured time per unit of cost; none while nothing is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<Duration>,
    /// Bytes that it takes with one worker, as far as they are known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// The memory that it would be loaded into, if it is not in memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub room: Option<Room>,
    /// Percent of its latest requests that it has failed; 0 once that was long ago.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub failed: u8,
}

fn is_zero(number: &u8) -> bool {
    *number == 0
}

impl Offer {
    /// Number of the requests that wait or run.
    pub fn requests(&self) -> u64 {
        self.requests.unwrap_or(self.queue)
    }
}

/// Message that a node sends a peer four times a second.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Load {
    /// Number of the exchange, from 1.
    pub number: u64,
    /// Number of the last exchange of the peer that has been heard; 0 for none.
    pub heard: u64,
    /// It takes no more guests.
    pub leaving: bool,
    /// The models that it serves.
    pub offers: Vec<Offer>,
    /// Runs of the sender from this one on have not begun yet.
    pub below: Run,
    /// Its runs on the peer that have not ended, and the number of chunks of each that have been read.
    pub runs: Vec<(Run, u64)>,
    /// The runs of the peer that it has.
    pub guests: Vec<Run>,
}

/// The reason for which a pool does not take a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    /// There is no slot; there may be one soon.
    Full,
    /// It cannot serve the request now.
    Unable,
}

/// Number of a call among those of the node that makes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct CallKey(pub u64);

/// A call on a model that is no request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum CallKind {
    /// Load it, on one node.
    Preload,
    /// Stop its workers, on all nodes that serve it.
    Unload,
    /// Protect its workers on all of them, or end that.
    Pin(bool),
}

/// A message between the pools of two nodes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Message {
    /// The exchange.
    Load(Load),
    /// Run a request. It was sent after the exchange of number `after`.
    Ask {
        /// The run.
        run: Run,
        /// The exchange.
        after: u64,
        /// The model.
        wanted: Wanted,
        /// The lane.
        lane: Lane,
    },
    /// Nobody waits for this run any more.
    Cancel(Run),
    /// So many chunks of this run have been read.
    Credit(Run, u64),
    /// The run was not begun, and will not be.
    Refused(Run, Refusal),
    /// The model has begun with it.
    Began(Run),
    /// A chunk of the run, and its number, from 0.
    Chunk(Run, u64),
    /// The result of the run, after so many chunks.
    End(Run, u64),
    /// Call a model.
    Call {
        /// The call.
        call: CallKey,
        /// The model.
        wanted: Wanted,
        /// The call's kind.
        kind: CallKind,
        /// Time left.
        within: Duration,
    },
    /// The call is answered.
    Called(CallKey),
    /// The call is not taken: the model is not served there any more.
    NotCalled(CallKey),
    /// Nobody waits for the call any more.
    CallOff(CallKey),
}

/// Position of a lane in [`Offer::slots`].
pub const fn lane_index(lane: Lane) -> usize {
    match lane {
        Lane::Interactive => 0,
        Lane::Batch => 1,
    }
}
