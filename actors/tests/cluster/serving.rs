//! A model of another node serves as one of this node does.

use std::time::{Duration, Instant};

use model_actors::{CallOptions, Error, WhenFull};

use crate::node::{Node, NodeOptions, Said, Say};
use crate::{Test, join, on_a_runtime, served, until};

pub(crate) const TESTS: &[Test] = &[
    ("requests_and_streams_go_over_the_wire", requests_and_streams_go_over_the_wire),
    ("large_bodies_go_in_pieces", large_bodies_go_in_pieces),
    ("cancelling_reaches_the_worker", cancelling_reaches_the_worker),
    ("deadlines_travel_as_time_left", deadlines_travel_as_time_left),
    ("slots_are_granted_and_never_exceeded", slots_are_granted_and_never_exceeded),
    ("an_unread_stream_stays_within_its_window", an_unread_stream_stays_within_its_window),
];

/// Most chunks between a worker and a reader elsewhere: a window of them, the buffers of the stream on both nodes, and
/// those that are handed from one of these to the next.
const ON_THE_WAY: u64 = 32 + 2 * 64 + 4;

fn one_node() -> Node {
    Node::start(&NodeOptions::new("b").model("echo", "1")).unwrap()
}

fn requests_and_streams_go_over_the_wire() {
    let mut there = one_node();
    on_a_runtime(async {
        let (system, client) = join(NodeOptions::new("a"), [&there]).await;
        let model = served(&system, &client, "echo", 1).await;
        let said = model.call(Say::after("words", Duration::ZERO), CallOptions::default()).await.unwrap();
        assert_eq!(said, Said { node: "b".to_owned(), words: "words".to_owned(), ballast: Vec::new() });

        let mut stream =
            model.stream(Say::chunks(300, Duration::ZERO), CallOptions::default()).await.unwrap();
        let mut chunks = Vec::new();
        while let Some(chunk) = stream.next().await {
            chunks.push(chunk.unwrap());
        }
        assert_eq!(chunks, (0..300).collect::<Vec<_>>());
        assert_eq!(stream.output().await.unwrap().node, "b");

        assert!(matches!(client.model("other"), Err(Error::UnknownModel { .. })));
        let calls = (0..50).map(|number| {
            let model = model.clone();
            tokio::spawn(async move {
                model.call(Say::after(&number.to_string(), Duration::ZERO), CallOptions::default()).await
            })
        });
        for (number, call) in calls.collect::<Vec<_>>().into_iter().enumerate() {
            assert_eq!(call.await.unwrap().unwrap().words, number.to_string());
        }
        until("slots", || (there.ask("slots").unwrap() == "slots 40 40").then_some(())).await;
        assert!(system.shutdown().await.is_clean());
    });
    assert!(there.leave().unwrap());
}

fn large_bodies_go_in_pieces() {
    let there = one_node();
    on_a_runtime(async {
        let (system, client) = join(NodeOptions::new("a"), [&there]).await;
        let model = served(&system, &client, "echo", 1).await;
        let ballast: Vec<u8> = (0..40_000_000_u32).map(|byte| (byte % 251) as u8).collect();
        let large = Say { ballast: ballast.clone(), ..Say::after("large", Duration::ZERO) };
        let call = tokio::spawn({
            let model = model.clone();
            async move { model.call(large, CallOptions::default()).await }
        });
        // Small ones pass it, and the peer is not lost meanwhile.
        let mut passed = 0;
        while !call.is_finished() {
            model.call(Say::after("small", Duration::ZERO), CallOptions::default()).await.unwrap();
            passed += 1;
        }
        assert!(call.await.unwrap().unwrap().ballast == ballast);
        assert!(passed > 1, "{passed}");
        system.shutdown().await;
    });
}

