//! The check that nothing is left of a system when it is shut down, and settings with times fit for a test. Both serve
//! any system, an application's own included.

use std::time::Duration;

use crate::config::{PoolConfig, RestartConfig, StallLimits, SystemConfig};
use crate::id::{Bytes, ModelId};
use crate::status::ShutdownReport;
use crate::system::System;

/// Something that was left behind.
///
/// ```
/// use model_actors::testing::Leak;
/// assert_eq!(Leak::Slots { held: 1 }.to_string(), "1 slots are held");
/// ```
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Leak {
    /// Requests hold slots.
    #[error("{held} slots are held")]
    Slots {
        /// Number of slots.
        held: usize,
    },
    /// Bytes are charged.
    #[error("{bytes} are charged")]
    Bytes {
        /// Number of bytes.
        bytes: Bytes,
    },
    /// Threads have not ended.
    #[error("these threads have not ended: {names:?}")]
    Threads {
        /// Names of the threads.
        names: Vec<String>,
    },
    /// Models or weights are alive.
    #[error("{models} models and {weights} weights of {model} are alive")]
    Models {
        /// Of which model.
        model: ModelId,
        /// Models.
        models: usize,
        /// Weights.
        weights: usize,
    },
}

/// Shuts a system down and returns its report, with everything that was left behind.
///
/// ```
/// use model_actors::testing::{FakeLoader, quick_timings, shut_down};
/// use model_actors::{CallOptions, EmbedTexts, ModelSpec, System, TextEmbedding};
///
/// # tokio::runtime::Runtime::new().unwrap().block_on(async {
/// let (system, pool) = quick_timings();
/// let system = System::builder(system).pool::<TextEmbedding>(pool).start().await?;
/// let client = system.client::<TextEmbedding>()?;
/// let english = client.register(ModelSpec::new("english", FakeLoader::default()))?;
/// assert_eq!(english.call(EmbedTexts::from("a cat"), CallOptions::default()).await?.vectors.len(), 1);
/// let (report, leaks) = shut_down(&system).await;
/// assert!(report.is_clean() && leaks.is_empty(), "{leaks:?}");
/// # Ok::<(), model_actors::Error>(())
/// # }).unwrap();
/// ```
pub async fn shut_down(system: &System) -> (ShutdownReport, Vec<Leak>) {
    let report = system.shutdown().await;
    let mut leaks = Vec::new();
    let (free, all) = system.slots();
    if free < all {
        leaks.push(Leak::Slots { held: all - free });
    }
    if report.remaining > Bytes::ZERO {
        leaks.push(Leak::Bytes { bytes: report.remaining });
    }
    if !report.unfinished_threads.is_empty() {
        leaks.push(Leak::Threads { names: report.unfinished_threads.clone() });
    }
    (report, leaks)
}

/// Settings with times fit for a test: what takes seconds by default takes milliseconds, and a cold start has one
/// worker.
///
/// ```
/// let (system, pool) = model_actors::testing::quick_timings();
/// assert_eq!(pool.cold_start_workers, 1);
/// # drop(system);
/// ```
pub fn quick_timings() -> (SystemConfig, PoolConfig) {
    let restart = RestartConfig {
        first_backoff: Duration::from_millis(5),
        max_backoff: Duration::from_millis(50),
        breaker_open: Duration::from_millis(200),
        ..RestartConfig::default()
    };
    let system = SystemConfig {
        memory_limit: Some(Bytes::mib(1024)),
        maintenance_interval: Duration::from_millis(200),
        shutdown_timeout: Duration::from_secs(2),
        restart,
        ..SystemConfig::default()
    };
    let pool = PoolConfig {
        request_timeout: Duration::from_secs(20),
        cold_start_workers: 1,
        cooldown_idle: Duration::from_secs(20),
        min_residency: Duration::ZERO,
        stall: StallLimits { load: Duration::from_secs(10), run: Duration::from_secs(10) },
        restart,
        ..PoolConfig::default()
    };
    (system, pool)
}
