//! Choice of the workers to evict when room runs short: the least worth, no more than is needed, and never the pinned, the young or
//! what is in use.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::time::Duration;

use model_actors::maintenance::eviction::{EvictionPlan, IdleWorker, Offer, PoolIndex, plan, relieve};
use model_actors::{Bytes, Device, Footprint, Ledger, ModelKey, WorkerId};

/// A full memory of this size.
fn full(limit: u64) -> Ledger {
    let mut ledger = Ledger::new(Bytes(limit));
    assert!(ledger.charge(Bytes(limit)));
    ledger
}

/// Old enough, not pinned, all its workers idle for so many seconds; one second to load again.
fn offer(pool: usize, footprint: (u64, u64), idle_seconds: &[u64]) -> Offer {
    let worker = |(index, seconds): (usize, &u64)| IdleWorker {
        worker: WorkerId(index as u64 + 1),
        idle_for: Duration::from_secs(*seconds),
        ready_for: Duration::from_secs(1000),
    };
    Offer {
        pool: PoolIndex(pool),
        model: ModelKey(0),
        device: Device::host(),
        pinned: false,
        idle: idle_seconds.iter().enumerate().map(worker).collect(),
        holders: idle_seconds.len(),
        leaving: 0,
        footprint: Footprint::new(Bytes(footprint.0), Bytes(footprint.1)),
        reload_time: Duration::from_secs(1),
        min_residency: Duration::from_secs(5),
    }
}

fn plan_for(needed: u64, ledger: Ledger, offers: &[Offer]) -> EvictionPlan {
    plan(Bytes(needed), ledger, &Device::host(), offers)
}

/// Pool and worker of each that goes.
fn evict(workers: &[(usize, u64)]) -> EvictionPlan {
    EvictionPlan::Evict(workers.iter().map(|(pool, worker)| (PoolIndex(*pool), WorkerId(*worker))).collect())
}

#[test]
fn what_is_free_needs_no_eviction() {
    let mut ledger = Ledger::new(Bytes(100));
    assert!(ledger.charge(Bytes(40)));
    assert_eq!(plan_for(60, ledger, &[offer(0, (40, 0), &[9])]), EvictionPlan::Fits);
}

#[test]
fn what_a_pinned_model_has_on_its_way_out_does_not_stay() {
    let pinned = Offer { pinned: true, leaving: 1, ..offer(0, (0, 40), &[9, 9]) };
    assert_eq!(plan_for(60, full(100), std::slice::from_ref(&pinned)), EvictionPlan::Wait);
    assert_eq!(plan_for(61, full(100), &[pinned]), EvictionPlan::Never);
}

#[test]
fn a_further_worker_of_a_model_is_worth_what_it_frees_itself() {
    // Three more of the first model's workers are in use. 10 × 10, then 9 × 10 before 5 × 10.
    let first = Offer { holders: 5, ..offer(0, (0, 10), &[10, 5]) };
    let second = Offer { holders: 5, ..offer(1, (0, 10), &[9]) };
    assert_eq!(plan_for(20, full(100), &[first, second]), evict(&[(0, 1), (1, 1)]));
}

#[test]
fn idle_time_times_bytes_over_reload_time_decides() {
    let long_idle = offer(0, (40, 0), &[100]);
    let large = offer(1, (400, 0), &[11]);
    let quick_to_load = Offer { reload_time: Duration::from_millis(10), ..offer(2, (40, 0), &[2]) };
    let offers = [long_idle, large, quick_to_load];
    // 100 × 40, 11 × 400, 2 × 40 × 100: the last first, then the large one, then the one that was idle long.
    assert_eq!(plan_for(30, full(480), &offers), evict(&[(2, 1)]));
    assert_eq!(plan_for(30, full(480), &offers[..2]), evict(&[(1, 1)]));
    assert_eq!(relieve(&Device::host(), &offers), [(PoolIndex(2), WorkerId(1))]);
    assert_eq!(relieve(&Device::host(), &offers[..1]), [(PoolIndex(0), WorkerId(1))]);
}

