//! Checks of evictions: what is offered is idle, and what goes is what the rule says, by a computation of its own. The rule:
//! of the idle workers, and of the models that would go with all of theirs, the one that has been idle for long, frees much
//! and is loaded again soon goes first, until there is room; and whoever turns out not to be needed for that stays.

use std::time::Duration;

use super::state::Told;
use super::world::World;
use crate::id::{Bytes, Device, WorkerId};
use crate::maintenance::eviction::{IdleWorker, Offer, PoolIndex};
use crate::maintenance::room::{RoomAsk, RoomEffect};

type Named = (PoolIndex, WorkerId);

/// One model's memory on a device, while workers are taken from it.
struct Stock {
    pool: PoolIndex,
    holders: u64,
    /// Of these, those that have been told to go and those that were taken.
    gone: u64,
    shared: u64,
    each: u64,
    reload: f64,
    /// Who may go, the longest idle first.
    idle: Vec<IdleWorker>,
}

impl Stock {
    fn new(offer: &Offer, stays: bool) -> Self {
        let old_enough = |idle: &&IdleWorker| idle.ready_for >= offer.min_residency;
        let mut idle: Vec<IdleWorker> = match stays || offer.pinned {
            true => Vec::new(),
            false => offer.idle.iter().filter(old_enough).copied().collect(),
        };
        idle.sort_by(|one, other| {
            other.idle_for.cmp(&one.idle_for).then_with(|| one.worker.cmp(&other.worker))
        });
        Self {
            pool: offer.pool,
            holders: offer.holders as u64,
            gone: offer.leaving as u64,
            shared: offer.footprint.shared.0,
            each: offer.footprint.per_worker.0,
            reload: offer.reload_time.max(Duration::from_millis(1)).as_secs_f64(),
            idle,
        }
    }

    /// Bytes that are back once so many more are gone.
    fn back(&self, more: u64) -> u64 {
        let gone = self.gone + more;
        match gone > 0 && gone >= self.holders {
            true => self.shared + self.each * self.holders,
            false => self.each * gone,
        }
    }

    /// True if the model goes with its idle workers, so that they are weighed together too.
    fn takes_all(&self) -> bool {
        self.idle.len() > 1 && self.gone + self.idle.len() as u64 >= self.holders
    }

    fn worth(&self, idle: &[IdleWorker]) -> f64 {
        let freed = self.back(idle.len() as u64) - self.back(0);
        let idle_for = idle.iter().map(|idle| idle.idle_for).min().unwrap_or_default();
        idle_for.as_secs_f64() * freed as f64 / self.reload
    }
}

fn back(stocks: &[Stock]) -> u64 {
    stocks.iter().map(|stock| stock.back(0)).sum()
}

/// The workers to take next, and the place of their stock: the greatest of idle time, bytes and ease of loading. Of equals
/// the first by pool and worker, and there rather all than one.
fn next(stocks: &[Stock]) -> Option<(usize, Vec<IdleWorker>)> {
    let mut best: Option<(f64, usize, Vec<IdleWorker>)> = None;
    for (place, stock) in stocks.iter().enumerate() {
        let mut groups: Vec<Vec<IdleWorker>> = stock.idle.iter().map(|idle| vec![*idle]).collect();
        if stock.takes_all() {
            groups.push(stock.idle.clone());
        }
        for group in groups {
            let worth = stock.worth(&group);
            let name = (stock.pool, group[0].worker);
            let goes_first = best.as_ref().is_none_or(|(other, at, taken)| {
                let taken_name = (stocks[*at].pool, taken[0].worker);
                worth > *other || (worth == *other && name <= taken_name)
            });
            if goes_first {
                best = Some((worth, place, group));
            }
        }
    }
    best.map(|(_, place, group)| (place, group))
}

/// Who goes so that so much is back; `None` if that cannot be.
fn who_goes(stocks: &mut [Stock], wanted: u64) -> Option<Vec<Named>> {
    let mut taken: Vec<(usize, WorkerId)> = Vec::new();
    while back(stocks) < wanted {
        let (place, group) = next(stocks)?;
        let stock = &mut stocks[place];
        stock.gone += group.len() as u64;
        stock.idle.retain(|idle| !group.contains(idle));
        taken.extend(group.into_iter().map(|idle| (place, idle.worker)));
    }
    let mut stays = Vec::new();
    for (place, worker) in taken.iter().rev() {
        stocks[*place].gone -= 1;
        if back(stocks) >= wanted {
            stays.push((*place, *worker));
        } else {
            stocks[*place].gone += 1;
        }
    }
    taken.retain(|one| !stays.contains(one));
    Some(taken.into_iter().map(|(place, worker)| (stocks[place].pool, worker)).collect())
}

/// True if so much is back once these have gone.
fn is_enough(offers: &[&Offer], gone: &[Named], wanted: u64) -> bool {
    let mut stocks: Vec<Stock> = offers.iter().map(|offer| Stock::new(offer, true)).collect();
    for (offer, stock) in offers.iter().zip(&mut stocks) {
        let is_gone = |idle: &&IdleWorker| gone.contains(&(offer.pool, idle.worker));
        stock.gone += offer.idle.iter().filter(is_gone).count() as u64;
    }
    back(&stocks) >= wanted
}

