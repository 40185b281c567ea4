//! Weights and their caches: bytes beside the weights that runs add to, that go when room is needed, and with the weights.
//! Bytes that are taken back from a cache come a moment later, as somebody may hold them.

use std::time::Duration;

use super::Plant;
use super::coverage::Fault;
use super::world::{Event, World};
use crate::id::{Bytes, Device, WorkerId};
use crate::maintenance::eviction::PoolIndex;
use crate::maintenance::room::RoomInput;

impl World {
    /// Takes hold of weights, if they are still there.
    pub(super) fn hold(&mut self, weights: Option<usize>) -> Option<usize> {
        let index = weights.filter(|index| self.weights[*index].holders > 0)?;
        self.weights[index].holders += 1;
        Some(index)
    }

    pub(super) fn drop_weights(&mut self, weights: Option<usize>) {
        let Some(weights) = weights.map(|index| &mut self.weights[index]) else { return };
        weights.holders -= 1;
        if weights.holders == 0 {
            let (device, bytes) = (weights.device.clone(), weights.bytes);
            let cached = std::mem::take(&mut weights.cached);
            self.cache_returns(&device, cached);
            self.give_back(&device, bytes);
        }
    }

    /// A run has computed something that its model keeps, if there is room for it and no load waits.
    pub(super) fn cache_grows(&mut self, pool: usize, worker: WorkerId) {
        let Some(index) = self.worker_ref(pool, worker).weights else { return };
        if !self.fault(Fault::CacheGrows) {
            return;
        }
        let (device, bytes) = (self.weights[index].device.clone(), Bytes(self.random.u64(1..20)));
        let fits = self.load_queue.waiting(&device) == 0
            && self.ledgers.get_mut(&device).is_some_and(|ledger| ledger.charge_cache(bytes));
        if fits {
            self.weights[index].cached += bytes;
            if let Some(held) = self.held.get_mut(&device) {
                *held += bytes;
            }
            self.check_bytes(&device);
        }
    }

    /// Bytes that caches on a device hold and have not been told to give back.
    pub(super) fn kept_in_caches(&self, device: &Device) -> Bytes {
        self.weights.iter().filter(|weights| weights.device == *device).map(|weights| weights.cached).sum()
    }

    /// Has caches give back what is missing for so much to be free.
    pub(super) fn reclaim(&mut self, device: &Device, room: Bytes) {
        let ledger = self.ledgers[device];
        let on_their_way = ledger.cached() - self.kept_in_caches(device);
        let mut missing = room - ledger.free() - on_their_way;
        for index in 0..self.weights.len() {
            let weights = &mut self.weights[index];
            if weights.device != *device {
                continue;
            }
            let bytes = weights.cached.min(missing);
            weights.cached -= bytes;
            missing -= bytes;
            if bytes > Bytes::ZERO {
                let wait = Duration::from_micros(1 << self.random.u32(0..20));
                self.after(wait, Event::CacheReturns { device: device.clone(), bytes });
            }
        }
    }

    /// Bytes of a cache are back.
    pub(super) fn cache_returns(&mut self, device: &Device, bytes: Bytes) {
        if bytes == Bytes::ZERO {
            return;
        }
        let leaks = self.planted(Plant::CacheLeaked);
        if let (Some(ledger), Some(held)) = (self.ledgers.get_mut(device), self.held.get_mut(device)) {
            if !leaks {
                ledger.give_back_cache(bytes);
            }
            held.0 -= bytes.0;
        }
        self.check_bytes(device);
        self.after(Duration::from_micros(10), Event::ToLoadQueue(RoomInput::Released));
    }

    /// A worker goes to make room once caches have been told to give back all that they hold.
    pub(super) fn check_caches_went_first(&mut self, pool: PoolIndex, worker: WorkerId) {
        let state = &self.pools[pool.0];
        let device = state.models[state.workers[worker.0 as usize - 1].model].device.clone();
        let kept = self.kept_in_caches(&device);
        self.check("caches go before workers", |_| kept == Bytes::ZERO, || format!("{kept} for {worker}"));
    }
}
