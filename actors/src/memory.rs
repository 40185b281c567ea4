//! Memory budgets: limits, charges, and leases that give back by `Drop`. The arithmetic is the pure
//! [`Ledger`]; a [`Budget`] shares one between threads, and keeps the caches whose bytes are charged to it. Choosing
//! workers to evict when room runs short is left to the eviction policy.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use crate::id::{Bytes, Device, Time};

mod prefixes;
mod cache;
mod on_demand;
mod probe;

pub use cache::{Cached, PrefixCache};
pub use on_demand::{OnDemandParts, PartInUse, PartRoom};
pub use prefixes::PartId;
pub(crate) use probe::MemoryProbe;

/// Limit of one memory and the bytes charged against it. Never charges beyond the limit.
///
/// ```
/// use model_actors::{Bytes, Ledger};
/// let mut ledger = Ledger::new(Bytes(100));
/// assert!(ledger.charge(Bytes(70)));
/// assert!(!ledger.charge(Bytes(31)));
/// ledger.give_back(Bytes(70));
/// assert_eq!(ledger.charged(), Bytes(0));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ledger {
    limit: Bytes,
    charged: Bytes,
    cached: Bytes,
}

impl Ledger {
    /// An empty ledger with this limit.
    pub fn new(limit: Bytes) -> Self {
        Self { limit, charged: Bytes::ZERO, cached: Bytes::ZERO }
    }

    /// Charges the amount if it fits; otherwise charges nothing and returns false.
    #[must_use]
    pub fn charge(&mut self, amount: Bytes) -> bool {
        let fits = amount <= self.free();
        if fits {
            self.charged += amount;
        }
        fits
    }

    /// Charges the amount for a cache, as [`Self::charge`] does.
    ///
    /// ```
    /// use model_actors::{Bytes, Ledger};
    /// let mut ledger = Ledger::new(Bytes(100));
    /// assert!(ledger.charge_cache(Bytes(70)));
    /// assert_eq!((ledger.charged(), ledger.cached()), (Bytes(70), Bytes(70)));
    /// ledger.give_back_cache(Bytes(70));
    /// assert_eq!(ledger, Ledger::new(Bytes(100)));
    /// ```
    #[must_use]
    pub fn charge_cache(&mut self, amount: Bytes) -> bool {
        let fits = self.charge(amount);
        if fits {
            self.cached += amount;
        }
        fits
    }

    /// Gives the amount back.
    pub fn give_back(&mut self, amount: Bytes) {
        self.charged -= amount;
    }

    /// Gives an amount back that was charged for a cache.
    pub fn give_back_cache(&mut self, amount: Bytes) {
        self.give_back(amount);
        self.cached -= amount;
    }

    /// Notes that an amount charged for a cache is held by somebody, who is no cache.
    fn hold_cached(&mut self, amount: Bytes) {
        self.cached -= amount;
    }

    /// Notes that a cache has such an amount again.
    fn release_cached(&mut self, amount: Bytes) {
        self.cached += amount;
    }

    /// The limit.
    pub fn limit(&self) -> Bytes {
        self.limit
    }

    /// Bytes charged.
    pub fn charged(&self) -> Bytes {
        self.charged
    }

    /// The part of them that caches hold, which they give back when room is needed.
    pub fn cached(&self) -> Bytes {
        self.cached
    }

    /// Bytes that can still be charged.
    pub fn free(&self) -> Bytes {
        self.limit - self.charged
    }
}

/// Level of memory pressure of the whole machine, whoever uses the memory. Other devices are not measured.
///
/// ```
/// use model_actors::{Bytes, PressureLevel};
/// assert_eq!(PressureLevel::of(Bytes(96), Bytes(100)), PressureLevel::Critical);
/// assert!(PressureLevel::Elevated > PressureLevel::Normal);
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum PressureLevel {
    /// Up to 85 % in use: nothing happens.
    #[default]
    Normal,
    /// Above 85 %: no further worker is added to a model that has one.
    Elevated,
    /// Above 95 %: besides that, maintenance evicts an idle worker at each check, or all of a model that is
    /// idle.
    Critical,
}

impl PressureLevel {
    /// The level at which `used` of `limit` is.
    pub fn of(used: Bytes, limit: Bytes) -> Self {
        let share = if limit.0 == 0 { 1.0 } else { used.0 as f64 / limit.0 as f64 };
        match share {
            share if share > 0.95 => Self::Critical,
            share if share > 0.85 => Self::Elevated,
            _ => Self::Normal,
        }
    }
}

/// Called on any thread.
type OnRelease = Box<dyn Fn() + Send + Sync>;

