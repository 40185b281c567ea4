//! The slots of one lane, as a semaphore that serves its waiters by tenant and rank. A slot that comes back goes to the
//! tenant that has the fewest for its weight, of several to the one that has got none for longest; within it the more
//! urgent are first, and of the same urgency the one that came first. Nobody who comes later takes it before. A waiter
//! that goes away costs none. A tenant has a bound of its own, and the number of tenants has one.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use crate::config::PoolConfig;
use crate::id::Tenant;

/// The reason why a caller gets no slot now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The lane takes nobody any more.
    Closed,
    /// All slots are taken.
    Full,
    /// The tenant has as many as it may have.
    PartFull,
    /// As many tenants as may be have slots or wait, and this one does neither.
    TooManyTenants,
}

/// The place of a waiter within its tenant: its rank, and the order of arrival among equals.
type Place = (i128, u64);

/// The order in which tenants are given slots: those that they have, by weight, and the order among equals.
type Turn = (u64, u64);

/// Weights divide the number of slots, at most 2^20, in units of this.
const UNIT: u64 = 1 << 20;

pub(super) struct Slots {
    state: Mutex<State>,
    config: Arc<PoolConfig>,
    /// Maximum number of slots of one tenant.
    part: usize,
}

struct State {
    free: usize,
    closed: bool,
    /// The tenants that have slots or wait for one; the requests without a tenant are those of one more.
    tenants: BTreeMap<Option<Tenant>, Share>,
    /// The tenants that wait and may have one more slot, which happens only while none is free.
    turns: BTreeMap<Turn, Option<Tenant>>,
    next: u64,
}

/// One tenant's slots and waiters.
struct Share {
    held: usize,
    weight: u32,
    waiting: BTreeMap<Place, oneshot::Sender<()>>,
    turn: Option<Turn>,
}

impl State {
    /// Looks whether the tenant could have a slot now.
    fn vacancy(&self, slots: &Slots, tenant: &Option<Tenant>) -> Result<(), Refusal> {
        let share = self.tenants.get(tenant);
        let named = self.tenants.len() - usize::from(self.tenants.contains_key(&None));
        if self.closed {
            Err(Refusal::Closed)
        } else if share.is_none() && tenant.is_some() && named >= slots.config.tenants.most {
            Err(Refusal::TooManyTenants)
        } else if slots.config.tenants.queue.is_some() && share.is_some_and(|share| share.held >= slots.part)
        {
            Err(Refusal::PartFull)
        } else if self.free == 0 {
            Err(Refusal::Full)
        } else {
            Ok(())
        }
    }

    fn share(&mut self, slots: &Slots, tenant: &Option<Tenant>) -> &mut Share {
        self.tenants.entry(tenant.clone()).or_insert_with(|| Share {
            held: 0,
            weight: slots.config.tenants.weight_of(tenant.as_ref()),
            waiting: BTreeMap::new(),
            turn: None,
        })
    }

    fn wait(&mut self, slots: &Slots, tenant: &Option<Tenant>, rank: i128) -> (Place, oneshot::Receiver<()>) {
        let (sender, granted) = oneshot::channel();
        self.next += 1;
        let place = (rank, self.next);
        self.share(slots, tenant).waiting.insert(place, sender);
        self.line_up(slots, tenant);
        (place, granted)
    }

    /// Puts a tenant where it belongs among those that are given slots, or forgets one that needs none. One that has its
    /// turn keeps it for as long as it has as many slots.
    fn line_up(&mut self, slots: &Slots, tenant: &Option<Tenant>) {
        let Some(share) = self.tenants.get_mut(tenant) else { return };
        let waits = !share.waiting.is_empty() && share.held < slots.part;
        let load = share.held as u64 * UNIT / u64::from(share.weight.max(1));
        if waits && share.turn.is_some_and(|turn| turn.0 == load) {
            return;
        }
        if let Some(turn) = share.turn.take() {
            self.turns.remove(&turn);
        }
        if waits {
            self.next += 1;
            let turn = (load, self.next);
            share.turn = Some(turn);
            self.turns.insert(turn, tenant.clone());
        } else if share.held == 0 && share.waiting.is_empty() {
            self.tenants.remove(tenant);
        }
    }

