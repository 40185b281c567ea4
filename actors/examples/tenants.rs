//! How long one tenant waits beside another that sends 10,000 requests at once: the 95th percentile of a caller who asks
//! for one thing at a time, alone, beside the others without tenants, and with them.
//!
//! `cargo run --release -p model-actors --example tenants`
//!
//! The first model runs a batch as one, 32 at most, in 20 ms and a tenth for each request; the second takes four steps of
//! 5 ms for each request, and others join it between them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use model_actors::{
    Batch, BatchKey, BatchLimits, CallOptions, Capability, Failure, Footprint, Lane, LoadContext, Loader,
    Model, ModelHandle, ModelSpec, NoChunk, PoolConfig, QueueCapacity, Result, System, SystemConfig, Tenant,
    TenantConfig, Weights,
};

const BULK: u64 = 10_000;
const ASKED: usize = 100;
const BATCH: u32 = 32;
const RUN: Duration = Duration::from_millis(20);
const EACH: Duration = Duration::from_micros(100);
const STEPS: u32 = 4;

/// Gives back the key that it was asked with; requests of different keys share no batch.
struct Echo;

impl Capability for Echo {
    type Request = u64;
    type Chunk = NoChunk;
    type Output = u64;
    const NAME: &'static str = "echo";
    fn batch_key(request: &u64) -> BatchKey {
        BatchKey(*request)
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    AsOne,
    InSteps,
}

impl Loader<Echo> for Kind {
    fn footprint(&self, _: &LoadContext) -> std::result::Result<Footprint, Failure> {
        Ok(Footprint::default())
    }

    fn load(&self, _: &LoadContext) -> std::result::Result<Arc<dyn Weights<Echo>>, Failure> {
        Ok(Arc::new(*self))
    }
}

impl Weights<Echo> for Kind {
    fn footprint(&self) -> Footprint {
        Footprint::default()
    }

    fn build(&self, _: &LoadContext) -> std::result::Result<Box<dyn Model<Echo>>, Failure> {
        Ok(Box::new(*self))
    }
}

impl Model<Echo> for Kind {
    fn run(&mut self, batch: &mut Batch<Echo>) -> std::result::Result<(), Failure> {
        if *self == Self::AsOne {
            std::thread::sleep(RUN + EACH * u32::try_from(batch.items().len()).unwrap_or(u32::MAX));
            batch.items().iter().for_each(|item| item.finish(*item.request()));
            return Ok(());
        }
        let mut steps: HashMap<_, u32> = HashMap::new();
        while !batch.items().is_empty() {
            std::thread::sleep(RUN / STEPS);
            for item in batch.items() {
                let done = steps.entry(item.id()).or_default();
                *done += 1;
                if *done == STEPS {
                    item.finish(*item.request());
                }
            }
            batch.join();
        }
        Ok(())
    }
}

/// Behaviour of the others, and whether anybody is named.
#[derive(Clone, Copy)]
struct Beside {
    bulk: Lane,
    /// Their requests share no batch with those of the one.
    other_key: bool,
    tenants: bool,
}

/// The caller's times in milliseconds, in order, of what it asked while the others were there.
async fn chat(model: &ModelHandle<Echo>, options: &CallOptions, others: &[Answer]) -> Result<Vec<f64>> {
    let mut times = Vec::with_capacity(ASKED);
    let are_there = || others.is_empty() || others.iter().any(|other| !other.is_finished());
    while times.len() < ASKED && are_there() {
        let began = Instant::now();
        model.call(0, options.clone()).await?;
        times.push(began.elapsed().as_secs_f64() * 1000.0);
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
    times.sort_by(f64::total_cmp);
    Ok(times)
}

type Answer = tokio::task::JoinHandle<Result<u64>>;

/// The 95th percentile, and of how many.
async fn measure(kind: Kind, beside: Option<Beside>) -> Result<(f64, usize)> {
    let tenants = TenantConfig::default().with_queue(QueueCapacity::new(64, 64));
    let config = PoolConfig::default()
        .with_max_workers(1)
        .with_queue(QueueCapacity::new(100, 100))
        .with_batch(BatchLimits::default().with_requests(BATCH as usize))
        .with_request_timeout(Duration::from_secs(600));
    let named = beside.is_some_and(|beside| beside.tenants);
    let config = if named { config.with_tenants(tenants) } else { config };
    let system = System::builder(SystemConfig::default()).pool::<Echo>(config).start().await?;
    let spec = ModelSpec::new("echo", kind);
    let spec = if kind == Kind::InSteps { spec.continuous() } else { spec };
    let model = system.client::<Echo>()?.register(spec)?;
    model.preload().await?;
    let of = |tenant: &str| named.then(|| Tenant::from(tenant));
    let mut callers = Vec::new();
    if let Some(beside) = beside {
        let options = CallOptions::default().with_lane(beside.bulk).with_tenant(of("bulk"));
        let key = u64::from(beside.other_key);
        for _ in 0..BULK {
            let (model, options) = (model.clone(), options.clone());
            callers.push(tokio::spawn(async move { model.call(key, options).await }));
        }
        // The queue is full by now.
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let times = chat(&model, &CallOptions::default().with_tenant(of("chat")), &callers).await?;
    callers.iter().for_each(Answer::abort);
    drop(system.shutdown().await);
    Ok((times.get(times.len() * 95 / 100).copied().unwrap_or(f64::NAN), times.len()))
}

#[tokio::main]
async fn main() -> Result<()> {
    for (kind, name) in [(Kind::AsOne, "a batch as one"), (Kind::InSteps, "in steps, which others join")] {
        let (alone, _) = measure(kind, None).await?;
        let batch = (RUN + EACH * BATCH).as_secs_f64() * 1000.0;
        let bound = alone * 1.3 + batch;
        println!("{name}: p95 alone {alone:.1} ms; 1.3 times that and one running batch are {bound:.1} ms");
        for bulk in [Lane::Batch, Lane::Interactive] {
            for other_key in [false, true] {
                let key = if other_key { "of another key" } else { "of the same key" };
                let mut line = format!("  beside {BULK} in the {bulk} lane, {key}:");
                for tenants in [false, true] {
                    let (p95, of) = measure(kind, Some(Beside { bulk, other_key, tenants })).await?;
                    let verdict = if p95 <= bound { "within" } else { "beyond" };
                    let named = if tenants { "with tenants" } else { "without" };
                    line += &format!("  {named} {p95:.1} ms of {of} ({verdict})");
                }
                println!("{line}");
            }
        }
    }
    Ok(())
}
