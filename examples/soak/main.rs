//! Soak test: random faults against the real actors on real threads, and a ledger that has to balance:
//! `cargo run --release --example soak -- --requests 20000 --seed 1`. Exit status 1 if it does not.

use std::process::ExitCode;

use clap::{Parser, ValueEnum};

mod harness;

/// Random faults against the real actors; exit status 1 if the ledger does not add up.
#[derive(Parser)]
struct Arguments {
    /// Number of requests to send.
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    requests: u32,
    /// Chooses what happens.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Print the ledger as one JSON object.
    #[arg(long)]
    json: bool,
    /// Have the harness itself go wrong, to see that the ledger finds it.
    #[arg(long)]
    plant: Option<Planted>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Planted {
    /// Keep a model hung beyond the end, and take a slot for held.
    Leak,
    /// Forget one answer.
    Lost,
    /// Count one answer twice.
    Twice,
}

impl From<Planted> for harness::Plant {
    fn from(planted: Planted) -> Self {
        match planted {
            Planted::Leak => Self::Leak,
            Planted::Lost => Self::Lost,
            Planted::Twice => Self::Twice,
        }
    }
}

fn main() -> Result<ExitCode, Box<dyn std::error::Error>> {
    let arguments = Arguments::parse();
    let options = harness::Options {
        requests: arguments.requests as usize,
        seed: arguments.seed,
        plant: arguments.plant.map(harness::Plant::from),
    };
    let report = harness::run(options)?;
    match arguments.json {
        true => println!("{}", serde_json::to_string(&report)?),
        false => println!("{report}"),
    }
    Ok(if report.adds_up() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
