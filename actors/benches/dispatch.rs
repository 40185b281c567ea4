//! What the supervision tree costs a request: a no-op model through the whole path (client, pool, worker actor, model
//! thread, reply) beside a bare channel to an OS thread and back and beside a bare ractor call, all in one run, so
//! that the ratios mean something on any machine. Also the cost of registered models, of workers, and of a panic.

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
const REQUESTS: usize = 200_000;
const ROUND_TRIPS: usize = 20_000;

/// Answers at once with what it is given.
struct Echo;

impl Capability for Echo {
    type Request = u64;
    type Chunk = NoChunk;
    type Output = u64;
    const NAME: &'static str = "echo";
    const QUEUE: QueueCapacity = QueueCapacity { interactive: 1024, batch: 1024 };
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

struct EchoActor;

struct EchoMessage(u64, RpcReplyPort<u64>);

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

/// Five rounds, so that a slow moment of the machine falls on every path alike; the median round counts.
async fn measure<P: Path>(name: &str, path: &P) -> (f64, f64, f64) {
    let _warm = throughput(path).await;
    let mut rounds = Vec::new();
    for _ in 0..5 {
        let (p50, p99) = latency(path).await;
        rounds.push((throughput(path).await, p50, p99));
    }
    let median = |values: &mut Vec<f64>| {
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    let throughput = median(&mut rounds.iter().map(|round| round.0).collect());
    let p50 = median(&mut rounds.iter().map(|round| round.1).collect());
    let p99 = median(&mut rounds.iter().map(|round| round.2).collect());
    println!("{name:<44} {:>10.0} requests/s   p50 {p50:>7.1} us   p99 {p99:>7.1} us", throughput);
    (throughput, p50, p99)
}

fn ratios(name: &str, path: (f64, f64, f64), base: (f64, f64, f64)) {
    println!(
        "  {name:<42} throughput x {:.2}   p50 x {:.2}   p99 x {:.2}",
        path.0 / base.0,
        path.1 / base.1,
        path.2 / base.2
    );
}

struct Started {
    system: System,
    client: Client<Echo>,
    panic: Arc<AtomicBool>,
}

async fn start(workers: usize) -> (Started, ModelHandle<Echo>) {
    let restart = RestartConfig { first_backoff: Duration::from_millis(10), ..RestartConfig::default() };
    let config =
        PoolConfig { max_workers: workers, cold_start_workers: workers, restart, ..PoolConfig::default() };
    let system = System::builder(SystemConfig::default()).pool::<Echo>(config).start().await.unwrap();
    let client = system.client::<Echo>().unwrap();
    let panic = Arc::new(AtomicBool::new(false));
    let model = client.register(ModelSpec::new("echo", EchoModel(panic.clone()))).unwrap();
    model.preload().await.unwrap();
    let mut status = system.watch();
    status
        .wait_for(|status| {
            status
                .model("echo")
                .is_some_and(|model| model.workers.len() == workers && model.loading.is_none())
        })
        .await
        .unwrap();
    (Started { system, client, panic }, model)
}

#[tokio::main]
async fn main() {
    println!("{CALLERS} callers for throughput, one for latency; medians of 5 rounds");
    let thread = measure("bare channel to an OS thread and back", &BareThread::start()).await;
    let (actor, _) = EchoActor::spawn(None, EchoActor, ()).await.unwrap();
    let call = measure("bare ractor call", &BareActor(actor.clone())).await;
    actor.stop(None);

    let (one, model) = start(1).await;
    let full = measure("whole path, 1 worker, 1 registered model", &model).await;
    ratios("to the bare thread", full, thread);
    ratios("to the bare ractor call", full, call);

    let before = memory_stats::memory_stats().unwrap().physical_mem;
    const MODELS: usize = 100_000;
    for index in 0..MODELS {
        let id = format!("organisation/a-model-with-a-name-{index}");
        one.client.register(ModelSpec::new(id, EchoModel(one.panic.clone()))).unwrap();
        if index == 9_999 {
            let many = measure("whole path, 1 worker, 10,000 registered models", &model).await;
            ratios("to 1 registered model", many, full);
        }
    }
    let after = memory_stats::memory_stats().unwrap().physical_mem;
    println!(
        "a registration costs {} bytes (resident memory over {MODELS} of them)",
        (after - before) / MODELS
    );

    for workers in [8, 64] {
        let (many, model) = start(workers).await;
        let measured = measure(&format!("whole path, {workers} workers"), &model).await;
        ratios("to 1 worker", measured, full);
        many.system.shutdown().await;
    }

    // The default hook prints a backtrace where one is asked for, which takes longer than all of this.
    std::panic::set_hook(Box::new(|_| {}));
    one.panic.store(true, Ordering::SeqCst);
    let began = Instant::now();
    // The request that meets the panic is run again by the replacement, so its reply is the next good one.
    model.call(1, CallOptions::default()).await.unwrap();
    println!(
        "from a request that panics to its good reply by the replacement: {:.1} ms, of which 8 to 12 are the backoff",
        began.elapsed().as_secs_f64() * 1000.0
    );
    one.system.shutdown().await;
}
