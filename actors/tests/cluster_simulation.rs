//! The router of a cluster keeps its invariants over many seeded histories of nodes on a bad network, in which every fault
//! occurs; and the checks that say so find each fault that is planted for them.
//!
//! `MODEL_ACTORS_CLUSTER_SEEDS` sets the number of histories.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::sync::atomic::{AtomicU64, Ordering};

use model_actors::testing::{ClusterCounts, ClusterPlant, run_cluster};

const SEEDS: u64 = 500;
const SEEDS_FOR_A_PLANT: u64 = 300;

/// Runs the histories on all cores and adds up what happened in them.
fn run_all(seeds: u64) -> ClusterCounts {
    let next = AtomicU64::new(0);
    let share = || {
        let mut all = ClusterCounts::new();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds {
                return all;
            }
            match run_cluster(seed, None, false) {
                Ok((counts, _)) => {
                    counts.into_iter().for_each(|(name, count)| *all.entry(name).or_default() += count)
                }
                Err(violation) => {
                    violation.trace.iter().rev().take(80).rev().for_each(|line| println!("{line}"));
                    panic!("seed {seed}: {}: {}", violation.invariant, violation.detail);
                }
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        let shares: Vec<_> = (0..threads).map(|_| scope.spawn(share)).collect();
        let mut all = ClusterCounts::new();
        for share in shares {
            share
                .join()
                .unwrap()
                .into_iter()
                .for_each(|(name, count)| *all.entry(name).or_default() += count);
        }
        all
    })
}

#[test]
fn every_invariant_holds_in_every_history_and_every_fault_occurs() {
    let seeds = std::env::var("MODEL_ACTORS_CLUSTER_SEEDS").ok().and_then(|seeds| seeds.parse().ok());
    let seeds = seeds.unwrap_or(SEEDS);
    let began = std::time::Instant::now();
    let counts = run_all(seeds);
    println!("{seeds} seeds in {:.1?}: {counts:#?}", began.elapsed());
    for name in [
        "asks",
        "cancels",
        "connections",
        "deaths",
        "disconnections",
        "evictions",
        "finished",
        "full",
        "full windows",
        "half-open links",
        "hangups",
        "late",
        "messages doubled",
        "messages lost",
        "no peer",
        "partitions",
        "peer lost",
        "rebirths",
        "refusals of the pool",
        "refused",
        "runs here",
    ] {
        let count = counts.get(name).copied().unwrap_or(0);
        assert!(count > seeds / 100, "{name} occurred {count} times only");
    }
}

#[test]
fn every_plant_is_found() {
    for plant in ClusterPlant::ALL {
        let found = (0..SEEDS_FOR_A_PLANT).find_map(|seed| run_cluster(seed, Some(plant), false).err());
        let Some(violation) = found else {
            panic!("{plant:?} was not found in {SEEDS_FOR_A_PLANT} histories")
        };
        println!(
            "{plant:?} was found at seed {}: {}: {}",
            violation.seed, violation.invariant, violation.detail
        );
    }
}
