//! The place where a request runs: here first, elsewhere if that is sooner, and only where the files are the same.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use model_actors::{
    CallOptions, ClusterConfig, Error, Failure, Fetch, Footprint, LoadContext, Loader, ModelHandle,
    ModelSpec, PoolConfig, System, SystemConfig, Weights,
};

use crate::node::{Echo, EchoLoader, Node, NodeOptions, Say};
use crate::{Test, join, on_a_runtime, served, until};

pub(crate) const TESTS: &[Test] = &[
    ("here_first_and_elsewhere_when_that_is_sooner", here_first_and_elsewhere_when_that_is_sooner),
    ("the_cost_of_requests_counts_and_not_their_number", the_cost_of_requests_counts_and_not_their_number),
    ("a_slow_node_is_given_less", a_slow_node_is_given_less),
    ("a_node_is_as_fast_as_its_own_workers", a_node_is_as_fast_as_its_own_workers),
    ("a_node_that_fails_at_once_is_given_nothing", a_node_that_fails_at_once_is_given_nothing),
    ("a_model_is_its_files", a_model_is_its_files),
    ("a_model_without_a_digest_stays_at_home", a_model_without_a_digest_stays_at_home),
    ("a_loader_says_which_model_it_is_once_it_is_loaded", a_loader_says_which_model_it_is_once_it_is_loaded),
    ("a_process_is_one_node", a_process_is_one_node),
];

/// Number of rounds of requests after which something has to have been told.
const ROUNDS: usize = 100;

/// The nodes that answered so many calls at once, each of which takes so many milliseconds.
async fn places(model: &ModelHandle<Echo>, calls: usize, millis: u64) -> Vec<String> {
    let call = |_| {
        let model = model.clone();
        let say = Say::after("", Duration::from_millis(millis));
        tokio::spawn(async move { model.call(say, CallOptions::default()).await.unwrap().node })
    };
    let calls: Vec<_> = (0..calls).map(call).collect();
    let mut places = BTreeSet::new();
    for call in calls {
        places.insert(call.await.unwrap());
    }
    places.into_iter().collect()
}

fn here_first_and_elsewhere_when_that_is_sooner() {
    let nodes: Vec<Node> =
        ["b", "c"].map(|name| Node::start(&NodeOptions::new(name).model("echo", "1")).unwrap()).into();
    on_a_runtime(async {
        let (system, client) = join(NodeOptions::new("a").model("echo", "1"), &nodes).await;
        let model = served(&system, &client, "echo", 2).await;
        for _ in 0..10 {
            let said = model.call(Say::after("", Duration::ZERO), CallOptions::default()).await.unwrap();
            assert_eq!(said.node, "a", "it is idle here");
        }
        assert_eq!(places(&model, 12, 100).await, ["a", "b", "c"]);
        system.shutdown().await;
    });
}

/// Has both peers of a node work until it knows how long they take.
async fn measured(system: &System, model: &ModelHandle<Echo>) {
    let told = |is_known: bool| {
        let status = system.status();
        let models = status.peers.iter().flat_map(|peer| &peer.models);
        let idle = models.filter(|told| told.requests == 0 && (told.unit.is_some() || !is_known));
        (idle.count() == 2).then_some(())
    };
    for _ in 0..ROUNDS {
        places(model, 6, 20).await;
        until("both are idle", || told(false)).await;
        if told(true).is_some() {
            return;
        }
    }
    panic!("it is not told how long they take");
}

fn the_cost_of_requests_counts_and_not_their_number() {
    let nodes: Vec<Node> =
        ["b", "c"].map(|name| Node::start(&NodeOptions::new(name).model("echo", "1")).unwrap()).into();
    on_a_runtime(async {
        let (system, client) = join(NodeOptions::new("a"), &nodes).await;
        let model = served(&system, &client, "echo", 2).await;
        measured(&system, &model).await;
        let long = tokio::spawn({
            let model = model.clone();
            async move { model.call(Say::after("", Duration::from_secs(3)), CallOptions::default()).await }
        });
        until("the long request there", || {
            let status = system.status();
            status.peers.iter().flat_map(|peer| &peer.models).find(|told| told.cost == 3001).map(drop)
        })
        .await;
        // Together they are shorter.
        let short = places(&model, 10, 50).await;
        let long = long.await.unwrap().unwrap().node;
        assert_eq!(short.len(), 1, "{short:?}");
        assert_ne!(short[0], long);
        system.shutdown().await;
    });
}

