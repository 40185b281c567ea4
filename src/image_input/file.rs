//! An image's file, read within its limit. What is no regular file (a pipe, a device) is refused, because reading it
//! may never end.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use crate::error::{Error, Result};
use crate::image_input::too_large;
use crate::limits::ImageLimits;

/// The file's bytes.
///
/// # Errors
/// [`Error::UnreadableFile`], [`Error::ImageTooLarge`].
pub(crate) fn read(path: &Path, limits: &ImageLimits) -> Result<Vec<u8>> {
    let unreadable = |source| Error::UnreadableFile { path: path.to_owned(), source };
    let limit = limits.encoded.0;
    // Before it is opened, since opening a pipe waits for its writer.
    let metadata = std::fs::metadata(path).map_err(unreadable)?;
    if !metadata.is_file() {
        return Err(unreadable(io::Error::other("it is no regular file")));
    }
    too_large("bytes", metadata.len(), limit)?;
    let mut bytes = Vec::new();
    // It may grow while it is read.
    File::open(path)
        .map_err(unreadable)?
        .take(limit.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(unreadable)?;
    too_large("bytes", bytes.len() as u64, limit)?;
    Ok(bytes)
}
