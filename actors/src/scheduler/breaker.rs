//! The breaker of one model: closed, open until a moment, half open while one probe decides.

use std::time::Duration;

use crate::error::Cause;
use crate::id::Time;

/// The circuit breaker of a model.
///
/// ```
/// use model_actors::scheduler::{Breaker, Passage};
/// use model_actors::{Cause, Time};
/// use std::time::Duration;
/// let mut breaker = Breaker::default();
/// breaker.open(Time::ZERO + Duration::from_secs(60), Cause::new("crashed"));
/// assert!(matches!(breaker.pass(Time::ZERO), Passage::Refused { .. }));
/// assert!(matches!(breaker.pass(Time::ZERO + Duration::from_secs(60)), Passage::Probe));
/// ```
#[derive(Debug, Clone, Default)]
pub enum Breaker {
    /// All is well.
    #[default]
    Closed,
    /// No worker is started until the moment comes, and without one requests are refused.
    Open {
        /// The moment at which a probe is let through.
        until: Time,
        /// The failure that opened it.
        cause: Cause,
    },
    /// One worker and one request at a time, until one succeeds or fails.
    HalfOpen,
}

/// The breaker's answer to a request.
#[derive(Debug, Clone)]
pub enum Passage {
    /// Go on.
    Free,
    /// Go on, as the probe.
    Probe,
    /// Come back later.
    Refused {
        /// Time until the next probe.
        retry_after: Duration,
        /// The failure that opened the breaker.
        cause: Cause,
    },
}

impl Breaker {
    // ## Closed | HalfOpen => Open
    /// Refuses everything until the moment comes.
    pub fn open(&mut self, until: Time, cause: Cause) {
        *self = Self::Open { until, cause };
    }

    // ## Open => HalfOpen, once its time has passed
    /// Asks for passage.
    pub fn pass(&mut self, now: Time) -> Passage {
        match self {
            Self::Closed => Passage::Free,
            Self::HalfOpen => Passage::Probe,
            Self::Open { until, cause } if now < *until => {
                Passage::Refused { retry_after: until.since(now), cause: cause.clone() }
            }
            Self::Open { .. } => {
                *self = Self::HalfOpen;
                Passage::Probe
            }
        }
    }

    // ## HalfOpen => Closed
    /// The probe succeeded; true if this closed the breaker.
    pub fn succeeded(&mut self) -> bool {
        let closes = self.is_half_open();
        if closes {
            *self = Self::Closed;
        }
        closes
    }

    // ## Open => Closed, once its time has passed and workers serve that it did not stop
    /// Lets further workers be started beside those that serve; true if this closed the breaker.
    pub fn lapse(&mut self, now: Time) -> bool {
        let closes = self.until().is_some_and(|until| until <= now);
        if closes {
            *self = Self::Closed;
        }
        closes
    }

    /// The moment until which nothing is started.
    pub fn until(&self) -> Option<Time> {
        match self {
            Self::Open { until, .. } => Some(*until),
            _ => None,
        }
    }

    /// All is well.
    pub fn is_closed(&self) -> bool {
        matches!(self, Self::Closed)
    }

    /// A probe is being tried.
    pub fn is_half_open(&self) -> bool {
        matches!(self, Self::HalfOpen)
    }

    /// Requests are refused.
    pub fn is_open(&self) -> bool {
        matches!(self, Self::Open { .. })
    }
}
