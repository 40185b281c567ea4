//! FLUX.1 schnell and dev (Black Forest Labs, 2024): T5 for the prompt embeddings, CLIP for the pooled one,
//! and a transformer that is trained by flow matching. Dev takes the scale of the guidance as an input and
//! needs no second prediction; schnell is distilled to a few steps without guidance. The reference is
//! diffusers.

mod transformer;

use candle_core::{Device, IndexOp as _, Tensor};
use model_actors::{Bytes, LoadContext};

use super::clip::{self, Pooling, PromptEncoder, PromptEncoderConfig};
use super::flow_match::{FlowSchedule, SigmaRange};
use super::latent_decoder::{Decoder, DecoderConfig};
use super::layers::ScopedReader;
use super::noise::Noise;
use super::pipeline::{
    Architecture, Conditioning, Defaults, LatentSpace, Pipeline, Read, Scheduler, Settings, Watch,
};
use super::repository::{Component, ComponentWeights, Repository, invalid};
use super::t5::{self, T5, T5Config};
use crate::architecture::Family;
use crate::error::{Error, Result};
use transformer::{SIDE, Transformer, TransformerConfig};

/// The family's entry in the list.
pub(super) const FAMILY: Family<Read> =
    Family { model_type: "FluxPipeline", architectures: &[], read: |_, _| Ok(read) };

const CLIP: Component =
    Component { folder: "text_encoder/", file: Component::TRANSFORMERS, is_loaded: clip::is_loaded };
const T5_ENCODER: Component =
    Component { folder: "text_encoder_2/", file: Component::TRANSFORMERS, is_loaded: t5::is_loaded };

/// Latents along a side of the default image, which no configuration says.
const SAMPLE_SIZE: usize = 128;

/// Configurations of the components.
struct Flux {
    clip: PromptEncoderConfig,
    t5: T5Config,
    transformer: TransformerConfig,
    autoencoder: DecoderConfig,
    schedule: FlowSchedule,
}

fn read(repository: &Repository<'_>) -> Result<Box<dyn Architecture>> {
    let model = Flux {
        clip: PromptEncoderConfig::read(repository, CLIP.folder, "tokenizer/")?,
        t5: T5Config::read(repository, T5_ENCODER.folder, "tokenizer_2/")?,
        transformer: TransformerConfig::read(repository)?,
        autoencoder: DecoderConfig::read(repository)?,
        schedule: FlowSchedule::read(repository)?,
    };
    match model.mismatch() {
        Some(reason) => Err(invalid(&repository.path, reason)),
        None => Ok(Box::new(model)),
    }
}

impl Flux {
    /// Describes the first pair of components whose sizes do not fit together.
    fn mismatch(&self) -> Option<String> {
        let (takes, channels) = (self.transformer.in_channels, self.autoencoder.latent_channels);
        if takes != channels * SIDE * SIDE {
            return Some(format!(
                "its transformer takes patches of {takes} numbers, its autoencoder has {channels} channels"
            ));
        }
        let (width, takes) = (self.t5.width(), self.transformer.joint_attention_dim);
        if width != takes {
            return Some(format!(
                "its joint_attention_dim is {takes}, its second text encoder's d_model {width}"
            ));
        }
        let (width, takes) = (self.clip.width(), self.transformer.pooled_projection_dim);
        (width != takes).then(|| {
            format!("its pooled_projection_dim is {takes}, its first text encoder's hidden_size {width}")
        })
    }

    /// Tokens of a prompt for T5; schnell is trained with half as many as dev.
    fn length(&self) -> usize {
        if self.transformer.guidance_embeds { 512 } else { 256 }
    }
}

impl Architecture for Flux {
    fn defaults(&self) -> Defaults {
        let side = SAMPLE_SIZE.saturating_mul(self.autoencoder.scale());
        let (steps, guidance) = if self.transformer.guidance_embeds { (28, 3.5) } else { (4, 0.0) };
        Defaults { width: side, height: side, steps, guidance }
    }

