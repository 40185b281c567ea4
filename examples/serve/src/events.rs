//! Answers as server-sent events. An error after the first event is one more event, as the status has been sent by
//! then, and the last one.

use std::convert::Infallible;
use std::future::ready;

use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::{Stream, StreamExt as _, stream};
use serde_json::Value;

use crate::error::ApiError;

/// The event of a JSON value.
pub(crate) fn event(value: &Value) -> Event {
    Event::default().data(value.to_string())
}

/// The event with which OpenAI's streams of text end.
pub(crate) fn done() -> Event {
    Event::default().data("[DONE]")
}

/// The response that sends these events as they come. It waits for the first, so that a request which fails before its
/// first output has the status of its error. Dropped with its connection, it drops the stream, which stops the model.
///
/// # Errors
/// That of the first event.
pub(crate) async fn streamed(
    events: impl Stream<Item = Result<Event, ApiError>> + Send + 'static,
) -> Result<Response, ApiError> {
    let mut events = Box::pin(events);
    let first = events.next().await.transpose()?;
    let whole = stream::iter(first.map(Ok)).chain(events);
    let until_an_error = whole.scan(false, |failed, item| {
        let next = (!*failed).then(|| {
            *failed = item.is_err();
            item.unwrap_or_else(|error| event(&error.object()))
        });
        ready(next.map(Ok::<_, Infallible>))
    });
    // Proxies that collect an answer before they pass it on (nginx) are asked not to.
    let unbuffered = [("x-accel-buffering", "no")];
    Ok((unbuffered, Sse::new(until_an_error).keep_alive(KeepAlive::default())).into_response())
}
