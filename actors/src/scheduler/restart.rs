//! The restart budget: a sliding window of failures, a backoff that doubles with each, and the decision to
//! give up. It is OTP's restart intensity with a backoff in front of each restart; used for workers, pools
//! and maintenance.

use std::collections::VecDeque;
use std::time::Duration;

use crate::config::RestartConfig;
use crate::id::Time;

/// The verdict on a failure.
///
/// ```
/// use model_actors::scheduler::Verdict;
/// assert_ne!(Verdict::GiveUp, Verdict::RestartAfter(std::time::Duration::ZERO));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Start again after this wait.
    RestartAfter(Duration),
    /// More failures in the window than the budget allows.
    GiveUp,
}

/// Maximum number of failures that are remembered.
const MOST_KEPT: usize = 1024;

/// One failure in the window.
#[derive(Debug, Clone, Copy)]
struct Failed {
    /// Its number among all.
    number: u64,
    at: Time,
    /// It counts against the budget.
    counts: bool,
}

/// The failures of one thing within the window.
///
/// ```
/// use model_actors::scheduler::{Restarts, Verdict};
/// use model_actors::{RestartConfig, Time};
/// let config = RestartConfig::default().with_max_restarts(1);
/// let mut restarts = Restarts::default();
/// assert!(matches!(restarts.failed(&config, Time::ZERO, 0.5), Verdict::RestartAfter(_)));
/// assert_eq!(restarts.failed(&config, Time::ZERO, 0.5), Verdict::GiveUp);
/// ```
#[derive(Debug, Clone, Default)]
pub struct Restarts {
    recent: VecDeque<Failed>,
    total: u64,
}

impl Restarts {
    /// Counts a failure. `jitter`, 0 to 1, spreads the wait by ±20 %.
    pub fn failed(&mut self, config: &RestartConfig, now: Time, jitter: f64) -> Verdict {
        self.forget_old(config, now);
        self.note(now, true);
        if self.recent() > config.max_restarts {
            return Verdict::GiveUp;
        }
        Verdict::RestartAfter(self.backoff(config, jitter))
    }

    /// Notes a failure that is no evidence against the thing itself, and returns the wait before the next start.
    pub fn excused(&mut self, config: &RestartConfig, now: Time, jitter: f64) -> Duration {
        self.forget_old(config, now);
        self.note(now, false);
        self.backoff(config, jitter)
    }

    /// Counts the failure of this number, which [`Self::total`] was right after it, although it was excused at first;
    /// true if the budget is used up by it.
    pub fn count(&mut self, number: u64, config: &RestartConfig) -> bool {
        let failures = self.recent.iter_mut().filter(|failed| failed.number == number);
        failures.for_each(|failed| failed.counts = true);
        self.recent() > config.max_restarts
    }

    fn note(&mut self, at: Time, counts: bool) {
        self.total += 1;
        self.recent.push_back(Failed { number: self.total, at, counts });
    }

    fn backoff(&self, config: &RestartConfig, jitter: f64) -> Duration {
        let doublings = self.recent().saturating_sub(1);
        let doubled = config.first_backoff.saturating_mul(1_u32.checked_shl(doublings).unwrap_or(u32::MAX));
        let spread = 0.8 + 0.4 * jitter.clamp(0.0, 1.0);
        doubled.min(config.max_backoff).mul_f64(spread)
    }

    /// Failures within the window that count.
    pub fn recent(&self) -> u32 {
        self.recent.iter().filter(|failed| failed.counts).count() as u32
    }

    /// Failures within the window, excused ones included.
    pub fn in_window(&self) -> u32 {
        self.recent.len() as u32
    }

    /// Failures ever.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Starts afresh, after a probe succeeded.
    pub fn reset(&mut self) {
        self.recent.clear();
    }

    fn forget_old(&mut self, config: &RestartConfig, now: Time) {
        while self.recent.front().is_some_and(|failed| now.since(failed.at) >= config.window) {
            self.recent.pop_front();
        }
        // At most one more than the budget is ever kept of those that count, so the window is bounded too.
        while self.recent() > config.max_restarts || self.recent.len() > MOST_KEPT {
            self.recent.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Time {
        Time::after_start(Duration::from_millis(millis))
    }

    #[test]
    fn the_wait_doubles_up_to_its_maximum() {
        let config = RestartConfig { max_restarts: 20, ..RestartConfig::default() };
        let mut restarts = Restarts::default();
        let waits: Vec<u128> = (0..9)
            .map(|_| match restarts.failed(&config, at(0), 0.5) {
                Verdict::RestartAfter(wait) => wait.as_millis(),
                Verdict::GiveUp => 0,
            })
            .collect();
        assert_eq!(waits, [250, 500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000]);
    }

    #[test]
    fn failures_outside_the_window_are_forgotten() {
        let config = RestartConfig { max_restarts: 1, ..RestartConfig::default() };
        let mut restarts = Restarts::default();
        assert!(matches!(restarts.failed(&config, at(0), 0.5), Verdict::RestartAfter(_)));
        assert!(matches!(restarts.failed(&config, at(60_000), 0.5), Verdict::RestartAfter(_)));
        assert_eq!(restarts.failed(&config, at(60_001), 0.5), Verdict::GiveUp);
        assert_eq!(restarts.total(), 3);
    }

    #[test]
    fn a_reset_forgets_failures_but_not_their_number() {
        let config = RestartConfig { max_restarts: 1, ..RestartConfig::default() };
        let mut restarts = Restarts::default();
        restarts.failed(&config, at(0), 0.5);
        restarts.reset();
        assert_eq!((restarts.recent(), restarts.in_window(), restarts.total()), (0, 0, 1));
        assert!(matches!(restarts.failed(&config, at(0), 0.5), Verdict::RestartAfter(_)));
    }

    #[test]
    fn no_more_failures_are_remembered_than_the_limit_and_the_one_at_hand() {
        let config = RestartConfig::default();
        let mut restarts = Restarts::default();
        for _ in 0..2 * MOST_KEPT {
            restarts.excused(&config, at(0), 0.5);
        }
        assert_eq!(restarts.in_window() as usize, MOST_KEPT + 1);
        for _ in 0..10 {
            restarts.failed(&config, at(0), 0.5);
        }
        assert_eq!(
            restarts.recent(),
            config.max_restarts + 1,
            "of those that count no more than the budget and one"
        );
    }

    #[test]
    fn what_is_excused_leaves_the_budget_whole_until_it_is_counted() {
        let config = RestartConfig { max_restarts: 1, ..RestartConfig::default() };
        let mut restarts = Restarts::default();
        for second in 0..10 {
            assert_eq!(restarts.excused(&config, at(second), 0.5), config.first_backoff);
        }
        assert_eq!((restarts.recent(), restarts.in_window(), restarts.total()), (0, 10, 10));
        assert!(!restarts.count(3, &config), "one restart is in the budget");
        assert!(restarts.count(7, &config));
        assert_eq!((restarts.recent(), restarts.in_window()), (2, 10));
    }
}
