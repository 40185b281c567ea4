//! The typed handles that users hold, one file for each capability, with its registration.

mod calls;
pub(crate) mod text_embedding;
pub(crate) mod reranking;
pub(crate) mod text_to_text;
pub(crate) mod image_embedding;
pub(crate) mod vision;
pub(crate) mod text_to_image;
