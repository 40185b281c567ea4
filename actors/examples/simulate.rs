//! Runs the pure core through many seeded histories under a virtual clock and checks its invariants after every event.
//!
//! `cargo run --release -p model-actors --features testing --example simulate -- --seeds 20000`
//!
//! Exit status 1 says that an invariant did not hold; the seed and the event trace are printed, and `--seed X` replays
//! it. With `--plant NAME` the harness does something wrong on purpose, and finding it is also exit status 1.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use model_actors::testing::simulation::{Coverage, Plant, Violation, replay, run};

#[derive(Parser)]
#[command(about = "Seeded histories of the scheduler, all invariants checked after every event")]
struct Arguments {
    /// Number of seeds to run.
    #[arg(long, default_value_t = 20_000)]
    seeds: u64,
    /// The first seed.
    #[arg(long, default_value_t = 0)]
    start: u64,
    /// Replay this seed alone and print everything that happens.
    #[arg(long)]
    seed: Option<u64>,
    /// Something that the harness does wrong, to see that it is found.
    #[arg(long)]
    plant: Option<Plant>,
    /// Print one JSON object instead of text.
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match arguments.seed {
        Some(seed) => replay_one(seed, arguments.plant),
        None => run_many(&arguments),
    }
}

fn replay_one(seed: u64, plant: Option<Plant>) -> ExitCode {
    let (trace, result) = replay(seed, plant);
    for line in trace {
        println!("{line}");
    }
    match result {
        Ok(report) => {
            println!("seed {seed}: {} events, every invariant held", report.events);
            ExitCode::SUCCESS
        }
        Err(violation) => {
            println!("seed {seed}: violated: {}: {}", violation.invariant, violation.detail);
            ExitCode::FAILURE
        }
    }
}

fn run_many(arguments: &Arguments) -> ExitCode {
    let (mut events, mut coverage) = (0, Coverage::default());
    let began = Instant::now();
    for seed in arguments.start..arguments.start.saturating_add(arguments.seeds) {
        match run(seed, arguments.plant) {
            Ok(report) => {
                events += report.events;
                coverage.add(&report.coverage);
            }
            Err(violation) => return tell_violation(&violation, arguments),
        }
    }
    tell_success(arguments, events, &coverage, began.elapsed());
    ExitCode::SUCCESS
}

fn tell_violation(violation: &Violation, arguments: &Arguments) -> ExitCode {
    let Violation { seed, invariant, detail, trace } = violation;
    let after = seed - arguments.start + 1;
    if arguments.json {
        let plant = arguments.plant.map(Plant::name);
        let object = serde_json::json!({
            "violation": invariant, "detail": detail, "seed": seed, "plant": plant, "seeds": after, "trace": trace,
        });
        println!("{object}");
        return ExitCode::FAILURE;
    }
    for line in trace {
        println!("{line}");
    }
    println!("seed {seed}: violated: {invariant}: {detail}");
    match arguments.plant {
        Some(plant) => println!("the plant {} was found after {after} seeds", plant.name()),
        None => println!("replay it with --seed {seed}"),
    }
    ExitCode::FAILURE
}

fn tell_success(arguments: &Arguments, events: u64, coverage: &Coverage, took: Duration) {
    let seconds = took.as_secs_f64().max(1e-9);
    let (seed_rate, event_rate) = (arguments.seeds as f64 / seconds, events as f64 / seconds);
    let groups = [
        ("inputs", coverage.inputs()),
        ("effects", coverage.effects()),
        ("faults", coverage.faults()),
        ("endings", coverage.endings()),
    ];
    if arguments.json {
        let counts: serde_json::Map<String, serde_json::Value> = groups
            .into_iter()
            .map(|(name, counts)| {
                let counts = counts.into_iter().map(|(name, count)| (name.to_owned(), count.into()));
                (name.to_owned(), serde_json::Value::Object(counts.collect()))
            })
            .collect();
        let object = serde_json::json!({
            "seeds": arguments.seeds, "events": events, "seconds": seconds, "seeds_per_second": seed_rate,
            "events_per_second": event_rate, "coverage": counts,
        });
        println!("{object}");
        return;
    }
    for (name, counts) in groups {
        println!("{name}");
        for (name, count) in counts {
            println!("  {name:<28} {count:>12}");
        }
    }
    println!(
        "{} seeds, {events} events in {seconds:.1} s: {seed_rate:.0} seeds and {event_rate:.0} events a second; \
         every invariant held",
        arguments.seeds
    );
    if let Some(plant) = arguments.plant {
        println!("the plant {} was NOT found", plant.name());
    }
}
