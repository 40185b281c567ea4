//! A node as a process of its own: the same executable, told by its first argument what to be. It serves scripted models, and
//! answers lines on its standard input. The tests of clusters use it as the example does.

use std::io::{self, BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use model_actors::{
    Batch, BatchLimits, Bytes, Capability, ClusterConfig, ClusterTls, Cost, Failure, Fetch, Footprint,
    LoadContext, LoadStage, Loader, Model, ModelFacts, ModelSpec, PoolConfig, Portable, QueueCapacity,
    System, SystemConfig, Weights,
};
use serde::{Deserialize, Serialize};

/// The argument that says that this process is a node.
const MARK: &str = "--node";
/// Time for a node to answer a line.
const PATIENCE: Duration = Duration::from_secs(20);

/// Requests that a node has begun, that it has left before their end, and that it has ended.
static BEGUN: AtomicU64 = AtomicU64::new(0);
static LEFT: AtomicU64 = AtomicU64::new(0);
static ENDED: AtomicU64 = AtomicU64::new(0);
/// Loads of its models.
static LOADS: AtomicU64 = AtomicU64::new(0);
/// Chunks that its models have sent.
static SENT: AtomicU64 = AtomicU64::new(0);

/// Says words again, with the name of the node that says them.
#[derive(Debug)]
pub(crate) struct Echo;

/// Words, with chunks before them, each after a pause; without chunks there is one pause.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Say {
    pub(crate) words: String,
    pub(crate) chunks: u64,
    pub(crate) pause: Duration,
    /// Bytes that come back.
    #[serde(with = "serde_bytes")]
    pub(crate) ballast: Vec<u8>,
    /// Ends the process that runs it.
    pub(crate) kills: bool,
}

impl Say {
    pub(crate) fn after(words: &str, pause: Duration) -> Self {
        Self { words: words.to_owned(), pause, ..Self::default() }
    }

