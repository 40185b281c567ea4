//! A model whose every fault is a value: each request says what happens when it runs, and the loader what
//! happens when it loads. A [`Record`] counts what really happened.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use super::act::{Act, Record, ScriptedCapability};
use super::fault::HANG_LIMIT;
use super::gate::Latch;
use crate::batch::{Batch, Item};
use crate::error::{Failure, FailureKind};
use crate::id::Bytes;
use crate::memory::PrefixCache;
use crate::model::{Footprint, LoadContext, Loader, Model, Weights};
use crate::progress::LoadStage;

/// Loads a scripted model; its faults are set before it is registered.
///
/// ```
/// use model_actors::testing::ScriptedLoader;
/// let loader = ScriptedLoader { load_fails: 2, ..ScriptedLoader::default() };
/// assert_eq!(loader.load_fails, 2);
/// ```
#[derive(Debug, Clone)]
pub struct ScriptedLoader {
    /// Its footprint.
    pub footprint: Footprint,
    /// The footprint that it states before it is loaded, if that is not the truth.
    pub estimate: Option<Footprint>,
    /// Fails the first so many loads.
    pub load_fails: usize,
    /// The kind of those failures.
    pub failure: FailureKind,
    /// Panics in the first so many loads.
    pub load_panics: usize,
    /// A load makes steady progress for so long.
    pub load_time: Duration,
    /// Fails the first so many questions for the footprint, as it fails loads.
    pub size_fails: usize,
    /// Fails the first so many builds of a worker's model, as it fails loads.
    pub build_fails: usize,
    /// Panics in the first so many builds of a worker's model.
    pub build_panics: usize,
    /// A load makes progress until this opens.
    pub load_works: Option<Latch>,
    /// A load makes no progress until this opens.
    pub load_hangs: Option<Latch>,
    /// Only the first so many loads hang. `None`: all.
    pub hung_loads: Option<usize>,
    /// After each run, answered and reported, a worker of a model with continuous batching makes no progress
    /// until this opens: its thread hangs while the scheduler has it idle.
    pub hangs_when_idle: Option<Latch>,
    /// The weights of the first so many loads are never freed: a leak, for the checks that must catch it.
    pub weights_leaked: usize,
    /// Bytes that each [`Act::Reply`] of a new value adds to the model's prefix cache, if there is room.
    pub cached_by_reply: Bytes,
    /// Counts of what happened.
    pub record: Arc<Record>,
}

impl Default for ScriptedLoader {
    fn default() -> Self {
        Self {
            footprint: Footprint { shared: Bytes::mib(10), per_worker: Bytes::mib(1) },
            estimate: None,
            load_fails: 0,
            failure: FailureKind::Failed,
            load_panics: 0,
            load_time: Duration::ZERO,
            size_fails: 0,
            build_fails: 0,
            build_panics: 0,
            load_works: None,
            load_hangs: None,
            hung_loads: None,
            hangs_when_idle: None,
            weights_leaked: 0,
            cached_by_reply: Bytes::ZERO,
            record: Arc::default(),
        }
    }
}

impl<C: ScriptedCapability> Loader<C> for ScriptedLoader {
    fn footprint(&self, _context: &LoadContext) -> Result<Footprint, Failure> {
        let sizing = self.record.sizings.fetch_add(1, Ordering::SeqCst);
        fail_first(self.size_fails, sizing, "sizing", self.failure)?;
        Ok(self.estimate.unwrap_or(self.footprint))
    }

