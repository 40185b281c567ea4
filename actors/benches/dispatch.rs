//! Benchmark of the cost that the supervision tree adds to a request: a no-op model through the whole path (client, pool, worker actor, model
//! thread, reply) beside a bare channel to an OS thread and back, the least task that could batch for it, and a bare
//! ractor call, all in one run, so that the ratios mean something on any machine. Also the cost of registered models, of workers, and of a panic.

#![allow(clippy::unwrap_used, missing_docs, reason = "a benchmark")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use model_actors::{
    Batch, CallOptions, Capability, Client, Failure, Footprint, LoadContext, Loader, Model, ModelHandle,
    ModelSpec, NoChunk, PoolConfig, QueueCapacity, RestartConfig, System, SystemConfig, Weights,
};
use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};
use tokio::sync::oneshot;

const CALLERS: usize = 64;
const REQUESTS: usize = 100_000;
const ROUND_TRIPS: usize = 10_000;
const ROUNDS: usize = 7;
const RESTART_WINDOW: Duration = Duration::from_millis(100);

/// Answers at once with what it is given.
struct Echo;

impl Capability for Echo {
    type Request = u64;
    type Chunk = NoChunk;
    type Output = u64;
    const NAME: &'static str = "echo";
    const QUEUE: QueueCapacity = QueueCapacity::new(1024, 1024);
}

struct EchoModel(Arc<AtomicBool>);

impl Loader<Echo> for EchoModel {
    fn footprint(&self, _: &LoadContext) -> Result<Footprint, Failure> {
        Ok(Footprint::default())
    }

    fn load(&self, _: &LoadContext) -> Result<Arc<dyn Weights<Echo>>, Failure> {
        Ok(Arc::new(EchoModel(self.0.clone())))
    }
}

impl Weights<Echo> for EchoModel {
    fn footprint(&self) -> Footprint {
        Footprint::default()
    }

    fn build(&self, _: &LoadContext) -> Result<Box<dyn Model<Echo>>, Failure> {
        Ok(Box::new(EchoModel(self.0.clone())))
    }
}

impl Model<Echo> for EchoModel {
    fn run(&mut self, batch: &mut Batch<Echo>) -> Result<(), Failure> {
        assert!(!self.0.swap(false, Ordering::SeqCst), "the benchmark wants a panic");
        for item in batch.items() {
            item.finish(*item.request());
        }
        Ok(())
    }
}

/// One way of sending a number to somewhere and having it back.
trait Path: Clone + Send + Sync + 'static {
    fn call(&self, value: u64) -> impl Future<Output = u64> + Send;
}

#[derive(Clone)]
struct BareThread(std::sync::mpsc::Sender<(u64, oneshot::Sender<u64>)>);

impl BareThread {
    fn start() -> Self {
        let (sender, receiver) = std::sync::mpsc::channel::<(u64, oneshot::Sender<u64>)>();
        std::thread::spawn(move || {
            for (value, reply) in receiver {
                let _ = reply.send(value);
            }
        });
        Self(sender)
    }
}

impl Path for BareThread {
    async fn call(&self, value: u64) -> u64 {
        let (reply, answer) = oneshot::channel();
        self.0.send((value, reply)).unwrap();
        answer.await.unwrap()
    }
}

/// The least that any pool needs between callers and a thread: a task that hands everything which has come to the thread as
/// one batch, once the thread has told that the last one is done. It knows of no deadline, slot, priority, cost or crash.
#[derive(Clone)]
struct BareTask(tokio::sync::mpsc::UnboundedSender<(u64, oneshot::Sender<u64>)>);

impl BareTask {
    fn start() -> Self {
        let (sender, mut requests) = tokio::sync::mpsc::unbounded_channel();
        let (orders, received) = std::sync::mpsc::channel::<Vec<(u64, oneshot::Sender<u64>)>>();
        let (done, mut reports) = tokio::sync::mpsc::unbounded_channel();
        std::thread::spawn(move || {
            for batch in received {
                for (value, reply) in batch {
                    let _ = reply.send(value);
                }
                let _ = done.send(());
            }
        });
        tokio::spawn(async move {
            loop {
                let mut batch = Vec::new();
                if requests.recv_many(&mut batch, CALLERS).await == 0 || orders.send(batch).is_err() {
                    return;
                }
                reports.recv().await;
            }
        });
        Self(sender)
    }
}

