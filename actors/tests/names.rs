//! Names and code of the caller's are data: what cannot be the name of a thread or a label is refused where it is
//! passed, and nothing that is passed takes an actor down.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::*;
use model_actors::limits::MAX_NAME_BYTES;
use model_actors::testing::{Act, Scripted, ScriptedLoader, TestSystem};
use model_actors::{
    Bytes, Capability, Device, Error, ErrorKind, ModelId, ModelSpec, NoChunk, PoolConfig, ProcessMemory,
    System, SystemConfig, SystemState,
};

/// Names that no thread and no label can have, or that none should.
fn bad_names() -> Vec<String> {
    let controls = ["\0", "a\0b", "a\nb", "\t", "\u{7f}", "\u{85}", "acme/\u{1b}[31m"].map(str::to_owned);
    let long = ["a".repeat(MAX_NAME_BYTES + 1), "é".repeat(MAX_NAME_BYTES / 2) + "é", "a".repeat(1 << 20)];
    controls.into_iter().chain(long).chain([String::new()]).collect()
}

fn is_refused(error: &Error, named: &str) {
    let Error::InvalidConfig { setting, .. } = error else { panic!("{error}") };
    assert_eq!((&**setting, error.kind()), (named, ErrorKind::InvalidInput));
    let words = error.to_string();
    assert!(!words.contains(char::is_control) && words.len() < 2 * MAX_NAME_BYTES, "{words:?}");
}

#[tokio::test]
async fn a_name_that_cannot_be_one_is_refused_at_registration_and_costs_nobody_anything() {
    let mut test = start(single()).await;
    let client = test.client();
    for name in bad_names() {
        let spec = || ModelSpec::<Scripted>::new(name.as_str(), ScriptedLoader::default());
        is_refused(&client.register(spec()).map(drop).unwrap_err(), "model");
        is_refused(&client.replace(spec()).map(drop).unwrap_err(), "model");
        assert!(matches!(client.handle(name.as_str()), Err(Error::UnknownModel { .. })));
        assert!(matches!(client.remove(&ModelId::from(name)), Err(Error::UnknownModel { .. })));
    }
    assert!(client.models().is_empty());
    let model = test.model("model", ScriptedLoader::default());
    assert_eq!(ask(&model, Act::Reply(1)).await.unwrap(), 1);
    assert_eq!(test.system.status().state, SystemState::Running);
    test.finish().await;
}

#[tokio::test]
async fn a_name_at_the_limits_serves() {
    let mut test = start(single()).await;
    for name in ["a".repeat(MAX_NAME_BYTES), "é".repeat(MAX_NAME_BYTES / 2), "/".to_owned(), " ".to_owned()]
    {
        let model = test.model(&name, ScriptedLoader::default());
        assert_eq!(ask(&model, Act::Reply(1)).await.unwrap(), 1, "{name}");
    }
    test.finish().await;
}

#[test]
fn the_names_of_devices_are_checked_with_the_settings() {
    for name in bad_names() {
        let limits = vec![(Device::named(&name), Bytes::mib(1))];
        is_refused(
            &SystemConfig::default().with_device_limits(limits).validate().unwrap_err(),
            "device_limits",
        );
    }
}

struct Unnamed;

impl Capability for Unnamed {
    type Request = ();
    type Chunk = NoChunk;
    type Output = ();
    const NAME: &'static str = "two\nlines";
}

#[tokio::test]
async fn the_name_of_a_capability_is_checked_at_the_start() {
    let builder = System::builder(SystemConfig::default()).pool::<Unnamed>(PoolConfig::default());
    is_refused(&builder.start().await.map(drop).unwrap_err(), "pools");
}

/// Panics when it is dropped, as what a panic is raised with may.
struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            std::panic::panic_any(Self);
        }
    }
}

struct Sliced;

