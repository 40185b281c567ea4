//! State that all endpoints share: the engine, and the settings of the server.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use candle_actors::Engine;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::sync::Semaphore;

/// Bytes of a request's body, unless set.
const BODY_BYTES: usize = 16 << 20;
/// Connections at a time, unless set.
const CONNECTIONS: usize = 256;
/// Masks that are decoded at a time; further ones wait.
const MASKS: usize = 2;

/// An engine with the settings under which it is served.
pub struct Server {
    pub(crate) engine: Engine,
    pub(crate) key: Option<String>,
    pub(crate) body_bytes: usize,
    pub(crate) connections: usize,
    pub(crate) timeout: Option<Duration>,
    pub(crate) metrics: Option<PrometheusHandle>,
    /// Places of masks that are decoded.
    pub(crate) masks: Arc<Semaphore>,
    /// Seconds since 1970 at which the server was made; its answers are told apart by it, and by their number.
    pub(crate) started: u64,
    answers: AtomicU64,
}

impl Server {
    /// Serves the models that the engine has, and gets: to everybody who can connect, with bodies of up to 16 MiB, over
    /// 256 connections.
    pub fn new(engine: Engine) -> Self {
        Self {
            engine,
            key: None,
            body_bytes: BODY_BYTES,
            connections: CONNECTIONS,
            timeout: None,
            metrics: None,
            masks: Arc::new(Semaphore::new(MASKS)),
            started: seconds(),
            answers: AtomicU64::new(0),
        }
    }

    /// Key that clients have to send as `Authorization: Bearer KEY`.
    #[must_use]
    pub fn with_key(self, key: impl Into<Option<String>>) -> Self {
        Self { key: key.into(), ..self }
    }

    /// Maximum number of bytes of a request's body.
    #[must_use]
    pub fn with_body_bytes(self, body_bytes: usize) -> Self {
        Self { body_bytes, ..self }
    }

    /// Maximum number of connections at a time; further ones wait to be accepted.
    #[must_use]
    pub fn with_connections(self, connections: usize) -> Self {
        Self { connections, ..self }
    }

    /// Time that a request has up to its first output, in place of the models' own.
    #[must_use]
    pub fn with_timeout(self, timeout: impl Into<Option<Duration>>) -> Self {
        Self { timeout: timeout.into(), ..self }
    }

    /// Metrics that `/metrics` shows.
    #[must_use]
    pub fn with_metrics(self, metrics: PrometheusHandle) -> Self {
        Self { metrics: Some(metrics), ..self }
    }

    /// An id that no other answer has.
    pub(crate) fn next_id(&self, prefix: &str) -> String {
        let number = self.answers.fetch_add(1, Ordering::Relaxed);
        format!("{prefix}-{:x}-{number:x}", self.started)
    }
}

impl fmt::Debug for Server {
    /// Without the key.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Server").field("engine", &self.engine).finish_non_exhaustive()
    }
}

/// Seconds since 1970.
pub(crate) fn seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
