//! Deaths while nothing runs. Whoever asks next is not blamed for them: the request goes to another process, as often as that
//! happens, and the deaths are the model's.

use std::time::Duration;

use model_actors::isolation::ProcessOptions;
use model_actors::testing::wait_for;
use model_actors::{BatchLimits, Error, ModelHandle, ModelStatus, PoolConfig, SystemConfig, WorkerPhase};
use rustix::process::{Pid, Signal, kill_process};

use crate::model::*;

pub(crate) const TESTS: &[crate::tests::Test] = &[
    ("a_request_after_each_of_several_deaths", || block_on(a_request_after_each_of_several_deaths())),
    ("a_request_to_several_that_died_in_a_row", || block_on(a_request_to_several_that_died_in_a_row())),
    ("a_request_that_waits_for_a_child_that_dies", || block_on(a_request_that_waits_for_a_child_that_dies())),
    ("a_request_joins_a_child_that_dies", || block_on(a_request_joins_a_child_that_dies())),
    ("a_death_after_the_load", || block_on(a_death_after_the_load())),
    ("one_that_always_dies_idle_opens_the_breaker", || {
        block_on(one_that_always_dies_idle_opens_the_breaker())
    }),
];

/// No health check finds a death before a request does, and the budget outlasts the test.
fn unwatched(workers: usize) -> (SystemConfig, PoolConfig) {
    let (system, pool) = timings();
    let restart = pool.restart.with_max_restarts(20);
    let pool = pool.with_max_workers(workers).with_cold_start_workers(workers).with_restart(restart);
    let one = BatchLimits::default().with_requests(1);
    (system.with_maintenance_interval(Duration::from_secs(3600)), pool.with_batch(one))
}

/// The processes of this process's model.
fn processes_of(model: &str) -> Vec<u32> {
    let name = format!("model-actors-child {model}\0");
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    let all = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    // One that ends meanwhile has no name any more.
    all.filter(|pid: &u32| {
        std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line == name.as_bytes())
    })
    .collect()
}

fn signal(process: u32, signal: Signal) {
    kill_process(Pid::from_raw(process.cast_signed()).unwrap(), signal).unwrap();
}

/// Kills it and waits until nothing of it is left but what its parent has to collect.
fn kill(process: u32) {
    signal(process, Signal::KILL);
    let end = std::time::Instant::now() + Duration::from_secs(30);
    while std::fs::read_to_string(format!("/proc/{process}/stat")).is_ok_and(|stat| !stat.contains(") Z ")) {
        assert!(std::time::Instant::now() < end, "it does not end");
        std::thread::yield_now();
    }
}

impl Stage {
    async fn until(&self, model: &str, what: &str, condition: impl Fn(&ModelStatus) -> bool) {
        let mut status = self.system.watch();
        wait_for(&mut status, what, |status| status.model("acts", model).is_some_and(&condition)).await;
    }

    /// A model whose workers are all idle, and their processes.
    async fn idle(&self, name: &str, workers: usize, loader: ActLoader) -> (ModelHandle<Acts>, Vec<u32>) {
        let model = self.model_with(name, loader, ProcessOptions::default());
        model.preload().await.unwrap();
        let idle = |model: &ModelStatus| {
            let idle = model.workers.iter().filter(|worker| worker.phase == WorkerPhase::Idle);
            idle.count() == workers
        };
        self.until(name, "all are idle", idle).await;
        (model, processes_of(name))
    }

    /// All failures are the model's own.
    async fn has_failed_itself(&self, model: &str, times: u32) {
        let counted =
            |model: &ModelStatus| model.failures == u64::from(times) && model.recent_failures == times;
        self.until(model, "the deaths count against the model", counted).await;
    }
}

