//! Nodes that die, freeze, leave and come back: what ran there is run elsewhere or answered at once, and nothing else is
//! lost.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use model_actors::{CallOptions, Error, ModelHandle};
use rustix::process::{Pid, Signal, kill_process};
use tokio::sync::watch;

use crate::node::{Echo, Node, NodeOptions, Say};
use crate::{Test, join, on_a_runtime, served, until};

pub(crate) const TESTS: &[Test] = &[
    ("a_node_that_is_killed_ends_its_streams_at_once", a_node_that_is_killed_ends_its_streams_at_once),
    ("what_a_killed_node_had_runs_elsewhere", what_a_killed_node_had_runs_elsewhere),
    ("a_request_that_kills_its_nodes_is_given_up", a_request_that_kills_its_nodes_is_given_up),
    ("a_node_comes_back", a_node_comes_back),
    ("nodes_that_dial_each_other_keep_one_connection", nodes_that_dial_each_other_keep_one_connection),
    ("a_frozen_node_is_lost_and_comes_back", a_frozen_node_is_lost_and_comes_back),
    ("a_rolling_restart_fails_nothing", a_rolling_restart_fails_nothing),
    ("the_ledger_of_a_soak_with_kills_adds_up", the_ledger_of_a_soak_with_kills_adds_up),
];

fn serving(name: &str) -> NodeOptions {
    NodeOptions::new(name).model("echo", "1")
}

/// Begins a call that takes so long.
fn call(
    model: &ModelHandle<Echo>,
    words: &str,
    time: Duration,
) -> tokio::task::JoinHandle<Result<String, Error>> {
    let (model, say) = (model.clone(), Say::after(words, time));
    tokio::spawn(async move { model.call(say, CallOptions::default()).await.map(|said| said.node) })
}

fn a_node_that_is_killed_ends_its_streams_at_once() {
    let there = Node::start(&serving("b")).unwrap();
    on_a_runtime(async {
        let (system, client) = join(NodeOptions::new("a"), [&there]).await;
        let model = served(&system, &client, "echo", 1).await;
        let long = Say::chunks(100_000, Duration::from_millis(5));
        let mut stream = model.stream(long, CallOptions::default()).await.unwrap();
        for chunk in 0..3 {
            assert_eq!(stream.next().await, Some(Ok(chunk)));
        }
        let began = Instant::now();
        there.kill().unwrap();
        let end = stream.output().await;
        assert!(matches!(&end, Err(Error::PeerLost { peer, .. }) if peer == "b"), "{end:?}");
        assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
        let none = model.call(Say::default(), CallOptions::default()).await;
        assert!(matches!(none, Err(Error::NoPeer { .. })), "{none:?}");
        assert!(system.status().peers.is_empty());
        let (free, all) = system.slots();
        assert_eq!(free, all);
        system.shutdown().await;
    });
}

fn what_a_killed_node_had_runs_elsewhere() {
    let (first, second) = (Node::start(&serving("b")).unwrap(), Node::start(&serving("c")).unwrap());
    on_a_runtime(async {
        let (system, client) = join(NodeOptions::new("a"), [&first, &second]).await;
        let model = served(&system, &client, "echo", 2).await;
        let calls: Vec<_> = (0..10).map(|_| call(&model, "", Duration::from_millis(150))).collect();
        let mut first = first;
        until("the first to have some", || {
            (!first.ask("slots").unwrap().starts_with("slots 40")).then_some(())
        })
        .await;
        first.kill().unwrap();
        for call in calls {
            let node = call.await.unwrap().unwrap();
            assert!(node == "b" || node == "c");
        }
        let last = call(&model, "", Duration::ZERO).await.unwrap();
        assert_eq!(last.unwrap(), "c");
        system.shutdown().await;
    });
}

fn a_request_that_kills_its_nodes_is_given_up() {
    let nodes: Vec<Node> = ["b", "c", "d", "e"].map(|name| Node::start(&serving(name)).unwrap()).into();
    on_a_runtime(async {
        let (system, client) = join(NodeOptions::new("a"), &nodes).await;
        let model = served(&system, &client, "echo", 4).await;
        let killer = Say { kills: true, ..Say::default() };
        let killed = model.call(killer, CallOptions::default()).await;
        assert!(matches!(killed, Err(Error::PeerLost { .. })), "{killed:?}");
        let left = call(&model, "", Duration::ZERO).await.unwrap();
        assert!(left.is_ok(), "at least one node is left: {left:?}");
        system.shutdown().await;
    });
}

