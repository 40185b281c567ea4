//! Progress counters, which tell a busy worker from a stuck one: a gauge for each worker's run and one for
//! each model's load. The worker's thread writes them, everybody else reads them, and no lock is taken. What
//! follows from a lack of progress is left to the scheduler.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::id::Time;

/// Converts real time to scheduler time. The shell reads a clock nowhere else.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock(Instant);

impl Clock {
    pub(crate) fn start() -> Self {
        Self(Instant::now())
    }

    pub(crate) fn now(self) -> Time {
        Time::after_start(self.0.elapsed())
    }

    /// The moment as a tokio instant, for a timer: at most thirty years from the start, as tokio's own timers panic near
    /// the end of what an instant can hold.
    pub(crate) fn instant(self, time: Time) -> tokio::time::Instant {
        const LONGEST: Duration = Duration::from_secs(30 * 365 * 24 * 3600);
        (self.0 + time.since(Time::ZERO).min(LONGEST)).into()
    }
}

/// Phase of a worker.
///
/// ```
/// assert_eq!(model_actors::WorkerPhase::Stuck.to_string(), "stuck");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum WorkerPhase {
    /// Fetching, reading or building its model, or waiting for room to do so.
    Loading,
    /// Ready, without work.
    Idle,
    /// Running a batch.
    Busy,
    /// Told to stop; its memory is still charged.
    Draining,
    /// Given up after the stall limit passed without progress; its memory is charged until its thread really
    /// ends.
    Stuck,
}

impl std::fmt::Display for WorkerPhase {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Loading => "loading",
            Self::Idle => "idle",
            Self::Busy => "busy",
            Self::Draining => "draining",
            Self::Stuck => "stuck",
        })
    }
}

/// Progress of a worker: the number of its ticks, and the moment of the last.
#[derive(Debug)]
pub(crate) struct Gauge {
    clock: Clock,
    ticks: AtomicU64,
    last_tick_nanos: AtomicU64,
    /// Callbacks of a test, called at each tick of the model.
    #[cfg(feature = "testing")]
    hooks: std::sync::Mutex<Vec<Hook>>,
}

impl Gauge {
    pub(crate) fn new(clock: Clock) -> Arc<Self> {
        let gauge = Self {
            clock,
            ticks: AtomicU64::new(0),
            last_tick_nanos: AtomicU64::new(0),
            #[cfg(feature = "testing")]
            hooks: std::sync::Mutex::default(),
        };
        gauge.tick();
        Arc::new(gauge)
    }

    pub(crate) fn tick(&self) {
        self.ticks.fetch_add(1, Ordering::Relaxed);
        let nanos = self.clock.now().since(Time::ZERO).as_nanos();
        self.last_tick_nanos.store(u64::try_from(nanos).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Counts progress that the model itself reports.
    pub(crate) fn step(&self) {
        self.tick();
        #[cfg(feature = "testing")]
        {
            // Called without the lock: a hook may wait, or panic.
            let hooks = self.hooks.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
            hooks.iter().for_each(|hook| hook.0());
        }
    }

    /// Adds a callback for each tick of the model.
    #[cfg(feature = "testing")]
    pub(crate) fn hook(&self, hook: &Hook) {
        self.hooks.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(hook.clone());
    }

    pub(crate) fn ticks(&self) -> u64 {
        self.ticks.load(Ordering::Relaxed)
    }

    pub(crate) fn last_tick(&self) -> Time {
        Time::after_start(Duration::from_nanos(self.last_tick_nanos.load(Ordering::Relaxed)))
    }
}

/// Callback of a test for each tick of a model's progress, on the worker's thread.
#[cfg(feature = "testing")]
#[derive(Clone)]
pub(crate) struct Hook(pub(crate) Arc<dyn Fn() + Send + Sync>);

#[cfg(feature = "testing")]
impl std::fmt::Debug for Hook {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Hook")
    }
}

/// Stage of a load.
///
/// ```
/// assert_ne!(model_actors::LoadStage::Download, model_actors::LoadStage::Load);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum LoadStage {
    /// Fetching files.
    Download,
    /// Reading weights into memory.
    Load,
    /// A first run, so that the first request is not the slow one.
    WarmUp,
}

/// Progress of a model's load: one for each model, shared by its pool, its clients and its loading thread.
#[derive(Debug, Default)]
pub(crate) struct LoadProgress {
    active: AtomicU8,
    stage: AtomicU8,
    done: AtomicU64,
    total: AtomicU64,
}

impl LoadProgress {
    pub(crate) fn begin(&self, stage: LoadStage, total: u64) {
        self.stage.store(stage as u8, Ordering::Relaxed);
        self.done.store(0, Ordering::Relaxed);
        self.total.store(total, Ordering::Relaxed);
        self.active.store(1, Ordering::Release);
    }

    /// Counts bytes, and returns how many there are by now. A loader need not have begun a stage.
    pub(crate) fn advance(&self, bytes: u64) -> u64 {
        if self.active.load(Ordering::Acquire) == 0 {
            self.begin(LoadStage::Load, 0);
        }
        let add = |done: u64| Some(done.saturating_add(bytes));
        let before = self.done.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
        before.unwrap_or_else(|before| before).saturating_add(bytes)
    }

    pub(crate) fn total(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }

    pub(crate) fn stage(&self) -> LoadStage {
        match self.stage.load(Ordering::Relaxed) {
            0 => LoadStage::Download,
            1 => LoadStage::Load,
            _ => LoadStage::WarmUp,
        }
    }

    /// The stage with its bytes done and in total, while a load is under way.
    #[cfg(unix)]
    pub(crate) fn snapshot(&self) -> Option<(LoadStage, u64, u64)> {
        let is_active = self.active.load(Ordering::Acquire) != 0;
        is_active.then(|| (self.stage(), self.done.load(Ordering::Relaxed), self.total()))
    }

    pub(crate) fn end(&self) {
        self.active.store(0, Ordering::Release);
    }

    /// `Some` while a load is under way: percent of the bytes, where the total is known.
    pub(crate) fn percent(&self) -> Option<Option<u8>> {
        if self.active.load(Ordering::Acquire) == 0 {
            return None;
        }
        let (done, total) = (self.done.load(Ordering::Relaxed), self.total());
        // At most 100, so the cast keeps the value.
        Some((total > 0).then(|| (done.min(total) as u128 * 100 / total as u128) as u8))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_that_is_far_away_is_one_that_timers_take() {
        let (clock, century) = (Clock::start(), Duration::from_secs(100 * 365 * 24 * 3600));
        // Tokio's timers add to it, and an instant has no more seconds than these.
        for seconds in [0, 60, century.as_secs(), i64::MAX as u64 - century.as_secs(), u64::MAX] {
            let at = clock.instant(Time::after_start(Duration::from_secs(seconds)));
            assert!(at.checked_add(century).is_some(), "{seconds} s");
        }
        assert!(clock.instant(Time::after_start(century)) > (Instant::now() + century / 5).into());
    }
}
