//! One phase of the soak test: a system of its own, many callers at once, tasks that unload, pin and kill,
//! and a shutdown in the middle of it all. At its end it counts the resources that are still held.

use std::ops::AddAssign;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use candle_actors::model_actors::Error;
use candle_actors::model_actors::testing::{
    Act, Gate, Latch, Record, Scripted, ScriptedCapability, ScriptedLoader, StreamedScript,
};
use candle_actors::{
    BatchLimits, Bytes, Client, Device, Event, ModelHandle, ModelSpec, PoolConfig, QueueCapacity,
    ReplyStream, RequestPhase, RestartConfig, StallLimits, System, SystemConfig, WhenFull,
};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::ledger::{Earned, Ending, Ledger};
use super::meter::Reading;
use super::plan::{Balky, Caller, Gates, Kept, Kind, PhasePlan, Plant, RequestPlan};

/// Callers at a time.
const CALLERS: usize = 64;
/// Tasks that disturb the system at a time.
const MEDDLERS: usize = 3;
/// Time that no answer may take: several times the sum of all limits below.
const NEVER: Duration = Duration::from_secs(20);
/// Time to the first output of a request that brings none of its own.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);
/// Time for resources to be released at the end.
const SETTLE: Duration = Duration::from_secs(5);

/// Resources that are still held at the end.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Leftovers {
    slots: usize,
    bytes: Bytes,
    models: usize,
}

impl AddAssign for Leftovers {
    fn add_assign(&mut self, other: Self) {
        self.slots += other.slots;
        self.bytes += other.bytes;
        self.models += other.models;
    }
}

impl Leftovers {
    /// Resources of the systems and of the process together.
    pub(crate) fn on_top_of(self, process: Reading) -> Reading {
        Reading { slots: self.slots, bytes: self.bytes.0, models: self.models, ..process }
    }

    fn is_empty(self) -> bool {
        self.slots == 0 && self.bytes == Bytes::ZERO && self.models == 0
    }
}

struct Phase {
    plan: PhasePlan,
    ledger: Arc<Ledger>,
    system: System,
    scripted: Vec<ModelHandle<Scripted>>,
    streamed: ModelHandle<StreamedScript>,
    records: Vec<Arc<Record>>,
    gates: Gates,
    kept: Latch,
    next: AtomicUsize,
    over: AtomicBool,
}

/// Runs a phase from its start to its end.
///
/// # Errors
/// If the system could not be started.
pub(crate) async fn run(plan: PhasePlan, ledger: Arc<Ledger>, kept: &Kept) -> Result<Leftovers, Error> {
    let first_load = Gate::default();
    let phase = Arc::new(Phase::start(plan, ledger, kept, &first_load).await?);
    let events = tokio::spawn(watch(phase.system.events(), phase.ledger.clone()));
    let mut callers = JoinSet::new();
    for _ in 0..CALLERS {
        callers.spawn(phase.clone().call());
    }
    let mut meddlers = JoinSet::new();
    for number in 0..MEDDLERS {
        meddlers.spawn(phase.clone().meddle(number as u64));
    }
    phase.reach(phase.plan.requests.start + phase.plan.requests.len() / 4).await;
    first_load.open();
    if phase.plan.kills() {
        phase.kill().await;
    }
    phase.reach(phase.plan.shutdown_at()).await;
    phase.end().await;
    // Whoever does not come back has not written its ending down, which the ledger shows.
    let _ = timeout(2 * NEVER, async { while callers.join_next().await.is_some() {} }).await;
    let _ = timeout(2 * NEVER, async { while meddlers.join_next().await.is_some() {} }).await;
    let left = phase.settle().await;
    drop(phase);
    let _ = timeout(NEVER, events).await;
    Ok(left)
}

/// Settings in milliseconds where the defaults are seconds.
fn settings() -> (SystemConfig, PoolConfig) {
    let restart = RestartConfig::default()
        .with_max_restarts(1000)
        .with_first_backoff(Duration::from_millis(1))
        .with_max_backoff(Duration::from_millis(10))
        .with_breaker_open(Duration::from_millis(40));
    let system = SystemConfig::default()
        .with_memory_limit(Bytes::mib(96))
        .with_maintenance_interval(Duration::from_millis(50))
        .with_shutdown_timeout(Duration::from_millis(400))
        .with_restart(restart)
        .with_event_capacity(1 << 16);
    let pool = PoolConfig::default()
        .with_request_timeout(REQUEST_TIMEOUT)
        .with_max_workers(3)
        .with_cold_start_workers(1)
        .with_queue(QueueCapacity::new(24, 8))
        .with_stream_buffer(4)
        .with_cooldown_idle(Duration::from_millis(100))
        .with_room_wait(Duration::from_millis(300))
        .with_min_residency(Duration::from_millis(20))
        .with_restart(restart)
        .with_stall(
            StallLimits::default().with_load(Duration::from_secs(2)).with_run(Duration::from_millis(150)),
        )
        .with_batch(BatchLimits::default().with_requests(8))
        .with_aging(Duration::from_millis(200));
    (system, pool)
}