#[test]
fn the_shared_weights_come_back_with_the_last_holder_only() {
    let two = offer(0, (80, 10), &[50, 40]);
    assert_eq!(plan_for(10, full(100), std::slice::from_ref(&two)), evict(&[(0, 1)]));
    assert_eq!(plan_for(11, full(100), std::slice::from_ref(&two)), evict(&[(0, 1), (0, 2)]));
    let one_of_them_busy = Offer { idle: two.idle[..1].to_vec(), ..two };
    assert_eq!(
        plan_for(11, full(100), &[one_of_them_busy]),
        EvictionPlan::Wait,
        "the busy one keeps the weights"
    );
}

#[test]
fn relief_takes_the_siblings_along_where_the_weights_come_back_with_them() {
    let two = offer(0, (80, 10), &[50, 40]);
    let both = [(PoolIndex(0), WorkerId(1)), (PoolIndex(0), WorkerId(2))];
    assert_eq!(relieve(&Device::host(), std::slice::from_ref(&two)), both);
    let others = Offer { holders: 3, ..two };
    assert_eq!(relieve(&Device::host(), &[others]), both[..1], "the busy one keeps the weights");
    // Each of the two alone would free less than the one does.
    let one = offer(1, (20, 10), &[50]);
    let two = offer(0, (80, 10), &[50, 40]);
    assert_eq!(relieve(&Device::host(), &[two, one]), both, "it is weighed as a whole");
}

#[test]
fn no_more_go_than_are_needed() {
    // The small one is worth least and would be picked first; the large one is needed anyway and is enough.
    let offers = [offer(0, (10, 0), &[1000]), offer(1, (90, 0), &[10])];
    assert_eq!(plan_for(90, full(100), &offers), evict(&[(1, 1)]));
    assert_eq!(plan_for(91, full(100), &offers), evict(&[(0, 1), (1, 1)]));
}

#[test]
fn the_pinned_the_young_and_the_busy_stay() {
    let pinned = Offer { pinned: true, ..offer(0, (100, 0), &[1000]) };
    assert_eq!(plan_for(10, full(100), std::slice::from_ref(&pinned)), EvictionPlan::Never);
    assert!(relieve(&Device::host(), &[pinned]).is_empty());

    let mut young = offer(0, (100, 0), &[4]);
    young.idle[0].ready_for = Duration::from_millis(4_999);
    assert_eq!(plan_for(10, full(100), std::slice::from_ref(&young)), EvictionPlan::Wait);
    assert!(relieve(&Device::host(), std::slice::from_ref(&young)).is_empty());
    young.idle[0].ready_for = Duration::from_secs(5);
    assert_eq!(plan_for(10, full(100), &[young]), evict(&[(0, 1)]));

    let busy = Offer { idle: Vec::new(), ..offer(0, (100, 0), &[1]) };
    assert_eq!(plan_for(10, full(100), &[busy]), EvictionPlan::Wait);
}

#[test]
fn what_is_on_its_way_back_is_waited_for() {
    let going = Offer { idle: Vec::new(), leaving: 1, ..offer(0, (60, 0), &[1]) };
    let idle = offer(1, (40, 0), &[1000]);
    assert_eq!(plan_for(60, full(100), &[going.clone(), idle.clone()]), EvictionPlan::Wait);
    assert_eq!(plan_for(61, full(100), &[going, idle]), evict(&[(1, 1)]));
    // One of two leaves: its weights stay with the other.
    let half_going = Offer { leaving: 1, ..offer(0, (80, 10), &[5, 5]) };
    let half_going = Offer { idle: half_going.idle[1..].to_vec(), ..half_going };
    assert_eq!(plan_for(10, full(100), std::slice::from_ref(&half_going)), EvictionPlan::Wait);
    assert_eq!(plan_for(11, full(100), &[half_going]), evict(&[(0, 2)]));
}

