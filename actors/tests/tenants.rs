//! A model is shared out fairly between tenants: who asks for little is served soon, however much another has sent; none
//! fills the queue for the others; and their names and their number have limits.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;
mod timeline;

use common::*;
use model_actors::limits::MAX_NAME_BYTES;
use model_actors::scheduler::{Batching, Effect, Input, Outcome, Ticket};
use model_actors::testing::{Act, Record, ScriptedLoader, TestSystem};
use model_actors::{
    BatchKey, BatchLimits, CallOptions, Error, ErrorKind, Lane, PoolConfig, Priority, QueueCapacity,
    RequestId, SystemConfig, Tenant, TenantConfig, Time, WhenFull,
};
use timeline::{Core, KEY};

/// In virtual time: of whatever key, and whether it joins a run or waits for one, whoever asks for one thing at a time is in
/// the next batch after the one that runs.
#[test]
fn who_asks_for_one_thing_at_a_time_waits_for_one_batch_at_most() {
    for (batching, key) in
        [Batching::PerRun, Batching::Continuous].into_iter().flat_map(|way| [(way, 0), (way, 1)])
    {
        let config =
            PoolConfig::default().with_max_workers(1).with_batch(BatchLimits::default().with_requests(32));
        let mut core = Core::batching(config, batching);
        core.preload();
        let ticket = |request: u64, tenant: &str, key: u64| {
            let ticket = Ticket::new(RequestId(request), Time::NEVER);
            (KEY, Ticket { tenant: Some(tenant.into()), key: BatchKey(key), ..ticket })
        };
        let run = |effects: Vec<Effect>| {
            effects.into_iter().find_map(|effect| match effect {
                Effect::Run { worker, requests } => Some((worker, requests)),
                _ => None,
            })
        };
        let bulk = (0..10_000).map(|request| ticket(request, "bulk", 0)).collect();
        let (worker, mut running) = run(core.tell(Input::Submit { tickets: bulk })).unwrap();
        for request in 10_000..10_100 {
            core.tell(Input::Submit { tickets: vec![ticket(request, "chat", key)] });
            let outcomes = running.drain(..).map(|request| (request, Outcome::Answered)).collect();
            running = run(core.tell(Input::Finished { worker, outcomes })).unwrap().1;
            assert_eq!(running[0], RequestId(request), "{batching:?}, key {key}");
            assert_eq!(running.len(), if key == 0 { 32 } else { 1 });
            let outcomes = running.drain(..).map(|request| (request, Outcome::Answered)).collect();
            running = run(core.tell(Input::Finished { worker, outcomes })).unwrap().1;
            assert_eq!(running.len(), 32);
        }
    }
}

/// One worker that runs one request at a time.
fn one_by_one() -> (SystemConfig, PoolConfig) {
    let (system, pool) = single();
    (system, pool.with_batch(BatchLimits::default().with_requests(1)))
}

fn of(tenant: &str) -> CallOptions {
    CallOptions::default().with_tenant(Tenant::from(tenant))
}

/// The requests in the order in which they ran, but for the one that kept the worker busy.
fn order(record: &Record) -> Vec<u64> {
    record.batches()[1..].concat()
}

/// Has all of these wait behind a busy worker, each before the next, and returns the order in which they run.
async fn served(pool: PoolConfig, requests: Vec<(u64, CallOptions)>) -> Vec<u64> {
    let mut test = TestSystem::start_with(one_by_one().0, pool).await;
    let loader = ScriptedLoader::default();
    let record = loader.record.clone();
    let model = test.model("model", loader);
    let (gate, running) = occupy(&test, &model).await;
    let mut pending = Vec::new();
    for (value, options) in requests {
        pending.push(send_with(&model, Act::Reply(value), options));
        queued(&test, &model, pending.len()).await;
    }
    gate.open();
    for request in std::iter::once(running).chain(pending) {
        end(request).await.unwrap();
    }
    test.finish().await;
    order(&record)
}

#[tokio::test]
async fn who_asks_for_little_is_served_soon_however_much_another_has_sent() {
    let bulk = (0..20).map(|value| (value, of("bulk").with_priority(Priority::HIGH)));
    let chat = [(100, of("chat").with_lane(Lane::Batch)), (101, CallOptions::default())];
    let order = served(one_by_one().1, bulk.chain(chat).collect()).await;
    // The first of bulk came first; then it is each one's turn, and whoever names no tenant is one, too.
    assert_eq!(order[..5], [0, 100, 101, 1, 2]);
}

#[tokio::test]
async fn what_is_served_is_as_the_weights_are() {
    let tenants = TenantConfig::default().with_tenant_weight("heavy".into(), 3);
    let requests =
        (0..12).map(|value| (value, of("light"))).chain((100..112).map(|value| (value, of("heavy"))));
    let order = served(one_by_one().1.with_tenants(tenants), requests.collect()).await;
    let heavy = order[..12].iter().filter(|value| **value >= 100).count();
    assert_eq!(heavy, 9, "{order:?}");
}

