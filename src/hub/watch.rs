//! Follows one transfer: passes its bytes on as a load's progress, and remembers when the last one came.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use hf_hub::progress::{DownloadEvent, ProgressEvent, ProgressHandler};
use model_actors::{Bytes, LoadContext, LoadStage};

/// Follows one transfer.
#[derive(Clone)]
pub(super) struct Watch(Arc<Watched>);

struct Watched {
    context: LoadContext,
    state: Mutex<Transfer>,
}

#[derive(Clone, Copy)]
pub(super) struct Transfer {
    /// Bytes are on their way; otherwise the cache had them.
    pub(super) started: bool,
    /// As announced; 0 if nothing was.
    pub(super) total: u64,
    pub(super) done: u64,
    pub(super) last: Instant,
}

impl Watch {
    pub(super) fn new(context: &LoadContext) -> Self {
        let state = Transfer { started: false, total: 0, done: 0, last: Instant::now() };
        Self(Arc::new(Watched { context: context.clone(), state: Mutex::new(state) }))
    }

    pub(super) fn should_stop(&self) -> bool {
        self.0.context.should_stop()
    }

    pub(super) fn read(&self) -> Transfer {
        *self.state()
    }

    fn state(&self) -> MutexGuard<'_, Transfer> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reached(&self, done: u64) {
        let mut state = self.state();
        let more = done.saturating_sub(state.done);
        if more > 0 {
            state.done = done;
            state.last = Instant::now();
            self.0.context.advance(Bytes(more));
        }
    }
}

impl ProgressHandler for Watch {
    fn on_progress(&self, event: &ProgressEvent) {
        let ProgressEvent::Download(event) = event else { return };
        match event {
            DownloadEvent::Start { total_bytes, .. } => {
                let mut state = self.state();
                (state.started, state.total, state.last) = (true, *total_bytes, Instant::now());
                self.0.context.begin(LoadStage::Download, Bytes(*total_bytes));
            }
            DownloadEvent::Progress { files } => {
                self.reached(files.iter().map(|file| file.bytes_completed).max().unwrap_or(0));
            }
            DownloadEvent::AggregateProgress { bytes_completed, .. } => self.reached(*bytes_completed),
            DownloadEvent::Complete => {}
        }
    }
}
