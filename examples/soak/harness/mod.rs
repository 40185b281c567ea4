//! Soak test, shared by the example and the test: many requests through the real actors on real threads, in
//! phases, each a system of its own under random faults (`phase`). The seed decides all events (`plan`);
//! callers record the outcome of every request (`ledger`); threads, descriptors and metrics are read before
//! and after (`meter`). Every wait has a limit, and a missing answer is a discrepancy.

mod ledger;
mod meter;
mod phase;
mod plan;

use std::time::{Duration, Instant};

pub(crate) use ledger::{Ledger, Report};
use meter::{Metrics, Reading};
pub(crate) use plan::Plant;

/// Requests of one phase; the last one takes the rest.
const PHASE: usize = 2_000;
/// Time for threads and descriptors to be released.
const SETTLE: Duration = Duration::from_secs(5);

/// Settings of a soak.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Options {
    /// Number of requests.
    pub(crate) requests: usize,
    /// Seed of all random choices.
    pub(crate) seed: u64,
    /// Fault that the harness plants, which the ledger must find.
    pub(crate) plant: Option<Plant>,
}

/// Runs the soak and returns its report. Blocks; must not be called inside a runtime.
///
/// # Errors
/// If the runtime, the metrics or a system could not be started.
pub(crate) fn run(options: Options) -> Result<Report, Box<dyn std::error::Error>> {
    quiet_scripted_panics();
    let metrics = Metrics::install()?;
    metrics.reset();
    let began = Instant::now();
    let before = Reading::of_process();
    let ledger = std::sync::Arc::new(Ledger::new(options.requests, options.plant));
    let kept = plan::Kept::default();
    let held = run_phases(options, &ledger, &kept)?;
    let after = Reading::settled(&before, SETTLE);
    let counted = metrics.counts();
    // Only now may a model that was kept hung on purpose go.
    drop(kept);
    Ok(ledger.report(options, began.elapsed(), (before, Reading { ..held.on_top_of(after) }), counted))
}

/// Runs all phases and adds up what they leave behind. The runtime and its threads are gone when this
/// returns.
fn run_phases(
    options: Options,
    ledger: &std::sync::Arc<Ledger>,
    kept: &plan::Kept,
) -> Result<phase::Leftovers, Box<dyn std::error::Error>> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("soak-runtime")
        .enable_time()
        .build()?;
    let mut left = phase::Leftovers::default();
    let mut first = 0;
    for number in 0.. {
        let end = (first + PHASE).min(options.requests);
        if first == end {
            break;
        }
        let plan = plan::PhasePlan::new(options, number, first..end);
        left += runtime.block_on(phase::run(plan, ledger.clone(), kept))?;
        first = end;
    }
    runtime.shutdown_timeout(Duration::from_secs(5));
    Ok(left)
}

/// Silences the messages of panics that are part of the script.
fn quiet_scripted_panics() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            let scripted = is_scripted(panic.payload());
            if !scripted {
                usual(panic);
            }
        }));
    });
}

fn is_scripted(panic: &(dyn std::any::Any + Send)) -> bool {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    text.is_some_and(|text| text.starts_with("the script says"))
}
