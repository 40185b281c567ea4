//! Local AI models as supervised actors: the capabilities of [`model_actors`] on candle.
//!
//! An [`Engine`] runs models; [`Engine::builder`] is where to begin. This crate alone is enough for an application: it
//! re-exports the types of [`model_actors`] that stand in its signatures, and the crate itself and [`ractor`] as modules.
//! The [`guide`] goes from the first vector to operating it.
//!
//! The modules are listed in reading order, and each imports only those above it.

mod error;
pub mod limits;
mod secrets;
#[cfg(any(feature = "hub", feature = "image-urls"))]
mod http;
mod device;
mod hub_settings;
#[cfg(feature = "hub")]
mod hub;
mod source;
mod architecture;
mod language_model;
mod loader;
mod pickle;
mod kernels;
mod notes;
mod gguf;
mod weights;
mod tokens;
mod pooling;
mod large_stack;
mod structured;
mod generation;
mod image_input;
mod preprocessing;
mod resources;
mod registration;
mod models;
pub mod isolation;
mod handles;
mod engine;
pub mod guide;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
#[cfg(feature = "benchmarks")]
#[doc(hidden)]
pub mod benchmarks;

pub use model_actors;
pub use model_actors::ractor;
#[cfg(feature = "testing")]
pub use model_actors::testing;

pub use model_actors::{
    AnswerEnd, Batch, BatchKey, BatchLimits, Batching, BreakerState, Bytes, Cached, CallOptions, Capability,
    Cause, Client, Completion, Constraint, ContentPart, Cost, DescribeImage, Device, EmbedImages, EmbedInput,
    EmbedOutputs, EmbedPrompt, EmbedTexts, Embeddings, EmitError, ErrorKind, Event, EvictionReason, Failure,
    FailureKind, Fetch, FinishReason, Footprint, GenerateText, ImageEmbedding, ImageSource, Item, Lane,
    LeasedPicture, LoadContext, LoadStage, LoadStatus, Loader, MemoryStatus, Message, Model, ModelFacts,
    ModelHandle, ModelId, ModelKey, ModelSpec, ModelStatus, NoChunk, PaintImage, PaintStep, PartId, Picture,
    PoolConfig, PoolStatus, PrefixCache, PressureLevel, Priority, ProcessMemory, Prompt, QueueCapacity,
    RankedDocument, Ranking, RegisteredModel, ReplyStream, RequestId, RequestPhase, RerankDocuments,
    Reranking, RestartConfig, Role, Sampling, SamplingDefaults, ShutdownReport, SparseVector, StallLimits,
    Stopped, System, SystemBuilder, SystemConfig, SystemEnd, SystemState, SystemStatus, Tenant, TenantConfig,
    TenantStatus, TextChunk, TextEmbedding, TextToImage, TextToText, TextToken, TokenLogprob, TokenLogprobs,
    Tool, ToolCall, ToolChoice, Truncate, Usage, VectorArray, VectorRanges, Vision, VisionMessage, Weights,
    WhenFull, WorkerId, WorkerPhase, WorkerStatus,
};

#[cfg(feature = "cluster")]
pub use model_actors::{ClusterConfig, ClusterTls, PeerModelStatus, PeerStatus};

pub use device::ComputeDevice;
pub use engine::{Engine, EngineBuilder};
pub use error::{Error, Result};
pub use handles::image_embedding::ImageEmbedder;
pub use handles::reranking::Reranker;
pub use handles::text_embedding::TextEmbedder;
pub use handles::text_to_image::ImagePainter;
pub use handles::text_to_text::TextGenerator;
pub use handles::vision::ImageDescriber;
pub use hub_settings::{HubSettings, HubToken};
pub use image_input::{ImageInput, ImageSettings, UrlSettings};
pub use ipnet::IpNet;
pub use language_model::{ModelShape, PromptReading, TextsPerWorker, TransformersFamily, TransformersModel};
pub use limits::{GenerationLimits, ImageLimits};
pub use loader::{LoadOptions, StandaloneModel};
pub use models::image_embedding::ImageEmbeddingModel;
pub use models::reranking::RerankingModel;
pub use models::text_embedding::TextEmbeddingModel;
pub use models::text_to_image::TextToImageModel;
pub use models::text_to_text::TextGenerationModel;
pub use models::vision::{ExaminedImage, VisionModel};
pub use registration::{EngineCapability, IntoModelSpec, SourceSpec};
pub use resources::EngineResources;
pub use source::{ModelFiles, Source};

/// Compiles the programs in README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

/// Compiles the program after a move from fastembed.
#[cfg(doctest)]
#[doc = include_str!("../docs/from_fastembed.md")]
struct FromFastembed;