/// Ledger shared by threads. It tells maintenance when bytes come back.
pub(crate) struct Budget {
    device: Device,
    ledger: Mutex<Ledger>,
    /// Number of loads that wait for room here in the load queue of maintenance. While there is one, nobody may overtake
    /// it.
    waiting: AtomicUsize,
    on_release: Mutex<Option<OnRelease>>,
    on_shortage: Mutex<Option<OnRelease>>,
    /// Relief was asked for, and has not begun.
    is_short: AtomicBool,
    /// Of the host's memory: what others leave of it.
    machine: Option<MemoryProbe>,
    /// The parts that are cached here.
    parts: cache::Parts,
}

impl fmt::Debug for Budget {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Budget").field("device", &self.device).field("ledger", &self.read()).finish()
    }
}

impl Budget {
    pub(crate) fn new(device: Device, limit: Bytes) -> Self {
        Self {
            device,
            ledger: Mutex::new(Ledger::new(limit)),
            machine: None,
            waiting: AtomicUsize::new(0),
            on_release: Mutex::new(None),
            on_shortage: Mutex::new(None),
            is_short: AtomicBool::new(false),
            parts: cache::Parts::default(),
        }
    }

    /// The budget of the host, which this process shares with the rest of the machine.
    pub(crate) fn of_the_host(limit: Bytes, machine: MemoryProbe) -> Self {
        Self { machine: Some(machine), ..Self::new(Device::host(), limit) }
    }

    pub(crate) fn device(&self) -> &Device {
        &self.device
    }

    pub(crate) fn read(&self) -> Ledger {
        *self.lock()
    }

    /// Reads the ledger as a load finds it: what others have taken of the machine is not free, whatever the limit
    /// allows.
    pub(crate) fn read_for_a_load(&self) -> Ledger {
        let mut ledger = self.read();
        // A machine that cannot be measured is no reason to refuse.
        let machine = self.machine.as_ref().and_then(|probe| probe.measure().ok());
        if let Some(machine) = machine {
            let taken = ledger.free() - machine.left_for(ledger.limit());
            // Cannot fail: no more than what is free.
            let _ = ledger.charge(taken);
        }
        ledger
    }

    /// Sets the callback for bytes that come back. It is called on any thread, without a lock held on the
    /// ledger.
    pub(crate) fn on_release(&self, callback: OnRelease) {
        *self.on_release.lock().unwrap_or_else(PoisonError::into_inner) = Some(callback);
    }

    /// Sets the callback for a shortage that caches cannot end. It is called once until [`Self::relief_begins`].
    pub(crate) fn on_shortage(&self, callback: OnRelease) {
        *self.on_shortage.lock().unwrap_or_else(PoisonError::into_inner) = Some(callback);
    }

    fn ask_for_relief(&self) {
        if self.is_short.swap(true, Ordering::AcqRel) {
            return;
        }
        if let Some(callback) = &*self.on_shortage.lock().unwrap_or_else(PoisonError::into_inner) {
            callback();
        }
    }

    pub(crate) fn relief_begins(&self) {
        self.is_short.store(false, Ordering::Release);
    }

    pub(crate) fn set_waiting(&self, waiting: usize) {
        self.waiting.store(waiting, Ordering::Relaxed);
    }

    fn is_waited_for(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
    }

    /// Leases bytes to somebody who has not waited: none while others do, or the machine has none. Otherwise what a load
    /// finds here. What caches hold in its way is reclaimed for its next try, if that can do.
    pub(crate) fn lease_at_once(self: &Arc<Self>, now: Time, bytes: Bytes) -> Result<Lease, Ledger> {
        let (ledger, overtakes) = (self.read_for_a_load(), self.is_waited_for());
        let lease = if overtakes || bytes > ledger.free() { None } else { self.lease(bytes) };
        if lease.is_none() && !overtakes && bytes <= ledger.free() + ledger.cached() {
            self.reclaim(now, bytes);
        }
        lease.ok_or(ledger)
    }

    pub(crate) fn lease(self: &Arc<Self>, bytes: Bytes) -> Option<Lease> {
        self.lock().charge(bytes).then(|| Lease { budget: self.clone(), bytes, is_cache: false })
    }

    fn give_back(&self, bytes: Bytes, is_cache: bool) {
        if bytes == Bytes::ZERO {
            return;
        }
        match is_cache {
            true => self.lock().give_back_cache(bytes),
            false => self.lock().give_back(bytes),
        }
        self.tell_of_release();
    }

