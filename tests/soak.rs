//! A short soak test, with controls that its ledger finds planted faults. One test, because it counts the
//! threads of its process.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "../examples/soak/harness/mod.rs"]
mod harness;

use harness::{Options, Plant, run};

/// Number of runs in which all faults have to be met; two are mostly enough.
const MOST_RUNS: u64 = 8;

#[test]
fn the_ledger_balances_and_planted_faults_are_found() {
    // Real threads meet each fault by chance, so each has to be met in one of the runs.
    let mut never: Option<Vec<_>> = None;
    for seed in 1..=MOST_RUNS {
        let report = run(Options { requests: 3_000, seed, plant: None }).unwrap();
        assert!(report.adds_up(), "{report}");
        let not_here = report.faults_that_did_not_happen();
        let never = never.get_or_insert_with(|| not_here.clone());
        never.retain(|fault| not_here.contains(fault));
        if never.is_empty() {
            break;
        }
    }
    assert_eq!(never.unwrap(), [""; 0]);
    for (plant, found) in [
        (Plant::Lost, "never answered: 1 against 0"),
        (Plant::Twice, "answered twice: 1 against 0"),
        (Plant::Leak, "slots held after and before: 1 against 0"),
    ] {
        let report = run(Options { requests: 500, seed: 3, plant: Some(plant) }).unwrap();
        assert!(report.discrepancies.iter().any(|what| what == found), "{plant:?} was not found: {report}");
    }
}
