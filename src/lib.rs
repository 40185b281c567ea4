//! Local AI models as supervised actors: the capabilities of [`model_actors`] on candle.
//!
//! The modules are listed in reading order, and each imports only those above it.

mod error;
pub mod limits;
mod secrets;
mod device;
#[cfg(feature = "hub")]
mod hub;
mod source;
mod families;
mod loader;
mod weights;
mod tokens;
mod kernels;
mod gguf;
mod pooling;
mod generation;
mod image_input;
mod pixels;
mod models;
mod capabilities;
mod engine;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;

pub use capabilities::image_embedding::ImageEmbedder;
pub use capabilities::text_embedding::TextEmbedder;
pub use capabilities::text_to_image::ImagePainter;
pub use capabilities::text_to_text::TextGenerator;
pub use capabilities::vision::ImageDescriber;
pub use device::ComputeDevice;
pub use engine::{Engine, EngineBuilder};
pub use error::{Error, Result};
#[cfg(feature = "hub")]
pub use hub::{HubSettings, HubToken};
pub use image_input::{ImageInput, ImageSettings, Network, UrlSettings};
pub use limits::{GenerationLimits, ImageLimits};
pub use loader::LoadOptions;
pub use models::image_embedding::ImageEmbeddingModel;
pub use models::text_embedding::TextEmbeddingModel;
pub use models::text_to_image::TextToImageModel;
pub use models::text_to_text::TextGenerationModel;
pub use models::vision::{ExaminedImage, VisionModel};
pub use source::Source;