#[tokio::test]
async fn lane_and_priority_hold_within_a_tenant() {
    let requests = [
        (0, of("ann").with_lane(Lane::Batch)),
        (1, of("bob").with_priority(Priority::LOW)),
        (2, of("ann").with_priority(Priority::LOW)),
        (3, of("bob")),
        (4, of("ann")),
        (5, of("bob").with_priority(Priority::HIGH)),
    ];
    let pool = one_by_one().1.with_aging(std::time::Duration::from_secs(600));
    assert_eq!(served(pool, requests.into()).await, [4, 5, 2, 3, 0, 1]);
}

#[tokio::test]
async fn one_tenant_is_served_as_none_is() {
    let requests = |options: CallOptions| {
        let levels = [Priority::LOW, Priority::default(), Priority::HIGH, Priority::default()];
        let lanes = [Lane::Interactive, Lane::Batch];
        let all = lanes.into_iter().flat_map(move |lane| levels.map(|level| (lane, level)));
        let all = all.map(move |(lane, level)| options.clone().with_lane(lane).with_priority(level));
        (0..).zip(all).collect::<Vec<_>>()
    };
    let pool = one_by_one().1.with_aging(std::time::Duration::from_secs(600));
    let without = served(pool.clone(), requests(CallOptions::default())).await;
    assert_eq!(served(pool, requests(of("ann"))).await, without);
}

#[tokio::test]
async fn a_tenants_part_of_the_queue_is_full_for_that_tenant_alone() {
    let (system, pool) = one_by_one();
    let tenants = TenantConfig::default().with_queue(QueueCapacity::new(2, 1));
    let pool = pool.with_queue(QueueCapacity::new(5, 5)).with_tenants(tenants);
    let mut test = TestSystem::start_with(system, pool).await;
    let model = test.model("model", ScriptedLoader::default());
    let (gate, running) = occupy(&test, &model).await;
    let mut bulk: Vec<Pending> =
        (0..2).map(|value| send_with(&model, Act::Reply(value), of("bulk"))).collect();
    queued(&test, &model, 2).await;
    let impatient = of("bulk").with_when_full(WhenFull::Fail);
    let told = model.call(Act::Reply(2).into(), impatient.clone()).await.unwrap_err();
    let checked = model.check(&Act::Reply(2).into(), &impatient).unwrap_err();
    for error in [told, checked] {
        let Error::Overloaded { tenant: Some(tenant), capacity: 2, lane: Lane::Interactive, .. } = &error
        else {
            panic!("{error}")
        };
        assert_eq!(tenant.as_str(), "bulk");
        assert!(error.to_string().contains("full for bulk (2 requests)"), "{error}");
    }
    let mut patient = Box::pin(model.call(Act::Reply(3).into(), of("bulk")));
    assert!(is_pending(&mut patient).await, "one that waits waits for a slot of its tenant");
    bulk.push(send_with(&model, Act::Reply(4), of("chat").with_when_full(WhenFull::Fail)));
    bulk.push(send_with(&model, Act::Reply(5), of("ann").with_when_full(WhenFull::Fail)));
    queued(&test, &model, 4).await;
    let full = CallOptions::default().with_when_full(WhenFull::Fail);
    let error = model.call(Act::Reply(6).into(), full).await.unwrap_err();
    assert!(
        matches!(error, Error::Overloaded { tenant: None, capacity: 5, .. }),
        "the lane is full: {error}"
    );
    gate.open();
    assert_eq!(patient.await.unwrap(), 3);
    for request in std::iter::once(running).chain(bulk) {
        end(request).await.unwrap();
    }
    test.finish().await;
}

#[tokio::test]
async fn one_tenant_too_many_is_refused_at_once_until_another_has_gone() {
    let (system, pool) = one_by_one();
    let pool = pool.with_tenants(TenantConfig::default().with_most(2));
    let mut test = TestSystem::start_with(system, pool).await;
    let model = test.model("model", ScriptedLoader::default());
    let (gate, running) = occupy(&test, &model).await;
    let pending = ["ann", "bob", "ann"].map(|tenant| send_with(&model, Act::Reply(1), of(tenant)));
    queued(&test, &model, 3).await;
    let error = model.call(Act::Reply(2).into(), of("eve")).await.unwrap_err();
    assert!(
        matches!(&error, Error::TooManyTenants { tenant, most: 2, .. } if tenant.as_str() == "eve"),
        "{error}"
    );
    assert!(matches!(error.kind(), ErrorKind::Overloaded { .. }));
    let nobody = send(&model, Act::Reply(3));
    let other_lane = send_with(&model, Act::Reply(4), of("eve").with_lane(Lane::Batch));
    queued(&test, &model, 5).await;
    gate.open();
    for request in [running, nobody, other_lane].into_iter().chain(pending) {
        end(request).await.unwrap();
    }
    assert_eq!(model.call(Act::Reply(5).into(), of("eve")).await.unwrap(), 5);
    test.finish().await;
}

