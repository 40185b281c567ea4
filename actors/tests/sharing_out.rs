//! Requests that arrive together are shared out over all idle workers; only what is more than these can run waits in a
//! batch.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod timeline;

use timeline::{Core, KEY};

use model_actors::scheduler::{Batching, CallId, Effect, Input, ModelPolicy, Ticket};
use model_actors::{BatchKey, BatchLimits, Cost, Device, ModelId, ModelKey, PoolConfig, RequestId, Time};

/// The sizes of the batches that so many requests become at once, with these workers idle and so many at most a batch.
fn batches(requests: u64, workers: usize, most: usize) -> Vec<usize> {
    let batch = BatchLimits::default().with_requests(most);
    let config =
        PoolConfig::default().with_cold_start_workers(workers).with_max_workers(workers).with_batch(batch);
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

/// A second model, whose settings are not checked.
fn declare(core: &mut Core, config: PoolConfig, batching: Batching) -> ModelKey {
    let key = ModelKey(1);
    let (model, device) = (ModelId::from("second"), Device::host());
    let policy = ModelPolicy { model, device, config: config.into(), batching, pinned: false };
    core.tell(Input::Declare { key, policy });
    key
}

#[test]
fn a_cold_start_takes_no_more_workers_than_the_model_may_have() {
    for (cold_start_workers, max_workers, started) in [(2, 1, 1), (4, 2, 2), (2, 4, 2)] {
        let mut core = Core::new(PoolConfig::default());
        let config = PoolConfig::default().with_cold_start_workers(cold_start_workers);
        let config = config.with_max_workers(max_workers);
        let key = declare(&mut core, config, Batching::PerRun);
        core.tell(Input::Preload { key, call: CallId(1) });
        assert_eq!(core.starts().len(), started, "{cold_start_workers} of {max_workers}");
    }
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

/// Each request joins the run of its own batch key, so it does not block the one behind it.
#[test]
fn whoever_can_join_a_run_does() {
    let config = PoolConfig::default().with_cold_start_workers(2).with_max_workers(2);
    let mut core = Core::new(config.clone());
    let key = declare(&mut core, config, Batching::Continuous);
    let mut submit = |requests: [(u64, u64); 2]| {
        let ticket = |(request, batch)| {
            (key, Ticket { key: BatchKey(batch), ..Ticket::new(RequestId(request), Time::NEVER) })
        };
        core.tell(Input::Submit { tickets: requests.map(ticket).into() });
        requests.map(|(request, _)| core.runs_of(RequestId(request)))
    };
    let [first, second] = submit([(1, 0), (2, 1)]);
    assert!(first.len() == 1 && second.len() == 1 && first != second, "a worker each");
    assert_eq!(submit([(3, 1), (4, 0)]), [second, first]);
}

#[test]
fn costs_near_the_end_of_their_range_add_up_to_no_more_than_it() {
    let batch = BatchLimits::default().with_requests(64).with_cost(u64::MAX);
    let config = PoolConfig::default().with_cold_start_workers(1).with_max_workers(1).with_batch(batch);
    let mut core = Core::new(config.clone());
    let key = declare(&mut core, config, Batching::Continuous);
    let mut submit = |requests: std::ops::Range<u64>| {
        let ticket = |request| {
            (key, Ticket { cost: Cost(u64::MAX / 2), ..Ticket::new(RequestId(request), Time::NEVER) })
        };
        core.tell(Input::Submit { tickets: requests.clone().map(ticket).collect() });
        requests.map(|request| core.runs_of(RequestId(request)).len()).collect::<Vec<_>>()
    };
    assert_eq!(submit(1..5), [1; 4], "a sum beyond the range is as much as the limit");
    assert_eq!(submit(5..7), [0; 2], "which leaves nothing for others");
}
