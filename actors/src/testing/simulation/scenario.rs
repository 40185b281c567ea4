//! The scenario that a seed decides at the start of its history: pools and models with their settings and
//! sizes, the memory, the rate of requests, and the rate of each fault.

use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;

use super::coverage::Fault;
use crate::config::{BatchLimits, PoolConfig, QueueCapacity, RestartConfig, StallLimits, TenantConfig};
use crate::id::{Bytes, Device, ModelId, Tenant};
use crate::model::Footprint;
use crate::scheduler::{Batching, ModelPolicy};

#[derive(Clone)]
pub(super) struct ModelPlan {
    pub(super) policy: ModelPolicy,
    pub(super) footprint: Footprint,
    /// Typical durations.
    pub(super) load: Duration,
    pub(super) run: Duration,
    /// A batch of more requests than this runs out of memory.
    pub(super) most: usize,
}

pub(super) struct Scenario {
    pub(super) pools: Vec<Vec<ModelPlan>>,
    pub(super) limits: Vec<(Device, Bytes)>,
    pub(super) interval: Duration,
    pub(super) requests: u32,
    /// Typical time between two arrivals.
    pub(super) gap: Duration,
    /// The longest time that a message takes.
    pub(super) delay: Duration,
    pub(super) rates: [f64; Fault::ALL.len()],
    /// Pools take room that is free themselves, as the shell does, or always ask the load queue.
    pub(super) takes_free_room: bool,
    pub(super) shutdown_timeout: Duration,
    /// The tenants that requests are made for; those without one are the first.
    pub(super) tenants: Vec<Option<Tenant>>,
}

fn millis(random: &mut Rng, range: std::ops::Range<u64>) -> Duration {
    Duration::from_millis(random.u64(range))
}

impl Scenario {
    pub(super) fn new(random: &mut Rng, apart: &mut Rng) -> Self {
        let tenants = tenants(apart);
        let devices = [Device::host(), Device::named("gpu")];
        let used = 1 + usize::from(random.u8(..4) == 0);
        let pools: Vec<Vec<ModelPlan>> = (0..random.usize(2..4))
            .map(|pool| {
                (0..random.usize(1..4))
                    .map(|index| {
                        let mut plan = model(random, pool, index, &devices[..used]);
                        let weights =
                            tenants.iter().flatten().map(|tenant| (tenant.clone(), apart.u32(1..5)));
                        Arc::make_mut(&mut plan.policy.config).tenants.weights = weights.collect();
                        plan
                    })
                    .collect()
            })
            .collect();
        let limits = devices[..used]
            .iter()
            .map(|device| {
                let models = pools.iter().flatten().filter(|model| model.policy.device == *device);
                let sizes: Vec<u64> = models.map(|model| model.footprint.with_workers(2).0).collect();
                let (largest, all) =
                    (sizes.iter().max().copied().unwrap_or(1).max(1), sizes.iter().sum::<u64>().max(1));
                let limit = match random.u8(..8) {
                    0 => random.u64(1..=largest),
                    1..=4 => random.u64(largest..=all.max(largest)),
                    _ => all * 3,
                };
                (device.clone(), Bytes(limit))
            })
            .collect();
        Self {
            pools,
            limits,
            interval: millis(random, 500..60_000),
            requests: random.u32(4..60),
            gap: Duration::from_micros(1 << random.u32(4..24)),
            delay: Duration::from_micros([0, 50, 500, 20_000][random.usize(..4)]),
            rates: rates(random),
            takes_free_room: random.bool(),
            shutdown_timeout: millis(random, 100..10_000),
            tenants,
        }
    }

    pub(super) fn rate(&self, fault: Fault) -> f64 {
        self.rates[fault as usize]
    }
}

/// Most histories have few kinds of fault and much of each, so that what follows from one is seen in full.
fn rates(random: &mut Rng) -> [f64; Fault::ALL.len()] {
    let share = [0.0, 0.1, 0.3, 0.6][random.usize(..4)];
    std::array::from_fn(|_| if random.f64() < share { 0.5 * random.f64() * random.f64() } else { 0.0 })
}

/// Half of the histories have no tenants, so that what holds without them is seen as often as before.
fn tenants(random: &mut Rng) -> Vec<Option<Tenant>> {
    let named = if random.bool() { random.usize(1..4) } else { 0 };
    let names = ["ann", "bob", "eve"].into_iter().take(named).map(|name| Some(Tenant::from(name)));
    std::iter::once(None).chain(names).collect()
}

fn model(random: &mut Rng, pool: usize, index: usize, devices: &[Device]) -> ModelPlan {
    let config = config(random);
    let policy = ModelPolicy {
        model: ModelId::from(format!("{pool}/{index}")),
        device: devices[random.usize(..devices.len())].clone(),
        config: Arc::new(config),
        batching: if random.u8(..4) == 0 { Batching::Continuous } else { Batching::PerRun },
        pinned: random.u8(..16) == 0,
    };
    let footprint = footprint(random);
    let load = Duration::from_millis(1 << random.u32(0..15));
    let run = Duration::from_micros(1 << random.u32(8..22));
    ModelPlan { policy, footprint, load, run, most: if random.u8(..4) == 0 { 2 } else { 100 } }
}

pub(super) fn footprint(random: &mut Rng) -> Footprint {
    Footprint {
        shared: Bytes(random.u64(0..100)),
        per_worker: Bytes(if random.u8(..8) == 0 { 0 } else { random.u64(1..30) }),
    }
}

fn config(random: &mut Rng) -> PoolConfig {
    let max_workers = random.usize(1..5);
    let first_backoff = millis(random, 0..500);
    PoolConfig {
        preload_timeout: Duration::from_secs(3600),
        request_timeout: millis(random, 200..60_000),
        total_timeout: (random.u8(..4) == 0).then(|| millis(random, 200..90_000)),
        max_workers,
        cold_start_workers: random.usize(1..4),
        queue: Some(QueueCapacity { interactive: random.usize(3..20), batch: random.usize(3..20) }),
        stream_buffer: 8,
        cooldown_idle: millis(random, 100..60_000),
        room_wait: if random.u8(..4) == 0 { Duration::ZERO } else { millis(random, 50..10_000) },
        min_residency: millis(random, 0..5_000),
        restart: RestartConfig {
            max_restarts: random.u32(0..4),
            window: millis(random, 1_000..60_000),
            first_backoff,
            max_backoff: first_backoff + millis(random, 0..5_000),
            breaker_open: millis(random, 500..20_000),
        },
        stall: StallLimits { load: millis(random, 500..20_000), run: millis(random, 500..20_000) },
        batch: BatchLimits { requests: random.usize(1..8), cost: random.u64(4..100) },
        aging: millis(random, 1..4_000),
        tenants: TenantConfig::default(),
    }
}
