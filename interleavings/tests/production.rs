//! The production files, included as they are, keep their promises in whatever order their threads take their steps.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(
    dead_code,
    unused_imports,
    unreachable_pub,
    missing_docs,
    reason = "only a part of the crate is here"
)]

extern crate interleavings as std;
extern crate self as ractor;

#[path = "../../actors/src"]
mod production {
    pub(crate) mod entry;
    pub(crate) mod intake;
    pub(crate) mod job;
}
#[path = "../../actors/src/client"]
mod client {
    pub(crate) mod gate;
    pub(crate) mod reply;
    #[path = "../../../interleavings/tests/support/scenarios.rs"]
    pub(crate) mod scenarios;

    pub(crate) use crate::stand_ins::client::*;
}
#[path = "support/stand_ins.rs"]
mod stand_ins;

use client::scenarios;
use production::{entry, intake, job};
pub use stand_ins::ActorRef;
use stand_ins::{capability, catalogue, config, error, id, pool, progress, reaper, telemetry, wakers};

/// Orders of steps tried at random, and so many again by the scheduler that finds faults of few coincidences.
const ORDERS: usize = 10_000;

fn main() {
    for (name, scenario) in scenarios::ALL {
        shuttle::check_random(scenario, ORDERS);
        shuttle::check_pct(scenario, ORDERS, 3);
        println!("test {name} ... ok");
    }
    println!("{} passed, 0 failed", scenarios::ALL.len());
}
