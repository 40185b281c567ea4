//! Memory and time over all pools: who waits for room, and who has to go to make it.

pub mod eviction;
pub mod room;
