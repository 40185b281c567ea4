//! The router of a cluster under a virtual clock: some nodes, a network that loses, delays, doubles and reorders messages,
//! links that carry one way only, partitions, and nodes that die and come back. After every event the invariants are
//! checked, and after healing that nothing is left. One seed is one history.
//!
//! `network` is the links and their faults, `models` what is in memory where, `node` one node's shell, which carries out
//! effects, `world` the clock and the events, `faults` those of them that break something, `checks` the ledger of requests and
//! the invariants, `calls` those of calls. A [`ClusterPlant`] makes the harness, never the router, do something wrong that the
//! checks must find.

use std::collections::BTreeMap;

mod plant;
mod calls;
mod checks;
mod network;
mod models;
mod node;
mod world;
mod faults;

pub use plant::ClusterPlant;

use super::simulation::Violation;
use world::World;

/// Counts of the things that happened, by name.
pub type ClusterCounts = BTreeMap<&'static str, u64>;

/// Runs one history, and returns what happened and a line for each event if `traced`.
///
/// # Errors
/// The first invariant that does not hold.
pub fn run_cluster(
    seed: u64,
    plant: Option<ClusterPlant>,
    traced: bool,
) -> Result<(ClusterCounts, Vec<String>), Box<Violation>> {
    let mut world = World::new(seed, plant, traced);
    match world.run() {
        Ok(()) => Ok(world.into_counts()),
        Err((invariant, detail)) if traced => {
            let (_, trace) = world.into_counts();
            Err(Box::new(Violation { seed, invariant, detail, trace }))
        }
        // A second time, to write down its trace.
        Err(_) => run_cluster(seed, plant, true),
    }
}
