//! The typed handles that users hold, one file for each capability.

pub(crate) mod text_embedding;
