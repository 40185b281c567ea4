//! The standard library with shuttle's locks in it. The tests name this crate `std`, and so include the production files
//! as they are: `use std::sync::Mutex` there is shuttle's, each use of which is a step whose turn shuttle chooses. Their
//! `tokio` is shuttle's by the dependency's name. 64-bit atomics stay the real ones: they count and measure, and nothing is
//! decided by them.

pub use ::std::*;

/// As `std::sync`.
pub mod sync {
    pub use ::std::sync::*;
    pub use shuttle::sync::{Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};

    /// As `std::sync::atomic`.
    pub mod atomic {
        pub use ::std::sync::atomic::*;
        pub use shuttle::sync::atomic::{AtomicBool, AtomicUsize};
    }
}
