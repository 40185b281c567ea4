//! Maintenance: leases, the load queue, relief, pressure and health checks.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Plant;
use super::coverage::Fault;
use super::world::{Event, World};
use crate::id::{Bytes, Device, ModelKey, Time, WorkerId};
use crate::maintenance::eviction::{Offer, PoolIndex, relieve};
use crate::maintenance::room::{LoadQueue, RoomAsk, RoomEffect, RoomInput};
use crate::memory::{Ledger, PressureLevel};
use crate::scheduler::Input;
use crate::telemetry::EvictionReason;

impl World {
    pub(super) fn lease(&mut self, device: &Device, bytes: Bytes) -> Option<(Device, Bytes)> {
        if !self.ledgers.get_mut(device)?.charge(bytes) {
            return None;
        }
        if self.planted(Plant::BytesChargedTwice) {
            let _ = self.ledgers.get_mut(device)?.charge(bytes);
        }
        if let Some(held) = self.held.get_mut(device) {
            *held += bytes;
        }
        self.check_bytes(device);
        Some((device.clone(), bytes))
    }

    pub(super) fn give_back(&mut self, device: &Device, bytes: Bytes) {
        if bytes == Bytes::ZERO {
            return;
        }
        if let (Some(ledger), Some(held)) = (self.ledgers.get_mut(device), self.held.get_mut(device)) {
            ledger.give_back(bytes);
            held.0 -= bytes.0;
        }
        self.check_bytes(device);
        self.after(Duration::from_micros(10), Event::ToLoadQueue(RoomInput::Released));
    }

    pub(super) fn drop_lease(&mut self, lease: Option<(Device, Bytes)>) {
        if let Some((device, bytes)) = lease {
            self.give_back(&device, bytes);
        }
    }

    pub(super) fn ask_for_room(
        &mut self,
        pool: usize,
        worker: WorkerId,
        model: ModelKey,
        (device, needed): (Device, Bytes),
        until: Time,
    ) {
        self.pools[pool].asks.insert(worker);
        let ask = RoomAsk { pool: PoolIndex(pool), worker };
        self.line.needs(ask, needed);
        let needed = if self.planted(Plant::NeedOverstated) { needed + Bytes(20) } else { needed };
        self.tell_maintenance(pool, Event::ToLoadQueue(RoomInput::Ask { ask, model, device, needed, until }));
    }

    /// Maintenance dies and is started again: its queue is lost, and the pools repeat what they asked for.
    pub(super) fn restart_maintenance(&mut self) {
        self.load_queue = LoadQueue::new(self.pools.len());
        self.line.clear();
        self.desk_at = Time::NEVER;
        for pool in 0..self.pools.len() {
            let rooms = self.pools[pool].rooms.iter();
            let asks: Vec<_> =
                rooms.filter_map(|(worker, room)| Some((*worker, room.asked.clone()?))).collect();
            for (worker, (model, room, until)) in asks {
                self.ask_for_room(pool, worker, model, room, until);
            }
        }
    }

    pub(super) fn cancel_reserve(&mut self, pool: usize, worker: WorkerId) {
        self.drop_room(pool, worker);
    }

    /// Drops what is held for a worker that will not load, and takes back its ask.
    pub(super) fn drop_room(&mut self, pool: usize, worker: WorkerId) {
        let Some(room) = self.pools[pool].rooms.remove(&worker) else { return };
        self.drop_weights(room.weights);
        self.drop_lease(room.lease);
        if room.asked.is_some() {
            self.pools[pool].asks.remove(&worker);
            let ask = RoomAsk { pool: PoolIndex(pool), worker };
            self.tell_maintenance(pool, Event::ToLoadQueue(RoomInput::Withdraw { ask }));
        }
    }

    pub(super) fn room_answered(
        &mut self,
        pool: usize,
        worker: WorkerId,
        answer: Result<(Device, Bytes), Input>,
    ) {
        self.pools[pool].asks.remove(&worker);
        let input = match (answer, self.pools[pool].rooms.get_mut(&worker)) {
            (Ok(lease), Some(room)) => {
                (room.lease, room.asked) = (Some(lease), None);
                Input::RoomGranted { worker }
            }
            (Ok(lease), None) => return self.drop_lease(Some(lease)),
            (Err(denied), _) => denied,
        };
        self.feed(pool, input);
    }