    pub(crate) fn chunks(chunks: u64, pause: Duration) -> Self {
        Self { chunks, pause, ..Self::default() }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Said {
    pub(crate) node: String,
    pub(crate) words: String,
    #[serde(with = "serde_bytes")]
    pub(crate) ballast: Vec<u8>,
}

impl Capability for Echo {
    type Request = Say;
    type Chunk = u64;
    type Output = Said;
    const NAME: &'static str = "echo";

    /// The milliseconds that it takes, and one.
    fn cost(say: &Say) -> Cost {
        let pauses = say.pause.saturating_mul(u32::try_from(say.chunks).unwrap_or(u32::MAX).max(1));
        Cost(u64::try_from(pauses.as_millis()).unwrap_or(u64::MAX).saturating_add(1))
    }
}

impl Portable for Echo {}

/// The loader of a model of this node, and its weights and model.
#[derive(Debug, Clone)]
pub(crate) struct EchoLoader {
    pub(crate) node: String,
    /// Number of times as long as it is asked to that each pause takes.
    pub(crate) slowness: u32,
    /// Time that a load takes, and whether it fails then.
    pub(crate) load: Duration,
    pub(crate) breaks: bool,
    /// Each of its runs fails at once.
    pub(crate) fails: bool,
}

impl EchoLoader {
    pub(crate) fn of(node: &str) -> Self {
        Self { node: node.to_owned(), slowness: 1, load: Duration::ZERO, breaks: false, fails: false }
    }
}

impl Loader<Echo> for EchoLoader {
    fn footprint(&self, _: &LoadContext) -> Result<Footprint, Failure> {
        Ok(Footprint::new(Bytes::mib(8), Bytes::mib(1)))
    }

    fn load(&self, context: &LoadContext) -> Result<Arc<dyn Weights<Echo>>, Failure> {
        LOADS.fetch_add(1, Ordering::SeqCst);
        let until = Instant::now() + self.load;
        context.begin(LoadStage::Load, Bytes::mib(8));
        while Instant::now() < until && !context.should_stop() {
            std::thread::sleep(Duration::from_millis(2));
        }
        match self.breaks {
            true => Err(Failure::permanent("its files are broken")),
            false => Ok(Arc::new(self.clone())),
        }
    }

    fn facts(&self) -> Option<ModelFacts> {
        Some(ModelFacts::new("echo"))
    }

    fn size(&self, _: Fetch, context: &LoadContext) -> Result<Option<Footprint>, Failure> {
        Loader::footprint(self, context).map(Some)
    }
}

impl Weights<Echo> for EchoLoader {
    fn footprint(&self) -> Footprint {
        Footprint::new(Bytes::mib(8), Bytes::mib(1))
    }

    fn build(&self, _: &LoadContext) -> Result<Box<dyn Model<Echo>>, Failure> {
        Ok(Box::new(self.clone()))
    }
}

impl Model<Echo> for EchoLoader {
    fn run(&mut self, batch: &mut Batch<Echo>) -> Result<(), Failure> {
        for item in batch.items() {
            let say = item.request();
            BEGUN.fetch_add(1, Ordering::SeqCst);
            if say.kills {
                std::process::abort();
            }
            if self.fails {
                item.fail(Failure::failed("its runs fail"));
                continue;
            }
            let pause = say.pause.saturating_mul(self.slowness);
            for chunk in 0..say.chunks.max(1) {
                let until = Instant::now() + pause;
                while Instant::now() < until && !item.should_stop() {
                    std::thread::sleep(pause.min(Duration::from_millis(2)));
                    item.tick();
                }
                if say.chunks > 0 {
                    if item.emit(chunk).is_err() {
                        break;
                    }
                    SENT.fetch_add(1, Ordering::SeqCst);
                }
            }
            if item.should_stop() {
                // The pool answers what is left unanswered.
                LEFT.fetch_add(1, Ordering::SeqCst);
                continue;
            }
            ENDED.fetch_add(1, Ordering::SeqCst);
            item.finish(Said {
                node: self.node.clone(),
                words: say.words.clone(),
                ballast: say.ballast.clone(),
            });
        }
        Ok(())
    }
}

/// Settings of a node.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct NodeOptions {
    pub(crate) name: String,
    pub(crate) secret: String,
    pub(crate) listen: SocketAddr,
    pub(crate) peers: Vec<String>,
    /// Models and their digests.
    pub(crate) models: Vec<(String, String)>,
    pub(crate) workers: usize,
    pub(crate) slowness: u32,
    /// Its models are loaded by need alone; otherwise at once.
    pub(crate) cold: bool,
    /// Time that a load takes, and whether it fails then.
    pub(crate) load: Duration,
    pub(crate) breaks: bool,
    /// Each run of its models fails at once.
    pub(crate) fails: bool,
    /// Limit of its memory, in MiB. A model takes 9.
    pub(crate) memory: u64,
    /// Capacity of the interactive lane.
    pub(crate) slots: usize,
    /// Folder with `NAME.pem`, `NAME.key` and `authority.pem`.
    pub(crate) tls: Option<PathBuf>,
}

impl NodeOptions {
    pub(crate) fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            secret: "the secret of the nodes".to_owned(),
            listen: ([127, 0, 0, 1], 0).into(),
            peers: Vec::new(),
            models: Vec::new(),
            workers: 1,
            slowness: 1,
            cold: false,
            load: Duration::ZERO,
            breaks: false,
            fails: false,
            memory: 1024,
            slots: 20,
            tls: None,
        }
    }

    pub(crate) fn model(mut self, name: &str, digest: &str) -> Self {
        self.models.push((name.to_owned(), digest.to_owned()));
        self
    }

    pub(crate) fn peer(mut self, address: impl ToString) -> Self {
        self.peers.push(address.to_string());
        self
    }

    pub(crate) fn peers<'a>(self, nodes: impl IntoIterator<Item = &'a Node>) -> Self {
        nodes.into_iter().fold(self, |options, node| options.peer(node.address))
    }

    pub(crate) fn workers(mut self, workers: usize) -> Self {
        self.workers = workers;
        self
    }

    pub(crate) fn slowness(mut self, slowness: u32) -> Self {
        self.slowness = slowness;
        self
    }

    /// Loads its models by need alone, each in so long.
    pub(crate) fn cold(mut self, load: Duration) -> Self {
        (self.cold, self.load) = (true, load);
        self
    }

    pub(crate) fn memory(mut self, mib: u64) -> Self {
        self.memory = mib;
        self
    }

    pub(crate) fn slots(mut self, slots: usize) -> Self {
        self.slots = slots;
        self
    }

    /// Starts the node in this process.
    pub(crate) async fn join(&self) -> model_actors::Result<System> {
        let mut cluster = ClusterConfig::new("example", &self.name, &self.secret, self.listen);
        cluster = cluster.with_peers(self.peers.iter().cloned());
        if let Some(folder) = &self.tls {
            let file = |name: &str| folder.join(name);
            let (chain, key) = (file(&format!("{}.pem", self.name)), file(&format!("{}.key", self.name)));
            cluster = cluster.with_tls(ClusterTls::from_pem(&chain, &key, &file("authority.pem"))?);
        }
        let pool = PoolConfig::default()
            .with_max_workers(self.workers)
            .with_cold_start_workers(self.workers)
            .with_queue(QueueCapacity::new(self.slots, self.slots))
            .with_batch(BatchLimits::default().with_requests(1));
        let system = SystemConfig::default().with_memory_limit(Bytes::mib(self.memory));
        let system = System::builder(system).shared_pool::<Echo>(pool).cluster(cluster).start().await?;
        let client = system.client::<Echo>()?;
        for (model, digest) in &self.models {
            let Self { slowness, load, breaks, fails, .. } = *self;
            let loader = EchoLoader { node: self.name.clone(), slowness, load, breaks, fails };
            let model = client.register(ModelSpec::new(model.as_str(), loader).digest(digest.as_str()))?;
            if !self.cold {
                model.preload().await?;
            }
        }
        Ok(system)
    }
}

