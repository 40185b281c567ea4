//! The server over real sockets: what OpenAI's clients read, what is refused, what faults look like from outside, and
//! how it ends. All in one program, so that it is linked once.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod client;
mod harness;
mod answers;
mod structured;
mod typed_client;
mod edits;
mod refusals;
mod faults;
mod process;
mod traces;
