//! Faults of a child that no model can have by itself, for tests: bytes that are no frame, and a main thread that takes no
//! orders any more, or dies of them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use super::Writer;

static WRITER: OnceLock<Arc<Writer>> = OnceLock::new();
static STANDS_STILL: AtomicBool = AtomicBool::new(false);
static DIES: AtomicBool = AtomicBool::new(false);

/// Makes the connection known to [`write_garbage`].
pub(super) fn offer(writer: Arc<Writer>) {
    let _ = WRITER.set(writer);
}

/// Writes these bytes to the parent in place of a frame, on behalf of a faulty model. Does nothing outside a child.
pub fn write_garbage(bytes: &[u8]) {
    if let Some(writer) = WRITER.get() {
        writer.send_bytes(bytes);
    }
}

/// Has the child read nothing more and tell of no progress any more.
pub fn stop_reading() {
    STANDS_STILL.store(true, Ordering::Release);
}

/// Has the child die of the next message of its parent, before it is read.
pub fn die_when_asked() {
    DIES.store(true, Ordering::Release);
}

/// Stays here for ever once [`stop_reading`] was called, and dies once [`die_when_asked`] was.
pub(super) fn stand_still_if_asked() {
    if DIES.load(Ordering::Acquire) {
        std::process::abort();
    }
    while STANDS_STILL.load(Ordering::Acquire) {
        std::thread::park();
    }
}
