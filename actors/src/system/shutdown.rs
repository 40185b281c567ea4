//! The two ways in which a system ends by itself: it drains once it is stopped, and it fails for good. In both its
//! children have ended, and left their names, before its state tells of the end. Deciding that it fails is left to the
//! restart budget.

use std::time::{Duration, Instant};

use ractor::ActorRef;
use tokio::sync::oneshot;

use super::child::PoolChild;
use super::{SystemActorState, SystemMessage};
use crate::children::end_children;
use crate::error::{Cause, Error};
use crate::maintenance::PoolCommand;
use crate::status::{ShutdownReport, SystemState};
use crate::telemetry::Event;

/// Time beyond the shutdown timeout in which the pools report, and as much again in which the children end.
const MARGIN: Duration = Duration::from_millis(250);

impl SystemActorState {
    fn reset_gauges(&self) {
        self.pools.iter().for_each(PoolChild::reset_gauges);
    }

    /// The system ends here for good, as its restart budget is spent.
    pub(super) async fn fail(
        &self,
        myself: &ActorRef<SystemMessage>,
        error: &(dyn std::error::Error + Send + Sync),
    ) {
        let error = Error::SystemFailed { cause: Cause::of(error) };
        self.refuse(&error);
        end_children(myself, MARGIN).await;
        self.reset_gauges();
        self.close(SystemState::Failed, &error);
        self.common.events.report(Event::SystemFailed { error });
    }

    /// Gives what was accepted its time, then reports.
    pub(super) async fn drain(&mut self, myself: &ActorRef<SystemMessage>) {
        #[cfg(feature = "cluster")]
        self.take_leave();
        self.close(SystemState::ShuttingDown, &Error::ShuttingDown);
        self.common.events.report(Event::ShuttingDown);
        let timeout = self.common.config.shutdown_timeout;
        let deadline = self.common.clock.now() + timeout;
        let send = |pool: &PoolChild| {
            let (done, drained) = oneshot::channel();
            pool.commands()?.send_message(PoolCommand::Shutdown { deadline, done }).ok().map(|()| drained)
        };
        let drained: Vec<_> = self.pools.iter().map(send).collect();
        let began = Instant::now();
        // A little longer than the pools themselves wait for their workers.
        let end = tokio::time::Instant::now() + timeout + MARGIN;
        let mut report = ShutdownReport::default();
        for (pool, drained) in self.pools.iter().zip(drained) {
            let drained = match drained {
                Some(drained) => tokio::time::timeout_at(end, drained).await.ok().and_then(Result::ok),
                None => None,
            };
            match drained {
                Some(drained) => report.abandoned_requests += drained.abandoned,
                // A pool that is down waits for no thread. One that does not end is in the report.
                None => drop(tokio::time::timeout_at(end, pool.threads_ended()).await),
            }
        }
        for pool in &self.pools {
            // Those that hang are in the report.
            let _ = tokio::time::timeout_at(end, pool.requests_dropped()).await;
        }
        report.unfinished_threads = self.pools.iter().flat_map(PoolChild::threads).collect();
        report.remaining = self.common.charged();
        #[cfg(feature = "cluster")]
        self.see_guests_off().await;
        end_children(myself, MARGIN).await;
        self.reset_gauges();
        report.took = began.elapsed();
        self.common.report.get_or_init(|| report);
        self.publish(|status| status.state = SystemState::Stopped);
    }
}
