//! Faults as clients see them: a full queue, no time, a model that fails, a reader that goes, and the end.

use std::time::Duration;

use candle_actors::testing::{FakeLoader, Fault, FaultyLoader, quick_timings};
use candle_actors::{Failure, ModelSpec};
use candle_actors::{SystemState, TextToText};
use serde_json::{Value, json};
use serve::Server;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::timeout;

use crate::client::PATIENCE;
use crate::harness::{Running, Told, engine, waiting};

fn prompt(fields: &Value) -> Value {
    let mut request = json!({ "model": "waiting", "prompt": "Hi" });
    request.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    request
}

#[tokio::test]
async fn a_full_queue_is_429_with_a_time_to_come_back() {
    let server = Running::over(engine().start().await.unwrap()).await;
    let (gate, mut told) = waiting(&server.system, 1);
    let held = server.client.write("POST", "/v1/completions", &prompt(&json!({})).to_string()).await;
    assert_eq!(next(&mut told).await, Told::Began);
    for fields in [json!({}), json!({ "stream": true })] {
        let response = server.client.post("/v1/completions", &prompt(&fields)).await;
        assert_eq!(response.status, 429);
        let seconds: u64 = response.header("retry-after").unwrap().parse().unwrap();
        let ms: u64 = response.header("retry-after-ms").unwrap().parse().unwrap();
        assert!((1..=60).contains(&seconds) && ms <= seconds * 1000, "{seconds} s, {ms} ms");
        let error = response.json().await;
        assert_eq!(error["error"]["code"], "overloaded");
        assert_eq!(error["error"]["type"], "rate_limit_error");
    }
    gate.open();
    drop(held);
    assert!(server.end().await.unwrap().is_clean());
}

#[tokio::test]
async fn no_time_is_504() {
    let engine = engine().start().await.unwrap();
    let system = engine.system().clone();
    let (gate, told) = waiting(&system, 2);
    let server = Server::new(engine).with_timeout(Duration::from_millis(50));
    let server = Running::start(server, system).await;
    let silent = prompt(&json!({ "stop": "silence" }));
    let response = server.client.post("/v1/completions", &silent).await;
    assert_eq!((response.status, &response.json().await["error"]["code"]), (504, &json!("timeout")));
    let mut streamed = silent;
    streamed["stream"] = true.into();
    let response = server.client.post("/v1/completions", &streamed).await;
    assert_eq!(response.status, 504, "a stream that has not begun has a status, too");
    drop((gate, told));
    assert!(server.end().await.unwrap().is_clean());
}

#[tokio::test]
async fn an_open_breaker_is_503_and_a_request_that_breaks_its_model_500() {
    let server = Running::over(engine().start().await.unwrap()).await;
    let client = server.system.client::<TextToText>().unwrap();
    let failing = FaultyLoader::new(FakeLoader::<TextToText>::default())
        .with_load_faults(std::iter::repeat_n(Fault::Fail(Failure::failed("the disk is gone")), 50));
    let (_, pool) = quick_timings();
    let restart = pool.restart.with_breaker_open(PATIENCE);
    client.register(ModelSpec::new("broken", failing).config(pool.with_restart(restart))).unwrap();
    let ask = json!({ "model": "broken", "prompt": "Hi" });
    // The first one is told of the load that failed, or of the breaker that it opened.
    assert!(server.client.post("/v1/completions", &ask).await.status >= 500);
    let response = server.client.post("/v1/completions", &ask).await;
    assert_eq!(response.status, 503);
    let seconds: u64 = response.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=PATIENCE.as_secs()).contains(&seconds), "{seconds} s");
    assert_eq!(response.json().await["error"]["code"], "circuit_open");
    let models = server.client.get("/v1/models").await.json().await;
    assert_eq!(models["data"][0]["state"], "unavailable");

    let crashing = FaultyLoader::new(FakeLoader::<TextToText>::default())
        .with_run_faults(std::iter::repeat_n(Fault::Panic, 50));
    let (_, pool) = quick_timings();
    client.register(ModelSpec::new("crashing", crashing).config(pool)).unwrap();
    let ask = json!({ "model": "crashing", "prompt": "Hi" });
    assert_eq!(server.client.post("/v1/completions", &ask).await.status, 500);
    assert!(server.end().await.unwrap().is_clean());
}

