//! Requests that are refused, by name and with the right status, before it costs anything.

use candle_actors::ModelSpec;
use candle_actors::testing::FakeLoader;
use candle_actors::{Engine, Reranking, TextEmbedding, TextToImage, TextToText, Vision};
use serde_json::{Value, json};
use serve::Server;

use crate::harness::{Running, engine};

/// An engine with a fake of each capability.
async fn fakes() -> Engine {
    let engine = engine().start().await.unwrap();
    let system = engine.system();
    system
        .client::<TextToText>()
        .unwrap()
        .register(ModelSpec::new("chat", FakeLoader::<TextToText>::default()))
        .unwrap();
    system
        .client::<Vision>()
        .unwrap()
        .register(ModelSpec::new("describer", FakeLoader::<Vision>::default()))
        .unwrap();
    system
        .client::<TextEmbedding>()
        .unwrap()
        .register(ModelSpec::new("english", FakeLoader::<TextEmbedding>::default()))
        .unwrap();
    system
        .client::<Reranking>()
        .unwrap()
        .register(ModelSpec::new("judge", FakeLoader::<Reranking>::default()))
        .unwrap();
    system
        .client::<TextToImage>()
        .unwrap()
        .register(ModelSpec::new("painter", FakeLoader::<TextToImage>::default()))
        .unwrap();
    engine
}

/// A good request for each endpoint.
fn good(path: &str) -> Value {
    match path {
        "/v1/chat/completions" => {
            json!({ "model": "chat", "messages": [{ "role": "user", "content": "Hi" }] })
        }
        "/v1/completions" => json!({ "model": "chat", "prompt": "Hi" }),
        "/v1/rerank" => json!({ "model": "judge", "query": "Hi", "documents": ["Hi", { "text": "you" }] }),
        "/v1/embeddings" => json!({ "model": "english", "input": "Hi" }),
        _ => json!({ "model": "painter", "prompt": "a cat" }),
    }
}

#[tokio::test]
async fn a_field_that_is_not_supported_is_refused_by_name() {
    let server = Running::over(fakes().await).await;
    let refused = json!([
        ["/v1/chat/completions", "no_such_field", 1],
        ["/v1/chat/completions", "logit_bias", { "5": 200 }],
        ["/v1/chat/completions", "top_logprobs", 2],
        ["/v1/chat/completions", "response_format", "json"],
        ["/v1/chat/completions", "tool_choice", "sometimes"],
        ["/v1/chat/completions", "frequency_penalty", 3],
        ["/v1/chat/completions", "functions", []],
        ["/v1/chat/completions", "store", true],
        ["/v1/chat/completions", "n", 17],
        ["/v1/chat/completions", "n", 0],
        ["/v1/chat/completions", "temperature", "hot"],
        ["/v1/chat/completions", "temperature", -1],
        ["/v1/chat/completions", "top_p", 2],
        ["/v1/chat/completions", "stop", 5],
        ["/v1/chat/completions", "max_tokens", -1],
        ["/v1/chat/completions", "stream_options", { "include_usage": true }],
        ["/v1/chat/completions", "messages", "Hi"],
        ["/v1/completions", "echo", true],
        ["/v1/completions", "suffix", "end"],
        ["/v1/completions", "prompt", [1, 2]],
        ["/v1/completions", "best_of", 2],
        ["/v1/embeddings", "input", [[1, 2]]],
        ["/v1/embeddings", "input", []],
        ["/v1/embeddings", "encoding_format", "int8"],
        ["/v1/embeddings", "normalize", true],
        ["/v1/rerank", "documents", []],
        ["/v1/rerank", "documents", "Hi"],
        ["/v1/rerank", "top_n", "all"],
        ["/v1/rerank", "max_chunks_per_doc", 1],
        ["/v1/images/generations", "response_format", "url"],
        ["/v1/images/generations", "size", "large"],
        ["/v1/images/generations", "partial_images", 1],
        ["/v1/images/generations", "n", 11],
        ["/v1/images/generations", "style", "vivid"],
    ]);
    for case in refused.as_array().unwrap() {
        let (path, field) = (case[0].as_str().unwrap(), case[1].as_str().unwrap());
        let response = server.client.post(path, &good(path)).await;
        assert_eq!(response.status, 200, "the control of {case}");
        let mut request = good(path);
        request[field] = case[2].clone();
        let response = server.client.post(path, &request).await;
        assert_eq!(response.status, 400, "{case}");
        let error = response.json().await;
        assert_eq!(error["error"]["param"], field, "{case}: {error}");
        assert_eq!(error["error"]["type"], "invalid_request_error");
        assert!(error["error"]["message"].as_str().unwrap().contains(field), "{error}");
    }
    // What asks for what is done anyway, or is documented to do nothing, is no reason to refuse.
    let mut request = good("/v1/chat/completions");
    let harmless = json!({
        "user": "somebody", "n": 1, "logit_bias": {}, "frequency_penalty": 0.0, "stream": false, "seed": null,
        "response_format": { "type": "text" }, "no_such_field": null,
    });
    request.as_object_mut().unwrap().extend(harmless.as_object().unwrap().clone());
    assert_eq!(server.client.post("/v1/chat/completions", &request).await.status, 200);
    assert!(server.end().await.unwrap().is_clean());
}

