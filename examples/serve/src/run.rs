//! The life of a server: its routes, and its end, in which what was accepted is finished and nothing is left behind.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware::from_fn_with_state;
use axum::routing::{get, post};
use candle_actors::ShutdownReport;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use crate::connections::Limited;
use crate::guard::{guard, not_allowed, unknown};
use crate::server::Server;
use crate::{chat, completions, edits, embeddings, health, images, metrics, models, page, rerank};

/// Time for the last answers to reach their readers, once the system has ended.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Serves until the signal. Then no connection is accepted any more, requests under way have the shutdown timeout of the
/// system, new ones are refused with 503, and the report says what was cut off.
pub async fn serve(
    server: Server,
    listener: TcpListener,
    signal: impl Future<Output = ()>,
) -> ShutdownReport {
    let server = Arc::new(server);
    let listener = Limited::new(listener, server.connections);
    let (tell, told) = oneshot::channel::<()>();
    let serving = axum::serve(listener, router(server.clone())).with_graceful_shutdown(async {
        // Told, or dropped together with this future: either way it is the end.
        let _ = told.await;
    });
    let mut serving = tokio::spawn(serving.into_future());
    signal.await;
    let _ = tell.send(());
    let report = server.engine.system().shutdown().await;
    if tokio::time::timeout(LAST_WORDS, &mut serving).await.is_err() {
        serving.abort();
    }
    report
}

/// The endpoints.
fn router(server: Arc<Server>) -> Router {
    Router::new()
        .route("/", get(page::show))
        .route("/events", get(page::events))
        .route("/health/live", get(health::live))
        .route("/health/ready", get(health::ready))
        .route("/metrics", get(metrics::show))
        .route("/v1/models", get(models::list))
        // The name of a model may have a slash in it.
        .route("/v1/models/{*model}", get(models::retrieve))
        .route("/v1/embeddings", post(embeddings::create))
        .route("/v1/chat/completions", post(chat::create))
        .route("/v1/completions", post(completions::create))
        .route("/v1/rerank", post(rerank::create))
        .route("/v1/images/generations", post(images::generate))
        .route("/v1/images/edits", post(edits::create))
        .fallback(unknown)
        .method_not_allowed_fallback(not_allowed)
        .layer(DefaultBodyLimit::max(server.body_bytes))
        .layer(from_fn_with_state(server.clone(), guard))
        .with_state(server)
}
