//! Caches of prefixes: what a model has computed of the beginnings of sequences, kept for those that begin alike. Their
//! bytes are charged to the budget that its workers are charged to, as long as nobody needs them more: a load takes them
//! back before it evicts a worker. Which parts go is decided by `prefixes`; when, by those who need room.

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::ops::Deref;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::prefixes::{Owner, PartId, Prefixes};
use super::{Budget, Lease, Ledger};
use crate::id::{Bytes, Time};
use crate::progress::Clock;
use crate::reaper::Reaped;

/// Bytes that are charged for a part beside those of its value: its place in the index. So their number is bounded too.
const PART_OVERHEAD: u64 = 512;

/// The parts that are cached in one memory, of all models.
#[derive(Default)]
pub(super) struct Parts(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    index: Prefixes,
    values: BTreeMap<PartId, Arc<dyn Any + Send + Sync>>,
    owners: u64,
}

/// Values that were taken out. What nobody else holds goes when this is dropped: without the lock.
type Taken = Vec<Arc<dyn Any + Send + Sync>>;

impl Parts {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Each change is made by one call that cannot panic half-way.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Takes out parts of one owner or of all, the least worth first, until they have so many bytes or none is left.
    fn take(&mut self, now: Time, bytes: Bytes, owner: Option<Owner>, kept: Option<PartId>) -> Taken {
        let gone = self.index.take(now, bytes, owner, kept);
        self.values_of(&gone)
    }

    fn values_of(&mut self, gone: &[PartId]) -> Taken {
        gone.iter().filter_map(|id| self.values.remove(id)).collect()
    }
}

impl Budget {
    /// Has caches give back what is missing for `room` to be free, or all that they hold. It is back once nobody holds it.
    /// False if nothing was missing, or they held nothing.
    pub(crate) fn reclaim(&self, now: Time, room: Bytes) -> bool {
        // What has been reclaimed and is not back is in the ledger, and no longer in the index.
        let ledger = self.read_for_a_load();
        let mut parts = self.parts.lock();
        let on_their_way = ledger.cached() - parts.index.bytes();
        let taken = parts.take(now, room - ledger.free() - on_their_way, None, None);
        drop(parts);
        !taken.is_empty()
    }

    /// Leases bytes for a cache: none while a load waits, or the machine has none.
    fn lease_for_cache(self: &Arc<Self>, bytes: Bytes) -> Option<Lease> {
        if self.is_waited_for() || bytes > self.read_for_a_load().free() {
            return None;
        }
        self.lock().charge_cache(bytes).then(|| Lease { budget: self.clone(), bytes, is_cache: true })
    }
}

/// Cache of what one loaded model has computed of the beginnings of sequences, in parts. Its workers share it; it is to go
/// with the model's weights, and takes everything in it along. What is in it may be gone at any moment.
///
/// ```
/// use std::time::Duration;
/// use model_actors::{Bytes, LoadContext, PrefixCache};
///
/// let context = LoadContext::detached(&"english".into()).with_cache_memory(Bytes::mib(1));
/// let cache: PrefixCache<String> = context.prefix_cache(Bytes::mib(1));
/// let seconds = Duration::from_secs(2);
/// let first = cache.insert(None, &[1, 2], Bytes(3), seconds, || "one".to_owned()).unwrap();
/// cache.insert(Some(first), &[3, 4], Bytes(3), seconds, || "two".to_owned()).unwrap();
///
/// let (found, value) = cache.get(None, &[1, 2]).unwrap();
/// assert_eq!((found, value.as_str()), (first, "one"));
/// assert_eq!(cache.get(Some(first), &[3, 4]).unwrap().1.as_str(), "two");
/// assert!(cache.get(None, &[3, 4]).is_none(), "nothing begins so");
/// ```
pub struct PrefixCache<V> {
    budget: Arc<Budget>,
    clock: Clock,
    owner: Owner,
    limit: Bytes,
    values: PhantomData<fn() -> V>,
}

