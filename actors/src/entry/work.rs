//! The work of a model in the pool of this node, in the cost of its requests: how much is there, and how long its workers took
//! for what they have served, or failed. A request that another node runs is no work here. It is measured for a cluster alone, whose
//! nodes tell each other of it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::ModelEntry;
use crate::capability::Cost;
use crate::id::Time;

/// Work that was served within some time of the model's workers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Served {
    /// Cost of the requests that a run was done with.
    pub(crate) cost: u64,
    /// Time that all of the model's workers would have needed, had they all been busy: an hour in which one of two was
    /// busy is half an hour.
    pub(crate) busy: Duration,
    /// Number of the requests that were served, and of those that the model failed.
    pub(crate) answered: u32,
    pub(crate) failed: u32,
}

/// The way in which the pool of this node lets go of a request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum End {
    /// Without a run that was done with it.
    #[default]
    Unserved,
    Served,
    Failed,
}

/// Counts the work of a model, purely.
#[derive(Debug, Default)]
struct Meter {
    requests: u32,
    cost: u64,
    workers: u32,
    served: Served,
    since: Time,
}

impl Meter {
    /// Adds the time up to now.
    fn advance(&mut self, now: Time) {
        let time = now.since(self.since);
        self.since = self.since.max(now);
        let busy = self.requests.min(self.workers);
        // Requests that wait for a load take no worker's time.
        if busy > 0 {
            self.served.busy += time.saturating_mul(busy) / self.workers;
        }
    }

    fn begin(&mut self, cost: u64, now: Time) {
        self.advance(now);
        self.requests = self.requests.saturating_add(1);
        self.cost = self.cost.saturating_add(cost);
    }

    fn end(&mut self, cost: u64, end: End, now: Time) {
        self.advance(now);
        self.requests = self.requests.saturating_sub(1);
        self.cost = self.cost.saturating_sub(cost);
        match end {
            End::Unserved => {}
            End::Served => {
                self.served.cost = self.served.cost.saturating_add(cost);
                self.served.answered = self.served.answered.saturating_add(1);
            }
            End::Failed => self.served.failed = self.served.failed.saturating_add(1),
        }
    }

    /// Sets the number of workers that serve, and returns what was served since the last time. When the first have come,
    /// that is no work: from when on they served is not known.
    fn take(&mut self, workers: u32, now: Time) -> Served {
        self.advance(now);
        let before = std::mem::replace(&mut self.workers, workers);
        let served = std::mem::take(&mut self.served);
        let Served { answered, failed, .. } = served;
        if before == 0 { Served { answered, failed, ..Served::default() } } else { served }
    }
}

/// The work of a model, as its threads count it.
#[derive(Debug, Default)]
pub(super) struct WorkMeter(Mutex<Meter>);

impl WorkMeter {
    fn lock(&self) -> MutexGuard<'_, Meter> {
        // Sums alone happen under this lock, so its poison means nothing.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ModelEntry {
    /// Number and cost of the requests that wait or run in the pool of this node.
    pub(crate) fn work(&self) -> (u32, u64) {
        let meter = self.work.lock();
        (meter.requests, meter.cost)
    }

    /// The work that was served since the last question, of which there is one asker, who says how many workers serve now.
    pub(crate) fn take_served(&self, workers: u32) -> Served {
        self.work.lock().take(workers, self.clock.now())
    }
}

/// The work of one request, from when the pool of this node is given it until it lets go of it.
pub(super) struct Work {
    entry: Arc<ModelEntry>,
    cost: u64,
    end: End,
}

impl Work {
    /// A request that costs nothing counts as 1, as it takes a place.
    pub(super) fn begin(entry: &Arc<ModelEntry>, cost: Cost) -> Self {
        let cost = cost.0.max(1);
        entry.work.lock().begin(cost, entry.clock.now());
        Self { entry: entry.clone(), cost, end: End::default() }
    }

    /// A run is done with it.
    pub(super) fn serve(&mut self) {
        self.end = End::Served;
    }

    /// The model has failed it.
    pub(super) fn fail(&mut self) {
        self.end = End::Failed;
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        self.entry.work.lock().end(self.cost, self.end, self.entry.clock.now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Time {
        Time::after_start(Duration::from_millis(millis))
    }

    fn served(answered: u32, cost: u64, millis: u64) -> Served {
        Served { cost, busy: Duration::from_millis(millis), answered, failed: 0 }
    }

    #[test]
    fn time_counts_by_the_part_of_the_workers_that_is_busy() {
        let mut meter = Meter::default();
        meter.take(2, at(0));
        meter.begin(10, at(1000));
        meter.end(10, End::Served, at(1400));
        assert_eq!(meter.take(2, at(5000)), served(1, 10, 200), "one of two, and idle before and after");
        for _ in 0..5 {
            meter.begin(4, at(5000));
        }
        assert_eq!((meter.requests, meter.cost), (5, 20));
        meter.end(4, End::Served, at(5100));
        assert_eq!(meter.take(2, at(5300)), served(1, 4, 300), "both, whatever waits");
    }

    #[test]
    fn what_no_run_was_done_with_is_not_served() {
        let mut meter = Meter::default();
        meter.take(1, at(0));
        meter.begin(10, at(0));
        meter.begin(7, at(0));
        meter.end(10, End::Unserved, at(100));
        meter.end(7, End::Served, at(100));
        assert_eq!(meter.take(1, at(100)), served(1, 7, 100));
        assert_eq!((meter.requests, meter.cost), (0, 0));
    }

    #[test]
    fn a_load_is_no_worker_s_time() {
        let mut meter = Meter::default();
        meter.begin(10, at(0));
        assert_eq!(meter.take(0, at(1000)), served(0, 0, 0));
        meter.begin(10, at(1000));
        meter.end(10, End::Served, at(2000));
        assert_eq!(meter.take(1, at(2100)), served(1, 0, 0), "from when on a worker served is not known");
        meter.end(10, End::Served, at(2300));
        assert_eq!(meter.take(1, at(2300)), served(1, 10, 200));
    }

    #[test]
    fn what_a_model_fails_takes_time_and_is_no_work_done() {
        let mut meter = Meter::default();
        meter.take(1, at(0));
        meter.begin(10, at(0));
        meter.end(10, End::Failed, at(100));
        assert_eq!(meter.take(1, at(100)), Served { failed: 1, ..served(0, 0, 100) });
        meter.begin(10, at(100));
        meter.end(10, End::Failed, at(100));
        assert_eq!(meter.take(0, at(100)).failed, 1, "it fails without workers too");
    }
}
