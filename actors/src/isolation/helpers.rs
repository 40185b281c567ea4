//! Children that do work for the application beside its models, as decoding an image: a few, each with a thread of the
//! parent that owns it and does nothing but talk to it, for one piece of work at a time. They are started when there is
//! work, and end after a while without any. A child that dies has been the end of one piece of work alone.

use std::fmt;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_bytes::ByteBuf;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};

use super::frames::{Hello, Order, Report, frame};
use super::process::Process;
use super::transport::Connection;
use super::{IsolatedWork, ProcessEnd, ProcessOptions, WORK, check_known};
use crate::error::{Cause, Failure, Result};
use crate::id::{Bytes, ModelId, RequestId};
use crate::wire;

/// Longest time between two looks at whether somebody still waits.
const LOOK: Duration = Duration::from_millis(10);
/// Bytes of a message beside the answer that it carries, or of the failure that it has in its place.
const ENVELOPE: usize = 64 << 10;

/// Children that do work of one kind. Dropping it ends them.
///
/// ```no_run
/// use model_actors::isolation::{Helpers, IsolatedWork, KnownLoader, ProcessOptions, run_child_if_asked};
/// use std::sync::Arc;
/// use std::time::Duration;
///
/// struct Length;
/// impl IsolatedWork for Length {
///     const NAME: &'static str = "length";
///     type Input = String;
///     type Output = usize;
///     fn work(input: String) -> usize {
///         input.len()
///     }
/// }
///
/// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
/// run_child_if_asked([KnownLoader::of_work::<Length>()]); // at the top of `main`
/// let helpers = Helpers::<Length>::new(ProcessOptions::default(), 2, Duration::from_secs(10))?;
/// assert_eq!(helpers.run(Arc::new("four".to_owned())).await?, 4);
/// # Ok(())
/// # }
/// ```
pub struct Helpers<W: IsolatedWork> {
    /// A place for each child at work. A child that is idle has none, but no further one starts beside it.
    places: Arc<Semaphore>,
    keepers: Arc<Keepers<W>>,
}

impl<W: IsolatedWork> Helpers<W> {
    /// Starts nothing yet. At most so many children work at a time, and one that has had no work for the idle limit ends.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`](crate::Error::InvalidConfig) if `main` has not called
    /// [`run_child_if_asked`](super::run_child_if_asked) with this kind of work.
    pub fn new(options: ProcessOptions, most: usize, idle_limit: Duration) -> Result<Self> {
        check_known(WORK, W::NAME)?;
        let kept = Mutex::new(Kept { idle: Vec::new(), next: 0, ending: watch::Sender::new(false) });
        let places = Arc::new(Semaphore::new(most.clamp(1, Semaphore::MAX_PERMITS)));
        Ok(Self { places, keepers: Arc::new(Keepers { kept, options, idle_limit }) })
    }

    /// Has a child do this. Waits until one is free; dropping the future kills the child, which may never end.
    ///
    /// Work that ends a child which had done other work before, by a panic too, is done once more in a fresh one, as the other
    /// may have spoilt it.
    ///
    /// # Errors
    /// A failure whose cause has a [`ProcessEnd`] as its data if the child died of it; one of the kind
    /// [`InvalidInput`](crate::FailureKind::InvalidInput) for what is too large to be sent; others if it panicked, or no
    /// child can be started.
    pub async fn run(&self, input: Arc<W::Input>) -> Result<W::Output, Failure> {
        let place = self.places.clone().acquire_owned().await.map_err(|_| Failure::stopped())?;
        let (answer, answered) = oneshot::channel();
        self.keepers.take_on(Job { input, answer, place })?;
        // A keeper that panicked has killed its child.
        answered.await.unwrap_or_else(|_| Err(Failure::failed(Cause::with_data(&ProcessEnd::Unknown))))
    }

    /// Ends the children without work at once, and those at work after it, and waits until none of them is left. They end as
    /// well if nobody waits so long. Work that comes later is done by others.
    pub async fn end(&self) {
        let ending = self.keepers.lock().end();
        ending.closed().await;
    }
}

