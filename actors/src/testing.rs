//! Fakes for tests, here and in applications: a model that does what each request tells it to, faults
//! included, and a system that fails the test which leaves anything behind.

#![allow(clippy::panic, clippy::expect_used, reason = "a test helper fails its test by panicking")]

mod gate;
mod hook;
mod act;
mod script;
mod harness;
pub mod simulation;

pub use act::{Act, Record, Scripted, ScriptedCapability, ScriptedRequest, StreamedScript};
pub use gate::{Gate, Latch};
pub use harness::{Leak, TestSystem, Victim, wait_for};
pub use hook::{Fuse, HookedLoader};
pub use script::ScriptedLoader;
