//! The frames that a parent and its child exchange. Each is a length and a message; a request, a chunk and an output have
//! one of their own, so that one that is too large fails alone. Carrying them is left to `transport`.

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use crate::error::{Cause, Failure};
use crate::id::{ModelId, RequestId};
use crate::limits::MAX_FRAME_BYTES;
use crate::model::Footprint;
use crate::progress::LoadStage;
use crate::wire::{self, WireError};

/// Bytes of the length before each message.
const PREFIX: usize = size_of::<u32>();

/// Bytes of room that are kept after a large message.
const KEPT: usize = 1 << 20;

/// Number of chunks of a request that may be under way, beside those that the reader's own buffer holds.
pub(super) const WINDOW: usize = 32;

/// Number of a run of a child.
pub(super) type Run = u64;

/// The first message to a child, with the version of the format.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Hello {
    pub(super) capability: String,
    pub(super) loader: String,
    /// The loader's own settings, which may hold secrets.
    pub(super) settings: ByteBuf,
    pub(super) model: ModelId,
    pub(super) address_space: Option<u64>,
}

/// A message to a child.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Order<R> {
    /// Find out what the model takes.
    Size,
    /// Load the model and build it.
    Load,
    /// A request of this run, which begins with `Start` or is under way.
    Ask { run: Run, request: RequestId, input: R },
    /// Run the requests that came; others may join if `joins`.
    Start { run: Run, joins: bool },
    /// Nobody waits for this request any more.
    Cancel { request: RequestId },
    /// So many more chunks of the request may come.
    Credit { request: RequestId, chunks: usize },
    /// Show that the child takes orders.
    Ping,
}

/// A message from a child.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Report<K, O> {
    /// The model will take this.
    Sized(Footprint),
    /// The model is loaded and takes this.
    Loaded(Footprint),
    /// The model could not be sized or loaded.
    NotLoaded(Failure),
    /// The model has made progress since the last such message; a load with its stage, bytes done and in total.
    Progress(Option<(LoadStage, u64, u64)>),
    /// The running model has admitted these requests.
    Admitted(Vec<RequestId>),
    /// The running model has let go of these requests.
    Left(Vec<RequestId>),
    /// The model has begun with a request.
    Begun(RequestId),
    Chunk {
        request: RequestId,
        chunk: K,
    },
    Finished {
        request: RequestId,
        output: O,
    },
    Failed {
        request: RequestId,
        failure: Failure,
    },
    /// The run has ended, with the failure that ended it.
    Done {
        run: Run,
        failure: Option<Failure>,
    },
    Pong,
    /// Model code panicked; the child is of no use any more.
    Panicked(Cause),
}

/// Writes a message as a frame.
///
/// # Errors
/// One that cannot be written, or is too large.
pub(super) fn frame<T: Serialize>(message: &T) -> Result<Vec<u8>, WireError> {
    let mut bytes = vec![0; PREFIX];
    wire::append(&mut bytes, message)?;
    let length = bytes.len() - PREFIX;
    let prefix = u32::try_from(length).ok().filter(|_| length <= MAX_FRAME_BYTES);
    let Some(prefix) = prefix else {
        let reason =
            format!("it has {length} bytes; at most {MAX_FRAME_BYTES} go to another process at once");
        return Err(WireError::Unwritable { cause: Cause::new(reason) });
    };
    if let Some(place) = bytes.first_chunk_mut() {
        *place = prefix.to_be_bytes();
    }
    Ok(bytes)
}

/// Bytes that have come in and make no whole frame yet, or have not been read.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    bytes: Vec<u8>,
    /// Number of bytes that have been read.
    read: usize,
}

impl Inbox {
    /// Adds bytes that came in.
    pub(super) fn extend(&mut self, bytes: &[u8]) {
        if self.read > 0 {
            self.bytes.drain(..self.read);
            self.read = 0;
            self.bytes.shrink_to(KEPT.max(bytes.len()));
        }
        self.bytes.extend_from_slice(bytes);
    }

    /// Gives the room of what has been read back, if that is all that came in.
    pub(super) fn release(&mut self) {
        if self.read > 0 && self.is_empty() {
            self.bytes.clear();
            self.read = 0;
            self.bytes.shrink_to(KEPT);
        }
    }

    /// True if nothing has come in that has not been read.
    pub(super) fn is_empty(&self) -> bool {
        self.read == self.bytes.len()
    }

    /// The next whole frame.
    ///
    /// # Errors
    /// A length over [`MAX_FRAME_BYTES`].
    pub(super) fn next(&mut self) -> Result<Option<&[u8]>, Cause> {
        self.next_within(MAX_FRAME_BYTES)
    }

    /// As [`Self::next`], where a frame has at most so many bytes.
    ///
    /// # Errors
    /// A length over the limit, as soon as it has come in.
    pub(super) fn next_within(&mut self, limit: usize) -> Result<Option<&[u8]>, Cause> {
        let limit = limit.min(MAX_FRAME_BYTES);
        self.release();
        let waiting = self.bytes.get(self.read..).unwrap_or_default();
        let Some((prefix, rest)) = waiting.split_first_chunk::<PREFIX>() else { return Ok(None) };
        let length = u32::from_be_bytes(*prefix) as usize;
        if length > limit {
            return Err(Cause::new(format!("a frame of {length} bytes; at most {limit} are allowed")));
        }
        let Some(message) = rest.get(..length) else { return Ok(None) };
        self.read += PREFIX + length;
        Ok(Some(message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_out_as_they_went_in_however_they_are_cut() {
        let messages = ["", "a", "a longer one"].map(str::to_owned);
        let bytes: Vec<u8> = messages.iter().flat_map(|message| frame(message).unwrap()).collect();
        for size in 1..=bytes.len() {
            let (mut inbox, mut read) = (Inbox::default(), Vec::new());
            for piece in bytes.chunks(size) {
                inbox.extend(piece);
                while let Some(message) = inbox.next().unwrap() {
                    read.push(wire::read::<String>(message).unwrap());
                }
            }
            assert_eq!(read, messages, "pieces of {size}");
            assert!(inbox.next().unwrap().is_none());
        }
    }

    #[test]
    fn the_room_of_a_large_frame_is_given_back_once_it_is_read() {
        let mut inbox = Inbox::default();
        inbox.extend(&frame(&"a".repeat(KEPT * 4)).unwrap());
        assert!(inbox.next().unwrap().is_some());
        assert!(inbox.next().unwrap().is_none());
        assert!(inbox.bytes.capacity() <= KEPT, "{}", inbox.bytes.capacity());
        inbox.extend(&frame(&"next").unwrap());
        assert_eq!(wire::read::<String>(inbox.next().unwrap().unwrap()).unwrap(), "next");
    }

    #[test]
    fn a_length_over_the_limit_is_refused_before_its_bytes_come() {
        let mut inbox = Inbox::default();
        inbox.extend(&[0xff; PREFIX]);
        assert!(inbox.next().unwrap_err().message().contains("at most"));
        let mut inbox = Inbox::default();
        inbox.extend(&frame(&"a longer one").unwrap());
        assert!(inbox.next_within(12).unwrap_err().message().contains("at most 12"));
        let message = inbox.next_within(13).unwrap().unwrap();
        assert_eq!(wire::read::<String>(message).unwrap(), "a longer one");
    }
}
