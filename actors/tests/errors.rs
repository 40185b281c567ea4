//! Errors are plain data: each has a class, prints a sentence, and can be sent to another process unchanged. A typed
//! error of a check or a model keeps its type on its way through the pool.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use common::*;
use model_actors::testing::{Act, ScriptedLoader, TestSystem};
use model_actors::{
    Batch, Bytes, CallOptions, Capability, Cause, Device, Error, ErrorKind, Failure, FailureKind, Footprint,
    Lane, LoadContext, Loader, Model, ModelId, ModelSpec, NoChunk, PoolConfig, QueueCapacity, RequestPhase,
    System, SystemConfig, Weights, WhenFull, WorkerId,
};

/// An error of an application's own, with data.
#[derive(Debug, Clone, PartialEq, thiserror::Error, serde::Serialize, serde::Deserialize)]
#[error("the list has {items} items; at most {limit} are allowed")]
struct TooMany {
    items: usize,
    limit: usize,
}

const SECOND: Duration = Duration::from_secs(1);

/// Every error, with its class.
fn all() -> Vec<(Error, ErrorKind)> {
    let model = || ModelId::from("acme/english");
    let capability = || "text_embedding".into();
    let cause = || Cause::with_data(&TooMany { items: 9, limit: 8 });
    let (worker, after, stalled) = (WorkerId(3), SECOND, SECOND);
    let unavailable = ErrorKind::Unavailable { retry_after: None };
    let failed =
        |failure| Error::ModelError { model: model(), capability: capability(), failure, cause: cause() };
    let not_started =
        |failure| Error::SpawnFailed { model: model(), capability: capability(), failure, cause: cause() };
    vec![
        (Error::UnknownModel { model: model(), capability: capability() }, ErrorKind::NotFound),
        (
            Error::OtherCapability { model: model(), asked: "vision".into(), registered: capability() },
            ErrorKind::NotFound,
        ),
        (Error::AlreadyRegistered { model: model(), capability: capability() }, ErrorKind::InvalidInput),
        (Error::NoPool { capability: capability() }, ErrorKind::NotFound),
        (Error::InvalidInput { cause: cause() }, ErrorKind::InvalidInput),
        (Error::NoWorkers { model: model(), capability: capability() }, unavailable),
        (Error::SendError { model: model(), capability: capability() }, unavailable),
        (Error::RecvError { model: model(), capability: capability() }, ErrorKind::Internal),
        (
            Error::Timeout {
                model: model(),
                capability: capability(),
                phase: RequestPhase::Loading { percent: Some(40) },
                after,
            },
            ErrorKind::Timeout,
        ),
        (failed(FailureKind::Failed), ErrorKind::Internal),
        (failed(FailureKind::OutOfMemory), ErrorKind::OutOfMemory),
        (Error::ShuttingDown, unavailable),
        (
            Error::MemoryExhausted {
                model: model(),
                capability: capability(),
                device: Device::named("cuda:0"),
                needed: Bytes::mib(90),
                free: Bytes::mib(10),
                limit: Bytes::mib(100),
            },
            ErrorKind::OutOfMemory,
        ),
        (not_started(FailureKind::Permanent), ErrorKind::Internal),
        (not_started(FailureKind::OutOfMemory), ErrorKind::OutOfMemory),
        (
            Error::Overloaded {
                model: model(),
                capability: capability(),
                lane: Lane::Batch,
                tenant: None,
                capacity: 50,
                retry_after: after,
            },
            ErrorKind::Overloaded { retry_after: after },
        ),
        (
            Error::TooManyTenants {
                model: model(),
                capability: capability(),
                lane: Lane::Batch,
                tenant: "acme".into(),
                most: 256,
                retry_after: after,
            },
            ErrorKind::Overloaded { retry_after: after },
        ),
        (Error::Cancelled, ErrorKind::Cancelled),
        (
            Error::CircuitOpen {
                model: model(),
                capability: capability(),
                retry_after: after,
                cause: cause(),
            },
            ErrorKind::Unavailable { retry_after: Some(after) },
        ),
        (
            Error::WorkerCrashed { model: model(), capability: capability(), worker, cause: cause() },
            ErrorKind::Internal,
        ),
        (
            Error::WorkerStuck { model: model(), capability: capability(), worker, stalled },
            ErrorKind::Internal,
        ),
        (
            Error::Poison { model: model(), capability: capability(), deaths: 2, cause: cause() },
            ErrorKind::Internal,
        ),
        (Error::SlowReader { model: model(), capability: capability(), stalled }, ErrorKind::Timeout),
        (
            Error::UnloadIncomplete {
                model: model(),
                capability: capability(),
                remaining: Bytes::mib(1),
                reason: "1 workers are running".to_owned(),
            },
            ErrorKind::Timeout,
        ),
        (Error::PeerLost { model: model(), capability: capability(), peer: "b".to_owned() }, unavailable),
        (
            Error::DifferentModels {
                model: model(),
                capability: capability(),
                digests: vec!["1".to_owned(), "2".to_owned()],
            },
            ErrorKind::NotFound,
        ),
        (Error::NoPeer { model: model(), capability: capability() }, unavailable),
        (
            Error::InvalidConfig { setting: "max_workers".into(), reason: "must be above zero".to_owned() },
            ErrorKind::InvalidInput,
        ),
        (Error::SystemFailed { cause: cause() }, ErrorKind::Internal),
        (Error::StartFailed { cause: cause() }, ErrorKind::Internal),
    ]
}

