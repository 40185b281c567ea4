//! The eviction policy: a pure choice of idle workers to evict when memory runs short, among those that the
//! pools offer. What caches hold comes back first, and is no worker's to make up for.
//!
//! The least worth goes first: what has been idle long, frees much, and is quick to load again. A model whose
//! workers are all idle is weighed as a whole, since its last use and its weights are theirs together. A worker in
//! use is never on offer; a pinned model's workers and those younger than their minimum residency stay
//! whatever happens.

use std::cmp::{Ordering, Reverse};
use std::time::Duration;

use crate::id::{Bytes, Device, ModelKey, WorkerId};
use crate::memory::Ledger;
use crate::model::Footprint;

/// A pool, by its place in the system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PoolIndex(pub usize);

/// An idle worker, as its pool offers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdleWorker {
    /// The worker.
    pub worker: WorkerId,
    /// Time that it has been idle.
    pub idle_for: Duration,
    /// Time since it became ready.
    pub ready_for: Duration,
}

/// The memory that one model holds, and its idle workers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// Its pool.
    pub pool: PoolIndex,
    /// The model.
    pub model: ModelKey,
    /// The memory that it is charged to.
    pub device: Device,
    /// None of its workers may be evicted.
    pub pinned: bool,
    /// Its idle workers.
    pub idle: Vec<IdleWorker>,
    /// Its workers that hold bytes, idle and leaving ones included.
    pub holders: usize,
    /// Number of holders that were told to go or have died: their bytes are on the way back.
    pub leaving: usize,
    /// Its footprint.
    pub footprint: Footprint,
    /// Time to load it again.
    pub reload_time: Duration,
    /// A worker younger than this stays.
    pub min_residency: Duration,
}

impl Offer {
    /// Bytes that come back when `gone` of its holders are gone; the weights come back with the last of them.
    fn freed_by(&self, gone: usize) -> Bytes {
        if gone == 0 {
            Bytes::ZERO
        } else if gone >= self.holders {
            self.footprint.with_workers(self.holders)
        } else {
            self.footprint.with_workers(gone) - self.footprint.shared
        }
    }

    /// Bytes that are on the way back already.
    fn coming_back(&self) -> Bytes {
        self.freed_by(self.leaving.min(self.holders))
    }

    /// Bytes that it still holds once those on their way out have gone.
    fn kept(&self) -> Bytes {
        self.freed_by(self.holders) - self.coming_back()
    }

    /// Bytes that come back on top of that when `picked` more go.
    fn freed_on_top(&self, picked: usize) -> Bytes {
        self.freed_by(self.leaving + picked) - self.coming_back()
    }
}

/// The answer to a need for room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EvictionPlan {
    /// There is room.
    Fits,
    /// There will be, once these workers have gone.
    Evict(Vec<(PoolIndex, WorkerId)>),
    /// Caches hold enough, or the workers that could go are in use, too young, or on their way out already. Ask
    /// again later.
    Wait,
    /// Not even with everything gone that is not pinned.
    Never,
}

/// Workers of one offer that are weighed together: one, or all of a model that goes with them.
#[derive(Debug, Clone)]
struct Candidate {
    offer: usize,
    /// The least recently used first.
    idle: Vec<IdleWorker>,
}

/// A worker that is to be evicted, and the place of its offer.
type Pick = (usize, IdleWorker);

/// Finds room for `needed` on `device`, with the fewest evictions among the least worth.
pub fn plan(needed: Bytes, ledger: Ledger, device: &Device, offers: &[Offer]) -> EvictionPlan {
    if needed <= ledger.free() {
        return EvictionPlan::Fits;
    }
    let here = on(device, offers);
    let kept_come_what_may: Bytes = here.iter().filter(|offer| offer.pinned).map(|offer| offer.kept()).sum();
    if needed > ledger.limit() - kept_come_what_may {
        return EvictionPlan::Never;
    }
    let missing = (needed - ledger.free()) - coming_back(device, offers) - ledger.cached();
    if missing == Bytes::ZERO {
        return EvictionPlan::Wait;
    }
    match pick(missing, &here) {
        Some(picks) => EvictionPlan::Evict(named(&here, &picks)),
        None => EvictionPlan::Wait,
    }
}

