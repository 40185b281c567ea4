//! Stand-ins for the neighbours of the production files, as little as these need: the plain types are the real ones, metrics
//! measure nothing, values are dropped where they are, time stands still, and an actor is a channel.

pub(crate) mod capability {
    pub(crate) use model_actors::{BatchKey, Capability, Cost};
}

pub(crate) mod config {
    pub(crate) use model_actors::{PoolConfig, QueueCapacity, TenantConfig};
}

pub(crate) mod error {
    pub(crate) use model_actors::{Error, RequestPhase, Result};
}

pub(crate) mod id {
    pub(crate) use model_actors::{Lane, ModelId, ModelKey, Priority, RequestId, Tenant, Time};
}

pub(crate) mod progress {
    use model_actors::Time;

    #[derive(Clone, Copy)]
    pub(crate) struct Clock;

    impl Clock {
        pub(crate) fn now(self) -> Time {
            Time::ZERO
        }
    }

    #[derive(Default)]
    pub(crate) struct LoadProgress;

    impl LoadProgress {
        pub(crate) fn percent(&self) -> Option<Option<u8>> {
            None
        }
    }
}

pub(crate) mod reaper {
    use std::ops::Deref;

    pub(crate) struct Reaped<T>(pub(crate) T);

    impl<T> Deref for Reaped<T> {
        type Target = T;
        fn deref(&self) -> &T {
            &self.0
        }
    }

    pub(crate) fn reap<T>(value: T) {
        drop(value);
    }
}

pub(crate) mod wakers {
    use std::task::Waker;

    #[derive(Default)]
    pub(crate) struct CallersWaker;

    impl CallersWaker {
        pub(crate) fn of(&mut self, waker: &Waker) -> Waker {
            waker.clone()
        }
    }
}

pub(crate) mod telemetry {
    use model_actors::{Error, ModelId};

    #[derive(Default)]
    pub(crate) struct Unmeasured;

    impl Unmeasured {
        pub(crate) fn increment(&self, _by: u64) {}
        pub(crate) fn record(&self, _value: f64) {}
    }

    #[derive(Default)]
    pub(crate) struct ModelMetrics {
        pub(crate) requests: Unmeasured,
        pub(crate) succeeded: Unmeasured,
        pub(crate) cancelled: Unmeasured,
        pub(crate) input_tokens: Unmeasured,
        pub(crate) cached_tokens: Unmeasured,
        pub(crate) output_tokens: Unmeasured,
        pub(crate) first_output: Unmeasured,
        pub(crate) between_outputs: Unmeasured,
        pub(crate) request_time: Unmeasured,
    }

    impl ModelMetrics {
        pub(crate) fn new(_capability: &'static str, _model: &ModelId) -> Self {
            Self::default()
        }
        pub(crate) fn set_gauges(&self, _values: [u64; 4]) {}
        pub(crate) fn failed(&self, _error: &Error) {}
    }
}

pub(crate) mod catalogue {
    use std::marker::PhantomData;
    use std::sync::Arc;

    use model_actors::Capability;

    use crate::entry::ModelEntry;
    use crate::telemetry::ModelMetrics;

    pub(crate) struct Registered<C: Capability> {
        pub(crate) entry: Arc<ModelEntry>,
        pub(crate) capability: PhantomData<fn() -> C>,
    }

    impl<C: Capability> Registered<C> {
        pub(crate) fn metrics(&self) -> &ModelMetrics {
            self.entry.metrics()
        }
    }
}

pub(crate) mod pool {
    use std::marker::PhantomData;

    pub(crate) enum PoolMessage<C> {
        Arrivals,
        /// Nothing sends it: it holds the type.
        #[allow(dead_code, reason = "it holds the type")]
        Other(PhantomData<fn() -> C>),
    }
}

pub(crate) mod client {
    use std::sync::Arc;

    use model_actors::{Capability, ModelId};

    use super::catalogue::Registered;
    use crate::client::gate::PoolGate;

    pub(crate) struct Shared<C: Capability> {
        pub(crate) gate: PoolGate<C>,
    }

    pub(crate) struct ModelHandle<C: Capability> {
        pub(crate) shared: Arc<Shared<C>>,
        pub(crate) model: Arc<Registered<C>>,
    }

    impl<C: Capability> ModelHandle<C> {
        pub(crate) fn id(&self) -> &ModelId {
            &self.model.entry.id
        }
    }

    impl<C: Capability> Clone for ModelHandle<C> {
        fn clone(&self) -> Self {
            Self { shared: self.shared.clone(), model: self.model.clone() }
        }
    }
}

/// ractor's reference to an actor, as a channel to it.
pub struct ActorRef<M>(shuttle::sync::mpsc::Sender<M>);

impl<M> Clone for ActorRef<M> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<M> ActorRef<M> {
    pub(crate) fn new(mailbox: shuttle::sync::mpsc::Sender<M>) -> Self {
        Self(mailbox)
    }

    /// Puts a message into the actor's mailbox.
    ///
    /// # Errors
    /// The message, if the actor has ended.
    pub fn send_message(&self, message: M) -> Result<(), M> {
        self.0.send(message).map_err(|refused| refused.0)
    }
}