fn a_slow_node_is_given_less() {
    let fast = Node::start(&NodeOptions::new("b").model("echo", "1")).unwrap();
    let mut slow = Node::start(&NodeOptions::new("c").model("echo", "1").slowness(20)).unwrap();
    on_a_runtime(async {
        let (system, client) = join(NodeOptions::new("a"), [&fast, &slow]).await;
        let model = served(&system, &client, "echo", 2).await;
        measured(&system, &model).await;
        let before = slow.ask("counts").unwrap();
        for _ in 0..5 {
            // Three of them take less time there than one of them here, on a busy machine too.
            assert_eq!(places(&model, 3, 50).await, ["b"]);
        }
        assert_eq!(slow.ask("counts").unwrap(), before);
        system.shutdown().await;
    });
}

fn a_node_is_as_fast_as_its_own_workers() {
    let mut fast = Node::start(&NodeOptions::new("b").model("echo", "1")).unwrap();
    on_a_runtime(async {
        let options = NodeOptions::new("a").model("echo", "1").slowness(20);
        let (system, client) = join(options, [&fast]).await;
        let model = served(&system, &client, "echo", 1).await;
        // Most of these run there, and each is a request of this node.
        let mut told =
            || fast.ask("units").unwrap().rsplit(' ').next()?.parse().ok().filter(|unit| *unit > 0);
        let mut unit: Option<u64> = None;
        for _ in 0..ROUNDS {
            assert_eq!(places(&model, 30, 10).await, ["a", "b"]);
            unit = told();
            if unit.is_some() {
                break;
            }
        }
        let unit = unit.expect("it is told how long they take");
        // 200 ms for a cost of 11.
        assert!(unit > 10_000, "{unit} us per unit of cost");
        system.shutdown().await;
    });
}

fn a_node_that_fails_at_once_is_given_nothing() {
    let sound = Node::start(&NodeOptions::new("b").model("echo", "1")).unwrap();
    let mut failing =
        Node::start(&NodeOptions { fails: true, ..NodeOptions::new("c").model("echo", "1") }).unwrap();
    on_a_runtime(async {
        let (system, client) = join(NodeOptions::new("a"), [&sound, &failing]).await;
        let model = served(&system, &client, "echo", 2).await;
        let told = || {
            let status = system.status();
            let models = status.peers.iter().flat_map(|peer| &peer.models);
            models.map(|told| told.failed).max()
        };
        // It is soon done with them, and so is sent the most.
        for _ in 0..ROUNDS {
            if told() >= Some(50) {
                break;
            }
            let calls = (0..6).map(|_| {
                let model = model.clone();
                tokio::spawn(async move {
                    let say = Say::after("", Duration::from_millis(20));
                    model.call(say, CallOptions::default()).await.is_ok()
                })
            });
            for call in calls.collect::<Vec<_>>() {
                call.await.unwrap();
            }
        }
        until("it to be told", || told().filter(|failed| *failed >= 50)).await;
        let before = failing.ask("counts").unwrap();
        for _ in 0..10 {
            assert_eq!(places(&model, 6, 10).await, ["b"]);
        }
        assert_eq!(failing.ask("counts").unwrap(), before);
        system.shutdown().await;
    });
}