impl Capability for Sliced {
    type Request = u8;
    type Chunk = NoChunk;
    type Output = u8;
    const NAME: &'static str = "text/embedding";
}

struct Upkeep;

impl Capability for Upkeep {
    type Request = u8;
    type Chunk = NoChunk;
    type Output = u8;
    const NAME: &'static str = "maintenance";
}

/// `s`, `vision` and the model `q/text_embedding/m` would have a worker of the same name as `s/vision/q`,
/// `text_embedding` and `m`.
#[tokio::test]
async fn no_two_paths_of_names_lead_to_one_actor() {
    let builder = || System::builder(SystemConfig::default());
    for name in ["s/vision/q", "/", "s/"] {
        let start = builder().name(name).pool::<Scripted>(PoolConfig::default()).start();
        is_refused(&start.await.map(drop).unwrap_err(), "name");
    }
    for name in [None, Some("named")] {
        let named = || name.into_iter().fold(builder(), |builder, name| builder.name(name));
        let sliced = named().pool::<Sliced>(PoolConfig::default()).start().await;
        is_refused(&sliced.map(drop).unwrap_err(), "pools");
        let upkeep = named().pool::<Upkeep>(PoolConfig::default()).start().await;
        is_refused(&upkeep.map(drop).unwrap_err(), "pools");
    }
}

#[tokio::test]
async fn a_memory_probe_that_panics_fails_no_actor() {
    let (system, pool) = single();
    let system = system.with_maintenance_interval(millis(1));
    let calls = Arc::new(AtomicUsize::new(0));
    // With a count of its own, as a measurement of the first system may still be under way.
    let probe = |calls: Arc<AtomicUsize>| {
        move || -> ProcessMemory {
            match calls.fetch_add(1, Ordering::SeqCst) % 2 {
                0 => panic!("no such file"),
                _ => std::panic::panic_any(Bomb),
            }
        }
    };
    let mut test = TestSystem::start_with_memory((system.clone(), pool.clone()), probe(calls.clone())).await;
    let model = test.model("model", ScriptedLoader::default());
    until_true(|| count(&calls) > 20).await;
    assert_eq!(ask(&model, Act::Reply(1)).await.unwrap(), 1);
    assert_eq!(test.system.status().state, SystemState::Running, "four dead actors would have ended it");
    test.finish().await;

    let builder = System::builder(system.with_memory_limit(None)).pool::<Scripted>(pool);
    let builder = builder.memory_probe(probe(times(0)));
    let error = builder.start().await.map(drop).unwrap_err();
    assert!(
        matches!(&error, Error::StartFailed { cause } if cause.message().contains("no such file")),
        "{error}"
    );
}

/// Set in the child process, which is this test binary again.
const CHILD: &str = "MODEL_ACTORS_NO_THREADS_CHILD";

/// A stack larger than the address space: the child can start no thread, and its test runs on the main one.
const NO_THREADS: &str = "1152921504606846976";

#[tokio::test]
async fn a_thread_that_cannot_be_started_is_a_failed_start() {
    if std::env::var_os(CHILD).is_some() {
        let (system, mut pool) = single();
        pool.restart.max_restarts = 1;
        let mut test = TestSystem::start_with(system, pool).await;
        let model = test.model("model", ScriptedLoader::default());
        let error = refused(&model, Act::Reply(1)).await;
        assert!(matches!(error, Error::CircuitOpen { .. }), "{error}");
        let status = test.until_model("model", "both starts failed", |model| model.failures == 2).await;
        assert!(status.workers.is_empty(), "{status:?}");
        assert_eq!((charged(&test), test.system.status().state), (Bytes::ZERO, SystemState::Running));
        test.finish().await;
        return;
    }
    let mut child = std::process::Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "a_thread_that_cannot_be_started_is_a_failed_start", "--test-threads=1"]);
    child.env(CHILD, "1").env("RUST_MIN_STACK", NO_THREADS);
    let output = child.output().unwrap();
    let said =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}
