//! The root of the tree. The system actor starts maintenance and one pool a capability as its linked
//! children, starts a failed one again within the restart budget, and ends them all at shutdown; beyond the
//! budget it fails itself, which an application's own supervisor sees as an ordinary supervision event.
//! [`System`] is the handle that users hold: dropping the last one ends the tree.

use std::any::TypeId;
use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef, SupervisionEvent};
use tokio::sync::{broadcast, watch};

use crate::alarm::Deadlines;
use crate::capability::Capability;
use crate::catalogue::{Directory, RegisteredModel};
use crate::client::{Client, PoolShared};
use crate::config::SystemConfig;
use crate::error::{Error, Result};
use crate::id::{Bytes, Device};
use crate::maintenance::eviction::PoolIndex;
use crate::maintenance::{Maintenance, MaintenanceArguments, MaintenanceMessage};
use crate::memory::{Budgets, MemoryProbe};
use crate::pool::PoolArguments;
use crate::progress::Clock;
use crate::scheduler::{Restarts, Verdict};
use crate::status::{
    ModelStatus, PoolStatus, ShutdownReport, SystemState, SystemStatus, publish, refresh_memory,
};
use crate::telemetry::{Event, Events};
use crate::wakers::for_a_caller;

mod end;
mod child;
#[cfg(feature = "cluster")]
mod membership;
mod restart;
mod shutdown;
mod builder;

pub use builder::SystemBuilder;
pub use end::SystemEnd;

use builder::AnyPool;
use child::{PoolChild, SpawnPool};

/// Name of the maintenance actor among the children of the system.
const MAINTENANCE: &str = "maintenance";

/// Messages of the system actor, from its own timers.
pub(crate) enum SystemMessage {
    /// Start a failed child again, after its backoff.
    Restart(Child),
}

crate::impl_message!(SystemMessage);

/// Child of the system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Child {
    Maintenance,
    Pool(PoolIndex),
    /// The connections to the peers of a cluster.
    #[cfg(feature = "cluster")]
    Membership,
}

/// State shared by all parts of a running system. None of it holds a worker.
#[derive(Clone)]
pub(crate) struct Common {
    /// Name under which its actors are registered.
    name: Option<Arc<str>>,
    clock: Clock,
    deadlines: Deadlines,
    config: Arc<SystemConfig>,
    budgets: Budgets,
    status: watch::Sender<SystemStatus>,
    events: Events,
    memory: MemoryProbe,
    /// Report for every caller of `shutdown`.
    report: Arc<OnceLock<ShutdownReport>>,
    directory: Arc<Directory>,
    #[cfg(feature = "cluster")]
    cluster: Option<membership::ClusterPlan>,
}

impl Common {
    /// Name of a child of the system in ractor's registry.
    fn name_of(&self, child: &str) -> Option<String> {
        self.name.as_ref().map(|name| format!("{name}/{child}"))
    }

    /// Bytes charged by all pools, on all devices.
    fn charged(&self) -> Bytes {
        self.budgets.values().map(|budget| budget.read().charged()).sum()
    }
}

pub(crate) struct SystemArguments {
    common: Common,
    pools: Vec<Arc<dyn SpawnPool>>,
}

pub(crate) struct SystemActorState {
    common: Common,
    pools: Vec<PoolChild>,
    maintenance: ActorRef<MaintenanceMessage>,
    restarts: Restarts,
    random: fastrand::Rng,
    #[cfg(feature = "cluster")]
    membership: Option<ActorCell>,
}

/// The root supervisor: one for one, within a restart budget over all its children.
pub(crate) struct SystemActor;

impl Actor for SystemActor {
    type Msg = SystemMessage;
    type State = SystemActorState;
    type Arguments = SystemArguments;