/// Settings of a model that differ from the pool's.
fn settings_of(kind: Kind, pool: &PoolConfig) -> PoolConfig {
    let mut config = pool.clone();
    match kind {
        // Open for so long that some of its few requests come meanwhile, however fast the machine is.
        Kind::Fragile => {
            config.restart =
                config.restart.with_max_restarts(2).with_breaker_open(Duration::from_millis(200));
        }
        Kind::Stalling => config.stall.load = Duration::from_millis(80),
        _ => {}
    }
    config
}

impl Phase {
    async fn start(
        plan: PhasePlan,
        ledger: Arc<Ledger>,
        kept: &Kept,
        first_load: &Gate,
    ) -> Result<Self, Error> {
        let (system, pool) = settings();
        let builder = System::builder(system).pool::<Scripted>(pool.clone());
        let system = builder.pool::<StreamedScript>(pool.clone()).start().await?;
        let client: Client<Scripted> = system.client()?;
        let streams: Client<StreamedScript> = system.client()?;
        let (mut scripted, mut records) = (Vec::new(), Vec::new());
        let streamed = streams.register(spec(Kind::Streamed, &plan, &pool, first_load, &mut records))?;
        for kind in Kind::ALL.into_iter().filter(|kind| *kind != Kind::Streamed) {
            scripted.push(client.register(spec(kind, &plan, &pool, first_load, &mut records))?);
        }
        let (next, over) = (AtomicUsize::new(plan.requests.start), AtomicBool::new(false));
        let (gates, kept) = (Gates::default(), kept.latch());
        Ok(Self { plan, ledger, system, scripted, streamed, records, gates, kept, next, over })
    }

    /// Waits until so many requests have been sent, or nothing moves any more.
    async fn reach(&self, request: usize) {
        let end = Instant::now() + 3 * NEVER;
        while self.next.load(Ordering::Relaxed) < request && Instant::now() < end {
            sleep(Duration::from_millis(2)).await;
        }
    }

    /// Caller that sends one request after another, until none is left.
    async fn call(self: Arc<Self>) {
        loop {
            let index = self.next.fetch_add(1, Ordering::Relaxed);
            if index >= self.plan.requests.end {
                return;
            }
            let plan = self.plan.request(index, &self.gates, &self.kept);
            self.ledger.sent();
            let ending = timeout(NEVER, self.perform(&plan)).await.unwrap_or_else(|_| {
                let status = self.system.status();
                let model = status.pools.iter().find_map(|pool| pool.model(plan.kind.name()));
                let model = serde_json::to_string(&model).unwrap_or_default();
                eprintln!("request {index} was never answered: {:?}, {:?}; {model}", plan.act, plan.caller);
                Ending::Never
            });
            self.ledger.ended(index, ending);
        }
    }

    async fn perform(&self, plan: &RequestPlan) -> Ending {
        let model = self.scripted.iter().find(|model| model.id().as_str() == plan.kind.name());
        let began = Instant::now();
        let ending = match model {
            Some(model) => perform(model, plan).await,
            None => perform(&self.streamed, plan).await,
        };
        match ending {
            Ending::Failed(error, _) => {
                let earned = earned(plan, &error, began.elapsed(), self.plan.kills());
                if earned == Earned::No {
                    eprintln!("{:?} of {} ended with: {error}", plan.act, plan.kind.name());
                }
                Ending::Failed(error, earned)
            }
            other => other,
        }
    }

    /// Unloads, preloads, pins, and lets hung models go, at random.
    async fn meddle(self: Arc<Self>, number: u64) {
        let mut random = self.plan.random((2 << 40) + number);
        while !self.over.load(Ordering::Relaxed) {
            sleep(Duration::from_millis(random.u64(5..40))).await;
            if random.u32(..8) == 0 {
                self.gates.turn();
            }
            let (pick, what) = (random.usize(..=self.scripted.len()), random.u32(..10));
            let call = async {
                match self.scripted.get(pick) {
                    Some(model) => manage(model, what).await,
                    None => manage(&self.streamed, what).await,
                }
            };
            self.ledger.called(timeout(NEVER, call).await.is_ok());
        }
    }

