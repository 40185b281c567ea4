//! A memory that runs short stops the growth of the models in it, and of no others, and takes what is idle. That models use
//! the budget that is theirs is no shortage.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;
mod timeline;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use common::{idle, single};
use model_actors::scheduler::{Effect, Input};
use model_actors::testing::{ScriptedLoader, TestSystem};
use model_actors::{
    Bytes, Device, Error, Event, EvictionReason, Footprint, PoolConfig, PressureLevel, ProcessMemory,
};
use timeline::Core;
use tokio::sync::watch;

/// True if a further worker is asked for when the only one is busy and a request waits.
fn grows(device: Device, level: PressureLevel) -> bool {
    let mut core = Core::new(PoolConfig::default().with_cold_start_workers(1));
    core.tell(Input::Pressure { device, level });
    core.submit();
    let (_, effects) = core.submit();
    effects.iter().any(|effect| matches!(effect, Effect::Reserve { .. }))
}

#[test]
fn only_pressure_on_its_own_device_keeps_a_model_from_growing() {
    let card = Device::named("cuda:0");
    let table = [
        (Device::host(), PressureLevel::Normal, true),
        (Device::host(), PressureLevel::Elevated, false),
        (Device::host(), PressureLevel::Critical, false),
        (card.clone(), PressureLevel::Elevated, true),
        (card, PressureLevel::Critical, true),
    ];
    for (device, level, expected) in table {
        assert_eq!(grows(device.clone(), level), expected, "{device} at {level:?}");
    }
}

#[tokio::test]
async fn an_idle_model_goes_when_the_machine_is_short_and_not_because_its_budget_is_used() {
    let (percent, checks) = (Arc::new(AtomicU64::new(50)), watch::Sender::new(0));
    let (used, mut checked) = (percent.clone(), checks.subscribe());
    let probe = move || {
        checks.send_modify(|checks| *checks += 1);
        ProcessMemory::new(Bytes(100), Bytes(used.load(Ordering::SeqCst)))
    };
    let (system, pool) = single();
    let limit = Bytes::mib(20);
    let settings = (system.with_memory_limit(limit), pool);
    let mut test = TestSystem::start_with_memory(settings, probe).await;
    let mut events = test.system.events();
    let footprint = Footprint::new(limit, Bytes::ZERO);
    let model = test.model("model", ScriptedLoader { footprint, ..ScriptedLoader::default() });
    model.preload().await.unwrap();
    assert_eq!(test.system.charged(&Device::host()), Some((limit, limit)), "all of the budget");
    let before = *checked.borrow();
    let several = checked.wait_for(|checks| *checks >= before + 3);
    tokio::time::timeout(Duration::from_secs(20), several).await.unwrap().unwrap();
    test.until_model("model", "it stays", |model| idle(model) == 1).await;

    percent.store(96, Ordering::SeqCst);
    let told = |event: &Event| match event {
        Event::Pressure { level, .. } => Some(format!("{level:?}")),
        Event::WorkerEvicted { reason: EvictionReason::Pressure, .. } => Some("evicted".to_owned()),
        _ => None,
    };
    assert_eq!(TestSystem::event(&mut events, "the shortage is told", told).await, "Critical");
    assert_eq!(TestSystem::event(&mut events, "the idle worker goes", told).await, "evicted");
    percent.store(50, Ordering::SeqCst);
    assert_eq!(TestSystem::event(&mut events, "and its end", told).await, "Normal");
    test.finish().await;
}

/// Each of the loads reads the memory, and all of them in the one pool that also serves.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_measurement_that_takes_long_holds_up_a_pool_for_a_moment_only() {
    let calls = Arc::new(AtomicU64::new(0));
    let counted = calls.clone();
    let probe = move || {
        counted.fetch_add(1, Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(100));
        ProcessMemory::new(Bytes(100), Bytes(50))
    };
    let (system, pool) = single();
    let system = system.with_maintenance_interval(Duration::from_secs(60));
    let mut test = TestSystem::start_with_memory((system, pool), probe).await;
    let models: Vec<_> =
        (0..20).map(|number| test.model(&format!("model {number}"), ScriptedLoader::default())).collect();
    let loads: Vec<_> =
        models.into_iter().map(|model| tokio::spawn(async move { model.preload().await })).collect();
    for load in loads {
        load.await.unwrap().unwrap();
    }
    let measured = calls.load(Ordering::SeqCst);
    assert!(measured <= 10, "a pool waited for {measured} measurements");
    test.finish().await;
}

/// The budget has room, and the machine has none.
#[tokio::test]
async fn a_load_that_the_machine_cannot_take_waits_for_its_memory() {
    let percent = Arc::new(AtomicU64::new(97));
    let used = percent.clone();
    let probe = move || ProcessMemory::new(Bytes(100), Bytes(used.load(Ordering::SeqCst)));
    let (system, pool) = single();
    let settings = (system, pool.with_room_wait(Duration::from_millis(150)));
    let mut test = TestSystem::start_with_memory(settings, probe).await;
    let model = test.model("model", ScriptedLoader::default());
    let error = model.preload().await.unwrap_err();
    assert!(matches!(&error, Error::MemoryExhausted { free: Bytes::ZERO, .. }), "{error}");
    assert_eq!(test.system.charged(&Device::host()).unwrap().0, Bytes::ZERO);
    percent.store(50, Ordering::SeqCst);
    model.preload().await.unwrap();
    test.finish().await;
}