#[tokio::test]
async fn a_message_that_is_not_supported_is_refused_by_its_place() {
    let server = Running::over(fakes().await).await;
    let image = |url: &str| json!([{ "type": "image_url", "image_url": { "url": url } }]);
    let address = image("https://example.org/a.png");
    let refused = [
        (json!([{ "role": "function", "content": "5" }]), "messages[0].role"),
        (json!([{ "role": "user", "content": "Hi", "name": "Ann" }]), "messages[0].name"),
        (json!([{ "role": "user", "content": "Hi" }, { "role": "user" }]), "messages[1].content"),
        (json!([{ "role": "user", "content": [{ "type": "input_audio" }] }]), "messages[0].content[0].type"),
        (
            json!([{ "role": "user", "content": image("/etc/passwd") }]),
            "messages[0].content[0].image_url.url",
        ),
        (
            json!([{ "role": "user", "content": image("file:///a.png") }]),
            "messages[0].content[0].image_url.url",
        ),
        (json!([{ "role": "system", "content": address }]), "messages[0].content"),
        // The model takes text alone.
        (json!([{ "role": "user", "content": address }]), "messages"),
    ];
    for (messages, place) in refused {
        let request = json!({ "model": "chat", "messages": messages });
        let response = server.client.post("/v1/chat/completions", &request).await;
        assert_eq!(response.status, 400, "{messages}");
        assert_eq!(response.json().await["error"]["param"], place);
    }
    let result = json!([{ "role": "user", "content": "Hi" }, { "role": "tool", "content": "4" }]);
    let with_tools = json!({ "model": "describer", "messages": result });
    let response = server.client.post("/v1/chat/completions", &with_tools).await;
    assert_eq!((response.status, &response.json().await["error"]["param"]), (400, &json!("messages")));
    assert!(server.end().await.unwrap().is_clean());
}

#[tokio::test]
async fn what_is_no_request_has_the_status_that_says_so() {
    let engine = fakes().await;
    let system = engine.system().clone();
    let server = Running::start(Server::new(engine).with_body_bytes(1000), system).await;
    let client = &server.client;
    let code = async |status: u16, response: crate::client::Response| {
        assert_eq!(response.status, status);
        response.json().await["error"]["code"].as_str().unwrap().to_owned()
    };
    let long = json!({ "model": "chat", "prompt": "x".repeat(1000) });
    assert_eq!(code(413, client.post("/v1/completions", &long).await).await, "body_too_large");
    assert_eq!(code(400, client.send("POST", "/v1/completions", "{").await).await, "invalid_json");
    assert_eq!(code(400, client.send("POST", "/v1/completions", "[]").await).await, "invalid_value");
    assert_eq!(code(404, client.get("/v1/nothing").await).await, "unknown_url");
    assert_eq!(code(405, client.get("/v1/embeddings").await).await, "method_not_allowed");
    assert_eq!(code(404, client.get("/v1/models/nothing").await).await, "model_not_found");
    let unknown = json!({ "model": "nothing", "prompt": "Hi" });
    assert_eq!(code(404, client.post("/v1/completions", &unknown).await).await, "model_not_found");
    let other = json!({ "model": "english", "prompt": "Hi" });
    assert_eq!(code(404, client.post("/v1/completions", &other).await).await, "model_not_found");
    let mut plain = crate::client::Client::new(client.address);
    plain.headers.push("Content-Type: text/plain".to_owned());
    let response = plain.post("/v1/completions", &good("/v1/completions")).await;
    assert_eq!(code(415, response).await, "unsupported_media_type");
    assert!(server.end().await.unwrap().is_clean());
}

#[tokio::test]
async fn the_key_opens_all_but_probes_and_the_page() {
    let engine = fakes().await;
    let system = engine.system().clone();
    let mut server = Running::start(Server::new(engine).with_key("secret".to_owned()), system).await;
    for key in [None, Some("Bearer wrong!"), Some("Bearer secret2"), Some("Bearer "), Some("secret")] {
        server.client.headers = key.map(|key| format!("Authorization: {key}")).into_iter().collect();
        for path in ["/v1/models", "/metrics", "/events", "/v1/nothing"] {
            let response = server.client.get(path).await;
            assert_eq!(response.status, 401, "{path} with {key:?}");
            assert_eq!(response.json().await["error"]["code"], "invalid_api_key");
        }
        for path in ["/", "/health/live", "/health/ready"] {
            assert_eq!(server.client.get(path).await.status, 200, "{path}");
        }
    }
    server.client.headers = vec!["Authorization: Bearer secret".to_owned()];
    assert_eq!(server.client.get("/v1/models").await.status, 200);
    assert!(server.end().await.unwrap().is_clean());
}
