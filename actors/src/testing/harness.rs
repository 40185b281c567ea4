//! A system for tests that has to be finished, and that fails the test if anything is left when it is: a
//! slot, a byte, a thread, a model or weights.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ractor::{ActorCell, Message};
use tokio::sync::{broadcast, watch};

use super::leaks::{Leak, quick_timings, shut_down};
use super::{Record, Scripted, ScriptedLoader, StreamedScript};
use crate::capability::Capability;
use crate::catalogue::ModelSpec;
use crate::client::{Client, ModelHandle};
use crate::config::{PoolConfig, SystemConfig};
use crate::id::{Bytes, ModelId};
use crate::maintenance::MaintenanceMessage;
use crate::memory::ProcessMemory;
use crate::pool::PoolMessage;
use crate::status::{ModelStatus, ShutdownReport, SystemStatus};
use crate::system::System;
use crate::telemetry::Event;
use crate::worker::Crash;

/// No event of a test is further away than this.
const LIMIT: Duration = Duration::from_secs(30);

/// An actor that a test kills or stops.
///
/// ```
/// use model_actors::testing::{TestSystem, Victim};
///
/// async fn lose_the_pool(system: &TestSystem) {
///     system.kill(Victim::Pool).await;
/// }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Victim {
    /// The maintenance actor.
    Maintenance,
    /// The actor of the one-shot pool, and with it its workers' actors.
    Pool,
    /// The actor of the youngest worker of the one-shot pool; its thread may be running.
    Worker,
    /// The actor of the youngest worker of the streamed pool; its thread may be running.
    StreamedWorker,
}

fn worker_of<C: Capability>(root: Vec<ActorCell>) -> ActorCell {
    let pool = youngest::<PoolMessage<C>>(root, "the pool");
    youngest::<Crash<C>>(pool.get_children(), "a worker")
}

/// The youngest actor of a kind.
fn youngest<M: Message>(actors: Vec<ActorCell>, what: &str) -> ActorCell {
    let of_kind = actors.into_iter().filter(|actor| actor.is_message_type_of::<M>() == Some(true));
    of_kind.max_by_key(|actor| actor.get_id().pid()).unwrap_or_else(|| panic!("{what} is not running"))
}

/// A system with a one-shot and a streamed pool of scripted models. Call [`TestSystem::finish`] at the end.
///
/// ```
/// use model_actors::CallOptions;
/// use model_actors::testing::{Act, ScriptedLoader, TestSystem};
///
/// # tokio::runtime::Runtime::new().unwrap().block_on(async {
/// let mut system = TestSystem::start().await;
/// let model = system.model("english", ScriptedLoader::default());
/// assert_eq!(model.call(Act::Reply(7).into(), CallOptions::default()).await, Ok(7));
/// system.finish().await; // fails the test if a slot, a byte, a thread or a model is left
/// # });
/// ```
pub struct TestSystem {
    /// The system.
    pub system: System,
    records: Vec<(ModelId, Arc<Record>)>,
    finished: bool,
}

/// Of no machine, so that no test depends on the one that it runs on.
const TO_SPARE: ProcessMemory = ProcessMemory { limit: Bytes(100), used: Bytes(50) };

impl TestSystem {
    /// Settings with times fit for a test, as [`quick_timings`] gives them.
    pub fn quick() -> (SystemConfig, PoolConfig) {
        quick_timings()
    }

    /// A system with quick settings.
    pub async fn start() -> Self {
        let (system, pool) = Self::quick();
        Self::start_with(system, pool).await
    }

    /// A system with these settings, on a machine that has memory to spare, whatever this one has.
    pub async fn start_with(system: SystemConfig, pool: PoolConfig) -> Self {
        Self::start_with_memory((system, pool), || TO_SPARE).await
    }

    /// A system that is told by this how the memory stands.
    pub async fn start_with_memory(
        (system, pool): (SystemConfig, PoolConfig),
        probe: impl Fn() -> ProcessMemory + Send + Sync + 'static,
    ) -> Self {
        let builder = System::builder(system).pool::<Scripted>(pool.clone()).pool::<StreamedScript>(pool);
        Self::of(builder.memory_probe(probe).start().await.expect("the test system starts"))
    }

    /// A system under a supervisor.
    pub async fn start_linked(system: SystemConfig, pool: PoolConfig, supervisor: ActorCell) -> Self {
        let builder = System::builder(system).pool::<Scripted>(pool.clone()).pool::<StreamedScript>(pool);
        let builder = builder.memory_probe(|| TO_SPARE);
        Self::of(builder.start_linked(supervisor).await.expect("the test system starts"))
    }

    fn of(system: System) -> Self {
        Self { system, records: Vec::new(), finished: false }
    }

    /// The client of the one-shot pool.
    pub fn client(&self) -> Client<Scripted> {
        self.system.client().expect("the pool was added")
    }

    /// The client of the streamed pool.
    pub fn streams(&self) -> Client<StreamedScript> {
        self.system.client().expect("the pool was added")
    }

    /// Registers a one-shot model.
    pub fn model(&mut self, id: &str, loader: ScriptedLoader) -> ModelHandle<Scripted> {
        self.register(id, loader.clone(), ModelSpec::new(id, loader))
    }

