//! The ends of a system: stopped in whatever ordinary way it drains, and a planned end, a kill and a failure for good
//! are three things, to its supervisor, in its status, its events and its callers' errors.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::time::Duration;

use common::*;
use model_actors::testing::{Act, Gate, Scripted, ScriptedLoader, TestSystem, Victim, wait_for};
use model_actors::{
    CallOptions, Error, ErrorKind, Event, ModelSpec, QueueCapacity, System, SystemEnd, SystemState,
};
use ractor::{Actor, ActorProcessingErr, ActorRef, SupervisionEvent};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

const LONG: Duration = Duration::from_secs(20);

/// An application's supervisor, which tells the test how its child ended.
struct Application;

impl Actor for Application {
    type Msg = ();
    type State = UnboundedSender<SystemEnd>;
    type Arguments = UnboundedSender<SystemEnd>;

    async fn pre_start(
        &self,
        _: ActorRef<()>,
        ends: Self::Arguments,
    ) -> Result<Self::State, ActorProcessingErr> {
        Ok(ends)
    }

    async fn handle_supervisor_evt(
        &self,
        _: ActorRef<()>,
        event: SupervisionEvent,
        ends: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        if let Some(end) = SystemEnd::of(&event) {
            ends.send(end)?;
        }
        Ok(())
    }
}

/// A system that has time for what it accepted and no restart for its pools, under an application's supervisor.
async fn supervised() -> (TestSystem, ActorRef<()>, UnboundedReceiver<SystemEnd>) {
    let (sender, ends) = unbounded_channel();
    let (application, _) = Application::spawn(None, Application, sender).await.unwrap();
    let (mut system, pool) = single();
    (system.restart.max_restarts, system.shutdown_timeout) = (0, LONG);
    let pool = pool.with_queue(QueueCapacity::new(2, 1));
    (TestSystem::start_linked(system, pool, application.get_cell()).await, application, ends)
}

async fn seen(ends: &mut UnboundedReceiver<SystemEnd>) -> SystemEnd {
    tokio::time::timeout(LONG, ends.recv()).await.expect("the supervisor is told").unwrap()
}

/// An ordinary way to end a system.
#[derive(Debug, Clone, Copy)]
enum Way {
    Shutdown,
    Stop,
    StopOfChildren,
    Drain,
    HandlesDropped,
}

#[tokio::test]
async fn every_ordinary_end_drains_and_is_seen_as_planned() {
    use Way::*;
    for way in [Shutdown, Stop, StopOfChildren, Drain, HandlesDropped] {
        let (sender, mut ends) = unbounded_channel();
        let (application, _) = Application::spawn(None, Application, sender).await.unwrap();
        let (config, pool) = single();
        let config = config.with_shutdown_timeout(LONG);
        let builder = System::builder(config).pool::<Scripted>(pool);
        let system = builder.start_linked(application.get_cell()).await.unwrap();
        let mut status = system.watch();
        let spec = ModelSpec::new("model", ScriptedLoader::default());
        let model = system.client::<Scripted>().unwrap().register(spec).unwrap();
        let gate = Gate::default();
        let running = send(&model, Act::Work(gate.latch()));
        until_true(|| gate.was_reached()).await;
        let queued = send(&model, Act::Reply(7));
        wait_for(&mut status, "it is queued", |status| {
            status.model("scripted", "model").is_some_and(|model| model.queued_interactive == 1)
        })
        .await;
        let shutting_down = match way {
            Shutdown => {
                let system = system.clone();
                Some(tokio::spawn(async move { system.shutdown().await }))
            }
            Stop => {
                system.cell().stop(Some("by the application".to_owned()));
                None
            }
            StopOfChildren => {
                application.stop_children(None);
                None
            }
            Drain => {
                system.cell().drain().unwrap();
                None
            }
            HandlesDropped => None,
        };
        let kept = (!matches!(way, HandlesDropped)).then_some(system);
        wait_for(&mut status, "it shuts down", |status| status.state == SystemState::ShuttingDown).await;
        assert!(matches!(refused(&model, Act::Reply(8)).await, Error::ShuttingDown), "{way:?}");
        gate.open();
        assert_eq!((end(running).await.unwrap(), end(queued).await.unwrap()), (0, 7), "{way:?}");
        wait_for(&mut status, "it has stopped", |status| status.state == SystemState::Stopped).await;
        assert_eq!(seen(&mut ends).await, SystemEnd::Stopped, "{way:?}");
        if let Some(shutting_down) = shutting_down {
            assert!(shutting_down.await.unwrap().is_clean(), "{way:?}");
        }
        if let Some(system) = kept {
            assert!(system.shutdown().await.is_clean(), "{way:?}: the report is there for who comes later");
        }
        application.stop(None);
    }
}

