//! Acts of the demonstration, in order. Each does something to the system and waits for the event that must
//! follow.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use candle_actors::model_actors::testing::{Act, Gate, ScriptedCapability, ScriptedLoader, ScriptedRequest};
use candle_actors::{
    BatchLimits, Bytes, CallOptions, Capability, Client, Device, Event, EvictionReason, Footprint,
    ModelHandle, ModelSpec, NoChunk, PoolConfig, RestartConfig, ShutdownReport, StallLimits, System,
    SystemConfig,
};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::screen::Stage;
use crate::show::{self, LIMIT, Outcome, event, started};

/// For the reader.
const PAUSE: Duration = Duration::from_millis(1500);

/// Capability of scripted models.
struct Embedding;

impl Capability for Embedding {
    type Request = ScriptedRequest;
    type Chunk = NoChunk;
    type Output = u64;
    const NAME: &'static str = "embedding";
}

impl ScriptedCapability for Embedding {
    fn chunk(_number: u64) -> Option<NoChunk> {
        None
    }
}

/// Second capability, for a second pool.
struct Writing;

impl Capability for Writing {
    type Request = ScriptedRequest;
    type Chunk = u64;
    type Output = u64;
    const NAME: &'static str = "writing";
}

impl ScriptedCapability for Writing {
    fn chunk(number: u64) -> Option<u64> {
        Some(number)
    }
}

/// Resources that are left at the end.
pub(crate) struct Curtain {
    report: ShutdownReport,
    answered: u64,
    failed: u64,
    slots: (usize, usize),
    charged: Bytes,
}

impl show::Curtain for Curtain {
    /// Slots and bytes are back, and every request of the traffic was answered well.
    fn left_nothing(&self) -> bool {
        self.report.is_clean()
            && self.slots.0 == self.slots.1
            && self.charged == Bytes::ZERO
            && self.failed == 0
    }
}

impl std::fmt::Display for Curtain {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (free, all) = self.slots;
        write!(
            formatter,
            "  requests of the traffic  {} answered, {} failed\n  slots held               {} of {all}\n  \
             bytes charged            {}",
            self.answered,
            self.failed,
            all - free,
            self.charged,
        )
    }
}

/// The system and its models.
pub(crate) struct Acts {
    stage: Stage,
    system: System,
    embeddings: Client<Embedding>,
    writings: Client<Writing>,
    minilm: ModelHandle<Embedding>,
    reranker: ModelHandle<Embedding>,
    chat: ModelHandle<Writing>,
    translator: ModelHandle<Writing>,
}

impl Acts {
    /// Starts the system. Registering the models loads none of them.
    pub(crate) async fn start(stage: Stage) -> Outcome<Self> {
        let (system, pool) = settings();
        let builder = System::builder(system).pool::<Embedding>(pool.clone()).pool::<Writing>(pool.clone());
        let system = builder.start().await?;
        let embeddings: Client<Embedding> = system.client()?;
        let writings: Client<Writing> = system.client()?;
        let once = pool.restart.with_max_restarts(1);
        let fails_twice = pool.with_restart(once);
        let reranker = ScriptedLoader { load_fails: 2, ..loader(100, 10, 300) };
        Ok(Self {
            minilm: embeddings.register(ModelSpec::new("minilm", loader(160, 8, 1000)))?,
            reranker: embeddings.register(ModelSpec::new("reranker", reranker).config(fails_twice))?,
            chat: writings.register(ModelSpec::new("chat", loader(400, 40, 1200)))?,
            translator: writings.register(ModelSpec::new("translator", loader(460, 40, 1000)))?,
            stage,
            system,
            embeddings,
            writings,
        })
    }

    /// The system, to look at.
    pub(crate) fn system(&self) -> System {
        self.system.clone()
    }

