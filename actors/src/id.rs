//! The small value types that everything else is written in: identifiers, lanes, bytes, devices and scheduler
//! time.
//!
//! Nothing here decides anything; each type exists so that two numbers of different meaning cannot be mixed
//! up.

use std::fmt;
use std::ops::{Add, AddAssign, Sub, SubAssign};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Name of a model, for example `sentence-transformers/all-MiniLM-L6-v2`. Unique within a capability. Registration
/// refuses one that is empty, longer than [`MAX_NAME_BYTES`](crate::limits::MAX_NAME_BYTES) or has control
/// characters.
///
/// ```
/// use model_actors::ModelId;
/// let id = ModelId::from("sentence-transformers/all-MiniLM-L6-v2");
/// assert_eq!(id.short(), "all-MiniLM-L6-v2");
/// ```
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ModelId(Arc<str>);

impl ModelId {
    /// The whole name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The whole identifier, shared with whoever keeps it.
    pub(crate) fn shared(&self) -> Arc<str> {
        self.0.clone()
    }

    /// The part after the last `/`, used to name workers and threads.
    pub fn short(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or(&self.0)
    }
}

impl From<&str> for ModelId {
    fn from(id: &str) -> Self {
        Self(id.into())
    }
}

impl From<&ModelId> for ModelId {
    fn from(id: &ModelId) -> Self {
        id.clone()
    }
}

impl From<String> for ModelId {
    fn from(id: String) -> Self {
        Self(id.into())
    }
}

impl fmt::Display for ModelId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl fmt::Debug for ModelId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "ModelId({})", self.0)
    }
}

/// Name of whoever a request is made for, an account or a team, say: the requests of a model are shared out fairly
/// between those who send them ([`TenantConfig`](crate::TenantConfig)). A request refuses one that is empty, longer than
/// [`MAX_NAME_BYTES`](crate::limits::MAX_NAME_BYTES) or has control characters.
///
/// ```
/// use model_actors::{CallOptions, Tenant};
/// let options = CallOptions::default().with_tenant(Tenant::from("acme"));
/// assert_eq!(options.tenant.unwrap().as_str(), "acme");
/// ```
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Tenant(Arc<str>);

impl Tenant {
    /// The whole name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for Tenant {
    fn from(name: &str) -> Self {
        Self(name.into())
    }
}

impl From<String> for Tenant {
    fn from(name: String) -> Self {
        Self(name.into())
    }
}

impl fmt::Display for Tenant {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl fmt::Debug for Tenant {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Tenant({})", self.0)
    }
}

/// Number of a registration in its pool's catalogue. A model that replaces another has its name, but a key of
/// its own.
///
/// ```
/// use model_actors::{ModelKey, ModelStatus};
///
/// fn is_same(before: &ModelStatus, key: ModelKey) -> bool {
///     before.key == key // false once another model has its name
/// }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ModelKey(pub u32);

/// A worker's number in its pool. Never used twice in the life of a system, restarts of the pool included.
///
/// ```
/// assert_eq!(model_actors::WorkerId(7).to_string(), "#7");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct WorkerId(pub u64);

impl fmt::Display for WorkerId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "#{}", self.0)
    }
}

/// A request's number in its process.
///
/// ```
/// assert_eq!(model_actors::RequestId(3).to_string(), "request 3");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RequestId(pub u64);

impl fmt::Display for RequestId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "request {}", self.0)
    }
}

/// The queue of a model that a request waits in: each model has two.
///
/// ```
/// assert_eq!(model_actors::Lane::Batch.to_string(), "batch");
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Lane {
    /// For answers that somebody waits for.
    #[default]
    Interactive,
    /// For bulk work, served after interactive requests of the same age and priority.
    Batch,
}

impl Lane {
    /// The name, as in errors, metrics and status.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Interactive => "interactive",
            Self::Batch => "batch",
        }
    }
}

