//! A thousand times up and down, and everything is where it was: slots, bytes, threads, descriptors and the heap.
//! The same census catches a leak that is planted.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use common::*;
use model_actors::testing::{Act, Gate, ScriptedLoader, TestSystem, Victim};
use model_actors::{Bytes, ModelHandle, testing::Scripted};
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};

const CYCLES: usize = 1000;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<std::alloc::System> = &INSTRUMENTED_SYSTEM;

/// Bytes of the heap in use.
fn heap() -> usize {
    let stats = ALLOCATOR.stats();
    stats.bytes_allocated - stats.bytes_deallocated
}

/// The counts that must be flat.
#[derive(Debug, Clone, PartialEq)]
struct Census {
    slots_in_use: usize,
    charged: Bytes,
    models: usize,
    threads: usize,
    descriptors: usize,
}

/// Everything in this process is counted, so one test runs at a time, its runtime and the runtime's descriptors included.
static ALONE: Mutex<()> = Mutex::new(());

fn alone(test: impl Future<Output = ()>) {
    // A test that failed has left the lock in order all the same.
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test);
}

fn census(test: &TestSystem, loader: &ScriptedLoader) -> Census {
    let (free, all) = test.client().slots();
    Census {
        slots_in_use: all - free,
        charged: charged(test),
        models: count(&loader.record.models_alive) + count(&loader.record.weights_alive),
        threads: worker_threads(),
        descriptors: std::fs::read_dir("/proc/self/fd").unwrap().count(),
    }
}

/// A thread that has reported its end is listed for a moment longer.
async fn settles_at(test: &TestSystem, loader: &ScriptedLoader, expected: &Census) -> bool {
    for _ in 0..100 {
        if census(test, loader) == *expected {
            return true;
        }
        tokio::time::sleep(millis(5)).await;
    }
    false
}

async fn cycle(model: &ModelHandle<Scripted>) {
    assert_eq!(ask(model, Act::Reply(7)).await.unwrap(), 7);
    model.unload(Duration::from_secs(10)).await.unwrap();
}

#[test]
fn a_thousand_cycles_leave_nothing_behind() {
    alone(async {
        let mut test = start(single()).await;
        let loader = ScriptedLoader::default();
        let model = test.model("model", loader.clone());
        // The first ones fill what is kept on purpose: names, metrics, the allocator's own.
        for _ in 0..CYCLES / 5 {
            cycle(&model).await;
        }
        until_true(|| worker_threads() == 0).await;
        let (before, heap_before) = (census(&test, &loader), heap());
        for _ in 0..CYCLES {
            cycle(&model).await;
        }
        assert!(settles_at(&test, &loader, &before).await, "{before:?} became {:?}", census(&test, &loader));
        assert_eq!(count(&loader.record.loads), CYCLES + CYCLES / 5);
        // The record keeps 32 bytes or so of each batch, in a vector that doubles; a leak of a worker is kilobytes.
        let grown = heap().saturating_sub(heap_before);
        assert!(grown < CYCLES * 200, "the heap grew by {grown} bytes");
        test.finish().await;
    });
}

#[test]
fn crashes_and_kills_leave_nothing_behind_either() {
    alone(async {
        let (system, mut pool) = single();
        pool.restart.max_restarts = 1000;
        (pool.restart.first_backoff, pool.restart.max_backoff) = (Duration::ZERO, Duration::ZERO);
        let mut test = TestSystem::start_with(system, pool).await;
        let loader = ScriptedLoader::default();
        let model = test.model("model", loader.clone());
        cycle(&model).await;
        until_true(|| worker_threads() == 0).await;
        let before = census(&test, &loader);
        for _ in 0..50 {
            assert_eq!(ask(&model, Act::PanicTimes(times(1))).await.unwrap(), 0);
            test.kill(Victim::Worker).await;
        }
        model.unload(Duration::from_secs(10)).await.unwrap();
        assert!(settles_at(&test, &loader, &before).await, "{before:?} became {:?}", census(&test, &loader));
        test.finish().await;
    });
}

/// A leak planted for the census to see.
#[derive(Debug)]
enum Plant {
    Thread,
    Descriptor,
    Weights,
    Slot,
}

#[test]
fn a_planted_leak_is_caught() {
    alone(async {
        for plant in [Plant::Thread, Plant::Descriptor, Plant::Weights, Plant::Slot] {
            let mut test = start(single()).await;
            let leaks = usize::from(matches!(plant, Plant::Weights));
            let loader = ScriptedLoader { weights_leaked: leaks, ..ScriptedLoader::default() };
            let model = test.model("model", loader.clone());
            let other = test.model("other", ScriptedLoader::default());
            cycle(&other).await;
            until_true(|| worker_threads() == 0).await;
            let before = census(&test, &loader);
            let gate = Gate::default();
            let mut file = None;
            let mut held = None;
            match plant {
                Plant::Thread => {
                    let latch = gate.latch();
                    let thread = std::thread::Builder::new().name("planted#1".to_owned());
                    thread.spawn(move || latch.wait(Duration::from_secs(30))).unwrap();
                    // It has its name, by which the census knows it, only once it runs.
                    until_true(|| worker_threads() == 1).await;
                }
                Plant::Descriptor => file = Some(std::fs::File::open("/proc/self/stat").unwrap()),
                Plant::Slot => {
                    held = Some(send(&other, Act::Work(gate.latch())));
                    let client = test.client();
                    until_true(|| client.slots().0 < client.slots().1).await;
                }
                Plant::Weights => {}
            }
            cycle(&model).await;
            assert!(!settles_at(&test, &loader, &before).await, "{plant:?} went unnoticed");
            drop(file);
            gate.open();
            if let Some(held) = held {
                end(held).await.unwrap();
            }
            let _ = test.shut_down().await;
        }
    });
}