#[tokio::test]
async fn a_slot_of_a_full_queue_goes_to_who_has_none() {
    let (system, pool) = one_by_one();
    let mut test = TestSystem::start_with(system, pool.with_queue(QueueCapacity::new(3, 1))).await;
    let loader = ScriptedLoader::default();
    let record = loader.record.clone();
    let model = test.model("model", loader);
    let (gate, running) = occupy(&test, &model).await;
    let mut all: Vec<Pending> =
        (0..2).map(|value| send_with(&model, Act::Reply(value), of("bulk"))).collect();
    queued(&test, &model, 2).await;
    let mut waiting: Vec<_> =
        (2..12).map(|value| Box::pin(model.call(Act::Reply(value).into(), of("bulk")))).collect();
    for call in &mut waiting {
        assert!(is_pending(call).await, "the queue is full");
    }
    let mut chat = Box::pin(model.call(Act::Reply(100).into(), of("chat")));
    assert!(is_pending(&mut chat).await, "it is full for everybody");
    gate.open();
    end(running).await.unwrap();
    // The slot of the one that ran is chat's now, whoever waited before.
    assert_eq!(chat.await.unwrap(), 100);
    for call in waiting {
        all.push(tokio::spawn({
            let answer = call.await;
            async move { answer }
        }));
    }
    for request in all {
        end(request).await.unwrap();
    }
    let place = order(&record).iter().position(|value| *value == 100).unwrap();
    assert!(place <= 2, "{:?}", order(&record));
    test.finish().await;
}

#[tokio::test]
async fn the_status_tells_of_the_tenants_that_wait() {
    let mut test = start(one_by_one()).await;
    let model = test.model("model", ScriptedLoader::default());
    let (gate, running) = occupy(&test, &model).await;
    let tenants = ["bob", "ann", "bob"];
    let mut pending: Vec<Pending> = tenants.map(|tenant| send_with(&model, Act::Reply(1), of(tenant))).into();
    pending.push(send(&model, Act::Reply(1)));
    let waiting = |status: &model_actors::ModelStatus| -> Vec<(String, usize)> {
        status.tenants.iter().map(|status| (status.tenant.to_string(), status.queued)).collect()
    };
    let expected = [("ann".to_owned(), 1), ("bob".to_owned(), 2)];
    test.until_model("model", "all wait", |status| waiting(status) == expected).await;
    gate.open();
    for request in std::iter::once(running).chain(pending) {
        end(request).await.unwrap();
    }
    test.until_model("model", "nobody waits", |status| status.tenants.is_empty()).await;
    test.finish().await;
}

#[tokio::test]
async fn a_name_that_is_none_is_refused_before_the_queue() {
    let mut test = start(one_by_one()).await;
    let model = test.model("model", ScriptedLoader::default());
    for name in ["", "a\nb", &"a".repeat(MAX_NAME_BYTES + 1)] {
        let error = model.call(Act::Reply(1).into(), of(name)).await.unwrap_err();
        assert!(matches!(&error, Error::InvalidConfig { setting, .. } if setting == "tenant"), "{error}");
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
    }
    assert_eq!(model.call(Act::Reply(1).into(), of(&"a".repeat(MAX_NAME_BYTES))).await.unwrap(), 1);
    test.finish().await;
}

#[test]
fn settings_out_of_range_are_named() {
    let tenants = TenantConfig::default;
    let wrong = [
        (tenants().with_weight(0), "tenants.weight"),
        (tenants().with_weight(1001), "tenants.weight"),
        (tenants().with_tenant_weight("ann".into(), 0), "tenants.weights"),
        (tenants().with_tenant_weight("".into(), 1), "tenants.weights"),
        (tenants().with_queue(QueueCapacity::new(0, 1)), "tenants.queue"),
        (tenants().with_most(0), "tenants.most"),
        (tenants().with_most(4097), "tenants.most"),
    ];
    for (tenants, expected) in wrong {
        let error = PoolConfig::default().with_tenants(tenants).validate().unwrap_err();
        assert!(matches!(&error, Error::InvalidConfig { setting, .. } if setting == expected), "{error}");
    }
    let text = r#"{"tenants": {"weights": {"the chat window": 4}, "queue": {"batch": 7}}}"#;
    let config: PoolConfig = serde_json::from_str(text).unwrap();
    assert_eq!(config.tenants.weight_of(Some(&"the chat window".into())), 4);
    assert!(config.validate().is_ok());
}
