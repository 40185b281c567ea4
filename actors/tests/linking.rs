//! A system is an ordinary actor to an application's own supervisor: its failure and its end are supervision events,
//! and two systems in one process know nothing of each other.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use common::*;
use model_actors::testing::{Act, ScriptedLoader, TestSystem, Victim};
use model_actors::{Error, SystemState};
use ractor::{Actor, ActorProcessingErr, ActorRef, SupervisionEvent};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// An application's supervisor, which knows nothing of models and tells the test what it sees.
struct Foreign;

#[derive(Debug, PartialEq)]
enum Seen {
    Failed(String),
    Ended(Option<String>),
}

impl Actor for Foreign {
    type Msg = ();
    type State = UnboundedSender<Seen>;
    type Arguments = UnboundedSender<Seen>;

    async fn pre_start(
        &self,
        _: ActorRef<()>,
        seen: Self::Arguments,
    ) -> Result<Self::State, ActorProcessingErr> {
        Ok(seen)
    }

    async fn handle_supervisor_evt(
        &self,
        _: ActorRef<()>,
        event: SupervisionEvent,
        seen: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        match event {
            SupervisionEvent::ActorFailed(_, error) => seen.send(Seen::Failed(error.to_string()))?,
            SupervisionEvent::ActorTerminated(_, _, reason) => seen.send(Seen::Ended(reason))?,
            _ => {}
        }
        Ok(())
    }
}

/// A system under a foreign supervisor, with one restart for its pools.
async fn linked() -> (TestSystem, ActorRef<()>, UnboundedReceiver<Seen>) {
    let (sender, seen) = unbounded_channel();
    let (supervisor, _) = Foreign::spawn(None, Foreign, sender).await.unwrap();
    let (mut system, pool) = single();
    system.restart.max_restarts = 1;
    (TestSystem::start_linked(system, pool, supervisor.get_cell()).await, supervisor, seen)
}

async fn pool_is(test: &TestSystem, live: bool) {
    test.until(&format!("the pool is live: {live}"), |status| status.pool("scripted").unwrap().live == live)
        .await;
}

#[tokio::test]
async fn its_supervisor_sees_its_failure_once_the_restarts_are_spent() {
    let (mut test, supervisor, mut seen) = linked().await;
    let loader = ScriptedLoader::default();
    let record = loader.record.clone();
    let model = test.model("model", loader);
    test.kill(Victim::Pool).await;
    pool_is(&test, false).await;
    pool_is(&test, true).await;
    assert_eq!(ask(&model, Act::Reply(1)).await.unwrap(), 1, "one is within the budget");
    assert!(seen.try_recv().is_err());

    test.kill(Victim::Pool).await;
    match seen.recv().await.unwrap() {
        Seen::Failed(error) => assert!(error.contains("failed too often"), "{error}"),
        other => panic!("{other:?}"),
    }
    test.until("the system has failed", |status| status.state == SystemState::Failed).await;
    assert!(matches!(refused(&model, Act::Reply(2)).await, Error::SystemFailed { .. }));
    supervisor.stop(None);
    freed(&record).await;
    test.finish().await;
}

#[tokio::test]
async fn its_supervisor_sees_its_normal_end() {
    let (mut test, supervisor, mut seen) = linked().await;
    let model = test.model("model", ScriptedLoader::default());
    assert_eq!(ask(&model, Act::Reply(1)).await.unwrap(), 1);
    test.finish().await;
    assert_eq!(seen.recv().await.unwrap(), Seen::Ended(Some("shut down".to_owned())));
    supervisor.stop(None);
}

#[tokio::test]
async fn it_ends_with_its_supervisor_and_answers_its_callers() {
    let (mut test, supervisor, _seen) = linked().await;
    let loader = ScriptedLoader::default();
    let record = loader.record.clone();
    let model = test.model("model", loader);
    let (gate, running) = occupy(&test, &model).await;
    let waiting = send(&model, Act::Reply(1));
    queued(&test, &model, 1).await;
    supervisor.kill();
    for pending in [running, waiting] {
        let error = end(pending).await.unwrap_err();
        assert!(matches!(error, Error::RecvError { .. } | Error::ShuttingDown), "{error}");
    }
    test.until("the system has ended", |status| status.state == SystemState::Stopped).await;
    freed(&record).await;
    gate.open();
    test.finish().await;
}

#[tokio::test]
async fn two_systems_in_one_process_do_not_clash() {
    let (mut first, mut second) = (start(single()).await, start(single()).await);
    // The same names on purpose.
    let one = first.model("model", ScriptedLoader::default());
    let two = second.model("model", ScriptedLoader::default());
    assert_eq!(ask(&one, Act::Reply(1)).await.unwrap(), 1);
    assert_eq!(ask(&two, Act::Reply(2)).await.unwrap(), 2);
    let before = charged(&second);
    first.finish().await;
    assert_eq!(ask(&two, Act::Reply(3)).await.unwrap(), 3, "the other goes on");
    assert_eq!(charged(&second), before);
    assert!(matches!(refused(&one, Act::Reply(4)).await, Error::ShuttingDown));
    second.finish().await;
}
