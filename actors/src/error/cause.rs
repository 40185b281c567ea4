//! The reason behind an error, as plain data: a sentence and, where the reason was an error that serialises,
//! that error as JSON text. It can be sent to another process and read there.

use std::any::Any;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// The reason behind an error: a sentence and, optionally, the original error as data. Cheap to clone.
///
/// The data is kept as JSON text, so a cause passes unchanged through any serde format.
///
/// ```
/// use model_actors::Cause;
///
/// #[derive(Debug, PartialEq, thiserror::Error, serde::Serialize, serde::Deserialize)]
/// #[error("the prompt has {tokens} tokens; at most {limit} are allowed")]
/// struct TooLong { tokens: usize, limit: usize }
///
/// let cause = Cause::with_data(&TooLong { tokens: 9, limit: 8 });
/// assert_eq!(cause.message(), "the prompt has 9 tokens; at most 8 are allowed");
/// assert_eq!(cause.data(), Some(TooLong { tokens: 9, limit: 8 }));
/// assert_eq!(Cause::new("bad header").data::<TooLong>(), None);
/// ```
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cause {
    message: Arc<str>,
    data: Option<Arc<str>>,
}

impl Cause {
    /// A reason in words.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into().into(), data: None }
    }

    /// The message of an error, with those of its sources that it does not contain already.
    ///
    /// ```
    /// use model_actors::Cause;
    /// let error = std::io::Error::other("the disk is full");
    /// assert_eq!(Cause::of(&error).message(), "the disk is full");
    /// ```
    pub fn of(error: &(impl std::error::Error + ?Sized)) -> Self {
        let mut message = error.to_string();
        let mut source = error.source();
        while let Some(error) = source {
            let words = error.to_string();
            if !message.contains(&words) {
                message = format!("{message}: {words}");
            }
            source = error.source();
        }
        Self::new(message)
    }

    /// As [`Self::of`], with the error itself as data. An error that cannot be written as JSON is kept in
    /// words alone.
    pub fn with_data(error: &(impl std::error::Error + Serialize)) -> Self {
        let data = serde_json::to_string(error).ok();
        Self { data: data.map(Into::into), ..Self::of(error) }
    }

    /// The message of a panic. What the panic was raised with is dropped here, and a panic in that is ignored.
    pub(crate) fn of_panic(panic: Box<dyn Any + Send>) -> Self {
        let cause = Self::of_payload(&*panic);
        if let Err(another) = catch_unwind(AssertUnwindSafe(|| drop(panic))) {
            // It may do the same again, for ever.
            std::mem::forget(another);
        }
        cause
    }

    /// The message of a panic that was raised with this.
    pub(crate) fn of_payload(payload: &(dyn Any + Send)) -> Self {
        let words = payload.downcast_ref::<&str>().copied();
        let words = words.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
        Self::new(format!("it panicked: {}", words.unwrap_or("with a value that is not text")))
    }

    /// The reason in words.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The original error, if it was kept and is of this type.
    pub fn data<T: DeserializeOwned>(&self) -> Option<T> {
        serde_json::from_str(self.data.as_deref()?).ok()
    }
}

impl From<String> for Cause {
    fn from(message: String) -> Self {
        Self::new(message)
    }
}

impl From<&str> for Cause {
    fn from(message: &str) -> Self {
        Self::new(message)
    }
}

impl From<std::io::Error> for Cause {
    fn from(error: std::io::Error) -> Self {
        Self::of(&error)
    }
}

impl From<Box<dyn std::error::Error + Send + Sync>> for Cause {
    fn from(error: Box<dyn std::error::Error + Send + Sync>) -> Self {
        Self::of(&*error)
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.message)
    }
}

impl fmt::Debug for Cause {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

impl std::error::Error for Cause {}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{words}")]
    struct Outer {
        words: &'static str,
        source: std::io::Error,
    }

    #[test]
    fn a_cause_says_the_whole_chain_and_nothing_twice() {
        let source = || std::io::Error::other("no space");
        let outer = Outer { words: "cannot write", source: source() };
        assert_eq!(Cause::of(&outer).message(), "cannot write: no space");
        let outer = Outer { words: "cannot write: no space", source: source() };
        assert_eq!(Cause::of(&outer).message(), "cannot write: no space");
    }
}
