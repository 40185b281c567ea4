//! Serves local models over OpenAI's endpoints.
//!
//! ```text
//! cargo run --release -p serve
//! cargo run --release -p serve -- --text-to-text chat=HuggingFaceTB/SmolLM2-135M-Instruct --listen 0.0.0.0:8080
//! ```

use std::io::Write as _;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use candle_actors::{Bytes, Engine, EngineBuilder, Source, SourceSpec};
use clap::Parser;
use serve::{Server, Traces, record, serve};
use tokio::net::TcpListener;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::layer::{Layer as _, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;

/// Environment variable with the key: in an argument everybody on the machine could read it.
const KEY: &str = "SERVE_API_KEY";
/// The models of this repository, which are served unless others are named.
const SMALL_MODELS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models");

/// Maximum number of MiB that models may be given: a pebibyte.
const MAX_MIB: u64 = 1 << 30;

/// Serves local models over OpenAI's endpoints. A source is a model directory, or a Hugging Face repository with an
/// optional @revision. If the environment has SERVE_API_KEY, clients have to send that key.
#[derive(Parser)]
struct Arguments {
    /// Address to listen on.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// A model for /v1/embeddings.
    #[arg(long, value_name = "NAME=SOURCE", value_parser = parse_model)]
    text_embedding: Vec<(String, String)>,
    /// A model for /v1/rerank.
    #[arg(long, value_name = "NAME=SOURCE", value_parser = parse_model)]
    reranking: Vec<(String, String)>,
    /// A model for /v1/chat/completions and /v1/completions.
    #[arg(long, value_name = "NAME=SOURCE", value_parser = parse_model)]
    text_to_text: Vec<(String, String)>,
    /// An adapter (LoRA) of one of them, a model of its own for requests: BASE:NAME.
    #[arg(long, value_name = "BASE:NAME=SOURCE", value_parser = parse_adapter)]
    adapter: Vec<(String, String, String)>,
    /// A model for chats about an image.
    #[arg(long, value_name = "NAME=SOURCE", value_parser = parse_model)]
    vision: Vec<(String, String)>,
    /// A model for /v1/images/generations.
    #[arg(long, value_name = "NAME=SOURCE", value_parser = parse_model)]
    text_to_image: Vec<(String, String)>,
    /// Seconds that a request has up to its first output; without, the library's 30.
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u64>,
    /// MiB that all models may take together; without, 80 % of what the process may use.
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u64).range(1..=MAX_MIB))]
    memory: Option<u64>,
    /// Most bytes of a request's body.
    #[arg(long, value_name = "BYTES", default_value_t = 16 << 20)]
    body: usize,
    /// Most connections at a time.
    #[arg(long, value_name = "N", default_value_t = 256)]
    connections: usize,
    /// Collector of traces by OTLP over HTTP, such as http://localhost:4318; without, that of OTEL_EXPORTER_OTLP_ENDPOINT,
    /// or none.
    #[arg(long, value_name = "ADDRESS")]
    otlp_endpoint: Option<String>,
    /// Lines to log on standard error: off, error, warn, info, debug or trace.
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    log: LevelFilter,
}

fn parse_model(text: &str) -> Result<(String, String), String> {
    let parts = text.split_once('=').filter(|(name, source)| !name.is_empty() && !source.is_empty());
    let (name, source) = parts.ok_or("a model is given as NAME=SOURCE")?;
    Ok((name.to_owned(), source.to_owned()))
}