    async fn pre_start(
        &self,
        myself: ActorRef<Self::Msg>,
        arguments: Self::Arguments,
    ) -> Result<Self::State, ActorProcessingErr> {
        let SystemArguments { common, pools } = arguments;
        let maintenance = start_maintenance(&common, pools.len(), &myself).await?;
        let mut state = SystemActorState {
            common,
            pools: pools.into_iter().map(PoolChild::new).collect(),
            maintenance,
            restarts: Restarts::default(),
            random: fastrand::Rng::new(),
            #[cfg(feature = "cluster")]
            membership: None,
        };
        for index in 0..state.pools.len() {
            state.start_pool(&myself, PoolIndex(index)).await?;
        }
        #[cfg(feature = "cluster")]
        {
            state.membership = membership::start_membership(&state.common, &myself).await?;
        }
        Ok(state)
    }

    async fn handle(
        &self,
        myself: ActorRef<Self::Msg>,
        message: Self::Msg,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        let SystemMessage::Restart(child) = message;
        let restarted = state.restart(&myself, child).await;
        if let Err(error) = &restarted {
            state.fail(&myself, &**error).await;
        }
        restarted
    }

    /// Drains, whoever stopped it in the ordinary way: the children live until this returns.
    async fn post_stop(
        &self,
        myself: ActorRef<Self::Msg>,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        state.drain(&myself).await;
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<Self::Msg>,
        event: SupervisionEvent,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        let (actor, reason) = match event {
            SupervisionEvent::ActorFailed(actor, error) => (actor, error.to_string()),
            SupervisionEvent::ActorTerminated(actor, _, reason) => {
                (actor, reason.unwrap_or_else(|| "it was stopped".to_owned()))
            }
            _ => return Ok(()),
        };
        let handled = state.child_ended(&myself, &actor, reason);
        if let Err(error) = &handled {
            state.fail(&myself, &**error).await;
        }
        handled
    }
}

/// Marks the system as stopped, if it was killed.
impl Drop for SystemActorState {
    fn drop(&mut self) {
        if !self.state().has_ended() {
            self.close(SystemState::Stopped, &Error::ShuttingDown);
        }
    }
}

async fn start_maintenance(
    common: &Common,
    pools: usize,
    myself: &ActorRef<SystemMessage>,
) -> Result<ActorRef<MaintenanceMessage>, ActorProcessingErr> {
    let arguments = MaintenanceArguments {
        clock: common.clock,
        interval: common.config.maintenance_interval,
        budgets: common.budgets.clone(),
        memory: common.memory.clone(),
        pools,
        status: common.status.clone(),
        events: common.events.clone(),
    };
    let name = common.name_of(MAINTENANCE);
    let (maintenance, _) = Maintenance::spawn_linked(name, Maintenance, arguments, myself.get_cell()).await?;
    Ok(maintenance)
}

impl SystemActorState {
    fn publish(&self, change: impl FnOnce(&mut SystemStatus)) {
        publish(&self.common.status, change);
    }

    fn state(&self) -> SystemState {
        self.common.status.borrow().state
    }

    /// True once everything accepted was given its time.
    fn has_drained(&self) -> bool {
        self.state() == SystemState::Stopped
    }

    /// Refuses requests from now on, with this error.
    fn refuse(&self, error: &Error) {
        for pool in &self.pools {
            pool.close(error);
        }
        #[cfg(feature = "cluster")]
        self.common.cluster.iter().for_each(membership::ClusterPlan::close);
    }

    fn close(&self, state: SystemState, error: &Error) {
        self.refuse(error);
        self.publish(|status| status.state = state);
    }

    async fn start_pool(
        &mut self,
        myself: &ActorRef<SystemMessage>,
        index: PoolIndex,
    ) -> Result<(), ActorProcessingErr> {
        let Some(pool) = self.pools.get_mut(index.0) else { return Ok(()) };
        let arguments = PoolArguments {
            name: self.common.name_of(pool.capability()),
            index,
            clock: self.common.clock,
            cooldown_interval: self.common.config.maintenance_interval,
            seed: self.random.u64(..),
            budgets: self.common.budgets.clone(),
            maintenance: self.maintenance.clone(),
            status: self.common.status.clone(),
            events: self.common.events.clone(),
        };
        let commands = pool.start(arguments, myself.get_cell()).await?;
        self.publish(|status| {
            if let Some(place) = status.pools.get_mut(index.0) {
                Arc::make_mut(place).live = true;
            }
        });
        let _ = self.maintenance.send_message(MaintenanceMessage::PoolUp { pool: index, commands });
        Ok(())
    }

