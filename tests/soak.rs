//! A short soak, and proof that its ledger finds what does not add up. One test, because it counts the threads of its
//! process.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "../examples/soak/harness/mod.rs"]
mod harness;

use harness::{Options, Plant, run};

#[test]
fn everything_adds_up_and_what_does_not_is_found() {
    for seed in [1, 2] {
        let report = run(Options { requests: 3_000, seed, plant: None }).unwrap();
        assert!(report.adds_up(), "{report}");
        assert_eq!(report.faults_that_did_not_happen(), [""; 0], "{report}");
    }
    for (plant, found) in [
        (Plant::Lost, "never answered: 1 against 0"),
        (Plant::Twice, "answered twice: 1 against 0"),
        (Plant::Leak, "slots held after and before: 1 against 0"),
    ] {
        let report = run(Options { requests: 500, seed: 3, plant: Some(plant) }).unwrap();
        assert!(report.discrepancies.iter().any(|what| what == found), "{plant:?} was not found: {report}");
    }
}
