//! Calls on a model of other nodes: preload, unload and pin, with their errors, and its facts.

use std::time::{Duration, Instant};

use model_actors::{Client, Error, ModelFacts, ModelHandle, System};

use crate::node::{Echo, Node, NodeOptions};
use crate::{Test, join, on_a_runtime, until};

pub(crate) const TESTS: &[Test] = &[
    ("a_preload_is_of_one_node_and_an_unload_of_all", a_preload_is_of_one_node_and_an_unload_of_all),
    ("errors_of_calls_are_those_of_the_node", errors_of_calls_are_those_of_the_node),
    ("a_preload_goes_elsewhere_when_its_node_is_lost", a_preload_goes_elsewhere_when_its_node_is_lost),
    ("a_caller_who_goes_ends_an_unload_there", a_caller_who_goes_ends_an_unload_there),
];

/// Names of the peers that have the model in memory.
fn resident(system: &System, model: &str) -> Vec<String> {
    let status = system.status();
    let has = |peer: &&model_actors::PeerStatus| {
        peer.models.iter().any(|told| told.model.as_str() == model && told.resident)
    };
    status.peers.iter().filter(has).map(|peer| peer.node.clone()).collect()
}

/// Number of loads that these nodes have begun.
fn loads(nodes: &mut [Node]) -> u64 {
    nodes.iter_mut().map(|node| node.ask("loads").unwrap().parse::<u64>().unwrap()).sum()
}

/// The handle to a model of so many peers.
async fn told(system: &System, client: &Client<Echo>, model: &str, peers: usize) -> ModelHandle<Echo> {
    let serving = || {
        let status = system.status();
        let models = status.peers.iter().flat_map(|peer| &peer.models);
        models.filter(|told| told.model.as_str() == model).count()
    };
    until("peers with the model", || (serving() == peers).then_some(())).await;
    client.model(model).unwrap()
}

fn cold(name: &str) -> NodeOptions {
    NodeOptions::new(name).model("echo", "1").cold(Duration::from_millis(50))
}

fn a_preload_is_of_one_node_and_an_unload_of_all() {
    let mut nodes: Vec<Node> = ["b", "c"].map(|name| Node::start(&cold(name)).unwrap()).into();
    on_a_runtime(async {
        let (system, client) = join(NodeOptions::new("a"), &nodes).await;
        let model = told(&system, &client, "echo", 2).await;
        assert!(!model.is_here());
        assert_eq!((model.facts(), resident(&system, "echo").len()), (None, 0), "nothing is loaded yet");
        model.preload().await.unwrap();
        assert_eq!(model.facts(), Some(ModelFacts::new("echo")));
        until("a node with the model", || resident(&system, "echo").pop()).await;
        model.preload().await.unwrap();
        assert_eq!(loads(&mut nodes), 1, "it is there already");
        for node in &mut nodes {
            assert_eq!(node.ask("load").unwrap(), "loaded");
        }
        until("both with the model", || (resident(&system, "echo").len() == 2).then_some(())).await;
        model.pin(true).await.unwrap();
        nodes.iter_mut().for_each(|node| assert_eq!(node.ask("pinned").unwrap(), "1", "{}", node.name));
        model.unload(Duration::from_secs(5)).await.unwrap();
        until("no node with the model", || resident(&system, "echo").is_empty().then_some(())).await;
        model.pin(false).await.unwrap();
        nodes.iter_mut().for_each(|node| assert_eq!(node.ask("pinned").unwrap(), "0", "{}", node.name));
        assert_eq!(loads(&mut nodes), 2);
        system.shutdown().await;
    });
}

fn errors_of_calls_are_those_of_the_node() {
    let broken = Node::start(&NodeOptions { breaks: true, ..cold("b") }).unwrap();
    on_a_runtime(async {
        let (system, client) = join(NodeOptions::new("a"), [&broken]).await;
        let model = told(&system, &client, "echo", 1).await;
        let error = model.preload().await.unwrap_err();
        let Error::SpawnFailed { cause, .. } = &error else { panic!("{error}") };
        assert!(cause.to_string().contains("its files are broken"), "{error}");
        drop(broken);
        let gone = || system.status().peers.is_empty().then_some(());
        until("the node to be gone", gone).await;
        for error in [
            model.preload().await.unwrap_err(),
            model.unload(Duration::from_secs(1)).await.unwrap_err(),
            model.pin(true).await.unwrap_err(),
        ] {
            assert!(matches!(error, Error::NoPeer { .. }), "{error}");
        }
        system.shutdown().await;
    });
}

fn a_preload_goes_elsewhere_when_its_node_is_lost() {
    let slow = |name| cold(name).cold(Duration::from_secs(3));
    let mut nodes: Vec<Node> = ["b", "c"].map(|name| Node::start(&slow(name)).unwrap()).into();
    on_a_runtime(async {
        let (system, client) = join(NodeOptions::new("a"), &nodes).await;
        let model = told(&system, &client, "echo", 2).await;
        let preload = async |model: ModelHandle<Echo>| model.preload().await;
        let call = tokio::spawn(preload(model.clone()));
        let loaded =
            |nodes: &mut [Node]| nodes.iter_mut().position(|node| loads(std::slice::from_mut(node)) > 0);
        let first = until("a load", || loaded(&mut nodes)).await;
        nodes.remove(first).kill().unwrap();
        until("a load elsewhere", || loaded(&mut nodes)).await;
        call.await.unwrap().unwrap();
        // Nobody is left for another one.
        model.unload(Duration::from_secs(5)).await.unwrap();
        let call = tokio::spawn(preload(model.clone()));
        until("a second load there", || (loads(&mut nodes) == 2).then_some(())).await;
        let name = nodes[0].name.clone();
        nodes.remove(0).kill().unwrap();
        let began = Instant::now();
        let error = call.await.unwrap().unwrap_err();
        assert!(matches!(&error, Error::PeerLost { peer, .. } if *peer == name), "{error}");
        assert!(began.elapsed() < Duration::from_secs(3), "at once, and not at its deadline");
        system.shutdown().await;
    });
}

fn a_caller_who_goes_ends_an_unload_there() {
    let mut node = Node::start(&NodeOptions::new("b").model("echo", "1")).unwrap();
    on_a_runtime(async {
        let (system, client) = join(NodeOptions::new("a"), [&node]).await;
        let model = told(&system, &client, "echo", 1).await;
        let say = crate::node::Say::after("", Duration::from_secs(2));
        let busy = tokio::spawn({
            let model = model.clone();
            async move { model.call(say, model_actors::CallOptions::default()).await }
        });
        until("the request there", || node.ask("counts").unwrap().starts_with("counts 1").then_some(()))
            .await;
        let unload = tokio::time::timeout(Duration::from_millis(300), model.unload(Duration::from_secs(60)));
        assert!(unload.await.is_err(), "its worker is busy");
        busy.await.unwrap().unwrap();
        // One that was not called off would have stopped its worker by now.
        model.call(crate::node::Say::default(), model_actors::CallOptions::default()).await.unwrap();
        assert_eq!(node.ask("loads").unwrap(), "1");
        system.shutdown().await;
    });
}
