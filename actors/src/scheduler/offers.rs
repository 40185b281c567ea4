//! Offers to maintenance for when room runs short: each loaded model with the memory it holds and its idle
//! workers.

use super::model_state::{Holds, Leaving};
use super::{ModelState, Scheduler};
use crate::id::Time;
use crate::maintenance::eviction::{IdleWorker, Offer, PoolIndex};

impl Scheduler {
    /// Returns the offers of this pool, the `pool`th of its system, at this moment.
    pub fn offers(&self, now: Time, pool: PoolIndex) -> Vec<Offer> {
        self.models.values().filter_map(|model| offer(now, pool, model)).collect()
    }
}

fn offer(now: Time, pool: PoolIndex, model: &ModelState) -> Option<Offer> {
    let footprint = model.footprint?;
    // Kept weights count as a holder: the weights do not come back with the last worker.
    let freeing = model.leaving.iter().filter(|gone| gone.holds == Holds::Weights).count();
    let holders = model.holders() + usize::from(model.retained) + freeing;
    let idle = model.workers.iter().filter_map(|worker| {
        let idle_for = now.since(worker.idle_since()?);
        Some(IdleWorker { worker: worker.id, idle_for, ready_for: now.since(worker.ready_at) })
    });
    (holders > 0).then(|| Offer {
        pool,
        model: model.key,
        device: model.policy.device.clone(),
        pinned: model.pinned,
        idle: if model.may_shrink() { idle.collect() } else { Vec::new() },
        holders,
        leaving: model
            .leaving
            .iter()
            .filter(|gone| gone.holds != Holds::Nothing && gone.why != Leaving::Stuck)
            .count(),
        footprint,
        reload_time: model.load_time,
        min_residency: model.policy.config.min_residency,
    })
}
