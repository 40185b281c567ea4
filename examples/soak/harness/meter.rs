//! Measurements from outside: the process's threads and descriptors, and the library's own metrics, through
//! the `metrics` facade like any application.

use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use candle_actors::model_actors::telemetry::metric;
use metrics_util::debugging::{DebugValue, DebuggingRecorder, Snapshotter};
use serde::Serialize;

/// Resources in use at one moment. Threads and descriptors are known where `/proc` is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Reading {
    /// Slots that requests hold, in all queues.
    pub(crate) slots: usize,
    /// Bytes charged.
    pub(crate) bytes: u64,
    /// Models and weights in memory.
    pub(crate) models: usize,
    /// Threads of this process.
    pub(crate) threads: Option<usize>,
    /// Open file descriptors of this process.
    pub(crate) descriptors: Option<usize>,
}

impl Reading {
    /// With no system there are no slots, bytes or models.
    pub(crate) fn of_process() -> Self {
        let entries = |path: &str| Some(std::fs::read_dir(path).ok()?.count());
        Self { threads: entries("/proc/self/task"), descriptors: entries("/proc/self/fd"), ..Self::default() }
    }

    /// Waits until no more is in use than before, or the time is up.
    pub(crate) fn settled(before: &Self, limit: Duration) -> Self {
        let began = Instant::now();
        loop {
            let now = Self::of_process();
            let settled = now.threads <= before.threads && now.descriptors <= before.descriptors;
            if settled || began.elapsed() > limit {
                return now;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Counts of the metrics over all pools and models.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(crate) struct MetricCounts {
    /// Requests begun.
    pub(crate) requests: u64,
    /// Requests that succeeded.
    pub(crate) succeeded: u64,
    /// Requests that were cancelled.
    pub(crate) cancelled: u64,
    /// Errors by reason.
    pub(crate) errors: BTreeMap<String, u64>,
    /// Requests that ran out of time.
    pub(crate) timeouts: u64,
    /// Requests that found the queue full.
    pub(crate) queue_full: u64,
}

/// The recorder, of which a process has one.
pub(crate) struct Metrics(Snapshotter);

impl Metrics {
    /// Installs the recorder, the first time.
    ///
    /// # Errors
    /// If something else was installed before.
    pub(crate) fn install() -> Result<Self, Box<dyn std::error::Error>> {
        static SNAPSHOTTER: OnceLock<Snapshotter> = OnceLock::new();
        if let Some(snapshotter) = SNAPSHOTTER.get() {
            return Ok(Self(snapshotter.clone()));
        }
        let recorder = DebuggingRecorder::new();
        let snapshotter = recorder.snapshotter();
        recorder.install()?;
        Ok(Self(SNAPSHOTTER.get_or_init(|| snapshotter).clone()))
    }

    /// Forgets what was counted so far.
    pub(crate) fn reset(&self) {
        // A snapshot takes the values out.
        let _ = self.0.snapshot();
    }

    /// Counts since the last call.
    pub(crate) fn counts(&self) -> MetricCounts {
        let mut counts = MetricCounts::default();
        for (key, _, _, value) in self.0.snapshot().into_vec() {
            let DebugValue::Counter(value) = value else { continue };
            let key = key.key();
            match key.name() {
                metric::REQUESTS => counts.requests += value,
                metric::SUCCEEDED => counts.succeeded += value,
                metric::CANCELLED => counts.cancelled += value,
                metric::TIMEOUTS => counts.timeouts += value,
                metric::QUEUE_FULL => counts.queue_full += value,
                metric::ERRORS if value > 0 => {
                    let reason = key.labels().find(|label| label.key() == "reason");
                    let reason = reason.map_or("none", metrics::Label::value);
                    *counts.errors.entry(reason.to_owned()).or_default() += value;
                }
                _ => {}
            }
        }
        counts
    }
}
