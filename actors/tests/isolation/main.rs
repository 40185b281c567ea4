//! Models in processes of their own: they serve as those on threads do, and whatever such a process does to itself or to its
//! connection, its callers get one typed answer each, nobody else notices, and nothing is left behind.
//!
//! Children are this executable, so its `main` begins as an application's does, and there is no test harness.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
#![cfg_attr(not(target_os = "linux"), allow(unused, reason = "these tests look into /proc"))]

#[cfg(target_os = "linux")]
mod model;
#[cfg(target_os = "linux")]
mod serving;
#[cfg(target_os = "linux")]
mod deaths;
#[cfg(target_os = "linux")]
mod idle;
#[cfg(target_os = "linux")]
mod ends;
#[cfg(target_os = "linux")]
mod helpers;
#[cfg(target_os = "linux")]
mod soak;
#[cfg(target_os = "linux")]
mod tests;

#[cfg(target_os = "linux")]
use tests::main;

#[cfg(not(target_os = "linux"))]
fn main() {}
