//! A guide, a chapter a module; each stands alone, and its programs are compiled and run as tests.
//!
//! | chapter | for |
//! |---|---|
//! | [`first_vector`] | a program that embeds sentences |
//! | [`chat_and_streams`] | answers as they are written, conversations, stopping |
//! | [`models`] | where models come from, registering, loads, the hub |
//! | [`memory_and_eviction`] | what is in memory, why, and when it goes |
//! | [`own_capability`] | work that this crate does not ship |
//! | [`supervision`] | what happens when something breaks, and testing it |
//! | [`operating`] | settings, readiness, metrics, logs, overload, the end |
//! | [`coming_from`] | fastembed, Ollama, a Python server |

#[doc = include_str!("../docs/guide/first_vector.md")]
pub mod first_vector {}
#[doc = include_str!("../docs/guide/chat_and_streams.md")]
pub mod chat_and_streams {}
#[doc = include_str!("../docs/guide/models.md")]
pub mod models {}
#[doc = include_str!("../docs/guide/memory_and_eviction.md")]
pub mod memory_and_eviction {}
#[doc = include_str!("../docs/guide/own_capability.md")]
pub mod own_capability {}
#[doc = include_str!("../docs/guide/supervision.md")]
pub mod supervision {}
#[doc = include_str!("../docs/guide/operating.md")]
pub mod operating {}
#[doc = include_str!("../docs/guide/coming_from.md")]
pub mod coming_from {}
