//! The router of a cluster keeps its invariants over many seeded histories of nodes on a bad network, in which every fault
//! occurs; and the checks that say so find each fault that is planted for them.
//!
//! `MODEL_ACTORS_CLUSTER_SEEDS` sets the number of histories.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use model_actors::cluster::router::{
    Boot, EXCHANGE, Effect, Input, Load, Message, Own, Request, RequestKey, Room, Router, Wanted,
};
use model_actors::testing::{ClusterCounts, ClusterPlant, run_cluster};
use model_actors::{Lane, Time, wire};

const SEEDS: u64 = 200;
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
        "call answered",
        "call late",
        "call lost",
        "call of nobody",
        "callers of calls gone",
        "calls dropped",
        "calls of several answered",
        "cancels",
        "connections",
        "cooldowns",
        "deaths",
        "disconnections",
        "evictions",
        "finished",
        "full",
        "full windows",
        "half-open links",
        "hangups",
        "late",
        "leaves",
        "loads",
        "messages doubled",
        "messages lost",
        "no peer",
        "partitions",
        "peer lost",
        "pins",
        "preloads",
        "rebirths",
        "refusals of the pool",
        "refused",
        "runs here",
        "unloads",
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

/// The cost of a full mesh by its number of nodes: an exchange of one node with all others, and a request's choice of a
/// place. Figures, not a check: `--ignored --nocapture`.
#[test]
#[ignore = "prints figures"]
fn the_cost_of_a_mesh() {
    const MODELS: usize = 20;
    let wanted =
        |model: usize| Wanted { model: format!("model-{model}").into(), digest: "0".repeat(64).into() };
    let models: Vec<Own> = (0..MODELS)
        .map(|model| Own {
            wanted: wanted(model),
            workers: u32::from(model < 4),
            capacity: [100, 50],
            used: [0, 0],
            requests: 10,
            queue: 1000,
            unit: Some(Duration::from_micros(250)),
            load: Duration::from_secs(10),
            bytes: Some(1 << 30),
            room: (model >= 4).then_some(Room { free: 1 << 32, evictable: 1 << 33 }),
            failed: 0,
        })
        .collect();
    println!(
        "nodes | letter, bytes | sent in a second, KiB | exchange, us | hearing all, us | choice, us | slots granted"
    );
    for nodes in [3_u64, 10, 30, 100, 300, 1000] {
        let (mut router, mut now) = (Router::new(1), Time::ZERO);
        router.step(Input::Models(models.clone()), now);
        (1..nodes).for_each(|peer| drop(router.step(Input::Linked(Boot(peer)), now)));
        now = now + EXCHANGE;
        let began = Instant::now();
        let told = router.step(Input::Tick, now);
        let exchange = began.elapsed();
        let loads = told.into_iter().filter_map(|effect| match effect {
            Effect::Tell(_, Message::Load(load)) => Some(load),
            _ => None,
        });
        let loads: Vec<Load> = loads.collect();
        let load = loads[0].clone();
        let bytes = wire::encode(&load).unwrap().len() as u64;
        let granted: u32 = load.offers[0].slots.iter().sum();
        let began = Instant::now();
        for (peer, load) in (1..nodes).zip(loads) {
            router.step(Input::Heard { from: Boot(peer), message: Message::Load(load) }, now);
        }
        let heard = began.elapsed();
        let began = Instant::now();
        let request = |model| Request {
            wanted: wanted(model),
            lane: Lane::Interactive,
            rank: 0,
            cost: 1,
            deadline: now + Duration::from_secs(10),
            end: Time::NEVER,
            reruns: true,
            impatient: false,
        };
        const REQUESTS: usize = 20;
        for key in 0..REQUESTS {
            router.step(Input::Submit(RequestKey(key as u64), request(key % MODELS)), now);
        }
        let choice = began.elapsed() / REQUESTS as u32;
        println!(
            "{nodes} | {bytes} | {:.0} | {} | {} | {:.1} | {granted}",
            (bytes * (nodes - 1) * 4) as f64 / 1024.0,
            exchange.as_micros(),
            heard.as_micros(),
            choice.as_secs_f64() * 1e6
        );
    }
}
