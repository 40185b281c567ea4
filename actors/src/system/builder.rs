//! The builder of a system: checks its settings, makes its budgets and each pool's shared part, and starts
//! the root actor with them. Supervising what it started is left to the system.

use std::any::{Any, TypeId};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use ractor::{Actor, ActorCell, SpawnErr};
use tokio::sync::watch;

use super::child::SpawnPool;
use super::{Common, Inner, MAINTENANCE, System, SystemActor, SystemArguments};
use crate::alarm::Deadlines;
use crate::capability::Capability;
use crate::catalogue::Catalogue;
use crate::client::{PoolGate, PoolShared};
use crate::config::{PoolConfig, SystemConfig, check_first_name};
use crate::error::{Cause, Error, Result};
use crate::id::Device;
use crate::memory::{Budget, MemoryProbe, ProcessMemory};
use crate::progress::Clock;
use crate::status::{MemoryStatus, PoolStatus, SystemStatus};
use crate::telemetry::{self, Events};

/// Builds a [`System`]: its settings and its pools, one for each capability.
///
/// ```
/// # #[tokio::main]
/// # async fn main() -> model_actors::Result<()> {
/// use model_actors::{Bytes, PoolConfig, ProcessMemory, System, SystemConfig, TextEmbedding};
/// let quarter = || ProcessMemory::new(Bytes::mib(4096), Bytes::mib(1024));
/// let builder = System::builder(SystemConfig::default()).pool::<TextEmbedding>(PoolConfig::default());
/// let system = builder.memory_probe(quarter).start().await?;
/// assert!(system.shutdown().await.is_clean());
/// # Ok(())
/// # }
/// ```
pub struct SystemBuilder {
    name: Option<String>,
    config: SystemConfig,
    pools: Vec<PoolPlan>,
    memory: MemoryProbe,
    #[cfg(feature = "cluster")]
    cluster: Option<crate::cluster::ClusterConfig>,
}

/// Makes the two sides of a pool: the one that the system starts, and the one that its clients hold.
type MakePool = fn(PoolConfig, &Common) -> (Arc<dyn SpawnPool>, AnyPool);

struct PoolPlan {
    capability: TypeId,
    name: &'static str,
    config: PoolConfig,
    make: MakePool,
    /// Leads the pool's clients to other nodes, for one that is shared.
    #[cfg(feature = "cluster")]
    share: Option<SharePool>,
}

#[cfg(feature = "cluster")]
type SharePool = fn(AnyPool) -> Option<Arc<dyn crate::node::SpawnSpeaker>>;

/// Shared part of a pool, without its capability in the type.
pub(super) type AnyPool = Arc<dyn Any + Send + Sync>;

impl SystemBuilder {
    pub(super) fn new(config: SystemConfig) -> Self {
        Self {
            name: None,
            config,
            pools: Vec::new(),
            memory: MemoryProbe::new(ProcessMemory::measure),
            #[cfg(feature = "cluster")]
            cluster: None,
        }
    }

    /// Gives the system a name. Its actors then stand in ractor's registry: the root as `name`, maintenance as
    /// `name/maintenance`, a pool as `name/text_embedding`, a worker as `name/text_embedding/acme/english#3`, with its
    /// model and number. Without a name none of them does. It has no slash. A name belongs to one system at a time,
    /// and is free again once [`System::shutdown`] has returned or the supervisor knows of the end.
    ///
    /// ```
    /// # #[tokio::main]
    /// # async fn main() -> model_actors::Result<()> {
    /// use model_actors::ractor::registry::where_is;
    /// use model_actors::{PoolConfig, System, SystemConfig, TextEmbedding};
    /// let builder = System::builder(SystemConfig::default()).pool::<TextEmbedding>(PoolConfig::default());
    /// let system = builder.name("models").start().await?;
    /// assert!(where_is("models/text_embedding".to_owned()).is_some());
    /// # system.shutdown().await;
    /// # Ok(())
    /// # }
    /// ```
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Adds a pool for a capability, with the default settings of its models.
    pub fn pool<C: Capability>(mut self, config: PoolConfig) -> Self {
        let make = |config: PoolConfig, common: &Common| {
            let catalogue = Arc::new(Catalogue::new(config, common.clock, common.budgets.clone()));
            common.directory.add(catalogue.clone());
            let shared = Arc::new(PoolShared::<C> {
                catalogue,
                directory: common.directory.clone(),
                gate: PoolGate::new(),
                roster: Arc::default(),
                clock: common.clock,
                deadlines: common.deadlines.clone(),
                #[cfg(feature = "cluster")]
                elsewhere: std::sync::OnceLock::new(),
            });
            let spawn: Arc<dyn SpawnPool> = Arc::new(shared.clone());
            (spawn, shared as AnyPool)
        };
        self.pools.push(PoolPlan {
            capability: TypeId::of::<C>(),
            name: C::NAME,
            config,
            make,
            #[cfg(feature = "cluster")]
            share: None,
        });
        self
    }

    /// Adds a pool that is shared with the other nodes of the cluster: its models that have a
    /// [`digest`](crate::ModelSpec::digest) are reached from there, and its clients reach those of the shared pools of other
    /// nodes by [`Client::model`](crate::Client::model). Without [`Self::cluster`] it is a pool as any other.
    #[cfg(feature = "cluster")]
    pub fn shared_pool<C: crate::capability::Portable>(self, config: PoolConfig) -> Self {
        let mut builder = self.pool::<C>(config);
        if let Some(plan) = builder.pools.last_mut() {
            plan.share = Some(|shared| {
                let shared = shared.downcast::<PoolShared<C>>().ok()?;
                Some(crate::node::Way::lead(&shared))
            });
        }
        builder
    }