#[tokio::test]
async fn an_error_in_a_stream_is_its_last_event() {
    let server = Running::over(engine().start().await.unwrap()).await;
    let (gate, told) = waiting(&server.system, 2);
    let fall = json!({ "stop": "a fall" });
    let response = server.client.post("/v1/completions", &prompt(&fall)).await;
    assert_eq!((response.status, &response.json().await["error"]["code"]), (500, &json!("model_error")));
    let fall = json!({ "stop": "a fall", "stream": true });
    let response = server.client.post("/v1/completions", &prompt(&fall)).await;
    assert_eq!(response.status, 200);
    let (events, done) = response.events().await;
    assert!(!done && events.len() == 2, "{events:?}");
    assert_eq!(events[0]["choices"][0]["text"], "one ");
    assert_eq!(
        (&events[1]["error"]["code"], &events[1]["error"]["type"]),
        (&json!("model_error"), &json!("server_error"))
    );
    drop((gate, told));
    assert!(server.end().await.unwrap().is_clean());
}

#[tokio::test]
async fn a_client_that_goes_stops_its_model() {
    let server = Running::over(engine().start().await.unwrap()).await;
    let (gate, mut told) = waiting(&server.system, 2);
    // One that waits for the whole, one that reads the first event, and one that waits for the first event.
    for fields in [json!({}), json!({ "stream": true }), json!({ "stream": true, "stop": "silence" })] {
        let request = prompt(&fields).to_string();
        if fields == json!({ "stream": true }) {
            let mut response = server.client.send("POST", "/v1/completions", &request).await;
            assert_eq!(next(&mut told).await, Told::Began);
            assert!(response.event().await.unwrap().1.contains("one "));
            drop(response);
        } else {
            let connection = server.client.write("POST", "/v1/completions", &request).await;
            assert_eq!(next(&mut told).await, Told::Began);
            drop(connection);
        }
        assert_eq!(next(&mut told).await, Told::Stopped, "{fields}");
    }
    drop(gate);
    assert!(server.end().await.unwrap().is_clean());
}

/// The next moment that a model tells of.
async fn next(told: &mut UnboundedReceiver<Told>) -> Told {
    timeout(PATIENCE, told.recv()).await.expect("the model told of nothing").unwrap()
}

#[tokio::test]
async fn the_end_finishes_what_was_accepted_and_refuses_what_comes() {
    let server = Running::over(engine().start().await.unwrap()).await;
    let (gate, mut told) = waiting(&server.system, 2);
    let (client, system) = (crate::client::Client::new(server.client.address), server.system.clone());
    let mut feed = client.get("/events").await;
    assert_eq!(feed.event().await.unwrap().0, "state");
    let mut streamed =
        client.send("POST", "/v1/completions", &prompt(&json!({ "stream": true })).to_string()).await;
    assert_eq!(next(&mut told).await, Told::Began);
    assert!(streamed.event().await.unwrap().1.contains("one "));
    assert_eq!(client.get("/health/ready").await.status, 200);

    let report = server.end();
    system.watch().wait_for(|status| status.state == SystemState::ShuttingDown).await.unwrap();
    gate.open();
    let (events, done) = streamed.events().await;
    assert!(done && events.iter().any(|event| event["choices"][0]["text"] == "two"), "{events:?}");
    while feed.event().await.is_some() {}
    assert!(report.await.unwrap().is_clean());
    assert!(tokio::net::TcpStream::connect(client.address).await.is_err(), "nobody listens any more");
}
