//! Stable Diffusion 1.5 and 2.1 (Rombach et al., arXiv 2112.10752), SD-Turbo, latent consistency models (Luo et al.,
//! arXiv 2310.04378), and other models of `StableDiffusionPipeline` with the same components: one CLIP text encoder, a
//! UNet, an autoencoder. The safety checker of some repositories is not run. The reference is diffusers.

use candle_core::{Device, Tensor};
use model_actors::{Bytes, LoadContext};

use super::clip::{self, Pooling, PromptEncoder, PromptEncoderConfig};
use super::latent_decoder::{Decoder, DecoderConfig};
use super::layers::ScopedReader;
use super::noise::Noise;
use super::pipeline::{
    Architecture, Conditioning, Defaults, LatentSpace, Pipeline, Read, Scheduler, Settings, Watch,
};
use super::repository::{Component, ComponentWeights, Repository, invalid};
use super::schedule::{LCM_STEPS, Schedule};
use super::unet::{self, Unet, UnetConfig};
use crate::architecture::Family;
use crate::error::{Error, Result};

/// The family's entry in the list.
pub(super) const FAMILY: Family<Read> =
    Family { model_type: "StableDiffusionPipeline", architectures: &[], read: |_, _| Ok(read) };

/// The same for repositories that paint anew what a mask says, whose UNet may take the mask and the image beside the latents.
pub(super) const FAMILY_INPAINT: Family<Read> =
    Family { model_type: "StableDiffusionInpaintPipeline", architectures: &[], read: |_, _| Ok(read) };

/// The entry of latent consistency models, which take the guidance as an input.
pub(super) const FAMILY_LCM: Family<Read> =
    Family { model_type: "LatentConsistencyModelPipeline", architectures: &[], read: |_, _| Ok(read_lcm) };

const ENCODER: Component =
    Component { folder: "text_encoder/", file: Component::TRANSFORMERS, is_loaded: clip::is_loaded };

/// Configurations of the components.
struct StableDiffusion {
    encoder: PromptEncoderConfig,
    network: Network,
}

fn read(repository: &Repository<'_>) -> Result<Box<dyn Architecture>> {
    let network = Network::read(repository)?;
    checked(repository, Network { schedule: network.schedule.corrected(), ..network })
}

fn read_lcm(repository: &Repository<'_>) -> Result<Box<dyn Architecture>> {
    checked(repository, Network::read(repository)?)
}

fn checked(repository: &Repository<'_>, network: Network) -> Result<Box<dyn Architecture>> {
    let encoder = PromptEncoderConfig::read(repository, ENCODER.folder, "tokenizer/")?;
    let (has, takes) = (encoder.width(), network.unet.cross_attention_width());
    if has != takes {
        let reason = format!("its cross_attention_dim is {takes}, the text encoder's hidden_size {has}");
        return Err(invalid(&repository.path, reason));
    }
    Ok(Box::new(StableDiffusion { encoder, network }))
}

impl Architecture for StableDiffusion {
    fn defaults(&self) -> Defaults {
        self.network.defaults(7.5)
    }

    fn latent_space(&self) -> LatentSpace {
        self.network.latent_space()
    }

    fn components(&self) -> Vec<Component> {
        std::iter::once(ENCODER).chain(self.network.components()).collect()
    }

    fn scratch(&self, pixels: usize) -> Bytes {
        self.encoder.scratch().max(self.network.scratch(pixels))
    }

    fn load(
        &self,
        weights: &ComponentWeights,
        device: &Device,
        context: &LoadContext,
    ) -> Result<Box<dyn Pipeline>> {
        let encoder = weights.of(ENCODER.folder)?.reader("", device, context);
        Ok(Box::new(LoadedStableDiffusion {
            encoder: self.encoder.load(&encoder, Pooling::Plain)?,
            network: self.network.load(weights, device, context)?,
        }))
    }
}

struct LoadedStableDiffusion {
    encoder: PromptEncoder,
    network: LoadedNetwork,
}

impl Pipeline for LoadedStableDiffusion {
    fn scheduler(&self, settings: &Settings) -> Result<Box<dyn Scheduler>> {
        self.network.schedule.start(settings)
    }

    fn encode_prompt(&self, settings: &Settings, watch: &Watch<'_>) -> Result<Conditioning> {
        let encoded = self.encoder.encode(&self.network.prompts(settings)?, watch)?;
        Ok(Conditioning {
            prompt_embeddings: encoded.last_hidden_state,
            pooled_prompt_embeddings: None,
            guidance: settings.guidance,
            beside: None,
        })
    }

    fn takes_masked_images(&self) -> bool {
        self.network.takes_masked_images
    }

    fn predict(
        &self,
        latents: &Tensor,
        timestep: f64,
        conditioning: &Conditioning,
        watch: &Watch<'_>,
    ) -> Result<Tensor> {
        self.network.predict(latents, timestep, conditioning, watch)
    }

    fn encode(&self, colours: &Tensor, noise: &mut Noise, watch: &Watch<'_>) -> Result<Tensor> {
        self.network.autoencoder.encode(colours, noise, watch)
    }

    fn decode(&self, latents: &Tensor, watch: &Watch<'_>) -> Result<Tensor> {
        self.network.autoencoder.decode(latents, watch)
    }