#[test]
fn each_error_has_its_class() {
    for (error, kind) in all() {
        assert_eq!(error.kind(), kind, "{error}");
    }
    let reasons: BTreeSet<&str> = all().iter().map(|(error, _)| error.reason()).collect();
    assert_eq!(reasons.len(), 28, "the table above has every variant: {reasons:?}");
    let retry_after = |kind: ErrorKind| kind.retry_after().map(|time| time.as_secs());
    assert_eq!(retry_after(ErrorKind::Overloaded { retry_after: SECOND }), Some(1));
    assert_eq!(retry_after(ErrorKind::Unavailable { retry_after: Some(SECOND) }), Some(1));
    assert_eq!(retry_after(ErrorKind::Timeout), None);
}

#[test]
fn each_error_reads_the_same_after_a_journey() {
    for (error, kind) in all() {
        let json = serde_json::to_string(&error).unwrap();
        let read: Error = serde_json::from_str(&json).unwrap();
        assert_eq!(read, error, "{json}");
        assert_eq!((read.to_string(), read.kind()), (error.to_string(), kind));
        let own = read.cause().map(|cause| cause.data::<TooMany>());
        assert!(own.is_none_or(|own| own == Some(TooMany { items: 9, limit: 8 })), "{json}");
        let kind_json = serde_json::to_string(&kind).unwrap();
        assert_eq!(serde_json::from_str::<ErrorKind>(&kind_json).unwrap(), kind);
        assert!(kind_json.contains(kind.name()), "{kind_json}");
    }
    let failure = Failure::permanent(Cause::with_data(&TooMany { items: 1, limit: 0 }));
    let json = serde_json::to_string(&failure).unwrap();
    assert_eq!(serde_json::from_str::<Failure>(&json).unwrap(), failure);
}

#[test]
fn a_main_that_fails_prints_a_sentence() {
    for (error, _) in all() {
        assert_eq!(format!("{error:?}"), error.to_string());
    }
    let failure = Failure::failed("the disk is full");
    assert_eq!(format!("{failure:?} {:?}", failure.cause), "the disk is full the disk is full");
}

#[test]
fn an_error_that_names_a_model_names_its_capability() {
    for (error, _) in all() {
        let words = error.to_string();
        assert!(!words.contains("acme/english") || words.contains("text_embedding"), "{words}");
    }
}

/// Sorts lists of numbers; the check and the model refuse with errors of their own.
struct Sorting;

impl Capability for Sorting {
    type Request = Vec<u64>;
    type Chunk = NoChunk;
    type Output = Vec<u64>;
    const NAME: &'static str = "sorting";
    const QUEUE: QueueCapacity = QueueCapacity::new(4, 4);

    fn check(request: &Vec<u64>) -> Result<(), Cause> {
        match request.len() {
            0 => Err("the list is empty".into()),
            1..=8 => Ok(()),
            items => Err(Cause::with_data(&TooMany { items, limit: 8 })),
        }
    }
}

struct Sorter;

impl Loader<Sorting> for Sorter {
    fn footprint(&self, _: &LoadContext) -> Result<Footprint, Failure> {
        Ok(Footprint::default())
    }

    fn load(&self, _: &LoadContext) -> Result<Arc<dyn Weights<Sorting>>, Failure> {
        Ok(Arc::new(Self))
    }
}

impl Weights<Sorting> for Sorter {
    fn footprint(&self) -> Footprint {
        Footprint::default()
    }

    fn build(&self, _: &LoadContext) -> Result<Box<dyn Model<Sorting>>, Failure> {
        Ok(Box::new(Self))
    }
}

impl Model<Sorting> for Sorter {
    fn run(&mut self, batch: &mut Batch<Sorting>) -> Result<(), Failure> {
        for item in batch.items() {
            match item.request().len() {
                items @ 5.. => {
                    item.fail(Failure::invalid_input(Cause::with_data(&TooMany { items, limit: 4 })));
                }
                _ => item.finish(item.request().clone()),
            }
        }
        Ok(())
    }
}

