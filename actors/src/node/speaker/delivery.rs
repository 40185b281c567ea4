//! The last stretch of a stream that comes from another node: chunks wait here for room in their reader's buffer, at most a
//! window of them, and what has been read is told back.

use std::sync::Arc;
use std::time::Duration;

use ractor::ActorRef;
use tokio::sync::mpsc;

use super::SpeakerMessage;
use crate::capability::Capability;
use crate::cluster::router::{RequestKey, WINDOW};
use crate::error::Error;
use crate::job::{Accepted, Job};

/// Number of chunks after which is told that they were read.
const TELL: u64 = WINDOW / 4;

enum Item<C: Capability> {
    Chunk(C::Chunk),
    End(Accepted<C>, C::Output),
}

/// The way of a run's chunks to their reader. Dropping it leaves out what has not been read.
pub(super) struct Delivery<C: Capability>(mpsc::Sender<Item<C>>);

impl<C: Capability> Delivery<C> {
    /// The way to the reader of this job, if it has one. A reader that takes nothing for `stall` is given up.
    pub(super) fn of(
        job: &Arc<Job<C>>,
        attempt: u32,
        stall: Duration,
        speaker: ActorRef<SpeakerMessage<C>>,
    ) -> Option<Self> {
        let reader = job.chunks()?;
        // The window, and the end.
        let (sender, mut items) = mpsc::channel(usize::try_from(WINDOW).unwrap_or(1) + 1);
        let job = job.clone();
        tokio::spawn(async move {
            let mut read = 0;
            while let Some(item) = items.recv().await {
                let chunk = match item {
                    Item::Chunk(chunk) => chunk,
                    Item::End(accepted, output) => {
                        accepted.job().answer_from(attempt, Ok(output));
                        return;
                    }
                };
                match tokio::time::timeout(stall, reader.reserve()).await {
                    // This is the one who writes, so that the room stays.
                    Ok(Ok(room)) => drop(room),
                    // The reader has gone.
                    Ok(Err(_)) => return,
                    Err(_) => {
                        let (model, capability) = (job.model().clone(), C::NAME.into());
                        job.answer(Err(Error::SlowReader { model, capability, stalled: stall }));
                        let _ = speaker.send_message(SpeakerMessage::Cancel(job.id));
                        return;
                    }
                }
                if job.emit_from(attempt, chunk).is_err() {
                    return;
                }
                read += 1;
                if read % TELL == 0 {
                    let _ = speaker.send_message(SpeakerMessage::Read(RequestKey(job.id.0), read));
                }
            }
        });
        Some(Self(sender))
    }

    /// Takes a chunk. The window bounds their number.
    pub(super) fn chunk(&self, chunk: C::Chunk) {
        if self.0.try_send(Item::Chunk(chunk)).is_err() {
            tracing::debug!("a chunk has no reader any more");
        }
    }

    /// Ends the stream once its chunks have been read.
    pub(super) fn end(self, accepted: Accepted<C>, output: C::Output) {
        if self.0.try_send(Item::End(accepted, output)).is_err() {
            tracing::debug!("a result has no reader any more");
        }
    }
}
