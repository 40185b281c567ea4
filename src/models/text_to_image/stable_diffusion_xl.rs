//! SDXL and SDXL-Turbo (Podell et al., arXiv 2307.01952; Sauer et al., arXiv 2311.17042): two CLIP text
//! encoders, and a UNet that also takes the pooled prompt embedding and the sizes of the image. The reference
//! is diffusers.

use candle_core::{Device, Tensor};
use model_actors::{Bytes, LoadContext};
use serde::Deserialize;

use super::clip::{self, EncodedPrompts, Pooling, PromptEncoder, PromptEncoderConfig};
use super::layers::SinusoidalEmbedding;
use super::noise::Noise;
use super::pipeline::{
    Architecture, Conditioning, Defaults, LatentSpace, Pipeline, Read, Scheduler, Settings, Watch,
};
use super::repository::{Component, ComponentWeights, Repository, invalid};
use super::stable_diffusion::{LoadedNetwork, Network};
use crate::architecture::{Family, parse};
use crate::error::Result;

/// The family's entry in the list.
pub(super) const FAMILY: Family<Read> =
    Family { model_type: "StableDiffusionXLPipeline", architectures: &[], read: |_, _| Ok(read) };

/// The same for repositories that paint anew what a mask says.
pub(super) const FAMILY_INPAINT: Family<Read> =
    Family { model_type: "StableDiffusionXLInpaintPipeline", architectures: &[], read: |_, _| Ok(read) };

const FIRST: Component =
    Component { folder: "text_encoder/", file: Component::TRANSFORMERS, is_loaded: clip::is_loaded };
const SECOND: Component =
    Component { folder: "text_encoder_2/", file: Component::TRANSFORMERS, is_loaded: clip::is_loaded };

/// Sizes that the network is embedded: of the original, of what was cut off it, of the target; height before
/// width.
const TIME_IDS: usize = 6;

/// `model_index.json`.
#[derive(Debug, Deserialize)]
struct Index {
    #[serde(default = "yes")]
    force_zeros_for_empty_prompt: bool,
}

fn yes() -> bool {
    true
}

/// Configurations of the components.
struct StableDiffusionXl {
    encoders: [PromptEncoderConfig; 2],
    network: Network,
    /// Width of the sinusoidal embedding of each size.
    size_width: usize,
    /// True if a missing negative prompt is encoded as zeros, and not as an empty text.
    force_zeros: bool,
}

fn read(repository: &Repository<'_>) -> Result<Box<dyn Architecture>> {
    let Index { force_zeros_for_empty_prompt } = parse(&repository.path, &repository.index)?;
    let encoders = [
        PromptEncoderConfig::read(repository, FIRST.folder, "tokenizer/")?,
        PromptEncoderConfig::read(repository, SECOND.folder, "tokenizer_2/")?,
    ];
    let network = Network::read(repository)?;
    let wrong = |reason: String| Err(invalid(&repository.path, reason));
    let (has, takes) = (encoders[0].width() + encoders[1].width(), network.unet.cross_attention_width());
    if has != takes {
        let reason =
            format!("its cross_attention_dim is {takes}, the text encoders' hidden_size {has} together");
        return wrong(reason);
    }
    let Some((added, size_width)) = network.unet.added() else {
        return wrong("its UNet has no addition_embed_type".to_owned());
    };
    let has = encoders[1].projection().saturating_add(TIME_IDS * size_width);
    if has != added {
        let reason = format!(
            "its projection_class_embeddings_input_dim is {added}; six sizes and the second text encoder's \
             projection_dim are {has} together"
        );
        return wrong(reason);
    }
    Ok(Box::new(StableDiffusionXl {
        encoders,
        network,
        size_width,
        force_zeros: force_zeros_for_empty_prompt,
    }))
}

impl Architecture for StableDiffusionXl {
    fn defaults(&self) -> Defaults {
        self.network.defaults(5.0)
    }

    fn latent_space(&self) -> LatentSpace {
        self.network.latent_space()
    }

    fn components(&self) -> Vec<Component> {
        [FIRST, SECOND].into_iter().chain(self.network.components()).collect()
    }

    fn scratch(&self, pixels: usize) -> Bytes {
        let encoders = self.encoders.iter().map(PromptEncoderConfig::scratch);
        encoders.fold(self.network.scratch(pixels), Bytes::max)
    }

    fn load(
        &self,
        weights: &ComponentWeights,
        device: &Device,
        context: &LoadContext,
    ) -> Result<Box<dyn Pipeline>> {
        let first = weights.of(FIRST.folder)?.reader("", device, context);
        let second = weights.of(SECOND.folder)?.reader("", device, context);
        Ok(Box::new(LoadedStableDiffusionXl {
            first: self.encoders[0].load(&first, Pooling::Plain)?,
            second: self.encoders[1].load(&second, Pooling::Projected)?,
            network: self.network.load(weights, device, context)?,
            sizes: self.network.unet.sinusoid(self.size_width),
            force_zeros: self.force_zeros,
        }))
    }
}

struct LoadedStableDiffusionXl {
    first: PromptEncoder,
    second: PromptEncoder,
    network: LoadedNetwork,
    /// Embedding of each size.
    sizes: SinusoidalEmbedding,
    force_zeros: bool,
}

impl LoadedStableDiffusionXl {
    /// Appends the embeddings of the sizes to each pooled prompt embedding.
    fn with_sizes(&self, pooled: &Tensor, settings: &Settings) -> Result<Tensor> {
        let (height, width) = (settings.height as f32, settings.width as f32);
        let sizes = [height, width, 0.0, 0.0, height, width];
        let embedded: Vec<f32> = sizes.iter().flat_map(|size| self.sizes.of(*size)).collect();
        let (rows, count) = (pooled.dim(0)?, embedded.len());
        let embedded = Tensor::from_vec(embedded, (1, count), pooled.device())?.repeat((rows, 1))?;
        Ok(Tensor::cat(&[pooled, &embedded], 1)?)
    }
}

impl Pipeline for LoadedStableDiffusionXl {
    fn scheduler(&self, settings: &Settings) -> Result<Box<dyn Scheduler>> {
        self.network.schedule.start(settings)
    }

    fn encode_prompt(&self, settings: &Settings, watch: &Watch<'_>) -> Result<Conditioning> {
        let prompts = self.network.prompts(settings)?;
        let EncodedPrompts { penultimate_hidden_state: first, .. } = self.first.encode(&prompts, watch)?;
        let EncodedPrompts { penultimate_hidden_state: second, pooled, .. } =
            self.second.encode(&prompts, watch)?;
        let (mut hidden, mut pooled) = (Tensor::cat(&[&first, &second], 2)?, pooled);
        if self.force_zeros && settings.negative_prompt.is_none() && prompts.len() == 2 {
            hidden = zero_first(&hidden)?;
            pooled = zero_first(&pooled)?;
        }
        Ok(Conditioning {
            prompt_embeddings: hidden,
            pooled_prompt_embeddings: Some(self.with_sizes(&pooled, settings)?),
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

/// Replaces the first of two rows by zeros.
fn zero_first(rows: &Tensor) -> Result<Tensor> {
    let second = rows.narrow(0, 1, 1)?;
    Ok(Tensor::cat(&[&second.zeros_like()?, &second], 0)?)
}