#[tokio::test]
async fn an_input_error_keeps_its_type_whether_the_check_or_the_model_refuses() {
    let builder = System::builder(SystemConfig::default()).pool::<Sorting>(PoolConfig::default());
    let system = builder.start().await.unwrap();
    let model = system.client::<Sorting>().unwrap().register(ModelSpec::new("sorter", Sorter)).unwrap();
    for (items, limit) in [(9, 8), (6, 4)] {
        let request: Vec<u64> = (0..items as u64).collect();
        let error = model.call(request, CallOptions::default()).await.unwrap_err();
        let Error::InvalidInput { cause } = &error else { panic!("{error}") };
        assert_eq!(cause.data(), Some(TooMany { items, limit }));
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
    }
    let empty = model.check(&Vec::new(), &CallOptions::default()).unwrap_err();
    assert_eq!(empty.cause().unwrap().message(), "the list is empty");
    system.shutdown().await;
}

#[tokio::test]
async fn a_model_of_another_capability_is_told_as_that() {
    let mut test = start(single()).await;
    test.model("english", ScriptedLoader::default());
    let told = Error::OtherCapability {
        model: "english".into(),
        asked: "streamed_script".into(),
        registered: "scripted".into(),
    };
    assert_eq!(test.streams().handle("english").map(drop), Err(told.clone()));
    assert_eq!(test.streams().remove(&"english".into()), Err(told.clone()));
    assert_eq!(told.to_string(), "english is registered for scripted, not for streamed_script");
    assert_eq!(told.kind(), ErrorKind::NotFound);
    let unknown = Error::UnknownModel { model: "german".into(), capability: "scripted".into() };
    assert_eq!(test.client().handle("german").map(drop), Err(unknown));
    test.finish().await;
}

/// The same name in two capabilities is two models, and everything that names one says which.
#[tokio::test]
async fn one_name_in_two_capabilities_is_two_models() {
    let mut test = start(single()).await;
    let scripted = test.model("english", weights(10));
    let streamed = test.stream_model("english", weights(20));
    assert_eq!(ask(&scripted, Act::Reply(1)).await.unwrap(), 1);
    assert_eq!(streamed.call(Act::Stream(2).into(), CallOptions::default()).await.unwrap(), 2);
    let models: Vec<(&str, String)> =
        test.system.models().iter().map(|model| (model.capability, model.model.to_string())).collect();
    assert_eq!(models, [("scripted", "english".to_owned()), ("streamed_script", "english".to_owned())]);
    let status = test.system.status();
    for (capability, mib) in [("scripted", 11), ("streamed_script", 21)] {
        let model = status.model(capability, "english").unwrap();
        assert_eq!((model.capability, model.bytes), (capability, Bytes::mib(mib)));
        assert_eq!(&*model.workers[0].name, format!("english#1 {capability}"));
    }
    test.client().remove(&"english".into()).unwrap();
    let error = refused(&scripted, Act::Reply(1)).await;
    assert!(matches!(error, Error::OtherCapability { .. }), "{error}");
    assert_eq!(streamed.call(Act::Stream(2).into(), CallOptions::default()).await.unwrap(), 2);
    test.finish().await;
}

#[tokio::test]
async fn a_refused_caller_is_told_when_to_come_back() {
    let (system, pool) = single();
    let mut test = TestSystem::start_with(system, pool.with_queue(QueueCapacity::new(1, 1))).await;
    let model = test.model("model", ScriptedLoader::default());
    let impatient = CallOptions::default().with_when_full(WhenFull::Fail);
    let retry_after = async || {
        let error = model.call(Act::Reply(1).into(), impatient.clone()).await.unwrap_err();
        error.kind().retry_after().unwrap()
    };
    let (gate, running) = occupy(&test, &model).await;
    assert_eq!(retry_after().await, SECOND, "nothing is known yet");
    gate.open();
    end(running).await.unwrap();
    for _ in 0..20 {
        ask(&model, Act::Reply(1)).await.unwrap();
    }
    let (gate, running) = occupy(&test, &model).await;
    let soon = retry_after().await;
    assert!(soon < SECOND, "slots came back fast lately: {soon:?}");
    gate.open();
    end(running).await.unwrap();
    test.finish().await;
}

#[test]
fn a_shortage_of_memory_is_told_as_what_it_is() {
    let error = |needed: u64, free: u64| Error::MemoryExhausted {
        model: "english".into(),
        capability: "text_embedding".into(),
        device: Device::host(),
        needed: Bytes(needed),
        free: Bytes(free),
        limit: Bytes(100),
    };
    for (needed, free, words) in [
        (101, 100, "raise the limit"),
        (40, 30, "in use, pinned, too young"),
        (40, 40, "a load that came first"),
    ] {
        let told = error(needed, free).to_string();
        assert!(told.contains(words), "{told}");
        assert_eq!(told.contains("in use"), needed == 40 && free == 30, "{told}");
    }
}