    /// Kills two of the system's children while they work: its pools, or maintenance.
    async fn kill(&self) {
        let mut random = self.plan.random(3 << 40);
        for _ in 0..2 {
            let children = self.system.cell().get_children();
            if let Some(child) = random.choice(children) {
                self.ledger.saw("child of the system killed");
                child.kill();
            }
            sleep(Duration::from_millis(random.u64(20..100))).await;
        }
    }

    async fn end(&self) {
        if self.plan.lets_go_first() {
            self.gates.open();
        }
        let report = timeout(NEVER, self.system.shutdown()).await;
        self.ledger.called(report.is_ok());
        self.gates.open();
        self.over.store(true, Ordering::Relaxed);
    }

    async fn settle(&self) -> Leftovers {
        let end = Instant::now() + SETTLE;
        loop {
            let mut left = self.left();
            if left.is_empty() || Instant::now() > end {
                left.slots += usize::from(self.plan.plant() == Some(Plant::Leak));
                return left;
            }
            sleep(Duration::from_millis(5)).await;
        }
    }

    fn left(&self) -> Leftovers {
        let held = |(free, all): (usize, usize)| all - free;
        let scripted = self.system.client::<Scripted>().map(|client| held(client.slots()));
        let streamed = self.system.client::<StreamedScript>().map(|client| held(client.slots()));
        let models = self.records.iter().map(|record| {
            record.models_alive.load(Ordering::SeqCst) + record.weights_alive.load(Ordering::SeqCst)
        });
        Leftovers {
            slots: scripted.unwrap_or(0) + streamed.unwrap_or(0),
            bytes: self.system.charged(&Device::host()).map_or(Bytes::ZERO, |(charged, _)| charged),
            models: models.sum(),
        }
    }
}

fn spec<C: ScriptedCapability>(
    kind: Kind,
    plan: &PhasePlan,
    pool: &PoolConfig,
    first_load: &Gate,
    records: &mut Vec<Arc<Record>>,
) -> ModelSpec<C> {
    let mut loader = ScriptedLoader { footprint: kind.footprint(), ..ScriptedLoader::default() };
    records.push(loader.record.clone());
    if kind == Kind::Stalling {
        loader.load_hangs = Some(first_load.latch());
    }
    let random = plan.random(4 << 40).into();
    let spec = match kind {
        Kind::Balky => ModelSpec::new(kind.name(), Balky { inner: loader, random }),
        _ => ModelSpec::new(kind.name(), loader),
    };
    spec.config(settings_of(kind, pool))
}

async fn manage<C: ScriptedCapability>(model: &ModelHandle<C>, what: u32) {
    // How a call ends depends on what else goes on; that it returns does not.
    let _ = match what {
        0..4 => model.unload(Duration::from_millis(200)).await,
        4..7 => model.preload().await,
        7 => model.pin(true).await,
        _ => model.pin(false).await,
    };
}

async fn perform<C: ScriptedCapability<Chunk: PartialEq>>(
    model: &ModelHandle<C>,
    plan: &RequestPlan,
) -> Ending {
    let (request, options) = (plan.request(), plan.options.clone());
    match plan.caller {
        Caller::Calls => ended(plan, model.call(request, options).await),
        Caller::Tries => ended(plan, model.call(request, options.with_when_full(WhenFull::Fail)).await),
        Caller::Drops(after) => match timeout(after, model.call(request, options)).await {
            Ok(result) => ended(plan, result),
            Err(_) => Ending::Cancelled,
        },
        _ => match model.stream(request, options).await {
            Ok(stream) => read(stream, plan).await,
            Err(error) => Ending::Refused(error),
        },
    }
}