fn a_model_is_its_files() {
    let one = Node::start(&NodeOptions::new("b").model("echo", "1")).unwrap();
    let other = Node::start(&NodeOptions::new("c").model("echo", "2")).unwrap();
    on_a_runtime(async {
        let (system, client) = join(NodeOptions::new("a"), [&one, &other]).await;
        let both = || {
            (system.status().peers.iter().filter(|peer| !peer.models.is_empty()).count() == 2).then_some(())
        };
        until("both", both).await;
        let Err(Error::DifferentModels { digests, .. }) = client.model("echo") else { panic!("two models") };
        assert_eq!(digests, ["1", "2"]);
        // With one of them here, the name says enough.
        let loader = EchoLoader::of("a");
        client.register(ModelSpec::new("echo", loader).digest("1")).unwrap().preload().await.unwrap();
        let serves =
            || system.status().model("echo", "echo").is_some_and(|model| model.is_serving()).then_some(());
        until("a worker here", serves).await;
        let model = client.model("echo").unwrap();
        assert_eq!(places(&model, 15, 60).await, ["a", "b"], "c has other files");
        system.shutdown().await;
    });
}

fn a_model_without_a_digest_stays_at_home() {
    let there = Node::start(&NodeOptions::new("b").model("echo", "1")).unwrap();
    on_a_runtime(async {
        let (system, client) = join(NodeOptions::new("a"), [&there]).await;
        served(&system, &client, "echo", 1).await;
        client.register(ModelSpec::new("echo", EchoLoader::of("a"))).unwrap();
        let model = client.model("echo").unwrap();
        assert_eq!(places(&model, 6, 30).await, ["a"]);
        system.shutdown().await;
    });
}

/// Knows which model it is once its files have been fetched. Notes the questions.
struct Fetched(EchoLoader, Arc<Mutex<Vec<Fetch>>>);

impl Loader<Echo> for Fetched {
    fn footprint(&self, context: &LoadContext) -> Result<Footprint, Failure> {
        Loader::footprint(&self.0, context)
    }

    fn load(&self, context: &LoadContext) -> Result<Arc<dyn Weights<Echo>>, Failure> {
        Loader::load(&self.0, context)
    }

    fn digest(&self, fetch: Fetch, _: &LoadContext) -> Result<Option<String>, Failure> {
        self.1.lock().unwrap().push(fetch);
        Ok((fetch == Fetch::Allowed).then(|| "1".to_owned()))
    }
}

fn a_loader_says_which_model_it_is_once_it_is_loaded() {
    let there = Node::start(&NodeOptions::new("b").model("echo", "1")).unwrap();
    let questions: Arc<Mutex<Vec<Fetch>>> = Arc::default();
    on_a_runtime(async {
        let (system, client) = join(NodeOptions::new("a"), [&there]).await;
        served(&system, &client, "echo", 1).await;
        let loader = Fetched(EchoLoader::of("a"), questions.clone());
        let model = client.register(ModelSpec::new("echo", loader)).unwrap();
        until("the first question", || (!questions.lock().unwrap().is_empty()).then_some(())).await;
        assert_eq!(places(&model, 6, 30).await, ["a"], "which model it is, is not known");
        until("the second question", || (questions.lock().unwrap().len() == 2).then_some(())).await;
        // It is known a moment after the answer.
        let mut found = Vec::new();
        for _ in 0..ROUNDS {
            found = places(&model, 12, 60).await;
            if found == ["a", "b"] {
                break;
            }
        }
        assert_eq!(found, ["a", "b"]);
        assert_eq!(*questions.lock().unwrap(), [Fetch::Never, Fetch::Allowed], "and nothing is asked again");
        system.shutdown().await;
    });
}

fn a_process_is_one_node() {
    on_a_runtime(async {
        let config = || ClusterConfig::new("c", "n", "a secret of the tests", ([127, 0, 0, 1], 0).into());
        let builder = || System::builder(SystemConfig::default()).shared_pool::<Echo>(PoolConfig::default());
        let first = builder().cluster(config()).start().await.unwrap();
        let second = builder().cluster(config()).start().await;
        let Err(Error::InvalidConfig { setting, .. }) = second else { panic!("a second node") };
        assert_eq!(setting, "cluster");
        assert!(first.shutdown().await.is_clean());
        drop(first);
        builder().cluster(config()).start().await.unwrap().shutdown().await;
    });
}