fn a_node_comes_back() {
    let there = Node::start(&serving("b")).unwrap();
    on_a_runtime(async {
        let (system, client) = join(NodeOptions::new("a"), [&there]).await;
        let model = served(&system, &client, "echo", 1).await;
        let address = there.address;
        there.kill().unwrap();
        until("its loss", || system.status().peers.is_empty().then_some(())).await;
        let again = NodeOptions { listen: address, ..serving("b") };
        let again = Node::start(&again).unwrap();
        served(&system, &client, "echo", 1).await;
        assert_eq!(call(&model, "", Duration::ZERO).await.unwrap().unwrap(), "b", "the handle stays");
        drop(again);
        system.shutdown().await;
    });
}

fn nodes_that_dial_each_other_keep_one_connection() {
    // Two ports that are free, as far as that can be known.
    let free: Vec<_> = (0..2).map(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let [here, there] = [0, 1].map(|index: usize| free[index].local_addr().unwrap());
    drop(free);
    let node = Node::start(&NodeOptions { listen: there, ..serving("b").peer(here) }).unwrap();
    on_a_runtime(async {
        let options = NodeOptions { listen: here, ..NodeOptions::new("a").peer(there) };
        let (system, client) = join(options, []).await;
        let model = served(&system, &client, "echo", 1).await;
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(3) {
            let said = call(&model, "", Duration::from_millis(5)).await.unwrap();
            assert_eq!(said.unwrap(), "b", "no connection that stands is given up for another");
        }
        drop(node);
        system.shutdown().await;
    });
}

fn a_frozen_node_is_lost_and_comes_back() {
    let nodes: Vec<Node> = ["b", "c"].map(|name| Node::start(&serving(name)).unwrap()).into();
    on_a_runtime(async {
        let (system, client) = join(NodeOptions::new("a"), &nodes).await;
        let model = served(&system, &client, "echo", 2).await;
        let signal =
            |signal| kill_process(Pid::from_raw(nodes[0].process() as i32).unwrap(), signal).unwrap();
        let calls: Vec<_> = (0..6).map(|_| call(&model, "", Duration::from_millis(100))).collect();
        let began = Instant::now();
        // Its connection stands, and nothing comes.
        signal(Signal::STOP);
        until("its loss", || (system.status().peers.len() == 1).then_some(())).await;
        let took = began.elapsed();
        assert!(took > Duration::from_millis(600) && took < Duration::from_secs(3), "{took:?}");
        for call in calls {
            call.await.unwrap().unwrap();
        }
        signal(Signal::CONT);
        served(&system, &client, "echo", 2).await;
        system.shutdown().await;
    });
}

fn a_rolling_restart_fails_nothing() {
    let mut nodes: Vec<Option<Node>> =
        ["b", "c", "d"].map(|name| Some(Node::start(&serving(name).workers(2)).unwrap())).into();
    on_a_runtime(async {
        let (system, client) = join(NodeOptions::new("a").slots(50), nodes.iter().flatten()).await;
        let model = served(&system, &client, "echo", 3).await;
        let going = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(true));
        let callers: Vec<_> = (0..8)
            .map(|_| {
                let (model, going) = (model.clone(), going.clone());
                tokio::spawn(async move {
                    let mut served = 0;
                    while going.load(std::sync::atomic::Ordering::SeqCst) {
                        let say = Say::after("", Duration::from_millis(20));
                        model.call(say, CallOptions::default()).await.unwrap();
                        served += 1;
                    }
                    served
                })
            })
            .collect();
        for place in &mut nodes {
            let node = place.take().unwrap();
            let options = NodeOptions { listen: node.address, ..serving(&node.name).workers(2) };
            let left = tokio::task::spawn_blocking(|| node.leave().unwrap());
            assert!(left.await.unwrap(), "it leaves nothing behind");
            *place = Some(Node::start(&options).unwrap());
            served(&system, &client, "echo", 3).await;
        }
        going.store(false, std::sync::atomic::Ordering::SeqCst);
        let mut all = 0;
        for caller in callers {
            all += caller.await.unwrap();
        }
        println!("{all} requests during a rolling restart of three nodes, none failed");
        assert!(all > 50, "{all}");
        system.shutdown().await;
    });
}

