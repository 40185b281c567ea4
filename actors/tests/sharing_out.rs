//! Requests that arrive together are shared out over all idle workers; only what is more than these can run waits in a
//! batch.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod timeline;

use timeline::{Core, KEY};

use model_actors::scheduler::{Effect, Input, Ticket};
use model_actors::{BatchLimits, PoolConfig, RequestId, Time};

/// The sizes of the batches that so many requests become at once, with these workers idle and so many at most a batch.
fn batches(requests: u64, workers: usize, most: usize) -> Vec<usize> {
    let batch = BatchLimits { requests: most, ..BatchLimits::default() };
    let config =
        PoolConfig { cold_start_workers: workers, max_workers: workers, batch, ..PoolConfig::default() };
    let mut core = Core::new(config);
    core.preload();
    let tickets = (1..=requests).map(|request| (KEY, Ticket::new(RequestId(request), Time::NEVER))).collect();
    let effects = core.tell(Input::Submit { tickets });
    let sizes = effects.iter().filter_map(|effect| match effect {
        Effect::Run { requests, .. } => Some(requests.len()),
        _ => None,
    });
    sizes.collect()
}

#[test]
fn every_idle_worker_gets_its_share() {
    assert_eq!(batches(2, 2, 32), [1, 1]);
    assert_eq!(batches(5, 2, 32), [3, 2]);
    assert_eq!(batches(3, 4, 32), [1, 1, 1]);
    assert_eq!(batches(9, 4, 32), [3, 2, 2, 2]);
}

#[test]
fn one_worker_takes_them_all_and_a_batch_has_its_limit() {
    assert_eq!(batches(9, 1, 32), [9]);
    assert_eq!(batches(9, 2, 4), [4, 4]);
}
