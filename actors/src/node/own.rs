//! The measures of this node's models that peers are told: whether a model is in memory, how long its queue is, how fast it
//! serves, and how long its load takes.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use crate::capability::Capability;
use crate::catalogue::Registered;
use crate::cluster::router::{Own, Wanted};
use crate::id::{Lane, ModelKey, Time};
use crate::progress::WorkerPhase;
use crate::status::ModelStatus;

/// Time that a load is taken to need before one has been seen.
const UNSEEN_LOAD: Duration = Duration::from_secs(10);
/// Time within which the pool's status tells of a request that it has got.
const UNTOLD: Duration = Duration::from_millis(60);
/// Weight of the newest sample in the mean rate.
const NEWEST: f64 = 0.2;

/// Observations of one model.
#[derive(Debug)]
struct Seen {
    returned: u64,
    sampled: Time,
    /// Requests served in a second, while there were any.
    rate: f64,
    loading_since: Option<Time>,
    load: Duration,
    /// Moments at which requests went to the pool that the status may not know of yet.
    sent: Vec<Time>,
}

impl Seen {
    fn new(returned: u64, now: Time) -> Self {
        Self { returned, sampled: now, rate: 0.0, loading_since: None, load: UNSEEN_LOAD, sent: Vec::new() }
    }
}

#[derive(Debug, Default)]
pub(super) struct Measures(HashMap<ModelKey, Seen>);

/// The model as its node, its name and its files make it one.
pub(super) fn wanted<C: Capability>(model: &Registered<C>) -> Option<Wanted> {
    let digest = model.digest()?.clone();
    Some(Wanted { model: model.id().clone(), digest })
}

impl Measures {
    /// Takes a sample of a model, at equal intervals.
    pub(super) fn sample<C: Capability>(
        &mut self,
        model: &Registered<C>,
        status: Option<&ModelStatus>,
        now: Time,
    ) {
        let returned = model.entry.returned();
        let seen = self.0.entry(model.key()).or_insert_with(|| Seen::new(returned, now));
        let time = now.since(seen.sampled).as_secs_f64();
        let served = returned.saturating_sub(seen.returned) as f64;
        // An idle model serves no slower than it did.
        if time > 0.0 && served > 0.0 {
            let newest = served / time;
            seen.rate = if seen.rate == 0.0 { newest } else { seen.rate + (newest - seen.rate) * NEWEST };
        }
        (seen.returned, seen.sampled) = (returned, now);
        match (status, seen.loading_since) {
            (Some(status), None) if status.loading.is_some() => seen.loading_since = Some(now),
            (Some(status), Some(since)) if status.is_serving() => {
                (seen.load, seen.loading_since) = (now.since(since), None);
            }
            _ => {}
        }
    }

    /// Notes that a request goes to the pool of this node.
    pub(super) fn sends<C: Capability>(&mut self, model: &Registered<C>, now: Time) {
        let seen = self.0.entry(model.key()).or_insert_with(|| Seen::new(model.entry.returned(), now));
        seen.sent.retain(|moment| now.since(*moment) < UNTOLD);
        seen.sent.push(now);
    }

    /// Forgets models that are not registered any more.
    pub(super) fn keep<C: Capability>(&mut self, models: &[Arc<Registered<C>>]) {
        self.0.retain(|key, _| models.iter().any(|model| model.key() == *key));
    }

    /// A model as it is now. `guests` are the numbers of its slots that requests of peers
    /// hold, `elsewhere` the number of those whose requests are not with the pool of this node.
    pub(super) fn own<C: Capability>(
        &self,
        model: &Registered<C>,
        status: Option<&ModelStatus>,
        guests: [u32; 2],
        elsewhere: usize,
        now: Time,
    ) -> Option<Own> {
        let entry = &model.entry;
        let small = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let lanes = [Lane::Interactive, Lane::Batch];
        let held = lanes.map(|lane| small(entry.used(lane)));
        let workers = status.map_or(0, |status| {
            let serves = |phase: &WorkerPhase| matches!(phase, WorkerPhase::Idle | WorkerPhase::Busy);
            status.workers.iter().filter(|worker| serves(&worker.phase)).count()
        });
        let seen = self.0.get(&model.key());
        let untold =
            seen.map_or(0, |seen| seen.sent.iter().filter(|moment| now.since(**moment) < UNTOLD).count());
        let told =
            status.map_or(0, |status| status.queued_interactive + status.queued_batch + status.in_flight);
        // Neither is exact, and both are no less than what is here.
        let holding = (held[0] as usize + held[1] as usize).saturating_sub(elsewhere);
        let queue = holding.min(told + untold);
        Some(Own {
            wanted: wanted(model)?,
            resident: workers > 0,
            at_once: queue < workers,
            capacity: lanes.map(|lane| small(entry.capacity(lane))),
            used: [held[0].saturating_sub(guests[0]), held[1].saturating_sub(guests[1])],
            queue: queue as u64,
            rate: seen.map_or(0, |seen| seen.rate.round() as u64),
            load: seen.map_or(UNSEEN_LOAD, |seen| seen.load),
        })
    }
}