fn parse_adapter(text: &str) -> Result<(String, String, String), String> {
    let (names, source) = parse_model(text)?;
    let names = names.rsplit_once(':').filter(|(base, name)| !base.is_empty() && !name.is_empty());
    let (base, name) = names.ok_or("an adapter is given as BASE:NAME=SOURCE")?;
    Ok((base.to_owned(), name.to_owned(), source))
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Arguments::parse()).await {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> Result<ExitCode, Box<dyn std::error::Error + Send + Sync>> {
    let log = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_filter(arguments.log);
    let traces = Traces::new(arguments.otlp_endpoint.as_deref())?;
    let spans = traces.as_ref().map(Traces::layer);
    tracing_subscriber::registry().with(log).with(spans).try_init()?;
    let key = std::env::var(KEY).ok().filter(|key| !key.is_empty());
    if key.is_none() && !arguments.listen.ip().is_loopback() {
        tracing::warn!("everybody who reaches {} can use it: set {KEY} to a key", arguments.listen);
    }
    // The engine's metrics are described to the recorder that is there when it starts.
    let metrics = record()?;
    let is_known = |base: &String| arguments.text_to_text.iter().any(|(name, _)| name == base);
    if let Some((base, ..)) = arguments.adapter.iter().find(|(base, ..)| !is_known(base)) {
        return Err(format!("--adapter names {base}, which no --text-to-text does").into());
    }
    let engine = builder(&arguments).start().await?;
    let server = Server::new(engine)
        .with_key(key)
        .with_body_bytes(arguments.body)
        .with_connections(arguments.connections)
        .with_timeout(arguments.timeout.map(Duration::from_secs))
        .with_metrics(metrics);
    let listener = TcpListener::bind(arguments.listen).await?;
    writeln!(std::io::stdout(), "listening on http://{}", listener.local_addr()?)?;
    let report = serve(server, listener, end()?).await;
    if let Some(traces) = traces {
        traces.end().await;
    }
    let (cut_off, took) = (report.abandoned_requests, report.took.as_millis());
    writeln!(
        std::io::stdout(),
        "ended in {took} ms: {cut_off} requests were cut off, {} are still charged, threads left: {:?}",
        report.remaining,
        report.unfinished_threads
    )?;
    Ok(if report.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The models that the arguments name, or the small ones.
fn builder(arguments: &Arguments) -> EngineBuilder {
    let Arguments { text_embedding, reranking, text_to_text, vision, text_to_image, .. } = arguments;
    let mut builder = Engine::builder();
    if let Some(mib) = arguments.memory {
        builder = builder.memory_limit(Bytes::mib(mib));
    }
    if [text_embedding, reranking, text_to_text, vision, text_to_image].iter().all(|models| models.is_empty())
    {
        let small = |folder: &str| Source::directory(format!("{SMALL_MODELS}/{folder}")).follow_links();
        return builder
            .text_embedding("english", small("english-embedding-small"))
            .text_to_text("chat", small("shapes-chat"))
            .vision("describer", small("shapes-vision"))
            .text_to_image("painter", small("shapes-text-to-image"));
    }
    let source = |text: &str| Source::parse(text).follow_links();
    let each =
        |models: &[(String, String)], builder, add: fn(EngineBuilder, &str, Source) -> EngineBuilder| {
            models.iter().fold(builder, |builder, (name, text)| add(builder, name, source(text)))
        };
    builder = each(text_embedding, builder, |builder, name, source| builder.text_embedding(name, source));
    builder = each(reranking, builder, |builder, name, source| builder.reranking(name, source));
    for (name, text) in text_to_text {
        let own = arguments.adapter.iter().filter(|(base, ..)| base == name);
        let spec = own.fold(SourceSpec::from(source(text)), |spec, (_, adapter, text)| {
            spec.with_adapter(adapter, source(text))
        });
        builder = builder.text_to_text(name.as_str(), spec);
    }
    builder = each(vision, builder, |builder, name, source| builder.vision(name, source));
    each(text_to_image, builder, |builder, name, source| builder.text_to_image(name, source))
}

/// Waits for SIGTERM or Ctrl-C.
#[cfg(unix)]
fn end() -> std::io::Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// Waits for Ctrl-C.
#[cfg(not(unix))]
fn end() -> std::io::Result<impl Future<Output = ()>> {
    Ok(async {
        if let Err(error) = tokio::signal::ctrl_c().await {
            tracing::error!("Ctrl-C cannot be waited for: {error}");
            std::future::pending().await
        }
    })
}
