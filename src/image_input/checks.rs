//! Refusals that several of the modules beside it give.

use crate::error::{Error, Result};

/// Stands in errors for an address of which nothing can be shown.
pub(crate) const NO_ADDRESS: &str = "(not an address)";

/// Refuses what is over a limit.
pub(crate) fn too_large(what: &'static str, found: u64, limit: u64) -> Result<()> {
    if found > limit { Err(Error::ImageTooLarge { what: what.into(), found, limit }) } else { Ok(()) }
}

/// Error for an address that may not be opened, named by as much of it as may be shown.
pub(crate) fn refused(address: &str, reason: &str) -> Error {
    Error::AddressRefused { address: address.to_owned(), reason: reason.to_owned() }
}
