//! Reads files of PyTorch, which are pickles: a small program that builds objects, beside the numbers of the tensors.
//! Here nothing is executed. The few instructions that describe tensors are followed, and whatever else a pickle asks
//! for is refused by its name. What comes of it is where in the file each tensor lies; the numbers are read by
//! `weights`, as those of any other file.
//!
//! Two forms are read: the archive that `torch.save` writes since version 1.6, whose entries are stored as they are,
//! and the older row of pickles with the numbers behind them.

mod machine;
mod tensors;
mod archive;
mod legacy;
#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]
mod tests;

use std::path::Path;

use crate::error::{Error, Result};
use crate::source;
pub(crate) use tensors::StoredTensor;

/// Maximum number of bytes of the pickles in a file, as of a header of safetensors.
const MAX_PICKLE: u64 = crate::limits::MAX_HEADER_BYTES;

/// The tensors of a file, with the places of their numbers.
///
/// # Errors
/// [`Error::InvalidPickle`] for anything that is no file of tensors; [`Error::UnreadableFile`].
pub(crate) fn read(path: &Path) -> Result<Vec<StoredTensor>> {
    use std::io::{Read as _, Seek as _};
    let unreadable = |source| Error::unreadable(path, &source);
    let mut file = source::open(path).map_err(unreadable)?;
    let size = file.metadata().map_err(unreadable)?.len();
    let mut first = Vec::new();
    file.by_ref().take(4).read_to_end(&mut first).map_err(unreadable)?;
    file.rewind().map_err(unreadable)?;
    let tensors = match first.as_slice() {
        b"PK\x03\x04" => archive::read(file, size),
        [0x80, ..] => legacy::read(file, size),
        _ => Err("it is neither an archive nor a pickle of PyTorch".to_owned()),
    };
    tensors.map_err(|reason| Error::InvalidPickle { file: path.to_owned(), reason })
}
