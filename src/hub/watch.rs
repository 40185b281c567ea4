//! Follows one transfer: passes its bytes on as a load's progress, and knows for how long none came.

use std::cell::Cell;
use std::time::{Duration, Instant};

use model_actors::{Bytes, LoadContext, LoadStage};

/// Follows one transfer.
pub(super) struct Watch<'a> {
    context: &'a LoadContext,
    last: Cell<Instant>,
}

impl<'a> Watch<'a> {
    pub(super) fn new(context: &'a LoadContext) -> Self {
        Self { context, last: Cell::new(Instant::now()) }
    }

    pub(super) fn should_stop(&self) -> bool {
        self.context.should_stop()
    }

    /// Time since the last byte came.
    pub(super) fn silence(&self) -> Duration {
        self.last.get().elapsed()
    }

    /// Starts the download stage, of so many bytes.
    pub(super) fn begin(&self, total: u64) {
        self.context.begin(LoadStage::Download, Bytes(total));
        self.last.set(Instant::now());
    }

    /// Counts bytes that came; 0 where another process receives them.
    pub(super) fn advance(&self, bytes: usize) {
        self.context.advance(Bytes(bytes as u64));
        self.last.set(Instant::now());
    }
}
