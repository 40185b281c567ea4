//! The calls on a model that are no requests: makes inputs of them, and keeps their callers until they are answered
//! or have gone.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::sync::oneshot;

use super::PoolState;
use crate::capability::Capability;
use crate::catalogue::Registered;
use crate::entry::CallPlace;
use crate::error::{Error, Result};
use crate::id::{ModelKey, Time};
use crate::scheduler::{CallId, Input};

/// The caller of a call, and the place that bounds how many wait.
pub(crate) struct Caller {
    pub(crate) done: oneshot::Sender<Result<()>>,
    pub(crate) _place: CallPlace,
}

/// A call on a model that is no request.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Call {
    Preload,
    Unload { deadline: Time },
    Pin { pinned: bool },
}

impl<C: Capability> PoolState<C> {
    pub(super) fn call(&mut self, model: Arc<Registered<C>>, id: CallId, call: Call, caller: Caller) {
        if caller.done.is_closed() {
            return;
        }
        if model.entry.is_removed() && matches!(call, Call::Preload) {
            // Nobody could use it; the caller goes on to the model that replaced it.
            let error = Error::UnknownModel { capability: C::NAME.into(), model: model.id().clone() };
            return drop(caller.done.send(Err(error)));
        }
        self.declare(&model);
        let key = model.key();
        self.publisher.now();
        let input = match call {
            Call::Preload => Input::Preload { key, call: id },
            Call::Unload { deadline } => Input::Unload { key, call: id, deadline },
            Call::Pin { pinned } => {
                model.entry.pinned.store(pinned, Ordering::Relaxed);
                Input::Pin { key, pinned }
            }
        };
        self.inputs.push_back(input);
        match call {
            // It holds for every later message, so it is as good as done.
            Call::Pin { .. } => drop(caller.done.send(Ok(()))),
            Call::Preload | Call::Unload { .. } => drop(self.calls.insert(id, caller)),
        }
    }

    pub(super) fn caller_gone(&mut self, key: ModelKey, call: CallId) {
        if self.calls.remove(&call).is_some() {
            self.inputs.push_back(Input::CallerGone { key, call });
        }
    }
}
