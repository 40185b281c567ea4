//! The pure core keeps every invariant of the design over 20,000 seeded histories, in which every kind of input,
//! effect and fault occurs; and the checks that say so find each fault that is planted for them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::sync::atomic::{AtomicU64, Ordering};

use model_actors::testing::simulation::{Coverage, Plant, Violation, replay, run};

const SEEDS: u64 = 20_000;
const SEEDS_FOR_A_PLANT: u64 = 10_000;

/// Runs the histories on all cores and adds up what happened in them.
fn run_all(seeds: u64) -> Result<Coverage, Box<Violation>> {
    let next = AtomicU64::new(0);
    let share = || -> Result<Coverage, Box<Violation>> {
        let mut coverage = Coverage::default();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds {
                return Ok(coverage);
            }
            coverage.add(&run(seed, None)?.coverage);
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        let shares: Vec<_> = (0..threads).map(|_| scope.spawn(share)).collect();
        let mut all = Coverage::default();
        for share in shares {
            all.add(&share.join().unwrap()?);
        }
        Ok(all)
    })
}

#[test]
fn every_invariant_holds_in_every_history_and_everything_occurs() {
    let coverage = run_all(SEEDS).unwrap_or_else(|violation| {
        let last: Vec<&String> = violation.trace.iter().rev().take(60).collect();
        for line in last.iter().rev() {
            println!("{line}");
        }
        panic!("seed {}: {}: {}", violation.seed, violation.invariant, violation.detail)
    });
    for counts in [coverage.inputs(), coverage.effects(), coverage.faults()] {
        for (name, count) in counts {
            assert!(count > 100, "{name} occurred {count} times only");
        }
    }
    let endings: Vec<&str> = coverage.endings().into_iter().map(|(name, _)| name).collect();
    for ending in ["ok", "cancelled", "timeout", "poison", "worker_stuck", "memory_exhausted", "circuit_open"]
    {
        assert!(endings.contains(&ending), "no request ended with {ending}");
    }
}

#[test]
fn every_plant_is_found_by_the_check_that_is_there_for_it() {
    for plant in Plant::ALL {
        let found = (0..SEEDS_FOR_A_PLANT).find_map(|seed| run(seed, Some(plant)).err());
        let violation = found.unwrap_or_else(|| panic!("{} was not found", plant.name()));
        let expected = plant.found_by();
        assert!(expected.contains(&violation.invariant), "{}: {}", plant.name(), violation.invariant);
        assert!(!violation.trace.is_empty(), "a violation comes with its trace");
    }
}

#[test]
fn a_seed_is_one_history() {
    for seed in 0..20 {
        let (first, second) = (replay(seed, None), replay(seed, None));
        assert_eq!(first.0, second.0, "seed {seed}");
        assert_eq!(first.1.unwrap().events, run(seed, None).unwrap().events, "seed {seed}");
    }
}

#[test]
fn a_plant_has_a_name_on_the_command_line() {
    for plant in Plant::ALL {
        assert_eq!(plant.name().parse::<Plant>(), Ok(plant));
    }
    assert!("weeds".parse::<Plant>().unwrap_err().contains("lost-load"));
}