impl fmt::Display for Lane {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// Urgency of a request relative to others of the same model. Waiting raises it.
///
/// ```
/// use model_actors::Priority;
/// assert!(Priority::HIGH > Priority::default());
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Priority(pub i8);

impl Priority {
    /// Two levels above the default.
    pub const HIGH: Self = Self(2);
    /// Two levels below the default.
    pub const LOW: Self = Self(-2);

    /// The rank of what came at this moment: the smaller is served earlier. `aging` is the wait that makes up for
    /// one level.
    pub(crate) fn rank(self, arrival: Time, aging: Duration) -> i128 {
        // `Duration::MAX` in nanoseconds is below 2^94, so this cannot overflow.
        arrival.0.as_nanos() as i128 - i128::from(self.0) * aging.as_nanos() as i128
    }
}

/// An amount of memory in bytes. Displays in binary units.
///
/// ```
/// use model_actors::Bytes;
/// assert_eq!(Bytes::mib(90).to_string(), "90.0 MiB");
/// assert_eq!((Bytes(3) + Bytes(4)).saturating_sub(Bytes(10)), Bytes(0));
/// ```
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Bytes(pub u64);

impl Bytes {
    /// No bytes.
    pub const ZERO: Self = Self(0);

    /// `n` mebibytes.
    pub const fn mib(n: u64) -> Self {
        Self(n.saturating_mul(1024 * 1024))
    }

    /// `self - other`, or zero.
    pub const fn saturating_sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }
}

impl Add for Bytes {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl AddAssign for Bytes {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl Sub for Bytes {
    type Output = Self;
    /// Saturates at zero: an amount of memory is never negative.
    fn sub(self, other: Self) -> Self {
        self.saturating_sub(other)
    }
}

impl SubAssign for Bytes {
    fn sub_assign(&mut self, other: Self) {
        *self = *self - other;
    }
}

impl std::iter::Sum for Bytes {
    fn sum<I: Iterator<Item = Self>>(amounts: I) -> Self {
        amounts.fold(Self::ZERO, Add::add)
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
        if self.0 < 1024 {
            return write!(formatter, "{} B", self.0);
        }
        let mut amount = self.0 as f64 / 1024.0;
        let mut unit = 0;
        while amount >= 1024.0 && unit + 1 < UNITS.len() {
            amount /= 1024.0;
            unit += 1;
        }
        write!(formatter, "{amount:.1} {}", UNITS[unit])
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Bytes({})", self.0)
    }
}

/// A memory that is budgeted on its own: the host's, or one accelerator's.
///
/// ```
/// use model_actors::Device;
/// assert_eq!(Device::host(), Device::default());
/// assert_eq!(Device::named("cuda:0").to_string(), "cuda:0");
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Device(Arc<str>);

impl Device {
    /// The host's memory, which this process shares with the rest of the machine.
    pub fn host() -> Self {
        Self("host".into())
    }

    /// An accelerator's memory, under the name that the application gives it.
    pub fn named(name: &str) -> Self {
        Self(name.into())
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for Device {
    fn default() -> Self {
        Self::host()
    }
}

impl fmt::Display for Device {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// A moment, as the time since the system started. The scheduler is given it and reads no clock.
///
/// ```
/// use model_actors::Time;
/// use std::time::Duration;
/// let later = Time::ZERO + Duration::from_secs(3);
/// assert_eq!(later.since(Time::ZERO), Duration::from_secs(3));
/// assert_eq!(Time::ZERO.since(later), Duration::ZERO);
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Time(Duration);

impl Time {
    /// The start of the system.
    pub const ZERO: Self = Self(Duration::ZERO);
    /// Later than any real moment.
    pub const NEVER: Self = Self(Duration::MAX);

    /// The moment `elapsed` after the start of the system.
    pub const fn after_start(elapsed: Duration) -> Self {
        Self(elapsed)
    }

    /// The time from `earlier` to `self`, or zero if `earlier` is later.
    pub const fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<Duration> for Time {
    type Output = Self;
    fn add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(duration))
    }
}
