//! The requests that a child was sent: the desk on which its main thread lays them and from which its model takes them, and
//! each request's way back to the parent.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::super::frames::{Report, Run, WINDOW};
use super::super::transport::Writer;
use super::AnyReport;
use crate::batch::{Item, Joining, Sent};
use crate::capability::Portable;
use crate::error::{Cause, Failure};
use crate::id::RequestId;
use crate::job::EmitError;
use crate::progress::Gauge;

/// A request of the parent's.
struct Asked<C: Portable> {
    request: RequestId,
    input: C::Request,
    writer: Arc<Writer>,
    cancelled: AtomicBool,
    way: Mutex<Way>,
}

/// The way back to the parent.
struct Way {
    /// Number of chunks that may be sent.
    window: usize,
    /// It was answered, or its run is over.
    closed: bool,
}

impl<C: Portable> Asked<C> {
    fn way(&self) -> MutexGuard<'_, Way> {
        self.way.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Acquire)
    }
}

impl<C: Portable> Sent<C> for Asked<C> {
    fn id(&self) -> RequestId {
        self.request
    }

    fn request(&self) -> &C::Request {
        &self.input
    }

    fn is_over(&self) -> bool {
        self.is_cancelled() || self.way().closed
    }

    fn begin(&self) {
        let way = self.way();
        if !way.closed {
            let _ = self.writer.send(&AnyReport::Begun(self.request));
        }
    }

    fn answer(&self, result: Result<C::Output, Failure>) {
        let mut way = self.way();
        if std::mem::replace(&mut way.closed, true) {
            return;
        }
        let request = self.request;
        let sent = match result {
            Ok(output) => self.writer.send(&Report::<(), _>::Finished { request, output }),
            Err(failure) => self.writer.send(&AnyReport::Failed { request, failure }),
        };
        if let Err(error) = sent {
            let failure = Failure::failed(Cause::of(&error));
            let _ = self.writer.send(&AnyReport::Failed { request, failure });
        }
    }

    fn emit(&self, chunk: C::Chunk) -> Result<(), EmitError<C::Chunk>> {
        let mut way = self.way();
        if way.closed || self.is_cancelled() {
            return Err(EmitError::Stopped);
        }
        if way.window == 0 {
            return Err(EmitError::Full(chunk));
        }
        way.window -= 1;
        let request = self.request;
        let sent = self.writer.send(&Report::<_, ()>::Chunk { request, chunk });
        drop(way);
        sent.map_err(|error| {
            self.answer(Err(Failure::failed(Cause::of(&error))));
            EmitError::Stopped
        })
    }
}

/// The requests of a child.
pub(super) struct Desk<C: Portable> {
    writer: Arc<Writer>,
    state: Mutex<DeskState<C>>,
}

struct DeskState<C: Portable> {
    /// Those that the model has not taken yet.
    arrivals: Vec<Arc<Asked<C>>>,
    /// Those that it has, and those above.
    known: HashMap<RequestId, Arc<Asked<C>>>,
    /// The last run that is over.
    over: Run,
}

impl<C: Portable> Desk<C> {
    pub(super) fn new(writer: Arc<Writer>) -> Self {
        let state = DeskState { arrivals: Vec::new(), known: HashMap::new(), over: 0 };
        Self { writer, state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, DeskState<C>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a request in. One that came too late for its run is sent again by the parent.
    pub(super) fn put(&self, run: Run, request: RequestId, input: C::Request) {
        let mut state = self.state();
        if run <= state.over {
            return;
        }
        let way = Mutex::new(Way { window: WINDOW, closed: false });
        let asked = Arc::new(Asked {
            request,
            input,
            writer: self.writer.clone(),
            cancelled: AtomicBool::new(false),
            way,
        });
        state.known.insert(request, asked.clone());
        state.arrivals.push(asked);
    }

    fn find(&self, request: RequestId) -> Option<Arc<Asked<C>>> {
        self.state().known.get(&request).cloned()
    }

    pub(super) fn cancel(&self, request: RequestId) {
        if let Some(asked) = self.find(request) {
            asked.cancelled.store(true, Ordering::Release);
        }
    }

    pub(super) fn credit(&self, request: RequestId, chunks: usize) {
        if let Some(asked) = self.find(request) {
            let mut way = asked.way();
            way.window = way.window.saturating_add(chunks);
        }
    }

    pub(super) fn pong(&self) {
        let _ = self.writer.send(&AnyReport::Pong);
    }

    /// Ends a run: its requests can no longer answer.
    pub(super) fn close(&self, run: Run) {
        let (arrivals, known) = {
            let mut state = self.state();
            state.over = run;
            (std::mem::take(&mut state.arrivals), std::mem::take(&mut state.known))
        };
        known.values().for_each(|asked| asked.way().closed = true);
        drop((arrivals, known));
    }
}

/// Requests that join a run, and those that leave it.
pub(super) struct Arrivals<'a, C: Portable> {
    pub(super) desk: &'a Desk<C>,
    pub(super) gauge: &'a Arc<Gauge>,
}

impl<C: Portable> Arrivals<'_, C> {
    /// Takes all requests from the desk.
    pub(super) fn take(&mut self) -> Vec<Item<C>> {
        let arrivals = std::mem::take(&mut self.desk.state().arrivals);
        arrivals.into_iter().map(|asked| Item::sent(asked, self.gauge.clone())).collect()
    }
}

impl<C: Portable> Joining<C> for Arrivals<'_, C> {
    fn joined(&mut self) -> Vec<Item<C>> {
        let joined = self.take();
        if !joined.is_empty() {
            let requests = joined.iter().map(Item::id).collect();
            let _ = self.desk.writer.send(&AnyReport::Admitted(requests));
        }
        joined
    }

    fn left(&mut self, gone: Vec<Item<C>>) {
        let requests: Vec<RequestId> = gone.iter().map(Item::id).collect();
        {
            let mut state = self.desk.state();
            requests.iter().for_each(|request| drop(state.known.remove(request)));
        }
        let _ = self.desk.writer.send(&AnyReport::Left(requests));
    }
}
