//! Three nodes in network namespaces of their own, joined by a bridge, with TLS: throughput against one node, a partition
//! that heals under load, a node that is killed, and a rolling restart. The asking node is in the namespace of this process.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use tokio::runtime::Runtime;

use crate::load::Load;
use crate::node::{Node, NodeOptions};
use crate::{Outcome, asking, served, serving, until};

const NAMES: [&str; 3] = ["left", "middle", "right"];
/// The first three bytes of the nodes' addresses: a range for documentation, which is nobody's.
const NETWORK: &str = "198.51.100";
const PORT: u16 = 7400;

/// Runs a command, and says why it failed.
fn run_command(program: &str, arguments: &[&str]) -> Outcome {
    let output = Command::new(program).args(arguments).output();
    let output = output.map_err(|error| format!("{program}: {error}"))?;
    match output.status.success() {
        true => Ok(()),
        false => {
            Err(format!("{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr).trim()).into())
        }
    }
}

fn ip(arguments: &str) -> Outcome {
    run_command("ip", &arguments.split_whitespace().collect::<Vec<_>>())
}

/// The namespaces, their bridge and the certificates; all go when this is dropped.
struct Network {
    tag: String,
    folder: PathBuf,
}

impl Network {
    fn new() -> Outcome<Self> {
        // Names of interfaces have fifteen bytes at most.
        let tag = format!("ma{}", std::process::id() % 100_000);
        let folder = std::env::temp_dir().join(format!("{tag}-certificates"));
        let network = Self { tag, folder };
        let tag = &network.tag;
        ip(&format!("link add {tag} type bridge"))?;
        ip(&format!("addr add {NETWORK}.1/24 dev {tag}"))?;
        ip(&format!("link set {tag} up"))?;
        for index in 0..NAMES.len() {
            let (namespace, outer) = (network.namespace(index), network.outer(index));
            ip(&format!("netns add {namespace}"))?;
            ip(&format!("link add {outer} type veth peer name eth0 netns {namespace}"))?;
            ip(&format!("link set {outer} master {tag} up"))?;
            ip(&format!("-n {namespace} addr add {}/24 dev eth0", address(index)))?;
            ip(&format!("-n {namespace} link set eth0 up"))?;
            ip(&format!("-n {namespace} link set lo up"))?;
        }
        network.sign()?;
        Ok(network)
    }

    fn namespace(&self, index: usize) -> String {
        format!("{}-{index}", self.tag)
    }

    fn outer(&self, index: usize) -> String {
        format!("{}v{index}", self.tag)
    }

    /// Makes an authority, and a certificate for each node and its address.
    fn sign(&self) -> Outcome {
        std::fs::create_dir_all(&self.folder)?;
        let file = |name: &str| self.folder.join(name).to_string_lossy().into_owned();
        let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"];
        let (authority, private) = (file("authority.pem"), file("authority.key"));
        let first = ["req", "-x509", "-subj", "/CN=authority", "-keyout", &private, "-out", &authority];
        run_command("openssl", &[&first[..], &key].concat())?;
        let nodes = NAMES.iter().enumerate().map(|(index, name)| (*name, address(index)));
        for (name, address) in nodes.chain([("asking", format!("{NETWORK}.1"))]) {
            let (subject, names) = (format!("/CN={name}"), format!("subjectAltName=IP:{address}"));
            let (chain, secret) = (file(&format!("{name}.pem")), file(&format!("{name}.key")));
            let signed = ["req", "-x509", "-CA", &authority, "-CAkey", &private, "-subj", &subject];
            let parts = ["-addext", &names, "-addext", "basicConstraints=critical,CA:FALSE"];
            let files = ["-keyout", &secret, "-out", &chain];
            run_command("openssl", &[&signed[..], &parts, &files, &key].concat())?;
        }
        Ok(())
    }

    fn start(&self, index: usize) -> Outcome<Node> {
        let listen = format!("{}:{PORT}", address(index)).parse()?;
        let options = NodeOptions { listen, tls: Some(self.folder.clone()), ..serving(NAMES[index]) };
        // Each knows those before it.
        let options =
            (0..index).fold(options, |options, index| options.peer(format!("{}:{PORT}", address(index))));
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace(index)]).arg(std::env::current_exe()?);
        Ok(Node::start_by(command, &options)?)
    }

    /// Cuts a node off, or lets it back.
    fn cut(&self, index: usize, is_cut: bool) -> Outcome {
        let state = if is_cut { "down" } else { "up" };
        ip(&format!("link set {} {state}", self.outer(index)))
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // What was not made cannot be taken away.
        for index in 0..NAMES.len() {
            let _ = ip(&format!("netns del {}", self.namespace(index)));
            let _ = ip(&format!("link del {}", self.outer(index)));
        }
        let _ = ip(&format!("link del {}", self.tag));
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn address(index: usize) -> String {
    format!("{NETWORK}.{}", index + 2)
}

pub(crate) fn run(runtime: &Runtime) -> Outcome {
    let network = match Network::new() {
        Ok(network) => network,
        Err(error) => {
            println!("network namespaces are left out: {error}");
            return Ok(());
        }
    };
    runtime.block_on(async {
        let one = rate(&network, 1).await?;
        let three = rate(&network, 3).await?;
        println!("three nodes serve {:.2} times as many requests as one, over TLS", three / one);
        troubles(&network).await
    })
}

fn asking_options(network: &Network, nodes: &[Node]) -> Outcome<NodeOptions> {
    let listen = format!("{NETWORK}.1:{PORT}").parse()?;
    let options = NodeOptions::new("asking").slots(200).peers(nodes);
    Ok(NodeOptions { listen, tls: Some(network.folder.clone()), ..options })
}

async fn rate(network: &Network, count: usize) -> Outcome<f64> {
    let nodes = (0..count).map(|index| network.start(index)).collect::<Outcome<Vec<Node>>>()?;
    let (system, client) = asking(asking_options(network, &nodes)?).await?;
    let model = served(&system, &client, count).await?;
    let ledger = Load::calls(&model, 48, Duration::from_millis(100)).after(Duration::from_secs(8)).await;
    println!("{count} nodes: {ledger}, {:.1} in a second", ledger.rate());
    system.shutdown().await;
    ledger.check_all_served()?;
    Ok(ledger.rate())
}

async fn troubles(network: &Network) -> Outcome {
    let mut nodes = (0..NAMES.len()).map(|index| network.start(index)).collect::<Outcome<Vec<Node>>>()?;
    let (system, client) = asking(asking_options(network, &nodes)?).await?;
    let model = served(&system, &client, 3).await?;

    let load = Load::begin(&model, 24, Duration::from_millis(50));
    tokio::time::sleep(Duration::from_secs(2)).await;
    network.cut(0, true)?;
    until(|| system.status().peers.len() == 2).await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    network.cut(0, false)?;
    served(&system, &client, 3).await?;
    let ledger = load.after(Duration::from_secs(2)).await;
    println!("one node cut off and let back: {ledger}");
    ledger.check()?;

    let load = Load::begin(&model, 24, Duration::from_millis(50));
    tokio::time::sleep(Duration::from_secs(2)).await;
    nodes.remove(1).kill()?;
    until(|| system.status().peers.len() == 2).await?;
    nodes.insert(1, network.start(1)?);
    served(&system, &client, 3).await?;
    let ledger = load.after(Duration::from_secs(2)).await;
    println!("one node killed and started again: {ledger}");
    ledger.check()?;

    let load = Load::begin(&model, 24, Duration::from_millis(50));
    for index in 0..NAMES.len() {
        let node = nodes.remove(index);
        let left = tokio::task::spawn_blocking(|| node.leave()).await??;
        if !left {
            return Err("a node left something behind".into());
        }
        nodes.insert(index, network.start(index)?);
        served(&system, &client, 3).await?;
    }
    let ledger = load.end().await;
    println!("all three nodes restarted in turn: {ledger}");
    ledger.check_all_served()?;

    for node in &mut nodes {
        let slots = node.ask("slots")?;
        println!("{}: {slots}", node.name);
    }
    let (free, all) = system.slots();
    println!("asking: slots {free} {all}");
    system.shutdown().await;
    Ok(())
}