/// Requests that are answered between two kills of a soak.
const ANSWERS_BETWEEN_KILLS: u64 = 40;

fn the_ledger_of_a_soak_with_kills_adds_up() {
    let mut nodes: Vec<Option<Node>> =
        ["b", "c", "d"].map(|name| Some(Node::start(&serving(name).workers(2)).unwrap())).into();
    on_a_runtime(async {
        let (system, client) = join(NodeOptions::new("a").slots(50), nodes.iter().flatten()).await;
        let model = served(&system, &client, "echo", 3).await;
        let going = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(true));
        let answers = watch::Sender::new(0_u64);
        let callers: Vec<_> = (0..12_u64)
            .map(|caller| {
                let (model, going, answers) = (model.clone(), going.clone(), answers.clone());
                tokio::spawn(async move {
                    let mut ledger: BTreeMap<&'static str, u64> = BTreeMap::new();
                    while going.load(std::sync::atomic::Ordering::SeqCst) {
                        *ledger.entry("asked").or_default() += 1;
                        let outcome = match caller % 3 {
                            0 => whole_stream(&model).await,
                            1 => {
                                let say = Say::after("", Duration::from_millis(10));
                                model.call(say, CallOptions::default()).await.map(drop)
                            }
                            _ => {
                                let long = Say::chunks(1000, Duration::from_millis(2));
                                let stream = model.stream(long, CallOptions::default()).await;
                                match stream {
                                    Ok(mut stream) => {
                                        let _ = stream.next().await;
                                        *ledger.entry("cancelled").or_default() += 1;
                                        continue;
                                    }
                                    Err(error) => Err(error),
                                }
                            }
                        };
                        let outcome = outcome.map_or_else(|error| error.reason(), |()| "ok");
                        *ledger.entry(outcome).or_default() += 1;
                        answers.send_modify(|answers| *answers += u64::from(outcome == "ok"));
                    }
                    ledger
                })
            })
            .collect();
        for round in 0..6 {
            let enough = *answers.borrow() + ANSWERS_BETWEEN_KILLS;
            answers.subscribe().wait_for(|answers| *answers >= enough).await.unwrap();
            let place = &mut nodes[round % 3];
            let node = place.take().unwrap();
            let options = NodeOptions { listen: node.address, ..serving(&node.name).workers(2) };
            node.kill().unwrap();
            *place = Some(Node::start(&options).unwrap());
        }
        served(&system, &client, "echo", 3).await;
        going.store(false, std::sync::atomic::Ordering::SeqCst);
        let mut ledger: BTreeMap<&'static str, u64> = BTreeMap::new();
        for caller in callers {
            caller
                .await
                .unwrap()
                .into_iter()
                .for_each(|(name, count)| *ledger.entry(name).or_default() += count);
        }
        println!("six kills among three nodes: {ledger:?}");
        let asked = ledger.remove("asked").unwrap();
        assert_eq!(asked, ledger.values().sum::<u64>(), "each request has one outcome: {ledger:?}");
        let fine = ["ok", "cancelled", "peer_lost", "no_peer"];
        assert!(ledger.keys().all(|outcome| fine.contains(outcome)), "{ledger:?}");
        assert!(ledger["ok"] > 50, "{ledger:?}");
        for node in nodes.iter_mut().flatten() {
            until("slots there", || (node.ask("slots").unwrap() == "slots 40 40").then_some(())).await;
        }
        let (free, all) = system.slots();
        assert_eq!(free, all);
        assert!(system.shutdown().await.is_clean());
    });
}

/// Reads a stream to its end, and checks that its chunks are those of one run.
async fn whole_stream(model: &ModelHandle<Echo>) -> Result<(), Error> {
    let mut stream = model.stream(Say::chunks(60, Duration::from_millis(1)), CallOptions::default()).await?;
    let mut next = 0;
    while let Some(chunk) = stream.next().await {
        assert_eq!(chunk?, next);
        next += 1;
    }
    assert_eq!(next, 60);
    stream.output().await.map(drop)
}
