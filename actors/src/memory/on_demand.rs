//! Parts of a model that are loaded when a request first needs one, adapters say. They are in the store of cached prefixes, as
//! beginnings of sequences with nothing behind them: charged to the same budget as bytes of their own, and taken back by the
//! same choice, before a worker goes. One that a request holds is no cache's meanwhile: its bytes count as a worker's, and come
//! back to the store with the last request. What is loaded, and on which thread, is left to the model.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use super::cache::{HeldPart, PrefixCache};
use super::{Budget, Lease, Ledger};
use crate::id::Bytes;
use crate::progress::Clock;

/// Parts of one loaded model by their names, which its workers share. They are to go with the model's weights, and take
/// everything in them along. One that nobody holds may be gone at any moment.
///
/// ```
/// use std::time::Duration;
/// use model_actors::{Bytes, LoadContext, OnDemandParts};
///
/// let context = LoadContext::detached(&"english".into()).with_cache_memory(Bytes::mib(1));
/// let parts: OnDemandParts<String> = context.on_demand_parts();
/// assert!(parts.get("polite").is_none());
/// let room = parts.room("polite", Bytes(100)).unwrap();
/// let held = parts.insert(room, Duration::from_millis(3), "as it was loaded".to_owned());
/// assert_eq!(held.as_str(), "as it was loaded");
/// assert!(parts.get("polite").is_some());
/// ```
pub struct OnDemandParts<V: Send + Sync + 'static> {
    cache: PrefixCache<V>,
}

/// Room for a part that is about to be loaded, which is charged until this is dropped.
///
/// ```
/// use model_actors::PartRoom;
/// fn tell(room: &PartRoom) -> String {
///     format!("{} is given {}", room.name(), room.bytes())
/// }
/// ```
#[derive(Debug)]
pub struct PartRoom {
    name: String,
    lease: Lease,
}

impl PartRoom {
    /// Name of the part.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Bytes that are charged.
    pub fn bytes(&self) -> Bytes {
        self.lease.bytes()
    }
}

/// A part that stays as long as somebody holds this.
///
/// ```
/// use model_actors::PartInUse;
///
/// fn shout(part: &PartInUse<String>) -> String {
///     part.to_uppercase()
/// }
/// ```
pub struct PartInUse<V: Send + Sync + 'static>(HeldPart<V>);

impl<V: Send + Sync + 'static> Deref for PartInUse<V> {
    type Target = V;
    fn deref(&self) -> &V {
        &self.0
    }
}

impl<V: Send + Sync + fmt::Debug + 'static> fmt::Debug for PartInUse<V> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(formatter)
    }
}

impl<V: Send + Sync + 'static> OnDemandParts<V> {
    pub(crate) fn new(budget: Arc<Budget>, clock: Clock) -> Self {
        Self { cache: PrefixCache::new(budget, clock, Bytes(u64::MAX)) }
    }

    /// Bytes of all parts, those that are held included.
    pub fn bytes(&self) -> Bytes {
        self.cache.bytes()
    }

    /// Gets a part that is there.
    pub fn get(&self, name: &str) -> Option<Arc<PartInUse<V>>> {
        self.cache.hold(&numbers(name)).map(|held| Arc::new(PartInUse(held)))
    }

    /// Takes room for a part of so many bytes. Where there is none, caches are told to give back what is missing.
    ///
    /// # Errors
    /// The memory as it was found: try again in a moment, once what caches held is back, for as long as the part would fit its
    /// limit. While a load waits for memory there is none for anybody else.
    pub fn room(&self, name: &str, bytes: Bytes) -> Result<PartRoom, Ledger> {
        let bytes = PrefixCache::<V>::bytes_of_part(bytes, name.len());
        Ok(PartRoom { name: name.to_owned(), lease: self.cache.lease_at_once(bytes)? })
    }

    /// Asks for an idle worker of any model to go, where all that caches hold is not enough.
    pub fn ask_for_relief(&self) {
        self.cache.ask_for_relief();
    }

    /// Keeps a part that took the time `took` to load. Gives the one that is there, if somebody was faster.
    pub fn insert(&self, room: PartRoom, took: Duration, value: V) -> Arc<PartInUse<V>> {
        let PartRoom { name, lease } = room;
        Arc::new(PartInUse(self.cache.insert_held(&numbers(&name), lease, took, value)))
    }
}

impl<V: Send + Sync + 'static> fmt::Debug for OnDemandParts<V> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("OnDemandParts").field("bytes", &self.bytes()).finish_non_exhaustive()
    }
}

