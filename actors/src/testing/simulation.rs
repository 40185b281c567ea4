//! The pure core under a virtual clock: two or three pools with several models each, one room desk, real ledgers, and
//! a simulated world of callers, threads and messages in which every step can fail. After every event the invariants
//! of the design are checked. One seed is one history, the same each time, so a violation can be replayed.
//!
//! `world` runs the events over what is in `state`, `shell` carries out effects as the pools' shell does, `workers` and
//! `runs` are the threads, `room` is maintenance, `callers` send requests and orders, `checks` holds the invariants,
//! `scenario` what a seed decides at its start. A [`Plant`] makes the harness, never the core, do something wrong that
//! the checks must find.

mod callers;
mod checks;
mod coverage;
mod plant;
mod room;
mod runs;
mod scenario;
mod shell;
mod state;
mod workers;
mod world;

pub use coverage::Coverage;
pub use plant::Plant;

use world::World;

/// What one history came to.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Events that happened.
    pub events: u64,
    /// What kinds of things happened, and how often.
    pub coverage: Coverage,
}

/// An invariant that did not hold.
#[derive(Debug, Clone)]
pub struct Violation {
    /// The history.
    pub seed: u64,
    /// Which invariant.
    pub invariant: &'static str,
    /// What was seen.
    pub detail: String,
    /// Everything that happened up to then, a line each.
    pub trace: Vec<String>,
}

/// Runs one history. A violation is run a second time to write down its trace.
///
/// # Errors
/// The first invariant that does not hold.
pub fn run(seed: u64, plant: Option<Plant>) -> Result<Report, Box<Violation>> {
    let mut world = World::new(seed, plant, false);
    match world.run() {
        Ok(report) => Ok(report),
        Err(_) => match replay(seed, plant) {
            (_, Err(violation)) => Err(violation),
            (trace, Ok(_)) => Err(Box::new(Violation {
                seed,
                invariant: "determinism",
                detail: "the violation did not come up in the replay".to_owned(),
                trace,
            })),
        },
    }
}

/// Runs one history and writes down everything that happens.
pub fn replay(seed: u64, plant: Option<Plant>) -> (Vec<String>, Result<Report, Box<Violation>>) {
    let mut world = World::new(seed, plant, true);
    let result = world.run();
    let trace = world.take_trace();
    let result = result
        .map_err(|(invariant, detail)| Box::new(Violation { seed, invariant, detail, trace: trace.clone() }));
    (trace, result)
}
