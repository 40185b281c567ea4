//! Settings as plain data, with the defaults in one place. They are validated once, when the system is built
//! or a model is registered, bad combinations included; what the actors get is valid.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::id::{Bytes, Device};
use crate::limits::{MAX_DIGEST_BYTES, MAX_NAME_BYTES};

mod tenants;

pub use tenants::TenantConfig;

/// Settings of a whole system.
///
/// ```
/// use model_actors::{Bytes, SystemConfig};
/// let config = SystemConfig::default().with_memory_limit(Bytes::mib(512));
/// assert!(config.validate().is_ok());
/// ```
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct SystemConfig {
    /// Limit on the host memory that all pools together may charge. `None`: 80 % of what this process may
    /// use, container limits included.
    pub memory_limit: Option<Bytes>,
    /// Budgets of accelerators, each on its own.
    pub device_limits: Vec<(Device, Bytes)>,
    /// Time between two memory and health checks, and between two cooldown evictions of one model.
    pub maintenance_interval: Duration,
    /// Time that queued and running requests have to finish at shutdown.
    pub shutdown_timeout: Duration,
    /// Restart budget of failed pools and of maintenance together, beyond which the system itself fails.
    pub restart: RestartConfig,
    /// Number of events kept for a subscriber that lags; beyond it, the subscriber misses the oldest.
    pub event_capacity: usize,
}

impl Default for SystemConfig {
    fn default() -> Self {
        Self {
            memory_limit: None,
            device_limits: Vec::new(),
            maintenance_interval: Duration::from_secs(60),
            shutdown_timeout: Duration::from_secs(5),
            restart: RestartConfig::default(),
            event_capacity: 1024,
        }
    }
}

setters! { SystemConfig {
    with_memory_limit(memory_limit: impl Into<Option<Bytes>>) Into::into;
    with_device_limits(device_limits: Vec<(Device, Bytes)>);
    with_maintenance_interval(maintenance_interval: Duration);
    with_shutdown_timeout(shutdown_timeout: Duration);
    with_restart(restart: RestartConfig);
    with_event_capacity(event_capacity: usize);
} }

impl SystemConfig {
    /// Checks every setting.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] names the first setting that is out of range.
    pub fn validate(&self) -> Result<()> {
        require(self.memory_limit != Some(Bytes::ZERO), "memory_limit", "must be above zero")?;
        for (index, (device, _)) in self.device_limits.iter().enumerate() {
            check_name("device_limits", device.as_str())?;
            let host = *device == Device::host();
            require(!host, "device_limits", "the host's limit is memory_limit")?;
            let twice = self.device_limits[..index].iter().any(|(other, _)| other == device);
            require(!twice, "device_limits", "a device is named twice")?;
        }
        let is_long = self.maintenance_interval >= Duration::from_millis(1);
        require(is_long, "maintenance_interval", "must be at least 1 ms")?;
        require(!self.shutdown_timeout.is_zero(), "shutdown_timeout", "must be above zero")?;
        bounded(self.maintenance_interval, "maintenance_interval")?;
        bounded(self.shutdown_timeout, "shutdown_timeout")?;
        require((1..=1 << 20).contains(&self.event_capacity), "event_capacity", "must be 1 to 1,048,576")?;
        self.restart.validate()
    }
}

/// Settings of one model's workers and queue. A pool has defaults; a model may override them.
///
/// ```
/// use model_actors::PoolConfig;
/// let one_worker = PoolConfig::default().with_max_workers(1);
/// assert!(one_worker.validate().is_ok());
/// assert!(PoolConfig::default().with_max_workers(0).validate().is_err());
/// ```
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct PoolConfig {
    /// Time for queue, load and run up to the first output, or until its model has begun, as
    /// [`CallOptions::timeout`](crate::CallOptions::timeout) says; unless the request brings its own.
    pub request_timeout: Duration,
    /// Time for all of a request, to the end of its output, unless the request brings its own. `None`: none,
    /// so that an answer that has begun may take as long as it makes progress.
    pub total_timeout: Option<Duration>,
    /// Time that a preload waits for queue, download and load; the load goes on after it.
    pub preload_timeout: Duration,
    /// Maximum number of workers of one model.
    pub max_workers: usize,
    /// Workers started at a model's first request, where memory allows; never more than `max_workers`.
    pub cold_start_workers: usize,
    /// Requests accepted and not yet answered, by lane. `None`: the capability's own
    /// [`crate::Capability::QUEUE`].
    pub queue: Option<QueueCapacity>,
    /// Number of a stream's chunks that may wait for their reader.
    pub stream_buffer: usize,
    /// Time that all workers of a model must have been idle before the first of them goes.
    pub cooldown_idle: Duration,
    /// Time that a model's first worker waits for room while workers that may be evicted are still in use or
    /// too young; then its requests get `MemoryExhausted`. While workers whose bytes are enough have been told to go,
    /// it waits up to 5 s more for them. Zero: it takes what is free or idle now, and waits for nothing else.
    pub room_wait: Duration,
    /// Minimum age of a worker that is evicted to make room for another model.
    pub min_residency: Duration,
    /// Restart budget and backoff of a model's workers.
    pub restart: RestartConfig,
    /// Times without progress after which a worker is given up.
    pub stall: StallLimits,
    /// Limits of one batch.
    pub batch: BatchLimits,
    /// Waiting time for which a request gains one level of priority.
    pub aging: Duration,
    /// Shares and bounds of the tenants that requests are made for.
    pub tenants: TenantConfig,
}

