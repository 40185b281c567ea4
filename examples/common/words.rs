//! Events and the supervision tree in plain words, as pure functions to lines of text.

use std::time::Duration;

use candle_actors::{
    BreakerState, Bytes, Event, EvictionReason, MemoryStatus, ModelStatus, PoolStatus, SystemStatus,
    WorkerPhase, WorkerStatus,
};
use console::{StyledObject, style};

/// A worker that makes progress ticks far more often than this.
const WORTH_SAYING: Duration = Duration::from_millis(400);

/// Sentence about an event. `None` for an event that the tree shows anyway.
pub(crate) fn sentence(event: &Event) -> Option<String> {
    let words = match event {
        Event::Loading { model, done, total: Some(total), .. } if *done == Bytes::ZERO => {
            format!("{model} begins to load: {total}")
        }
        Event::WorkerStarted { model, worker, .. } => format!("{model}{worker} is ready"),
        Event::StartFailed { error, .. } => style(error.to_string()).red().to_string(),
        Event::WorkerEvicted { model, worker, reason, .. } => {
            format!("{model}{worker} is told to go: {}", why(*reason))
        }
        Event::WorkerEnded { model, worker, .. } => {
            format!("{model}{worker} has ended, its thread and its bytes with it")
        }
        Event::WorkerCrashed { error, .. } => style(error.to_string()).red().to_string(),
        Event::WorkerRestarted { model, worker, failures, .. } => {
            format!("{model}{worker} replaces it; failures lately: {failures}")
        }
        Event::WorkerStuck { model, worker, stalled, .. } => {
            let words =
                format!("{model}{worker} made no progress for {} ms: quarantined", stalled.as_millis());
            style(words).red().to_string()
        }
        Event::BreakerOpened { model, retry_after, .. } => {
            let words = format!("{model}'s breaker opens for {} ms", retry_after.as_millis());
            style(words).red().to_string()
        }
        Event::BreakerClosed { model, .. } => format!("{model}'s breaker closes"),
        Event::Pressure { device, level } => format!("memory pressure of {device}: {level:?}").to_lowercase(),
        Event::ShuttingDown => "the system takes no new requests".to_owned(),
        _ => return None,
    };
    Some(words)
}

fn why(reason: EvictionReason) -> &'static str {
    match reason {
        EvictionReason::Cooldown => "it had been idle long enough",
        EvictionReason::MakeRoom => "another model needs the room",
        EvictionReason::Pressure => "memory runs short",
        EvictionReason::Unload => "its model is unloaded",
        EvictionReason::Shutdown => "the system shuts down",
        _ => "it is not needed any more",
    }
}

/// Supervision tree, a line for each node.
pub(crate) fn tree(status: &SystemStatus) -> Vec<String> {
    let mut lines = vec![root(status)];
    for (index, pool) in status.pools.iter().enumerate() {
        let last = index + 1 == status.pools.len();
        lines.push(format!("{} {}", branch(last), style(pool.capability).bold()));
        models(pool, if last { "   " } else { "│  " }, &mut lines);
    }
    lines
}

/// Supervision tree for a small terminal: a line for each model.
pub(crate) fn short_tree(status: &SystemStatus) -> Vec<String> {
    let mut lines = Vec::new();
    for pool in &status.pools {
        let capability = style(pool.capability).bold();
        if pool.models.is_empty() {
            lines.push(format!("{capability:<16}{}", style("not used yet").dim()));
        }
        for model in &pool.models {
            let workers =
                model.workers.iter().map(|worker| format!("{} {}", worker.worker, phase(worker.phase)));
            let (name, bytes) = (model.model.to_string(), model.bytes.to_string());
            let counts = format!("queue {:<3} running {:<3}", queued(model), model.in_flight);
            let workers = workers.collect::<Vec<_>>().join(" ");
            lines.push(format!("{capability:<16}{name:<10}{bytes:>9}  {counts} {workers}"));
        }
    }
    let last = lines.len().saturating_sub(1);
    let branched =
        lines.into_iter().enumerate().map(|(index, line)| format!("{} {line}", branch(index == last)));
    [root(status)].into_iter().chain(branched).collect()
}

fn root(status: &SystemStatus) -> String {
    format!("{}  {}", style("system").bold(), memory(status.memory.first()))
}

fn models(pool: &PoolStatus, indent: &str, lines: &mut Vec<String>) {
    if pool.models.is_empty() {
        lines.push(format!("{indent}{}", style("not used yet").dim()));
    }
    for (index, model) in pool.models.iter().enumerate() {
        let last = index + 1 == pool.models.len();
        lines.push(format!("{indent}{} {}", branch(last), self::model(model)));
        let indent = format!("{indent}{}", if last { "   " } else { "│  " });
        for (index, worker) in model.workers.iter().enumerate() {
            let last = index + 1 == model.workers.len();
            lines.push(format!("{indent}{} {}", branch(last), self::worker(worker, model)));
        }
    }
}

fn branch(last: bool) -> &'static str {
    if last { "└─" } else { "├─" }
}

fn memory(memory: Option<&MemoryStatus>) -> String {
    const WIDTH: u64 = 24;
    let Some(memory) = memory else { return String::new() };
    let full = (memory.charged.0 * WIDTH).div_ceil(memory.limit.0.max(1)).min(WIDTH) as usize;
    let bar = format!("{}{}", "█".repeat(full), "░".repeat(WIDTH as usize - full));
    format!("{} {} of {}", style(bar).cyan(), memory.charged, memory.limit)
}

fn model(model: &ModelStatus) -> String {
    let breaker = match model.breaker {
        BreakerState::Closed => style("breaker closed").dim(),
        BreakerState::HalfOpen => style("breaker half open").yellow(),
        BreakerState::Open => style("breaker open").red(),
        _ => style("breaker unknown").yellow(),
    };
    let (name, queue) = (style(model.model.to_string()).bold(), queued(model));
    let bytes = model.bytes.to_string();
    let (running, failures) = (model.in_flight, model.recent_failures);
    format!("{name:<11} {bytes:>10}  queue {queue:<2} running {running:<2} failures {failures}  {breaker}")
}

fn queued(model: &ModelStatus) -> usize {
    model.queued_interactive + model.queued_batch
}

fn worker(worker: &WorkerStatus, model: &ModelStatus) -> String {
    let name = worker.worker.to_string();
    let state = match (worker.phase, model.loading.and_then(|load| load.percent)) {
        (WorkerPhase::Loading, Some(percent)) => style(format!("loading {percent:>3} %")).yellow(),
        (WorkerPhase::Busy, _) if worker.since_progress > WORTH_SAYING => {
            let seconds = worker.since_progress.as_secs_f64();
            style(format!("busy, no progress for {seconds:.1} s")).yellow()
        }
        (WorkerPhase::Stuck, _) => style("stuck, given up; its bytes stay charged".to_owned()).red().bold(),
        (other, _) => phase(other),
    };
    format!("{name:<4} {state}")
}

fn phase(phase: WorkerPhase) -> StyledObject<String> {
    let word = style(format!("{phase:?}").to_lowercase());
    match phase {
        WorkerPhase::Loading => word.yellow(),
        WorkerPhase::Idle => word.green(),
        WorkerPhase::Busy => word.cyan(),
        WorkerPhase::Draining => word.dim(),
        WorkerPhase::Stuck => word.red().bold(),
        _ => word,
    }
}
