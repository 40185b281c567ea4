//! The scripted model of these tests: each request says what it does to the process that runs it. And the system around it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use model_actors::isolation::{IsolatedLoader, Isolation, ProcessOptions, sabotage};
use model_actors::testing::{FakeCapability, FakeLoader, quick_timings, shut_down};
use model_actors::{
    Batch, Bytes, CallOptions, Capability, Client, Failure, Footprint, Item, LoadContext, LoadStage, Loader,
    Model, ModelHandle, ModelSpec, PoolConfig, Portable, Result, StallLimits, Stopped, System, SystemConfig,
    Weights,
};
use rustix::process::{Signal, getpid, kill_process};
use serde::{Deserialize, Serialize};

/// Ways for a process to die.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) enum Fate {
    Segfault,
    Abort,
    StackOverflow,
    Exit,
    Kill,
}

impl Fate {
    pub(crate) const ALL: [(Self, &'static str); 5] = [
        (Self::Segfault, "SIGSEGV"),
        (Self::Abort, "SIGABRT"),
        (Self::StackOverflow, "SIGABRT"),
        (Self::Exit, "status 3"),
        (Self::Kill, "SIGKILL"),
    ];

    pub(crate) fn die(self) -> ! {
        match self {
            Self::Abort => std::process::abort(),
            Self::Exit => std::process::exit(3),
            Self::StackOverflow => {
                overflow(1);
            }
            // The first one finds the handler of the standard library, which steps aside.
            Self::Segfault => loop {
                kill_process(getpid(), Signal::SEGV).unwrap();
            },
            Self::Kill => kill_process(getpid(), Signal::KILL).unwrap(),
        }
        unreachable!("the process is dead")
    }
}

#[allow(unconditional_recursion, reason = "that is what it is for")]
fn overflow(depth: u64) -> u64 {
    let page = std::hint::black_box([depth; 512]);
    overflow(depth + 1) + page[0]
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Act {
    /// Answer with this.
    Reply(String),
    /// Answer with the names of the process's environment and its arguments.
    Environment,
    /// Make progress for so long.
    Tick(Duration),
    /// Make progress until the mark says that nobody waits.
    UntilCancelled,
    /// Make progress for ever.
    Deaf,
    /// Make none.
    Hang,
    Die(Fate),
    Panic,
    /// Write this in place of a frame, and make progress.
    Garbage(Vec<u8>),
    /// Have the process read no more, and make progress.
    StopReading,
    /// Take so many bytes.
    Allocate(usize),
}

/// Chunks to stream, and an act after them.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Ask {
    pub(crate) chunks: u64,
    pub(crate) act: Act,
    #[serde(with = "serde_bytes")]
    pub(crate) ballast: Vec<u8>,
}

impl From<Act> for Ask {
    fn from(act: Act) -> Self {
        Self { chunks: 0, act, ballast: Vec::new() }
    }
}

/// An answer, and the process that gave it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Said {
    pub(crate) words: String,
    pub(crate) process: u32,
}

#[derive(Debug)]
pub(crate) struct Acts;

impl Capability for Acts {
    type Request = Ask;
    type Chunk = u64;
    type Output = Said;
    const NAME: &'static str = "acts";
}

impl Portable for Acts {}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct ActLoader {
    /// Dies while it loads.
    pub(crate) dies: Option<Fate>,
    /// Dies once it is loaded, before it is asked for anything.
    pub(crate) dies_idle: bool,
    /// Admits requests between the steps of a run.
    pub(crate) joins: bool,
    /// Makes so many steps of progress while it loads, one each 20 ms.
    pub(crate) steps: u64,
    pub(crate) secret: String,
}

impl IsolatedLoader<Acts> for ActLoader {
    const NAME: &'static str = "acts";
}

impl Loader<Acts> for ActLoader {
    fn footprint(&self, _: &LoadContext) -> Result<Footprint, Failure> {
        Ok(Footprint::new(Bytes::mib(8), Bytes::mib(1)))
    }

    fn load(&self, context: &LoadContext) -> Result<Arc<dyn Weights<Acts>>, Failure> {
        if self.steps > 0 {
            context.begin(LoadStage::Load, Bytes(self.steps));
        }
        for _ in 0..self.steps {
            std::thread::sleep(Duration::from_millis(20));
            context.advance(Bytes(1));
        }
        match self.dies {
            Some(fate) => fate.die(),
            None => Ok(Arc::new(ActModel { joins: self.joins, dies_idle: self.dies_idle })),
        }
    }
}

#[derive(Clone)]
struct ActModel {
    joins: bool,
    dies_idle: bool,
}

impl Weights<Acts> for ActModel {
    fn footprint(&self) -> Footprint {
        Footprint::new(Bytes::mib(8), Bytes::mib(1))
    }

    fn build(&self, _: &LoadContext) -> Result<Box<dyn Model<Acts>>, Failure> {
        if self.dies_idle {
            // It reads nothing of what it is asked in the time that its parent takes to hear that it is loaded.
            sabotage::stop_reading();
            std::thread::spawn(|| {
                std::thread::sleep(Duration::from_millis(100));
                Fate::Kill.die()
            });
        }
        Ok(Box::new(self.clone()))
    }
}

impl Model<Acts> for ActModel {
    fn run(&mut self, batch: &mut Batch<Acts>) -> Result<(), Failure> {
        if self.joins {
            return run_in_steps(batch);
        }
        for item in batch.items() {
            for number in 0..item.request().chunks {
                if item.emit(number) == Err(Stopped) {
                    break;
                }
            }
            act(item);
        }
        Ok(())
    }
}

