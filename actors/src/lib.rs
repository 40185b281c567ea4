//! Supervised, bounded, memory-aware worker pools for local models, as ractor actors.
//!
//! The modules are listed in reading order, and each imports only those above it (`model`, `batch` and `job` lean on
//! one another's types).

mod batch;
mod capability;
mod config;
mod error;
mod id;
mod job;
pub mod maintenance;
mod memory;
mod model;
mod progress;
pub mod scheduler;
mod status;
pub mod telemetry;

pub use batch::{Batch, Item, Stopped};
pub use capability::*;
pub use config::{BatchLimits, PoolConfig, QueueCapacity, RestartConfig, StallLimits, SystemConfig};
pub use error::{Cause, Error, Failure, FailureKind, RequestPhase, Result};
pub use id::{Bytes, Device, ModelId, ModelKey, RequestId, Time, WorkerId};
pub use memory::{Ledger, PressureLevel};
pub use model::{Footprint, LoadContext, Loader, Model, Weights};
pub use progress::{LoadStage, WorkerPhase};
pub use status::{
    BreakerState, LoadStatus, MemoryStatus, ModelStatus, PoolStatus, ShutdownReport, SystemState,
    SystemStatus, WorkerStatus,
};
pub use telemetry::{Event, EvictionReason};
