//! The measures of this node's models that peers are told: whether a model is in memory, how much work it has, how long it
//! takes for it, how long its load takes, and how much of what it runs it fails.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use crate::capability::Capability;
use crate::catalogue::Registered;
use crate::cluster::router::{EXCHANGE, Own, Room, Wanted};
use crate::entry::Served;
use crate::id::{Bytes, Device, Lane, ModelKey, Time};
use crate::progress::WorkerPhase;
use crate::status::{ModelStatus, SystemStatus};

/// Time that a load is taken to need of a model of unknown size before one has been seen.
const UNSEEN_LOAD: Duration = Duration::from_secs(10);
/// Shortest time that a load is taken to need before one has been seen, and the bytes that are then loaded in a second
/// before another model's load has been.
const LEAST_LOAD: Duration = Duration::from_millis(100);
const UNSEEN_RATE: f64 = 200.0 * 1024.0 * 1024.0;
/// Time of work after which a measure counts half.
const HALF: f64 = 5.0;

/// Number of requests after which one counts half among the latest, and what they have to count together for their share to be
/// told: three of them, older ones less.
const LATEST: f64 = 8.0;
const FEWEST: f64 = 2.5;
/// Time after which the last failure counts no more, so that the node is tried again.
const FORGOTTEN: Duration = Duration::from_secs(30);

/// Share of the latest requests that a model has failed.
#[derive(Debug, Default)]
struct Failures {
    all: f64,
    failed: f64,
    last: Option<Time>,
}

impl Failures {
    fn add(&mut self, served: Served, now: Time) {
        let (answered, failed) = (f64::from(served.answered), f64::from(served.failed));
        let older = 0.5_f64.powf((answered + failed) / LATEST);
        self.all = self.all * older + answered + failed;
        self.failed = self.failed * older + failed;
        if served.failed > 0 {
            self.last = Some(now);
        }
    }

    /// In percent.
    fn get(&self, now: Time) -> u8 {
        let is_news = self.last.is_some_and(|last| now.since(last) < FORGOTTEN);
        if is_news && self.all >= FEWEST { (100.0 * self.failed / self.all) as u8 } else { 0 }
    }
}

/// Measured time per unit of cost: of newer work first, however long a run takes.
#[derive(Debug, Default)]
struct UnitTime {
    cost: f64,
    seconds: f64,
    /// Time of work since the last that was served.
    pending: f64,
}

impl UnitTime {
    fn add(&mut self, served: Served) {
        self.pending += served.busy.as_secs_f64();
        if served.cost == 0 {
            return;
        }
        let older = 0.5_f64.powf(self.pending / HALF);
        self.cost = self.cost * older + served.cost as f64;
        self.seconds = self.seconds * older + std::mem::take(&mut self.pending);
    }

    /// `None` while no work was timed.
    fn get(&self) -> Option<Duration> {
        let unit = self.seconds / self.cost;
        if self.seconds > 0.0 { Duration::try_from_secs_f64(unit).ok() } else { None }
    }
}

/// Time that loads take on this node, by bytes.
#[derive(Debug, Default)]
struct LoadRate {
    bytes: f64,
    seconds: f64,
}

impl LoadRate {
    /// Adds a load. Those before it count half, the larger ones more.
    fn add(&mut self, bytes: Bytes, took: Duration) {
        self.bytes = self.bytes / 2.0 + bytes.0 as f64;
        self.seconds = self.seconds / 2.0 + took.as_secs_f64();
    }

    /// Estimated time of the load of so many bytes.
    fn load(&self, bytes: Option<Bytes>) -> Duration {
        let Some(bytes) = bytes else { return UNSEEN_LOAD };
        let seen = self.seconds > 0.0 && self.bytes > 0.0;
        let rate = if seen { self.bytes / self.seconds } else { UNSEEN_RATE };
        let estimate = Duration::try_from_secs_f64(bytes.0 as f64 / rate).unwrap_or(Duration::MAX);
        estimate.max(LEAST_LOAD)
    }
}

/// Observations of one model.
#[derive(Debug)]
struct Seen {
    sampled: Time,
    unit: UnitTime,
    failures: Failures,
    serves: bool,
    loading_since: Option<Time>,
    /// Time that its last load took.
    load: Option<Duration>,
}

impl Seen {
    fn new(serves: bool, now: Time) -> Self {
        let (unit, failures) = (UnitTime::default(), Failures::default());
        Self { sampled: now, unit, failures, serves, loading_since: None, load: None }
    }

    /// Notes how its load stands at a sample. Returns the time of one that is over; it is right to an interval of samples.
    fn note(&mut self, is_loading: bool, serves: bool, now: Time) -> Option<Duration> {
        let before = (std::mem::replace(&mut self.serves, serves), std::mem::replace(&mut self.sampled, now));
        if !serves {
            // One that failed or was given up is no load any more.
            self.loading_since = if is_loading { self.loading_since.or(Some(now)) } else { None };
            return None;
        }
        let since = self.loading_since.take();
        // One between two samples was not seen.
        let began = since.or((!before.0).then_some(before.1))?;
        self.load = Some(now.since(began));
        self.load
    }