/// Is a node, and does not return, if this process was started for one.
pub(crate) fn be_a_node_if_asked() {
    let mut arguments = std::env::args().skip(1);
    if arguments.next().as_deref() != Some(MARK) {
        return;
    }
    let options = arguments.next().and_then(|options| serde_json::from_str(&options).ok());
    let Some(options) = options else {
        eprintln!("a node needs its options after {MARK}");
        std::process::exit(2);
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    match runtime {
        Ok(runtime) => runtime.block_on(serve(&options)),
        Err(error) => eprintln!("the node has no runtime: {error}"),
    }
    std::process::exit(1);
}

async fn serve(options: &NodeOptions) {
    let system = match options.join().await {
        Ok(system) => system,
        Err(error) => return eprintln!("the node {} did not start: {error}", options.name),
    };
    let Some(address) = system.cluster_address() else { return };
    say(&format!("listening {address}"));
    let (sender, mut lines) = tokio::sync::mpsc::channel(1);
    std::thread::spawn(move || {
        for line in io::stdin().lock().lines().map_while(Result::ok) {
            if sender.blocking_send(line).is_err() {
                return;
            }
        }
    });
    while let Some(line) = lines.recv().await {
        match line.as_str() {
            "peers" => say(&peers(&system)),
            "slots" => {
                let (free, all) = system.slots();
                say(&format!("slots {free} {all}"));
            }
            "counts" => {
                let [begun, left, ended] = [&BEGUN, &LEFT, &ENDED].map(|count| count.load(Ordering::SeqCst));
                say(&format!("counts {begun} {left} {ended}"));
            }
            "sent" => say(&SENT.load(Ordering::SeqCst).to_string()),
            "loads" => say(&LOADS.load(Ordering::SeqCst).to_string()),
            "pinned" => {
                let status = system.status();
                let models = status.pools.iter().flat_map(|pool| pool.all_models());
                say(&models.filter(|model| model.pinned).count().to_string());
            }
            "load" => say(&load(&system, options)
                .await
                .map_or_else(|error| error.to_string(), |()| "loaded".into())),
            "units" => say(&units(&system)),
            "leave" => {
                let report = system.shutdown().await;
                say(&format!("left {}", report.is_clean()));
                std::process::exit(0);
            }
            other => say(&format!("what is {other:?}?")),
        }
    }
    // Whoever started it is gone.
    std::process::exit(0);
}

/// Loads all models of this node, on it.
async fn load(system: &System, options: &NodeOptions) -> model_actors::Result<()> {
    let client = system.client::<Echo>()?;
    for (model, _) in &options.models {
        client.model(model.as_str())?.preload().await?;
    }
    Ok(())
}

fn say(line: &str) {
    // Nobody listens any more.
    let _ = writeln!(io::stdout(), "{line}").and_then(|()| io::stdout().flush());
}

/// The peers of a system and their models, in one line.
pub(crate) fn peers(system: &System) -> String {
    let status = system.status();
    let told = status.peers.iter().map(|peer| {
        let models: Vec<String> = peer
            .models
            .iter()
            .map(|model| {
                let place = if model.resident { "" } else { " (not loaded)" };
                format!("{}={}{place} {} slots", model.model, model.digest, model.interactive_slots)
            })
            .collect();
        format!("{} [{}]", peer.node, models.join(", "))
    });
    let told: Vec<String> = told.collect();
    if told.is_empty() { "no peers".to_owned() } else { told.join(" ") }
}

/// Microseconds per unit of cost that each peer has measured of each of its models, in one line.
fn units(system: &System) -> String {
    let status = system.status();
    let models = status.peers.iter().flat_map(|peer| peer.models.iter().map(move |model| (peer, model)));
    let told = models.map(|(peer, model)| {
        let unit = model.unit.map_or(0, |unit| unit.as_micros());
        format!("{} {} {unit}", peer.node, model.model)
    });
    told.collect::<Vec<_>>().join(",")
}

/// A node in a process of its own. It is killed when this is dropped.
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) address: SocketAddr,
    process: Child,
    input: ChildStdin,
    lines: Receiver<String>,
}

