//! A worker's model whose runs happen in a child. The requests of a batch are sent there, and whatever the child says is
//! passed on to their callers; cancel marks, requests that join and the room in readers' buffers go the other way. A child
//! that is lost is the worker's to tell: it decides nothing.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;

use super::super::ProcessEnd;
use super::super::frames::{Order, Report, Run, WINDOW, frame};
use super::super::process::Process;
use super::super::transport::Connection;
use super::{ReportOf, broke_the_protocol, next, out_of_turn};
use crate::batch::{Batch, Item};
use crate::capability::Portable;
use crate::error::{Cause, Failure};
use crate::id::RequestId;
use crate::job::{EmitError, Stage};
use crate::model::{LoadContext, Model};

/// Longest time between two looks at cancel marks.
const LOOK: Duration = Duration::from_millis(10);
/// Longest time between two looks at requests that join: a step of a model takes longer.
const LOOK_FOR_ARRIVALS: Duration = Duration::from_millis(2);
/// Longest time between two looks at a reader's full buffer.
const LOOK_FOR_ROOM: Duration = Duration::from_millis(1);
/// Age up to which a sign of life will do.
const FRESH: Duration = Duration::from_secs(1);

/// A model in a child.
pub(super) struct ProcessModel {
    process: Process,
    context: LoadContext,
    cancel_limit: Duration,
    run: Run,
    /// Numbers of pings sent and answered. Each answer comes before the child reads what was sent after its ping.
    pings: u64,
    pongs: u64,
    /// The moment of the child's last message.
    heard: Instant,
    /// The reason for which the child is lost.
    lost: Option<Cause>,
}

impl ProcessModel {
    pub(super) fn new(process: Process, context: LoadContext, cancel_limit: Duration) -> Self {
        Self { process, context, cancel_limit, run: 0, pings: 0, pongs: 0, heard: Instant::now(), lost: None }
    }

    /// Notes that the child is lost, and makes sure of it.
    fn lose(&mut self, cause: Cause) {
        self.process.end();
        self.lost = Some(cause);
    }

    fn send<R: serde::Serialize>(&mut self, order: &Order<R>) {
        // Orders without input are small and can be written.
        let _ = self.process.link.send(order);
    }

    fn ping(&mut self) {
        self.pings += 1;
        self.send(&Order::<()>::Ping);
    }

    /// Waits for the answer to a ping.
    fn wait_for_pong<C: Portable>(&mut self) -> Result<(), Cause> {
        self.ping();
        while self.pongs < self.pings {
            if self.context.should_stop() {
                return Err(given_up());
            }
            self.listen::<C>(LOOK)?;
        }
        Ok(())
    }

    /// Takes in what comes between two runs, the end of the child above all.
    fn listen<C: Portable>(&mut self, patience: Duration) -> Result<(), Cause> {
        let connection = self.process.link.pump(patience);
        while let Some(report) = next::<C>(&mut self.process)? {
            self.heard = Instant::now();
            match report {
                Report::Pong => self.pongs += 1,
                // Threads of a model may go on between two runs.
                Report::Progress(_) => {}
                Report::Panicked(cause) => return Err(cause),
                _ => return Err(out_of_turn()),
            }
        }
        match connection {
            Connection::Open => Ok(()),
            Connection::Closed => Err(self.process.end()),
        }
    }

    fn check<C: Portable>(&mut self) -> Result<(), Cause> {
        self.listen::<C>(Duration::ZERO)?;
        match self.heard.elapsed() > FRESH {
            true => self.wait_for_pong::<C>(),
            false => Ok(()),
        }
    }
}

impl<C: Portable> Model<C> for ProcessModel {
    fn run(&mut self, batch: &mut Batch<C>) -> Result<(), Failure> {
        if let Some(cause) = &self.lost {
            return Err(Failure::failed(cause.clone()));
        }
        let running = Running {
            model: self,
            batch,
            requests: FxHashMap::default(),
            runs: false,
            failure: None,
            idle_since: None,
        };
        match running.serve() {
            Ok(None) => Ok(()),
            Ok(Some(failure)) => Err(failure),
            Err(cause) => {
                self.lose(cause.clone());
                Err(Failure::failed(cause))
            }
        }
    }

    fn health(&mut self) -> Result<(), Cause> {
        if self.lost.is_none()
            && let Err(cause) = self.check::<C>()
        {
            self.lose(cause);
        }
        self.lost.clone().map_or(Ok(()), Err)
    }
}

fn given_up() -> Cause {
    Cause::with_data(&ProcessEnd::GivenUp)
}