    pub(super) fn load_queue(&mut self, input: RoomInput) {
        let mut inputs = vec![input];
        while let Some(input) = inputs.pop() {
            let mut effects = Vec::new();
            self.line.take(&input);
            let ledgers = self.ledgers_told(&input);
            self.load_queue.handle(self.now, input, &ledgers, &mut effects);
            self.check_evictions(&effects);
            self.line.follow(&effects);
            for effect in effects {
                self.note(|| format!("    load queue => {effect:?}"));
                match effect {
                    RoomEffect::Poll => {
                        for pool in 0..self.pools.len() {
                            self.tell_pool(pool, Event::AskOffers { pool });
                        }
                    }
                    RoomEffect::Reclaim { device, room } => self.reclaim(&device, room),
                    RoomEffect::Evict { pool, worker } => {
                        self.check_caches_went_first(pool, worker);
                        self.evict(pool, worker, EvictionReason::MakeRoom);
                    }
                    RoomEffect::Grant { ask, device, needed } => {
                        inputs.push(match self.lease(&device, needed) {
                            Some(lease) => {
                                let (pool, worker) = (ask.pool.0, ask.worker);
                                self.tell_pool(pool, Event::Room { pool, worker, answer: Ok(lease) });
                                RoomInput::Granted { ask }
                            }
                            None => RoomInput::GrantFailed { ask },
                        });
                    }
                    RoomEffect::Deny { ask, device, needed } => {
                        let ledger = self.ledgers[&device];
                        let (free, limit) = (ledger.free(), ledger.limit());
                        let (pool, worker) = (ask.pool.0, ask.worker);
                        let answer = Err(Input::RoomDenied { worker, needed, free, limit });
                        self.tell_pool(pool, Event::Room { pool, worker, answer });
                    }
                }
            }
        }
        let alarm = self.load_queue.alarm();
        if alarm < self.desk_at {
            self.desk_at = alarm;
            self.at(alarm, Event::DeskAlarm);
        }
    }

    /// The ledgers as the load queue is told of them.
    fn ledgers_told(&mut self, input: &RoomInput) -> BTreeMap<Device, Ledger> {
        let mut told = self.ledgers.clone();
        let decides = matches!(input, RoomInput::Offers { .. });
        if decides
            && told.values().any(|ledger| ledger.cached() > Bytes::ZERO)
            && self.planted(Plant::CachesHidden)
        {
            for ledger in told.values_mut() {
                let charged = ledger.charged();
                *ledger = Ledger::new(ledger.limit());
                let _ = ledger.charge(charged);
            }
        }
        told
    }

    fn evict(&mut self, pool: PoolIndex, worker: WorkerId, reason: EvictionReason) {
        let input = Input::Evict { worker, reason };
        self.tell_pool(pool.0, Event::ToPool { pool: pool.0, input });
    }

    pub(super) fn offer(&mut self, pool: usize) {
        if self.fault(Fault::PollUnanswered) {
            return;
        }
        let index = PoolIndex(pool);
        let mut offers = self.pools[pool].scheduler.offers(self.now, index);
        self.check_offers(pool, &offers);
        let truth = self.plant.map(|_| offers.clone());
        if self.ledgers.len() > 1 && offers.iter().any(|offer| !offer.idle.is_empty()) {
            self.move_offers(&mut offers);
        }
        if offers.iter().map(|offer| offer.idle.len()).sum::<usize>() > 1
            && self.planted(Plant::OfferMisdated)
        {
            let idle = offers.iter_mut().flat_map(|offer| &mut offer.idle);
            idle.for_each(|idle| idle.idle_for = Duration::from_secs(10_000).saturating_sub(idle.idle_for));
        }
        self.tell_maintenance(pool, Event::Offers { pool, offers, truth });
    }

    pub(super) fn offered(&mut self, pool: usize, offers: Vec<Offer>, truth: Option<Vec<Offer>>) {
        let index = PoolIndex(pool);
        self.line.answered(index, truth.unwrap_or_else(|| offers.clone()));
        self.load_queue(RoomInput::Offers { pool: index, offers });
    }

    /// Puts what is offered on one device on the other, if that is planted.
    fn move_offers(&mut self, offers: &mut [Offer]) {
        if self.planted(Plant::OfferOfOtherDevice) {
            for offer in offers {
                let other = self.ledgers.keys().find(|device| **device != offer.device);
                offer.device = other.unwrap_or(&offer.device).clone();
            }
        }
    }

    pub(super) fn relieve(&mut self, device: &Device) {
        self.reclaim(device, Bytes(u64::MAX));
        let pools = self.pools.iter().enumerate();
        let offers: Vec<_> =
            pools.flat_map(|(index, pool)| pool.scheduler.offers(self.now, PoolIndex(index))).collect();
        let goes = relieve(device, &offers);
        self.check_relief(device, &offers, &goes);
        for (pool, worker) in goes {
            self.evict(pool, worker, EvictionReason::Pressure);
        }
    }

    pub(super) fn interval(&mut self) {
        if self.closing {
            return;
        }
        let levels = self
            .ledgers
            .iter()
            .map(|(device, ledger)| (PressureLevel::of(ledger.charged(), ledger.limit()), device.clone()));
        let Some((mut level, device)) = levels.max() else { return };
        if self.fault(Fault::Pressure) {
            level = PressureLevel::Critical;
        }
        for pool in 0..self.pools.len() {
            self.tell_pool(
                pool,
                Event::ToPool { pool, input: Input::Pressure { device: device.clone(), level } },
            );
            self.tell_pool(pool, Event::ToPool { pool, input: Input::HealthCheck });
        }
        if level == PressureLevel::Critical {
            match self.kept_in_caches(&device) {
                Bytes::ZERO => self.relieve(&device),
                _ => self.reclaim(&device, Bytes(u64::MAX)),
            }
        }
        let interval = self.scenario.interval;
        self.after(interval, Event::Interval);
    }
}