    /// Handles the unexpected end of a pool or of maintenance.
    fn child_ended(
        &mut self,
        myself: &ActorRef<SystemMessage>,
        actor: &ActorCell,
        reason: String,
    ) -> Result<(), ActorProcessingErr> {
        let Some(child) = self.child_of(actor) else { return Ok(()) };
        if let Child::Pool(index) = child {
            self.pools[index.0].ended();
            let _ = self.maintenance.send_message(MaintenanceMessage::PoolDown { pool: index });
            self.publish(|status| {
                if let Some(place) = status.pools.get_mut(index.0) {
                    *place = Arc::new(PoolStatus { capability: place.capability, ..PoolStatus::default() });
                }
            });
        }
        if self.state() != SystemState::Running {
            return Ok(());
        }
        self.restart_or_give_up(myself, child, &reason)
    }

    /// Decides about a child that has ended, or that could not be started again.
    fn restart_or_give_up(
        &mut self,
        myself: &ActorRef<SystemMessage>,
        child: Child,
        reason: &str,
    ) -> Result<(), ActorProcessingErr> {
        let name = self.named(child);
        tracing::error!(child = name, reason, "a child of the system ended");
        let verdict =
            self.restarts.failed(&self.common.config.restart, self.common.clock.now(), self.random.f64());
        match verdict {
            Verdict::RestartAfter(backoff) => {
                myself.send_after(backoff, move || SystemMessage::Restart(child));
                Ok(())
            }
            Verdict::GiveUp => Err(format!("{name} failed too often; the last time: {reason}").into()),
        }
    }

    /// A child's name in the log: the capability of a pool.
    fn named(&self, child: Child) -> &'static str {
        match child {
            Child::Maintenance => MAINTENANCE,
            #[cfg(feature = "cluster")]
            Child::Membership => membership::CLUSTER,
            Child::Pool(index) => self.pools.get(index.0).map_or("a pool", PoolChild::capability),
        }
    }

    fn child_of(&self, actor: &ActorCell) -> Option<Child> {
        if self.maintenance.get_id() == actor.get_id() {
            return Some(Child::Maintenance);
        }
        #[cfg(feature = "cluster")]
        if self.membership.as_ref().is_some_and(|cell| cell.get_id() == actor.get_id()) {
            return Some(Child::Membership);
        }
        let index = self.pools.iter().position(|pool| pool.is(actor))?;
        Some(Child::Pool(PoolIndex(index)))
    }
}

/// Handle to a running system. Cheap to clone; with the last clone the tree ends, as by [`System::shutdown`].
///
/// ```
/// # #[tokio::main]
/// # async fn main() -> model_actors::Result<()> {
/// use model_actors::{PoolConfig, System, SystemConfig, TextEmbedding};
/// let system = System::builder(SystemConfig::default()).pool::<TextEmbedding>(PoolConfig::default()).start().await?;
/// let client = system.client::<TextEmbedding>()?;
/// assert!(client.handle("not/registered").is_err());
/// assert!(system.shutdown().await.is_clean());
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct System {
    inner: Arc<Inner>,
}

struct Inner {
    actor: ActorRef<SystemMessage>,
    common: Common,
    clients: HashMap<TypeId, AnyPool>,
    pools: Vec<Arc<dyn SpawnPool>>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.actor.stop(Some("its last handle was dropped".to_owned()));
    }
}

impl System {
    /// Starts building a system.
    pub fn builder(config: SystemConfig) -> SystemBuilder {
        SystemBuilder::new(config)
    }

