//! What the handles of all capabilities keep: the model, and how urgent their requests are.

use std::time::Duration;

use model_actors::{CallOptions, Capability, Lane, ModelHandle, Priority};

/// A model and the settings of the calls to it.
pub(crate) struct Calls<C: Capability> {
    pub(crate) model: ModelHandle<C>,
    priority: Priority,
    timeout: Option<Duration>,
}

impl<C: Capability> Calls<C> {
    pub(crate) fn new(model: ModelHandle<C>) -> Self {
        Self { model, priority: Priority::default(), timeout: None }
    }

    pub(crate) fn priority(self, priority: Priority) -> Self {
        Self { priority, ..self }
    }

    pub(crate) fn timeout(self, timeout: Duration) -> Self {
        Self { timeout: Some(timeout), ..self }
    }

    pub(crate) fn options(&self, lane: Lane) -> CallOptions {
        CallOptions { lane, priority: self.priority, timeout: self.timeout }
    }
}

// Derived, it would ask for `C: Clone`.
impl<C: Capability> Clone for Calls<C> {
    fn clone(&self) -> Self {
        Self { model: self.model.clone(), ..*self }
    }
}
