//! A text that a model is going to write, whichever of the two capabilities writes it, whole or in pieces.

use candle_actors::{
    Capability, Completion, DescribeImage, GenerateText, ImageDescriber, ReplyStream, TextChunk,
    TextGenerator,
};
use futures_util::future::try_join_all;
use futures_util::stream::{self, BoxStream, Stream, StreamExt as _};

use crate::error::ApiError;

/// A model and what it is asked.
pub(crate) enum Writing {
    Text(TextGenerator, GenerateText),
    Image(ImageDescriber, DescribeImage),
}

/// A part of one of the texts that answer a prompt, or their end with the whole of them.
pub(crate) enum Piece {
    Text(TextChunk),
    End(Completion),
}

/// The same handle for a request of this server, which fails at once where the queue is full.
macro_rules! handle {
    ($server:expr, $handle:expr) => {{
        let handle = $handle.when_full(candle_actors::WhenFull::Fail);
        match $server.timeout {
            Some(timeout) => handle.timeout(timeout),
            None => handle,
        }
    }};
}

pub(crate) use handle;

/// A request to either capability with what both take.
macro_rules! settings {
    ($request:expr, $settings:expr, $max_tokens:expr) => {
        $request
            .with_sampling($settings.sampling.clone())
            .with_answers($settings.choices)
            .with_max_tokens($max_tokens)
            .with_min_tokens($settings.min_tokens)
            .with_stop($settings.stop.clone())
            .with_stop_tokens($settings.stop_tokens.clone())
            .with_logprobs($settings.logprobs)
    };
}

pub(crate) use settings;

impl Writing {
    async fn whole(self) -> Result<Completion, ApiError> {
        Ok(match self {
            Self::Text(model, request) => model.generate(request).await?,
            Self::Image(model, request) => model.describe(request).await?,
        })
    }

    async fn pieces(self) -> Result<BoxStream<'static, Result<Piece, ApiError>>, ApiError> {
        Ok(match self {
            Self::Text(model, request) => pieces(model.stream(request).await?).boxed(),
            Self::Image(model, request) => pieces(model.stream(request).await?).boxed(),
        })
    }
}

/// The whole texts of each prompt, in order, written side by side; the first that fails ends the others.
///
/// # Errors
/// That of the first that fails.
pub(crate) async fn whole(writings: Vec<Writing>) -> Result<Vec<Completion>, ApiError> {
    try_join_all(writings.into_iter().map(Writing::whole)).await
}

/// The pieces of all texts as they are written, each with its prompt's index.
///
/// # Errors
/// Those known before the first piece; the rest comes out of the stream.
pub(crate) async fn side_by_side(
    writings: Vec<Writing>,
) -> Result<impl Stream<Item = Result<(usize, Piece), ApiError>> + Send + 'static, ApiError> {
    let all = try_join_all(writings.into_iter().map(Writing::pieces)).await?;
    let numbered = all.into_iter().enumerate();
    Ok(stream::select_all(
        numbered.map(|(index, pieces)| pieces.map(move |piece| piece.map(|piece| (index, piece)))),
    ))
}

/// The pieces of the answers to one prompt. Dropping the stream stops the model.
fn pieces<C: Capability<Chunk = TextChunk, Output = Completion>>(
    reply: ReplyStream<C>,
) -> impl Stream<Item = Result<Piece, ApiError>> + Send {
    stream::unfold(Some(reply), |reply| async {
        let mut reply = reply?;
        match reply.next().await {
            Some(Ok(chunk)) => Some((Ok(Piece::Text(chunk)), Some(reply))),
            Some(Err(error)) => Some((Err(error.into()), None)),
            None => Some((reply.output().await.map(Piece::End).map_err(ApiError::from), None)),
        }
    })
}
