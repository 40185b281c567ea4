//! The OS thread of a worker: the only place where model code runs. It sizes, loads, builds and runs as it is
//! ordered, answers callers directly, and reports each outcome to the pool. A panic goes to the worker's
//! actor, whose failure the supervision tree tells the pool. Whatever happens in model code, the thread gives
//! its memory back and leaves the roster, both by `Drop`. Destructors are model code too: weights that no worker
//! holds any more are dropped by a thread of their own ([`free`]). It decides nothing.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use ractor::{ActorRef, DerivedActorRef};

use super::Crash;
use crate::batch::{Assigned, Batch, Item, Joining};
use crate::capability::Capability;
use crate::catalogue::Registered;
use crate::error::Failure;
use crate::id::{RequestId, WorkerId};
use crate::job::{Job, Stage};
use crate::memory::Lease;
use crate::model::{Footprint, LoadContext, Model, Weights};
use crate::progress::{Gauge, LoadStage};
use crate::reaper::{Guarded, Reaped, cause_of_panic, this_is_a_workers_thread};
use crate::roster::Place;
use crate::scheduler::Batching;
use crate::scheduler::Outcome;
use crate::telemetry::span;

/// Weights in memory and the bytes charged for them. They go on the worker's thread that holds them last.
pub(crate) struct SharedWeights<C: Capability>(Reaped<Charged<C>>);

/// Field order matters: the weights go before their charge.
struct Charged<C: Capability> {
    weights: Reaped<Arc<dyn Weights<C>>>,
    _lease: Lease,
}

impl<C: Capability> SharedWeights<C> {
    fn new(weights: Reaped<Arc<dyn Weights<C>>>, lease: Lease) -> Self {
        Self(Reaped::of_a_worker(Charged { weights, _lease: lease }))
    }

    fn weights(&self) -> &dyn Weights<C> {
        &**self.0.weights
    }
}

/// A job and the attempt that may answer it.
pub(crate) type Assignment<C> = (Arc<Job<C>>, u32);

/// An order from the pool to a worker's thread.
pub(crate) enum Order<C: Capability> {
    /// Find out what the model takes.
    Size,
    /// Load the model, or build it from the weights given, in this room.
    Load {
        lease: Lease,
        weights: Option<Arc<SharedWeights<C>>>,
        /// Spans of the requests that wait for it.
        causes: Vec<tracing::Span>,
    },
    /// Run these.
    Run(Vec<Assignment<C>>),
    /// Show that the thread takes orders, with a tick of its gauge.
    Ping,
}

/// A message from a worker's thread to its pool: the outcome of an order, or the end.
pub(crate) enum Report<C: Capability> {
    /// The model will take this; or, of a load that fails because it was more than was reserved, it did.
    Sized { worker: WorkerId, footprint: Footprint },
    /// The model is loaded.
    Started { worker: WorkerId, footprint: Footprint, weights: Weak<SharedWeights<C>> },
    /// The model could not be sized, loaded or built; the thread ends.
    StartFailed { worker: WorkerId, failure: Failure },
    /// These requests have ended.
    Finished { worker: WorkerId, outcomes: Vec<(RequestId, Outcome)> },
    /// The thread has ended and its bytes are back. Told through the roster.
    Ended { worker: WorkerId },
}

crate::impl_message!(Report<C>);

/// Arguments of a worker's thread.
pub(crate) struct ThreadArguments<C: Capability> {
    pub(crate) worker: WorkerId,
    /// The worker's actor, which fails when the thread panics.
    pub(crate) actor: ActorRef<Crash<C>>,
    pub(crate) model: Arc<Registered<C>>,
    pub(crate) context: LoadContext,
    pub(crate) orders: mpsc::Receiver<Order<C>>,
    pub(crate) pool: DerivedActorRef<Report<C>>,
}

