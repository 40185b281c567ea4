//! Errors of the hub, which name the repository and the file but never an address, because a redirect's may
//! carry a signature.

use std::time::Duration;

use model_actors::Bytes;
use reqwest::header::{HeaderMap, RETRY_AFTER};
use reqwest::{Response, StatusCode};

use crate::error::{Error, Result};
use crate::http::innermost;
use crate::limits::file_bytes;

/// A file of a repository, as errors name it.
#[derive(Clone, Copy)]
pub(super) struct FileName<'a> {
    pub(super) repository: &'a str,
    pub(super) file: &'a str,
}

impl FileName<'_> {
    /// The transfer failed for this reason.
    pub(super) fn failed(self, reason: impl Into<String>) -> Error {
        let (repository, file) = self.owned();
        Error::TransferFailed { repository, file, reason: reason.into() }
    }

    /// Refuses a content that is longer than a file of such a name may be.
    pub(super) fn check_length(self, length: u64) -> Result<()> {
        match file_bytes(self.file) {
            Some(most) if length > most => {
                Err(self.failed(format!("it has {length} bytes; at most {most} are allowed")))
            }
            _ => Ok(()),
        }
    }

    /// The cache cannot be read or written.
    pub(super) fn unwritable(self, error: std::io::Error) -> Error {
        self.failed(format!("the cache: {error}"))
    }

    /// The hub's answer is neither the file nor that there is none.
    pub(super) fn refused(self, answer: &Response) -> Error {
        let (repository, file) = self.owned();
        match answer.status() {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                Error::AccessDenied { repository, status: answer.status().as_u16() }
            }
            StatusCode::TOO_MANY_REQUESTS => {
                Error::RateLimited { retry_after: retry_after(answer.headers()) }
            }
            status => Error::HubFailed { repository, file, status: status.as_u16() },
        }
    }

    /// No answer came.
    pub(super) fn unanswered(self, error: reqwest::Error) -> Error {
        let unreachable = error.is_connect() || error.is_timeout();
        let reason = innermost(&error.without_url());
        let (repository, file) = self.owned();
        match unreachable {
            true => Error::HubUnreachable { repository, file, reason },
            false => Error::TransferFailed { repository, file, reason },
        }
    }

    pub(super) fn truncated(self, expected: u64, actual: u64) -> Error {
        let (repository, file) = self.owned();
        Error::TransferTruncated { repository, file, expected: Bytes(expected), actual: Bytes(actual) }
    }

    pub(super) fn mismatch(self) -> Error {
        let (repository, file) = self.owned();
        Error::ChecksumMismatch { repository, file }
    }

    pub(super) fn stalled(self, after: Duration) -> Error {
        let (repository, file) = self.owned();
        Error::TransferStalled { repository, file, after }
    }

    pub(super) fn not_cached(self) -> Error {
        let (repository, file) = self.owned();
        Error::NotCached { repository, file }
    }

    fn owned(self) -> (String, String) {
        (self.repository.to_owned(), self.file.to_owned())
    }
}

/// Seconds; servers that name a date are asked again without a delay of their own.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok().map(Duration::from_secs)
}
