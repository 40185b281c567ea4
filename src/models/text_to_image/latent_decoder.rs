//! Decoders of latents into pictures, and encoders of pictures: the autoencoder in the folder `vae`, large or tiny, and beside it a tiny one in the
//! folder `taesd`, which a repository may have for previews.

use candle_core::{Device, Tensor};
use model_actors::{Bytes, LoadContext};

use super::autoencoder::{self, Autoencoder, AutoencoderConfig};
use super::layers::ScopedReader;
use super::noise::Noise;
use super::pipeline::Watch;
use super::repository::{Component, ComponentWeights, Repository, invalid};
use super::tiny_autoencoder::{self, Parts, TinyAutoencoder, TinyConfig};
use crate::error::{Error, Result};

const FOLDER: &str = autoencoder::COMPONENT.folder;

/// The tiny autoencoder in place of the large one.
const TINY: Component = Component { folder: FOLDER, file: Component::DIFFUSERS, is_loaded: |_| true };
/// The one that makes previews.
const PREVIEW: Component =
    Component { folder: "taesd/", file: Component::DIFFUSERS, is_loaded: tiny_autoencoder::is_decoder };

/// The decoders of a repository, which are not loaded.
pub(super) struct DecoderConfig {
    pub(super) latent_channels: usize,
    picture: Kind,
    preview: Option<TinyConfig>,
}

enum Kind {
    Large(AutoencoderConfig),
    Tiny(TinyConfig),
}

impl DecoderConfig {
    pub(super) fn read(repository: &Repository<'_>) -> Result<Self> {
        let class = repository.class_of(&format!("{FOLDER}config.json"))?;
        let picture = match class.as_deref() {
            Some(tiny_autoencoder::CLASS) => Kind::Tiny(TinyConfig::read(repository, FOLDER, Parts::Both)?),
            _ => Kind::Large(AutoencoderConfig::read(repository)?),
        };
        let latent_channels = match &picture {
            Kind::Large(config) => config.latent_channels,
            Kind::Tiny(config) => config.latent_channels,
        };
        let file = format!("{}config.json", PREVIEW.folder);
        let preview = match repository.files.optional(&file, repository.context)? {
            Some(_) => Some(TinyConfig::read(repository, PREVIEW.folder, Parts::Decoder)?),
            None => None,
        };
        let config = Self { latent_channels, picture, preview };
        if let Some(preview) = &config.preview {
            let (tiny, own) = ((preview.latent_channels, preview.scale()), (latent_channels, config.scale()));
            if tiny != own {
                let reason = format!(
                    "latents of {} channels and {} pixels a side are those of its {}, and of {} channels and {} \
                     pixels those of its {FOLDER}",
                    tiny.0, tiny.1, PREVIEW.folder, own.0, own.1
                );
                return Err(invalid(&repository.path, reason));
            }
        }
        Ok(config)
    }

    /// Pixels along a side for each latent.
    pub(super) fn scale(&self) -> usize {
        match &self.picture {
            Kind::Large(config) => config.scale(),
            Kind::Tiny(config) => config.scale(),
        }
    }

    /// Memory that decoding to so many pixels needs besides the weights. Previews are smaller than pictures.
    pub(super) fn scratch(&self, pixels: usize) -> Bytes {
        let picture = match &self.picture {
            Kind::Large(config) => config.scratch(pixels),
            Kind::Tiny(config) => config.scratch(pixels),
        };
        self.preview.as_ref().map_or(picture, |preview| picture.max(preview.scratch(pixels)))
    }

    /// The components that have weights.
    pub(super) fn components(&self) -> impl Iterator<Item = Component> {
        let picture = match &self.picture {
            Kind::Large(_) => autoencoder::COMPONENT,
            Kind::Tiny(_) => TINY,
        };
        std::iter::once(picture).chain(self.preview.as_ref().map(|_| PREVIEW))
    }

    pub(super) fn load(
        &self,
        weights: &ComponentWeights,
        device: &Device,
        context: &LoadContext,
    ) -> Result<Decoder> {
        let reader = weights.of(FOLDER)?.reader("", device, context);
        let root = ScopedReader::root(&reader);
        let picture = match &self.picture {
            Kind::Large(config) => Loaded::Large(Box::new(config.load(&root)?)),
            Kind::Tiny(config) => Loaded::Tiny(config.load(&root, Parts::Both)?),
        };
        let preview = match &self.preview {
            Some(config) => {
                let reader = weights.of(PREVIEW.folder)?.reader("", device, context);
                Some(config.load(&ScopedReader::root(&reader), Parts::Decoder)?)
            }
            None => None,
        };
        Ok(Decoder { picture, preview })
    }
}

/// Loaded decoders.
pub(super) struct Decoder {
    picture: Loaded,
    preview: Option<TinyAutoencoder>,
}

enum Loaded {
    Large(Box<Autoencoder>),
    Tiny(TinyAutoencoder),
}

impl Decoder {
    /// True if images can be encoded too.
    pub(super) fn has_encoder(&self) -> bool {
        match &self.picture {
            Loaded::Large(autoencoder) => autoencoder.has_encoder(),
            Loaded::Tiny(autoencoder) => autoencoder.has_encoder(),
        }
    }

    /// Draws latents as a scheduler has them, `(1, channels, height / scale, width / scale)`, for colours `(1, 3, height,
    /// width)` from -1 to 1.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] for a model without an encoder.
    pub(super) fn encode(&self, colours: &Tensor, noise: &mut Noise, watch: &Watch<'_>) -> Result<Tensor> {
        let encoded = match &self.picture {
            Loaded::Large(autoencoder) => autoencoder.encode(colours, noise, watch)?,
            Loaded::Tiny(autoencoder) => autoencoder.encode(colours, watch)?,
        };
        encoded.ok_or_else(|| {
            Error::InvalidInput(
                "this model begins with no image: its files have no encoder of images that is read here"
                    .into(),
            )
        })
    }

    /// Decodes latents as the scheduler left them, `(batch, channels, height, width)`, to colours `(batch, 3,
    /// height · scale, width · scale)`.
    pub(super) fn decode(&self, latents: &Tensor, watch: &Watch<'_>) -> Result<Tensor> {
        match &self.picture {
            Loaded::Large(autoencoder) => autoencoder.decode(latents, watch),
            Loaded::Tiny(autoencoder) => autoencoder.decode(latents, watch),
        }
    }

    /// The same for a preview.
    pub(super) fn decode_preview(&self, latents: &Tensor, watch: &Watch<'_>) -> Result<Tensor> {
        match &self.preview {
            Some(autoencoder) => autoencoder.decode(latents, watch),
            None => self.decode(latents, watch),
        }
    }
}
