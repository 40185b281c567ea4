//! The log line of each event: what happened to which model and worker, why, and what follows. Losses are errors,
//! what the system mends by itself is a warning, and what was asked for is information.

use tracing::{debug, error, info, warn};

use super::event::{Event, EvictionReason};

/// Writes the event's line.
pub(super) fn write(event: &Event) {
    match event {
        Event::WorkerCrashed { capability, model, worker, error, .. } => error!(
            capability, %model, %worker, cause = %error,
            "a worker crashed; what it ran is run again or answered, and a replacement starts"
        ),
        Event::WorkerStuck { capability, model, worker, stalled, .. } => error!(
            capability, %model, %worker, ?stalled,
            "a worker made no progress and was quarantined; its memory stays charged until its thread ends"
        ),
        Event::StartFailed { capability, model, worker, error, .. } => error!(
            capability, %model, %worker, cause = %error,
            "a worker could not be started; it is tried again unless it would fail the same way"
        ),
        Event::WorkerRestarted { capability, model, worker, failures, .. } => warn!(
            capability, %model, %worker, failures,
            "a replacement starts"
        ),
        Event::BreakerOpened { capability, model, retry_after, error, .. } => error!(
            capability, %model, ?retry_after, cause = %error,
            "a model failed too often; its requests are refused until a probe succeeds"
        ),
        Event::BreakerClosed { capability, model, .. } => {
            warn!(capability, %model, "the breaker closed; the model takes requests again");
        }
        Event::RequestsRerun { capability, model, worker, requests, cause, .. } => warn!(
            capability, %model, %worker, ?requests, %cause,
            "requests are run again"
        ),
        Event::PoisonFound { capability, model, request, error, .. } => error!(
            capability, %model, %request, cause = %error,
            "workers died running this request; it is answered with an error and not run again"
        ),
        Event::OutOfMemory { capability, model, worker, requests, cause, .. } => error!(
            capability, %model, %worker, requests, %cause,
            "a run went out of memory; smaller batches follow, and idle models make room"
        ),
        Event::BatchShrunk { capability, model, requests, .. } => warn!(
            capability, %model, requests,
            "batches of this model have at most so many requests from now on"
        ),
        Event::WorkerEvicted { capability, model, worker, reason, .. } => match reason {
            EvictionReason::MakeRoom | EvictionReason::Pressure => warn!(
                capability, %model, %worker, reason = reason.name(),
                "a worker was evicted; the next request loads its model again"
            ),
            _ => info!(capability, %model, %worker, reason = reason.name(), "a worker was told to go"),
        },
        Event::Pressure { device, level } => warn!(%device, ?level, "the level of memory pressure changed"),
        Event::PoolRestarted { capability } => {
            error!(
                capability,
                "a pool failed and was started again; its requests were answered with an error"
            );
        }
        Event::WorkerStarted { capability, model, worker, .. } => {
            info!(capability, %model, %worker, "a worker is ready")
        }
        Event::WorkerEnded { capability, model, worker, .. } => {
            debug!(capability, %model, %worker, "a worker has ended")
        }
        Event::SystemFailed { error } => error!(
            cause = %error,
            "the system failed for good; every request is answered with an error until another is started"
        ),
        Event::ShuttingDown => info!("the system shuts down and takes no new requests"),
        Event::Loading { .. } | Event::Queued { .. } => {}
    }
}
