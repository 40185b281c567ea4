//! The load queue as the checks see it, kept beside it: who waits for room where, how much each needs, and what the pools
//! have offered since they were last asked. It decides nothing.

use std::collections::BTreeMap;

use crate::id::{Bytes, Device, ModelKey};
use crate::maintenance::eviction::{Offer, PoolIndex};
use crate::maintenance::room::{RoomAsk, RoomEffect, RoomInput};

#[derive(Debug)]
struct Waiting {
    ask: RoomAsk,
    model: ModelKey,
    device: Device,
    granting: bool,
}

#[derive(Debug)]
pub(super) struct Line {
    /// The bytes that each load needs, whatever it asks for.
    needs: BTreeMap<RoomAsk, Bytes>,
    /// In the order of arrival.
    waiting: Vec<Waiting>,
    answers: Vec<Option<Vec<Offer>>>,
}

impl Line {
    pub(super) fn new(pools: usize) -> Self {
        Self { needs: BTreeMap::new(), waiting: Vec::new(), answers: vec![None; pools] }
    }

    /// Maintenance has died with its queue.
    pub(super) fn clear(&mut self) {
        self.waiting.clear();
        self.answers.fill(None);
    }

    /// Notes what a load needs, before it asks.
    pub(super) fn needs(&mut self, ask: RoomAsk, needed: Bytes) {
        self.needs.insert(ask, needed);
    }

    /// Takes an input before the load queue does.
    pub(super) fn take(&mut self, input: &RoomInput) {
        match input {
            RoomInput::Ask { ask, model, device, .. } => {
                self.waiting.retain(|waiting| waiting.ask != *ask);
                let (ask, model, device) = (*ask, *model, device.clone());
                self.waiting.push(Waiting { ask, model, device, granting: false });
            }
            RoomInput::Withdraw { ask } => self.waiting.retain(|waiting| waiting.ask != *ask),
            RoomInput::PoolEnded { pool } => self.waiting.retain(|waiting| waiting.ask.pool != *pool),
            RoomInput::Granted { ask } => {
                self.waiting.retain(|waiting| waiting.ask != *ask || !waiting.granting);
            }
            RoomInput::GrantFailed { ask } => self.grants(*ask, false),
            RoomInput::Offers { .. } | RoomInput::Released | RoomInput::Tick => {}
        }
    }

    /// Takes note of a pool's offers as they are.
    pub(super) fn answered(&mut self, pool: PoolIndex, offers: Vec<Offer>) {
        self.answers[pool.0] = Some(offers);
    }

    /// Takes the effects of the load queue.
    pub(super) fn follow(&mut self, effects: &[RoomEffect]) {
        for effect in effects {
            match effect {
                RoomEffect::Poll => self.answers.fill(None),
                RoomEffect::Grant { ask, .. } => self.grants(*ask, true),
                RoomEffect::Deny { ask, .. } => self.waiting.retain(|waiting| waiting.ask != *ask),
                RoomEffect::Evict { .. } | RoomEffect::Reclaim { .. } => {}
            }
        }
    }

    fn grants(&mut self, ask: RoomAsk, granting: bool) {
        let waiting = self.waiting.iter_mut().filter(|waiting| waiting.ask == ask);
        waiting.for_each(|waiting| waiting.granting = granting);
    }

    /// The first load that waits for room on a device and is not among those that are granted it now: its ask, its model
    /// and its need.
    pub(super) fn first(&self, device: &Device, granted: &[RoomAsk]) -> Option<(RoomAsk, ModelKey, Bytes)> {
        let waits = |waiting: &&Waiting| {
            waiting.device == *device && !waiting.granting && !granted.contains(&waiting.ask)
        };
        let first = self.waiting.iter().find(waits)?;
        Some((first.ask, first.model, self.needs.get(&first.ask).copied()?))
    }

    /// Everything that is on offer.
    pub(super) fn offers(&self) -> impl Iterator<Item = &Offer> {
        self.answers.iter().flatten().flatten()
    }
}