/// Value of a part of a prefix, and the bytes that are charged for it. They are back once nobody holds it.
///
/// ```
/// use model_actors::Cached;
///
/// fn shout(value: &Cached<String>) -> String {
///     value.to_uppercase()
/// }
/// ```
pub struct Cached<V: Send + 'static>(Reaped<Held<V>>);

/// Field order matters: the value goes before its charge.
struct Held<V> {
    value: V,
    lease: Lease,
    /// Those for whom it is no cache's at the moment. Changed under the lock of the parts.
    holders: AtomicUsize,
}

/// A part that is not taken back as long as this is there. Its bytes are none of a cache's meanwhile.
pub(super) struct HeldPart<V: Send + Sync + 'static> {
    budget: Arc<Budget>,
    clock: Clock,
    id: PartId,
    value: Arc<Cached<V>>,
}

impl<V: Send + Sync + 'static> Deref for HeldPart<V> {
    type Target = V;
    fn deref(&self) -> &V {
        &self.value
    }
}

impl<V: Send + Sync + 'static> Drop for HeldPart<V> {
    fn drop(&mut self) {
        let Held { lease, holders, .. } = &*self.value.0;
        let mut parts = self.budget.parts.lock();
        if holders.fetch_sub(1, Ordering::Relaxed) > 1 {
            return;
        }
        parts.index.release(self.clock.now(), self.id);
        self.budget.lock().release_cached(lease.bytes());
        drop(parts);
        // A load that waits may have it taken back now.
        self.budget.tell_of_release();
    }
}

impl<V: Send + 'static> Deref for Cached<V> {
    type Target = V;
    fn deref(&self) -> &V {
        &self.0.value
    }
}

impl<V: Send + fmt::Debug> fmt::Debug for Cached<V> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(formatter)
    }
}

impl<V> PrefixCache<V> {
    /// An empty cache, whose parts take no more than `limit` together.
    pub(crate) fn new(budget: Arc<Budget>, clock: Clock, limit: Bytes) -> Self {
        let owner = {
            let mut parts = budget.parts.lock();
            parts.owners += 1;
            Owner(parts.owners)
        };
        Self { budget, clock, owner, limit, values: PhantomData }
    }

    /// Bytes that are charged for a part whose value has `bytes`, found by so many numbers.
    pub const fn bytes_of_part(bytes: Bytes, numbers: usize) -> Bytes {
        Bytes(bytes.0.saturating_add(PART_OVERHEAD).saturating_add((numbers as u64).saturating_mul(8)))
    }

    /// As [`Budget::lease_at_once`].
    pub(super) fn lease_at_once(&self, bytes: Bytes) -> Result<Lease, Ledger> {
        self.budget.lease_at_once(self.clock.now(), bytes)
    }

    /// As [`Budget::ask_for_relief`].
    pub(super) fn ask_for_relief(&self) {
        self.budget.ask_for_relief();
    }

    /// Bytes of all that is in it.
    pub fn bytes(&self) -> Bytes {
        self.budget.parts.lock().index.bytes_of(self.owner)
    }
}

