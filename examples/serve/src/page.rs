//! `GET /`: a page that shows the tree, the memory and the events live, with a chat, a search and a painting box over the
//! endpoints; and `GET /events`, which feeds it. The page is one file, and opens nothing outside.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::header;
use axum::response::sse::Event;
use axum::response::{IntoResponse, Response};
use candle_actors::{Event as TreeEvent, EvictionReason, System, SystemStatus};
use futures_util::stream;
use serde::Serialize;
use tokio::sync::broadcast::{self, error::RecvError};
use tokio::sync::watch;
use tokio::time::{Interval, MissedTickBehavior, interval};

use crate::error::ApiError;
use crate::events::streamed;
use crate::server::Server;

/// Shortest time between two states of the tree.
const BETWEEN_STATES: Duration = Duration::from_millis(250);
/// Scripts and styles are those in the page, images those it was sent, and nothing else is opened.
const POLICY: &str = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; \
                      connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

pub(crate) async fn show() -> Response {
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::CACHE_CONTROL, "no-cache"),
    ];
    (headers, include_str!("page.html")).into_response()
}

/// States and events of the tree from now on, until it shuts down.
pub(crate) async fn events(State(server): State<Arc<Server>>) -> Result<Response, ApiError> {
    let system = server.engine.system().clone();
    let mut ticks = interval(BETWEEN_STATES);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut changes = system.watch();
    changes.mark_changed();
    let feed = Feed { events: system.events(), changes, ticks, system };
    streamed(stream::unfold(feed, |mut feed| async {
        let event = feed.next().await?;
        Some((event, feed))
    }))
    .await
}

/// Data that the page is fed with.
struct Feed {
    system: System,
    changes: watch::Receiver<SystemStatus>,
    events: broadcast::Receiver<TreeEvent>,
    ticks: Interval,
}

impl Feed {
    async fn next(&mut self) -> Option<Result<Event, ApiError>> {
        loop {
            tokio::select! {
                _ = self.ticks.tick() => {
                    if self.changes.has_changed().ok()? {
                        self.changes.mark_unchanged();
                        return Some(Ok(named("state", &self.system.status())));
                    }
                }
                event = self.events.recv() => match event {
                    Ok(TreeEvent::ShuttingDown) | Err(RecvError::Closed) => return None,
                    Ok(event) => if let Some(words) = sentence(&event) {
                        return Some(Ok(named("event", &words)));
                    },
                    Err(RecvError::Lagged(missed)) => {
                        return Some(Ok(named("event", &format!("{missed} events were missed"))));
                    }
                },
            }
        }
    }
}

fn named(name: &str, value: &impl Serialize) -> Event {
    // The two types that are sent always serialise.
    Event::default().event(name).data(serde_json::to_string(value).unwrap_or_default())
}

/// A sentence about an event. `None` for one that the tree shows anyway.
fn sentence(event: &TreeEvent) -> Option<String> {
    Some(match event {
        TreeEvent::WorkerStarted { model, worker, .. } => format!("{model}{worker} is ready"),
        TreeEvent::WorkerEvicted { model, worker, reason, .. } => {
            format!("{model}{worker} is told to go: {}", why(*reason))
        }
        TreeEvent::WorkerEnded { model, worker, .. } => format!("{model}{worker} has ended"),
        TreeEvent::WorkerRestarted { model, worker, .. } => format!("{model}{worker} replaces a lost worker"),
        TreeEvent::WorkerStuck { model, worker, stalled, .. } => {
            format!("{model}{worker} made no progress for {} ms and was given up", stalled.as_millis())
        }
        TreeEvent::StartFailed { error, .. } | TreeEvent::WorkerCrashed { error, .. } => error.to_string(),
        TreeEvent::BreakerOpened { model, retry_after, .. } => {
            format!("{model} failed too often: refused for {} ms", retry_after.as_millis())
        }
        TreeEvent::BreakerClosed { model, .. } => format!("{model} takes requests again"),
        TreeEvent::Pressure { device, level } => format!("memory pressure of {device}: {level:?}"),
        TreeEvent::PoolRestarted { capability } => format!("the pool of {capability} was started again"),
        TreeEvent::SystemFailed { error } => error.to_string(),
        _ => return None,
    })
}

fn why(reason: EvictionReason) -> &'static str {
    match reason {
        EvictionReason::Cooldown => "it had been idle long enough",
        EvictionReason::MakeRoom => "another model needs the room",
        EvictionReason::Pressure => "memory runs short",
        _ => "it is not needed any more",
    }
}
