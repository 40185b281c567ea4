//! The ends of a socket pair. The parent's never blocks for longer than it is told to, in neither direction, so that a
//! child that stops reading or writing holds up nobody. The child's reads on its main thread and writes from any.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::Serialize;

use super::frames::{Inbox, frame};
use crate::wire::WireError;

/// Bytes that are read at once.
const PIECE: usize = 64 << 10;
/// Maximum number of pieces that are read before they are looked at.
const PIECES: usize = 64;

/// State of a connection after bytes were moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Connection {
    Open,
    /// The other end has closed it, or is gone.
    Closed,
}

/// The parent's end.
pub(super) struct Link {
    stream: UnixStream,
    pub(super) inbox: Inbox,
    /// Frames on their way, bounded by what the pool grants to a worker. The first may be sent in part.
    outbox: VecDeque<Vec<u8>>,
    /// Bytes of the first that are sent.
    sent: usize,
    piece: Box<[u8]>,
}

impl Link {
    pub(super) fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        let piece = vec![0; PIECE].into_boxed_slice();
        Ok(Self { stream, inbox: Inbox::default(), outbox: VecDeque::new(), sent: 0, piece })
    }

    /// Queues a message and sends of it what the child takes at once.
    pub(super) fn send<T: Serialize>(&mut self, message: &T) -> Result<(), WireError> {
        self.send_bytes(frame(message)?);
        Ok(())
    }

    pub(super) fn send_bytes(&mut self, bytes: Vec<u8>) {
        self.outbox.push_back(bytes);
        // A connection that is broken is seen when it is read.
        let _ = self.flush();
    }

    fn flush(&mut self) -> io::Result<()> {
        while let Some(first) = self.outbox.front() {
            match self.stream.write(first.get(self.sent..).unwrap_or_default()) {
                Ok(count) => self.sent += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            }
            if self.sent >= first.len() {
                self.outbox.pop_front();
                self.sent = 0;
            }
        }
        Ok(())
    }

    /// Moves bytes both ways, after waiting for some for at most `patience`.
    pub(super) fn pump(&mut self, patience: Duration) -> Connection {
        let wanted = match self.outbox.is_empty() {
            true => PollFlags::IN,
            false => PollFlags::IN | PollFlags::OUT,
        };
        wait(&self.stream, wanted, patience);
        // One that cannot be written to any more may still have something to say.
        let is_broken = self.flush().is_err();
        for _ in 0..PIECES {
            match self.stream.read(&mut self.piece) {
                Ok(0) => return Connection::Closed,
                Ok(count) => {
                    self.inbox.extend(self.piece.get(..count).unwrap_or_default());
                    if count < self.piece.len() {
                        return Connection::Open;
                    }
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock && !is_broken => return Connection::Open,
                Err(_) => return Connection::Closed,
            }
        }
        Connection::Open
    }
}

/// Waits until the stream is ready, for at most `patience`.
fn wait(stream: &UnixStream, wanted: PollFlags, patience: Duration) {
    let patience = Timespec::try_from(patience).ok();
    // An interruption is as good as an early end.
    let _ = poll(&mut [PollFd::from_borrowed_fd(stream.as_fd(), wanted)], patience.as_ref());
}

/// The child's reading end, for its main thread.
pub(super) struct Reader {
    stream: UnixStream,
    pub(super) inbox: Inbox,
    piece: Box<[u8]>,
}

impl Reader {
    pub(super) fn new(stream: UnixStream) -> Self {
        Self { stream, inbox: Inbox::default(), piece: vec![0; PIECE].into_boxed_slice() }
    }

    /// Takes in what has come, after waiting for it for at most `patience`.
    pub(super) fn fill(&mut self, patience: Duration) -> io::Result<Connection> {
        let patience = Timespec::try_from(patience).ok();
        let ready = poll(&mut [PollFd::new(&self.stream, PollFlags::IN)], patience.as_ref());
        if matches!(ready, Ok(0) | Err(rustix::io::Errno::INTR)) {
            return Ok(Connection::Open);
        }
        let count = match self.stream.read(&mut self.piece) {
            Err(error) if error.kind() == ErrorKind::Interrupted => return Ok(Connection::Open),
            read => read?,
        };
        self.inbox.extend(self.piece.get(..count).unwrap_or_default());
        Ok(if count == 0 { Connection::Closed } else { Connection::Open })
    }
}

/// The child's writing end, which its threads share. It blocks while the parent's buffer is full.
#[derive(Debug)]
pub(super) struct Writer(Mutex<UnixStream>);

impl Writer {
    pub(super) fn new(stream: UnixStream) -> Self {
        Self(Mutex::new(stream))
    }

    /// Sends a message. Without a parent there is nobody to tell: the main thread, which sees it, ends the process.
    pub(super) fn send<T: Serialize>(&self, message: &T) -> Result<(), WireError> {
        let bytes = frame(message)?;
        self.send_bytes(&bytes);
        Ok(())
    }

    pub(super) fn send_bytes(&self, bytes: &[u8]) {
        let _ = self.0.lock().unwrap_or_else(PoisonError::into_inner).write_all(bytes);
    }
}