/// At rest, at work, or in the middle of its draining.
#[tokio::test]
async fn a_kill_is_no_planned_end_and_no_failure() {
    for (at_work, draining) in [(false, false), (true, false), (true, true)] {
        let (mut test, application, mut ends) = supervised().await;
        let model = test.model("model", ScriptedLoader::default());
        let mut events = test.system.events();
        let mut work = None;
        if at_work {
            work = Some(occupy(&test, &model).await);
        }
        if draining {
            test.system.cell().stop(None);
            test.until("it drains", |status| status.state == SystemState::ShuttingDown).await;
        }
        test.system.cell().kill();
        assert_eq!(seen(&mut ends).await, SystemEnd::Killed, "at work: {at_work}, draining: {draining}");
        test.until("it has ended", |status| status.state == SystemState::Stopped).await;
        if let Some((gate, running)) = work {
            assert!(matches!(end(running).await.unwrap_err(), Error::RecvError { .. }));
            gate.open();
        }
        while let Ok(event) = events.try_recv() {
            assert!(!matches!(event, Event::SystemFailed { .. }));
        }
        until_true(|| charged(&test) == model_actors::Bytes::ZERO).await;
        application.stop(None);
        test.finish().await;
    }
}

#[tokio::test]
async fn a_system_that_failed_for_good_says_so_everywhere() {
    for (victim, name) in [(Victim::Pool, "scripted"), (Victim::Maintenance, "maintenance")] {
        fail_for_good(victim, name).await;
    }
}

async fn fail_for_good(victim: Victim, name: &str) {
    let (mut test, application, mut ends) = supervised().await;
    let mut events = test.system.events();
    let loader = ScriptedLoader::default();
    let record = loader.record.clone();
    let model = test.model("model", loader);
    let other = test.stream_model("other", ScriptedLoader::default());
    // Of a pool that did not fail: one runs, one is queued, and the third waits for a slot.
    let gate = Gate::default();
    let accepted: Vec<Pending> = (0..2)
        .map(|_| {
            let (other, act) = (other.clone(), Act::Work(gate.latch()));
            tokio::spawn(async move { other.call(act.into(), CallOptions::default()).await })
        })
        .collect();
    until_true(|| gate.was_reached()).await;
    let mut waiting = Box::pin(other.call(Act::Reply(1).into(), CallOptions::default()));
    assert!(is_pending(&mut waiting).await, "it waits for a slot");

    test.kill(victim).await;
    assert_eq!(seen(&mut ends).await, SystemEnd::Failed);
    let failed = TestSystem::event(&mut events, "the system failed", |event| match event {
        Event::SystemFailed { error } => Some(error.clone()),
        _ => None,
    })
    .await;
    let Error::SystemFailed { cause } = &failed else { panic!("{failed}") };
    assert!(cause.message().starts_with(&format!("{name} failed too often")), "{cause}");
    assert_eq!((failed.kind(), failed.reason()), (ErrorKind::Internal, "system_failed"));
    let status = test.until("it has failed", |status| status.state == SystemState::Failed).await;
    assert!(!status.is_ready());
    assert_eq!(serde_json::to_value(status.state).unwrap(), "failed");

    assert_eq!(waiting.await, Err(failed.clone()));
    for accepted in accepted {
        let error = end(accepted).await.unwrap_err();
        assert!(matches!(error, Error::RecvError { .. }), "its pool ended with the system: {error}");
    }
    let late = test.model("late", ScriptedLoader::default());
    for model in [&model, &late] {
        assert_eq!(ask(model, Act::Reply(2)).await, Err(failed.clone()));
        assert_eq!(model.preload().await, Err(failed.clone()));
        assert_eq!(model.pin(true).await, Err(failed.clone()));
        assert_eq!(model.unload(millis(10)).await, Err(failed.clone()));
    }
    assert_eq!(model.check(&Act::Reply(1).into(), &CallOptions::default()), Err(failed.clone()));
    gate.open();
    freed(&record).await;
    application.stop(None);
    until_true(|| charged(&test) == model_actors::Bytes::ZERO).await;
    test.finish().await;
}
