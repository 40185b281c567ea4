//! The queue of loads: strictly first come, first served on each device, room made by eviction, and nobody waits beyond
//! the moment that was named.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::time::Duration;

use model_actors::maintenance::eviction::{IdleWorker, Offer, PoolIndex};
use model_actors::maintenance::room::{LoadQueue, RoomAsk, RoomEffect, RoomInput};
use model_actors::{Bytes, Device, Footprint, Ledger, ModelKey, Time, WorkerId};

/// A load queue for two pools and one memory of 100 bytes, on a clock that the test sets.
struct Harness {
    load_queue: LoadQueue,
    ledgers: BTreeMap<Device, Ledger>,
    now: Time,
}

fn ask(worker: u64) -> RoomAsk {
    RoomAsk { pool: PoolIndex(0), worker: WorkerId(worker) }
}

fn millis(millis: u64) -> Time {
    Time::after_start(Duration::from_millis(millis))
}

impl Harness {
    fn new(charged: u64) -> Self {
        let mut ledger = Ledger::new(Bytes(100));
        assert!(ledger.charge(Bytes(charged)));
        let ledgers = BTreeMap::from([(Device::host(), ledger)]);
        Self { load_queue: LoadQueue::new(2), ledgers, now: Time::ZERO }
    }

    /// Takes leases as they are granted, as maintenance does.
    fn tell(&mut self, input: RoomInput) -> Vec<RoomEffect> {
        let mut effects = Vec::new();
        self.load_queue.handle(self.now, input, &self.ledgers, &mut effects);
        for effect in effects.clone() {
            if let RoomEffect::Grant { ask, device, needed } = effect {
                let taken = self.ledgers.get_mut(&device).unwrap().charge(needed);
                assert!(taken, "a grant that does not fit");
                effects.extend(self.tell(RoomInput::Granted { ask }));
            }
        }
        effects
    }

    fn ask(&mut self, worker: u64, needed: u64, until: Time) -> Vec<RoomEffect> {
        let (model, device) = (ModelKey(worker as u32), Device::host());
        self.tell(RoomInput::Ask { ask: ask(worker), model, device, needed: Bytes(needed), until })
    }

    fn release(&mut self, bytes: u64) -> Vec<RoomEffect> {
        self.ledgers.get_mut(&Device::host()).unwrap().give_back(Bytes(bytes));
        self.tell(RoomInput::Released)
    }

    fn offers(&mut self, pool: usize, offers: Vec<Offer>) -> Vec<RoomEffect> {
        self.tell(RoomInput::Offers { pool: PoolIndex(pool), offers })
    }

    fn at(&mut self, now: Time) -> Vec<RoomEffect> {
        self.now = now;
        self.tell(RoomInput::Tick)
    }
}

fn grant(worker: u64, needed: u64) -> RoomEffect {
    RoomEffect::Grant { ask: ask(worker), device: Device::host(), needed: Bytes(needed) }
}

fn deny(worker: u64, needed: u64) -> RoomEffect {
    RoomEffect::Deny { ask: ask(worker), device: Device::host(), needed: Bytes(needed) }
}

/// One idle worker that holds so many bytes.
fn idle(pool: usize, model: u32, bytes: u64) -> Offer {
    let long = Duration::from_secs(60);
    Offer {
        pool: PoolIndex(pool),
        model: ModelKey(model),
        device: Device::host(),
        pinned: false,
        idle: vec![IdleWorker { worker: WorkerId(77), idle_for: long, ready_for: long }],
        holders: 1,
        leaving: 0,
        footprint: Footprint::new(Bytes(bytes), Bytes(0)),
        reload_time: Duration::from_secs(1),
        min_residency: Duration::ZERO,
    }
}

/// The same, at work.
fn in_use(pool: usize, model: u32, bytes: u64) -> Offer {
    Offer { idle: vec![], ..idle(pool, model, bytes) }
}

#[test]
fn what_fits_is_granted_at_once() {
    let mut harness = Harness::new(40);
    assert_eq!(harness.ask(1, 60, Time::NEVER), [grant(1, 60)]);
    assert!(harness.load_queue.is_empty());
    assert_eq!(harness.load_queue.alarm(), Time::NEVER);
}

#[test]
fn nobody_overtakes() {
    let mut harness = Harness::new(60);
    assert_eq!(harness.ask(1, 80, Time::NEVER), [RoomEffect::Poll]);
    assert_eq!(harness.ask(2, 10, Time::NEVER), [], "it would fit, but another was first");
    assert_eq!(harness.release(30), []);
    assert_eq!(harness.release(30), [grant(1, 80), grant(2, 10)]);
}

#[test]
fn bytes_that_come_back_are_a_reason_to_look_again_at_once() {
    let mut harness = Harness::new(60);
    assert_eq!(harness.ask(1, 80, Time::NEVER), [RoomEffect::Poll]);
    harness.offers(0, vec![]);
    assert_eq!(harness.offers(1, vec![in_use(1, 9, 60)]), []);
    assert_eq!(harness.release(10), [RoomEffect::Poll], "too few for it, but something has changed");
}

