//! The nodes that a model is loaded on: where its bytes fit with the least eviction; one while it is cold, more when it is hot.

use std::collections::BTreeSet;
use std::time::Duration;

use model_actors::{Bytes, CallOptions, Client, ModelHandle, System};

use crate::node::{Echo, Node, NodeOptions, Say};
use crate::{Test, join, on_a_runtime, until};

pub(crate) const TESTS: &[Test] = &[
    (
        "models_are_loaded_where_nothing_has_to_go_for_them",
        models_are_loaded_where_nothing_has_to_go_for_them,
    ),
    (
        "a_hot_model_spreads_and_a_cold_one_is_in_one_place",
        a_hot_model_spreads_and_a_cold_one_is_in_one_place,
    ),
];

const MODELS: [&str; 4] = ["one", "two", "three", "four"];

async fn say(model: &ModelHandle<Echo>, millis: u64) -> String {
    let say = Say::after("", Duration::from_millis(millis));
    model.call(say, CallOptions::default()).await.unwrap().node
}

/// The handle to a model, once so many peers tell that they have so much room for it.
async fn with_room(
    system: &System,
    client: &Client<Echo>,
    model: &str,
    mut free: Vec<u64>,
) -> ModelHandle<Echo> {
    free.sort_unstable();
    let told = || {
        let status = system.status();
        let models = status.peers.iter().flat_map(|peer| &peer.models);
        let models = models.filter(|told| told.model.as_str() == model && told.bytes == Some(Bytes::mib(9)));
        let mut told: Vec<u64> = models.filter_map(|told| told.free).map(|free| free.0 >> 20).collect();
        told.sort_unstable();
        (told == free).then_some(())
    };
    until("room for the model", told).await;
    client.model(model).unwrap()
}

fn models_are_loaded_where_nothing_has_to_go_for_them() {
    // Whichever is the roomy one.
    for (roomy, tight) in [("b", "c"), ("c", "b")] {
        let options = |name| {
            let options = NodeOptions::new(name).cold(Duration::ZERO);
            MODELS.into_iter().fold(options, |options, model| options.model(model, "1"))
        };
        let roomy = Node::start(&options(roomy).memory(64)).unwrap();
        let mut tight = Node::start(&options(tight).memory(15).model("other", "1")).unwrap();
        let (roomy_name, tight_name) = (roomy.name.clone(), tight.name.clone());
        on_a_runtime(async {
            let (system, client) = join(NodeOptions::new("a"), [&roomy, &tight]).await;
            let other = with_room(&system, &client, "other", vec![15]).await;
            assert_eq!(say(&other, 0).await, tight_name, "it is nowhere else");
            for (loaded, model) in MODELS.into_iter().enumerate() {
                // Of 15 MiB 9 are taken, so that 3 are missing there.
                let free = vec![6, 64 - 9 * loaded as u64];
                let model = with_room(&system, &client, model, free).await;
                assert_eq!(say(&model, 0).await, roomy_name);
            }
            assert_eq!(tight.ask("loads").unwrap(), "1", "nothing had to go");
            system.shutdown().await;
        });
    }
}

fn a_hot_model_spreads_and_a_cold_one_is_in_one_place() {
    let options = |name| NodeOptions::new(name).model("echo", "1").cold(Duration::from_millis(100));
    let mut nodes: Vec<Node> = ["b", "c"].map(|name| Node::start(&options(name)).unwrap()).into();
    on_a_runtime(async {
        let (system, client) = join(NodeOptions::new("a"), &nodes).await;
        let model = with_room(&system, &client, "echo", vec![1024, 1024]).await;
        let mut loads = || {
            let loads = nodes.iter_mut().map(|node| node.ask("loads").unwrap().parse::<u64>().unwrap());
            loads.sum::<u64>()
        };
        // Cold: those who come at once, and after, find it where it was loaded.
        let first = tokio::join!(say(&model, 5), say(&model, 5), say(&model, 5));
        let first = BTreeSet::from([first.0, first.1, first.2]);
        assert_eq!(first.len(), 1, "{first:?}");
        for _ in 0..20 {
            assert!(first.contains(&say(&model, 5).await));
        }
        assert_eq!(loads(), 1);
        // Hot: 40 of 50 ms are 2 s, and a load takes 100 ms.
        let calls = (0..40).map(|_| {
            let model = model.clone();
            tokio::spawn(async move { say(&model, 50).await })
        });
        let mut places = BTreeSet::new();
        for call in calls.collect::<Vec<_>>() {
            places.insert(call.await.unwrap());
        }
        assert_eq!(places.len(), 2);
        assert_eq!(loads(), 2);
        // Cold again: one of the two is left alone, and can go.
        let idle = || {
            let status = system.status();
            let models = status.peers.iter().flat_map(|peer| &peer.models);
            (models.filter(|told| told.resident && told.requests == 0).count() == 2).then_some(())
        };
        let mut places = BTreeSet::new();
        for _ in 0..10 {
            // A load that is told in the midst of a request says that its node is busy.
            until("both to be idle", idle).await;
            places.insert(say(&model, 5).await);
        }
        assert_eq!(places.len(), 1, "{places:?}");
        system.shutdown().await;
    });
}
