//! Traces for a collector, by the OpenTelemetry protocol over HTTP: a span for each request of a client, in it those of the
//! library, linked with the runs and loads that they were part of. Which spans there are, and what they say, is left to
//! `guard` and to the library.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::http::{self, HeaderMap};
use opentelemetry::propagation::TextMapPropagator as _;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_http::{Bytes, HeaderExtractor, HttpClient, HttpError};
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracerProvider;
use rustls_platform_verifier::BuilderVerifierExt as _;
use tokio::runtime::Handle;
use tracing::{Span, Subscriber};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::registry::LookupSpan;

/// Path of traces at a collector.
const PATH: &str = "/v1/traces";
/// Environment variables of the standard that name a collector.
const ENDPOINTS: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];
/// Time for one delivery.
const DELIVERY: Duration = Duration::from_secs(10);
/// Time for the last spans to get to the collector.
const LAST_DELIVERY: Duration = Duration::from_secs(5);
/// Maximum number of bytes of a collector's answer.
const MAX_ANSWER_BYTES: usize = 64 << 10;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Spans on their way to a collector. At most 2,048 wait; further ones are left out, and that is logged.
pub struct Traces(SdkTracerProvider);

impl Traces {
    /// Sends spans to the collector at this address, such as `http://localhost:4318`, or to the one that the standard's
    /// environment variables name. `None` without either. Called on a runtime of tokio.
    ///
    /// # Errors
    /// For an address that is none, and where TLS cannot be set up.
    pub fn new(endpoint: Option<&str>) -> Result<Option<Self>, BoxError> {
        // An empty value counts as none, as the standard has it.
        let endpoint = endpoint.filter(|endpoint| !endpoint.is_empty());
        let is_set = |name: &&str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        if endpoint.is_none() && !ENDPOINTS.iter().any(is_set) {
            return Ok(None);
        }
        let mut exporter = SpanExporter::builder().with_http().with_http_client(Post::new()?);
        if let Some(base) = endpoint {
            exporter = exporter.with_endpoint(format!("{}{PATH}", base.trim_end_matches('/')));
        }
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter.build()?)
            .with_resource(Resource::builder().with_service_name("serve").build());
        Ok(Some(Self(provider.build())))
    }

    /// The layer that hands spans over: those of the server and of the library, and no others, since the delivery has spans
    /// of its own.
    pub fn layer<S: Subscriber + for<'a> LookupSpan<'a> + 'static>(&self) -> impl Layer<S> + use<S> {
        let own = ["serve", "candle_actors", "model_actors"].map(|target| (target, LevelFilter::INFO));
        let layer = tracing_opentelemetry::layer().with_location(false).with_threads(false);
        layer.with_tracer(self.0.tracer("serve")).with_filter(Targets::new().with_targets(own))
    }

    /// Delivers what is left.
    pub async fn end(self) {
        let ending = tokio::task::spawn_blocking(move || self.0.shutdown_with_timeout(LAST_DELIVERY));
        match ending.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!("the last spans did not reach the collector: {error}"),
            Err(error) => tracing::warn!("the last spans did not reach the collector: {error}"),
        }
    }
}

/// Makes a request's span part of the trace that its client is in, if it says so (W3C's `traceparent`).
pub(crate) fn continue_trace(span: &Span, headers: &HeaderMap) {
    let context = TraceContextPropagator::new().extract(&HeaderExtractor(headers));
    // An error says that nobody collects spans.
    let _ = span.set_parent(context);
}

/// The client of deliveries. The exporter's thread waits for them; they run where the server's tasks do.
#[derive(Debug)]
struct Post {
    client: reqwest::Client,
    runtime: Handle,
}

impl Post {
    fn new() -> Result<Self, BoxError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_platform_verifier()?
            .with_no_client_auth();
        let client = reqwest::Client::builder().tls_backend_preconfigured(tls).timeout(DELIVERY).build()?;
        Ok(Self { client, runtime: Handle::current() })
    }
}

impl HttpClient for Post {
    // As `async_trait` writes it.
    fn send_bytes<'own, 'answer>(
        &'own self,
        request: http::Request<Bytes>,
    ) -> Pin<Box<dyn Future<Output = Result<http::Response<Bytes>, HttpError>> + Send + 'answer>>
    where
        'own: 'answer,
        Self: 'answer,
    {
        let client = self.client.clone();
        let delivery = self.runtime.spawn(async move {
            let mut answer = client.execute(request.try_into()?).await?;
            let mut body = Vec::new();
            while let Some(piece) = answer.chunk().await? {
                if body.len() + piece.len() > MAX_ANSWER_BYTES {
                    return Err("the collector's answer is too long".into());
                }
                body.extend_from_slice(&piece);
            }
            let mut response = http::Response::new(Bytes::from(body));
            *response.status_mut() = answer.status();
            *response.headers_mut() = std::mem::take(answer.headers_mut());
            Ok::<_, HttpError>(response)
        });
        Box::pin(async move { delivery.await? })
    }
}