impl World {
    /// Checks that workers offered as idle have nothing to do, for as long as is said, and may go.
    pub(super) fn check_offers(&mut self, pool: usize, offers: &[Offer]) {
        let (now, state) = (self.now, &self.pools[pool]);
        let is_wrong = |offer: &&Offer| {
            let model = offer.model.0 as usize;
            offer.pinned != state.models[model].pinned
                || offer.idle.iter().any(|idle| {
                    let worker = &state.workers[idle.worker.0 as usize - 1];
                    let is_idle = worker.ready && worker.told == Told::Nothing && worker.assigned.is_empty();
                    let since = (now.since(worker.idle_since), now.since(worker.ready_at));
                    !is_idle || worker.model != model || since != (idle.idle_for, idle.ready_for)
                })
        };
        let wrong = offers.iter().find(is_wrong).cloned();
        self.check("what is offered is idle", |_| wrong.is_none(), || format!("pool {pool}: {wrong:?}"));
    }

    /// Workers go to make room only while a load waits for it, and only those that the rule takes.
    pub(super) fn check_evictions(&mut self, effects: &[RoomEffect]) {
        let goes = |effect: &RoomEffect| match effect {
            RoomEffect::Evict { pool, worker } => Some((*pool, *worker)),
            _ => None,
        };
        let mut evicted: Vec<Named> = effects.iter().filter_map(goes).collect();
        if evicted.is_empty() {
            return;
        }
        let devices: Vec<Device> = self.ledgers.keys().cloned().collect();
        for device in devices {
            let line = &self.line;
            let offers: Vec<&Offer> = line.offers().filter(|offer| offer.device == device).collect();
            let is_here = |name: &Named| {
                let mut workers =
                    offers.iter().flat_map(|offer| offer.idle.iter().map(|idle| (offer.pool, idle.worker)));
                workers.any(|offered| offered == *name)
            };
            let here: Vec<Named> = evicted.extract_if(.., |name| is_here(name)).collect();
            if !here.is_empty()
                && let Err((invariant, detail)) = self.judge(&device, &offers, here, effects)
            {
                self.break_invariant(invariant, || detail);
            }
        }
        self.check(
            "what is offered is idle",
            |_| evicted.is_empty(),
            || format!("nobody offered {evicted:?}"),
        );
    }

    fn judge(
        &self,
        device: &Device,
        offers: &[&Offer],
        mut evicted: Vec<Named>,
        effects: &[RoomEffect],
    ) -> Result<(), (&'static str, String)> {
        let grants = effects.iter().filter_map(|effect| match effect {
            RoomEffect::Grant { ask, device: on, needed } if on == device => Some((*ask, *needed)),
            _ => None,
        });
        let (granted, promised): (Vec<RoomAsk>, Vec<Bytes>) = grants.unzip();
        let Some((ask, model, needed)) = self.line.first(device, &granted) else {
            return Err(("no needless eviction", format!("{evicted:?} for nobody on {device}")));
        };
        let ledger = self.ledgers[device];
        // Caches give back what they hold.
        let free = (ledger.free() - promised.into_iter().sum()) + ledger.cached();
        let wanted = (needed - free).0;
        let own = |offer: &Offer| (offer.pool, offer.model) == (ask.pool, model);
        let mut stocks: Vec<Stock> = offers.iter().map(|offer| Stock::new(offer, own(offer))).collect();
        let mut expected = who_goes(&mut stocks, wanted).unwrap_or_default();
        evicted.sort();
        expected.sort();
        if evicted == expected {
            return Ok(());
        }
        let without = |spared: &Named| -> Vec<Named> {
            evicted.iter().filter(|name| *name != spared).copied().collect()
        };
        let is_needless = |name: &Named| is_enough(offers, &without(name), wanted);
        let invariant = match evicted.iter().any(is_needless) {
            true => "no needless eviction",
            false if !is_enough(offers, &evicted, wanted) => "an eviction makes room",
            false => "eviction by worth",
        };
        let detail = format!("{ask:?} misses {wanted}: {evicted:?} and not {expected:?} of {offers:?}");
        Err((invariant, detail))
    }

    /// Under pressure the least worth goes.
    pub(super) fn check_relief(&mut self, device: &Device, offers: &[Offer], goes: &[Named]) {
        let here = offers.iter().filter(|offer| offer.device == *device);
        let stocks: Vec<Stock> = here.map(|offer| Stock::new(offer, false)).collect();
        let expected = next(&stocks).map(|(place, group)| (stocks[place].pool, group));
        let expected: Vec<Named> = expected
            .into_iter()
            .flat_map(|(pool, group)| group.into_iter().map(move |idle| (pool, idle.worker)))
            .collect();
        self.check("eviction by worth", |_| goes == expected, || format!("{goes:?} and not {expected:?}"));
    }
}
