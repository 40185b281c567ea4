//! Names of metrics, spans and events, and the event stream itself. Deciding when to record something is left to
//! the actors.

use tokio::sync::broadcast;

use crate::wakers::quietly;

mod event;
mod log;
pub mod metric;
mod model_metrics;

pub use event::{Event, EvictionReason};
pub(crate) use model_metrics::ModelMetrics;

/// Names of spans. Each has the fields `capability` and `model`.
pub mod span {
    /// A request from its check to its reply, in the caller's task; the field `request` is its number. As they become
    /// known, the fields `queue_wait_seconds`, `input_tokens`, `cached_tokens` and `output_tokens` are those of its
    /// metrics, and `error` is the reason of its failure, or `cancelled`.
    pub const REQUEST: &str = "model_request";
    /// A load, on the worker's thread. It follows from the requests that wait for it, 16 of them at most.
    pub const LOAD: &str = "model_load";
    /// A run of a batch, on the worker's thread. It follows from its requests.
    pub const RUN: &str = "model_run";
}

/// Sender of events. Sending costs nothing while nobody listens.
#[derive(Debug, Clone)]
pub(crate) struct Events(broadcast::Sender<Event>);

impl Events {
    pub(crate) fn new(capacity: usize) -> Self {
        Self(broadcast::Sender::new(capacity))
    }

    pub(crate) fn subscribe(&self) -> broadcast::Receiver<Event> {
        self.0.subscribe()
    }

    /// Reports a change of the tree: to the log, the metrics and the subscribers.
    pub(crate) fn report(&self, event: Event) {
        log::write(&event);
        model_metrics::count(&event);
        self.send(|| event);
    }

    pub(crate) fn is_heard(&self) -> bool {
        self.0.receiver_count() > 0
    }

    /// Tells the subscribers alone, of what happens too often for a log.
    pub(crate) fn send(&self, event: impl FnOnce() -> Event) {
        if self.is_heard() {
            // An error says that the last listener left just now.
            quietly(|| drop(self.0.send(event())));
        }
    }
}