/// Starts the thread. It ends when the sender of its orders is dropped, and leaves its place with its end.
pub(crate) fn start<C: Capability>(
    name: &str,
    place: Place<C>,
    arguments: ThreadArguments<C>,
) -> std::io::Result<()> {
    let builder = std::thread::Builder::new().name(name.to_owned());
    builder.spawn(move || {
        // First of all, so that the end is told once everything else of the thread is gone.
        this_is_a_workers_thread(place);
        let (worker, actor) = (arguments.worker, arguments.actor.clone());
        let thread = Thread { arguments, loaded: None };
        // A panic outside of model code, in a destructor say, is a crash like any other.
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| thread.serve())) {
            let crash = Crash { cause: cause_of_panic(panic), weights: None };
            tracing::error!(capability = C::NAME, worker = %worker, cause = %crash, "a worker's thread panicked outside of a run");
            let _ = actor.send_message(crash);
        }
    })?;
    Ok(())
}

/// Starts a thread that drops weights which nobody else holds, and leaves its place as a worker's does.
pub(crate) fn free<C: Capability>(
    name: &str,
    place: Place<C>,
    weights: SharedWeights<C>,
) -> std::io::Result<()> {
    let builder = std::thread::Builder::new().name(name.to_owned());
    builder.spawn(move || {
        this_is_a_workers_thread(place);
        drop(weights);
    })?;
    Ok(())
}

/// A built model. Field order matters: the model goes before the weights, and both before the worker's own
/// charge.
struct Loaded<C: Capability> {
    model: Guarded<Box<dyn Model<C>>>,
    weights: Arc<SharedWeights<C>>,
    _lease: Lease,
}

struct Thread<C: Capability> {
    arguments: ThreadArguments<C>,
    loaded: Option<Loaded<C>>,
}

impl<C: Capability> Thread<C> {
    fn serve(mut self) {
        while let Ok(order) = self.arguments.orders.recv() {
            let goes_on = match order {
                Order::Size => self.size(),
                Order::Load { lease, weights, causes } => self.load(lease, weights, &causes),
                Order::Run(assignments) => self.run(assignments),
                Order::Ping => self.answer_ping(),
            };
            if !goes_on {
                break;
            }
        }
    }

    fn report(&self, report: Report<C>) {
        // A pool that is gone has no use for reports; the thread ends with its orders.
        let _ = self.arguments.pool.send_message(report);
    }

    /// Returns false if the model is lost.
    fn answer_ping(&mut self) -> bool {
        if self.is_lost() {
            return false;
        }
        self.arguments.context.gauge.tick();
        true
    }

    /// Asks the model whether it can go on, and tells the worker's actor if it cannot.
    fn is_lost(&mut self) -> bool {
        let Some(loaded) = &mut self.loaded else { return false };
        let health = catch_unwind(AssertUnwindSafe(|| loaded.model.health()));
        let Err(cause) = health.unwrap_or_else(|panic| Err(cause_of_panic(panic))) else { return false };
        // The weights are as good as before, for the replacement. An actor that is gone is known to supervision already.
        let crash = Crash { cause, weights: Some(loaded.weights.clone()) };
        let _ = self.arguments.actor.send_message(crash);
        true
    }

    fn size(&self) -> bool {
        let worker = self.arguments.worker;
        // A model that is asked for its progress meanwhile is loading, whatever the loader says of it.
        self.arguments.context.progress.begin(LoadStage::Load, 0);
        let sized = guarded(|| self.arguments.model.loader.footprint(&self.arguments.context));
        self.arguments.context.progress.end();
        match sized {
            Ok(footprint) => self.report(Report::Sized { worker, footprint }),
            Err(failure) => {
                self.report(Report::StartFailed { worker, failure });
                return false;
            }
        }
        true
    }

