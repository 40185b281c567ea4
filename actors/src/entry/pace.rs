//! The pace at which slots of a lane come back, as an estimate for callers who are refused one.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::id::Time;

/// The estimate while no slot has come back yet.
const UNKNOWN: Duration = Duration::from_secs(1);
/// Bounds of the estimate: sooner would be a busy loop of callers, later would lose them.
const SOONEST: Duration = Duration::from_millis(50);
const LATEST: Duration = Duration::from_secs(60);

/// Smoothed time between two slots that come back while the lane is in use. Threads update it without a lock;
/// where two do so at once, one value may be lost, which an estimate can bear.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// Nanoseconds from the system's start to the last slot that came back, or to the first one taken since.
    last: AtomicU64,
    /// Smoothed nanoseconds between two; 0 while unknown.
    interval: AtomicU64,
}

impl Pace {
    /// The first slot of an unused lane is taken: the time before does not count.
    pub(super) fn begin(&self, now: Time) {
        self.last.store(nanos(now), Ordering::Relaxed);
    }

    /// A slot comes back.
    pub(super) fn returned(&self, now: Time) {
        let now = nanos(now);
        let interval = now.saturating_sub(self.last.swap(now, Ordering::Relaxed));
        let smoothed = match self.interval.load(Ordering::Relaxed) {
            0 => interval,
            before => before / 4 * 3 + interval / 4,
        };
        self.interval.store(smoothed.max(1), Ordering::Relaxed);
    }

    /// Estimated time until a slot of a full lane comes back: the usual time, or longer if the last one is
    /// longer ago.
    pub(super) fn retry_after(&self, now: Time) -> Duration {
        let estimate = match self.interval.load(Ordering::Relaxed) {
            0 => UNKNOWN,
            usual => {
                let since = nanos(now).saturating_sub(self.last.load(Ordering::Relaxed));
                Duration::from_nanos(usual.max(since))
            }
        };
        estimate.clamp(SOONEST, LATEST)
    }
}

fn nanos(time: Time) -> u64 {
    u64::try_from(time.since(Time::ZERO).as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Time {
        Time::after_start(Duration::from_millis(millis))
    }

    #[test]
    fn without_history_a_second_is_assumed() {
        let pace = Pace::default();
        pace.begin(at(0));
        assert_eq!(pace.retry_after(at(5000)), UNKNOWN);
    }

    #[test]
    fn the_estimate_follows_the_slots_that_come_back_and_not_the_time_without_requests() {
        let pace = Pace::default();
        pace.begin(at(0));
        for millis in [200, 400, 600] {
            pace.returned(at(millis));
        }
        assert_eq!(pace.retry_after(at(700)), Duration::from_millis(200));
        // An hour later the lane is used again.
        pace.begin(at(3_600_000));
        assert_eq!(pace.retry_after(at(3_600_100)), Duration::from_millis(200));
        // It has become four times slower.
        for step in 1..=20 {
            pace.returned(at(3_600_000 + 800 * step));
        }
        let slower = pace.retry_after(at(3_616_000));
        assert!(slower > Duration::from_millis(700) && slower <= Duration::from_millis(800), "{slower:?}");
    }

    #[test]
    fn the_estimate_grows_while_nothing_comes_back_and_stays_within_its_bounds() {
        let pace = Pace::default();
        pace.begin(at(0));
        pace.returned(at(1));
        assert_eq!(pace.retry_after(at(1)), SOONEST);
        assert_eq!(pace.retry_after(at(5001)), Duration::from_secs(5));
        assert_eq!(pace.retry_after(at(1_000_000)), LATEST);
    }
}