/// Bytes on `device` that are on the way back, from workers that were told to go or have died.
pub fn coming_back(device: &Device, offers: &[Offer]) -> Bytes {
    on(device, offers).into_iter().map(Offer::coming_back).sum()
}

/// Picks idle workers to evict under memory pressure: those of the least worth model, all of them if the
/// model goes with them, else one.
pub fn relieve(device: &Device, offers: &[Offer]) -> Vec<(PoolIndex, WorkerId)> {
    let here = on(device, offers);
    named(&here, &least_worth(&here, &[]).unwrap_or_default())
}

fn on<'a>(device: &Device, offers: &'a [Offer]) -> Vec<&'a Offer> {
    offers.iter().filter(|offer| offer.device == *device).collect()
}

/// Picks until enough comes back, then takes back every pick that turned out not to be needed.
fn pick(missing: Bytes, offers: &[&Offer]) -> Option<Vec<Pick>> {
    let mut picks: Vec<Pick> = Vec::new();
    while freed(offers, &picks) < missing {
        picks.extend(least_worth(offers, &picks)?);
    }
    for index in (0..picks.len()).rev() {
        let spared = picks.remove(index);
        if freed(offers, &picks) < missing {
            picks.insert(index, spared);
        }
    }
    Some(picks)
}

/// The idle workers that may be evicted and are not picked yet: each by itself, and all of a model together where
/// the model goes with them, since its weights come back with the last one alone.
fn candidates(offers: &[&Offer], picks: &[Pick]) -> Vec<Candidate> {
    let mut candidates = Vec::new();
    for (index, offer) in offers.iter().enumerate().filter(|(_, offer)| !offer.pinned) {
        let is_picked = |idle: &IdleWorker| picks.contains(&(index, *idle));
        let may_go = |idle: &&IdleWorker| idle.ready_for >= offer.min_residency && !is_picked(idle);
        let mut left: Vec<IdleWorker> = offer.idle.iter().filter(may_go).copied().collect();
        left.sort_by_key(|idle| (Reverse(idle.idle_for), idle.worker));
        candidates.extend(left.iter().map(|idle| Candidate { offer: index, idle: vec![*idle] }));
        if left.len() > 1 && picked(picks, index) + left.len() + offer.leaving >= offer.holders {
            candidates.push(Candidate { offer: index, idle: left });
        }
    }
    candidates
}

/// Picks the candidate that is worth least beside what is picked already: idle long since its last use, large, and
/// quick to load again.
fn least_worth(offers: &[&Offer], picks: &[Pick]) -> Option<Vec<Pick>> {
    let score = |candidate: &Candidate| {
        let (offer, before) = (offers[candidate.offer], picked(picks, candidate.offer));
        let freed = offer.freed_on_top(before + candidate.idle.len()) - offer.freed_on_top(before);
        let idle_for = candidate.idle.iter().map(|idle| idle.idle_for).min().unwrap_or_default();
        let reload = offer.reload_time.max(Duration::from_millis(1));
        idle_for.as_secs_f64() * freed.0 as f64 / reload.as_secs_f64()
    };
    // Equal ones go by pool and worker, the older worker first, so that the choice can be foretold.
    let place = |candidate: &Candidate| {
        (offers[candidate.offer].pool, candidate.idle.first().map(|idle| idle.worker))
    };
    let order = |left: &Candidate, right: &Candidate| -> Ordering {
        score(left).total_cmp(&score(right)).then_with(|| place(right).cmp(&place(left)))
    };
    let least = candidates(offers, picks).into_iter().max_by(order)?;
    Some(least.idle.into_iter().map(|idle| (least.offer, idle)).collect())
}

/// Number of an offer's workers among the picks.
fn picked(picks: &[Pick], offer: usize) -> usize {
    picks.iter().filter(|(of, _)| *of == offer).count()
}

/// Bytes that all these picks together bring back.
fn freed(offers: &[&Offer], picks: &[Pick]) -> Bytes {
    offers.iter().enumerate().map(|(index, offer)| offer.freed_on_top(picked(picks, index))).sum()
}

fn named(offers: &[&Offer], picks: &[Pick]) -> Vec<(PoolIndex, WorkerId)> {
    picks.iter().map(|(offer, idle)| (offers[*offer].pool, idle.worker)).collect()
}