    fn load(
        &mut self,
        lease: Lease,
        weights: Option<Arc<SharedWeights<C>>>,
        causes: &[tracing::Span],
    ) -> bool {
        let worker = self.arguments.worker;
        let span = tracing::info_span!(span::LOAD, capability = C::NAME, model = %self.arguments.model.id(), %worker);
        follow(&span, causes);
        let (began, reads_weights) = (Instant::now(), weights.is_none());
        let mut outgrown = None;
        if reads_weights {
            self.arguments.context.progress.begin(LoadStage::Load, 0);
        }
        let load = || {
            let loaded = build(&self.arguments, lease, weights, &mut outgrown)?;
            let footprint = loaded.weights.weights().footprint();
            Ok((loaded, footprint))
        };
        let loaded = span.in_scope(|| guarded(load));
        self.arguments.context.progress.end();
        match loaded {
            Ok((loaded, footprint)) => {
                if reads_weights {
                    self.arguments.model.metrics().load_time.record(began.elapsed().as_secs_f64());
                }
                let weights = Arc::downgrade(&loaded.weights);
                self.loaded = Some(loaded);
                self.report(Report::Started { worker, footprint, weights });
                true
            }
            Err(failure) => {
                if let Some(footprint) = outgrown {
                    // Nothing of it is left; the next start asks for as much.
                    self.report(Report::Sized { worker, footprint });
                }
                self.report(Report::StartFailed { worker, failure });
                false
            }
        }
    }

    /// Returns false if model code panicked or the model is lost: it is then in an unknown state, or gone, and the thread
    /// ends.
    fn run(&mut self, assignments: Vec<Assignment<C>>) -> bool {
        // What was lost while nothing ran is nobody's doing. The requests are still ahead of their run, which clears them.
        if self.is_lost() {
            return false;
        }
        let ThreadArguments { worker, actor, model, context, orders, pool } = &self.arguments;
        let Some(loaded) = &mut self.loaded else { return true };
        let stall = model.policy.config.stall.run;
        let items = items(assignments, &context.gauge, stall);
        let (over, items): (Vec<_>, Vec<_>) = items.into_iter().partition(Item::should_stop);
        if !over.is_empty() {
            let outcomes = outcomes(&over, given_up);
            let _ = pool.send_message(Report::Finished { worker: *worker, outcomes });
        }
        if items.is_empty() {
            return true;
        }
        let began = Instant::now();
        model.metrics().batch_size.record(items.len() as f64);
        let span = tracing::info_span!(span::RUN, capability = C::NAME, model = %model.id(), %worker, requests = items.len());
        follow(&span, items.iter().filter_map(Item::assigned).map(|asked| &asked.job.parts.span));
        context.gauge.tick();
        let mut arrivals = Arrivals { worker: *worker, orders, pool, gauge: &context.gauge, stall };
        let joining: Option<&mut dyn Joining<C>> = match model.policy.batching {
            Batching::Continuous => Some(&mut arrivals),
            Batching::PerRun => None,
        };
        let mut batch = Batch::new(items, &context.gauge, joining);
        let result = span.in_scope(|| catch_unwind(AssertUnwindSafe(|| loaded.model.run(&mut batch))));
        context.gauge.tick();
        model.metrics().run_time.record(began.elapsed().as_secs_f64());
        let items = batch.into_items();
        match result {
            Ok(result) => {
                let worker = *worker;
                if self.is_lost() {
                    return false;
                }
                let outcomes = outcomes(&items, |asked| outcome(asked, &result));
                self.report(Report::Finished { worker, outcomes });
                true
            }
            Err(panic) => {
                drop(items);
                // The weights are as good as before, for the replacement.
                let crash = Crash { cause: cause_of_panic(panic), weights: Some(loaded.weights.clone()) };
                // An actor that is gone is known to supervision already.
                let _ = actor.send_message(crash);
                false
            }
        }
    }
}

/// Gives the requests to the model: from here on a death of the worker may be their doing.
fn items<C: Capability>(
    assignments: Vec<Assignment<C>>,
    gauge: &Arc<Gauge>,
    stall: Duration,
) -> Vec<Item<C>> {
    let item = |(job, attempt): Assignment<C>| {
        job.reach_from(attempt, Stage::Begun);
        Item::new(job, attempt, gauge.clone(), stall)
    };
    assignments.into_iter().map(item).collect()
}

/// Returns the outcome of each request.
fn outcomes<C: Capability>(
    items: &[Item<C>],
    outcome: impl Fn(&Assigned<C>) -> Outcome,
) -> Vec<(RequestId, Outcome)> {
    items.iter().filter_map(Item::assigned).map(|asked| (asked.job.id, outcome(asked))).collect()
}