impl Path for BareTask {
    async fn call(&self, value: u64) -> u64 {
        let (reply, answer) = oneshot::channel();
        self.0.send((value, reply)).unwrap();
        answer.await.unwrap()
    }
}

struct EchoActor;

struct EchoMessage(u64, RpcReplyPort<u64>);

#[cfg(feature = "cluster")]
impl ractor::Message for EchoMessage {}

impl Actor for EchoActor {
    type Msg = EchoMessage;
    type State = ();
    type Arguments = ();

    async fn pre_start(&self, _: ActorRef<EchoMessage>, (): ()) -> Result<(), ActorProcessingErr> {
        Ok(())
    }

    async fn handle(
        &self,
        _: ActorRef<EchoMessage>,
        message: EchoMessage,
        (): &mut (),
    ) -> Result<(), ActorProcessingErr> {
        message.1.send(message.0)?;
        Ok(())
    }
}

#[derive(Clone)]
struct BareActor(ActorRef<EchoMessage>);

impl Path for BareActor {
    async fn call(&self, value: u64) -> u64 {
        ractor::call!(self.0, EchoMessage, value).unwrap()
    }
}

impl Path for ModelHandle<Echo> {
    async fn call(&self, value: u64) -> u64 {
        ModelHandle::call(self, value, CallOptions::default()).await.unwrap()
    }
}

/// Requests a second with so many callers, each of whom sends its next when it has its answer.
async fn throughput<P: Path>(path: &P) -> f64 {
    let began = Instant::now();
    let callers: Vec<_> = (0..CALLERS)
        .map(|_| {
            let path = path.clone();
            tokio::spawn(async move {
                for value in 0..(REQUESTS / CALLERS) as u64 {
                    assert_eq!(path.call(value).await, value);
                }
            })
        })
        .collect();
    for caller in callers {
        caller.await.unwrap();
    }
    REQUESTS as f64 / began.elapsed().as_secs_f64()
}

/// The median and the 99th percentile of one caller's round trips, in microseconds.
async fn latency<P: Path>(path: &P) -> (f64, f64) {
    let path = path.clone();
    let mut times = tokio::spawn(async move {
        let mut times = Vec::with_capacity(ROUND_TRIPS);
        for value in 0..ROUND_TRIPS as u64 {
            let began = Instant::now();
            path.call(value).await;
            times.push(began.elapsed().as_nanos() as f64 / 1000.0);
        }
        times
    })
    .await
    .unwrap();
    times.sort_by(f64::total_cmp);
    (times[times.len() / 2], times[times.len() * 99 / 100])
}

#[derive(Clone, Copy)]
struct Figures {
    throughput: f64,
    p50: f64,
    p99: f64,
}

