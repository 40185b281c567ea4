//! Fate of a request whose deadline passes while it runs.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod timeline;

use model_actors::scheduler::{Effect, Input, Outcome, Ticket};
use model_actors::{Failure, PoolConfig, RequestId};
use timeline::{Core, KEY, at};

/// Only the job knows if a first output met the deadline, so the scheduler answers either way.
#[test]
fn a_run_that_fails_past_the_deadline_is_answered_and_not_forgotten() {
    let mut core = Core::new(PoolConfig::default().with_cold_start_workers(1).with_max_workers(1));
    core.preload();
    let request = RequestId(1);
    core.tell(Input::Submit { tickets: vec![(KEY, Ticket::new(request, at(0, 10)))] });
    let worker = core.runs_of(request)[0];
    core.wait_until(at(0, 11));
    let is_expired = |(_, effect): &(_, Effect)| matches!(effect, Effect::ExpireRunning { .. });
    assert_eq!(core.log.iter().filter(|entry| is_expired(entry)).count(), 1);
    let outcome = Outcome::Failed(Failure::failed("read error"));
    core.tell(Input::Finished { worker, outcomes: vec![(request, outcome)] });
    assert_eq!(core.failure_of(request), Some("model_error"));
}
