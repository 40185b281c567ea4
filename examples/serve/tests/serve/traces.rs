//! The program with a collector of traces beside it, which reads what OpenTelemetry's own collector would.
#![cfg(unix)]

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::routing::post;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use prost::Message as _;
use serde_json::json;
use tokio::net::TcpListener;

use crate::process::Program;

type Sent = Arc<Mutex<Vec<(HeaderMap, ExportTraceServiceRequest)>>>;

/// A collector: its address, and what it is sent.
async fn collector() -> (String, Sent) {
    async fn take(State(sent): State<Sent>, headers: HeaderMap, body: Bytes) {
        let request = ExportTraceServiceRequest::decode(body).unwrap();
        sent.lock().unwrap().push((headers, request));
    }
    let sent = Sent::default();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let router = Router::new().route("/v1/traces", post(take)).with_state(sent.clone());
    tokio::spawn(axum::serve(listener, router).into_future());
    (address, sent)
}

fn attributes(span: &Span) -> BTreeMap<&str, String> {
    let text = |value: Option<&Any>| match value {
        Some(Any::StringValue(text)) => text.clone(),
        Some(Any::IntValue(number)) => number.to_string(),
        Some(Any::DoubleValue(number)) => number.to_string(),
        other => format!("{other:?}"),
    };
    let of = |value: &opentelemetry_proto::tonic::common::v1::KeyValue| {
        text(value.value.as_ref().and_then(|value| value.value.as_ref()))
    };
    span.attributes.iter().map(|pair| (pair.key.as_str(), of(pair))).collect()
}

/// Bytes of an identifier in hexadecimal.
fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_gets_a_requests_span_with_its_model_its_wait_and_its_tokens() {
    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
    const PARENT: &str = "b7ad6b7169203331";
    let (address, sent) = collector().await;
    let mut program = Program::start("secret", |command| command.args(["--otlp-endpoint", &address]));
    program.client.headers.push(format!("traceparent: 00-{TRACE}-{PARENT}-01"));
    let messages = json!([{ "role": "user", "content": "What is red?" }]);
    let chat = json!({ "model": "chat", "messages": messages, "temperature": 0, "max_tokens": 5 });
    let answer = program.client.post("/v1/chat/completions", &chat).await.json().await;
    let mut streamed = chat.clone();
    streamed["stream"] = true.into();
    assert!(program.client.post("/v1/chat/completions", &streamed).await.events().await.1);
    let unknown = json!({ "model": "nothing", "prompt": "Hi" });
    assert_eq!(program.client.post("/v1/completions", &unknown).await.status, 404);
    let (well, words) = program.end("-TERM");
    assert!(well, "{words}");

    let sent = sent.lock().unwrap();
    assert!(sent.iter().all(|(headers, _)| headers["content-type"] == "application/x-protobuf"));
    let resources: Vec<_> = sent.iter().flat_map(|(_, request)| &request.resource_spans).collect();
    let is_named = |pair: &opentelemetry_proto::tonic::common::v1::KeyValue| pair.key == "service.name";
    assert!(resources.iter().all(|one| one.resource.as_ref().unwrap().attributes.iter().any(is_named)));
    let spans = resources.iter().flat_map(|one| &one.scope_spans).flat_map(|scope| &scope.spans);
    let spans: Vec<&Span> = spans.collect();
    let named = |name: &str| spans.iter().copied().filter(|span| span.name == name).collect::<Vec<_>>();

    let served = named("http_request");
    let statuses: Vec<String> =
        served.iter().map(|span| attributes(span)["http.response.status_code"].clone()).collect();
    assert_eq!((served.len(), statuses.iter().filter(|status| *status == "404").count()), (3, 1));
    for span in &served {
        assert_eq!((hex(&span.trace_id), hex(&span.parent_span_id)), (TRACE.to_owned(), PARENT.to_owned()));
        assert_eq!(span.kind, SpanKind::Server as i32);
        assert!(attributes(span)["url.path"].starts_with("/v1/"));
    }
    let asked = named("model_request");
    assert_eq!(asked.len(), 2, "a request for a model that there is not is none of the library's");
    for span in asked {
        let found = attributes(span);
        assert_eq!((found["model"].as_str(), found["capability"].as_str()), ("chat", "text_to_text"));
        assert_eq!(found["input_tokens"], answer["usage"]["prompt_tokens"].to_string());
        assert_eq!(found["output_tokens"], answer["usage"]["completion_tokens"].to_string());
        assert!(found["queue_wait_seconds"].parse::<f64>().unwrap() >= 0.0);
        assert!(served.iter().any(|parent| parent.span_id == span.parent_span_id));
        assert!(hex(&span.trace_id) == TRACE && span.end_time_unix_nano > span.start_time_unix_nano);
        let runs = named("model_run");
        assert!(runs.iter().any(|run| run.links.iter().any(|link| link.span_id == span.span_id)));
    }
    let inside = ["http_request", "model_request", "model_run", "model_load"];
    assert!(spans.iter().all(|span| inside.contains(&span.name.as_str())), "the deliveries have no spans");
}

/// One request, and the end.
async fn embed_and_end(set: impl FnOnce(&mut Command) -> &mut Command) {
    let program = Program::start("secret", set);
    let request = json!({ "model": "english", "input": "A cat sleeps." });
    assert_eq!(program.client.post("/v1/embeddings", &request).await.status, 200);
    let (well, words) = program.end("-TERM");
    assert!(well && words.contains(" 0 requests were cut off"), "{words}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_standards_variable_names_a_collector_and_one_that_is_away_disturbs_nobody() {
    let (address, sent) = collector().await;
    embed_and_end(|command| command.env("OTEL_EXPORTER_OTLP_ENDPOINT", &address)).await;
    let names = |request: &ExportTraceServiceRequest| {
        let scopes = request.resource_spans.iter().flat_map(|one| &one.scope_spans);
        scopes.flat_map(|scope| &scope.spans).any(|span| span.name == "model_request")
    };
    assert!(sent.lock().unwrap().iter().any(|(_, request)| names(request)));
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    embed_and_end(|command| command.arg(format!("--otlp-endpoint=http://{gone}"))).await;
}
