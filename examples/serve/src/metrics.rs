//! `GET /metrics`: the library's metrics in the format of Prometheus.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};

use crate::error::ApiError;
use crate::server::Server;

/// Upper bounds of the histograms of times, in seconds.
const SECONDS: [f64; 12] = [0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0, 600.0];
/// Upper bounds of the histograms of numbers.
const COUNTS: [f64; 9] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0];
/// Time between two rounds of housekeeping, which keep the memory of histograms bounded while nobody scrapes.
const UPKEEP: Duration = Duration::from_secs(5);

/// Records the metrics of the process from now on: once in a process, on a runtime of tokio.
///
/// # Errors
/// If metrics are recorded already.
pub fn record() -> Result<PrometheusHandle, BuildError> {
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS)?
        .set_buckets_for_metric(Matcher::Suffix("_size".to_owned()), &COUNTS)?
        .install_recorder()?;
    let kept = handle.clone();
    tokio::spawn(async move {
        let mut rounds = tokio::time::interval(UPKEEP);
        loop {
            rounds.tick().await;
            kept.run_upkeep();
        }
    });
    Ok(handle)
}

pub(crate) async fn show(State(server): State<Arc<Server>>) -> Result<Response, ApiError> {
    let Some(metrics) = &server.metrics else {
        let message = "this server records no metrics";
        return Err(ApiError::new(StatusCode::NOT_FOUND, "no_metrics", message));
    };
    let format = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    Ok((format, metrics.render()).into_response())
}
