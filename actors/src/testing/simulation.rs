//! The pure core under a virtual clock: two or three pools with several models each, one load queue, real
//! ledgers, and a simulated world of callers, threads and messages in which every step can fail. After every
//! event the invariants of the design are checked. One seed is one history, the same each time, so a
//! violation can be replayed.
//!
//! `scenario` holds what a seed decides at its start, `state`, `line` and `accounts` the data, `world` the clock and the events,
//! `checks`, `order`, `shares`, `worth` and `roster` the invariants. `room` is maintenance, `caches` what models keep beside their weights, `workers` and `runs` are the threads,
//! `shell` carries out effects as the pools' shell does, `death` is the end of a pool and the beginning of the next,
//! `callers` sends requests and commands. A [`Plant`] makes the harness,
//! never the core, do something wrong that the checks must find.

mod coverage;
mod plant;
mod scenario;
mod line;
mod accounts;
mod state;
mod world;
mod checks;
mod order;
mod shares;
mod worth;
mod roster;
mod caches;
mod room;
mod workers;
mod runs;
mod shell;
mod death;
mod callers;

pub use coverage::Coverage;
pub use plant::Plant;

use world::World;

/// The report of one history.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Events that happened.
    pub events: u64,
    /// Counts of the things that happened, by kind.
    pub coverage: Coverage,
}

/// An invariant that did not hold.
#[derive(Debug, Clone)]
pub struct Violation {
    /// The seed of the history.
    pub seed: u64,
    /// The invariant.
    pub invariant: &'static str,
    /// The observation that contradicts it.
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
