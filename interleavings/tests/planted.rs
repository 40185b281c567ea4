//! The scenarios find the faults that are planted in a copy of the production files, each of which shows in some orders of
//! steps only.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(
    dead_code,
    unused_imports,
    unreachable_pub,
    missing_docs,
    unused_parens,
    reason = "only a part of the crate is here"
)]

extern crate interleavings as std;
extern crate self as ractor;

include!(concat!(env!("OUT_DIR"), "/planted/tree.rs"));
#[path = "support/stand_ins.rs"]
mod stand_ins;

use std::sync::atomic::{AtomicU64, Ordering};

use client::scenarios;
use production::{entry, intake, job};
pub use stand_ins::ActorRef;
use stand_ins::{capability, catalogue, config, error, id, pool, progress, reaper, telemetry, wakers};

/// At most so many orders of steps are tried for a fault at random, and so many again by the other scheduler.
const ORDERS: usize = 50_000;

/// The fault that is planted, by its place in the list and one; a 64-bit atomic, so no step of any scenario.
static PLANTED: AtomicU64 = AtomicU64::new(0);

const FAULTS: [(&str, fn()); 6] = [
    ("an earlier attempt may stream", scenarios::runs_do_not_mix),
    ("the slot goes back after the answer", scenarios::one_of_many_answers),
    ("who is first is seen before the push", scenarios::no_wakeup_of_the_pool_is_lost),
    ("a pool that dies leaves its intake open", scenarios::everybody_is_told_when_the_pool_dies),
    ("a waiter that goes away looks before it closes", scenarios::no_slot_is_lost),
    ("the end is told although chunks came just before it", scenarios::chunks_in_order_then_the_end),
];

/// True if this is planted.
pub(crate) fn is_planted(fault: &str) -> bool {
    let planted = (PLANTED.load(Ordering::Relaxed) as usize).checked_sub(1);
    planted.and_then(|place| FAULTS.get(place)).is_some_and(|(name, _)| *name == fault)
}

fn main() {
    // What shuttle says of the order that shows a fault, which is long.
    std::panic::set_hook(Box::new(|_| {}));
    for (place, (fault, scenario)) in FAULTS.into_iter().enumerate() {
        PLANTED.store(0, Ordering::Relaxed);
        shuttle::check_random(scenario, 200);
        PLANTED.store(place as u64 + 1, Ordering::Relaxed);
        let explored = std::panic::catch_unwind(|| {
            shuttle::check_random(scenario, ORDERS);
            shuttle::check_pct(scenario, ORDERS, 3);
        });
        if explored.is_ok() {
            println!("test {fault} ... NOT FOUND");
            std::process::exit(1);
        }
        println!("test {fault} ... found");
    }
    println!("{} passed, 0 failed", FAULTS.len());
}
