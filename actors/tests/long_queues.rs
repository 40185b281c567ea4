//! A long queue costs each request that leaves it no more than a short one, with tenants and without: serving, expiring or
//! cancelling half of what waits grows with the number, not with its square.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod timeline;

use std::time::Duration;

use timeline::{Core, KEY, at};

use model_actors::scheduler::{Effect, Fate, Input, Outcome, Ticket};
use model_actors::{BatchLimits, Cause, PoolConfig, RequestId, TenantConfig, Time};

/// The larger queue is so many times as long, and its cost may be so many times as high: as many squared, if each
/// request looked at the others.
const TIMES: u64 = 8;
/// So many that also the short queue takes long enough to be measured.
const REQUESTS: u64 = 80_000;
const AT_MOST: u32 = 32;

/// A model with one worker, which is busy, and so many requests that wait, each with a deadline of its own.
fn queue_of(requests: u64) -> Core {
    let batch = BatchLimits::default().with_requests(1);
    let config = PoolConfig::default().with_cold_start_workers(1).with_max_workers(1).with_batch(batch);
    let mut core = Core::new(config);
    core.submit();
    let deadline = |request: u64| at(1, 0) + Duration::from_millis(request);
    let ticket = |request: u64| (KEY, Ticket::new(RequestId(1000 + request), deadline(request)));
    core.tell(Input::Submit { tickets: (0..requests).map(ticket).collect() });
    core
}

/// The same, of 64 tenants with three weights.
fn queue_of_tenants(requests: u64) -> Core {
    let mut tenants = TenantConfig::default();
    for tenant in 0..64 {
        tenants = tenants.with_tenant_weight(format!("tenant {tenant}").into(), 1 + tenant % 3);
    }
    let batch = BatchLimits::default().with_requests(1);
    let config = PoolConfig::default().with_cold_start_workers(1).with_max_workers(1).with_batch(batch);
    let mut core = Core::new(config.with_tenants(tenants));
    core.submit();
    let ticket = |request: u64| {
        let ticket = Ticket::new(RequestId(1000 + request), at(1, 0) + Duration::from_millis(request));
        (KEY, Ticket { tenant: Some(format!("tenant {}", request % 64).into()), ..ticket })
    };
    core.tell(Input::Submit { tickets: (0..requests).map(ticket).collect() });
    core
}

/// The same, with all of them in one batch that died and are run again one by one.
fn reruns_of(requests: u64) -> Core {
    let batch = BatchLimits::default().with_requests(usize::MAX).with_cost(u64::MAX);
    let config = PoolConfig::default().with_cold_start_workers(1).with_max_workers(1).with_batch(batch);
    let mut core = Core::new(config);
    core.preload();
    let ticket = |request: u64| (KEY, Ticket::new(RequestId(1000 + request), Time::NEVER));
    core.tell(Input::Submit { tickets: (0..requests).map(ticket).collect() });
    core.starts_by_hand = true;
    let worker = core.starts()[0].1;
    core.tell(Input::Died { worker, cause: Cause::new("killed"), fates: Vec::new() });
    core
}

/// One batch of them, and the only worker runs it.
fn batch_of(requests: u64) -> Core {
    let batch = BatchLimits::default().with_requests(usize::MAX).with_cost(u64::MAX);
    let config = PoolConfig::default().with_cold_start_workers(1).with_max_workers(1).with_batch(batch);
    let mut core = Core::new(config);
    core.preload();
    let ticket = |request: u64| (KEY, Ticket::new(RequestId(1000 + request), Time::NEVER));
    core.tell(Input::Submit { tickets: (0..requests).map(ticket).collect() });
    core.starts_by_hand = true;
    core
}