#[test]
fn an_ask_that_does_not_wait_gets_what_is_free_or_idle_and_nothing_else() {
    let mut harness = Harness::new(60);
    assert_eq!(harness.ask(1, 40, Time::ZERO), [grant(1, 40)]);

    assert_eq!(harness.ask(2, 30, Time::ZERO), [RoomEffect::Poll], "what is idle is not known yet");
    assert_eq!(harness.offers(0, vec![]), []);
    assert_eq!(harness.offers(1, vec![in_use(1, 9, 100)]), [deny(2, 30)], "at once, not at its next look");

    assert_eq!(harness.ask(3, 30, Time::ZERO), [RoomEffect::Poll]);
    harness.offers(0, vec![]);
    let evict = RoomEffect::Evict { pool: PoolIndex(1), worker: WorkerId(77) };
    assert_eq!(harness.offers(1, vec![idle(1, 9, 100)]), [evict]);
    assert_eq!(harness.at(millis(3000)), [RoomEffect::Poll], "it goes as fast as it can");
    assert_eq!(harness.release(100), [grant(3, 30)]);
}

#[test]
fn an_ask_that_does_not_wait_is_denied_behind_one_that_waits() {
    let mut harness = Harness::new(60);
    assert_eq!(harness.ask(1, 80, Time::NEVER), [RoomEffect::Poll]);
    assert_eq!(harness.ask(2, 10, Time::ZERO), [deny(2, 10)]);
}

#[test]
fn an_ask_that_does_not_wait_is_denied_without_an_answer_and_when_what_was_idle_hangs() {
    let mut harness = Harness::new(100);
    harness.ask(1, 50, Time::ZERO);
    assert_eq!(harness.at(millis(100)), [deny(1, 50)], "a pool that does not answer holds up nobody");
    harness.ask(2, 50, Time::ZERO);
    harness.offers(0, vec![]);
    harness.offers(1, vec![idle(1, 9, 100)]);
    let going = || Offer { idle: vec![], leaving: 1, ..idle(1, 9, 100) };
    let mut ended = None;
    for tenth in 2..200 {
        let effects = harness.at(millis(tenth * 100));
        if effects.contains(&deny(2, 50)) {
            ended = Some(tenth / 10);
            break;
        }
        harness.offers(0, vec![]);
        harness.offers(1, vec![going()]);
    }
    assert_eq!(ended, Some(5), "seconds");
    assert_eq!(harness.load_queue.alarm(), Time::NEVER);
}

#[test]
fn bytes_on_their_way_at_the_moment_of_an_ask_are_waited_for() {
    let mut harness = Harness::new(100);
    harness.ask(1, 50, millis(150));
    harness.offers(0, vec![]);
    harness.offers(1, vec![in_use(1, 9, 100)]);
    assert_eq!(harness.at(millis(100)), [RoomEffect::Poll]);
    harness.offers(0, vec![]);
    assert_eq!(
        harness.offers(1, vec![idle(1, 9, 100)]),
        [RoomEffect::Evict { pool: PoolIndex(1), worker: WorkerId(77) }]
    );
    assert!(!harness.at(millis(151)).contains(&deny(1, 50)));
    assert_eq!(harness.release(100), [grant(1, 50)]);
}

#[test]
fn an_idle_worker_goes_once_every_pool_has_answered() {
    let mut harness = Harness::new(100);
    assert_eq!(harness.ask(1, 50, Time::NEVER), [RoomEffect::Poll]);
    assert_eq!(harness.offers(0, vec![]), []);
    let evict = RoomEffect::Evict { pool: PoolIndex(1), worker: WorkerId(77) };
    assert_eq!(harness.offers(1, vec![idle(1, 9, 100)]), [evict]);
    assert_eq!(harness.release(100), [grant(1, 50)]);
}

#[test]
fn a_pool_that_does_not_answer_holds_up_nobody() {
    let mut harness = Harness::new(100);
    harness.ask(1, 50, Time::NEVER);
    assert_eq!(harness.offers(1, vec![idle(1, 9, 100)]), []);
    assert_eq!(harness.load_queue.alarm(), millis(100));
    assert_eq!(harness.at(millis(100)), [RoomEffect::Evict { pool: PoolIndex(1), worker: WorkerId(77) }]);
}

#[test]
fn a_model_does_not_give_up_its_own_workers_for_itself() {
    let mut harness = Harness::new(100);
    harness.ask(1, 50, Time::NEVER);
    harness.offers(1, vec![]);
    let effects = harness.offers(0, vec![idle(0, 1, 100)]);
    assert_eq!(effects, [deny(1, 50)], "what it holds itself can never make room for it");
}

