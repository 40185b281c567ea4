//! The format in which requests, chunks, outputs and errors leave the process: a version and MessagePack with named
//! fields. A reader skips fields that it does not know and takes the default of those that are missing, so that a newer
//! peer reads an older one's messages. Which values travel is said by their types; carrying them is left to whoever has
//! a connection.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::Cause;

pub mod floats;

/// Version of the format. It goes up when messages change in a way that an older peer would misread; a field that is
/// added with a default is no such change.
pub const VERSION: u16 = 1;

/// Bytes of the version before each message.
const HEADER: usize = size_of::<u16>();

/// Depth to which the values of a message may be nested. Those of the shipped capabilities have less than ten levels.
const MAX_DEPTH: usize = 128;

/// Reason for which a message cannot be written or read.
///
/// ```
/// use model_actors::wire::{WireError, decode};
/// assert!(matches!(decode::<u8>(&[0, 99, 7]), Err(WireError::Version { found: 99, .. })));
/// assert!(matches!(decode::<u8>(&[0]), Err(WireError::Malformed { .. })));
/// ```
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// The value cannot be written: an image that is not decoded, say.
    #[error("the message cannot be written: {cause}")]
    Unwritable {
        /// The reason.
        cause: Cause,
    },
    /// The bytes are no message of this type.
    #[error("the bytes are no message: {cause}")]
    Malformed {
        /// The reason.
        cause: Cause,
    },
    /// The message is of a newer peer that this one cannot read.
    #[error(
        "the message has version {found} of the format, of which this build reads up to {newest}; update it"
    )]
    Version {
        /// The version of the message.
        found: u16,
        /// The newest version that can be read.
        newest: u16,
    },
}

/// Writes a value with the version of the format.
///
/// ```
/// use model_actors::{EmbedTexts, wire};
/// let request = EmbedTexts::from("The cat sleeps.");
/// let bytes = wire::encode(&request)?;
/// assert_eq!(wire::decode::<EmbedTexts>(&bytes)?, request);
/// # Ok::<(), wire::WireError>(())
/// ```
///
/// # Errors
/// [`WireError::Unwritable`].
pub fn encode<T: Serialize + ?Sized>(value: &T) -> Result<Vec<u8>, WireError> {
    let mut bytes = VERSION.to_be_bytes().to_vec();
    append(&mut bytes, value)?;
    Ok(bytes)
}

/// Reads a value that [`encode`] has written, here or elsewhere, now or by an older version. Whatever the bytes, it fails
/// at worst, and takes no more memory than in proportion to them.
///
/// # Errors
/// [`WireError::Version`] and [`WireError::Malformed`].
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, WireError> {
    let malformed = || WireError::Malformed { cause: Cause::new("it ends within the version") };
    let (version, body) = bytes.split_first_chunk::<HEADER>().ok_or_else(malformed)?;
    match u16::from_be_bytes(*version) {
        1..=VERSION => read(body),
        found => Err(WireError::Version { found, newest: VERSION }),
    }
}

/// Writes a value without a version, for a connection whose ends have told each other theirs.
pub(crate) fn append<T: Serialize + ?Sized>(bytes: &mut Vec<u8>, value: &T) -> Result<(), WireError> {
    rmp_serde::encode::write_named(bytes, value)
        .map_err(|error| WireError::Unwritable { cause: Cause::of(&error) })
}

/// Reads a value without a version.
pub(crate) fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, WireError> {
    let mut deserializer = rmp_serde::Deserializer::from_read_ref(bytes);
    deserializer.set_max_depth(MAX_DEPTH);
    T::deserialize(&mut deserializer).map_err(|error| WireError::Malformed { cause: Cause::of(&error) })
}
