//! The memory that the images of all requests share. A request takes its room in it before it decodes, all at
//! once and in the order of asking; the parent tells how much that is.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use model_actors::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::{Error, Result};

/// Bytes of a unit of room: a semaphore counts in 32 bits.
const UNIT: u64 = 1024;

fn units(bytes: u64) -> u32 {
    u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX)
}

#[derive(Debug)]
pub(crate) struct ImageMemory {
    limit: Bytes,
    /// In units.
    left: Arc<Semaphore>,
}

impl ImageMemory {
    pub(crate) fn new(limit: Bytes) -> Self {
        Self { limit, left: Arc::new(Semaphore::new(units(limit.0) as usize)) }
    }

    /// Takes room for so many bytes, or all of it for more. Waits so long, or not at all if that is zero.
    ///
    /// # Errors
    /// [`Error::NoRoomForImages`].
    pub(crate) async fn room(&self, bytes: u64, patience: Duration) -> Result<ImagePermit> {
        let units = units(bytes).min(units(self.limit.0));
        let left = Arc::clone(&self.left);
        let permit = if patience.is_zero() {
            left.try_acquire_many_owned(units).ok()
        } else {
            tokio::time::timeout(patience, left.acquire_many_owned(units))
                .await
                .ok()
                .and_then(|permit| permit.ok())
        };
        let permit = permit.ok_or_else(|| self.none(patience))?;
        Ok(ImagePermit(Arc::new(Mutex::new(permit))))
    }

    /// True if nothing is left. So it is while anybody waits, because the first who does takes what comes.
    pub(crate) fn is_short(&self) -> bool {
        self.left.available_permits() == 0
    }

    pub(crate) fn none(&self, after: Duration) -> Error {
        Error::NoRoomForImages { limit: self.limit, after }
    }
}

/// A part of the memory for images. Goes back when the last clone is dropped: those of the decoders that
/// still work for it, and those of the request's pictures.
#[derive(Debug, Clone)]
pub(crate) struct ImagePermit(Arc<Mutex<OwnedSemaphorePermit>>);

impl ImagePermit {
    /// Gives back what is over so many bytes.
    pub(crate) fn shrink(&self, bytes: u64) {
        let mut permit = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let excess = permit.num_permits().saturating_sub(units(bytes) as usize);
        drop(permit.split(excess));
    }
}