    /// Plays every act and shuts down.
    pub(crate) async fn play(self) -> Outcome<Curtain> {
        let traffic = Traffic::default();
        self.load(&traffic).await?;
        self.panic().await?;
        self.hang(&traffic).await?;
        self.open_the_breaker().await?;
        let (answered, failed) = traffic.stop().await;
        self.run_out_of_memory().await?;
        self.cool_down().await?;
        self.stage.act("The end: shutdown").await;
        sleep(PAUSE / 2).await;
        let report = self.system.shutdown().await;
        let (one, other) = (self.embeddings.slots(), self.writings.slots());
        Ok(Curtain {
            report,
            answered,
            failed,
            slots: (one.0 + other.0, one.1 + other.1),
            charged: self.system.charged(&Device::host()).unwrap_or_default().0,
        })
    }

    async fn load(&self, traffic: &Traffic) -> Outcome {
        self.stage.act("Four models are registered, none is loaded. The first requests load two").await;
        sleep(PAUSE).await;
        let mut events = self.system.events();
        traffic.begin(&self.minilm, 5);
        traffic.begin(&self.chat, 1);
        event(&mut events, "a worker of chat starts", |event| started(event, "chat")).await?;
        self.stage.tell("requests are answered while more workers start, which share the weights").await;
        sleep(2 * PAUSE).await;
        self.stage.tree().await;
        Ok(())
    }

    async fn panic(&self) -> Outcome {
        self.stage.act("A worker panics in the middle of a request").await;
        let mut events = self.system.events();
        let once = Act::PanicTimes(Arc::new(AtomicUsize::new(1)));
        let answer = self.minilm.call(once.into(), CallOptions::default());
        let replaced = async {
            let crash = |event: &Event| matches!(event, Event::WorkerCrashed { .. });
            event(&mut events, "the worker crashes", crash).await?;
            event(&mut events, "its replacement starts", |event| started(event, "minilm")).await
        };
        let (answer, replaced) = tokio::join!(answer, replaced);
        replaced?;
        answer?;
        self.stage.tell("the request that it was running was run again, and answered").await;
        sleep(PAUSE).await;
        self.stage.tree().await;
        Ok(())
    }

    async fn hang(&self, traffic: &Traffic) -> Outcome {
        self.stage.act("A worker hangs: no progress, so it is stuck and not merely busy").await;
        let mut events = self.system.events();
        let gate = Gate::default();
        let hung = self.chat.call(Act::Hang(gate.latch()).into(), CallOptions::default());
        let stuck =
            event(&mut events, "the worker is given up", |event| matches!(event, Event::WorkerStuck { .. }));
        let (answer, stuck) = tokio::join!(hung, stuck);
        stuck?;
        let Err(error) = answer else { return Err("a hung request was answered".into()) };
        self.stage.tell(&format!("its caller is told: {error}")).await;
        traffic.answered_from_now(&self.chat).await?;
        self.stage.tell("chat goes on with another worker; the stuck thread keeps its bytes").await;
        sleep(PAUSE).await;
        self.stage.tell("now the stuck thread comes back to life after all").await;
        gate.open();
        event(
            &mut events,
            "the stuck thread ends",
            |event| matches!(event, Event::WorkerEnded { model, .. } if model.as_str() == "chat"),
        )
        .await?;
        sleep(PAUSE).await;
        self.stage.tree().await;
        Ok(())
    }

    async fn open_the_breaker(&self) -> Outcome {
        self.stage.act("A model fails to load time and again: its breaker opens").await;
        let mut events = self.system.events();
        let call = || self.reranker.call(Act::Reply(0).into(), CallOptions::default());
        let Err(error) = call().await else { return Err("a model loaded that cannot".into()) };
        self.stage.tell(&format!("its caller is told: {error}")).await;
        let Err(error) = call().await else { return Err("an open breaker let a request through".into()) };
        self.stage.tell(&format!("the next one, at once: {error}")).await;
        let Some(retry_after) = error.kind().retry_after() else { return Err(error.into()) };
        sleep(retry_after).await;
        self.stage.tell("the time is up: a single request goes through as the probe").await;
        call().await?;
        event(&mut events, "the breaker closes", |event| matches!(event, Event::BreakerClosed { .. }))
            .await?;
        sleep(PAUSE).await;
        self.stage.tree().await;
        Ok(())
    }