impl Default for PoolConfig {
    fn default() -> Self {
        Self {
            request_timeout: Duration::from_secs(30),
            total_timeout: None,
            preload_timeout: Duration::from_secs(30 * 60),
            max_workers: 4,
            cold_start_workers: 2,
            queue: None,
            stream_buffer: 64,
            cooldown_idle: Duration::from_secs(60),
            room_wait: Duration::from_secs(10),
            min_residency: Duration::from_secs(5),
            restart: RestartConfig::default(),
            stall: StallLimits::default(),
            batch: BatchLimits::default(),
            aging: Duration::from_secs(2),
            tenants: TenantConfig::default(),
        }
    }
}

setters! { PoolConfig {
    with_request_timeout(request_timeout: Duration);
    with_total_timeout(total_timeout: impl Into<Option<Duration>>) Into::into;
    with_preload_timeout(preload_timeout: Duration);
    with_max_workers(max_workers: usize);
    with_cold_start_workers(cold_start_workers: usize);
    with_queue(queue: impl Into<Option<QueueCapacity>>) Into::into;
    with_stream_buffer(stream_buffer: usize);
    with_cooldown_idle(cooldown_idle: Duration);
    with_room_wait(room_wait: Duration);
    with_min_residency(min_residency: Duration);
    with_restart(restart: RestartConfig);
    with_stall(stall: StallLimits);
    with_batch(batch: BatchLimits);
    with_aging(aging: Duration);
    with_tenants(tenants: TenantConfig);
} }

impl PoolConfig {
    /// Checks every setting and their combinations.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] names the first setting that is out of range.
    pub fn validate(&self) -> Result<()> {
        require(!self.request_timeout.is_zero(), "request_timeout", "must be above zero")?;
        require(self.total_timeout != Some(Duration::ZERO), "total_timeout", "must be above zero")?;
        require(!self.preload_timeout.is_zero(), "preload_timeout", "must be above zero")?;
        require((1..=1024).contains(&self.max_workers), "max_workers", "must be 1 to 1,024")?;
        require((1..=1024).contains(&self.cold_start_workers), "cold_start_workers", "must be 1 to 1,024")?;
        self.queue.as_ref().map_or(Ok(()), QueueCapacity::validate)?;
        require((1..=1 << 16).contains(&self.stream_buffer), "stream_buffer", "must be 1 to 65,536")?;
        require(!self.cooldown_idle.is_zero(), "cooldown_idle", "must be above zero")?;
        require(!self.stall.load.is_zero(), "stall.load", "must be above zero")?;
        require(!self.stall.run.is_zero(), "stall.run", "must be above zero")?;
        require(self.batch.requests >= 1, "batch.requests", "must be at least 1")?;
        require(self.batch.cost >= 1, "batch.cost", "must be at least 1")?;
        require(!self.aging.is_zero(), "aging", "must be above zero")?;
        self.tenants.validate()?;
        self.restart.validate()
    }

    /// Number of workers to start at a model's first request: `cold_start_workers`, but at most
    /// `max_workers`.
    pub(crate) fn initial_workers(&self) -> usize {
        self.cold_start_workers.min(self.max_workers)
    }
}

/// Capacities of a model's two queues: requests that may be accepted and unanswered at a time, by lane.
///
/// ```
/// assert_eq!(model_actors::QueueCapacity::default().interactive, 100);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct QueueCapacity {
    /// Number of slots of the interactive lane.
    pub interactive: usize,
    /// Number of slots of the batch lane.
    pub batch: usize,
}

setters! { QueueCapacity {
    with_interactive(interactive: usize);
    with_batch(batch: usize);
} }

impl QueueCapacity {
    /// Capacities of the two lanes, in requests.
    pub const fn new(interactive: usize, batch: usize) -> Self {
        Self { interactive, batch }
    }

    pub(crate) fn validate(&self) -> Result<()> {
        let range = 1..=1 << 20;
        require(range.contains(&self.interactive), "queue.interactive", "must be 1 to 1,048,576")?;
        require(range.contains(&self.batch), "queue.batch", "must be 1 to 1,048,576")
    }
}

impl Default for QueueCapacity {
    fn default() -> Self {
        Self { interactive: 100, batch: 50 }
    }
}