impl<V: Send + Sync + 'static> PrefixCache<V> {
    /// Gets the part with these numbers behind the part `before`, or at the beginning of sequences.
    pub fn get(&self, before: Option<PartId>, numbers: &[u32]) -> Option<(PartId, Arc<Cached<V>>)> {
        let mut parts = self.budget.parts.lock();
        let id = parts.index.find(self.clock.now(), self.owner, before, numbers)?;
        let value = Arc::clone(parts.values.get(&id)?);
        Some((id, value.downcast().ok()?))
    }

    /// Inserts a part whose value has `bytes` and took the time `saves` to compute; `value` is called once there is room for it. Parts
    /// of this cache that are worth less make room. Gives the part, or the one that is there already.
    ///
    /// `None` if it is not kept: there is no room, a load waits for memory, or the part before it has gone. Those behind it
    /// cannot be kept either then.
    pub fn insert(
        &self,
        before: Option<PartId>,
        numbers: &[u32],
        bytes: Bytes,
        saves: Duration,
        value: impl FnOnce() -> V,
    ) -> Option<PartId> {
        if let Some((there, _)) = self.get(before, numbers) {
            return Some(there);
        }
        let bytes = Self::bytes_of_part(bytes, numbers.len());
        let held = Held { lease: self.room(before, bytes)?, value: value(), holders: 0.into() };
        let value = Arc::new(Cached(Reaped::of_a_worker(held)));
        let now = self.clock.now();
        let mut parts = self.budget.parts.lock();
        if let Some(there) = parts.index.find(now, self.owner, before, numbers) {
            // Another worker has been faster. The value goes after the lock.
            return Some(there);
        }
        let id = parts.index.insert(now, (self.owner, before), numbers.into(), bytes, saves)?;
        parts.values.insert(id, value);
        Some(id)
    }

    /// Gets the part with these numbers at the beginning of sequences, and holds it.
    pub(super) fn hold(&self, numbers: &[u32]) -> Option<HeldPart<V>> {
        let mut parts = self.budget.parts.lock();
        let id = parts.index.find(self.clock.now(), self.owner, None, numbers)?;
        let value = Arc::clone(parts.values.get(&id)?).downcast().ok()?;
        Some(self.held(&mut parts, id, value))
    }

    /// Inserts a part at the beginning of sequences, for which room was taken, and holds it; the one that is there, if somebody
    /// was faster.
    pub(super) fn insert_held(
        &self,
        numbers: &[u32],
        lease: Lease,
        saves: Duration,
        value: V,
    ) -> HeldPart<V> {
        let bytes = lease.bytes();
        let lease = lease.of_a_cache();
        let own = Arc::new(Cached(Reaped::of_a_worker(Held { value, lease, holders: 0.into() })));
        // If it is not needed, it goes after the lock.
        let _own = Arc::clone(&own);
        let now = self.clock.now();
        let mut parts = self.budget.parts.lock();
        let there = parts.index.find(now, self.owner, None, numbers);
        let there = there.and_then(|id| Some((id, Arc::clone(parts.values.get(&id)?).downcast().ok()?)));
        let (id, value) = there.unwrap_or_else(|| {
            let id = parts.index.put(now, (self.owner, None), numbers.into(), bytes, saves);
            parts.values.insert(id, own.clone());
            (id, own)
        });
        self.held(&mut parts, id, value)
    }

    fn held(&self, parts: &mut Inner, id: PartId, value: Arc<Cached<V>>) -> HeldPart<V> {
        if value.0.holders.fetch_add(1, Ordering::Relaxed) == 0 {
            parts.index.hold(id);
            self.budget.lock().hold_cached(value.0.lease.bytes());
        }
        HeldPart { budget: self.budget.clone(), clock: self.clock, id, value }
    }

    /// Leases room for a part behind another, which stays; others of this cache go where it is needed.
    fn room(&self, before: Option<PartId>, bytes: Bytes) -> Option<Lease> {
        if bytes > self.limit || self.budget.is_waited_for() {
            return None;
        }
        let over = (self.bytes() + bytes) - self.limit;
        if over == Bytes::ZERO
            && let Some(lease) = self.budget.lease_for_cache(bytes)
        {
            return Some(lease);
        }
        let missing = if over == Bytes::ZERO { bytes } else { over };
        let taken = self.budget.parts.lock().take(self.clock.now(), missing, Some(self.owner), before);
        drop(taken);
        match (self.bytes() + bytes) - self.limit {
            Bytes::ZERO => self.budget.lease_for_cache(bytes),
            _ => None,
        }
    }
}

impl<V> Drop for PrefixCache<V> {
    fn drop(&mut self) {
        let mut parts = self.budget.parts.lock();
        let gone = parts.index.remove_all(self.owner);
        let taken = parts.values_of(&gone);
        drop(parts);
        drop(taken);
    }
}

