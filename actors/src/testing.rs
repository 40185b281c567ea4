//! Fakes for tests, here and in applications: models that answer without weights, faults as values for any loader, and
//! the check that nothing is left behind.
//!
//! A test of an application's supervision tree: its chat crashes in the middle of a load and of an answer, and goes on.
//!
//! ```
//! use model_actors::testing::{FakeLoader, Fault, FaultyLoader, quick_timings, shut_down};
//! use model_actors::{CallOptions, Event, Failure, GenerateText, Message, ModelSpec, System, TextToText};
//!
//! # tokio::runtime::Runtime::new().unwrap().block_on(async {
//! let (system, pool) = quick_timings();
//! let system = System::builder(system).pool::<TextToText>(pool.with_max_workers(1)).start().await?;
//! let loader = FaultyLoader::new(FakeLoader::default())
//!     .with_load_faults([Fault::Fail(Failure::failed("the disk is gone"))])
//!     .with_run_faults([Fault::None, Fault::Panic]);
//! // A run for each request: in a continuous one the second could join the first, and its fault would never come.
//! let chat = system.client::<TextToText>()?.register(ModelSpec::new("chat", loader).per_run())?;
//! let mut events = system.events();
//!
//! let ask = |text| chat.call(GenerateText::chat([Message::user(text)]), CallOptions::default());
//! assert_eq!(ask("before").await?.text, "before"); // the second load succeeded
//! assert_eq!(ask("after").await?.text, "after"); // on the replacement of the worker that crashed
//!
//! let mut told = Vec::new();
//! while let Ok(event) = events.try_recv() {
//!     match event {
//!         Event::StartFailed { .. } => told.push("start failed"),
//!         Event::WorkerCrashed { .. } => told.push("crashed"),
//!         Event::WorkerRestarted { .. } => told.push("restarted"),
//!         _ => {}
//!     }
//! }
//! assert_eq!(told, ["start failed", "crashed", "restarted"]);
//! let (report, leaks) = shut_down(&system).await;
//! assert!(report.is_clean() && leaks.is_empty(), "{leaks:?}");
//! # Ok::<(), model_actors::Error>(())
//! # }).unwrap();
//! ```
//!
//! The crates' own tests use [`TestSystem`], whose requests say what the model does.

#![allow(clippy::panic, clippy::expect_used, reason = "a test helper fails its test by panicking")]

mod gate;
mod hook;
mod fault;
mod fake;
mod act;
mod script;
mod kill;
mod leaks;
mod harness;
pub mod simulation;
#[cfg(feature = "cluster")]
mod cluster;

pub use act::{Act, Record, Scripted, ScriptedCapability, ScriptedRequest, StreamedScript};
#[cfg(feature = "cluster")]
pub use cluster::{ClusterCounts, ClusterPlant, run_cluster};
pub use fake::{Answers, FakeCapability, FakeLoader};
pub use fault::{Fault, FaultyLoader};
pub use gate::{Gate, Latch};
pub use harness::{TestSystem, Victim, wait_for};
pub use hook::{Fuse, HookedLoader};
pub use kill::kill;
pub use leaks::{Leak, quick_timings, shut_down};
pub use script::ScriptedLoader;