    fn tell_of_release(&self) {
        if let Some(callback) = &*self.on_release.lock().unwrap_or_else(PoisonError::into_inner) {
            callback();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Ledger> {
        // The arithmetic under this lock cannot panic, so its poison means nothing.
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Bytes charged against a budget until this is dropped.
#[derive(Debug)]
pub(crate) struct Lease {
    budget: Arc<Budget>,
    bytes: Bytes,
    /// It is a cache's, which gives it back when room is needed.
    is_cache: bool,
}

impl Lease {
    pub(crate) fn bytes(&self) -> Bytes {
        self.bytes
    }

    /// The same bytes, as those of a cache.
    fn of_a_cache(mut self) -> Self {
        if !std::mem::replace(&mut self.is_cache, true) {
            self.budget.lock().release_cached(self.bytes);
        }
        self
    }

    /// Splits `bytes` off into a lease of its own.
    pub(crate) fn split(&mut self, bytes: Bytes) -> Lease {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        Lease { budget: self.budget.clone(), bytes, is_cache: self.is_cache }
    }

    /// Corrects an estimate. False, and unchanged, if the larger amount does not fit.
    #[must_use]
    pub(crate) fn resize(&mut self, bytes: Bytes) -> bool {
        if bytes > self.bytes && !self.budget.lock().charge(bytes - self.bytes) {
            return false;
        }
        self.budget.give_back(self.bytes - bytes, self.is_cache);
        self.bytes = bytes;
        true
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.budget.give_back(self.bytes, self.is_cache);
    }
}

/// The budgets of all memories, by device.
pub(crate) type Budgets = Arc<BTreeMap<Device, Arc<Budget>>>;

/// Memory that this process may use, and the part of it that is in use by anybody.
///
/// ```
/// use model_actors::ProcessMemory;
/// let memory = ProcessMemory::measure();
/// assert!(memory.used < memory.limit);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ProcessMemory {
    /// Bytes of the machine, or of its container's limit if that is lower.
    pub limit: Bytes,
    /// Bytes in use, without caches that are freed when memory is needed.
    pub used: Bytes,
}

impl ProcessMemory {
    /// Memory of this limit, of which `used` bytes are in use.
    pub const fn new(limit: Bytes, used: Bytes) -> Self {
        Self { limit, used }
    }

    /// Asks the operating system.
    pub fn measure() -> Self {
        let mut system = sysinfo::System::new();
        system.refresh_memory();
        let machine = Self { limit: Bytes(system.total_memory()), used: Bytes(system.used_memory()) };
        match system.cgroup_limits() {
            Some(limits) if limits.total_memory > 0 && limits.total_memory < machine.limit.0 => {
                Self { limit: Bytes(limits.total_memory), used: Bytes(limits.rss) }
            }
            _ => machine,
        }
    }

    /// Bytes that a load may take: none at critical pressure, else what is not in use. A budget beyond the
    /// machine's memory counts on memory that can be mapped or swapped, of which pressure alone tells.
    fn left_for(self, budget: Bytes) -> Bytes {
        if PressureLevel::of(self.used, self.limit) == PressureLevel::Critical {
            Bytes::ZERO
        } else if budget > self.limit {
            budget
        } else {
            self.limit - self.used
        }
    }

    /// Budget for models unless one is configured: 80 % of the limit.
    pub(crate) fn default_budget(self) -> Bytes {
        Bytes(self.limit.0 / 10 * 8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leases_give_back_when_dropped_split_or_resized() {
        let budget = Arc::new(Budget::new(Device::host(), Bytes(100)));
        let mut lease = budget.lease(Bytes(60)).unwrap();
        assert!(budget.lease(Bytes(41)).is_none());
        let part = lease.split(Bytes(50));
        assert!(!lease.resize(Bytes(51)), "51 + 50 is beyond the limit");
        assert!(lease.resize(Bytes(20)));
        assert_eq!(budget.read().charged(), Bytes(70));
        drop(part);
        drop(lease);
        assert_eq!(budget.read().charged(), Bytes::ZERO);
    }

    #[test]
    fn a_load_finds_no_more_than_what_the_machine_has() {
        let used = |used: u64| ProcessMemory::new(Bytes(1000), Bytes(used));
        let free = |limit: u64, memory: ProcessMemory| {
            let budget = Budget::of_the_host(Bytes(limit), MemoryProbe::new(move || memory));
            budget.read_for_a_load().free()
        };
        let table = [(800, 100, 800), (800, 500, 500), (800, 940, 60), (800, 951, 0), (2000, 500, 2000)];
        for (limit, in_use, expected) in table {
            assert_eq!(free(limit, used(in_use)), Bytes(expected), "{in_use} of 1,000 in use");
        }
    }

    #[test]
    fn the_release_callback_is_called_once_for_each_return() {
        let budget = Arc::new(Budget::new(Device::host(), Bytes(100)));
        let (sender, returns) = std::sync::mpsc::channel();
        budget.on_release(Box::new(move || sender.send(()).unwrap()));
        drop(budget.lease(Bytes(10)));
        drop(budget.lease(Bytes::ZERO));
        assert_eq!(returns.try_iter().count(), 1);
    }

    #[test]
    fn this_process_may_use_some_memory() {
        let memory = ProcessMemory::measure();
        assert!(memory.limit > Bytes::ZERO && memory.used < memory.limit);
        assert!(memory.default_budget() < memory.limit);
    }
}