/// The worker dies, and the fate of each request is known.
fn die(core: &mut Core, requests: u64) {
    let (worker, mut effects) = (core.starts()[0].1, Vec::new());
    let fate = |request| {
        (RequestId(1000 + request), if request % 2 == 0 { Fate::Answered } else { Fate::Untouched })
    };
    let fates = (0..requests).map(fate).collect();
    core.scheduler.handle(core.now, Input::Died { worker, cause: Cause::new("killed"), fates }, &mut effects);
    let forgotten = effects.iter().filter(|effect| matches!(effect, Effect::Forget { .. })).count() as u64;
    assert_eq!(forgotten, requests / 2);
}

fn cancel_half(core: &mut Core, requests: u64) {
    let mut effects = Vec::new();
    for request in (requests / 2..requests).rev() {
        let input = Input::Cancel { key: KEY, request: RequestId(1000 + request) };
        core.scheduler.handle(core.now, input, &mut effects);
    }
    let forgotten = effects.iter().filter(|effect| matches!(effect, Effect::Forget { .. })).count() as u64;
    assert_eq!(forgotten, requests - requests / 2);
}

/// One after another, as batches of one.
fn serve_half(core: &mut Core, requests: u64) {
    let mut effects = Vec::new();
    let mut running = (core.runs_of(RequestId(1))[0], vec![RequestId(1)]);
    for _ in 0..requests / 2 {
        let (worker, outcomes) = (running.0, running.1.drain(..).map(|request| (request, Outcome::Answered)));
        let outcomes = outcomes.collect();
        core.scheduler.handle(core.now, Input::Finished { worker, outcomes }, &mut effects);
        let next = effects.drain(..).find_map(|effect| match effect {
            Effect::Run { worker, requests } => Some((worker, requests)),
            _ => None,
        });
        running = next.expect("the next is run");
    }
}

/// All at one moment, and then one after another.
fn expire_half(core: &mut Core, requests: u64) {
    let mut effects = Vec::new();
    for expired in (requests / 4)..(requests / 2) {
        core.now = at(1, 0) + Duration::from_millis(expired - 1);
        core.scheduler.handle(core.now, Input::Tick, &mut effects);
    }
    let expired = effects.iter().filter(|effect| matches!(effect, Effect::Expire { .. })).count() as u64;
    assert_eq!(expired, requests / 2 - 1);
}

/// Its name, the queue of a length, and what half of it does.
type Case = (&'static str, fn(u64) -> Core, fn(&mut Core, u64));

/// Processor time of this thread, which other work of the machine does not lengthen. It is counted whenever the thread
/// lets others run.
fn processor_time() -> Duration {
    std::thread::yield_now();
    let times = std::fs::read_to_string("/proc/thread-self/schedstat").expect("this is Linux");
    Duration::from_nanos(times.split(' ').next().unwrap().parse().unwrap())
}

/// The best of some tries.
fn cost(make: fn(u64) -> Core, act: fn(&mut Core, u64), requests: u64) -> Duration {
    let once = || {
        let mut core = make(requests);
        let began = processor_time();
        act(&mut core, requests);
        processor_time() - began
    };
    (0..3).map(|_| once()).min().unwrap()
}

#[test]
fn the_cost_of_leaving_a_queue_does_not_grow_with_its_length() {
    let cases: [Case; 8] = [
        ("served", queue_of, serve_half),
        ("served to tenants", queue_of_tenants, serve_half),
        ("cancelled of tenants", queue_of_tenants, cancel_half),
        ("expired of tenants", queue_of_tenants, expire_half),
        ("cancelled", queue_of, cancel_half),
        ("expired", queue_of, expire_half),
        ("cancelled before a rerun", reruns_of, cancel_half),
        ("lost with their worker", batch_of, die),
    ];
    for (name, make, act) in cases {
        let short = cost(make, act, REQUESTS / TIMES);
        let long = cost(make, act, REQUESTS);
        println!("half of {}: {short:?}; half of {REQUESTS}: {long:?}", REQUESTS / TIMES);
        assert!(
            long < short * AT_MOST,
            "{name}: half of {REQUESTS} took {long:?}, of an eighth as many {short:?}"
        );
    }
}