    fn latent_space(&self) -> LatentSpace {
        let scale = self.autoencoder.scale();
        LatentSpace { channels: self.autoencoder.latent_channels, scale, multiple: scale * SIDE }
    }

    fn components(&self) -> Vec<Component> {
        let own = [CLIP, T5_ENCODER, transformer::COMPONENT].into_iter();
        own.chain(self.autoencoder.components()).collect()
    }

    fn scratch(&self, pixels: usize) -> Bytes {
        let side = self.latent_space().multiple;
        let rows = (pixels / (side * side)).saturating_add(self.length());
        let parts = [
            self.clip.scratch(),
            self.t5.scratch(self.length()),
            self.transformer.scratch(rows),
            self.autoencoder.scratch(pixels),
        ];
        parts.into_iter().fold(Bytes(0), Bytes::max)
    }

    fn load(
        &self,
        weights: &ComponentWeights,
        device: &Device,
        context: &LoadContext,
    ) -> Result<Box<dyn Pipeline>> {
        let reader =
            |component: Component| Ok::<_, Error>(weights.of(component.folder)?.reader("", device, context));
        Ok(Box::new(LoadedFlux {
            clip: self.clip.load(&reader(CLIP)?, Pooling::Plain)?,
            t5: self.t5.load(&ScopedReader::root(&reader(T5_ENCODER)?), self.length())?,
            transformer: self.transformer.load(&ScopedReader::root(&reader(transformer::COMPONENT)?))?,
            autoencoder: self.autoencoder.load(weights, device, context)?,
            schedule: self.schedule.clone(),
            multiple: self.latent_space().multiple,
        }))
    }
}

struct LoadedFlux {
    clip: PromptEncoder,
    t5: T5,
    transformer: Transformer,
    autoencoder: Decoder,
    schedule: FlowSchedule,
    /// Pixels along a side of a patch.
    multiple: usize,
}

impl Pipeline for LoadedFlux {
    fn scheduler(&self, settings: &Settings) -> Result<Box<dyn Scheduler>> {
        let patches = (settings.width / self.multiple) * (settings.height / self.multiple);
        self.schedule.start(settings, SigmaRange::Unit, patches)
    }

    fn encode_prompt(&self, settings: &Settings, watch: &Watch<'_>) -> Result<Conditioning> {
        if settings.has_negative_prompt() {
            let reason = "FLUX takes no negative prompt: its guidance is a part of the model".to_owned();
            return Err(Error::InvalidInput(reason));
        }
        let prompts = [settings.prompt.as_str()];
        Ok(Conditioning {
            pooled_prompt_embeddings: Some(self.clip.encode(&prompts, watch)?.pooled),
            prompt_embeddings: self.t5.encode(&prompts, watch)?,
            guidance: settings.guidance,
            beside: None,
        })
    }

    fn predict(
        &self,
        latents: &Tensor,
        timestep: f64,
        conditioning: &Conditioning,
        watch: &Watch<'_>,
    ) -> Result<Tensor> {
        let (text, pooled) = (conditioning.prompt_embeddings.i(0)?, conditioning.pooled()?);
        let times = (timestep, conditioning.guidance);
        let prediction = self.transformer.forward(&latents.i(0)?, times, &text, pooled, watch)?;
        Ok(prediction.unsqueeze(0)?)
    }

    fn encode(&self, colours: &Tensor, noise: &mut Noise, watch: &Watch<'_>) -> Result<Tensor> {
        self.autoencoder.encode(colours, noise, watch)
    }

    fn decode(&self, latents: &Tensor, watch: &Watch<'_>) -> Result<Tensor> {
        self.autoencoder.decode(latents, watch)
    }

    fn decode_preview(&self, latents: &Tensor, watch: &Watch<'_>) -> Result<Tensor> {
        self.autoencoder.decode_preview(latents, watch)
    }
}