fn cancelling_reaches_the_worker() {
    let mut there = one_node();
    on_a_runtime(async {
        let (system, client) = join(NodeOptions::new("a"), [&there]).await;
        let model = served(&system, &client, "echo", 1).await;
        let long = Say::chunks(100_000, Duration::from_millis(5));
        let mut stream = model.stream(long, CallOptions::default()).await.unwrap();
        assert_eq!(stream.next().await, Some(Ok(0)));
        assert_eq!(stream.next().await, Some(Ok(1)));
        drop(stream);
        until("the worker to leave it", || (there.ask("counts").unwrap() == "counts 1 1 0").then_some(()))
            .await;
        until("slots there", || (there.ask("slots").unwrap() == "slots 40 40").then_some(())).await;
        // One that waits there is cancelled too.
        let busy = tokio::spawn({
            let model = model.clone();
            async move { model.call(Say::after("busy", Duration::from_millis(500)), CallOptions::default()).await }
        });
        until("the first to begin", || there.ask("counts").unwrap().starts_with("counts 2").then_some(()))
            .await;
        let waits = tokio::spawn({
            let model = model.clone();
            async move { model.call(Say::after("waits", Duration::ZERO), CallOptions::default()).await }
        });
        until("both", || (there.ask("slots").unwrap() == "slots 38 40").then_some(())).await;
        waits.abort();
        assert_eq!(busy.await.unwrap().unwrap().words, "busy");
        until("slots there", || (there.ask("slots").unwrap() == "slots 40 40").then_some(())).await;
        assert_eq!(there.ask("counts").unwrap(), "counts 2 1 1");
        system.shutdown().await;
    });
}

fn deadlines_travel_as_time_left() {
    let mut there = one_node();
    on_a_runtime(async {
        let (system, client) = join(NodeOptions::new("a"), [&there]).await;
        let model = served(&system, &client, "echo", 1).await;
        let within = |millis| CallOptions::default().with_timeout(Duration::from_millis(millis));
        // Output within the time keeps a request alive beyond it.
        let mut stream = model.stream(Say::chunks(20, Duration::from_millis(40)), within(300)).await.unwrap();
        let mut count = 0;
        while let Some(chunk) = stream.next().await {
            chunk.unwrap();
            count += 1;
        }
        assert_eq!((count, stream.output().await.unwrap().node.as_str()), (20, "b"));
        // Without it, it is given up, here and there.
        let began = Instant::now();
        let late = model.call(Say::after("late", Duration::from_secs(20)), within(400)).await;
        let took = began.elapsed();
        assert!(matches!(late, Err(Error::Timeout { .. })), "{late:?}");
        assert!(took >= Duration::from_millis(400) && took < Duration::from_millis(1500), "{took:?}");
        until("slots there", || (there.ask("slots").unwrap() == "slots 40 40").then_some(())).await;
        // The time for all of it ends a stream in its midst.
        let whole = CallOptions::default().with_total_timeout(Duration::from_millis(300));
        let stream = model.stream(Say::chunks(1000, Duration::from_millis(20)), whole).await.unwrap();
        let ended = stream.output().await;
        assert!(matches!(ended, Err(Error::Timeout { .. })), "{ended:?}");
        system.shutdown().await;
    });
}

fn slots_are_granted_and_never_exceeded() {
    let mut there = Node::start(&NodeOptions::new("b").model("echo", "1").slots(3)).unwrap();
    on_a_runtime(async {
        let (system, client) = join(NodeOptions::new("a").slots(50), [&there]).await;
        let model = served(&system, &client, "echo", 1).await;
        let ask = |options: CallOptions| {
            let model = model.clone();
            tokio::spawn(async move { model.call(Say::after("", Duration::from_millis(40)), options).await })
        };
        let patient: Vec<_> = (0..20).map(|_| ask(CallOptions::default())).collect();
        until("all slots", || (there.ask("slots").unwrap() == "slots 3 6").then_some(())).await;
        let impatient = ask(CallOptions::default().with_when_full(WhenFull::Fail)).await.unwrap();
        assert!(matches!(impatient, Err(Error::Overloaded { .. })), "{impatient:?}");
        for call in patient {
            call.await.unwrap().unwrap();
        }
        until("slots there", || (there.ask("slots").unwrap() == "slots 6 6").then_some(())).await;
        assert_eq!(there.ask("counts").unwrap(), "counts 20 0 20");
        system.shutdown().await;
    });
}

fn an_unread_stream_stays_within_its_window() {
    let mut there = one_node();
    on_a_runtime(async {
        let (system, client) = join(NodeOptions::new("a"), [&there]).await;
        let model = served(&system, &client, "echo", 1).await;
        let mut stream =
            model.stream(Say::chunks(2000, Duration::ZERO), CallOptions::default()).await.unwrap();
        let mut read = 0;
        while let Some(chunk) = stream.next().await {
            assert_eq!(chunk.unwrap(), read);
            read += 1;
            // The worker could send all before the first answer to this question.
            let sent: u64 = there.ask("sent").unwrap().parse().unwrap();
            assert!(sent <= read + ON_THE_WAY, "{sent} were sent when {read} were read");
        }
        assert_eq!(read, 2000);
        stream.output().await.unwrap();
        system.shutdown().await;
    });
}
