//! Parts of a pipeline, each alone and on the calling thread: what `benches/models.rs` compares with those of
//! candle-transformers.

use std::path::Path;

use candle_core::{Device, Tensor};
use model_actors::LoadContext;

use super::autoencoder::{self, Autoencoder, AutoencoderConfig};
use super::layers::ScopedReader;
use super::pipeline::Watch;
use super::repository::{Component, ComponentWeights, Repository};
use super::t5::{self, T5, T5Config};
use super::{CAPABILITY, FAMILIES};
use crate::error::Result;
use crate::source::Files;

const ENCODER: Component =
    Component { folder: "text_encoder_2/", file: Component::TRANSFORMERS, is_loaded: t5::is_loaded };

/// Reads one component of a repository.
fn read<P>(
    folder: &Path,
    component: Component,
    load: impl FnOnce(&Repository<'_>, &ScopedReader<'_>) -> Result<P>,
) -> Result<P> {
    let (files, context) = (Files::directory(folder), LoadContext::detached(&"part".into()));
    let repository = Repository::open(&files, FAMILIES, CAPABILITY, &context)?;
    let weights = ComponentWeights::open(vec![component], &files, &context)?;
    let reader = weights.of(component.folder)?.reader("", &Device::Cpu, &context);
    load(&repository, &ScopedReader::root(&reader))
}

/// The encoder of prompts of Stable Diffusion 3 and FLUX.
pub struct PromptT5(T5);

impl PromptT5 {
    /// Reads `text_encoder_2` of a repository, for prompts that are padded to so many tokens.
    ///
    /// # Errors
    /// Those of a load.
    pub fn load(folder: &Path, tokens: usize) -> Result<Self> {
        read(folder, ENCODER, |repository, reader| {
            Ok(Self(T5Config::read(repository, ENCODER.folder, "tokenizer_2/")?.load(reader, tokens)?))
        })
    }

    /// `(1, tokens, width)`.
    ///
    /// # Errors
    /// [`crate::Error::Compute`].
    pub fn encode(&self, prompt: &str) -> Result<Tensor> {
        self.0.encode(&[prompt], &Watch(&|| true))
    }
}

/// The autoencoder's decoder.
pub struct ImageDecoder(Autoencoder);

impl ImageDecoder {
    /// Reads `vae` of a repository.
    ///
    /// # Errors
    /// Those of a load.
    pub fn load(folder: &Path) -> Result<Self> {
        read(folder, autoencoder::COMPONENT, |repository, reader| {
            Ok(Self(AutoencoderConfig::read(repository)?.load(reader)?))
        })
    }

    /// Latents of `(1, channels, height, width)` to an image.
    ///
    /// # Errors
    /// [`crate::Error::Compute`].
    pub fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        self.0.decode(latents, &Watch(&|| true))
    }
}
