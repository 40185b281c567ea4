//! The way out to one peer: small bodies go with their letter, large ones before it in pieces, a few of which are on their
//! way at a time. So what waits in ractor_cluster's writer, which has no bound of its own, stays small.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use ractor::ActorCell;
use serde_bytes::ByteBuf;
use tokio::sync::Semaphore;

use crate::cluster::router::{Boot, Message};
use crate::cluster::{Body, Letter, PIECE, What};

/// Number of pieces of one body that are on their way.
const PIECES: usize = 4;

static NEXT_TRANSFER: AtomicU64 = AtomicU64::new(1);

/// The way to a peer's speaker. Cheap to clone.
#[derive(Clone)]
pub(super) struct Post {
    from: Boot,
    to: Boot,
    cell: ActorCell,
    transfers: Arc<Mutex<HashMap<u64, Arc<Semaphore>>>>,
}

impl Post {
    pub(super) fn new(from: Boot, to: Boot, cell: ActorCell) -> Self {
        Self { from, to, cell, transfers: Arc::default() }
    }

    pub(super) fn cell(&self) -> &ActorCell {
        &self.cell
    }

    /// Sends a letter. A peer that is gone gets none, and is told of as gone elsewhere.
    pub(super) fn send(&self, what: What) {
        let letter = Letter { from: self.from, to: self.to, what };
        if self.cell.send_message(letter).is_err() {
            tracing::debug!(peer = ?self.to, "a letter could not be sent");
        }
    }

    pub(super) fn tell(&self, message: Message, body: Option<Body>) {
        self.send(What::Message { message, body });
    }

    /// Gets a body out of the way of its letter. `None` if the peer is gone.
    pub(super) async fn body(&self, bytes: Vec<u8>) -> Option<Body> {
        if bytes.len() <= PIECE {
            return Some(Body::Here(ByteBuf::from(bytes)));
        }
        let (transfer, room) =
            (NEXT_TRANSFER.fetch_add(1, Ordering::Relaxed), Arc::new(Semaphore::new(PIECES)));
        self.lock().insert(transfer, room.clone());
        let _listed = Listed { post: self, transfer };
        for piece in bytes.chunks(PIECE) {
            // Closed with the peer's end.
            room.acquire().await.ok()?.forget();
            self.send(What::Piece { transfer, bytes: ByteBuf::from(piece) });
        }
        Some(Body::Transfer { transfer, length: bytes.len() as u64 })
    }

    /// A piece has come to the peer.
    pub(super) fn got(&self, transfer: u64) {
        if let Some(room) = self.lock().get(&transfer).filter(|room| room.available_permits() < PIECES) {
            room.add_permits(1);
        }
    }

    /// Ends what is on its way: the peer is gone.
    pub(super) fn close(&self) {
        self.lock().drain().for_each(|(_, room)| room.close());
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Arc<Semaphore>>> {
        self.transfers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A transfer in the list, until it is over.
struct Listed<'a> {
    post: &'a Post,
    transfer: u64,
}

impl Drop for Listed<'_> {
    fn drop(&mut self) {
        self.post.lock().remove(&self.transfer);
    }
}
