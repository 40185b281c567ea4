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

#[cfg(test)]
mod tests {
    use super::super::{Phase, Source};
    use super::*;

    #[test]
    fn an_offer_counts_whoever_holds_bytes_and_those_of_them_that_give_theirs_back() {
        use Leaving::{Dead, Draining, Stuck};
        let (model, loading) = (ModelState::of_a_test, Phase::Starting { source: Source::Load });
        let kept = |model: ModelState| ModelState { retained: true, ..model };
        let table = [
            (model(), None),
            (model().with_thread(Dead, Holds::Nothing), None),
            (model().with_worker(loading.clone(), true), Some((1, 0))),
            (model().with_thread(Draining, Holds::Worker).with_thread(Stuck, Holds::Worker), Some((2, 1))),
            (model().with_thread(Draining, Holds::Weights), Some((1, 1))),
            (model().with_thread(Draining, Holds::Weights).with_thread(Dead, Holds::Worker), Some((2, 2))),
            (kept(model()), Some((1, 0))),
            (kept(model().with_worker(loading, true).with_thread(Dead, Holds::Worker)), Some((3, 1))),
        ];
        for (model, expected) in table {
            let offer = offer(Time::ZERO, PoolIndex(0), &model);
            assert_eq!(offer.map(|offer| (offer.holders, offer.leaving)), expected, "{model:?}");
        }
    }
}
