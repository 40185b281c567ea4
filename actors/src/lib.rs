//! Supervised, bounded, memory-aware worker pools for local models, as ractor actors.
//!
//! A [`System`] supervises one pool for each [`Capability`]; a [`Client`] registers models with a pool, and a
//! [`ModelHandle`] sends requests to one model. Models are implemented with [`Loader`], [`Weights`] and
//! [`Model`].
//!
//! The modules are listed in reading order, and each imports only those above it.

#[macro_use]
mod message;
#[macro_use]
mod setters;

mod id;
mod error;
mod reaper;
mod wakers;
pub mod limits;
mod config;
pub mod wire;
mod capability;
mod progress;
mod memory;
pub mod telemetry;
mod entry;
mod job;
mod batch;
mod model;
pub mod isolation;
mod status;
mod alarm;
mod children;
#[cfg(feature = "testing")]
pub mod maintenance;
#[cfg(not(feature = "testing"))]
#[allow(unreachable_pub, dead_code, reason = "public for the tests alone")]
mod maintenance;
#[cfg(feature = "testing")]
pub mod scheduler;
#[cfg(not(feature = "testing"))]
#[allow(unreachable_pub, dead_code, reason = "public for the tests alone")]
mod scheduler;
mod catalogue;
mod intake;
mod roster;
mod worker;
mod pool;
#[cfg(all(feature = "cluster", feature = "testing"))]
pub mod cluster;
#[cfg(all(feature = "cluster", not(feature = "testing")))]
#[allow(unreachable_pub, dead_code, unused_imports, reason = "public for the tests alone")]
mod cluster;
mod client;
#[cfg(feature = "cluster")]
mod node;
mod system;
#[cfg(feature = "testing")]
pub mod testing;

pub use batch::{Batch, Item, Stopped};
pub use capability::*;
pub use catalogue::{ModelSpec, RegisteredModel};
pub use client::{CallOptions, Client, ModelHandle, ReplyStream, WhenFull};
#[cfg(feature = "cluster")]
pub use cluster::{ClusterConfig, ClusterTls};
pub use config::{
    BatchLimits, PoolConfig, QueueCapacity, RestartConfig, StallLimits, SystemConfig, TenantConfig,
};
pub use error::{Cause, Error, ErrorKind, Failure, FailureKind, RequestPhase, Result};
pub use id::{Bytes, Device, Lane, ModelId, ModelKey, Priority, RequestId, Tenant, Time, WorkerId};
pub use job::EmitError;
pub use memory::{
    Cached, Ledger, OnDemandParts, PartId, PartInUse, PartRoom, PrefixCache, PressureLevel, ProcessMemory,
};
pub use model::{Fetch, Footprint, LoadContext, Loader, Model, ModelFacts, Weights};
pub use progress::{LoadStage, WorkerPhase};
pub use ractor;
pub use status::{
    BreakerState, LoadStatus, MemoryStatus, ModelStatus, PeerModelStatus, PeerStatus, PoolStatus,
    ShutdownReport, SystemState, SystemStatus, TenantStatus, WorkerStatus,
};
pub use system::{System, SystemBuilder, SystemEnd};
pub use telemetry::{Event, EvictionReason};

/// The program in README.md, compiled and run.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