impl Node {
    /// Starts a node and waits until it listens.
    pub(crate) fn start(options: &NodeOptions) -> io::Result<Self> {
        let program = std::env::current_exe()?;
        Self::start_by(Command::new(program), options)
    }

    /// Starts a node by a command that leads to this executable.
    pub(crate) fn start_by(mut command: Command, options: &NodeOptions) -> io::Result<Self> {
        let json = serde_json::to_string(options).map_err(io::Error::other)?;
        let mut process = command.args([MARK, &json]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let (Some(input), Some(output)) = (process.stdin.take(), process.stdout.take()) else {
            return Err(io::Error::other("a node without its streams"));
        };
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        let unknown = SocketAddr::from(([0, 0, 0, 0], 0));
        let mut node = Self { name: options.name.clone(), address: unknown, process, input, lines };
        let line = node.line()?;
        let address = line.strip_prefix("listening ").and_then(|address| address.parse().ok());
        node.address = address.ok_or_else(|| io::Error::other(format!("the node says {line:?}")))?;
        Ok(node)
    }

    fn line(&self) -> io::Result<String> {
        self.lines.recv_timeout(PATIENCE).map_err(|error| io::Error::other(format!("{}: {error}", self.name)))
    }

    /// Asks it something, and returns its answer.
    pub(crate) fn ask(&mut self, question: &str) -> io::Result<String> {
        writeln!(self.input, "{question}")?;
        self.input.flush()?;
        self.line()
    }

    /// Has it leave the cluster, and waits for its end. True if it left nothing behind.
    pub(crate) fn leave(mut self) -> io::Result<bool> {
        let left = self.ask("leave")?;
        self.process.wait()?;
        Ok(left == "left true")
    }

    /// Number of its process.
    pub(crate) fn process(&self) -> u32 {
        self.process.id()
    }

    /// Kills it, as a loss of power would.
    pub(crate) fn kill(mut self) -> io::Result<()> {
        self.process.kill()?;
        self.process.wait().map(drop)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // One that has ended cannot be killed.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