    /// Registers a one-shot model with a specification of its own.
    pub fn register(
        &mut self,
        id: &str,
        loader: ScriptedLoader,
        spec: ModelSpec<Scripted>,
    ) -> ModelHandle<Scripted> {
        self.records.push((ModelId::from(id), loader.record));
        self.client().register(spec).expect("the model is new")
    }

    /// Replaces a one-shot model, or registers it.
    pub fn replace(
        &mut self,
        id: &str,
        loader: ScriptedLoader,
        spec: ModelSpec<Scripted>,
    ) -> ModelHandle<Scripted> {
        self.records.push((ModelId::from(id), loader.record));
        self.client().replace(spec).expect("the settings are good")
    }

    /// Registers a streamed model.
    pub fn stream_model(&mut self, id: &str, loader: ScriptedLoader) -> ModelHandle<StreamedScript> {
        self.records.push((ModelId::from(id), loader.record.clone()));
        self.streams().register(ModelSpec::new(id, loader)).expect("the model is new")
    }

    /// Waits until the status satisfies the condition and returns it.
    pub async fn until(&self, what: &str, condition: impl FnMut(&SystemStatus) -> bool) -> SystemStatus {
        wait_for(&mut self.system.watch(), what, condition).await
    }

    /// Waits until a model's status satisfies the condition and returns it.
    pub async fn until_model(
        &self,
        model: &str,
        what: &str,
        mut condition: impl FnMut(&ModelStatus) -> bool,
    ) -> ModelStatus {
        let find = |status: &SystemStatus| status.pools.iter().find_map(|pool| pool.model(model)).cloned();
        let status = self.until(what, |status| find(status).as_ref().is_some_and(&mut condition)).await;
        find(&status).expect("the condition saw it")
    }

    /// Waits for the first event that the function accepts.
    pub async fn event<T>(
        events: &mut broadcast::Receiver<Event>,
        what: &str,
        mut accept: impl FnMut(&Event) -> Option<T>,
    ) -> T {
        let next = async {
            loop {
                if let Some(found) =
                    accept(&events.recv().await.expect("the stream goes on and does not lag"))
                {
                    return found;
                }
            }
        };
        match tokio::time::timeout(LIMIT, next).await {
            Ok(found) => found,
            Err(_) => panic!("no such event within {LIMIT:?}: {what}"),
        }
    }

    /// Kills an actor in the middle of its work, as nothing but a fault would, and waits until it is dead.
    pub async fn kill(&self, victim: Victim) {
        self.find(victim).kill_and_wait(None).await.expect("the actor can be killed");
    }

    /// Kills an actor and returns before it has noticed: messages sent right afterwards are never read.
    pub fn kill_at_once(&self, victim: Victim) {
        self.find(victim).kill();
    }

    /// Stops an actor after the message that it handles, as anybody with its cell can, and waits until it has
    /// ended.
    pub async fn stop(&self, victim: Victim) {
        let reason = Some("stopped by a test".to_owned());
        self.find(victim).stop_and_wait(reason, None).await.expect("the actor can be stopped");
    }

    fn find(&self, victim: Victim) -> ActorCell {
        let root = self.system.cell().get_children();
        match victim {
            Victim::Maintenance => youngest::<MaintenanceMessage>(root, "maintenance"),
            Victim::Pool => youngest::<PoolMessage<Scripted>>(root, "the one-shot pool"),
            Victim::Worker => worker_of::<Scripted>(root),
            Victim::StreamedWorker => worker_of::<StreamedScript>(root),
        }
    }

    /// Shuts down and returns the report with everything that was left behind.
    pub async fn shut_down(mut self) -> (ShutdownReport, Vec<Leak>) {
        self.finished = true;
        let (report, mut leaks) = shut_down(&self.system).await;
        for (model, record) in &self.records {
            let models = record.models_alive.load(Ordering::SeqCst);
            let weights = record.weights_alive.load(Ordering::SeqCst);
            if models + weights > 0 {
                leaks.push(Leak::Models { model: model.clone(), models, weights });
            }
        }
        (report, leaks)
    }

    /// Shuts down and fails the test if anything was left behind.
    pub async fn finish(self) -> ShutdownReport {
        let (report, leaks) = self.shut_down().await;
        let leaks: Vec<String> = leaks.iter().map(Leak::to_string).collect();
        assert!(leaks.is_empty(), "the test left something behind: {}", leaks.join("; "));
        report
    }
}

impl Drop for TestSystem {
    fn drop(&mut self) {
        if !self.finished && !std::thread::panicking() {
            panic!("a TestSystem was dropped without finish(): what it leaked was not looked at");
        }
    }
}

/// Waits until the watched status satisfies the condition and returns it; fails the test after 30 s, with the
/// status.
pub async fn wait_for(
    status: &mut watch::Receiver<SystemStatus>,
    what: &str,
    condition: impl FnMut(&SystemStatus) -> bool,
) -> SystemStatus {
    match tokio::time::timeout(LIMIT, status.wait_for(condition)).await {
        Ok(Ok(status)) => return status.clone(),
        Ok(Err(_)) => panic!("the system was dropped while the test waited until {what}"),
        Err(_) => {}
    }
    panic!("not within {LIMIT:?}: {what}; the status is {:#?}", *status.borrow());
}
