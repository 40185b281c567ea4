//! This process as a node of a cluster: carries out what the router decides. `connections` keeps sessions to peers, with
//! `dialing` for those that this node opens. A `speaker` stands for each pool that is shared: it is the one actor that
//! peers know. `spawn` starts it, `way` leads clients to it, and `messages` is what it is told. `guests` are the runs of
//! peers' requests, `post` and `parcels` carry what is too large for one letter, `own` measures this node's models, and `digests` finds out what
//! they are.
//!
//! ractor's tables of processes and groups belong to the process, and so does a node: there is one in each.

mod dialing;
mod post;
mod parcels;
mod own;
mod digests;
mod guests;
mod messages;
mod way;
mod speaker;
mod spawn;
mod connections;

pub(crate) use connections::{Membership, MembershipArguments, NodeSlot};
pub(crate) use spawn::SpawnSpeaker;
pub(crate) use way::Way;