/// One chunk of each request in a step; those that have made theirs act.
fn run_in_steps(batch: &mut Batch<Acts>) -> Result<(), Failure> {
    let mut made: HashMap<_, u64> = HashMap::new();
    loop {
        batch.join();
        let mut goes_on = false;
        for item in batch.items().iter().filter(|item| !item.should_stop()) {
            let made = made.entry(item.id()).or_default();
            if *made < item.request().chunks {
                goes_on = true;
                if item.try_emit(*made).is_ok() {
                    *made += 1;
                }
            } else if matches!(item.request().act, Act::UntilCancelled) {
                goes_on = true;
            } else {
                act(item);
            }
        }
        if !goes_on && batch.join() == 0 {
            return Ok(());
        }
        pause();
    }
}

/// The time of a step.
fn pause() {
    std::thread::sleep(Duration::from_millis(1));
}

fn act(item: &Item<Acts>) {
    let mut words = String::new();
    match &item.request().act {
        Act::Reply(reply) => words.clone_from(reply),
        Act::Environment => {
            let names = std::env::vars_os().map(|(name, value)| format!("{name:?}={value:?}\n"));
            let arguments = std::env::args().map(|argument| format!("{argument}\n"));
            words = names.chain(arguments).collect();
        }
        Act::Tick(time) => {
            let began = std::time::Instant::now();
            while began.elapsed() < *time {
                pause();
                item.tick();
            }
        }
        Act::UntilCancelled => {
            while !item.should_stop() {
                pause();
                item.tick();
            }
        }
        Act::Deaf => tick_for_ever(item),
        Act::Hang => loop {
            std::thread::yield_now();
        },
        Act::Die(fate) => fate.die(),
        Act::Panic => panic!("the script says so"),
        Act::Garbage(bytes) => {
            sabotage::write_garbage(bytes);
            tick_for_ever(item)
        }
        Act::StopReading => {
            sabotage::stop_reading();
            tick_for_ever(item)
        }
        Act::Allocate(bytes) => {
            let taken = std::hint::black_box(vec![1_u8; *bytes]);
            words = taken.len().to_string();
        }
    }
    item.finish(Said { words, process: std::process::id() });
}

fn tick_for_ever(item: &Item<Acts>) -> ! {
    loop {
        pause();
        item.tick();
    }
}

/// The fake models of the crate, in a process.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Fakes {}

impl<C: FakeCapability + Portable> IsolatedLoader<C> for Fakes {
    const NAME: &'static str = "fakes";
}

impl<C: FakeCapability> Loader<C> for Fakes {
    fn footprint(&self, context: &LoadContext) -> Result<Footprint, Failure> {
        Loader::<C>::footprint(&FakeLoader::default(), context)
    }

    fn load(&self, context: &LoadContext) -> Result<Arc<dyn Weights<C>>, Failure> {
        FakeLoader::default().load(context)
    }
}

/// A system with a pool of these models, each with one worker at most.
pub(crate) struct Stage {
    pub(crate) system: System,
    pub(crate) acts: Client<Acts>,
}

/// A second for a run without progress, which passes in no test by itself.
pub(crate) fn timings() -> (SystemConfig, PoolConfig) {
    let (system, pool) = quick_timings();
    let stall = StallLimits::default().with_load(Duration::from_secs(20)).with_run(Duration::from_secs(3));
    (system, pool.with_stall(stall).with_max_workers(1))
}

impl Stage {
    pub(crate) async fn start() -> Self {
        Self::with(timings()).await
    }

    pub(crate) async fn with((system, pool): (SystemConfig, PoolConfig)) -> Self {
        let system = System::builder(system).pool::<Acts>(pool).start().await.unwrap();
        let acts = system.client::<Acts>().unwrap();
        Self { system, acts }
    }

    pub(crate) fn model(&self, name: &str) -> ModelHandle<Acts> {
        self.model_with(name, ActLoader::default(), ProcessOptions::default())
    }

    pub(crate) fn model_with(
        &self,
        name: &str,
        loader: ActLoader,
        options: ProcessOptions,
    ) -> ModelHandle<Acts> {
        let joins = loader.joins;
        let spec = ModelSpec::isolated(name, loader, &Isolation::Process(options)).unwrap();
        self.acts.register(if joins { spec.continuous() } else { spec }).unwrap()
    }

    /// Shuts down, and checks that nothing is left.
    pub(crate) async fn finish(self) {
        let (report, leaks) = shut_down(&self.system).await;
        assert!(report.is_clean() && leaks.is_empty(), "{report:?} {leaks:?}");
    }
}

pub(crate) async fn ask(model: &ModelHandle<Acts>, act: Act) -> Result<Said> {
    model.call(act.into(), CallOptions::default()).await
}

/// The process that serves the model.
pub(crate) async fn process_of(model: &ModelHandle<Acts>) -> u32 {
    ask(model, Act::Reply(String::new())).await.unwrap().process
}

/// True while there is such a process, if only as a zombie.
pub(crate) fn is_there(process: u32) -> bool {
    std::path::Path::new(&format!("/proc/{process}")).exists()
}

/// Runs a test on a runtime of its own.
pub(crate) fn block_on(test: impl Future<Output = ()>) {
    let limit = Duration::from_secs(120);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(limit, test).await.expect("the test ends") });
}