/// A request that the child has.
struct Away<C: Portable> {
    /// Number of the ping that was sent before it: once that is answered, the child may be reading the request.
    ping: u64,
    /// The child's model has it.
    admitted: bool,
    /// The child was told that nobody waits.
    cancelled: bool,
    /// The child has let go of it, and its caller has what there was to say.
    done: bool,
    /// Chunks for which the reader's buffer had no room.
    chunks: VecDeque<C::Chunk>,
    /// Number of chunks that the reader has taken since the child was last told so.
    taken: usize,
    answer: Option<Result<C::Output, Failure>>,
}

impl<C: Portable> Away<C> {
    fn new(ping: u64, admitted: bool) -> Self {
        Self {
            ping,
            admitted,
            cancelled: false,
            done: false,
            chunks: VecDeque::new(),
            taken: 0,
            answer: None,
        }
    }
}

/// A run under way.
struct Running<'r, 'b, C: Portable> {
    model: &'r mut ProcessModel,
    batch: &'r mut Batch<'b, C>,
    requests: FxHashMap<RequestId, Away<C>>,
    /// The child's model runs.
    runs: bool,
    /// The failure that has ended a run of the child.
    failure: Option<Failure>,
    /// Since when nobody has waited for anything that the child's model has.
    idle_since: Option<Instant>,
}

impl<C: Portable> Running<'_, '_, C> {
    /// Runs the batch, and returns the failure that ended the run, if one did.
    ///
    /// # Errors
    /// The end of the child.
    fn serve(mut self) -> Result<Option<Failure>, Cause> {
        self.start();
        loop {
            if self.model.context.should_stop() {
                return Err(given_up());
            }
            let connection = self.model.process.link.pump(self.patience());
            let heard = self.hear();
            // What came before the end of a child is as good as ever.
            self.deliver();
            heard?;
            if connection == Connection::Closed {
                return Err(self.model.process.end());
            }
            self.cancel_unwanted();
            if self.runs {
                self.check_idle()?;
            }
            // After a failure those that it has left unanswered shall not wait for ever more others.
            if self.failure.is_none() {
                self.join();
            }
            if self.runs {
                continue;
            } else if self.is_any_new() {
                // These came too late for the run that has ended.
                self.start();
            } else if self.requests.values().any(|away| away.answer.is_some()) {
                // It waits for a reader, which is no fault of the child's.
                self.batch.tick();
            } else {
                return Ok(self.failure);
            }
        }
    }

    /// Takes in all that has come.
    fn hear(&mut self) -> Result<(), Cause> {
        while let Some(report) = next::<C>(&mut self.model.process)? {
            self.model.heard = Instant::now();
            self.take(report)?;
        }
        Ok(())
    }

    fn patience(&self) -> Duration {
        match self.requests.values().any(|away| !away.chunks.is_empty()) {
            true => LOOK_FOR_ROOM,
            false if self.batch.is_joined() => LOOK_FOR_ARRIVALS,
            false => LOOK,
        }
    }

    /// True if the child's model has yet to be given one of the requests.
    fn is_any_new(&self) -> bool {
        let is_new = |away: &Away<C>| !away.admitted && !away.done;
        self.batch.items().iter().any(|item| self.requests.get(&item.id()).is_none_or(is_new))
    }

    /// Begins a run of the child with all requests that are not with its model.
    fn start(&mut self) {
        self.model.run += 1;
        self.requests.retain(|_, away| away.admitted || away.done);
        self.send_new(true);
        if self.requests.values().any(|away| away.admitted && !away.done) {
            let (run, joins) = (self.model.run, self.batch.is_joined());
            self.model.send(&Order::<()>::Start { run, joins });
            self.runs = true;
        }
    }

    /// Sends the requests that the child does not have, after a ping. One that cannot be sent fails alone.
    fn send_new(&mut self, admitted: bool) {
        let run = self.model.run;
        let mut pinged = false;
        for item in self.batch.items() {
            if self.requests.contains_key(&item.id()) {
                continue;
            }
            item.reach(Stage::Ahead);
            if !std::mem::replace(&mut pinged, true) {
                self.model.ping();
            }
            let mut away = Away::new(self.model.pings, admitted);
            match frame(&Order::Ask { run, request: item.id(), input: item.request() }) {
                Ok(bytes) => self.model.process.link.send_bytes(bytes),
                Err(error) => {
                    item.fail(Failure::invalid_input(Cause::of(&error)));
                    away.done = true;
                }
            }
            self.requests.insert(item.id(), away);
        }
    }