    fn take(&mut self, slots: &Slots, tenant: &Option<Tenant>) {
        self.free -= 1;
        self.share(slots, tenant).held += 1;
    }

    fn put_back(&mut self, slots: &Slots, tenant: &Option<Tenant>) {
        self.free += 1;
        if let Some(share) = self.tenants.get_mut(tenant) {
            share.held -= 1;
        }
        self.line_up(slots, tenant);
    }

    /// Takes a slot for the first waiter of the tenant whose turn it is.
    fn grant(&mut self, slots: &Slots) -> Option<(Option<Tenant>, oneshot::Sender<()>)> {
        if self.free == 0 {
            return None;
        }
        let tenant = self.turns.first_key_value()?.1.clone();
        let (_, first) = self.tenants.get_mut(&tenant)?.waiting.pop_first()?;
        self.take(slots, &tenant);
        self.line_up(slots, &tenant);
        Some((tenant, first))
    }
}

impl Slots {
    /// So many slots, of which one tenant has `part` at most; the weights and the number of tenants are the settings'.
    pub(super) fn new(capacity: usize, part: usize, config: Arc<PoolConfig>) -> Self {
        let (tenants, turns) = (BTreeMap::new(), BTreeMap::new());
        let state = State { free: capacity, closed: false, tenants, turns, next: 0 };
        Self { state: Mutex::new(state), config, part }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing under this lock can panic half way, so its poison means nothing.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Number of free slots.
    pub(super) fn free(&self) -> usize {
        self.lock().free
    }

    /// Maximum number of slots of one tenant.
    pub(super) fn part(&self) -> usize {
        self.part
    }

    /// Maximum number of tenants that have slots or wait.
    pub(super) fn most_tenants(&self) -> usize {
        self.config.tenants.most
    }

    /// Looks whether the tenant could take a slot now. Takes none.
    pub(super) fn vacancy(&self, tenant: &Option<Tenant>) -> Result<(), Refusal> {
        self.lock().vacancy(self, tenant)
    }

    /// Takes a slot if there is one for the tenant, and returns how many are left.
    pub(super) fn try_take(&self, tenant: &Option<Tenant>) -> Result<usize, Refusal> {
        let mut state = self.lock();
        state.vacancy(self, tenant)?;
        state.take(self, tenant);
        Ok(state.free)
    }

    /// Waits for a slot and takes it; of one tenant the smallest rank is served first.
    ///
    /// # Errors
    /// [`Refusal::Closed`], and [`Refusal::TooManyTenants`] at once.
    pub(super) async fn take(&self, tenant: &Option<Tenant>, rank: i128) -> Result<(), Refusal> {
        let (place, granted) = {
            let mut state = self.lock();
            match state.vacancy(self, tenant) {
                Ok(()) => {
                    state.take(self, tenant);
                    return Ok(());
                }
                Err(Refusal::Full | Refusal::PartFull) => state.wait(self, tenant, rank),
                Err(refusal) => return Err(refusal),
            }
        };
        let mut waiter = Waiter { slots: self, tenant, place, granted };
        (&mut waiter.granted).await.map_err(|_| Refusal::Closed)
    }

    /// Gives a tenant's slot back, to the first waiter that is still there.
    pub(super) fn give_back(&self, tenant: &Option<Tenant>) {
        let mut granted = {
            let mut state = self.lock();
            state.put_back(self, tenant);
            state.grant(self)
        };
        // They are woken after the lock is free. One that has gone leaves its slot to the next.
        while let Some((tenant, waiter)) = granted {
            if waiter.send(()).is_ok() {
                return;
            }
            let mut state = self.lock();
            state.put_back(self, &tenant);
            granted = state.grant(self);
        }
    }

    /// Refuses everybody who waits or comes later.
    pub(super) fn close(&self) {
        let refused: Vec<_> = {
            let mut state = self.lock();
            state.closed = true;
            state.turns.clear();
            let shares = state.tenants.values_mut();
            let refused =
                shares.map(|share| (share.turn.take(), std::mem::take(&mut share.waiting))).collect();
            state.tenants.retain(|_, share| share.held > 0);
            refused
        };
        // They are woken after the lock is free.
        drop(refused);
    }
}

/// Somebody who waits for a slot. Gives up its place, or a slot that came too late, when it is dropped.
struct Waiter<'a> {
    slots: &'a Slots,
    tenant: &'a Option<Tenant>,
    place: Place,
    granted: oneshot::Receiver<()>,
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        {
            let mut state = self.slots.lock();
            if let Some(share) = state.tenants.get_mut(self.tenant)
                && share.waiting.remove(&self.place).is_some()
            {
                state.line_up(self.slots, self.tenant);
            }
        }
        // First the channel is closed, then looked into, so that no slot is granted in between. One that was
        // received is there no more.
        self.granted.close();
        if self.granted.try_recv().is_ok() {
            self.slots.give_back(self.tenant);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::{Pin, pin};
    use std::task::{Context, Poll, Waker};

    use super::*;
    use crate::config::{QueueCapacity, TenantConfig};

    const NOBODY: &Option<Tenant> = &None;

    fn of(capacity: usize) -> Slots {
        Slots::new(capacity, capacity, Arc::default())
    }

    fn poll<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
        future.poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn the_smallest_rank_is_served_first_and_of_equals_the_first() {
        let slots = of(1);
        assert_eq!(slots.try_take(NOBODY).unwrap(), 0);
        let (mut late, mut early, mut second) =
            (pin!(slots.take(NOBODY, 5)), pin!(slots.take(NOBODY, -5)), pin!(slots.take(NOBODY, -5)));
        assert!(poll(late.as_mut()).is_pending());
        assert!(poll(early.as_mut()).is_pending() && poll(second.as_mut()).is_pending());
        slots.give_back(NOBODY);
        assert_eq!(slots.free(), 0, "it went to a waiter, and nobody can take it in between");
        assert!(poll(late.as_mut()).is_pending() && poll(second.as_mut()).is_pending());
        assert!(poll(early.as_mut()).is_ready());
        slots.give_back(NOBODY);
        assert!(poll(second.as_mut()).is_ready() && poll(late.as_mut()).is_pending());
        slots.close();
        assert!(matches!(poll(late.as_mut()), Poll::Ready(Err(Refusal::Closed))));
    }

    #[test]
    fn a_waiter_that_goes_away_loses_no_slot_before_or_after_it_got_one() {
        let slots = of(1);
        slots.try_take(NOBODY).unwrap();
        for granted in [false, true] {
            let mut gone = Box::pin(slots.take(NOBODY, 0));
            assert!(poll(gone.as_mut()).is_pending());
            if granted {
                slots.give_back(NOBODY);
                drop(gone);
            } else {
                drop(gone);
                slots.give_back(NOBODY);
            }
            assert_eq!(slots.try_take(NOBODY).unwrap(), 0);
        }
    }

    fn tenant(name: &str) -> Option<Tenant> {
        Some(Tenant::from(name))
    }

    /// Lets each of these wait, gives so many slots of the tenant back, and says whose waiters got them, in order.
    fn served(
        slots: &Slots,
        waiters: &[&Option<Tenant>],
        held_by: &Option<Tenant>,
        times: usize,
    ) -> Vec<usize> {
        let mut waiting: Vec<_> = waiters.iter().map(|tenant| Box::pin(slots.take(tenant, 0))).collect();
        let mut open: Vec<usize> = (0..waiting.len()).collect();
        assert!(waiting.iter_mut().all(|waiter| poll(waiter.as_mut()).is_pending()));
        let mut served = Vec::new();
        for _ in 0..times {
            slots.give_back(held_by);
            open.retain(|index| {
                let is_ready = poll(waiting[*index].as_mut()).is_ready();
                served.extend(is_ready.then_some(*index));
                !is_ready
            });
        }
        served
    }

    #[test]
    fn a_slot_goes_to_the_tenant_that_has_the_fewest_for_its_weight() {
        let (bulk, chat, heavy) = (tenant("bulk"), tenant("chat"), tenant("heavy"));
        let tenants = TenantConfig::default().with_tenant_weight(Tenant::from("heavy"), 2);
        let config = Arc::new(PoolConfig::default().with_tenants(tenants));
        let slots = Slots::new(8, 8, config);
        (0..8).for_each(|_| _ = slots.try_take(&bulk).unwrap());
        let waiters = [&bulk, &bulk, &chat, &chat, &heavy, &heavy, &heavy, &heavy];
        // None yet: chat, then heavy. One each: that is less for the heavy one. 1 and 2, the same: who has got none for
        // longest. Bulk has three left when the others have 2 and 3.
        assert_eq!(served(&slots, &waiters, &bulk, 6), [2, 4, 5, 3, 6, 7]);
    }

    #[test]
    fn tenants_without_slots_are_served_in_turn_whatever_their_names() {
        let slots = of(1);
        let (early, late) = (tenant("a"), tenant("z"));
        slots.try_take(&early).unwrap();
        let mut waiting = [&early, &early, &late, &late].map(|tenant| Box::pin(slots.take(tenant, 0)));
        assert!(waiting.iter_mut().all(|waiter| poll(waiter.as_mut()).is_pending()));
        let mut order = Vec::new();
        let mut holder = &early;
        while order.len() < 4 {
            slots.give_back(holder);
            let got =
                (0..4).find(|index| !order.contains(index) && poll(waiting[*index].as_mut()).is_ready());
            let got = got.unwrap();
            holder = if got < 2 { &early } else { &late };
            order.push(got);
        }
        assert_eq!(order, [2, 0, 3, 1]);
    }

    #[test]
    fn a_tenant_has_its_part_and_no_more_while_others_have_room() {
        let tenants = TenantConfig::default().with_queue(QueueCapacity::new(2, 2));
        let slots = Slots::new(4, 2, Arc::new(PoolConfig::default().with_tenants(tenants)));
        let (bulk, chat) = (tenant("bulk"), tenant("chat"));
        slots.try_take(&bulk).unwrap();
        slots.try_take(&bulk).unwrap();
        assert_eq!((slots.vacancy(&bulk), slots.vacancy(&chat)), (Err(Refusal::PartFull), Ok(())));
        let mut waiting = pin!(slots.take(&bulk, 0));
        assert!(poll(waiting.as_mut()).is_pending(), "although two slots are free");
        assert_eq!(slots.try_take(&chat), Ok(1));
        slots.give_back(&chat);
        assert!(poll(waiting.as_mut()).is_pending(), "another's slot is none of its part");
        slots.give_back(&bulk);
        assert!(poll(waiting.as_mut()).is_ready());
        assert_eq!(slots.free(), 2);
    }

    #[test]
    fn the_number_of_tenants_is_bounded_and_the_last_slot_frees_a_place() {
        let tenants = TenantConfig::default().with_most(2);
        let slots = Slots::new(2, 2, Arc::new(PoolConfig::default().with_tenants(tenants)));
        let (first, second, third) = (tenant("1"), tenant("2"), tenant("3"));
        slots.try_take(&first).unwrap();
        slots.try_take(&first).unwrap();
        {
            let mut waiting = pin!(slots.take(&second, 0));
            assert!(poll(waiting.as_mut()).is_pending());
            assert_eq!(slots.vacancy(&third), Err(Refusal::TooManyTenants));
            assert_eq!(poll(pin!(slots.take(&third, 0))), Poll::Ready(Err(Refusal::TooManyTenants)));
            assert_eq!(slots.vacancy(NOBODY), Err(Refusal::Full), "who names no tenant is none");
        }
        assert_eq!(slots.vacancy(&third), Err(Refusal::Full), "the one that waited has gone");
        slots.give_back(&first);
        assert_eq!(slots.try_take(&third), Ok(0));
        assert_eq!(slots.vacancy(&second), Err(Refusal::TooManyTenants));
        slots.give_back(&first);
        assert_eq!(slots.try_take(&second), Ok(0));
    }
}