    /// Time until it serves, of a load that takes so long.
    fn left(&self, load: Duration, now: Time) -> Duration {
        match self.loading_since {
            // One that takes longer than the last is not over at once.
            Some(since) => load.saturating_sub(now.since(since)).max(EXCHANGE),
            None => load,
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Measures {
    seen: HashMap<ModelKey, Seen>,
    loads: LoadRate,
}

/// The model as its node, its name and its files make it one.
pub(super) fn wanted<C: Capability>(model: &Registered<C>) -> Option<Wanted> {
    let digest = model.digest()?.clone();
    Some(Wanted { model: model.id().clone(), digest })
}

/// The status of a model of this node, if it has been used.
pub(super) fn status_of<'a, C: Capability>(
    system: &'a SystemStatus,
    model: &Registered<C>,
) -> Option<&'a ModelStatus> {
    system.model(C::NAME, model.id().as_str())
}

/// Number of workers that serve.
fn workers(status: Option<&ModelStatus>) -> u32 {
    let serves = |phase: &WorkerPhase| matches!(phase, WorkerPhase::Idle | WorkerPhase::Busy);
    let workers = status.into_iter().flat_map(|status| &status.workers);
    small(workers.filter(|worker| serves(&worker.phase)).count())
}

fn loads(model: &ModelStatus) -> bool {
    model.workers.iter().any(|worker| worker.phase == WorkerPhase::Loading)
}

/// Bytes that a model takes with one worker, measured or else estimated.
fn bytes<C: Capability>(model: &Registered<C>, status: Option<&ModelStatus>) -> Option<Bytes> {
    let measured = status.and_then(|status| status.footprint);
    Some(measured.or(model.size())?.with_workers(1))
}

/// The room for a model on its device. What has no requests and is not pinned can go; so can caches.
fn room(system: &SystemStatus, device: &Device) -> Option<Room> {
    let memory = system.memory.iter().find(|memory| memory.device == *device)?;
    let free = memory.limit.saturating_sub(memory.charged) + memory.cached;
    let can_go = |model: &&ModelStatus| {
        let waiting = model.queued_interactive + model.queued_batch;
        model.device == *device && !model.pinned && waiting + model.in_flight == 0 && !loads(model)
    };
    let models = system.pools.iter().flat_map(|pool| pool.all_models());
    let evictable = models.filter(can_go).map(|model| model.bytes.0).sum();
    Some(Room { free: free.0, evictable })
}

fn small(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

impl Measures {
    /// Takes a sample of a model, at equal intervals.
    pub(super) fn sample<C: Capability>(&mut self, model: &Registered<C>, system: &SystemStatus, now: Time) {
        let status = status_of(system, model);
        let bytes = bytes(model, status);
        let workers = workers(status);
        let seen = self.seen.entry(model.key()).or_insert_with(|| Seen::new(workers > 0, now));
        let served = model.entry.take_served(workers);
        seen.unit.add(served);
        seen.failures.add(served, now);
        let is_loading = status.is_some_and(|status| status.loading.is_some() || loads(status));
        let loaded = seen.note(is_loading, workers > 0, now);
        if let (Some(took), Some(bytes)) = (loaded, bytes) {
            self.loads.add(bytes, took);
        }
    }

    /// Forgets models that are not registered any more.
    pub(super) fn keep<C: Capability>(&mut self, models: &[Arc<Registered<C>>]) {
        self.seen.retain(|key, _| models.iter().any(|model| model.key() == *key));
    }

    /// A model as it is now. `guests` are the numbers of its slots that requests of peers hold.
    pub(super) fn own<C: Capability>(
        &self,
        model: &Registered<C>,
        system: &SystemStatus,
        guests: [u32; 2],
        now: Time,
    ) -> Option<Own> {
        let status = status_of(system, model);
        let bytes = bytes(model, status);
        let workers = workers(status);
        let entry = &model.entry;
        let lanes = [Lane::Interactive, Lane::Batch];
        let held = lanes.map(|lane| small(entry.used(lane)));
        let (requests, queue) = entry.work();
        let seen = self.seen.get(&model.key());
        let expected = self.loads.load(bytes);
        let load = seen.map_or(expected, |seen| seen.left(seen.load.unwrap_or(expected), now));
        Some(Own {
            wanted: wanted(model)?,
            workers,
            capacity: lanes.map(|lane| small(entry.capacity(lane))),
            used: [held[0].saturating_sub(guests[0]), held[1].saturating_sub(guests[1])],
            requests,
            queue,
            unit: seen.and_then(|seen| seen.unit.get()),
            load,
            bytes: bytes.map(|bytes| bytes.0),
            room: if workers == 0 { room(system, &model.policy.device) } else { None },
            failed: seen.map_or(0, |seen| seen.failures.get(now)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn served(cost: u64, millis: u64) -> Served {
        Served { cost, busy: Duration::from_millis(millis), ..Served::default() }
    }

    fn at(millis: u64) -> Time {
        Time::after_start(Duration::from_millis(millis))
    }

    #[test]
    fn a_unit_s_time_is_that_of_the_work_whatever_the_samples_and_however_long_a_run() {
        let mut unit = UnitTime::default();
        assert_eq!(unit.get(), None);
        // A minute's run of cost 600, of which nothing is seen before its end.
        (0..240).for_each(|_| unit.add(served(0, 250)));
        assert_eq!(unit.get(), None);
        unit.add(served(600, 0));
        assert_eq!(unit.get(), Some(Duration::from_millis(100)));
        // It has become ten times as fast, and serves twice in a sample.
        (0..240).for_each(|_| unit.add(served(25, 250)));
        let now = unit.get().unwrap_or_default();
        assert!(now > Duration::from_millis(10) && now < Duration::from_millis(11), "{now:?}");
        // An idle hour says nothing.
        unit.add(served(0, 0));
        assert_eq!(unit.get(), Some(now));
    }

    #[test]
    fn the_share_of_failures_is_of_the_latest_requests_and_is_forgotten() {
        let requests = |answered, failed| Served { answered, failed, ..Served::default() };
        let mut failures = Failures::default();
        failures.add(requests(0, 2), at(0));
        assert_eq!(failures.get(at(0)), 0, "two say little");
        failures.add(requests(0, 1), at(250));
        assert_eq!(failures.get(at(500)), 100);
        assert_eq!(failures.get(at(30_250)), 0, "it is tried again");
        failures.add(requests(0, 1), at(31_000));
        assert_eq!(failures.get(at(31_000)), 100, "one more is enough");
        (0..12).for_each(|_| failures.add(requests(1, 0), at(32_000)));
        assert!(failures.get(at(32_000)) < 50, "{}", failures.get(at(32_000)));
        failures.add(requests(10_000, 1), at(33_000));
        assert_eq!(failures.get(at(33_000)), 0, "one of many");
    }

    #[test]
    fn a_load_that_was_not_seen_is_estimated_by_bytes() {
        let mut loads = LoadRate::default();
        assert_eq!(loads.load(None), UNSEEN_LOAD);
        assert_eq!(loads.load(Some(Bytes::mib(1000))), Duration::from_secs(5));
        assert_eq!(loads.load(Some(Bytes(1))), LEAST_LOAD);
        loads.add(Bytes(0), Duration::from_secs(2));
        assert_eq!(loads.load(Some(Bytes::mib(1000))), Duration::from_secs(5), "no bytes tell no rate");
        let mut loads = LoadRate::default();
        loads.add(Bytes::mib(100), Duration::from_secs(2));
        assert_eq!(loads.load(Some(Bytes::mib(200))), Duration::from_secs(4));
    }

    #[test]
    fn a_load_is_timed_from_its_beginning_and_counts_down() {
        let mut seen = Seen::new(false, at(0));
        assert_eq!(seen.note(true, false, at(250)), None);
        assert_eq!(seen.left(Duration::from_secs(3), at(1250)), Duration::from_secs(2));
        assert_eq!(seen.left(Duration::from_secs(3), at(9000)), EXCHANGE, "it is not over");
        assert_eq!(seen.note(false, true, at(2250)), Some(Duration::from_secs(2)));
        assert_eq!(seen.note(false, true, at(2500)), None, "it is over");
        assert_eq!(seen.left(Duration::from_secs(3), at(9000)), Duration::from_secs(3));
        // It goes, and comes back within a sample.
        assert_eq!(seen.note(false, false, at(9750)), None);
        assert_eq!(seen.note(false, true, at(10_000)), Some(Duration::from_millis(250)));
    }

    #[test]
    fn a_load_that_failed_or_was_before_the_first_sample_has_no_time() {
        let mut seen = Seen::new(false, at(0));
        assert_eq!(seen.note(true, false, at(250)), None);
        assert_eq!(seen.note(false, false, at(500)), None);
        assert_eq!(seen.left(Duration::from_secs(3), at(9000)), Duration::from_secs(3), "nothing loads");
        assert_eq!(seen.note(true, false, at(9000)), None);
        assert_eq!(seen.note(false, true, at(9500)), Some(Duration::from_millis(500)));
        let mut served_before = Seen::new(true, at(0));
        assert_eq!(served_before.note(false, true, at(0)), None);
        assert_eq!(served_before.load, None);
    }
}
