//! Nodes of a cluster over real connections of loopback: requests and streams reach a model wherever it is, with deadlines,
//! cancelling and slots; nodes die, freeze, leave and come back; strangers are refused. A process is one node, so each test
//! is a process of its own, and the other nodes are children of it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "../../examples/cluster/node.rs"]
#[allow(dead_code, reason = "the example uses the rest")]
mod node;
mod calls;
mod placement;
mod serving;
mod losses;
mod strangers;
mod places;

use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, mpsc};
use std::time::{Duration, Instant};

use model_actors::{Client, ModelHandle, System};
use rustix::process::{Pid, Signal, kill_process};

use node::{Echo, Node, NodeOptions};

/// A test and its name.
pub(crate) type Test = (&'static str, fn());

/// Tests that run at a time, and the longest time that one takes.
const AT_A_TIME: usize = 4;
const PATIENCE: Duration = Duration::from_secs(60);

fn main() {
    node::be_a_node_if_asked();
    strangers::be_a_stranger_if_asked();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let all =
        [serving::TESTS, losses::TESTS, strangers::TESTS, places::TESTS, calls::TESTS, placement::TESTS];
    let all: Vec<&Test> = all.into_iter().flatten().collect();
    if let [mark, name] = arguments.as_slice()
        && mark == "--test"
    {
        let test = all.iter().find(|test| test.0 == name).expect("a test of this name");
        return test.1();
    }
    let filter = arguments.iter().find(|argument| !argument.starts_with('-'));
    let wanted: Vec<_> =
        all.into_iter().filter(|test| filter.is_none_or(|filter| test.0.contains(filter.as_str()))).collect();
    let (next, failed) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..AT_A_TIME {
            scope.spawn(|| {
                while let Some(test) = wanted.get(next.fetch_add(1, Ordering::SeqCst)) {
                    if !passes(test.0) {
                        failed.lock().unwrap().push(test.0);
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap();
    assert!(failed.is_empty(), "failed: {failed:?}");
}

/// Runs a test in a process of its own.
fn passes(name: &str) -> bool {
    let began = Instant::now();
    let program = std::env::current_exe().unwrap();
    let mut process = Command::new(program).args(["--test", name]).stderr(Stdio::inherit()).spawn().unwrap();
    let number = Pid::from_child(&process);
    let (sender, ended) = mpsc::channel();
    let waiter = std::thread::spawn(move || sender.send(process.wait().unwrap().success()).unwrap());
    let passed = ended.recv_timeout(PATIENCE).unwrap_or_else(|_| {
        kill_process(number, Signal::KILL).unwrap();
        ended.recv().unwrap();
        eprintln!("{name} took too long");
        false
    });
    waiter.join().unwrap();
    println!("test {name} ... {} ({:.1?})", if passed { "ok" } else { "FAILED" }, began.elapsed());
    passed
}

/// Runs a test's work on a runtime.
pub(crate) fn on_a_runtime(work: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(work);
}

/// This process as a node, which knows these others.
pub(crate) async fn join<'a>(
    options: NodeOptions,
    peers: impl IntoIterator<Item = &'a Node>,
) -> (System, Client<Echo>) {
    let system = options.peers(peers).join().await.unwrap();
    let client = system.client::<Echo>().unwrap();
    (system, client)
}

/// Waits for something that happens in its own time.
pub(crate) async fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(began.elapsed() < Duration::from_secs(20), "{what} did not come about");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Waits until this many nodes serve the model, and returns its handle.
pub(crate) async fn served(
    system: &System,
    client: &Client<Echo>,
    model: &str,
    nodes: usize,
) -> ModelHandle<Echo> {
    let serving = || {
        let status = system.status();
        let serve = |peer: &&model_actors::PeerStatus| {
            peer.models
                .iter()
                .any(|one| one.model.as_str() == model && one.resident && one.interactive_slots > 0)
        };
        status.peers.iter().filter(serve).count()
    };
    until("nodes that serve the model", || (serving() == nodes).then_some(())).await;
    client.model(model).unwrap()
}