/// Restart budget, backoff and circuit breaker of workers and of a system's children.
///
/// ```
/// use model_actors::RestartConfig;
/// let config = RestartConfig::default();
/// assert_eq!((config.max_restarts, config.window.as_secs()), (3, 60));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct RestartConfig {
    /// Maximum number of restarts within the window; one failure more opens the breaker.
    pub max_restarts: u32,
    /// Window over which restarts are counted.
    pub window: Duration,
    /// Backoff before the first restart; it doubles with each failure in the window.
    pub first_backoff: Duration,
    /// Maximum backoff.
    pub max_backoff: Duration,
    /// Time that the breaker stays open before it lets one probe through.
    pub breaker_open: Duration,
}

impl Default for RestartConfig {
    fn default() -> Self {
        Self {
            max_restarts: 3,
            window: Duration::from_secs(60),
            first_backoff: Duration::from_millis(250),
            max_backoff: Duration::from_secs(30),
            breaker_open: Duration::from_secs(60),
        }
    }
}

setters! { RestartConfig {
    with_max_restarts(max_restarts: u32);
    with_window(window: Duration);
    with_first_backoff(first_backoff: Duration);
    with_max_backoff(max_backoff: Duration);
    with_breaker_open(breaker_open: Duration);
} }

impl RestartConfig {
    fn validate(&self) -> Result<()> {
        require(self.max_restarts <= 1000, "restart.max_restarts", "must be at most 1,000")?;
        require(!self.window.is_zero(), "restart.window", "must be above zero")?;
        require(
            self.first_backoff <= self.max_backoff,
            "restart.first_backoff",
            "must be at most restart.max_backoff",
        )?;
        bounded(self.max_backoff, "restart.max_backoff")?;
        bounded(self.breaker_open, "restart.breaker_open")?;
        require(!self.breaker_open.is_zero(), "restart.breaker_open", "must be above zero")
    }
}

/// Times without progress after which a worker is given up.
///
/// ```
/// assert_eq!(model_actors::StallLimits::default().run.as_secs(), 120);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct StallLimits {
    /// While loading: without a byte of progress.
    pub load: Duration,
    /// While running: without a progress tick. A stream's reader is given as long.
    pub run: Duration,
}

impl Default for StallLimits {
    fn default() -> Self {
        Self { load: Duration::from_secs(300), run: Duration::from_secs(120) }
    }
}

setters! { StallLimits {
    with_load(load: Duration);
    with_run(run: Duration);
} }

/// Limits of one batch. A single request always fits, whatever it costs.
///
/// ```
/// assert_eq!(model_actors::BatchLimits::default().requests, 32);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct BatchLimits {
    /// Maximum number of requests.
    pub requests: usize,
    /// Maximum cost of all requests together, in the capability's unit (tokens, say).
    pub cost: u64,
}

impl Default for BatchLimits {
    fn default() -> Self {
        Self { requests: 32, cost: 16_384 }
    }
}

setters! { BatchLimits {
    with_requests(requests: usize);
    with_cost(cost: u64);
} }

/// Longer than anybody waits, and short enough to be added to any moment.
const LONGEST: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

fn bounded(duration: Duration, setting: &'static str) -> Result<()> {
    require(duration <= LONGEST, setting, "must be at most ten years")
}

/// Checks a name of the caller's, which becomes the name of a thread or a label of metrics: a thread's cannot hold
/// a zero byte, and a log line no other control character.
pub(crate) fn check_name(setting: &'static str, name: &str) -> Result<()> {
    let fault = if name.is_empty() {
        "a name must not be empty".to_owned()
    } else if name.len() > MAX_NAME_BYTES {
        format!("a name has at most {MAX_NAME_BYTES} bytes, and this one {}", name.len())
    } else if name.contains(char::is_control) {
        format!("a name has no control characters, and {name:?} has")
    } else {
        return Ok(());
    };
    Err(Error::InvalidConfig { setting: setting.into(), reason: fault })
}

/// Checks the digest of a model's files, which has to be short enough to be told again and again.
pub(crate) fn check_digest(digest: &str) -> Result<()> {
    let is_fine = (1..=MAX_DIGEST_BYTES).contains(&digest.len()) && !digest.contains(char::is_control);
    require(is_fine, "digest", "has 1 to 128 bytes and no control characters")
}

/// Checks the name of a system or a capability, which comes before a slash in the names of actors. With one of its own, two
/// paths of names could lead to one.
pub(crate) fn check_first_name(setting: &'static str, name: &str) -> Result<()> {
    check_name(setting, name)?;
    require(!name.contains('/'), setting, "a name of a system or a capability has no slash")
}

fn require(holds: bool, setting: &'static str, reason: &str) -> Result<()> {
    if holds {
        Ok(())
    } else {
        Err(Error::InvalidConfig { setting: setting.into(), reason: reason.to_owned() })
    }
}
