//! A cluster on loopback in one command: three nodes with a scripted model each, children of this process, and this process
//! as a fourth that has no model and asks. It shows who serves what, kills a node under load, and ends by itself.
//!
//! `cargo run -p model-actors --features cluster --example cluster`
//!
//! With `-- measure` it compares three nodes with one; with `-- namespaces` each node has a network namespace of its own, with
//! TLS between them, and the network is cut and healed under load. That needs root, iproute2 and openssl on Linux; where
//! something is missing it says what.

mod node;
mod load;
mod namespaces;

use std::error::Error;
use std::time::{Duration, Instant};

use load::Load;
use model_actors::{CallOptions, Client, ModelHandle, PeerStatus, System};
use node::{Echo, Node, NodeOptions, Say};

type Outcome<T = ()> = Result<T, Box<dyn Error + Send + Sync>>;

fn main() -> Outcome {
    node::be_a_node_if_asked();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let argument = std::env::args().nth(1);
    match argument.as_deref() {
        None => runtime.block_on(show()),
        Some("measure") => {
            let one = runtime.block_on(rate(1))?;
            let three = runtime.block_on(rate(3))?;
            println!(
                "one node: {one:.1} requests/s; three nodes: {three:.1}; {:.2} times as many",
                three / one
            );
            Ok(())
        }
        Some("namespaces") => namespaces::run(&runtime),
        Some(other) => Err(format!("{other:?} is none of: measure, namespaces").into()),
    }
}

fn serving(name: &str) -> NodeOptions {
    NodeOptions::new(name).model("echo", "1").workers(4).slots(40)
}

async fn show() -> Outcome {
    let mut nodes = Vec::new();
    for name in ["left", "middle", "right"] {
        // Each knows those before it.
        let node = Node::start(&serving(name).peers(&nodes))?;
        println!("{name} is process {} and listens on {}", node.process(), node.address);
        nodes.push(node);
    }
    let (system, client) = asking(NodeOptions::new("asking").peers(&nodes)).await?;
    let model = served(&system, &client, 3).await?;
    println!("\nwho knows whom");
    println!("  asking knows {}", node::peers(&system));
    for node in &mut nodes {
        let known = node.ask("peers")?;
        println!("  {} knows {known}", node.name);
    }

    println!("\nten seconds of requests and streams");
    let load = Load::begin(&model, 12, Duration::from_millis(50));
    tokio::time::sleep(Duration::from_secs(3)).await;
    let lost = nodes.remove(1);
    println!("{} is killed", lost.name);
    let (address, began) = (lost.address, Instant::now());
    lost.kill()?;
    until(|| system.status().peers.len() == 2).await?;
    println!(
        "its loss is known after {} ms; asking knows {}",
        began.elapsed().as_millis(),
        node::peers(&system)
    );
    tokio::time::sleep(Duration::from_secs(3)).await;
    let again = Node::start(&NodeOptions { listen: address, ..serving("middle").peers(&nodes) })?;
    served(&system, &client, 3).await?;
    println!("it is back; asking knows {}", node::peers(&system));
    tokio::time::sleep(Duration::from_secs(3)).await;
    let ledger = load.end().await;
    println!("{ledger}");
    nodes.push(again);
    for node in nodes {
        let name = node.name.clone();
        println!(
            "{name} leaves, {}",
            if node.leave()? { "and leaves nothing behind" } else { "and leaves something behind" }
        );
    }
    system.shutdown().await;
    ledger.check()
}

/// Requests a second that so many nodes serve.
async fn rate(count: usize) -> Outcome<f64> {
    let mut nodes: Vec<Node> = Vec::new();
    for name in ["left", "middle", "right"].iter().take(count) {
        nodes.push(Node::start(&serving(name))?);
    }
    let (system, client) = asking(NodeOptions::new("asking").slots(200).peers(&nodes)).await?;
    let model = served(&system, &client, count).await?;
    let ledger = Load::calls(&model, 48, Duration::from_millis(100)).after(Duration::from_secs(5)).await;
    println!("{count} nodes: {ledger}");
    system.shutdown().await;
    ledger.check()?;
    Ok(ledger.rate())
}

/// This process as a node.
pub(crate) async fn asking(options: NodeOptions) -> Outcome<(System, Client<Echo>)> {
    let system = options.join().await?;
    let client = system.client::<Echo>()?;
    Ok((system, client))
}

/// Waits until so many nodes serve the model, and asks each place once.
pub(crate) async fn served(
    system: &System,
    client: &Client<Echo>,
    nodes: usize,
) -> Outcome<ModelHandle<Echo>> {
    let serves =
        |peer: &&PeerStatus| peer.models.iter().any(|model| model.resident && model.interactive_slots > 0);
    until(|| system.status().peers.iter().filter(serves).count() == nodes).await?;
    let model = client.model("echo")?;
    model.call(Say::default(), CallOptions::default()).await?;
    Ok(model)
}

/// Waits for something, and not for ever.
pub(crate) async fn until(mut holds: impl FnMut() -> bool) -> Outcome {
    let began = Instant::now();
    while !holds() {
        if began.elapsed() > Duration::from_secs(20) {
            return Err("what was waited for did not come about".into());
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}
