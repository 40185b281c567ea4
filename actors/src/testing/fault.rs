//! Faults of any model, as values: one for each load and one for each run, in turn. Models that need none of real
//! weights are in `fake`.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::gate::Latch;
use crate::batch::Batch;
use crate::capability::Capability;
use crate::error::{Cause, Failure};
use crate::id::Bytes;
use crate::model::{Fetch, Footprint, LoadContext, Loader, Model, Weights};
use crate::progress::Hook;

/// A model that hangs goes on after this, so that a forgotten gate cannot hang a test run.
pub(super) const HANG_LIMIT: Duration = Duration::from_secs(60);

/// A fault of one load or one run.
///
/// ```
/// use model_actors::Failure;
/// use model_actors::testing::Fault;
/// let third_load_succeeds = [Fault::Panic, Fault::Fail(Failure::out_of_memory("no page left")), Fault::None];
/// # drop(third_load_succeeds);
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Fault {
    /// It goes well.
    None,
    /// It fails in this way; a run fails before it begins.
    Fail(Failure),
    /// It panics before it begins.
    Panic,
    /// It makes no progress before the latch opens, at most for a minute, and goes well then.
    Hang(Latch),
    /// It pauses so long: a load before it begins, with progress; a run at each step that it reports.
    Slow(Duration),
}

/// A loader with faults. Loads and runs beyond the given ones go well.
///
/// ```
/// use model_actors::testing::{FakeLoader, Fault, FaultyLoader};
/// use model_actors::{Failure, ModelSpec, TextToText};
/// let loader = FaultyLoader::new(FakeLoader::<TextToText>::default())
///     .with_load_faults([Fault::Fail(Failure::failed("the disk is gone"))])
///     .with_run_faults([Fault::None, Fault::Panic]);
/// let spec = ModelSpec::<TextToText>::new("chat", loader);
/// # drop(spec);
/// ```
pub struct FaultyLoader<L> {
    loader: L,
    loads: Script,
    runs: Script,
}

impl<L> FaultyLoader<L> {
    /// A loader without faults.
    pub fn new(loader: L) -> Self {
        Self { loader, loads: Script::default(), runs: Script::default() }
    }

    /// Faults of the first loads, in turn.
    #[must_use]
    pub fn with_load_faults(mut self, faults: impl IntoIterator<Item = Fault>) -> Self {
        self.loads = Script::of(faults);
        self
    }

    /// Faults of the first runs of all workers, in turn. Requests that join a run of a continuous model share its
    /// fault; [`ModelSpec::per_run`](crate::ModelSpec::per_run) gives each batch a run of its own.
    #[must_use]
    pub fn with_run_faults(mut self, faults: impl IntoIterator<Item = Fault>) -> Self {
        self.runs = Script::of(faults);
        self
    }
}

/// The faults to come.
#[derive(Clone, Default)]
struct Script(Arc<Mutex<VecDeque<Fault>>>);

impl Script {
    fn of(faults: impl IntoIterator<Item = Fault>) -> Self {
        Self(Arc::new(Mutex::new(faults.into_iter().collect())))
    }

    fn next(&self) -> Fault {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pop_front().unwrap_or(Fault::None)
    }
}

impl<C: Capability, L: Loader<C>> Loader<C> for FaultyLoader<L> {
    fn check(&self, request: &C::Request) -> Result<(), Cause> {
        self.loader.check(request)
    }

    fn digest(&self, fetch: Fetch, context: &LoadContext) -> Result<Option<String>, Failure> {
        self.loader.digest(fetch, context)
    }

    fn size(&self, fetch: Fetch, context: &LoadContext) -> Result<Option<Footprint>, Failure> {
        self.loader.size(fetch, context)
    }

    fn footprint(&self, context: &LoadContext) -> Result<Footprint, Failure> {
        self.loader.footprint(context)
    }

    fn load(&self, context: &LoadContext) -> Result<Arc<dyn Weights<C>>, Failure> {
        match self.loads.next() {
            Fault::None => {}
            Fault::Fail(failure) => return Err(failure),
            Fault::Panic => panic!("the script says that this load panics"),
            Fault::Hang(latch) => drop(latch.wait(HANG_LIMIT)),
            Fault::Slow(pause) => pause_in_steps(pause, context),
        }
        let weights = self.loader.load(context)?;
        Ok(Arc::new(Faulty { weights, runs: self.runs.clone() }))
    }
}

/// Pauses with progress, until it is told to stop.
fn pause_in_steps(pause: Duration, context: &LoadContext) {
    const STEPS: u32 = 50;
    for _ in 0..STEPS {
        if context.should_stop() {
            return;
        }
        std::thread::sleep(pause / STEPS);
        context.advance(Bytes::ZERO);
    }
}

struct Faulty<C: Capability> {
    weights: Arc<dyn Weights<C>>,
    runs: Script,
}

impl<C: Capability> Weights<C> for Faulty<C> {
    fn footprint(&self) -> Footprint {
        self.weights.footprint()
    }

    fn build(&self, context: &LoadContext) -> Result<Box<dyn Model<C>>, Failure> {
        let pause = Arc::new(AtomicU64::new(0));
        let nanos = pause.clone();
        let sleep = move || std::thread::sleep(Duration::from_nanos(nanos.load(Ordering::Relaxed)));
        context.gauge.hook(&Hook(Arc::new(sleep)));
        Ok(Box::new(FaultyModel { model: self.weights.build(context)?, runs: self.runs.clone(), pause }))
    }
}

struct FaultyModel<C: Capability> {
    model: Box<dyn Model<C>>,
    runs: Script,
    /// Nanoseconds to pause at each step.
    pause: Arc<AtomicU64>,
}

impl<C: Capability> Model<C> for FaultyModel<C> {
    fn run(&mut self, batch: &mut Batch<C>) -> Result<(), Failure> {
        let fault = self.runs.next();
        let pause = if let Fault::Slow(pause) = fault { pause } else { Duration::ZERO };
        self.pause.store(u64::try_from(pause.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
        match fault {
            Fault::None | Fault::Slow(_) => {}
            Fault::Fail(failure) => return Err(failure),
            Fault::Panic => panic!("the script says that this run panics"),
            Fault::Hang(latch) => drop(latch.wait(HANG_LIMIT)),
        }
        self.model.run(batch)
    }

    fn health(&mut self) -> Result<(), Cause> {
        self.model.health()
    }
}