#[test]
fn what_can_never_fit_is_denied_at_once_and_the_next_is_looked_at() {
    let mut harness = Harness::new(100);
    harness.ask(1, 101, Time::NEVER);
    harness.ask(2, 60, Time::NEVER);
    harness.offers(0, vec![]);
    assert_eq!(harness.offers(1, vec![]), [deny(1, 101), RoomEffect::Poll]);
}

#[test]
fn at_its_moment_an_ask_is_denied_and_the_next_granted() {
    let mut harness = Harness::new(60);
    harness.ask(1, 80, millis(50));
    harness.ask(2, 40, millis(500));
    assert_eq!(harness.at(millis(50)), [deny(1, 80), grant(2, 40)]);
}

#[test]
fn while_it_waits_it_asks_again_every_tenth_of_a_second() {
    let mut harness = Harness::new(100);
    harness.ask(1, 50, Time::NEVER);
    harness.offers(0, vec![]);
    assert_eq!(harness.offers(1, vec![]), []);
    assert_eq!(harness.load_queue.alarm(), millis(100));
    assert_eq!(harness.at(millis(100)), [RoomEffect::Poll]);
}

#[test]
fn a_withdrawn_ask_and_those_of_a_pool_that_ended_leave_the_line() {
    let mut harness = Harness::new(60);
    harness.ask(1, 80, Time::NEVER);
    harness.ask(2, 90, Time::NEVER);
    harness.tell(RoomInput::Withdraw { ask: ask(1) });
    harness.tell(RoomInput::PoolEnded { pool: PoolIndex(0) });
    assert!(harness.load_queue.is_empty());
    assert_eq!(harness.load_queue.alarm(), Time::NEVER);
}

#[test]
fn a_grant_that_came_too_late_keeps_its_place() {
    let mut load_queue = LoadQueue::new(0);
    let ledgers = BTreeMap::from([(Device::host(), Ledger::new(Bytes(100)))]);
    let mut effects = Vec::new();
    let (model, device) = (ModelKey(0), Device::host());
    let input = RoomInput::Ask { ask: ask(1), model, device, needed: Bytes(80), until: Time::NEVER };
    load_queue.handle(Time::ZERO, input, &ledgers, &mut effects);
    assert_eq!(std::mem::take(&mut effects), [grant(1, 80)]);

    // Until the lease is taken its bytes are spoken for.
    let (model, device) = (ModelKey(1), Device::host());
    let input = RoomInput::Ask { ask: ask(2), model, device, needed: Bytes(30), until: Time::NEVER };
    load_queue.handle(Time::ZERO, input, &ledgers, &mut effects);
    assert_eq!(std::mem::take(&mut effects), [RoomEffect::Poll]);

    let mut full = Ledger::new(Bytes(100));
    assert!(full.charge(Bytes(70)));
    let ledgers = BTreeMap::from([(Device::host(), full)]);
    load_queue.handle(Time::ZERO, RoomInput::GrantFailed { ask: ask(1) }, &ledgers, &mut effects);
    assert!(!effects.iter().any(|effect| matches!(effect, RoomEffect::Grant { .. })), "{effects:?}");
    let ledgers = BTreeMap::from([(Device::host(), Ledger::new(Bytes(100)))]);
    load_queue.handle(Time::ZERO, RoomInput::Released, &ledgers, &mut effects);
    assert!(effects.contains(&grant(1, 80)), "{effects:?}");
}

#[test]
fn each_grant_takes_of_what_is_free() {
    let mut harness = Harness::new(100);
    harness.ask(1, 60, Time::NEVER);
    harness.ask(2, 60, Time::NEVER);
    assert_eq!(harness.load_queue.waiting(&Device::host()), 2);
    assert_eq!(harness.load_queue.waiting(&Device::named("gpu")), 0);
    assert!(!harness.load_queue.is_empty());
    assert_eq!(harness.release(100), [grant(1, 60)]);
    assert_eq!(harness.load_queue.waiting(&Device::host()), 1);
}

#[test]
fn a_lease_that_was_taken_ends_the_wait_of_its_load_alone() {
    let mut harness = Harness::new(0);
    let mut effects = Vec::new();
    for worker in [1, 2] {
        let (model, device) = (ModelKey(worker as u32), Device::host());
        let input = RoomInput::Ask { ask: ask(worker), model, device, needed: Bytes(40), until: Time::NEVER };
        harness.load_queue.handle(harness.now, input, &harness.ledgers, &mut effects);
    }
    assert_eq!(effects, [grant(1, 40), grant(2, 40)]);
    assert!(harness.ledgers.get_mut(&Device::host()).unwrap().charge(Bytes(40)));
    harness.tell(RoomInput::Granted { ask: ask(1) });
    assert_eq!(harness.load_queue.waiting(&Device::host()), 1);
    // Somebody else was faster with the second.
    assert_eq!(harness.tell(RoomInput::GrantFailed { ask: ask(2) }), [grant(2, 40)]);
}
