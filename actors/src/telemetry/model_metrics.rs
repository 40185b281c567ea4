//! Metrics of one model, and the counters of what happened in the tree.

use metrics::Label;

use super::event::{Event, EvictionReason};
use super::metric;
use crate::error::Error;
use crate::id::ModelId;

/// Metrics of one model that every request touches, looked up once.
pub(crate) struct ModelMetrics {
    capability: &'static str,
    model: metrics::SharedString,
    pub(crate) requests: metrics::Counter,
    pub(crate) succeeded: metrics::Counter,
    pub(crate) cancelled: metrics::Counter,
    pub(crate) input_tokens: metrics::Counter,
    pub(crate) cached_tokens: metrics::Counter,
    pub(crate) output_tokens: metrics::Counter,
    pub(crate) queue_wait: metrics::Histogram,
    pub(crate) first_output: metrics::Histogram,
    pub(crate) between_outputs: metrics::Histogram,
    pub(crate) request_time: metrics::Histogram,
    pub(crate) run_time: metrics::Histogram,
    pub(crate) load_time: metrics::Histogram,
    pub(crate) batch_size: metrics::Histogram,
    pub(crate) backpressure_wait: metrics::Histogram,
    queue_depth: metrics::Gauge,
    workers: metrics::Gauge,
    stuck_threads: metrics::Gauge,
    breaker_state: metrics::Gauge,
    pub(crate) spawned: metrics::Counter,
}

impl ModelMetrics {
    pub(crate) fn new(capability: &'static str, model: &ModelId) -> Self {
        let model = metrics::SharedString::from_shared(model.shared());
        let labels = [Label::from_static_parts("capability", capability), Label::new("model", model.clone())];
        Self {
            requests: metrics::counter!(metric::REQUESTS, labels.iter()),
            succeeded: metrics::counter!(metric::SUCCEEDED, labels.iter()),
            cancelled: metrics::counter!(metric::CANCELLED, labels.iter()),
            input_tokens: metrics::counter!(metric::INPUT_TOKENS, labels.iter()),
            cached_tokens: metrics::counter!(metric::CACHED_TOKENS, labels.iter()),
            output_tokens: metrics::counter!(metric::OUTPUT_TOKENS, labels.iter()),
            queue_wait: metrics::histogram!(metric::QUEUE_WAIT, labels.iter()),
            first_output: metrics::histogram!(metric::TIME_TO_FIRST_OUTPUT, labels.iter()),
            between_outputs: metrics::histogram!(metric::TIME_BETWEEN_OUTPUTS, labels.iter()),
            request_time: metrics::histogram!(metric::REQUEST_TIME, labels.iter()),
            run_time: metrics::histogram!(metric::RUN_TIME, labels.iter()),
            load_time: metrics::histogram!(metric::LOAD_TIME, labels.iter()),
            batch_size: metrics::histogram!(metric::BATCH_SIZE, labels.iter()),
            backpressure_wait: metrics::histogram!(metric::BACKPRESSURE_WAIT, labels.iter()),
            queue_depth: metrics::gauge!(metric::QUEUE_DEPTH, labels.iter()),
            workers: metrics::gauge!(metric::WORKERS, labels.iter()),
            stuck_threads: metrics::gauge!(metric::STUCK_THREADS, labels.iter()),
            breaker_state: metrics::gauge!(metric::BREAKER_STATE, labels.iter()),
            spawned: metrics::counter!(metric::WORKERS_SPAWNED, labels.iter()),
            capability,
            model,
        }
    }

    pub(crate) fn failed(&self, error: &Error) {
        self.count(metric::ERRORS, "reason", error.reason());
        match error {
            Error::Timeout { phase, .. } => self.count(metric::TIMEOUTS, "phase", phase.name()),
            Error::Overloaded { lane, .. } => self.count(metric::QUEUE_FULL, "lane", lane.name()),
            _ => {}
        }
    }

    /// Sets the gauges: waiting requests, loaded workers, stuck threads, and the breaker's state as a number.
    pub(crate) fn set_gauges(&self, [waiting, workers, stuck, breaker]: [usize; 4]) {
        self.queue_depth.set(waiting as f64);
        self.workers.set(workers as f64);
        self.stuck_threads.set(stuck as f64);
        self.breaker_state.set(breaker as f64);
    }

    fn count(&self, name: &'static str, label: &'static str, value: &'static str) {
        let model = self.model.clone();
        metrics::counter!(name, "capability" => self.capability, "model" => model, label => value)
            .increment(1);
    }
}

/// Counts what happened, where a metric does.
pub(super) fn count(event: &Event) {
    match event {
        Event::StartFailed { capability, model, .. } => add(metric::START_FAILURES, capability, model, 1),
        Event::WorkerCrashed { capability, model, .. } => add(metric::CRASHES, capability, model, 1),
        Event::WorkerRestarted { capability, model, .. } => add(metric::RESTARTS, capability, model, 1),
        Event::WorkerStuck { capability, model, .. } => add(metric::STALLS, capability, model, 1),
        Event::BreakerOpened { capability, model, .. } => add(metric::BREAKER_OPENED, capability, model, 1),
        Event::OutOfMemory { capability, model, .. } => add(metric::OUT_OF_MEMORY, capability, model, 1),
        Event::PoisonFound { capability, model, .. } => add(metric::POISON, capability, model, 1),
        Event::RequestsRerun { capability, model, requests, .. } => {
            add(metric::RERUNS, capability, model, requests.len() as u64);
        }
        Event::WorkerEvicted { capability, model, reason, .. } => evicted(capability, model, *reason),
        Event::PoolRestarted { capability } => {
            metrics::counter!(metric::POOL_RESTARTS, "capability" => *capability).increment(1);
        }
        Event::SystemFailed { .. } => metrics::counter!(metric::SYSTEM_FAILURES).increment(1),
        Event::Loading { .. }
        | Event::Queued { .. }
        | Event::WorkerStarted { .. }
        | Event::WorkerEnded { .. }
        | Event::BreakerClosed { .. }
        | Event::BatchShrunk { .. }
        | Event::Pressure { .. }
        | Event::ShuttingDown => {}
    }
}

fn add(name: &'static str, capability: &'static str, model: &ModelId, count: u64) {
    let model = metrics::SharedString::from_shared(model.shared());
    metrics::counter!(name, "capability" => capability, "model" => model).increment(count);
}

fn evicted(capability: &'static str, model: &ModelId, reason: EvictionReason) {
    let (model, reason) = (metrics::SharedString::from_shared(model.shared()), reason.name());
    metrics::counter!(metric::WORKERS_EVICTED, "capability" => capability, "model" => model, "reason" => reason)
        .increment(1);
}
