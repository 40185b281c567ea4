//! The ways in which a process of a model ends before its parent wants it to, as data, and the names of signals.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The end of a model's process, which the [`Cause`](crate::Cause) of an error has as its data.
///
/// ```
/// use model_actors::isolation::ProcessEnd;
/// use model_actors::{Cause, Error};
///
/// fn is_out_of_memory(error: &Error) -> bool {
///     let end = error.cause().and_then(Cause::data::<ProcessEnd>);
///     matches!(end, Some(ProcessEnd::Signal { number: 9 }))
/// }
///
/// let end = ProcessEnd::Exited { status: 3 };
/// assert_eq!(Cause::with_data(&end).message(), "its process exited with status 3");
/// ```
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ProcessEnd {
    /// A signal ended it: a fault of its own, or the kernel, when memory runs out.
    #[error("its process was ended by {}", name_of(*number))]
    Signal {
        /// The signal's number.
        number: i32,
    },
    /// It exited by itself.
    #[error("its process exited with status {status}")]
    Exited {
        /// The exit status.
        status: i32,
    },
    /// It sent what makes no sense, and was killed.
    #[error("its process broke the protocol: {reason}")]
    Protocol {
        /// The fault in what it sent.
        reason: String,
    },
    /// It went on with a run after nobody waited for any of its answers, and was killed.
    #[error("its process was killed: it ran on for {} ms after nobody waited for its answers", limit.as_millis())]
    RanOn {
        /// The time that it had: [`ProcessOptions::cancel_limit`](super::ProcessOptions::cancel_limit).
        limit: Duration,
    },
    /// It was killed because its worker was given up.
    #[error("its process was killed, as its worker was given up")]
    GivenUp,
    /// It is gone, and how is not known.
    #[error("its process is gone")]
    Unknown,
}

/// The signals that end a process, with their reasons. The numbers are the same on all systems but those of `SIGBUS` and
/// `SIGSYS`.
fn name_of(number: i32) -> String {
    #[cfg(unix)]
    {
        use rustix::process::Signal;
        const NAMES: [(Signal, &str); 12] = [
            (Signal::KILL, "SIGKILL, which the kernel sends when memory runs out"),
            (Signal::SEGV, "SIGSEGV, a fault of memory"),
            (Signal::BUS, "SIGBUS, a fault of memory or of a mapped file"),
            (Signal::ABORT, "SIGABRT, an abort"),
            (Signal::ILL, "SIGILL, an instruction that the processor lacks"),
            (Signal::FPE, "SIGFPE, a fault of arithmetic"),
            (Signal::TRAP, "SIGTRAP"),
            (Signal::SYS, "SIGSYS, a system call that is not allowed"),
            (Signal::TERM, "SIGTERM"),
            (Signal::INT, "SIGINT"),
            (Signal::HUP, "SIGHUP"),
            (Signal::XCPU, "SIGXCPU, a limit on time"),
        ];
        if let Some((_, name)) = NAMES.iter().find(|(known, _)| known.as_raw() == number) {
            return (*name).to_owned();
        }
    }
    format!("signal {number}")
}
