//! The eviction policy: a pure choice of idle workers to evict when memory runs short, among those that the
//! pools offer.
//!
//! The least worth goes first: what has been idle long, frees much, and is quick to load again. A worker in
//! use is never on offer; a pinned model's workers and those younger than their minimum residency stay
//! whatever happens.

use std::cmp::Ordering;
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
    /// The workers that could go are in use, too young, or on their way out already. Ask again later.
    Wait,
    /// Not even with everything gone that is not pinned.
    Never,
}

/// One worker that may be evicted: which offer it belongs to, and the worker itself.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    offer: usize,
    idle: IdleWorker,
}

/// Finds room for `needed` on `device`, with the fewest evictions among the least worth.
pub fn plan(needed: Bytes, ledger: Ledger, device: &Device, offers: &[Offer]) -> EvictionPlan {
    if needed <= ledger.free() {
        return EvictionPlan::Fits;
    }
    let offers: Vec<&Offer> = offers.iter().filter(|offer| offer.device == *device).collect();
    let kept_come_what_may: Bytes =
        offers.iter().filter(|offer| offer.pinned).map(|offer| offer.kept()).sum();
    if needed > ledger.limit() - kept_come_what_may {
        return EvictionPlan::Never;
    }
    let coming: Bytes = offers.iter().map(|offer| offer.coming_back()).sum();
    let missing = (needed - ledger.free()) - coming;
    if missing == Bytes::ZERO {
        return EvictionPlan::Wait;
    }
    match pick(missing, &offers) {
        Some(picks) => EvictionPlan::Evict(
            picks.iter().map(|pick| (offers[pick.offer].pool, pick.idle.worker)).collect(),
        ),
        None => EvictionPlan::Wait,
    }
}

/// Picks idle workers to evict under memory pressure: those of the least worth model, all of them if the
/// model goes with them, else one.
pub fn relieve(device: &Device, offers: &[Offer]) -> Vec<(PoolIndex, WorkerId)> {
    let offers: Vec<&Offer> = offers.iter().filter(|offer| offer.device == *device).collect();
    let all = candidates(&offers);
    let of = |offer: usize| all.iter().filter(move |candidate| candidate.offer == offer);
    let goes_whole = |offer: usize| of(offer).count() + offers[offer].leaving >= offers[offer].holders;
    let freed = |candidate: &Candidate| {
        let index = candidate.offer;
        offers[index].freed_on_top(if goes_whole(index) { of(index).count() } else { 1 })
    };
    let Some(first) = least_worth(&offers, &all, freed) else { return Vec::new() };
    let offer = offers[first.offer];
    let goes = of(first.offer).filter(|candidate| goes_whole(first.offer) || candidate.is(first));
    goes.map(|candidate| (offer.pool, candidate.idle.worker)).collect()
}

/// Picks until enough comes back, then takes back every pick that turned out not to be needed.
fn pick(missing: Bytes, offers: &[&Offer]) -> Option<Vec<Candidate>> {
    let mut left = candidates(offers);
    let mut picks: Vec<Candidate> = Vec::new();
    while freed(offers, &picks) < missing {
        let freed = |candidate: &Candidate| {
            let picked = picks.iter().filter(|pick| pick.offer == candidate.offer).count();
            offers[candidate.offer].freed_on_top(picked + 1) - offers[candidate.offer].freed_on_top(picked)
        };
        let next = least_worth(offers, &left, freed)?;
        left.retain(|candidate| !candidate.is(next));
        picks.push(next);
    }
    for index in (0..picks.len()).rev() {
        let spared = picks.remove(index);
        if freed(offers, &picks) < missing {
            picks.insert(index, spared);
        }
    }
    Some(picks)
}

fn candidates(offers: &[&Offer]) -> Vec<Candidate> {
    let evictable = offers.iter().enumerate().filter(|(_, offer)| !offer.pinned);
    evictable
        .flat_map(|(index, offer)| {
            let old_enough = offer.idle.iter().filter(|idle| idle.ready_for >= offer.min_residency);
            old_enough.map(move |idle| Candidate { offer: index, idle: *idle })
        })
        .collect()
}

/// Picks the candidate that is worth least; `freed` says what comes back when one goes.
fn least_worth(
    offers: &[&Offer],
    left: &[Candidate],
    freed: impl Fn(&Candidate) -> Bytes,
) -> Option<Candidate> {
    let score = |candidate: &Candidate| {
        let reload = offers[candidate.offer].reload_time.max(Duration::from_millis(1));
        candidate.idle.idle_for.as_secs_f64() * freed(candidate).0 as f64 / reload.as_secs_f64()
    };
    // Equal ones go by pool and worker, the older worker first, so that the choice can be foretold.
    let place = |candidate: &Candidate| (offers[candidate.offer].pool, candidate.idle.worker);
    let order = |left: &Candidate, right: &Candidate| -> Ordering {
        score(left).total_cmp(&score(right)).then_with(|| place(right).cmp(&place(left)))
    };
    left.iter().max_by(|left, right| order(left, right)).copied()
}

/// Bytes that all these picks together bring back.
fn freed(offers: &[&Offer], picks: &[Candidate]) -> Bytes {
    let picked = |index| picks.iter().filter(|pick| pick.offer == index).count();
    offers.iter().enumerate().map(|(index, offer)| offer.freed_on_top(picked(index))).sum()
}

impl Candidate {
    fn is(&self, other: Candidate) -> bool {
        self.offer == other.offer && self.idle.worker == other.idle.worker
    }
}