    /// Registered models of all capabilities, in the order of the pools and, within a pool, of their names.
    pub fn models(&self) -> Vec<RegisteredModel> {
        self.inner.common.directory.models()
    }

    /// Numbers of free and of all slots of the queues of all registered models. Equal when no request is under way.
    pub fn slots(&self) -> (usize, usize) {
        self.inner.common.directory.slots()
    }

    /// Client of a capability's pool.
    ///
    /// # Errors
    /// [`Error::NoPool`].
    pub fn client<C: Capability>(&self) -> Result<Client<C>> {
        let shared = self.inner.clients.get(&TypeId::of::<C>()).cloned();
        let shared = shared.and_then(|shared| shared.downcast::<PoolShared<C>>().ok());
        shared.map(Client::new).ok_or(Error::NoPool { capability: C::NAME.into() })
    }

    /// Snapshot of the tree at this moment, memory included.
    pub fn status(&self) -> SystemStatus {
        let mut status = self.inner.common.status.borrow().clone();
        refresh_memory(&mut status.memory, &self.inner.common.budgets);
        let directory = &self.inner.common.directory;
        let is_current =
            |model: &ModelStatus| directory.is_current(model.capability, &model.model, model.key);
        for pool in status.pools.iter_mut().filter(|pool| !pool.models.iter().all(is_current)) {
            Arc::make_mut(pool).set_apart_removed(is_current);
        }
        status
    }

    /// Receiver of snapshots: the value changes with each change of a worker, and soon after requests come
    /// and go.
    pub fn watch(&self) -> watch::Receiver<SystemStatus> {
        self.inner.common.status.subscribe()
    }

    /// Receiver of all events from now on. Bounded: a subscriber that lags is told how many events it missed.
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.inner.common.events.subscribe()
    }

    /// Bytes charged against a memory's budget, and its limit.
    pub fn charged(&self, device: &Device) -> Option<(Bytes, Bytes)> {
        let ledger = self.inner.common.budgets.get(device)?.read();
        Some((ledger.charged(), ledger.limit()))
    }

    /// Cell of the root actor, to link, to watch or to stop: stopping it in the ordinary way is the same as
    /// [`Self::shutdown`]. [`SystemEnd`] reads its end from the supervision event.
    pub fn cell(&self) -> ActorCell {
        self.inner.actor.get_cell()
    }

    /// Shuts the system down: new requests get [`Error::ShuttingDown`], accepted ones have until the
    /// configured timeout, then every remaining caller is answered. Returns on time even with a worker that
    /// never returns. All callers get the same report. The report of a system that failed or was killed before has
    /// what it left behind: threads that have not ended, and bytes that are still charged.
    pub async fn shutdown(&self) -> ShutdownReport {
        for_a_caller(self.shut_down()).await
    }

    async fn shut_down(&self) -> ShutdownReport {
        let Common { config, report, clock, deadlines, .. } = &self.inner.common;
        // A system that has ended needs no telling.
        self.inner.actor.stop(Some("shut down".to_owned()));
        let limit = clock.now() + config.shutdown_timeout + Duration::from_secs(1);
        let mut stopped = self.watch();
        let is_stopped = stopped.wait_for(|status| status.state.has_ended());
        // Past the limit nobody waits for it.
        let _ = deadlines.until(limit, is_stopped).await;
        // A name is free once its actor has ended.
        let _ = deadlines.until(limit, self.inner.actor.get_cell().wait(None)).await;
        if let Some(report) = report.get() {
            return report.clone();
        }
        // It failed or was killed: the threads that it left are given the time that is left.
        let pools = &self.inner.pools;
        for pool in pools {
            let _ = deadlines.until(limit, pool.threads_ended()).await;
        }
        ShutdownReport {
            unfinished_threads: pools.iter().flat_map(|pool| pool.threads()).collect(),
            remaining: self.inner.common.charged(),
            ..ShutdownReport::default()
        }
    }
}