    fn load(&self, context: &LoadContext) -> Result<Arc<dyn Weights<C>>, Failure> {
        let load = self.record.loads.fetch_add(1, Ordering::SeqCst);
        context.begin(LoadStage::Load, self.footprint.shared);
        self.read_half(context);
        if let Some(latch) =
            self.load_hangs.as_ref().filter(|_| self.hung_loads.is_none_or(|first| load < first))
        {
            latch.wait(HANG_LIMIT);
        }
        if let Some(latch) = &self.load_works {
            while !latch.wait(Duration::from_millis(1)) && !context.should_stop() {
                context.advance(Bytes(0));
            }
        }
        if load < self.load_panics {
            panic!("the script says that load {load} panics");
        }
        fail_first(self.load_fails, load, "load", self.failure)?;
        // One that hangs does not look at its mark either.
        if self.load_hangs.is_none() && context.should_stop() {
            return Err(Failure::stopped());
        }
        self.read_half(context);
        self.record.weights_alive.fetch_add(1, Ordering::SeqCst);
        let cache = Arc::new(context.prefix_cache(Bytes(u64::MAX)));
        let weights = Arc::new(ScriptedWeights { loader: self.clone(), cache });
        if load < self.weights_leaked {
            std::mem::forget(weights.clone());
        }
        Ok(weights)
    }
}

impl ScriptedLoader {
    /// Half of the bytes: at once, or in steps that take half of [`Self::load_time`] together.
    fn read_half(&self, context: &LoadContext) {
        let steps = if self.load_time.is_zero() { 1 } else { 50 };
        let bytes = self.footprint.shared.0 / 2;
        for step in 0..steps {
            if !self.load_time.is_zero() && !context.should_stop() {
                std::thread::sleep(self.load_time / 2 / steps);
            }
            // However they divide, the steps come to the whole.
            let until = |step: u32| bytes * u64::from(step) / u64::from(steps);
            context.advance(Bytes(until(step + 1) - until(step)));
        }
    }
}

fn fail_first(times: usize, number: usize, what: &str, kind: FailureKind) -> Result<(), Failure> {
    if number >= times {
        return Ok(());
    }
    let failure = Failure::failed(format!("the script says that {what} {number} fails"));
    Err(Failure { kind, ..failure })
}

struct ScriptedWeights {
    loader: ScriptedLoader,
    cache: Arc<PrefixCache<()>>,
}

impl Drop for ScriptedWeights {
    fn drop(&mut self) {
        self.loader.record.weights_alive.fetch_sub(1, Ordering::SeqCst);
    }
}

impl<C: ScriptedCapability> Weights<C> for ScriptedWeights {
    fn footprint(&self) -> Footprint {
        self.loader.footprint
    }

    fn build(&self, _context: &LoadContext) -> Result<Box<dyn Model<C>>, Failure> {
        let record = &self.loader.record;
        let build = record.builds.fetch_add(1, Ordering::SeqCst);
        if build < self.loader.build_panics {
            panic!("the script says that build {build} panics");
        }
        fail_first(self.loader.build_fails, build, "build", self.loader.failure)?;
        record.models_alive.fetch_add(1, Ordering::SeqCst);
        let hangs_when_idle = self.loader.hangs_when_idle.clone();
        let (cache, cached_by_reply) = (self.cache.clone(), self.loader.cached_by_reply);
        Ok(Box::new(ScriptedModel { record: record.clone(), hangs_when_idle, cache, cached_by_reply }))
    }
}

struct ScriptedModel {
    record: Arc<Record>,
    hangs_when_idle: Option<Latch>,
    cache: Arc<PrefixCache<()>>,
    cached_by_reply: Bytes,
}

impl Drop for ScriptedModel {
    fn drop(&mut self) {
        self.record.models_alive.fetch_sub(1, Ordering::SeqCst);
    }
}

impl<C: ScriptedCapability> Model<C> for ScriptedModel {
    fn run(&mut self, batch: &mut Batch<C>) -> Result<(), Failure> {
        self.record.runs.fetch_add(1, Ordering::SeqCst);
        let names = batch.items().iter().enumerate().map(|(index, item)| match item.request().act {
            Act::Reply(value) => value,
            _ => index as u64,
        });
        self.record.batches.lock().unwrap_or_else(PoisonError::into_inner).push(names.collect());
        let mut done = 0;
        loop {
            while let Some(item) = batch.items().get(done) {
                self.act(batch, item)?;
                done += 1;
            }
            let joined = batch.join();
            done = batch.items().len() - joined;
            if joined == 0 {
                if let Some(latch) = &self.hangs_when_idle {
                    latch.wait(HANG_LIMIT);
                }
                return Ok(());
            }
        }
    }
}