async fn read<C: ScriptedCapability<Chunk: PartialEq>>(
    mut stream: ReplyStream<C>,
    plan: &RequestPlan,
) -> Ending {
    if matches!(plan.caller, Caller::Opens) {
        return ended(plan, stream.output().await);
    }
    let mut chunks = 0;
    while let Some(Ok(chunk)) = stream.next().await {
        if C::chunk(chunks).is_some_and(|expected| expected != chunk) {
            return Ending::Wrong;
        }
        chunks += 1;
        match plan.caller {
            Caller::Leaves(after) if chunks > after => return Ending::Cancelled,
            Caller::Pauses(pause) if chunks == 1 => sleep(pause).await,
            _ => {}
        }
    }
    let result = stream.output().await;
    let all_chunks = match plan.act {
        Act::Stream(all) | Act::Steps(all) | Act::StreamThenWork(all, _) => Some(all),
        _ => None,
    };
    match all_chunks {
        Some(all) if result.is_ok() && all != chunks => Ending::Wrong,
        _ => ended(plan, result),
    }
}

fn ended(plan: &RequestPlan, result: Result<u64, Error>) -> Ending {
    let expected = match plan.act {
        Act::Reply(value) | Act::Steps(value) | Act::Stream(value) | Act::StreamThenWork(value, _) => value,
        _ => 0,
    };
    match result {
        Ok(value) if value == expected => Ending::Good,
        Ok(_) => Ending::Wrong,
        Err(error) if is_refusal(&error) => Ending::Refused(error),
        Err(error) => Ending::Failed(error, Earned::Yes),
    }
}

fn is_refusal(error: &Error) -> bool {
    match error {
        Error::Timeout { phase, .. } => *phase == RequestPhase::WaitingForSlot,
        Error::Overloaded { .. }
        | Error::NoWorkers { .. }
        | Error::SendError { .. }
        | Error::UnknownModel { .. }
        | Error::ShuttingDown => true,
        _ => false,
    }
}

/// Cause of an error. A well-behaved request may run out of time or memory, or find its model's breaker open;
/// it must never fail because of another request of its batch.
fn earned(plan: &RequestPlan, error: &Error, took: Duration, kills: bool) -> Earned {
    let yes = match error {
        Error::ModelError { .. } => matches!(plan.act, Act::Fail),
        Error::InvalidInput { .. } => matches!(plan.act, Act::Refuse),
        // One that panics once is poison all the same if another had killed the worker under it before. A stream that was
        // asked for its output alone has sent out nothing.
        Error::Poison { .. } => {
            matches!(plan.act, Act::Panic | Act::PanicTimes(_) | Act::StreamThenPanic(_))
        }
        // What a stream has sent out cannot be taken back, so it ends with its worker, whoever killed that.
        // Without a stream that is so only once the deadline has passed.
        Error::WorkerCrashed { .. } if matches!(plan.caller, Caller::Tries | Caller::Drops(_)) => {
            plan.kind == Kind::Streamed && took >= plan.options.timeout.unwrap_or(REQUEST_TIMEOUT)
        }
        Error::WorkerCrashed { .. } | Error::SlowReader { .. } => plan.kind == Kind::Streamed,
        Error::RecvError { .. } => kills,
        Error::SpawnFailed { .. } => matches!(plan.kind, Kind::Balky | Kind::Stalling | Kind::Hanging),
        Error::MemoryExhausted { .. }
        | Error::Timeout { .. }
        | Error::CircuitOpen { .. }
        | Error::WorkerStuck { .. } => true,
        _ => false,
    };
    if yes { Earned::Yes } else { Earned::No }
}

/// Records the system's events until it is gone.
async fn watch(mut events: tokio::sync::broadcast::Receiver<Event>, ledger: Arc<Ledger>) {
    use tokio::sync::broadcast::error::RecvError;
    loop {
        let what = match events.recv().await {
            Ok(Event::WorkerStarted { .. }) => "worker started",
            Ok(Event::WorkerCrashed { .. }) => "worker crashed",
            Ok(Event::WorkerRestarted { .. }) => "worker restarted",
            Ok(Event::WorkerStuck { .. }) => "worker stuck",
            Ok(Event::StartFailed { .. }) => "load failed",
            Ok(Event::BreakerOpened { .. }) => "breaker opened",
            Ok(Event::BreakerClosed { .. }) => "breaker closed",
            Ok(Event::BatchShrunk { .. }) => "batch shrunk",
            Ok(Event::PoolRestarted { .. }) => "pool restarted",
            Ok(Event::ShuttingDown) => "shutdown",
            Ok(Event::WorkerEvicted { reason, .. }) => {
                ledger.saw(&format!("evicted, {}", reason.name()));
                continue;
            }
            Ok(_) | Err(RecvError::Lagged(_)) => continue,
            Err(RecvError::Closed) => return,
        };
        ledger.saw(what);
    }
}
