//! Maintenance has one check of its own before it at most, however long one takes: what others ask of it is never behind a
//! row of them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::time::Duration;

use common::*;
use model_actors::testing::{Act, TestSystem};
use model_actors::{Bytes, CallOptions, Error, ProcessMemory, System, SystemConfig};

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn checks_that_take_longer_than_their_interval_do_not_pile_up() {
    let (system, pool) = single();
    let system = system.with_maintenance_interval(millis(1)).with_memory_limit(Bytes::mib(15));
    let checks = times(0);
    let counter = checks.clone();
    let probe = move || {
        counter.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        // A check that takes long is what this is about.
        std::thread::sleep(millis(100));
        ProcessMemory::new(Bytes(100), Bytes(50))
    };
    let mut test = TestSystem::start_with_memory((system, pool), probe).await;
    let [first, second] = ["first", "second"].map(|name| test.model(name, weights(10)));
    assert_eq!(ask(&first, Act::Reply(1)).await.unwrap(), 1);
    // Of as many intervals as some checks take, each could have asked for one more.
    let before = count(&checks);
    until_true(|| count(&checks) >= before + 20).await;
    // Maintenance has to make room for it, in a few steps.
    let options = CallOptions::default().with_timeout(millis(9_000));
    assert_eq!(second.call(Act::Reply(2).into(), options).await.unwrap(), 2);
    test.finish().await;
}

#[tokio::test]
async fn an_interval_below_a_millisecond_is_refused() {
    for interval in [Duration::ZERO, Duration::from_nanos(1), Duration::from_micros(999)] {
        let config = SystemConfig::default().with_maintenance_interval(interval);
        let error = System::builder(config).start().await.map(drop).unwrap_err();
        assert!(matches!(&error, Error::InvalidConfig { setting, .. } if setting == "maintenance_interval"));
    }
}