impl<W: IsolatedWork> Drop for Helpers<W> {
    fn drop(&mut self) {
        drop(self.keepers.lock().end());
    }
}

impl<W: IsolatedWork> fmt::Debug for Helpers<W> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Helpers").field("work", &W::NAME).finish_non_exhaustive()
    }
}

struct Job<W: IsolatedWork> {
    input: Arc<W::Input>,
    answer: oneshot::Sender<Result<W::Output, Failure>>,
    place: OwnedSemaphorePermit,
}

/// A keeper without work.
struct Idle<W: IsolatedWork> {
    number: u64,
    /// Dropped, it ends the keeper.
    jobs: mpsc::Sender<Job<W>>,
}

struct Kept<W: IsolatedWork> {
    /// The last that was at work comes first.
    idle: Vec<Idle<W>>,
    next: u64,
    /// Tells the keepers that they shall end. Each has a receiver until its child has ended.
    ending: watch::Sender<bool>,
}

impl<W: IsolatedWork> Kept<W> {
    /// Has all keepers end once they have no work. What is returned is closed when they have.
    fn end(&mut self) -> watch::Sender<bool> {
        self.idle.clear();
        let ending = std::mem::replace(&mut self.ending, watch::Sender::new(false));
        ending.send_replace(true);
        ending
    }
}

struct Keepers<W: IsolatedWork> {
    kept: Mutex<Kept<W>>,
    options: ProcessOptions,
    idle_limit: Duration,
}

impl<W: IsolatedWork> Keepers<W> {
    fn lock(&self) -> MutexGuard<'_, Kept<W>> {
        // Lists alone change under this lock, so its poison means nothing.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the job to a keeper. There are no more of them than places, as a new one is made only while all are at work.
    fn take_on(self: &Arc<Self>, job: Job<W>) -> Result<(), Failure> {
        let (idle, ending) = {
            let mut kept = self.lock();
            (kept.idle.pop(), kept.ending.subscribe())
        };
        let job = match idle {
            Some(idle) => match idle.jobs.send(job) {
                Ok(()) => return Ok(()),
                // It has panicked.
                Err(mpsc::SendError(job)) => job,
            },
            None => job,
        };
        let keepers = self.clone();
        let keep = move || Keeper { keepers, process: None, asked: 0, ending }.keep(job);
        let thread = std::thread::Builder::new().name(W::NAME.to_owned()).spawn(keep);
        thread.map(drop).map_err(|error| Failure::failed(format!("no thread can be started for it: {error}")))
    }
}

/// The thread of a child, which the kernel ends with it.
struct Keeper<W: IsolatedWork> {
    keepers: Arc<Keepers<W>>,
    process: Option<Process>,
    /// Number of pieces of work so far.
    asked: u64,
    /// Dropped after the process.
    ending: watch::Receiver<bool>,
}

/// The reason for which a child has no answer.
enum Lost {
    /// Nobody waits for it any more.
    Unwanted,
    /// It has ended, is of no use after a panic, or is killed for what it said.
    Ended(Cause),
    /// It has said so itself.
    Failed(Failure),
}

impl<W: IsolatedWork> Keeper<W> {
    fn keep(mut self, first: Job<W>) {
        let mut job = first;
        loop {
            let Job { input, answer, place } = job;
            let result = self.run(&input, &answer);
            drop(input);
            let idle = self.go_idle();
            if idle.is_none() {
                drop(self.process.take());
            }
            // Whoever has the answer finds this one free.
            drop(place);
            let _ = answer.send(result);
            let next = idle.and_then(|(number, received)| self.wait(number, &received));
            let Some(next) = next else { break };
            job = next;
        }
    }

    /// Puts itself among those without work, unless it shall end.
    fn go_idle(&self) -> Option<(u64, mpsc::Receiver<Job<W>>)> {
        let mut kept = self.keepers.lock();
        if *self.ending.borrow() {
            return None;
        }
        let (jobs, received) = mpsc::channel();
        kept.next += 1;
        let number = kept.next;
        kept.idle.push(Idle { number, jobs });
        Some((number, received))
    }

