//! The model families, one folder for each capability. A new family is one file in its capability's folder and one line in
//! that capability's list.

mod config_file;
mod model_sampling;
mod generation_config;
mod gguf_text;
pub(crate) mod transformer;
mod peft;
mod passes;
mod answers;
mod token_batch;
mod text_runs;
pub(crate) mod towers;
pub(crate) mod decoder;
mod t5;
mod transformers;
mod continuous_batching;
pub(crate) mod text_embedding;
pub(crate) mod reranking;
pub(crate) mod text_to_text;
pub(crate) mod image_embedding;
pub(crate) mod vision;
pub(crate) mod text_to_image;
#[cfg(test)]
#[path = "../tests/common/folders.rs"]
mod folders;