impl ScriptedModel {
    fn act<C: ScriptedCapability>(&self, batch: &Batch<C>, item: &Item<C>) -> Result<(), Failure> {
        batch.tick();
        match &item.request().act {
            Act::Reply(value) => {
                if self.cached_by_reply > Bytes::ZERO {
                    let (number, took) = ([*value as u32], Duration::from_millis(1));
                    self.cache.insert(None, &number, self.cached_by_reply, took, || ());
                }
                item.finish(*value);
            }
            Act::Fail => return Err(Failure::failed("the script says that the batch fails")),
            Act::Refuse => item.fail(Failure::invalid_input("the script says that the input is bad")),
            Act::Panic => panic!("the script says panic"),
            Act::PanicTimes(left) => {
                if takes_one(left) {
                    panic!("the script says panic");
                }
                item.finish(0);
            }
            Act::StarveTimes(left) => {
                if takes_one(left) {
                    return Err(Failure::out_of_memory("the script says that there is no memory"));
                }
                item.finish(0);
            }
            Act::StarveBeside(other) => {
                if other.weights_alive.load(Ordering::SeqCst) > 0 {
                    return Err(Failure::out_of_memory("the script says that there is no memory"));
                }
                item.finish(0);
            }
            Act::Forget => {}
            Act::Hang(latch) => {
                latch.wait(HANG_LIMIT);
                item.finish(0);
            }
            Act::BeginThenWork(latch) => {
                item.begin();
                if work(batch, item, latch) {
                    item.finish(0);
                }
            }
            Act::Work(latch) => {
                if work(batch, item, latch) {
                    item.finish(0);
                }
            }
            Act::WorkFor(time) => {
                let end = Instant::now() + *time;
                while Instant::now() < end && !item.should_stop() {
                    std::thread::sleep(Duration::from_millis(1));
                    batch.tick();
                }
                item.finish(0);
            }
            Act::Stream(chunks) => {
                if stream(item, *chunks) {
                    item.finish(*chunks);
                }
            }
            Act::StreamThenPanic(chunks) => {
                stream(item, *chunks);
                panic!("the script says panic");
            }
            Act::StreamThenPanicTimes(chunks, left) => {
                stream(item, *chunks);
                if takes_one(left) {
                    panic!("the script says panic");
                }
                item.finish(*chunks);
            }
            Act::WorkOrStopAll(latch) => {
                if !work(batch, item, latch) {
                    return Err(Failure::stopped());
                }
                item.finish(0);
            }
            Act::StreamThenWork(chunks, latch) => {
                if stream(item, *chunks) && work(batch, item, latch) {
                    item.finish(*chunks);
                }
            }
            Act::Steps(steps) => self.steps(batch, item, *steps),
            Act::NeedsBatchOf(limit) => {
                if batch.items().len() > *limit {
                    return Err(Failure::out_of_memory("the script says that the batch is too large"));
                }
                item.finish(0);
            }
        }
        Ok(())
    }

    fn steps<C: ScriptedCapability>(&self, batch: &Batch<C>, item: &Item<C>, steps: u64) {
        for step in 0..steps {
            if item.should_stop() {
                return;
            }
            self.record.steps.fetch_add(1, Ordering::SeqCst);
            batch.tick();
            if let Some(chunk) = C::chunk(step)
                && item.emit(chunk).is_err()
            {
                return;
            }
        }
        item.finish(steps);
    }
}

/// Takes one from what is left, if anything is.
fn takes_one(left: &AtomicUsize) -> bool {
    left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok()
}

/// False if it was told to stop before the latch opened.
fn work<C: ScriptedCapability>(batch: &Batch<C>, item: &Item<C>, latch: &Latch) -> bool {
    while !latch.wait(Duration::from_millis(1)) {
        if item.should_stop() {
            return false;
        }
        batch.tick();
    }
    true
}

fn stream<C: ScriptedCapability>(item: &Item<C>, chunks: u64) -> bool {
    (0..chunks).all(|number| C::chunk(number).is_none_or(|chunk| item.emit(chunk).is_ok()))
}