#[test]
fn what_can_never_fit_is_said_at_once() {
    assert_eq!(
        plan_for(101, full(100), &[offer(0, (100, 0), &[1000])]),
        EvictionPlan::Never,
        "beyond the limit"
    );
    let offers = [Offer { pinned: true, ..offer(0, (60, 0), &[1]) }, offer(1, (40, 0), &[1])];
    assert_eq!(plan_for(41, full(100), &offers), EvictionPlan::Never, "beyond what is not pinned");
    assert_eq!(plan_for(40, full(100), &offers), evict(&[(1, 1)]));
}

#[test]
fn other_memories_do_not_count() {
    let elsewhere = Offer { device: Device::named("cuda:0"), ..offer(0, (100, 0), &[1000]) };
    assert_eq!(plan_for(10, full(100), std::slice::from_ref(&elsewhere)), EvictionPlan::Wait);
    assert!(relieve(&Device::host(), &[elsewhere]).is_empty());
}

#[test]
fn equals_go_by_pool_and_worker() {
    let offers = [offer(1, (10, 0), &[7]), offer(0, (0, 10), &[7, 7])];
    assert_eq!(plan_for(5, full(100), &offers), evict(&[(0, 1)]));
}

/// The choice may not depend on how many workers a model has.
#[test]
fn a_model_is_weighed_as_a_whole_however_many_workers_it_has() {
    let hour = 3600;
    for workers in 1..=4 {
        let long_idle = offer(0, (6000, 10), &vec![hour; workers]);
        let just_used = offer(1, (6000, 10), &[10]);
        let all: Vec<(usize, u64)> = (1..=workers as u64).map(|worker| (0, worker)).collect();
        let offers = [just_used, long_idle];
        assert_eq!(plan_for(5000, full(12_100), &offers), evict(&all), "{workers} workers");
        let relieved = relieve(&Device::host(), &offers);
        assert_eq!(EvictionPlan::Evict(relieved), evict(&all), "{workers} workers");
    }
}

/// A worker that was not needed lately says nothing of its model.
#[test]
fn the_last_use_of_a_model_is_that_of_its_most_recently_used_worker() {
    let in_use = offer(0, (6000, 10), &[3600, 5]);
    let idle = offer(1, (6000, 10), &[600]);
    assert_eq!(plan_for(5000, full(12_030), &[in_use.clone(), idle.clone()]), evict(&[(1, 1)]));
    assert_eq!(relieve(&Device::host(), &[in_use.clone(), idle]), [(PoolIndex(1), WorkerId(1))]);
    // Its surplus worker goes before a model that is worth more, if that is enough.
    let precious = Offer { reload_time: Duration::from_secs(1000), ..offer(1, (6000, 10), &[600]) };
    assert_eq!(plan_for(5, full(12_030), &[in_use, precious]), evict(&[(0, 1)]));
}

#[test]
fn a_model_that_is_partly_on_its_way_out_goes_with_the_rest_of_it() {
    let going = Offer { leaving: 1, holders: 3, ..offer(0, (6000, 10), &[3600, 3600]) };
    let used = offer(1, (6000, 10), &[10]);
    assert_eq!(plan_for(5000, full(12_040), &[used, going]), evict(&[(0, 1), (0, 2)]));
}

#[test]
fn a_model_with_a_worker_that_stays_is_worth_what_the_others_free() {
    let young = |mut offer: Offer| {
        offer.idle[0].ready_for = Duration::from_secs(1);
        offer
    };
    let busy = Offer { holders: 3, ..offer(0, (6000, 10), &[3600, 3600]) };
    let used = offer(1, (6000, 10), &[10]);
    for kept in [busy, young(offer(0, (6000, 10), &[3600, 3600, 3600]))] {
        assert_eq!(plan_for(5000, full(12_040), &[kept, used.clone()]), evict(&[(1, 1)]));
    }
}