    /// Makes the system a node of a cluster. A process can be one node only.
    #[cfg(feature = "cluster")]
    pub fn cluster(mut self, config: crate::cluster::ClusterConfig) -> Self {
        self.cluster = Some(config);
        self
    }

    /// Replaces [`ProcessMemory::measure`], for an environment that it does not know. The probe is called at
    /// the start if no limit is set, and at each maintenance interval and load, on a thread of its own. If it panics or
    /// takes more than 30 s, the start fails; later on, if it panics or takes more than 250 ms, the pressure counts as
    /// unchanged and loads find what their budget has.
    pub fn memory_probe(mut self, probe: impl Fn() -> ProcessMemory + Send + Sync + 'static) -> Self {
        self.memory = MemoryProbe::new(probe);
        self
    }

    /// Starts the system on its own, on the tokio runtime that this is awaited on. It needs timers
    /// (`enable_time`), and the system ends with it. Callers may be on other runtimes and other executors.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`]; [`Error::StartFailed`] without such a runtime, or if an actor could not be
    /// started.
    pub async fn start(self) -> Result<System> {
        self.build(None).await
    }

    /// Starts the system under an application's own supervisor, which sees its end as a supervision event.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn start_linked(self, supervisor: ActorCell) -> Result<System> {
        self.build(Some(supervisor)).await
    }

    async fn build(self, supervisor: Option<ActorCell>) -> Result<System> {
        self.config.validate()?;
        self.name.as_deref().map_or(Ok(()), |name| check_first_name("name", name))?;
        for (index, plan) in self.pools.iter().enumerate() {
            check_first_name("pools", plan.name)?;
            if plan.name == MAINTENANCE {
                let reason =
                    format!("a capability cannot be called {MAINTENANCE}, as an actor of each system is");
                return Err(Error::InvalidConfig { setting: "pools".into(), reason });
            }
            plan.config.validate()?;
            if self.pools[..index]
                .iter()
                .any(|other| other.capability == plan.capability || other.name == plan.name)
            {
                let reason = format!("two pools serve {}", plan.name);
                return Err(Error::InvalidConfig { setting: "pools".into(), reason });
            }
        }
        #[cfg_attr(not(feature = "cluster"), allow(unused_mut, reason = "there is no cluster to add"))]
        let mut common = common(self.name.map(Into::into), self.config, self.memory)?;
        #[cfg(feature = "cluster")]
        let mut speakers = Vec::new();
        let mut clients = HashMap::new();
        let mut pools = Vec::new();
        for plan in self.pools {
            let (spawn, client) = (plan.make)(plan.config, &common);
            let status = PoolStatus { capability: plan.name, ..PoolStatus::default() };
            common.status.send_modify(|system| system.pools.push(Arc::new(status)));
            pools.push(spawn);
            #[cfg(feature = "cluster")]
            if self.cluster.is_some() {
                speakers.extend(plan.share.and_then(|share| share(client.clone())));
            }
            clients.insert(plan.capability, client);
        }
        #[cfg(feature = "cluster")]
        if let Some(config) = self.cluster {
            common.cluster = Some(super::membership::ClusterPlan::new(config, speakers)?);
        }
        let arguments = SystemArguments { common: common.clone(), pools: pools.clone() };
        let name = common.name.as_deref().map(str::to_owned);
        let started = match supervisor {
            Some(supervisor) => SystemActor::spawn_linked(name, SystemActor, arguments, supervisor).await,
            None => SystemActor::spawn(name, SystemActor, arguments).await,
        };
        let (actor, _) = started.map_err(not_started)?;
        Ok(System { inner: Arc::new(Inner { actor, common, clients, pools }) })
    }
}

fn not_started(error: SpawnErr) -> Error {
    match taken_name(&error) {
        Some(name) => {
            let reason = format!("an actor named {name:?} is running");
            Error::InvalidConfig { setting: "name".into(), reason }
        }
        None => Error::StartFailed { cause: Cause::of(&error) },
    }
}

/// The name that another actor has, be it the root's or a child's.
fn taken_name(error: &SpawnErr) -> Option<&str> {
    match error {
        SpawnErr::ActorAlreadyRegistered(name) => Some(name),
        SpawnErr::StartupFailed(error) => taken_name(error.downcast_ref()?),
        _ => None,
    }
}

fn common(name: Option<Arc<str>>, config: SystemConfig, memory_probe: MemoryProbe) -> Result<Common> {
    telemetry::metric::describe_all();
    let limit = match config.memory_limit {
        Some(limit) => limit,
        None => memory_probe.measure_first().map_err(|cause| Error::StartFailed { cause })?.default_budget(),
    };
    let host = Budget::of_the_host(limit, memory_probe.clone());
    let others = config.device_limits.iter().map(|(device, limit)| Budget::new(device.clone(), *limit));
    let all = std::iter::once(host).chain(others).map(Arc::new);
    let budgets: BTreeMap<Device, Arc<Budget>> =
        all.map(|budget| (budget.device().clone(), budget)).collect();
    let memory = budgets.values().map(|budget| MemoryStatus::of(budget)).collect();
    let clock = Clock::start();
    Ok(Common {
        name,
        clock,
        deadlines: Deadlines::on_this_runtime(clock).map_err(|cause| Error::StartFailed { cause })?,
        events: Events::new(config.event_capacity),
        config: Arc::new(config),
        budgets: Arc::new(budgets),
        memory: memory_probe,
        report: Arc::default(),
        directory: Arc::default(),
        status: watch::Sender::new(SystemStatus { memory, ..SystemStatus::default() }),
        #[cfg(feature = "cluster")]
        cluster: None,
    })
}