/// A name as a part of a sequence.
fn numbers(name: &str) -> Vec<u32> {
    name.bytes().map(u32::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{Device, Time};

    const PART: Bytes = Bytes(10_000);
    const TOOK: Duration = Duration::from_millis(1);

    fn parts(budget: &Arc<Budget>) -> OnDemandParts<&'static str> {
        // What is dropped here is gone at once.
        crate::reaper::this_is_a_workers_thread(());
        OnDemandParts::new(budget.clone(), Clock::start())
    }

    fn charged_for(name: &str) -> Bytes {
        PrefixCache::<&str>::bytes_of_part(PART, name.len())
    }

    fn load(parts: &OnDemandParts<&'static str>, name: &'static str) -> Arc<PartInUse<&'static str>> {
        parts.insert(parts.room(name, PART).unwrap(), TOOK, name)
    }

    fn ledger(budget: &Budget) -> (Bytes, Bytes) {
        let ledger = budget.read();
        (ledger.charged(), ledger.cached())
    }

    #[test]
    fn a_part_is_a_caches_while_nobody_holds_it_and_is_charged_all_the_time() {
        let budget = Arc::new(Budget::new(Device::host(), Bytes(100_000)));
        let parts = parts(&budget);
        let each = charged_for("a");
        let room = parts.room("a", PART).unwrap();
        assert_eq!((room.name(), room.bytes(), ledger(&budget)), ("a", each, (each, Bytes::ZERO)));
        let held = parts.insert(room, TOOK, "a");
        assert_eq!((**held, ledger(&budget)), ("a", (each, Bytes::ZERO)));
        let again = parts.get("a").unwrap();
        assert!(std::ptr::eq::<&str>(&**held, &**again), "the value is the same one");
        drop(held);
        assert_eq!(ledger(&budget), (each, Bytes::ZERO), "somebody holds it");
        drop(again);
        assert_eq!(ledger(&budget), (each, each));
        drop(parts.get("a").unwrap());
        assert_eq!((parts.bytes(), ledger(&budget)), (each, (each, each)));
        drop(parts);
        assert_eq!(budget.read(), Ledger::new(Bytes(100_000)));
    }

    #[test]
    fn what_is_held_is_not_taken_back_and_the_oldest_of_the_others_goes_first() {
        let each = charged_for("a");
        let budget = Arc::new(Budget::new(Device::host(), Bytes(3 * each.0)));
        let parts = parts(&budget);
        let held = load(&parts, "a");
        for name in ["b", "c"] {
            drop(load(&parts, name));
            std::thread::sleep(TOOK);
        }
        let found = parts.room("d", PART).unwrap_err();
        assert_eq!((found.free(), found.limit()), (Bytes::ZERO, Bytes(3 * each.0)));
        assert!(parts.get("b").is_none() && parts.get("c").is_some(), "no more went than was needed");
        drop(load(&parts, "d"));
        assert!(budget.reclaim(Time::NEVER, Bytes(u64::MAX)));
        assert!(!budget.reclaim(Time::NEVER, Bytes(u64::MAX)), "nothing more is a cache's");
        assert_eq!((ledger(&budget), **held), ((each, Bytes::ZERO), "a"));
        drop(held);
        assert!(budget.reclaim(Time::NEVER, Bytes(u64::MAX)));
        assert_eq!(ledger(&budget), (Bytes::ZERO, Bytes::ZERO));
    }

    #[test]
    fn a_part_that_is_held_outlives_its_model_and_gives_all_back() {
        let budget = Arc::new(Budget::new(Device::host(), Bytes(100_000)));
        let parts = parts(&budget);
        let held = load(&parts, "a");
        drop(load(&parts, "b"));
        drop(parts);
        assert_eq!(ledger(&budget), (charged_for("a"), Bytes::ZERO));
        drop(held);
        assert_eq!(budget.read(), Ledger::new(Bytes(100_000)));
    }

    #[test]
    fn of_two_who_load_the_same_part_one_keeps_it() {
        let budget = Arc::new(Budget::new(Device::host(), Bytes(100_000)));
        let parts = parts(&budget);
        let (first, second) = (parts.room("a", PART).unwrap(), parts.room("a", PART).unwrap());
        let held = [parts.insert(first, TOOK, "first"), parts.insert(second, TOOK, "second")];
        assert_eq!(held.each_ref().map(|part| ***part), ["first"; 2]);
        assert_eq!(ledger(&budget), (charged_for("a"), Bytes::ZERO));
        drop(held);
        assert_eq!(ledger(&budget), (charged_for("a"), charged_for("a")));
    }

    #[test]
    fn those_who_wait_for_memory_are_told_of_a_part_that_nobody_holds_any_more() {
        let budget = Arc::new(Budget::new(Device::host(), Bytes(100_000)));
        let parts = parts(&budget);
        let (sender, told) = std::sync::mpsc::channel();
        budget.on_release(Box::new(move || sender.send(()).unwrap()));
        let held = load(&parts, "a");
        assert!(told.try_recv().is_err());
        drop(held);
        assert_eq!(told.try_iter().count(), 1);
        budget.set_waiting(1);
        assert!(parts.room("b", PART).is_err(), "a load waits");
    }
}
