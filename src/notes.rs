//! Notes of the tensors that a load has read, and the refusal of those that it has not.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use crate::error::{Error, Result};
use crate::source::Unread;

/// Names of the tensors that were read.
#[derive(Debug, Default)]
pub(crate) struct Notes(Mutex<HashSet<String>>);

impl Notes {
    /// Notes that a tensor was read, or is known not to be needed.
    pub(crate) fn add(&self, tensor: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(tensor.to_owned());
    }

    /// Refuses a tensor that is not noted and may have an effect, unless `unread` allows it.
    ///
    /// # Errors
    /// [`Error::UnreadTensor`] names the first in the order of names.
    pub(crate) fn check<'a>(
        &self,
        unread: Unread,
        tensors: impl Iterator<Item = &'a str>,
        has_no_effect: impl Fn(&str) -> bool,
    ) -> Result<()> {
        if unread == Unread::Allowed {
            return Ok(());
        }
        let read = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let left: Vec<&str> =
            tensors.filter(|tensor| !read.contains(*tensor) && !has_no_effect(tensor)).collect();
        match left.iter().min() {
            Some(first) => Err(Error::UnreadTensor { tensor: (*first).to_owned(), others: left.len() - 1 }),
            None => Ok(()),
        }
    }
}