    /// The next job, or none if there has been none for too long, or none will come.
    fn wait(&self, number: u64, received: &mpsc::Receiver<Job<W>>) -> Option<Job<W>> {
        match received.recv_timeout(self.keepers.idle_limit) {
            Ok(job) => return Some(job),
            Err(RecvTimeoutError::Disconnected) => return None,
            Err(RecvTimeoutError::Timeout) => {}
        }
        let mut kept = self.keepers.lock();
        let place = kept.idle.iter().position(|idle| idle.number == number);
        match place {
            Some(place) => {
                kept.idle.remove(place);
                None
            }
            None => {
                drop(kept);
                // It has been taken for a job that is on its way, or to be ended.
                received.recv().ok()
            }
        }
    }

    fn run(
        &mut self,
        input: &W::Input,
        answer: &oneshot::Sender<Result<W::Output, Failure>>,
    ) -> Result<W::Output, Failure> {
        loop {
            let used = self.process.take().and_then(|mut process| is_usable(&mut process).then_some(process));
            let is_fresh = used.is_none();
            let mut process = match used {
                Some(process) => process,
                None => self.start()?,
            };
            self.asked += 1;
            match ask::<W>(&mut process, RequestId(self.asked), input, answer) {
                Ok(output) => {
                    // What it said may be large, and it may be idle for long.
                    process.link.inbox.release();
                    self.process = Some(process);
                    return Ok(output);
                }
                Err(Lost::Unwanted) => return Err(Failure::stopped()),
                Err(Lost::Failed(failure)) => return Err(failure),
                Err(Lost::Ended(_)) if !is_fresh => {}
                Err(Lost::Ended(cause)) => return Err(Failure::failed(cause)),
            }
        }
    }

    fn start(&self) -> Result<Process, Failure> {
        let options = &self.keepers.options;
        let hello = Hello {
            capability: WORK.to_owned(),
            loader: W::NAME.to_owned(),
            settings: ByteBuf::new(),
            model: ModelId::from(W::NAME),
            address_space: options.address_space.map(|Bytes(bytes)| bytes),
        };
        Process::start(options, &hello)
    }
}

/// True if a child that has done work is there, and has said nothing since.
fn is_usable(process: &mut Process) -> bool {
    let connection = process.link.pump(Duration::ZERO);
    connection == Connection::Open && process.link.inbox.is_empty()
}

/// Has a child do one piece of work.
fn ask<W: IsolatedWork>(
    process: &mut Process,
    request: RequestId,
    input: &W::Input,
    answer: &oneshot::Sender<Result<W::Output, Failure>>,
) -> Result<W::Output, Lost> {
    let most = W::most_bytes(input).saturating_add(ENVELOPE);
    let unsent = |error| Lost::Failed(Failure::invalid_input(Cause::of(&error)));
    process.link.send_bytes(frame(&Order::Ask { run: request.0, request, input }).map_err(unsent)?);
    loop {
        if answer.is_closed() {
            return Err(Lost::Unwanted);
        }
        let connection = process.link.pump(LOOK);
        let message = process.link.inbox.next_within(most);
        let message = message.map_err(|cause| broken(cause.message()))?;
        if let Some(message) = message {
            let report: Report<(), W::Output> =
                wire::read(message).map_err(|error| broken(Cause::of(&error).message()))?;
            return match report {
                Report::Finished { request: of, output } if of == request => Ok(output),
                Report::Failed { request: of, failure } if of == request => Err(Lost::Failed(failure)),
                Report::Panicked(cause) => Err(Lost::Ended(cause)),
                Report::NotLoaded(failure) => Err(Lost::Failed(failure)),
                _ => Err(broken("a message came out of turn")),
            };
        }
        if connection == Connection::Closed {
            return Err(Lost::Ended(process.end()));
        }
    }
}

fn broken(reason: &str) -> Lost {
    Lost::Ended(Cause::with_data(&ProcessEnd::Protocol { reason: reason.to_owned() }))
}
