//! When to open a connection to the address of a peer, purely: at once, again after a backoff, and not while another
//! connection to the same node stands.

use std::time::Duration;

use crate::id::Time;

/// Backoff after the first failure; it doubles with each further one.
const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    // ## Idle => Dialing => (Up => Idle | Idle)
    Idle {
        from: Time,
    },
    /// By then it is up or has failed; otherwise nobody tells.
    Dialing {
        until: Time,
    },
    Up,
}

/// The connection to one address.
#[derive(Debug)]
pub(super) struct Dial {
    pub(super) address: String,
    state: State,
    failures: u32,
    /// The node that was found there.
    pub(super) node: Option<String>,
}

impl Dial {
    pub(super) fn new(address: String) -> Self {
        Self { address, state: State::Idle { from: Time::ZERO }, failures: 0, node: None }
    }

    /// Whether to connect now. `is_connected` tells of a node whether a connection to it stands.
    pub(super) fn is_due(&self, now: Time, is_connected: impl Fn(&str) -> bool) -> bool {
        let is_time = match self.state {
            State::Idle { from: time } | State::Dialing { until: time } => now >= time,
            State::Up => false,
        };
        is_time && !self.node.as_deref().is_some_and(is_connected)
    }

    pub(super) fn dials(&mut self, now: Time) {
        self.state = State::Dialing { until: now + LONGEST * 4 };
    }

    pub(super) fn is_up(&mut self) {
        (self.state, self.failures) = (State::Up, 0);
    }

    /// There is no connection, or none any more. `random` is from 0 to 1 and spreads those who come back.
    pub(super) fn is_down(&mut self, now: Time, random: f64) {
        let backoff = FIRST.saturating_mul(1 << self.failures.min(16)).min(LONGEST);
        self.failures = self.failures.saturating_add(1);
        self.state = State::Idle { from: now + backoff.mul_f64(0.5 + random.clamp(0.0, 1.0) / 2.0) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_backoff_doubles_up_to_its_limit_and_ends_with_a_connection() {
        let (mut dial, mut now) = (Dial::new("a:1".to_owned()), Time::ZERO);
        let mut waits = Vec::new();
        for _ in 0..8 {
            assert!(dial.is_due(now, |_| false));
            dial.dials(now);
            assert!(!dial.is_due(now + LONGEST, |_| false));
            dial.is_down(now, 1.0);
            let mut wait = Duration::ZERO;
            while !dial.is_due(now + wait, |_| false) {
                wait += Duration::from_millis(100);
            }
            waits.push(wait.as_millis());
            now = now + wait;
        }
        assert_eq!(waits, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        dial.is_up();
        dial.is_down(now, 0.0);
        assert!(!dial.is_due(now, |_| false) && dial.is_due(now + FIRST, |_| false));
    }

    #[test]
    fn a_node_that_is_connected_is_not_dialled() {
        let mut dial = Dial::new("a:1".to_owned());
        dial.node = Some("right".to_owned());
        assert!(!dial.is_due(Time::ZERO, |node| node == "right"));
        assert!(dial.is_due(Time::ZERO, |node| node == "left"));
    }
}
