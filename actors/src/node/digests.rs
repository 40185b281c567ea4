//! Digests of models that were registered without one, and sizes of models that were never loaded: their loaders are asked for
//! them, on a thread that may wait for disks, one model after another.

use std::collections::{HashMap, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::task::JoinHandle;

use crate::capability::Capability;
use crate::catalogue::Registered;
use crate::error::{Cause, Failure};
use crate::id::ModelKey;
use crate::model::{Fetch, LoadContext};
use crate::reaper::cause_of_panic;

/// The search for digests. Dropping it tells the thread to stop.
#[derive(Debug, Default)]
pub(super) struct Digests {
    /// The last question about each model.
    asked: HashMap<ModelKey, Fetch>,
    work: Option<JoinHandle<()>>,
    stopped: Arc<AtomicBool>,
}

impl Drop for Digests {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Release);
    }
}

impl Digests {
    /// Asks for the digests and sizes of those of these models which have none: of each once, and for a digest once more when it
    /// is loaded. While the thread is at work nothing new is begun.
    pub(super) fn find<C: Capability>(
        &mut self,
        models: Vec<Arc<Registered<C>>>,
        is_loaded: impl Fn(&Registered<C>) -> bool,
    ) {
        if self.work.as_ref().is_some_and(|work| !work.is_finished()) {
            return;
        }
        let keys: HashSet<ModelKey> = models.iter().map(|model| model.key()).collect();
        self.asked.retain(|key, _| keys.contains(key));
        let due = models.into_iter().filter_map(|model| {
            let fetch = if is_loaded(&model) { Fetch::Allowed } else { Fetch::Never };
            let has_digest = model.digest().is_some();
            let is_due = match self.asked.get(&model.key()) {
                None => !has_digest || model.size().is_none(),
                Some(last) => !has_digest && *last == Fetch::Never && fetch == Fetch::Allowed,
            };
            is_due.then_some((model, fetch))
        });
        let due: Vec<(Arc<Registered<C>>, Fetch)> = due.collect();
        if due.is_empty() {
            return;
        }
        self.asked.extend(due.iter().map(|(model, fetch)| (model.key(), *fetch)));
        let stopped = self.stopped.clone();
        self.work = Some(tokio::task::spawn_blocking(move || {
            for (model, fetch) in due.iter().take_while(|_| !stopped.load(Ordering::Acquire)) {
                ask(model, *fetch, &stopped);
            }
        }));
    }
}

fn ask<C: Capability>(model: &Registered<C>, fetch: Fetch, stopped: &Arc<AtomicBool>) {
    let context = LoadContext { abandoned: stopped.clone(), ..LoadContext::detached(model.id()) };
    let (capability, name) = (C::NAME, model.id());
    if model.digest().is_none() {
        let set = match asked(|| model.loader.digest(fetch, &context)) {
            Ok(None) => Ok(()),
            Ok(Some(digest)) => model.set_digest(digest).map_err(|error| Cause::of(&error)),
            Err(failure) => Err(failure.cause),
        };
        if let Err(cause) = set
            && !context.should_stop()
        {
            tracing::warn!(capability, model = %name, %cause, "a model has no digest and is not shared with other nodes");
        }
    }
    // What is loaded has been measured.
    if fetch == Fetch::Never && model.size().is_none() {
        match asked(|| model.loader.size(fetch, &context)) {
            Ok(size) => size.into_iter().for_each(|size| model.set_size(size)),
            Err(failure) => {
                tracing::debug!(capability, model = %name, cause = %failure.cause, "a model's size is not known");
            }
        }
    }
}

fn asked<T>(ask: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
    catch_unwind(AssertUnwindSafe(ask)).unwrap_or_else(|panic| Err(Failure::failed(cause_of_panic(panic))))
}