    async fn run_out_of_memory(&self) -> Outcome {
        self.stage
            .act("The requests end, and a model is wanted that does not fit: idle ones make room")
            .await;
        let mut events = self.system.events();
        let answer = self.translator.call(Act::WorkFor(PAUSE).into(), CallOptions::default());
        let evicted = event(&mut events, "an idle worker is evicted", |event| {
            matches!(event, Event::WorkerEvicted { reason: EvictionReason::MakeRoom, .. })
        });
        let (answer, evicted) = tokio::join!(answer, evicted);
        evicted?;
        answer?;
        self.stage.tell("the translator has answered").await;
        self.stage.tree().await;
        Ok(())
    }

    async fn cool_down(&self) -> Outcome {
        self.stage.act("Nobody asks any more: workers cool down one by one, to zero").await;
        let mut status = self.system.watch();
        let empty = status.wait_for(|status| status.workers().next().is_none());
        timeout(LIMIT, empty).await.map_err(|_| "the workers did not cool down")??;
        self.stage.tree().await;
        Ok(())
    }
}

/// Settings with short times, so that everything fits into half a minute.
fn settings() -> (SystemConfig, PoolConfig) {
    let restart = RestartConfig::default()
        .with_first_backoff(Duration::from_millis(700))
        .with_breaker_open(Duration::from_secs(2));
    let system = SystemConfig::default()
        .with_memory_limit(Bytes::mib(1024))
        .with_maintenance_interval(Duration::from_secs(1));
    let pool = PoolConfig::default()
        .with_max_workers(3)
        .with_cooldown_idle(Duration::from_millis(2500))
        .with_min_residency(Duration::ZERO)
        .with_stall(StallLimits::default().with_run(Duration::from_millis(1500)))
        .with_batch(BatchLimits::default().with_requests(1))
        .with_restart(restart);
    (system, pool)
}

fn loader(shared: u64, per_worker: u64, milliseconds: u64) -> ScriptedLoader {
    ScriptedLoader {
        footprint: Footprint::new(Bytes::mib(shared), Bytes::mib(per_worker)),
        load_time: Duration::from_millis(milliseconds),
        ..ScriptedLoader::default()
    }
}

/// Callers in the background, one request after the other.
#[derive(Default)]
struct Traffic {
    shared: Arc<TrafficShared>,
    callers: std::sync::Mutex<JoinSet<()>>,
}

#[derive(Default)]
struct TrafficShared {
    over: AtomicBool,
    answered: AtomicU64,
    failed: AtomicU64,
}

impl Traffic {
    fn begin<C: ScriptedCapability>(&self, model: &ModelHandle<C>, callers: u64) {
        let mut tasks = self.callers.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        for caller in 0..callers {
            let (model, shared) = (model.clone(), self.shared.clone());
            tasks.spawn(async move {
                // Not all at the same beat.
                let mut random = fastrand::Rng::with_seed(caller);
                while !shared.over.load(Ordering::Relaxed) {
                    let work = Act::WorkFor(Duration::from_millis(random.u64(100..400)));
                    let counter = match model.call(work.into(), CallOptions::default()).await {
                        Ok(_) => &shared.answered,
                        Err(_) => &shared.failed,
                    };
                    counter.fetch_add(1, Ordering::Relaxed);
                    sleep(Duration::from_millis(random.u64(..150))).await;
                }
            });
        }
    }

    /// A request like those of the traffic is answered.
    async fn answered_from_now<C: ScriptedCapability>(&self, model: &ModelHandle<C>) -> Outcome {
        model.call(Act::WorkFor(Duration::from_millis(100)).into(), CallOptions::default()).await?;
        self.shared.answered.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Waits for the last answers and says how many there were, good and bad.
    async fn stop(self) -> (u64, u64) {
        self.shared.over.store(true, Ordering::Relaxed);
        let mut callers = self.callers.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        while callers.join_next().await.is_some() {}
        let [answered, failed] =
            [&self.shared.answered, &self.shared.failed].map(|count| count.load(Ordering::Relaxed));
        (answered, failed)
    }
}