    /// Takes in what the child says. A request that is not known has left meanwhile.
    fn take(&mut self, report: ReportOf<C>) -> Result<(), Cause> {
        match report {
            Report::Progress(_) => self.batch.tick(),
            Report::Admitted(requests) => {
                for request in requests {
                    self.away(request, |away| away.admitted = true);
                }
            }
            Report::Left(requests) => {
                for request in requests {
                    self.away(request, |away| away.done |= away.answer.is_none());
                }
            }
            Report::Begun(request) => {
                if let Some(item) = find(self.batch, request) {
                    item.begin();
                }
            }
            Report::Chunk { request, chunk } => {
                let mut room = true;
                self.away(request, |away| {
                    room = away.chunks.len() < WINDOW;
                    away.chunks.push_back(chunk);
                });
                if !room {
                    return Err(broke_the_protocol("it sent chunks without leave"));
                }
            }
            Report::Finished { request, output } => self.away(request, |away| away.answer = Some(Ok(output))),
            Report::Failed { request, failure } => {
                self.away(request, |away| away.answer = Some(Err(failure)))
            }
            Report::Done { run, failure } if run == self.model.run => {
                self.runs = false;
                self.failure = self.failure.take().or(failure);
                let away = self.requests.values_mut().filter(|away| away.admitted && away.answer.is_none());
                away.for_each(|away| away.done = true);
            }
            Report::Panicked(cause) => return Err(cause),
            Report::Pong => {
                self.model.pongs += 1;
                self.reach();
            }
            _ => return Err(out_of_turn()),
        }
        Ok(())
    }

    /// Notes that the child may be reading the requests that were sent after the ping which it has answered: from here on
    /// its death may be their doing.
    fn reach(&self) {
        let pongs = self.model.pongs;
        for (request, _) in self.requests.iter().filter(|(_, away)| away.ping == pongs) {
            if let Some(item) = find(self.batch, *request) {
                item.reach(Stage::Begun);
            }
        }
    }

    fn away(&mut self, request: RequestId, change: impl FnOnce(&mut Away<C>)) {
        if let Some(away) = self.requests.get_mut(&request) {
            change(away);
        }
    }

    /// Passes on chunks and answers, in order, as far as the readers take them.
    fn deliver(&mut self) {
        for (request, away) in &mut self.requests {
            let Some(item) = find(self.batch, *request) else { continue };
            while let Some(chunk) = away.chunks.pop_front() {
                match item.try_emit(chunk) {
                    Ok(()) => away.taken += 1,
                    Err(EmitError::Full(chunk)) => {
                        away.chunks.push_front(chunk);
                        break;
                    }
                    Err(EmitError::Stopped) => away.chunks.clear(),
                }
            }
            if away.chunks.is_empty()
                && let Some(answer) = away.answer.take()
            {
                match answer {
                    Ok(output) => item.finish(output),
                    Err(failure) => item.fail(failure),
                }
                away.done = true;
            }
            if away.taken >= WINDOW / 2 && !away.done {
                let chunks = std::mem::take(&mut away.taken);
                self.model.send(&Order::<()>::Credit { request: *request, chunks });
            }
        }
    }

    /// Tells the child of the requests that nobody waits for any more.
    fn cancel_unwanted(&mut self) {
        for item in self.batch.items() {
            let Some(away) = self.requests.get_mut(&item.id()) else { continue };
            if !away.cancelled && !away.done && item.should_stop() {
                away.cancelled = true;
                away.chunks.clear();
                self.model.send(&Order::<()>::Cancel { request: item.id() });
            }
        }
    }

    /// Gives the child up if it goes on for too long with what nobody waits for.
    fn check_idle(&mut self) -> Result<(), Cause> {
        let mut admitted = self.requests.values().filter(|away| away.admitted);
        if !admitted.all(|away| away.done || away.cancelled) {
            self.idle_since = None;
            return Ok(());
        }
        let limit = self.model.cancel_limit;
        if self.idle_since.get_or_insert_with(Instant::now).elapsed() < limit {
            return Ok(());
        }
        Err(Cause::with_data(&ProcessEnd::RanOn { limit }))
    }

    /// Lets go of the requests that the child has let go of, and sends those that have come.
    fn join(&mut self) {
        if !self.batch.is_joined() {
            return;
        }
        let requests = &self.requests;
        // What a run of the child has left unanswered is answered with the end of this one.
        let has_left =
            |item: &Item<C>| item.is_answered() && requests.get(&item.id()).is_some_and(|away| away.done);
        let joined = self.batch.admit(has_left);
        let batch = &*self.batch;
        self.requests.retain(|request, away| !away.done || find(batch, *request).is_some());
        if joined > 0 && self.runs {
            self.send_new(false);
        }
    }
}

fn find<'a, C: Portable>(batch: &'a Batch<'_, C>, request: RequestId) -> Option<&'a Item<C>> {
    batch.items().iter().find(|item| item.id() == request)
}