    fn decode_preview(&self, latents: &Tensor, watch: &Watch<'_>) -> Result<Tensor> {
        self.network.autoencoder.decode_preview(latents, watch)
    }
}

/// Components of every Stable Diffusion pipeline with a UNet.
pub(super) struct Network {
    pub(super) unet: UnetConfig,
    autoencoder: DecoderConfig,
    schedule: Schedule,
}

impl Network {
    pub(super) fn read(repository: &Repository<'_>) -> Result<Self> {
        let unet = UnetConfig::read(repository)?;
        let autoencoder = DecoderConfig::read(repository)?;
        let channels = autoencoder.latent_channels;
        let masked = masked_channels(channels);
        if ![channels, masked].contains(&unet.in_channels) || unet.out_channels != channels {
            let reason = format!(
                "its UNet takes {} channels and gives {}; its autoencoder has {channels}, and with a mask and an image \
                 beside them {masked}",
                unet.in_channels, unet.out_channels
            );
            return Err(invalid(&repository.path, reason));
        }
        Ok(Self { unet, autoencoder, schedule: Schedule::read(repository)? })
    }

    /// Defaults of a pipeline with this scale of guidance.
    pub(super) fn defaults(&self, guidance: f64) -> Defaults {
        // 64 latents a side, if the configuration does not say.
        let (height, width) = self.unet.sample_size().unwrap_or((64, 64));
        let scale = self.autoencoder.scale();
        let (steps, guidance) = match (self.unet.guidance_width(), self.schedule.distilled_steps()) {
            (Some(_), steps) => (steps.unwrap_or(LCM_STEPS), 8.5),
            (None, Some(steps)) => (steps, 0.0),
            (None, None) => (50, guidance),
        };
        let (width, height) = (width.saturating_mul(scale), height.saturating_mul(scale));
        Defaults { width, height, steps, guidance }
    }

    /// The components that have weights.
    pub(super) fn components(&self) -> impl Iterator<Item = Component> {
        std::iter::once(unet::COMPONENT).chain(self.autoencoder.components())
    }

    pub(super) fn latent_space(&self) -> LatentSpace {
        let scale = self.autoencoder.scale();
        LatentSpace { channels: self.autoencoder.latent_channels, scale, multiple: scale }
    }

    pub(super) fn scratch(&self, pixels: usize) -> Bytes {
        let scale = self.autoencoder.scale();
        let latents = pixels / (scale * scale);
        self.unet.scratch(latents).max(self.autoencoder.scratch(pixels))
    }

    pub(super) fn load(
        &self,
        weights: &ComponentWeights,
        device: &Device,
        context: &LoadContext,
    ) -> Result<LoadedNetwork> {
        let unet = weights.of(unet::COMPONENT.folder)?.reader("", device, context);
        let autoencoder = self.autoencoder.load(weights, device, context)?;
        let takes_masked_images = self.unet.in_channels == masked_channels(self.autoencoder.latent_channels);
        if takes_masked_images && !autoencoder.has_encoder() {
            // Such a model begins with an image whatever it is asked for.
            return Err(Error::MissingTensor { tensor: "encoder of the autoencoder".to_owned() });
        }
        Ok(LoadedNetwork {
            unet: Unet::load(&self.unet, &ScopedReader::root(&unet))?,
            autoencoder,
            schedule: self.schedule.clone(),
            takes_guidance: self.unet.guidance_width().is_some(),
            takes_masked_images,
        })
    }
}

/// Loaded components of every Stable Diffusion pipeline with a UNet.
pub(super) struct LoadedNetwork {
    unet: Unet,
    pub(super) autoencoder: Decoder,
    pub(super) schedule: Schedule,
    /// True if the scale of the guidance is an input of the UNet.
    takes_guidance: bool,
    pub(super) takes_masked_images: bool,
}

/// Channels of latents with a mask and an image of as many channels beside them.
fn masked_channels(latents: usize) -> usize {
    latents.saturating_mul(2).saturating_add(1)
}

impl LoadedNetwork {
    /// The prompts to encode, of which a model that takes the guidance as an input has one.
    pub(super) fn prompts<'a>(&self, settings: &'a Settings) -> Result<Vec<&'a str>> {
        match (self.takes_guidance, settings.has_negative_prompt()) {
            (true, true) => {
                let reason =
                    "this model takes no negative prompt: its guidance is a part of the model".to_owned();
                Err(Error::InvalidInput(reason))
            }
            (true, false) => Ok(vec![&settings.prompt]),
            (false, _) => Ok(settings.prompts()),
        }
    }

    /// Predicts from latents `(1, channels, height, width)`, once for each row of the conditioning.
    pub(super) fn predict(
        &self,
        latents: &Tensor,
        timestep: f64,
        conditioning: &Conditioning,
        watch: &Watch<'_>,
    ) -> Result<Tensor> {
        let rows = conditioning.prompt_embeddings.dim(0)?;
        let latents = match &conditioning.beside {
            Some(beside) => Tensor::cat(&[latents, beside], 1)?,
            None => latents.clone(),
        };
        let latents = latents.repeat((rows, 1, 1, 1))?;
        let (text, pooled) =
            (&conditioning.prompt_embeddings, conditioning.pooled_prompt_embeddings.as_ref());
        self.unet.forward(&latents, timestep, conditioning.guidance, text, pooled, watch)
    }
}