async fn a_request_after_each_of_several_deaths() {
    let stage = Stage::with(unwatched(1)).await;
    let (model, _) = stage.idle("killed often", 1, ActLoader::default()).await;
    for round in 0..6 {
        let process = process_of(&model).await;
        // The run is over a moment after its answer. What came before the call shows after it.
        model.pin(false).await.unwrap();
        stage.until("killed often", "nothing runs", |model| model.in_flight == 0).await;
        match round % 2 {
            0 => kill(process),
            // It may be ending while the request comes.
            _ => signal(process, Signal::KILL),
        }
        let said = ask(&model, Act::Reply(round.to_string())).await.unwrap();
        assert_eq!(said.words, round.to_string());
        assert!(said.process != process && !is_there(process));
    }
    stage.has_failed_itself("killed often", 6).await;
    stage.finish().await;
}

async fn a_request_to_several_that_died_in_a_row() {
    let stage = Stage::with(unwatched(3)).await;
    let (model, processes) = stage.idle("all killed", 3, ActLoader::default()).await;
    processes.iter().for_each(|process| kill(*process));
    let said = ask(&model, Act::Reply("right".into())).await.unwrap();
    assert_eq!((said.words.as_str(), processes.contains(&said.process)), ("right", false));
    stage.finish().await;
}

/// The children are stopped, so that they have read nothing of what they were sent when they die.
async fn a_request_that_waits_for_a_child_that_dies() {
    let stage = Stage::with(unwatched(2)).await;
    let (model, processes) = stage.idle("stopped", 2, ActLoader::default()).await;
    processes.iter().for_each(|process| signal(*process, Signal::STOP));
    let asked = tokio::spawn(async move { ask(&model, Act::Reply("right".into())).await });
    stage.until("stopped", "one has the request", |model| model.in_flight == 1).await;
    // Whichever has it: the other one gets it next, unless its end is found first.
    processes.iter().for_each(|process| kill(*process));
    let said = asked.await.unwrap().unwrap();
    assert_eq!((said.words.as_str(), processes.contains(&said.process)), ("right", false));
    stage.finish().await;
}

/// As above, with a child that has a run, which alone is to blame.
async fn a_request_joins_a_child_that_dies() {
    let stage = Stage::with({
        let (system, pool) = unwatched(1);
        (system, pool.with_batch(BatchLimits::default()))
    })
    .await;
    let loader = ActLoader { joins: true, ..ActLoader::default() };
    let (model, processes) = stage.idle("joined", 1, loader).await;
    let begun = Ask { chunks: 1, ..Act::UntilCancelled.into() };
    let mut stream = model.stream(begun, model_actors::CallOptions::default()).await.unwrap();
    stream.next().await.unwrap().unwrap();
    signal(processes[0], Signal::STOP);
    let asked = tokio::spawn(async move { ask(&model, Act::Reply("right".into())).await });
    stage.until("joined", "both are with it", |model| model.in_flight == 2).await;
    kill(processes[0]);
    let error = stream.next().await.unwrap().unwrap_err();
    assert!(matches!(error, Error::WorkerCrashed { .. }), "{error}");
    assert_eq!(asked.await.unwrap().unwrap().words, "right");
    stage.finish().await;
}

async fn a_death_after_the_load() {
    let stage = Stage::with(unwatched(1)).await;
    let (model, processes) = stage.idle("never asked", 1, ActLoader::default()).await;
    kill(processes[0]);
    assert_ne!(process_of(&model).await, processes[0]);
    stage.has_failed_itself("never asked", 1).await;
    stage.finish().await;
}

/// A request that is to blame for nothing does not go round for ever.
async fn one_that_always_dies_idle_opens_the_breaker() {
    let stage = Stage::with({
        let (system, pool) = unwatched(1);
        let restart = pool.restart.with_max_restarts(2);
        (system, pool.with_restart(restart))
    })
    .await;
    let loader = ActLoader { dies_idle: true, ..ActLoader::default() };
    let (model, _) = stage.idle("dies idle", 1, loader).await;
    let error = ask(&model, Act::Reply(String::new())).await.unwrap_err();
    assert!(
        matches!(&error, Error::CircuitOpen { cause, .. } if cause.message().contains("SIGKILL")),
        "{error}"
    );
    stage.finish().await;
}
