//! The roster of a pool's threads. It outlives the pool: the threads of one that failed still run, and hold their
//! memory, when another has been started, which takes them over. Deciding about them is left to the scheduler.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::capability::Capability;
use crate::catalogue::Registered;
use crate::id::WorkerId;
use crate::model::Footprint;
use crate::reaper::{DESTRUCTORS, Drops};
use crate::scheduler::{Holds, Leaving};

/// The threads of one pool, whichever actor it is at the moment, from their start to their end.
pub(crate) struct Roster<C: Capability> {
    state: Mutex<State<C>>,
    emptied: Notify,
    /// The requests of its clients that are being dropped.
    pub(crate) drops: Arc<Drops>,
}

struct State<C: Capability> {
    threads: BTreeMap<WorkerId, Listed<C>>,
    last: WorkerId,
    /// Tells the pool that runs of a thread's end.
    told: Option<Box<dyn Fn(WorkerId) + Send>>,
}

/// A thread that has not ended.
pub(crate) struct Listed<C: Capability> {
    pub(crate) name: Arc<str>,
    pub(crate) model: Arc<Registered<C>>,
    /// The reason for which it is no worker of a later pool: that it died with its own, or was stuck before.
    pub(crate) why: Leaving,
    pub(crate) holds: Holds,
    /// The footprint of its model, by which it holds that.
    pub(crate) footprint: Option<Footprint>,
}

impl<C: Capability> Clone for Listed<C> {
    fn clone(&self) -> Self {
        let Self { name, model, why, holds, footprint } = self;
        Self { name: name.clone(), model: model.clone(), why: *why, holds: *holds, footprint: *footprint }
    }
}

impl<C: Capability> Default for Roster<C> {
    fn default() -> Self {
        let state = State { threads: BTreeMap::new(), last: WorkerId(0), told: None };
        Self { state: Mutex::new(state), emptied: Notify::new(), drops: Arc::default() }
    }
}

impl<C: Capability> Roster<C> {
    fn lock(&self) -> MutexGuard<'_, State<C>> {
        // Changes of the map and sends alone happen under this lock, so its poison means nothing.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A pool begins: it is told of ends from now on, and takes over the threads that an earlier one left. Returns the
    /// last number that was given to a thread, and those threads.
    pub(crate) fn take_over(
        &self,
        told: impl Fn(WorkerId) + Send + 'static,
    ) -> (WorkerId, Vec<(WorkerId, Listed<C>)>) {
        let mut state = self.lock();
        state.told = Some(Box::new(told));
        let left = state.threads.iter().map(|(worker, thread)| (*worker, thread.clone()));
        (state.last, left.collect())
    }

    /// The number of a thread that no scheduler started.
    pub(crate) fn next(&self) -> WorkerId {
        WorkerId(self.lock().last.0 + 1)
    }

    /// Lists a thread until its place is dropped, as the last thing that the thread does.
    pub(crate) fn enter(
        self: &Arc<Self>,
        worker: WorkerId,
        name: Arc<str>,
        model: Arc<Registered<C>>,
    ) -> Place<C> {
        let listed = Listed { name, model, why: Leaving::Dead, holds: Holds::Nothing, footprint: None };
        let mut state = self.lock();
        state.last = state.last.max(worker);
        state.threads.insert(worker, listed);
        drop(state);
        Place { roster: self.clone(), worker }
    }

    /// Notes what a thread holds, by this footprint of its model.
    pub(crate) fn charge(&self, worker: WorkerId, holds: Holds, footprint: Option<Footprint>) {
        if let Some(thread) = self.lock().threads.get_mut(&worker) {
            (thread.holds, thread.footprint) = (holds, footprint);
        }
    }

    /// Notes that nobody may count on a thread's end.
    pub(crate) fn give_up(&self, worker: WorkerId) {
        if let Some(thread) = self.lock().threads.get_mut(&worker) {
            thread.why = Leaving::Stuck;
        }
    }

    /// Names of the threads, in alphabetical order, and that of the reaper's while requests are being dropped.
    pub(crate) fn names(&self) -> Vec<String> {
        let mut names: Vec<String> =
            self.lock().threads.values().map(|thread| thread.name.to_string()).collect();
        names.sort();
        if !self.drops.are_over() {
            names.push(DESTRUCTORS.to_owned());
        }
        names
    }

    /// Waits until every thread has ended and every request has been dropped.
    pub(crate) async fn emptied(&self) {
        loop {
            // First it is listened, then looked: an end in between is heard.
            let emptied = self.emptied.notified();
            if self.lock().threads.is_empty() {
                return self.drops.over().await;
            }
            emptied.await;
        }
    }
}

/// A thread's place in the roster.
pub(crate) struct Place<C: Capability> {
    roster: Arc<Roster<C>>,
    worker: WorkerId,
}

impl<C: Capability> Drop for Place<C> {
    fn drop(&mut self) {
        let mut state = self.roster.lock();
        let ended = state.threads.remove(&self.worker);
        // Told under the lock, so that a pool that takes over either lists the thread or is told of its end.
        if let Some(told) = &state.told {
            told(self.worker);
        }
        let is_empty = state.threads.is_empty();
        drop(state);
        drop(ended);
        if is_empty {
            self.roster.emptied.notify_waiters();
        }
    }
}