/// Returns the outcome of a request at the end of its run. One that ran out of time is answered here, where
/// it is known to have been running.
fn outcome<C: Capability>(asked: &Assigned<C>, result: &Result<(), Failure>) -> Outcome {
    let job = &asked.job;
    if job.is_answered() || job.is_abandoned() {
        return departure(asked);
    }
    let failure = match result {
        Ok(()) => Failure::failed("the model ended its run without an answer to this request"),
        Err(failure) => failure.clone(),
    };
    match job.may_run_again() {
        true => Outcome::Failed(failure),
        false => Outcome::FailedAfterOutput(failure.of_one_that_is_waited_for()),
    }
}

/// Returns the outcome of a request that is owed no answer any more. Only one that its run was done with was answered by
/// that: others may have run out of time, or lost their callers, while they would have killed it.
fn departure<C: Capability>(asked: &Assigned<C>) -> Outcome {
    if asked.job.stage() == Stage::Finished { Outcome::Answered } else { given_up(asked) }
}

/// Gives up a request that nobody waits for; if its time ran out, its caller is told.
fn given_up<C: Capability>(asked: &Assigned<C>) -> Outcome {
    asked.job.answer_from(asked.attempt, Err(asked.job.timeout_error()));
    Outcome::GivenUp
}

/// Requests that join a run, and those that leave it, by way of the orders that came meanwhile.
struct Arrivals<'a, C: Capability> {
    worker: WorkerId,
    orders: &'a mpsc::Receiver<Order<C>>,
    pool: &'a DerivedActorRef<Report<C>>,
    gauge: &'a Arc<Gauge>,
    stall: Duration,
}

impl<C: Capability> Joining<C> for Arrivals<'_, C> {
    fn joined(&mut self) -> Vec<Item<C>> {
        let mut joined = Vec::new();
        while let Ok(order) = self.orders.try_recv() {
            // A worker that runs gets no other order but a ping, which each step of the run answers.
            if let Order::Run(assignments) = order {
                follow(&tracing::Span::current(), assignments.iter().map(|(job, _)| &job.parts.span));
                joined.extend(items(assignments, self.gauge, self.stall));
            }
        }
        joined
    }

    fn left(&mut self, gone: Vec<Item<C>>) {
        let outcomes = outcomes(&gone, departure);
        let _ = self.pool.send_message(Report::Finished { worker: self.worker, outcomes });
    }
}

/// Loads the weights unless they are given, corrects the charge to what was measured, and builds the worker's
/// model. A footprint that is larger than what was reserved, and finds no room, is returned in `outgrown`.
fn build<C: Capability>(
    arguments: &ThreadArguments<C>,
    mut lease: Lease,
    shared: Option<Arc<SharedWeights<C>>>,
    outgrown: &mut Option<Footprint>,
) -> Result<Loaded<C>, Failure> {
    let context = &arguments.context;
    let weights = match shared {
        Some(weights) => weights,
        None => {
            let weights = Reaped::of_a_worker(arguments.model.loader.load(context)?);
            let measured = weights.footprint();
            let reserved = lease.bytes();
            if !lease.resize(measured.with_workers(1)) {
                *outgrown = Some(measured);
                let needed = measured.with_workers(1);
                let reason =
                    format!("it takes {needed}, for which there is no room, where {reserved} were reserved");
                return Err(Failure::failed(reason));
            }
            Arc::new(SharedWeights::new(weights, lease.split(measured.shared)))
        }
    };
    let model = Guarded::new(weights.weights().build(context)?);
    Ok(Loaded { model, weights, _lease: lease })
}

/// Notes that the span follows from these.
fn follow<'a>(span: &tracing::Span, causes: impl IntoIterator<Item = &'a tracing::Span>) {
    for cause in causes {
        span.follows_from(cause);
    }
}

/// Calls model code; a panic becomes a failure that may go better next time.
fn guarded<T>(call: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
    catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|panic| Err(Failure::failed(cause_of_panic(panic))))
}