impl<V> fmt::Debug for PrefixCache<V> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = formatter.debug_struct("PrefixCache");
        shown.field("bytes", &self.bytes()).field("limit", &self.limit).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::Device;

    const PART: u64 = 1000;
    const CHARGED: u64 = PART + PART_OVERHEAD + 8;

    fn budget(parts: u64) -> Arc<Budget> {
        Arc::new(Budget::new(Device::host(), Bytes(parts * CHARGED)))
    }

    fn cache(budget: &Arc<Budget>, parts: u64) -> PrefixCache<Vec<u8>> {
        PrefixCache::new(budget.clone(), Clock::start(), Bytes(parts * CHARGED))
    }

    fn add(cache: &PrefixCache<Vec<u8>>, before: Option<PartId>, number: u32) -> Option<PartId> {
        cache.insert(before, &[number], Bytes(PART), Duration::from_millis(1), || vec![0; PART as usize])
    }

    #[test]
    fn a_cache_keeps_to_its_limit_and_to_the_budget_and_gives_all_back() {
        // What it drops is gone at once.
        crate::reaper::this_is_a_workers_thread(());
        let budget = budget(4);
        let (small, large) = (cache(&budget, 2), cache(&budget, 100));
        for number in 0..10 {
            assert!(add(&small, None, number).is_some());
            assert!(add(&large, None, number).is_some());
        }
        assert_eq!(small.bytes(), Bytes(2 * CHARGED));
        assert_eq!(large.bytes(), Bytes(2 * CHARGED), "it takes no room from another's parts");
        assert_eq!(
            (budget.read().charged(), budget.read().cached()),
            (Bytes(4 * CHARGED), Bytes(4 * CHARGED))
        );
        drop(large);
        assert_eq!(budget.read().charged(), Bytes(2 * CHARGED));
        drop(small);
        assert_eq!(budget.read(), super::super::Ledger::new(Bytes(4 * CHARGED)));
    }

    #[test]
    fn what_is_longer_than_the_cache_keeps_its_beginning() {
        let budget = budget(10);
        let cache = cache(&budget, 2);
        let first = add(&cache, None, 1);
        let second = add(&cache, first, 2);
        assert!(second.is_some());
        assert_eq!(add(&cache, second, 3), None);
        assert!(cache.get(first, &[2]).is_some());
    }

    #[test]
    fn what_is_reclaimed_is_back_once_nobody_holds_it() {
        let budget = budget(4);
        let cache = cache(&budget, 4);
        let part = add(&cache, None, 1);
        add(&cache, part, 2);
        let (_, held) = cache.get(part, &[2]).unwrap();
        let room = budget.read().free() + Bytes(1);
        budget.reclaim(Time::NEVER, room);
        budget.reclaim(Time::NEVER, room);
        assert!(cache.get(None, &[1]).is_some(), "one is on its way back already");
        assert!(cache.get(part, &[2]).is_none(), "the last of the path goes first");
        assert_eq!(budget.read().cached(), Bytes(2 * CHARGED));
        let (sender, returns) = std::sync::mpsc::channel();
        budget.on_release(Box::new(move || {
            let _ = sender.send(());
        }));
        // What no worker's thread drops goes on the reaper's.
        drop(held);
        returns.recv_timeout(Duration::from_secs(30)).unwrap();
        assert_eq!(budget.read().cached(), Bytes(CHARGED));
    }

    #[test]
    fn nothing_is_kept_while_a_load_waits() {
        let budget = budget(4);
        let cache = cache(&budget, 4);
        budget.set_waiting(1);
        assert_eq!(add(&cache, None, 1), None);
        budget.set_waiting(0);
        assert!(add(&cache, None, 1).is_some());
    }

    #[test]
    fn another_models_parts_are_none_of_ours() {
        let budget = budget(4);
        let (ours, theirs) = (cache(&budget, 4), cache(&budget, 4));
        add(&theirs, None, 1);
        assert!(ours.get(None, &[1]).is_none());
    }
}