async fn round<P: Path>(path: &P) -> Figures {
    let (p50, p99) = latency(path).await;
    Figures { throughput: throughput(path).await, p50, p99 }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn show(name: &str, rounds: &[Figures]) {
    println!(
        "{name:<46} {:>9.0} requests/s   p50 {:>6.1} us   p99 {:>6.1} us",
        median(rounds.iter().map(|figures| figures.throughput)),
        median(rounds.iter().map(|figures| figures.p50)),
        median(rounds.iter().map(|figures| figures.p99)),
    );
}

/// The median of the ratios of each round, so that a slow moment of the machine falls on both sides alike.
fn compare(name: &str, path: &[Figures], base: &[Figures]) {
    let ratio =
        |of: fn(&Figures) -> f64| median(path.iter().zip(base).map(|(path, base)| of(path) / of(base)));
    println!(
        "  {name:<44} throughput x {:.2}   p50 x {:.2}   p99 x {:.2}",
        ratio(|figures| figures.throughput),
        ratio(|figures| figures.p50),
        ratio(|figures| figures.p99),
    );
}

struct Started {
    _system: System,
    client: Client<Echo>,
    panic: Arc<AtomicBool>,
}

async fn start(workers: usize) -> (Started, ModelHandle<Echo>) {
    let restart =
        RestartConfig::default().with_first_backoff(Duration::from_millis(10)).with_window(RESTART_WINDOW);
    let config = PoolConfig::default()
        .with_max_workers(workers)
        .with_cold_start_workers(workers)
        .with_restart(restart);
    let system = System::builder(SystemConfig::default()).pool::<Echo>(config).start().await.unwrap();
    let client = system.client::<Echo>().unwrap();
    let panic = Arc::new(AtomicBool::new(false));
    let model = client.register(ModelSpec::new("echo", EchoModel(panic.clone()))).unwrap();
    model.preload().await.unwrap();
    let mut status = system.watch();
    status
        .wait_for(|status| {
            status
                .model("echo", "echo")
                .is_some_and(|model| model.workers.len() == workers && model.loading.is_none())
        })
        .await
        .unwrap();
    (Started { _system: system, client, panic }, model)
}

#[tokio::main]
async fn main() {
    println!("{CALLERS} callers for throughput, one for latency; medians of {ROUNDS} interleaved rounds");
    let (thread, task) = (BareThread::start(), BareTask::start());
    let (actor, _) = EchoActor::spawn(None, EchoActor, ()).await.unwrap();
    let actor = BareActor(actor);
    let (one, model) = start(1).await;
    let (_eight, eight_workers) = start(8).await;
    let (_sixty_four, sixty_four_workers) = start(64).await;
    let (many, among_many) = start(1).await;
    for index in 1..10_000 {
        let id = format!("organisation/a-model-with-a-name-{index}");
        many.client.register(ModelSpec::new(id, EchoModel(many.panic.clone()))).unwrap();
    }

    let mut rounds: [Vec<Figures>; 7] = Default::default();
    for _ in 0..=ROUNDS {
        rounds[0].push(round(&thread).await);
        rounds[1].push(round(&task).await);
        rounds[2].push(round(&actor).await);
        rounds[3].push(round(&model).await);
        rounds[4].push(round(&among_many).await);
        rounds[5].push(round(&eight_workers).await);
        rounds[6].push(round(&sixty_four_workers).await);
    }
    // The first round is the warm-up.
    let [thread, task, call, whole, registered, eight, sixty_four] =
        rounds.map(|rounds| rounds[1..].to_vec());
    show("bare channel to an OS thread and back", &thread);
    show("bare task that batches for an OS thread", &task);
    compare("to the bare thread", &task, &thread);
    show("bare ractor call", &call);
    show("whole path, 1 worker, 1 registered model", &whole);
    compare("to the bare thread", &whole, &thread);
    compare("to the bare task", &whole, &task);
    compare("to the bare ractor call", &whole, &call);
    show("whole path, 1 worker, 10,000 registered models", &registered);
    compare("to 1 registered model", &registered, &whole);
    show("whole path, 8 workers", &eight);
    compare("to 1 worker", &eight, &whole);
    show("whole path, 64 workers", &sixty_four);
    compare("to 1 worker", &sixty_four, &whole);

    registration_cost(&one);
    let recovery = recovery(&one, &model).await;
    println!(
        "from a request that panics to its good reply by the replacement: {recovery:.1} ms, of which 8 to 12 are backoff"
    );
}

fn registration_cost(started: &Started) {
    const MODELS: usize = 100_000;
    let before = memory_stats::memory_stats().unwrap().physical_mem;
    for index in 0..MODELS {
        let id = format!("organisation/a-model-with-a-name-{index}");
        started.client.register(ModelSpec::new(id, EchoModel(started.panic.clone()))).unwrap();
    }
    let after = memory_stats::memory_stats().unwrap().physical_mem;
    let bytes = after.saturating_sub(before) / MODELS;
    println!("a registration costs {bytes} bytes (resident memory over {MODELS} of them)");
}

/// The request that meets the panic is run again by the replacement, so its reply is the next good one. Milliseconds,
/// the median of three.
async fn recovery(started: &Started, model: &ModelHandle<Echo>) -> f64 {
    // The default hook prints a backtrace where one is asked for, which takes longer than all of this.
    std::panic::set_hook(Box::new(|_| {}));
    let mut times = Vec::new();
    for _ in 0..3 {
        started.panic.store(true, Ordering::SeqCst);
        let began = Instant::now();
        model.call(1, CallOptions::default()).await.unwrap();
        times.push(began.elapsed().as_secs_f64() * 1000.0);
        // Out of the restart window, so that each backoff is the first.
        tokio::time::sleep(RESTART_WINDOW * 2).await;
    }
    median(times.into_iter())
}
